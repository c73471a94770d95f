import errno
import os
from pathlib import Path

import numpy as np
import pytest
from point import Point

from ript.core.capacity import Memory
from ript.core.errors import ConfigError, DataError
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.normalisation import SMALLEST_STD
from ript.demos.windows import Windows

H = 4


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "d.hdf5"
    collect_demos(Point, ["point/red", "point/blue", "point/green"], 6, path, seed=1)
    return open_demos(path)


@pytest.fixture(scope="module")
def windows(demos):
    return Windows(demos, H)


def test_each_look_starts_a_window_of_the_expert_s_next_actions(demos, windows):
    batch = windows.batch(np.arange(len(windows)))
    row = 0
    for demo in demos.demos():
        for look, step in enumerate(demo.frame_steps):
            expected = [demo.actions[min(step + h, len(demo) - 1)] for h in range(H)]
            assert np.array_equal(batch.actions[row], expected)
            assert batch.mask[row].tolist() == [step + h < len(demo) for h in range(H)]
            assert np.array_equal(batch.observation.images["top"][row], demo.images["top"][look])
            assert np.array_equal(batch.observation.proprio[row], demo.proprio[look])
            assert np.array_equal(batch.privileged[row], demo.privileged[look])
            assert batch.observation.instruction[row] == demo.task.instruction
            row += 1
    assert row == len(windows)
    assert batch.actions.dtype == np.float32
    assert batch.mask.dtype == bool


def test_action_chunks_start_at_every_step_looked_at_or_not(demos, windows):
    actions, mask = windows.action_chunks()
    row = 0
    for demo in demos.demos():
        for step in range(len(demo)):
            expected = [demo.actions[min(step + h, len(demo) - 1)] for h in range(H)]
            assert np.array_equal(actions[row], expected)
            assert mask[row].sum() == min(H, len(demo) - step)
            row += 1
    assert row == len(actions) == len(mask)


def test_a_horizon_longer_than_a_demonstration_is_all_padding_beyond_it(demos):
    (batch,) = [Windows(demos, 100).batch(np.array([0]))]
    length = demos.entries[0].steps
    assert batch.mask[0].tolist() == [True] * length + [False] * (100 - length)
    assert (batch.actions[0, length:] == batch.actions[0, length - 1]).all()


def test_restoring_the_generator_resumes_the_batches(windows):
    rng = np.random.default_rng(0)
    batches = windows.batches(8, rng)
    next(batches)
    state = rng.bit_generator.state
    expected = [next(batches) for _ in range(3)]
    other = np.random.default_rng(99)
    other.bit_generator.state = state
    for want, got in zip(expected, windows.batches(8, other), strict=False):
        assert np.array_equal(want.actions, got.actions)
        assert np.array_equal(want.observation.images["top"], got.observation.images["top"])


def counts(windows, batches, number):
    """How often each window was drawn (its proprioception tells it apart)."""
    names = {row.tobytes(): i for i, row in enumerate(windows.proprio)}
    assert len(names) == len(windows)
    drawn = np.zeros(len(windows), int)
    for _, batch in zip(range(number), batches, strict=False):
        for row in batch.observation.proprio:
            drawn[names[row.tobytes()]] += 1
    return drawn


def test_every_window_is_drawn_equally_often_by_default(windows):
    drawn = counts(windows, windows.batches(50, np.random.default_rng(0)), 400)
    mean = drawn.sum() / len(windows)
    assert np.abs(drawn - mean).max() < 6 * np.sqrt(mean)
    assert drawn.min() > 0


def test_a_batch_is_shuffled_so_that_any_part_of_it_is_a_fair_sample(windows):
    rng = np.random.default_rng(0)
    halves = [
        batch.observation.instruction[:16] for _, batch in zip(range(200), windows.batches(32, rng), strict=False)
    ]
    share = np.mean([[s == windows.tasks[0].instruction for s in half] for half in halves])
    assert share == pytest.approx((windows.task_index == 0).mean(), abs=0.03)


def test_a_fraction_of_each_batch_comes_from_the_target_tasks(windows):
    weights = windows.target_weights(["point/green"], 0.5)
    for _, batch in zip(range(20), windows.batches(64, np.random.default_rng(0), task_weights=weights), strict=False):
        green = sum(s == "move to the green" for s in batch.observation.instruction)
        assert 31 <= green <= 33
    drawn = counts(windows, windows.batches(64, np.random.default_rng(0), task_weights=weights), 300)
    others = drawn[windows.task_index != 2]
    assert np.abs(others - others.mean()).max() < 6 * np.sqrt(others.mean())


def test_a_task_without_weight_is_never_drawn(windows):
    batches = windows.batches(64, np.random.default_rng(0), task_weights={"point/red": 1, "point/blue": 3})
    for _, batch in zip(range(20), batches, strict=False):
        said = batch.observation.instruction
        assert sum(s == "move to the green" for s in said) == 0
        assert 15 <= sum(s == "move to the red" for s in said) <= 17


def test_targets_that_are_all_tasks_are_drawn_by_their_number_of_windows(windows):
    keys = [task.key for task in windows.tasks]
    weights = windows.target_weights(keys, 0.5)
    assert list(weights.values()) == np.bincount(windows.task_index).tolist()


def test_impossible_weights_are_refused(windows):
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="no demonstration of point/pink; there are point/red, point/blue, point/green"):
        next(windows.batches(4, rng, task_weights={"point/pink": 1}))
    with pytest.raises(ConfigError, match="not all of them 0"):
        next(windows.batches(4, rng, task_weights={"point/red": 0}))
    with pytest.raises(ConfigError, match=r"fraction = 1.5"):
        windows.target_weights(["point/red"], 1.5)


def test_an_empty_horizon_is_refused(demos):
    with pytest.raises(ConfigError, match="horizon = 0"):
        Windows(demos, 0)


def test_pictures_that_do_not_fit_into_memory_lie_in_a_file_without_a_name(demos, monkeypatch, tmp_path):
    held = Windows(demos, 4)
    monkeypatch.setattr("ript.core.capacity.memory", lambda: Memory(total=2000, available=1000))
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    mapped = Windows(demos, 4)
    assert mapped.fingerprint() == held.fingerprint() and mapped.nbytes == held.nbytes > 0
    rows = np.array([3, 0, 3])
    ours, theirs = mapped.batch(rows).observation.images, held.batch(rows).observation.images
    assert all(type(ours[name]) is np.ndarray and np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert list((tmp_path / "cache").iterdir()) == []
    assert f"{tmp_path}/cache/" in Path("/proc/self/maps").read_text()


def test_pictures_that_do_not_fit_on_the_disk_either_are_refused_before_reading(demos, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ript.core.capacity.memory", lambda: Memory(total=2000, available=1000))
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match=r"take 0.0 GiB; 0.0 of memory are available, and there is no room .*No space"):
        Windows(demos, 4)


def test_statistics_are_those_of_the_windows(demos, windows):
    statistics = windows.statistics()
    proprio = np.concatenate([demo.proprio for demo in demos.demos()])
    assert np.allclose(statistics.proprio_mean, proprio.mean(0), atol=1e-6)
    assert np.allclose(statistics.proprio_std, proprio.std(0), atol=1e-6)


def test_a_dimension_that_never_moves_is_not_blown_up(windows):
    statistics = windows.statistics()
    assert (windows.privileged[:, 2] == 0).all()
    assert statistics.privileged_std[2] == np.float32(SMALLEST_STD)
    assert (statistics.privileged_std[:2] > 0.1).all()
