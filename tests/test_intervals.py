"""Intervals and tests: numbers worked by hand and from the literature, then what must hold of all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ript.core.intervals import (
    align,
    difference,
    mcnemar,
    over_seeds,
    pairs,
    success,
    t_quantile,
    wilson,
)

NAN = math.nan


def table_of(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes before and after of so many states."""
    before = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    after = [1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither
    return np.array(before), np.array(after)


# ------------------------------------------------------------------ one policy


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),  # z^2 / (n + z^2) with z^2 = 3.8415
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (1, 1, 0.2065, 1.0),
        (50, 100, 0.4038, 0.5962),
        (95, 100, 0.8882, 0.9785),
        (0, 0, 0.0, 1.0),
    ],
)
def test_the_wilson_interval_is_that_worked_by_hand(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 2000), st.data())
def test_wilson_intervals_hold_the_rate_are_symmetric_and_narrow_with_trials(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1 and low < high
    mirrored = wilson(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)
    four = wilson(4 * successes, 4 * trials)
    assert four[1] - four[0] < high - low
    # The bounds are the rates whose own standard error just reaches the observed rate (Wilson's definition).
    for bound in (low, high):
        if 0 < bound < 1:
            error = 1.959964 * math.sqrt(bound * (1 - bound) / trials)
            assert abs(successes / trials - bound) == pytest.approx(error, rel=1e-4, abs=1e-9)


def test_with_one_seed_the_interval_over_states_is_wilsons() -> None:
    outcomes = np.array([1.0] * 30 + [0.0] * 70 + [NAN] * 5)
    found = success(outcomes)
    assert found.value == pytest.approx(0.3) and found.seeds == pytest.approx((0.3,))
    assert (found.low, found.high) == pytest.approx(wilson(30, 100))


# ------------------------------------------------------------------ several seeds


def test_seeds_that_differ_are_not_counted_as_one_binomial() -> None:
    """30 and 17 of 100: s = 9.19 points, 12.7 x 9.19 / sqrt 2 = 83 points on either side."""
    states = np.arange(100)
    two = np.array([states < 30, states < 17], float)
    found = success(two)
    assert found.seeds == pytest.approx((0.30, 0.17)) and found.value == pytest.approx(0.235)
    assert (found.low, found.high) == (0.0, 1.0)
    assert wilson(47, 200) == pytest.approx((0.1816, 0.2984), abs=1e-4)  # what was told before


def test_the_interval_of_three_seeds_is_that_worked_by_hand() -> None:
    """Rates .30, .17, .22: mean .23, s^2 = (.0049 + .0036 + .0001) / 2 = .0043; 4.3027 sqrt(.0043 / 3) = .162897.

    Wilson of .23 with 100 trials: .158426 to .321457, distances .071574 and .091457. Squares are added.
    """
    found = over_seeds([0.30, 0.17, 0.22], 100)
    assert found.low == pytest.approx(0.23 - math.hypot(0.071574, 0.162897), abs=1e-4)
    assert found.high == pytest.approx(0.23 + math.hypot(0.091457, 0.162897), abs=1e-4)


def test_seeds_that_agree_on_every_state_are_worth_the_states_and_no_more() -> None:
    one = np.array([1.0] * 40 + [0.0] * 60)
    for seeds in (2, 3, 5):
        found = success(np.tile(one, (seeds, 1)))
        assert (found.low, found.high) == pytest.approx(wilson(40, 100))
    solved = success(np.ones((2, 100)))
    assert (solved.low, solved.high) == pytest.approx(wilson(100, 100))


def test_seeds_of_one_rate_that_solve_other_states_are_worth_more_trials() -> None:
    """Each of 100 states solved by one of two seeds: no spread, and the mean over states does not vary."""
    two = np.array([[1.0, 0.0] * 50, [0.0, 1.0] * 50])
    assert (success(two).low, success(two).high) == pytest.approx(wilson(100, 200))
    half = np.array([[1.0, 0.0] * 50, [1.0, 0.0] * 25 + [0.0, 1.0] * 25])  # state means 1, 0 and .5: variance .125
    assert (success(half).low, success(half).high) == pytest.approx(wilson(100, 200))


def test_a_state_that_a_seed_could_not_measure_leaves_that_seeds_rate_alone() -> None:
    found = success(np.array([[1.0, 0.0, NAN, 1.0], [1.0, 0.0, 0.0, 0.0]]))
    assert found.seeds == pytest.approx((2 / 3, 1 / 4)) and found.value == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert success(np.full((2, 3), NAN)).seeds == ()
    one_lost = success(np.array([[NAN, NAN], [1.0, 0.0]]))
    assert one_lost.seeds == (0.5,) and (one_lost.low, one_lost.high) == pytest.approx(wilson(1, 2))


def test_student_quantiles_are_those_of_the_tables() -> None:
    tables = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 10: 2.228, 11: 2.201, 20: 2.086, 120: 1.980}
    assert {n: t_quantile(n) for n in tables} == pytest.approx(tables, abs=3e-3)


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=st.sampled_from([0.0, 1.0, NAN])))
def test_an_interval_holds_its_value_and_does_not_depend_on_order(outcomes: np.ndarray) -> None:
    found = success(outcomes)
    if found.seeds:
        assert 0 <= found.low <= found.value + 1e-12 and found.value <= found.high + 1e-12 <= 1 + 1e-12
    turned = success(outcomes[::-1, ::-1])
    np.testing.assert_allclose(
        [found.value, found.low, found.high], [turned.value, turned.low, turned.high], atol=1e-12
    )
    failures = success(1 - outcomes)
    np.testing.assert_allclose([failures.low, failures.high], [1 - found.high, 1 - found.low], atol=1e-9)


# ------------------------------------------------------------------ pairs


def test_mcnemars_exact_test_is_a_binomial_of_the_changed_states() -> None:
    assert mcnemar(7, 1) == mcnemar(1, 7) == 18 / 256  # 2 (1 + 8) / 2^8
    assert mcnemar(16, 6) == pytest.approx(0.0524788, abs=1e-7)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(100, 0) == 2 / 2**100


def test_newcombes_interval_of_paired_proportions_is_that_of_the_literature() -> None:
    """Airway responsiveness of 21 children, before 2 and after 8: Fagerland, Lydersen and Laake 2014, table VI."""
    found = difference(*table_of(both=1, gained=7, lost=1, neither=12))
    assert (found.value, found.low, found.high) == pytest.approx((6 / 21, 0.026, 0.507), abs=5e-4)


def test_a_paired_interval_is_narrower_than_the_difference_of_two_independent_rates() -> None:
    """44 -> 56 of 100, no state lost: phi = (.44 - .44 x .56 - .005) / .2464 = .7654, 1 - phi = .2346.

    Wilson's distances are .0977 and .0977 below, .0933 and .0933 above; times sqrt(2 x .2346) = .6850.
    """
    paired = difference(*table_of(both=44, gained=12, lost=0, neither=44))
    assert (paired.low, paired.high) == pytest.approx((0.12 - 0.0669, 0.12 + 0.0639), abs=1e-4)
    below, above = wilson(56, 100)[0], wilson(44, 100)[1]
    assert 0.12 - math.hypot(0.56 - below, above - 0.44) < -0.01 < paired.low  # alone, they would not differ
    assert mcnemar(12, 0) == 2 / 2**12


def test_states_with_an_error_drop_out_of_the_pair() -> None:
    before = np.array([1.0, 0.0, 0.0, NAN, 1.0, 0.0])
    after = np.array([1.0, 1.0, 0.0, 1.0, NAN, 1.0])
    found = pairs(before, after)
    assert (found.gained, found.lost, found.solved, found.unsolved, found.dropped) == (2, 0, 1, 1, 2)
    assert found.states == 4 and found.p_value == 0.5
    assert difference(before, after) == difference(before[[0, 1, 2, 5]], after[[0, 1, 2, 5]])


def test_the_difference_of_seeds_is_taken_seed_by_seed() -> None:
    """Seeds start at 20 and 40 of 100 and gain 10 each: they differ, their gains do not."""
    states = np.arange(100)
    before = np.array([states < 20, states < 40], float)
    after = np.array([states < 30, states < 50], float)
    found = difference(before, after)
    assert found.seeds == pytest.approx((0.1, 0.1)) and 0.03 < found.low < 0.1 < found.high < 0.17
    assert success(before).low == 0.0 and success(before).high == 1.0
    apart = difference(before, np.array([states < 30, states < 70], float))  # gains 10 and 30
    assert apart.value == pytest.approx(0.2) and (apart.low, apart.high) == (-1.0, 1.0)


def test_one_measurement_before_stands_for_all_seeds() -> None:
    states = np.arange(100)
    before, after = (states < 20).astype(float), np.array([states < 30, states < 32], float)
    assert difference(before, after) == difference(np.stack([before, before]), after)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_a_paired_interval_holds_its_value_and_turns_round(both: int, gained: int, lost: int, neither: int) -> None:
    before, after = table_of(both, gained, lost, neither)
    there, back = difference(before, after), difference(after, before)
    if len(before):
        assert -1 <= there.low <= there.value + 1e-12 and there.value <= there.high + 1e-12 <= 1 + 1e-12
        assert (-back.high, -back.low) == pytest.approx((there.low, there.high), abs=1e-9)
    else:
        assert math.isnan(there.value) and (there.low, there.high) == (-1.0, 1.0)


# ------------------------------------------------------------------ outcomes as evaluations keep them


def test_outcomes_are_aligned_by_task_and_state_whatever_their_order() -> None:
    first = {"a": [("s1", "success"), ("s2", "failure")], "b": [("s1", "error")]}
    other = {"b": [("s1", "success")], "a": [("s2", "success"), ("s3", "failure")]}
    np.testing.assert_array_equal(align([first, other]), [[1, 0, NAN, NAN], [NAN, 1, 1, 0]])
    np.testing.assert_array_equal(align([first, other], ["b"]), [[NAN], [1]])
    assert align([{}, {}]).shape == (2, 0)
