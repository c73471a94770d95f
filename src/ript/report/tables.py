"""Results as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ript.core.types import EvalResult, TaskResult


def eval_table(result: EvalResult) -> str:
    rows = [("task", "success", "95 % interval", "successes", "errors")]
    named = [*result.tasks.items(), *([("total", result.total)] if len(result.tasks) > 1 else [])]
    for name, r in named:
        share = f"{100 * r.rate:.1f} %" if r.trials else "-"
        rows.append((name, share, interval(r), f"{r.successes}/{r.trials}", str(r.errors)))
    return table(rows, right=(1, 2, 3, 4))


def rate(r: TaskResult) -> str:
    """Such as "97 % (97/100, 95 % interval 91-99 %)"."""
    share = f"{100 * r.rate:.0f} %" if r.trials else "no valid trial"
    errors = f", {count(r.errors, 'error')} apart" if r.errors else ""
    return f"{share} ({r.successes}/{r.trials}, 95 % interval {interval(r)}{errors})"


def interval(r: TaskResult) -> str:
    low, high = r.interval
    return f"{100 * low:.0f}-{100 * high:.0f} %"


def change(before: EvalResult, after: EvalResult, tasks: Sequence[str] | None = None) -> dict[str, Any]:
    """What became of the states measured before and after; states with an ERROR in either are left out.

    Args:
        before, after: evaluations on the same states.
        tasks: names of those that count; all by default.

    Returns:
        {"difference": share of states, "interval": its paired 95 % interval, "gained", "lost", "dropped": states, "p":
        of McNemar's exact test}; `difference` is None without a state.
    """
    from ript.core.intervals import align, difference, pairs  # numpy: not needed to print a help text

    was, now = align([before.per_state, after.per_state], tasks)
    found, counts = difference(was, now), pairs(was, now)
    return {
        "difference": found.value if counts.states else None,
        "interval": [found.low, found.high],
        "gained": counts.gained,
        "lost": counts.lost,
        "dropped": counts.dropped,
        "p": counts.p_value,
    }


def points(changed: Mapping[str, Any]) -> str:
    """Such as "+85 points on the same states (paired 95 % interval +76 to +91): 86 gained, 1 lost, p < 0.001"."""
    if changed["difference"] is None:
        return "no state with a valid trial before and after"
    low, high = changed["interval"]
    p = f"p = {changed['p']:.3f}" if changed["p"] >= 0.001 else "p < 0.001"
    dropped = f", {changed['dropped']} left out" if changed["dropped"] else ""
    return (
        f"{100 * changed['difference']:+z.0f} points on the same states (paired 95 % interval {100 * low:+z.0f} to "
        f"{100 * high:+z.0f}): {changed['gained']} gained, {changed['lost']} lost{dropped}, {p}"
    )


def modes(results: Mapping[str, EvalResult]) -> str:
    return ", ".join(f"{mode} {rate(r.total)}" for mode, r in results.items())


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows as aligned columns; those in `right` are flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = [
        "  ".join(
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
