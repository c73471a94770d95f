"""Which of a page's runs are seeds of one another, and what these come to together."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ript.core.errors import DataError, RunError
from ript.core.intervals import Estimate, align, difference, measured_once, success
from ript.report.read import Comparison, RunData
from ript.report.views import percent, points, short_mode, told
from ript.run.files import read_json
from ript.run.reading import read_config


def over_seeds(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """A row for each mode of finished runs that differ in the seed alone: what they come to together."""
    rows = []
    for group in alike(runs):
        of_mode: dict[tuple[str, str], list[tuple[RunData, Comparison]]] = {}
        for run in group:
            for one in told(run):
                if one.before is not None and one.after is not None:
                    of_mode.setdefault((one.states, short_mode(one.mode)), []).append((run, one))
        rows += [_together(key, found) for key, found in of_mode.items() if len(found) > 1]
    return [row for row in rows if row is not None]


def alike(runs: Sequence[RunData]) -> list[list[RunData]]:
    """The finished runs of practice that differ in the seed alone, in groups of two or more.

    Settings, versions, files of a user's own and start are the same but for the seed. Each run has a seed of its own:
    of several with one seed, which are one measurement, the first is taken. The start is one policy for all, or each
    run's was made by supervised training with the run's own seed, in the same way. A start of which neither is known is
    like no other.
    """
    asked: dict[str, list[RunData]] = {}
    for run in runs:
        config = run.config.get("recipe_config")
        practice = run.document["kind"] == "rl" and run.result is not None
        if practice and isinstance(config, Mapping) and "seed" in config:
            same = {name: run.document.get(name) for name in ("format", "ript", "packages")}
            same |= {name: run.config.get(name) for name in ("code", "states_content")}
            asked.setdefault(json.dumps([_but_for_the_seed(config), same], sort_keys=True), []).append(run)
    found = []
    for group in asked.values():
        for start in (_policy, _supervised):  # one policy for all comes first
            by_start: dict[str, dict[Any, RunData]] = {}
            for run in group:
                if (known := start(run)) is not None:
                    by_start.setdefault(json.dumps(known, sort_keys=True), {}).setdefault(_seed(run), run)
            several = [list(one.values()) for one in by_start.values() if len(one) > 1]
            found += several
            group = [run for run in group if not any(run in one for one in several)]
    return found


def _together(key: tuple[str, str], found: Sequence[tuple[RunData, Comparison]]) -> dict[str, Any] | None:
    sides = [row.get("per_state", {}) for _, one in found for row in (one.before, one.after) if row is not None]
    outcomes = align(sides)
    was, now = outcomes[::2], outcomes[1::2]
    change = difference(was, now)
    if len(change.seeds) < 2:
        return None
    starts = {run.config.get("start") for run, _ in found}
    return {
        "runs": ", ".join(run.name for run, _ in found),
        "what": ", ".join(part for part in (key[1], key[0]) if part != "test"),
        "before": _side(success(measured_once(was) if len(starts) == 1 and None not in starts else was)),
        "after": _side(success(now)),
        "change": {
            "points": f"{100 * change.value:+z.0f}",
            "each": ", ".join(f"{100 * seed:+z.0f}" for seed in change.seeds),
            "interval": points(change),
        },
    }


def _side(found: Estimate) -> dict[str, str]:
    return {
        "percent": percent(found.value),
        "each": ", ".join(f"{100 * seed:.0f}" for seed in found.seeds),
        "interval": f"{100 * found.low:.0f}–{100 * found.high:.0f}\u00a0%",
    }


def _but_for_the_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "seed"}


def _seed(run: RunData) -> Any:
    return run.config["recipe_config"]["seed"]


def _policy(run: RunData) -> Any:
    """The policy that a run began with; None for one in memory, which is not known afterwards."""
    start, revision = run.config.get("start"), run.config.get("start_revision")
    known = start is None or revision is not None or os.path.isabs(start)
    return (
        [start, revision, run.config.get("start_content")] if known else None
    )  # without any, weights are drawn from the seed


def _supervised(run: RunData) -> Any:
    """How the policy that a run began with was trained, if with the run's own seed; None where that cannot be told."""
    start = Path(run.config.get("start") or "").parent
    for folder in (start, run.path.resolve().parent / start.name):  # both may have been moved
        with suppress(RunError, DataError, LookupError, TypeError, ValueError):
            document = read_config(folder)
            config, settings = document["config"], document["config"]["recipe_config"]
            said = dict(read_json(run.path / "start" / "config.json")["card"]["supervised training"])
            if document["kind"] == "sft" and settings["seed"] == said["seed"] == _seed(run):
                files = [_seen_from(start, file) for file in (config["base"], *config["demos"])]
                return [_but_for_the_seed(settings), _but_for_the_seed(said), files, config.get("base_revision")]
    return None


def _seen_from(folder: Path, file: str | None) -> str | None:
    """A file beside a run's folder by its place there, whose name may begin with the folder's; any other as it is."""
    if file is None or not Path(file).is_relative_to(folder.parent):
        return file
    return str(Path(file).relative_to(folder.parent)).removeprefix(folder.name)
