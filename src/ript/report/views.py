"""What the page shows of runs: numbers turned into words, rows and percentages. No HTML in here."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ript.core.intervals import Estimate, align, difference, pairs
from ript.report.read import Comparison, Row, RunData

THRESHOLDS = (0.5, 0.8, 0.9, 0.95)

ROLLOUT_PARTS = (
    ("simulate", "physics", "t0"),
    ("render", "rendering", "t1"),
    ("infer", "policy", "t2"),
    ("wait", "waiting", "t3"),
)
WALL_PARTS = (("update", "update", "t4"), ("eval", "evaluation", "t5"), ("other", "other", "t6"))


def percent(rate: float | None) -> str:
    """0.974 -> "97 %", with a space that does not break."""
    return "–" if rate is None or math.isnan(rate) else f"{100 * rate:.0f}\u00a0%"


def count(number: float | None) -> str:
    """61200 -> "61,200"."""
    return "–" if number is None or math.isnan(number) else f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """312.4 -> "5 min 12 s"."""
    if seconds is None or math.isnan(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{value}\u00a0{unit}" for value, unit in parts if value) or "0\u00a0s"


def short_mode(mode: str) -> str:
    """ "sampled (temperature 0.6)" -> "sampled"."""
    return mode.split(" (")[0]


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest path endings that tell the runs apart: a/rl and b/rl, not rl and rl."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(len(p) for p in parts) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-2:])} #{number}" for number, p in enumerate(parts, start=1)]


def task_names(run: RunData) -> list[str]:
    """Tasks in the order in which they were evaluated."""
    return list(dict.fromkeys(task for row in run.evals for task in row["eval"]["tasks"]))


def outcome(result: Row | None) -> dict[str, Any] | None:
    """One task's (or the total's) numbers for a row of a table, or None."""
    if result is None:
        return None
    low, high = result["interval"]
    rate = result["successes"] / result["trials"] if result["trials"] else math.nan
    text = f"{result['successes']} of {result['trials']}"
    if result["errors"]:
        text += f", {result['errors']} error{'' if result['errors'] == 1 else 's'} apart"
    return {
        "rate": rate,
        "percent": percent(rate),
        "low": low,
        "high": high,
        "interval": f"{100 * low:.0f}–{100 * high:.0f}\u00a0%",
        "of": text,
        "successes": result["successes"],
        "trials": result["trials"],
        "errors": result["errors"],
    }


NAMED = 3
"""Tasks that are named one by one."""


def told(run: RunData) -> list[Comparison]:
    """The comparisons worth a headline: those with both sides, or whatever there is when none has. Validation chose the
    policy, which flatters it: it is told only where no test states were measured."""
    found = run.comparisons()
    found = [c for c in found if c.before is not None and c.after is not None] or found
    return [c for c in found if c.states == "test"] or found


def headline(comparison: Comparison, kept: int | None = None) -> dict[str, Any]:
    """Before and after in one mode, over all tasks and for each.

    Args:
        comparison: what was measured.
        kept: the iteration whose weights became the policy, when not the last; an evaluation at the end is one of them.
    """
    before = outcome(comparison.before["eval"]["total"]) if comparison.before else None
    after = outcome(comparison.after["eval"]["total"]) if comparison.after else None
    tasks = []
    for name in _tasks_of(comparison):
        sides = [
            outcome(row["eval"]["tasks"].get(name)) if row is not None else None
            for row in (comparison.before, comparison.after)
        ]
        tasks.append({"name": name, "before": sides[0], "after": sides[1], "change": _change(comparison, [name])})
    iteration = None
    if comparison.after:
        iteration = comparison.after["iteration"] if kept is None else kept
    return {
        "mode": comparison.mode,
        "short": short_mode(comparison.mode),
        "states": comparison.states,
        "how": how(comparison),
        "before": before,
        "after": after,
        "iteration": iteration,
        "row": comparison.after,
        "change": _change(comparison),
        "tasks": tasks,
    }


def how(comparison: Comparison) -> str:
    """Within how many steps, on which states and in which tasks success was measured: "within 24 steps, states of seed
    0, reach"."""
    found = [row["eval"] for row in (comparison.before, comparison.after) if row is not None]
    steps = sorted({steps for one in found for steps in (one.get("horizon") or {}).values()})
    seeds, noise = ({one[name] for one in found if name in one} for name in ("seed", "state_noise"))
    parts = [f"within {' to '.join(dict.fromkeys(map(str, (steps[0], steps[-1]))))} steps"] if steps else []
    parts += [f"states of seed {' and '.join(map(str, sorted(seeds)))}"] if seeds else []
    parts += [f"objects moved by {100 * metres:g} cm" for metres in sorted(noise) if metres]
    tasks = sorted(_tasks_of(comparison))
    named = " and ".join([", ".join(tasks[:-1]), tasks[-1]]) if len(tasks) > 1 else "".join(tasks)
    parts += [named if len(tasks) <= NAMED else f"{len(tasks)} tasks from {tasks[0]} to {tasks[-1]}"]
    return ", ".join(parts)


def measured_apart(heads: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """A sentence where runs were not measured alike, given what `headline` says of each; empty where they were."""
    ways: dict[str, dict[str, None]] = {}
    for head in (head for run in heads for head in run if head["how"]):
        ways.setdefault(head["states"], {})[head["how"]] = None
    if apart := {states: list(several) for states, several in ways.items() if len(several) > 1}:
        words = "; ".join(f"{states} success {', or '.join(several)}" for states, several in apart.items())
        return f"These runs were not measured alike, so their success rates are other quantities: {words}."
    return ""


def _change(comparison: Comparison, tasks: Sequence[str] | None = None) -> dict[str, Any] | None:
    """What became of the states that were measured before and after; None when no state is known on both sides."""
    if comparison.before is None or comparison.after is None:
        return None
    was, now = align([row.get("per_state", {}) for row in (comparison.before, comparison.after)], tasks)
    counts = pairs(was, now)
    if not counts.states:
        return None
    found = difference(was, now)
    p = f"p = {counts.p_value:.3f}" if counts.p_value >= 0.001 else "p < 0.001"
    dropped = f", {counts.dropped} left out" if counts.dropped else ""
    return {
        "points": f"{100 * found.value:+z.0f}",
        "interval": points(found),
        "counts": f"{counts.gained} gained, {counts.lost} lost of {counts.states}{dropped}; {p}",
        "apart": found.low > 0 or found.high < 0,
    }


def points(found: Estimate) -> str:
    """A difference's interval: "+76 to +91"."""
    return f"{100 * found.low:+z.0f} to {100 * found.high:+z.0f}"


def _tasks_of(comparison: Comparison) -> list[str]:
    rows = [row for row in (comparison.before, comparison.after) if row is not None]
    return list(dict.fromkeys(name for row in rows for name in row["eval"]["tasks"]))


def cost(run: RunData) -> dict[str, str]:
    """What the run has spent, in words."""
    last = run.metrics[-1] if run.metrics else {}
    spent = {"iterations": count(run.iterations) if run.metrics else "–"}
    if run.document["kind"] == "rl":
        spent["rollouts"] = count(last.get("total/rollouts"))
        spent["environment steps"] = count(last.get("total/env_steps"))
    spent["wall clock"] = duration(last.get("total/seconds"))
    return spent


def thresholds(run: RunData) -> list[dict[str, Any]]:
    """What it took until an evaluation first reached each success rate, for the states evaluated most often."""
    blocks = []
    comparisons = run.comparisons()
    most = max((len(c.evaluations) for c in comparisons), default=0)
    for comparison in comparisons:
        if len(comparison.evaluations) < max(most, 2):
            continue
        lines = []
        for threshold in THRESHOLDS:
            first = next((row for row in comparison.evaluations if _rate(row) >= threshold), None)
            if first is not None:
                lines.append({"threshold": percent(threshold), **_cost_at(first)})
        missed = [percent(threshold) for threshold in THRESHOLDS[len(lines) :]]
        blocks.append({"mode": comparison.mode, "states": comparison.states, "lines": lines, "missed": missed})
    return blocks


def _rate(row: Row) -> float:
    total = row["eval"]["total"]
    return total["successes"] / total["trials"] if total["trials"] else math.nan


def _cost_at(row: Row) -> dict[str, str]:
    return {
        "iteration": count(row["iteration"]),
        "rollouts": count(row.get("rollouts")),
        "env_steps": count(row.get("env_steps")),
        "seconds": duration(row.get("seconds")),
    }


def wall_clock(row: Row) -> dict[str, float]:
    """An iteration's wall-clock seconds by part, with those of the validation before it, which its total leaves out.

    Workers measure their own seconds, which overlap; the rollout phase's wall clock is split in proportion to them.
    """
    seconds = {name: float(row.get(f"time/{name}") or 0.0) for name in ("rollout", "update", "eval", "total")}
    measured = {name: float(row.get(f"time/{name}") or 0.0) for name, _, _ in ROLLOUT_PARTS}
    whole = sum(measured.values())
    parts = {name: seconds["rollout"] * value / whole if whole else 0.0 for name, value in measured.items()}
    parts["update"] = seconds["update"]
    parts["other"] = max(0.0, seconds["total"] - sum(parts.values()))
    return parts | {"eval": seconds["eval"]}


def time_split(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The whole run's wall clock by part, in the order of `ROLLOUT_PARTS` and `WALL_PARTS`; empty when unknown."""
    sums = {name: sum(wall_clock(row)[name] for row in rows) for name, _, _ in (*ROLLOUT_PARTS, *WALL_PARTS)}
    if not sum(sums.values()):
        return []
    # What happens between iterations (validation, checkpoints) is in the run's clock but in no iteration's.
    sums["other"] += max(0.0, float(rows[-1].get("total/seconds") or 0.0) - sum(sums.values()))
    whole = sum(sums.values())
    return [
        {"label": label, "color": color, "seconds": duration(sums[name]), "share": sums[name] / whole}
        for name, label, color in (*ROLLOUT_PARTS, *WALL_PARTS)
        if sums[name] > 0
    ]


def idle(rows: Sequence[Row]) -> dict[str, str]:
    """The share of collection's time, over all iterations, in which the one policy of all workers had nothing to do,
    and that in which the workers had not; empty where each worker has its own."""
    keys = ("time/collect", "time/policy_idle", "time/workers_idle")
    central = [row for row in rows if all(isinstance(row.get(key), int | float) for key in keys)]
    whole = sum(row["time/collect"] for row in central)
    if not whole:
        return {}
    return {
        side: percent(sum(row[f"time/{side}_idle"] * row["time/collect"] for row in central) / whole)
        for side in ("policy", "workers")
    }


def nodes(rows: Sequence[Row]) -> list[dict[str, str]]:
    """What each node of a cluster did in practice, over all iterations; empty without a cluster."""
    sums: dict[str, dict[str, float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("time/") and key.count("/") == 2 and isinstance(value, int | float):
                _, name, part = key.split("/")
                of_node = sums.setdefault(name, {})
                of_node[part] = of_node.get(part, 0.0) + value
                of_node["rows"] = of_node.get("rows", 0.0) + (part == "idle")
    return [
        {
            "name": name,
            **{part: duration(found.get(part)) for part in ("simulate", "render", "infer", "wait")},
            "idle": percent(found.get("idle", math.nan) / max(1.0, found["rows"])),
            "rollouts": count(found.get("rollouts")),
            "restarts": count(found.get("worker_restarts")),
            "bytes": f"{found.get('bytes', 0.0) / 1e6:,.1f}\u00a0MB",
        }
        for name, found in sums.items()
    ]


def state_grids(run: RunData) -> list[dict[str, Any]]:
    """For each mode and task, every initial state's outcome before and after, in the order of evaluation."""
    grids = []
    for comparison in told(run):
        before = comparison.before.get("per_state", {}) if comparison.before else {}
        after = comparison.after.get("per_state", {}) if comparison.after else {}
        for task in dict.fromkeys([*before, *after]):
            was, now = dict(map(tuple, before.get(task, []))), dict(map(tuple, after.get(task, [])))
            cells = [
                {"id": state, "before": was.get(state), "after": now.get(state)}
                for state in dict.fromkeys([*was, *now])
            ]
            grids.append(
                {
                    "mode": comparison.mode,
                    "states": comparison.states,
                    "task": task,
                    "cells": cells,
                    "has": {"before": bool(was), "after": bool(now)},
                    "summary": _transitions(cells),
                }
            )
    return grids


def _transitions(cells: Iterable[Mapping[str, Any]]) -> str:
    names = {
        ("failure", "success"): "gained",
        ("success", "failure"): "lost",
        ("success", "success"): "solved before and after",
        ("failure", "failure"): "solved neither time",
    }
    tally = dict.fromkeys(names.values(), 0)
    for cell in cells:
        name = names.get((cell["before"], cell["after"]))
        if name:
            tally[name] += 1
    return ", ".join(f"{number} {name}" for name, number in tally.items() if number)


def flatten(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Nested config as (dotted field, value) rows, as the command line takes them; notes are shown elsewhere.

    What the run found, such as a policy's own chunk, stands in the place of what its recipe left open.
    """
    found = {name: value for name, value in config.items() if name not in ("recipe_config", "notes")}
    recipe = config.get("recipe_config")
    asked = recipe if isinstance(recipe, Mapping) else {}
    return list((dict(_leaves({k: v for k, v in asked.items() if k != "notes"})) | dict(_leaves(found))).items())


def _leaves(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows.extend(_leaves(value, f"{name}."))
        else:
            rows.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return rows


def versions(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, version) rows: ript, Python, packages, platform."""
    rows = [("ript", document.get("ript")), ("python", document.get("python")), *document.get("packages", {}).items()]
    rows += [("platform", document.get("platform")), ("cores", document.get("cores"))]
    return [(name, str(value)) for name, value in rows if value is not None]


def command(document: Mapping[str, Any]) -> str:
    """The command line, ready to be pasted into a shell."""
    return shlex.join(str(word) for word in document.get("command", []))


def lead(run: RunData, heads: Sequence[Mapping[str, Any]]) -> str:
    """The result in a sentence or two."""
    head = next((h for h in heads if h["before"] and h["after"]), None)
    if head is None:
        return ""
    before, after = head["before"], head["after"]
    how = {"greedy": "taking its most likely actions", "sampled": "sampling its actions"}.get(
        head["short"], head["mode"]
    )
    spent = _cost_at(head["row"])
    word = "iteration" if spent["iteration"] == "1" else "iterations"
    sentence = (
        f"After {spent['iteration']} {word} ({spent['rollouts']} rollouts, {spent['seconds']}) the policy solves "
        f"{after['of']} {head['states']} initial states, {how}; before, it solved {before['of']}."
    )
    if run.kept is not None:
        which = (
            f"that of iteration {run.kept}" if run.kept else "the one from before: none was better on validation states"
        )
        sentence += f" The policy it kept is {which}."
    elif head["row"]["iteration"] < run.iterations:
        sentence += f" Later iterations, up to {run.iterations}, were not measured."
    change = head["change"]
    if change is None:
        return f"{sentence} Which states were solved is not known, so they cannot be compared one by one."
    if not change["apart"]:
        sentence += f" That may be chance: the paired 95 % interval of the difference is {change['interval']} points."
    return sentence
