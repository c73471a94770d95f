import shutil
from functools import partial

import h5py
import numpy as np
import pytest
from point import Point

from ript.core.errors import DataError
from ript.demos.collect import collect_demos
from ript.demos.verify import verify


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.hdf5"
    collect_demos(Point, ["point/red", "point/unlucky"], 3, path)
    return path


def test_replays_of_untouched_demonstrations_are_exact(good):
    results = list(verify(good, Point))
    assert [r.demo for r in results] == [f"demo_{i}" for i in range(6)]
    assert all(r.succeeded and r.exact for r in results)
    assert {r.task_key for r in results} == {"point/red", "point/unlucky"}


def test_a_demonstration_whose_actions_no_longer_lead_to_success_is_found(good, tmp_path):
    path = shutil.copy(good, tmp_path / "d.hdf5")
    with h5py.File(path, "r+") as file:
        file["data/demo_1/executed_actions"][...] *= -1
    results = list(verify(path, Point))
    assert [r.succeeded for r in results] == [True, False, True, True, True, True]
    assert results[1].replayed_steps is None
    assert results[1].pixel_difference == 0


def test_a_picture_that_the_simulator_no_longer_draws_is_found(good, tmp_path):
    path = shutil.copy(good, tmp_path / "d.hdf5")
    with h5py.File(path, "r+") as file:
        frames = file["data/demo_4/obs/top_rgb"]
        first = frames[0]
        first[0, 0, 0] += np.uint8(9)
        frames[0] = first
    results = list(verify(path, Point))
    assert [r.exact for r in results] == [True, True, True, True, False, True]
    assert results[4].succeeded
    assert results[4].pixel_difference == 9


def test_a_simulator_with_other_render_settings_is_refused(good):
    with pytest.raises(DataError, match=r"good.hdf5 was made with .*'shade': 200.* is .*'shade': 90"):
        list(verify(good, partial(Point, shade=90)))
