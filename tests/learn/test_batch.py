from dataclasses import replace

import numpy as np
import pytest
import torch

from ript.core.errors import NoSignalError, TrainingError
from ript.core.types import Group, InitialState, Rollout, Status, Task
from ript.learn.batch import make_batch

TASK = Task(suite="toy", name="reach", instruction="reach the dot", index=0, horizon=10)


def make_group(number, statuses, lengths):
    """A group whose samples encode (group, rollout, decision), so that order can be seen."""
    state = InitialState(task=TASK, state=np.array([float(number)]), origin="sampled")
    rollouts = []
    for index, (status, d) in enumerate(zip(statuses, lengths, strict=True)):
        recorded = status is not Status.ERROR
        code = 100 * number + 10 * index + np.arange(d)
        rollouts.append(
            Rollout(
                initial_state_id=state.id,
                index=index,
                status=status,
                sample=np.stack([code, -code], 1) if recorded else None,
                log_prob=(-code[:, None] / 8 - np.zeros((d, 2))).astype(np.float32) if recorded else None,
                mask=np.arange(2)[None] <= code[:, None] % 2 if recorded else None,
                inputs={"prefix": np.repeat(code[:, None, None], 3, 2).astype(np.float32)} if recorded else None,
                decisions=d,
                env_steps=8 * d,
                policy_version=0,
                error=None if recorded else "the simulator fell over",
            )
        )
    return Group(initial_state=state, rollouts=tuple(rollouts))


S, F, E = Status.SUCCESS, Status.FAILURE, Status.ERROR


def with_rollout(group, index, **changes):
    rollouts = list(group.rollouts)
    rollouts[index] = replace(rollouts[index], **changes)
    return replace(group, rollouts=tuple(rollouts))


def test_rows_are_the_decisions_of_valid_rollouts_in_order_with_their_rollouts_advantage():
    batch = make_batch([make_group(0, [S, F, F], [2, 1, 1]), make_group(1, [F, E, S], [1, 0, 2])])
    assert batch.sample[:, 0].tolist() == [0, 1, 10, 20, 100, 120, 121]
    assert batch.trajectory.tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert batch.advantage.tolist() == [1, 1, -0.5, -0.5, -1, 1, 1]
    assert batch.old_log_prob[:, 1].tolist() == [-c / 8 for c in [0, 1, 10, 20, 100, 120, 121]]
    assert batch.mask.tolist() == [[True, bool(c % 2)] for c in [0, 1, 10, 20, 100, 120, 121]]
    assert batch.inputs["prefix"][:, 0, 2].tolist() == [0, 1, 10, 20, 100, 120, 121]
    assert (len(batch), batch.trajectories) == (7, 5)
    assert (batch.sample.dtype, batch.old_log_prob.dtype, batch.mask.dtype, batch.advantage.dtype) == (
        torch.int64,
        torch.float32,
        torch.bool,
        torch.float32,
    )


def test_rollouts_below_the_threshold_are_dropped_but_count_in_the_baseline():
    groups = [make_group(0, [S, S, S, F], [1, 2, 1, 3])]  # advantages 1/3, 1/3, 1/3, -1
    batch = make_batch(groups, min_abs_advantage=0.5)
    assert batch.sample[:, 0].tolist() == [30, 31, 32]
    assert batch.trajectory.tolist() == [0, 0, 0]
    assert batch.advantage.tolist() == [-1, -1, -1]


def test_groups_without_signal_stay_with_zero_advantage_unless_a_threshold_drops_them():
    groups = [make_group(0, [S, S], [1, 1]), make_group(1, [S, F], [1, 1])]
    assert make_batch(groups).advantage.tolist() == [0, 0, 1, -1]
    assert make_batch(groups, min_abs_advantage=0.01).advantage.tolist() == [1, -1]


def test_division_by_the_standard_deviation_is_an_option():
    advantage = make_batch([make_group(0, [F, S, F, F], [1, 1, 1, 1])], normalise_std=True).advantage
    torch.testing.assert_close(advantage, torch.tensor([-2 / 3, 2, -2 / 3, -2 / 3]))


def test_the_batch_does_not_share_memory_with_the_rollouts():
    group = make_group(0, [S, F], [1, 1])
    make_batch([group]).sample[:] = 7
    assert group.rollouts[1].sample.tolist() == [[10, -10]]


def test_a_rollout_that_was_not_recorded_is_refused_with_its_address():
    group = with_rollout(make_group(3, [S, F], [1, 1]), 1, log_prob=None, inputs=None)
    message = rf"rollout 1 from initial state {group.initial_state.id} of toy/reach .*log_prob, inputs.*record=True"
    with pytest.raises(TrainingError, match=message):
        make_batch([group])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask": np.ones((2, 1), bool)}, r"mask is \(2, 1\), but sample is \(2, 2\)"),
        ({"decisions": 3}, r"3 decisions, but sample is \(2, 2\)"),
        ({"inputs": {"prefix": np.zeros((1, 1, 3), np.float32)}}, "input 'prefix' has 1 rows for 2 decisions"),
        ({"inputs": {"prefix": np.zeros((2, 1, 4), np.float32)}}, r"prefix.*\(1, 4\).*first rollout.*\(1, 3\)"),
        ({"inputs": {"other": np.zeros((2, 1, 3), np.float32)}}, "other.*first rollout.*prefix"),
        ({"decisions": 0, "sample": np.zeros((0, 2), int)}, "0 decisions"),
    ],
)
def test_records_that_do_not_fit_are_refused(changes, message):
    group = with_rollout(make_group(0, [S, F], [2, 2]), 1, **changes)
    with pytest.raises(TrainingError, match=f"rollout 1 .*{message}"):
        make_batch([group])


def test_nothing_left_to_learn_from_says_why():
    groups = [make_group(0, [S, S, E], [1, 1, 0])]
    with pytest.raises(NoSignalError, match=r"1 groups, 1 rollouts in ERROR.*below \|advantage\| 0.01"):
        make_batch(groups, min_abs_advantage=0.01)
    with pytest.raises(NoSignalError, match="0 groups"):
        make_batch([])


def test_thinning_keeps_a_random_few_decisions_of_long_rollouts_in_order_and_whole():
    groups = [make_group(0, [S, F, F], [2, 9, 9])]
    batch = make_batch(groups, max_decisions=3, generator=torch.Generator().manual_seed(0))
    assert batch.trajectory.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    codes = batch.sample[:, 0].tolist()
    assert codes[:2] == [0, 1] and codes[2:5] == sorted(codes[2:5]) and set(codes[2:5]) < set(range(10, 19))
    assert batch.advantage.tolist() == [1, 1] + [-0.5] * 6
    assert batch.inputs["prefix"][:, 0, 0].tolist() == codes
    assert batch.old_log_prob[:, 1].tolist() == [-c / 8 for c in codes]


def test_thinning_draws_every_decision_equally_often():
    group = make_group(0, [S, F], [1, 5])
    generator = torch.Generator().manual_seed(0)
    drawn = np.zeros(5)
    for _ in range(500):
        rows = make_batch([group], max_decisions=2, generator=generator).sample[1:, 0].numpy() - 10
        drawn[rows] += 1
    assert abs(drawn / 500 - 2 / 5).max() < 0.08  # four standard deviations are 0.088
