"""What the terminal says of two evaluations of the same states."""

from ript.core.types import EvalResult, Status
from ript.evaluation import tally
from ript.report.tables import change, points


def measured(words: str) -> EvalResult:
    """One letter a state: s, f or e."""
    statuses = [{"s": Status.SUCCESS, "f": Status.FAILURE, "e": Status.ERROR}[word] for word in words]
    per_state = {"t": [(f"{i}", status.value) for i, status in enumerate(statuses)]}
    total = tally(statuses)
    return EvalResult(policy="p", seed=0, mode="greedy", tasks={"t": total}, total=total, per_state=per_state)


def test_a_change_is_counted_state_by_state_and_errors_drop_out_of_the_pair() -> None:
    found = change(measured("s" * 2 + "f" * 17 + "se"), measured("s" + "f" + "s" * 7 + "f" * 10 + "es"))
    assert (found["gained"], found["lost"], found["dropped"]) == (7, 1, 2)
    assert found["difference"] == 6 / 19 and found["p"] == 18 / 256
    low, high = found["interval"]
    assert points(found) == (
        f"+32 points on the same states (paired 95 % interval {100 * low:+.0f} to {100 * high:+.0f}): "
        "7 gained, 1 lost, 2 left out, p = 0.070"
    )


def test_without_a_pair_of_valid_trials_nothing_is_claimed() -> None:
    found = change(measured("es"), measured("se"))
    assert found["difference"] is None and points(found) == "no state with a valid trial before and after"


def test_a_small_probability_is_told_as_small() -> None:
    assert points(change(measured("f" * 100), measured("s" * 100))).endswith("100 gained, 0 lost, p < 0.001")


def test_a_change_or_bound_that_rounds_to_nothing_has_no_minus_before_it() -> None:
    found = {"difference": -0.001, "interval": (-0.37, -0.0004), "gained": 0, "lost": 1, "dropped": 0, "p": 1.0}
    assert points(found).startswith("+0 points on the same states (paired 95 % interval -37 to +0): ")
