import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ript.core.metrics import Distinct, Max, Mean, Min, Sum, merge, values

numbers = st.integers(-1000, 1000).map(float)  # integers: sums are exact, so equality is too
records = st.fixed_dictionaries(
    {},
    optional={
        "mean": st.builds(Mean, numbers, st.integers(0, 50).map(float)),
        "sum": st.builds(Sum, numbers),
        "max": st.builds(Max, numbers),
        "min": st.builds(Min, numbers),
        "distinct": st.builds(Distinct, st.frozensets(st.integers(0, 9))),
    },
)


def test_a_mean_of_parts_is_the_mean_of_all_not_the_mean_of_means():
    merged = merge([{"success": Mean(1, 1)}, {"success": Mean(0, 3)}])
    assert values(merged) == {"success": 0.25}


def test_sum_max_and_min_by_hand():
    merged = merge([{"s": Sum(2), "hi": Max(2), "lo": Min(2)}, {"s": Sum(5), "hi": Max(-1), "lo": Min(-1)}])
    assert values(merged) == {"s": 7, "hi": 2, "lo": -1}


def test_what_two_parts_have_in_common_counts_once():
    parts = [{"codes": Distinct(frozenset({1, 2}))}, {"codes": Distinct(frozenset({2, 5}))}]
    assert values(merge(parts)) == {"codes": 3}


def test_a_mean_of_nothing_is_nan():
    assert math.isnan(Mean(0.0, 0).value)
    assert values(merge([{"x": Mean(0.0, 0)}, {"x": Mean(3.0, 2)}])) == {"x": 1.5}


def test_a_key_that_some_parts_lack_is_merged_over_the_others():
    assert values(merge([{"a": Sum(1)}, {"b": Sum(2)}, {"a": Sum(3)}])) == {"a": 4, "b": 2}


def test_one_key_with_two_kinds_of_metric_is_refused():
    with pytest.raises(TypeError, match="'kl' is a Mean here and a Max there"):
        merge([{"kl": Mean(1)}, {"kl": Max(1)}])


def test_merging_nothing_gives_nothing():
    assert merge([]) == {}


@given(st.lists(records, max_size=8), st.randoms(use_true_random=False))
def test_neither_order_nor_grouping_changes_a_number(parts, random):
    whole = merge(parts)
    shuffled = random.sample(parts, len(parts))
    cut = random.randint(0, len(parts))
    assert merge([merge(shuffled[:cut]), merge(shuffled[cut:])]) == whole


@given(st.lists(records, max_size=4))
def test_merging_leaves_the_parts_as_they_were(parts):
    before = [dict(part) for part in parts]
    merge(parts)
    assert parts == before
