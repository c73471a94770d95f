"""With the simulators that users run."""

import functools

import numpy as np
import pytest

from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.initial_states import demo_initial_states
from ript.demos.verify import verify
from ript.sims.registry import make_simulator


@pytest.mark.parametrize(
    ("tasks", "settings"),
    [
        (["metaworld/drawer-open-v3", "metaworld/handle-press-v3"], {"cameras": ("near", "corner2"), "image_size": 32}),
        (["toy/reach"], {}),
    ],
)
def test_demonstrations_made_in_a_worker_replay_to_the_last_bit_here(tmp_path, tasks, settings):
    make = functools.partial(make_simulator, **settings)
    out = tmp_path / "d.hdf5"
    collect_demos(make, tasks, 2, out, workers=1, seed=4)
    results = list(verify(out, make))
    assert len(results) == 2 * len(tasks)
    assert all(result.exact for result in results), results
    demos = open_demos(out)
    with make(tasks[0]) as sim:
        drawn = {state.id for state in sim.initial_states(20, seed=4, split="demo")}
    assert {state.id for state in demo_initial_states(demos, [tasks[0]])} <= drawn
    for demo in demos.demos():
        assert set(demo.images) == set(demos.spec.cameras)
        assert all(np.ptp(frames) > 100 for frames in demo.images.values()), "an empty picture"
        assert not np.array_equal(*(frames for frames in next(iter(demo.images.values()))[[0, -1]]))
