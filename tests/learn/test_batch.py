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


def everything(batch):
    """All rows of a batch."""
    return batch.take(torch.arange(len(batch)))


def with_rollout(group, index, **changes):
    rollouts = list(group.rollouts)
    rollouts[index] = replace(rollouts[index], **changes)
    return replace(group, rollouts=tuple(rollouts))


def test_rows_are_the_decisions_of_valid_rollouts_in_order_with_their_rollouts_advantage():
    batch = make_batch([make_group(0, [S, F, F], [2, 1, 1]), make_group(1, [F, E, S], [1, 0, 2])])
    rows = everything(batch)
    assert rows.sample[:, 0].tolist() == [0, 1, 10, 20, 100, 120, 121]
    assert batch.trajectory.tolist() == [0, 0, 1, 2, 3, 4, 4]
    assert rows.advantage.tolist() == [1, 1, -0.5, -0.5, -1, 1, 1]
    assert rows.old_log_prob[:, 1].tolist() == [-c / 8 for c in [0, 1, 10, 20, 100, 120, 121]]
    assert rows.mask.tolist() == [[True, bool(c % 2)] for c in [0, 1, 10, 20, 100, 120, 121]]
    assert rows.inputs["prefix"][:, 0, 2].tolist() == [0, 1, 10, 20, 100, 120, 121]
    assert (len(batch), len(batch.rollouts)) == (7, 5)
    assert (rows.sample.dtype, rows.old_log_prob.dtype, rows.mask.dtype, rows.advantage.dtype) == (
        torch.int64,
        torch.float32,
        torch.bool,
        torch.float32,
    )


def test_rollouts_below_the_threshold_are_dropped_but_count_in_the_baseline():
    groups = [make_group(0, [S, S, S, F], [1, 2, 1, 3])]  # advantages 1/3, 1/3, 1/3, -1
    batch = make_batch(groups, min_abs_advantage=0.5)
    assert everything(batch).sample[:, 0].tolist() == [30, 31, 32]
    assert batch.trajectory.tolist() == [0, 0, 0]
    assert batch.advantage.tolist() == [-1]


def test_groups_without_signal_stay_with_zero_advantage_unless_a_threshold_drops_them():
    groups = [make_group(0, [S, S], [1, 1]), make_group(1, [S, F], [1, 1])]
    assert make_batch(groups).advantage.tolist() == [0, 0, 1, -1]
    assert make_batch(groups, min_abs_advantage=0.01).advantage.tolist() == [1, -1]


def test_division_by_the_standard_deviation_is_an_option():
    advantage = make_batch([make_group(0, [F, S, F, F], [1, 1, 1, 1])], normalise_std=True).advantage
    torch.testing.assert_close(advantage, torch.tensor([-2 / 3, 2, -2 / 3, -2 / 3]))


def test_records_are_read_where_the_rollouts_keep_them_and_rows_that_are_taken_are_copies():
    groups = [make_group(0, [S, F], [2, 3]), make_group(1, [F, S], [4, 1])]
    batch = make_batch(groups, max_decisions=3, generator=torch.Generator().manual_seed(0))
    own = [rollout for group in groups for rollout in group.rollouts]
    assert all(theirs is ours for theirs, ours in zip(batch.rollouts, own, strict=True))
    everything(batch).sample[:] = 7
    assert own[0].sample.tolist() == [[0, 0], [1, -1]]


def test_rows_are_taken_in_any_order_whatever_their_arrays_look_like():
    group = make_group(0, [S, F], [3, 2])
    turned = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    more = {"turned": (turned, turned[:2]), "halves": (np.float16([1, 2, 3]), np.float16([4, 5]))}
    more |= {"nothing": (np.zeros((3, 0)), np.zeros((2, 0))), "yes": (np.array([True, False, True]), np.ones(2, bool))}
    for i in (0, 1):
        group = with_rollout(group, i, inputs={name: arrays[i] for name, arrays in more.items()})
    batch = make_batch([group])
    taken = batch.take(torch.tensor([4, 0, 2, 0]))
    assert taken.sample[:, 0].tolist() == [11, 0, 2, 0]
    assert taken.inputs["turned"].tolist() == turned[[1, 0, 2, 0]].tolist()
    assert taken.inputs["halves"].tolist() == [5, 1, 3, 1] and taken.inputs["halves"].dtype == torch.float16
    assert taken.inputs["nothing"].shape == (4, 0) and taken.inputs["yes"].tolist() == [True, True, True, True]


def test_a_sample_of_any_shape_and_one_term_a_decision_come_through():
    group = make_group(0, [S, F], [3, 2])
    chain = np.random.default_rng(0).normal(size=(5, 4, 2, 3)).astype(np.float32)  # denoising steps, chunk, action
    ratios = {"log_prob": np.arange(5, dtype=np.float32)[:, None], "mask": np.ones((5, 1), bool)}
    for i, own in enumerate((slice(0, 3), slice(3, 5))):
        arrays = {name: array[own] for name, array in (ratios | {"sample": chain}).items()}
        group = with_rollout(group, i, **arrays)
    rows = everything(make_batch([group]))
    assert np.array_equal(rows.sample.numpy(), chain)
    assert rows.old_log_prob.tolist() == [[0], [1], [2], [3], [4]] and rows.mask.shape == (5, 1)


def test_what_a_rollout_has_once_is_there_for_each_of_its_rows():
    group = make_group(0, [S, F], [3, 2])
    for i, words in enumerate(([1.0, 2.0], [3.0, 4.0])):
        group = with_rollout(group, i, rollout_inputs={"words": np.array(words, np.float32)})
    batch = make_batch([group], max_decisions=2, generator=torch.Generator().manual_seed(1))
    assert batch.take(torch.tensor([3, 0, 2])).inputs["words"].tolist() == [[3, 4], [1, 2], [3, 4]]


def test_a_rollout_that_was_not_recorded_is_refused_with_its_address():
    group = with_rollout(make_group(3, [S, F], [1, 1]), 1, log_prob=None, inputs=None)
    message = rf"rollout 1 from initial state {group.initial_state.id} of toy/reach .*log_prob, inputs.*record=True"
    with pytest.raises(TrainingError, match=message):
        make_batch([group])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mask": np.ones((2, 1), bool)}, r"mask is \(2, 1\), but log_prob is \(2, 2\)"),
        ({"decisions": 3}, "sample has 2 rows for 3 decisions"),
        ({"log_prob": np.zeros(2, np.float32)}, r"expected log_prob \[D, K\], D >= 1, got \(2,\)"),
        ({"rollout_inputs": {"words": np.zeros(2)}}, "words.*but the first rollout"),
        ({"inputs": {"prefix": np.zeros((1, 1, 3), np.float32)}}, "input 'prefix' has 1 rows for 2 decisions"),
        ({"inputs": {"prefix": np.zeros((2, 1, 4), np.float32)}}, r"prefix.*\(1, 4\).*first rollout.*\(1, 3\)"),
        ({"inputs": {"other": np.zeros((2, 1, 3), np.float32)}}, "other.*first rollout.*prefix"),
        ({"decisions": 0, "log_prob": np.zeros((0, 2), np.float32)}, "0 decisions"),
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
    rows = everything(batch)
    codes = rows.sample[:, 0].tolist()
    assert codes[:2] == [0, 1] and codes[2:5] == sorted(codes[2:5]) and set(codes[2:5]) < set(range(10, 19))
    assert batch.advantage.tolist() == [1, -0.5, -0.5]
    assert batch.terms.tolist() == [int(part.sum()) for part in rows.mask.split([2, 3, 3])]
    assert rows.inputs["prefix"][:, 0, 0].tolist() == codes
    assert rows.old_log_prob[:, 1].tolist() == [-c / 8 for c in codes]


def test_thinning_draws_every_decision_equally_often():
    group = make_group(0, [S, F], [1, 5])
    generator = torch.Generator().manual_seed(0)
    drawn = np.zeros(5)
    for _ in range(500):
        rows = everything(make_batch([group], max_decisions=2, generator=generator)).sample[1:, 0].numpy() - 10
        drawn[rows] += 1
    assert abs(drawn / 500 - 2 / 5).max() < 0.08  # four standard deviations are 0.088
