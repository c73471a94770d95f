from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ript.core.errors import NotFiniteError
from ript.learn.advantage import leave_one_out

GOLDEN = Path(__file__).parents[1] / "golden" / "loop_io.npz"
rewards_or_error = st.sampled_from([0.0, 1.0, np.nan])
groups = hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=rewards_or_error)


def test_one_success_of_four_gets_one_and_each_failure_minus_a_third():
    np.testing.assert_allclose(leave_one_out(np.array([0.0, 1.0, 0.0, 0.0])), [-1 / 3, 1, -1 / 3, -1 / 3])


def test_three_successes_of_four_get_a_third_and_the_failure_minus_one():
    np.testing.assert_allclose(leave_one_out(np.array([1.0, 1.0, 0.0, 1.0])), [1 / 3, 1 / 3, -1, 1 / 3])


def test_groups_of_equal_rewards_give_exact_zeros():
    assert (leave_one_out(np.array([np.ones(16), np.zeros(16)])) == 0).all()


def test_an_error_is_neither_a_failure_nor_part_of_the_baseline():
    np.testing.assert_array_equal(leave_one_out(np.array([1.0, 0.0, np.nan])), [1.0, -1.0, np.nan])


def test_a_group_with_fewer_than_two_valid_rollouts_gives_zeros_at_its_valid_places():
    rewards = np.array([[1.0, np.nan, np.nan], [np.nan, np.nan, 0.0], [np.nan, np.nan, np.nan]])
    expected = np.array([[0.0, np.nan, np.nan], [np.nan, np.nan, 0.0], [np.nan, np.nan, np.nan]])
    np.testing.assert_array_equal(leave_one_out(rewards), expected)
    np.testing.assert_array_equal(leave_one_out(np.array([1.0])), [0.0])


def test_division_by_the_standard_deviation_by_hand():
    # advantages [-1/3, 1, -1/3, -1/3]; variance (3/16 * 3 + 9/16 ... ) = 3/4 / 3 = 1/4, so the deviation is 1/2
    advantage = leave_one_out(np.array([0.0, 1.0, 0.0, 0.0, np.nan]), normalise_std=True)
    np.testing.assert_allclose(advantage, [-2 / 3, 2, -2 / 3, -2 / 3, np.nan])
    assert (leave_one_out(np.ones(4), normalise_std=True) == 0).all()


def test_equals_the_reference_advantages():
    with np.load(GOLDEN) as golden:
        np.testing.assert_allclose(leave_one_out(golden["rewards"]), golden["advantages"], atol=3e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_and_torch_give_the_same_in_the_dtype_that_was_given(dtype):
    rewards = np.array([[1, 0, 0, np.nan, 1], [0, np.nan, np.nan, np.nan, np.nan]], dtype)
    from_numpy, from_torch = leave_one_out(rewards), leave_one_out(torch.from_numpy(rewards))
    assert isinstance(from_torch, torch.Tensor)
    assert str(from_numpy.dtype) == str(from_torch.dtype).removeprefix("torch.") == dtype
    np.testing.assert_array_equal(from_numpy, from_torch.numpy())


def test_integers_and_booleans_become_floats():
    np.testing.assert_array_equal(leave_one_out(np.array([1, 0])), [1.0, -1.0])
    np.testing.assert_array_equal(leave_one_out(torch.tensor([True, False])), [1.0, -1.0])


def test_an_infinite_reward_is_refused():
    with pytest.raises(NotFiniteError, match="infinite"):
        leave_one_out(np.array([1.0, np.inf]))


@given(groups)
def test_advantages_of_the_valid_rollouts_of_a_group_sum_to_zero(rewards):
    np.testing.assert_allclose(np.nansum(leave_one_out(rewards), axis=-1), 0, atol=1e-12)


@given(groups, st.randoms(use_true_random=False))
def test_the_order_of_rollouts_only_reorders_advantages(rewards, random):
    order = random.sample(range(rewards.shape[-1]), rewards.shape[-1])
    np.testing.assert_allclose(leave_one_out(rewards[..., order]), leave_one_out(rewards)[..., order], atol=1e-12)


@given(hnp.arrays(np.float64, st.integers(2, 10), elements=rewards_or_error))
def test_an_error_changes_nothing_but_its_own_place(rewards):
    valid = ~np.isnan(rewards)
    advantage = leave_one_out(rewards)
    assert np.isnan(advantage[~valid]).all()
    np.testing.assert_allclose(advantage[valid], leave_one_out(rewards[valid]), atol=1e-12)


@given(groups, st.floats(-10, 10))
def test_a_constant_added_to_all_rewards_changes_nothing(rewards, constant):
    several = (~np.isnan(rewards)).sum(-1, keepdims=True) >= 2
    shifted = np.where(several, leave_one_out(rewards + constant), leave_one_out(rewards))
    np.testing.assert_allclose(shifted, leave_one_out(rewards), atol=1e-9)


@given(groups)
def test_each_group_is_independent_of_the_others(rewards):
    rows = rewards.reshape(-1, rewards.shape[-1])
    alone = np.stack([leave_one_out(row) for row in rows]).reshape(rewards.shape)
    np.testing.assert_array_equal(leave_one_out(rewards), alone)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("normalise", [False, True])
def test_equal_rewards_give_exact_zeros_whatever_they_are(make, normalise):
    for rewards in ([0.1] * 3, [0.1, 0.1, float("nan")], [1 / 3] * 7):
        advantage = np.asarray(leave_one_out(make(rewards), normalise_std=normalise))
        assert (advantage[~np.isnan(rewards)] == 0).all()
    assert leave_one_out(make(np.zeros((2, 0))), normalise_std=normalise).shape == (2, 0)
