"""Proprioception, quaternions and actions, against what the published code gives."""

import numpy as np
import pytest
from oft_golden import TINY, arrays, document

from ript.core.errors import PolicyError
from ript.policies.openvla_oft.numbers import Statistics, axis_angle, statistics_of


@pytest.fixture(scope="module")
def golden():
    return arrays("pictures")


@pytest.fixture(scope="module")
def entries():
    return document("tiny/dataset_statistics")


@pytest.fixture(scope="module")
def statistics(entries):
    return statistics_of(entries, "libero_spatial", "a file")


def test_proprioception_is_normalised_as_published(golden, statistics):
    np.testing.assert_array_equal(statistics.proprio(golden["proprio/state"]), golden["proprio/normalized"])


def test_actions_are_scaled_back_and_turned_into_the_simulators_as_published(golden, statistics):
    normalised = golden["action/normalized"]
    np.testing.assert_array_equal(statistics.scaled_back(normalised), golden["action/unnormalized"])
    np.testing.assert_array_equal(statistics.simulator_actions(normalised), golden["action/env"])


def test_a_gripper_exactly_between_open_and_closed_does_neither(statistics):
    assert statistics.simulator_actions(np.full(7, 0.5, np.float32))[-1] == 0


def test_demonstrated_actions_come_back_through_the_policys_units(statistics):
    generator = np.random.default_rng(0)
    inside = generator.uniform(statistics.action_low, statistics.action_high, (50, 7))
    inside[:, -1] = generator.choice([-1.0, 1.0], 50)
    back = statistics.simulator_actions(statistics.normalised(inside))
    np.testing.assert_allclose(back, inside, atol=1e-6)
    assert set(statistics.normalised(inside)[:, -1]) == {0.0, 1.0}


def test_demonstrated_and_commanded_actions_are_cut_to_their_range(statistics):
    for beyond, end in ((statistics.action_low - 0.5, -1), (statistics.action_high + 0.5, 1)):
        np.testing.assert_array_equal(statistics.normalised(beyond)[:6], np.full(6, end, np.float32))
    wide = np.array([9, -9, np.nan, np.inf, 0, 0, 1], np.float32)
    cut = statistics.commanded(wide)
    assert cut.dtype == np.float32 and cut[:2].tolist() == [1, -1] and np.isnan(cut[2:4]).all() and cut[-1] == -1
    assert np.abs(statistics.simulator_actions(wide)[:2]).min() > 1  # which the published code leaves to the simulator


def test_a_plain_gripper_is_a_dimension_like_the_others(entries):
    plain = Statistics.from_json(entries["libero_spatial_no_noops"], "x", gripper="plain")
    action = np.array([0, 0, 0, 0, 0, 0, 0.25], np.float32)
    assert plain.simulator_actions(action)[-1] == 0.25
    assert plain.normalised(plain.simulator_actions(action))[-1] == 0.25


def test_quaternions_become_rotation_vectors_as_published_sign_and_all(golden):
    np.testing.assert_allclose(axis_angle(golden["quat/xyzw"]), golden["quat/axisangle"], rtol=0, atol=1e-15)
    assert (axis_angle(golden["quat/xyzw"][0]) == axis_angle(golden["quat/xyzw"])[0]).all()
    assert not np.allclose(axis_angle(-golden["quat/xyzw"][0]), golden["quat/axisangle"][0])


def test_the_state_vector_is_position_rotation_and_gripper(golden):
    for name in ("t0", "t3"):
        parts = golden[f"{name}/eef_pos"], axis_angle(golden[f"{name}/eef_quat_xyzw"]), golden[f"{name}/gripper_qpos"]
        np.testing.assert_allclose(np.concatenate(parts), golden[f"{name}/state"], rtol=0, atol=1e-15)


def test_statistics_are_found_by_suite_with_and_without_the_suffix(entries):
    entry = entries["libero_spatial_no_noops"]
    assert statistics_of(entries, None, "f").key == "libero_spatial_no_noops"
    assert statistics_of(entries, "libero_spatial_no_noops", "f").key == "libero_spatial_no_noops"
    assert statistics_of({"libero_goal": entry, **entries}, "libero_goal", "f").key == "libero_goal"
    with pytest.raises(PolicyError, match=r"no statistics of 'libero_spatia'.*did you mean libero_spatial_no_noops"):
        statistics_of(entries, "libero_spatia", "f")
    with pytest.raises(PolicyError, match="statistics of a, b: say which"):
        statistics_of({"a": entry, "b": entry}, None, "f")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda e: e.pop("proprio"), "proprio"),
        (lambda e: e["action"].pop("q99"), "q99"),
        (lambda e: e["action"].update(q01=[0.0] * 6), "of one length each"),
        (lambda e: e["action"].update(q01=[float("nan")] * 7), "finite"),
        (lambda e: e["action"].update(q01=["x"] * 7), "x"),
        (lambda e: e["action"].update(q01=e["action"]["q99"], q99=e["action"]["q01"]), "q01 above q99"),
        (lambda e: e["proprio"].update(q01=e["proprio"]["q99"], q99=e["proprio"]["q01"]), "q01 above q99"),
        (lambda e: e["action"].update(mask=["False"] * 7), "mask"),
    ],
)
def test_damaged_statistics_are_refused(damage, message):
    entries = document("tiny/dataset_statistics")
    damage(entries["libero_spatial_no_noops"])
    with pytest.raises(PolicyError, match=message):
        statistics_of(entries, None, str(TINY / "dataset_statistics.json"))


def test_statistics_are_written_and_read_again(statistics):
    again = statistics.to_json()
    assert Statistics.from_json(again, again["key"], again["gripper"]) == statistics
    assert Statistics.from_json(again, "other", again["gripper"]) != statistics
