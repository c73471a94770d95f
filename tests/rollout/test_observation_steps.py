"""A policy that sees several observation steps at a time: what it is shown, in every kind of pool and in windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from ript.core.errors import ConfigError, DataError
from ript.core.types import ActionChunk, Observation, RolloutRequest
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.windows import Windows
from ript.rollout.pool import make_pool
from ript.sims.toy.simulator import ToySimulator
from tests.fakes import FakeFactory, FakePolicy, fake_state, fake_task

LONG = fake_task("long-13", 13)
POOLS = [{"workers": 0}, {"workers": 1, "inference": "local"}, {"workers": 2, "inference": "central"}]


class Looking(FakePolicy):
    """Keeps all that it is shown."""

    def __init__(self, steps: int | None):
        super().__init__(bias=1.0)  # it never succeeds
        if steps is not None:
            self.n_obs_steps = steps

    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        chunk = super().act(observation, generators, greedy=greedy)
        return replace(chunk, inputs={"picture": observation.images["front"], "proprio": observation.proprio})


def requests(video: bool = False) -> list[RolloutRequest]:
    states = [fake_state(i, 0.0, LONG) for i in range(3)]
    return [RolloutRequest(initial_state=state, index=0, seed=(0,), video=video) for state in states]


def expected(decisions: int, steps: int) -> list[list[int]]:
    """Environment steps that a decision sees, chunks of 4."""
    return [[max(0, 4 * decision - back) for back in reversed(range(steps))] for decision in range(decisions)]


@pytest.mark.parametrize("settings", POOLS, ids=["inline", "local", "central"])
def test_a_policy_sees_the_last_steps_and_the_first_one_again_before_it(settings):
    with make_pool(FakeFactory(), Looking(None), slots=2, **settings) as pool:
        for steps in (None, 3, 7, 2):  # the same simulators go on with another policy
            pool.use(Looking(steps))
            for rollout in pool.run(requests()):
                assert rollout.inputs is not None
                seen, picture = rollout.inputs["proprio"], rollout.inputs["picture"]
                if steps is None:
                    assert (seen.shape, picture.shape) == ((4, 3), (4, 6, 8, 3))
                    assert seen[:, 1].tolist() == [0, 4, 8, 12]
                else:
                    assert (seen.shape, picture.shape) == ((4, steps, 3), (4, steps, 6, 8, 3))
                    assert seen[..., 1].tolist() == expected(4, steps)
                    assert (picture[..., 0, 0, 0] == seen[..., 1]).all()
                assert len(set(seen[..., 0].ravel())) == 1, "of its own rollout alone"


def test_a_video_has_the_same_frames_whatever_the_policy_sees():
    films = []
    for steps in (1, 3):
        with make_pool(FakeFactory(), Looking(steps), workers=0, slots=2, frame_every=3) as pool:
            films.append([rollout.frames for rollout in pool.run(requests(video=True))])
    assert films[0][0] is not None and films[0][0][:, 0, 0, 0].tolist() == [0, 3, 4, 7, 8, 11, 12, 13]
    assert all(np.array_equal(one, other) for one, other in zip(*films, strict=True))


def test_a_number_of_steps_that_is_none_is_refused():
    for wrong in (0, 2.0, True):
        with pytest.raises(ConfigError, match=r"n_obs_steps = .* expected a whole number of at least 1"):
            make_pool(FakeFactory(), Looking(wrong), workers=0, slots=2)


@dataclass
class Again(FakePolicy):
    """Repeats demonstrated actions, two at a time, and keeps what it is shown."""

    actions: np.ndarray
    n_obs_steps: int = 3

    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        assert len(observation) == 1
        chunk, self.actions = self.actions[:2], self.actions[2:]
        inputs = {**observation.images, "proprio": observation.proprio}
        return ActionChunk(
            actions=chunk[None], sample=np.zeros((1, 1)), log_prob=np.zeros((1, 1), np.float32), inputs=inputs
        )


def toy(key: str) -> ToySimulator:
    return ToySimulator(key.split("/")[1], horizon=60)


def test_acting_sees_what_the_windows_of_demonstrations_show(tmp_path):
    collect_demos(toy, ["toy/reach-corner"], 3, tmp_path / "d.hdf5", noise=0.0, every=1)
    demos = open_demos(tmp_path / "d.hdf5")
    windows = Windows(demos, 4, 3)
    first = 0
    for demo in demos.demos():
        with make_pool(toy, Again(demo.executed_actions), workers=0, slots=1) as pool:
            (rollout,) = pool.run(
                [RolloutRequest(initial_state=demo.initial_state, index=0, seed=(0,), horizon=len(demo))]
            )
        batch = windows.batch(first + np.arange(0, len(demo), 2))
        assert rollout.inputs is not None and rollout.decisions > 1
        assert np.array_equal(rollout.inputs["proprio"], batch.observation.proprio)
        for name, pictures in batch.observation.images.items():
            assert pictures.shape[1] == 3 and np.array_equal(rollout.inputs[name], pictures)
        assert not np.array_equal(batch.observation.proprio[1, 0], batch.observation.proprio[1, 1])
        first += len(demo)
    assert first == len(windows)


def test_demonstrations_with_steps_that_nobody_looked_at_are_refused(tmp_path):
    collect_demos(toy, ["toy/reach-corner"], 1, tmp_path / "d.hdf5", every=2)
    assert len(Windows(open_demos(tmp_path / "d.hdf5"), 4))
    with pytest.raises(DataError, match=r"sees 2 consecutive steps .* looks at steps 0, 2, 4, .*--demos.every=1"):
        Windows(open_demos(tmp_path / "d.hdf5"), 4, 2)
