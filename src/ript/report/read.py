"""A run folder as the report sees it: read without a lock, complete or not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ript.core.disk import cannot_read
from ript.core.errors import DataError
from ript.run.files import read_json
from ript.run.progress import status
from ript.run.reading import read_config, read_rows

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One set of initial states in one mode of acting, before and after.

    Attributes:
        mode: "greedy" or "sampled (temperature T)".
        states: which set of initial states.
        before: the evaluation at iteration 0, or None.
        after: the evaluation of the resulting policy, or None when none was made after iteration 0.
        evaluations: all evaluations of these states in this mode, by iteration.
    """

    mode: str
    states: str
    before: Row | None
    after: Row | None
    evaluations: Sequence[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPair:
    """Videos of one initial state; either side may be missing. Each is (file, status value)."""

    task: str
    state_id: str
    before: tuple[Path, str] | None
    after: tuple[Path, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What was found in a run folder.

    Attributes:
        path: the folder.
        name: short, unique among the runs of a page.
        document: config.json.
        metrics: lines of metrics.jsonl, by iteration.
        evals: lines of evals.jsonl, by iteration.
        result: result.json, or None when the run has not ended.
        videos: pairs, the most telling first.
        missing: sentences about what is not there, or is there and cannot be used; the latter are on stderr too.
    """

    path: Path
    name: str
    document: Mapping[str, Any]
    metrics: Sequence[Row]
    evals: Sequence[Row]
    result: Row | None
    videos: Sequence[VideoPair]
    missing: Sequence[str]

    @property
    def config(self) -> Mapping[str, Any]:
        return self.document["config"]

    @property
    def iterations(self) -> int:
        return self.metrics[-1]["iteration"] if self.metrics else 0

    def comparisons(self) -> list[Comparison]:
        """One for each (states, mode), in the order in which they were first evaluated."""
        by_key: dict[tuple[str, str], list[Row]] = {}
        for row in self.evals:
            by_key.setdefault((row["states"], row["mode"]), []).append(row)
        chosen = (self.result or {}).get("policy_iteration")
        found = []
        for (states, mode), rows in by_key.items():
            before = next((row for row in rows if row["iteration"] == 0), None)
            later = [row for row in rows if row["iteration"] > 0]
            kept = [row for row in rows if row["iteration"] == chosen and (chosen or states != "test")]
            after = next(iter(kept), later[-1] if later else None)  # of test states, the last is of the kept policy
            found.append(Comparison(mode=mode, states=states, before=before, after=after, evaluations=rows))
        return found

    @property
    def kept(self) -> int | None:
        """The iteration whose weights became the policy, when that is not the last one."""
        chosen = (self.result or {}).get("policy_iteration")
        return chosen if chosen is not None and chosen != self.iterations else None


def read_run(path: str | Path, name: str | None = None) -> RunData:
    """Read a run folder, whatever state it is in.

    Raises:
        RunError: not a run folder, or of an incompatible version.
    """
    path = Path(path)
    document = read_config(path)
    left_out = _LeftOut()
    metrics = _lines(path / "metrics.jsonl", left_out)
    evals = _lines(path / "evals.jsonl", left_out)
    result = _result(path / "result.json", left_out)
    videos = _pair_videos(path / "videos", left_out)
    errors = _lines(path / "errors.jsonl", left_out)
    missing = [*left_out.values(), *_errors(errors)]
    if document["kind"] == "rl":
        missing.extend(_gaps(metrics, evals, result, videos, left_out))
    elif not metrics and "metrics.jsonl" not in left_out:
        missing.append("No step was logged.")
    for line in left_out.values():
        status(line)
    return RunData(
        path=path,
        name=name or path.resolve().name,
        document=document,
        metrics=metrics,
        evals=evals,
        result=result,
        videos=videos,
        missing=missing,
    )


_LeftOut = dict[str, str]
"""What is in the folder and cannot be used -> a sentence. Nothing is said to be missing there."""


def _lines(path: Path, left_out: _LeftOut) -> list[Row]:
    try:
        rows: list[Row] = list(read_rows(path))
    except DataError as error:
        left_out[path.name] = f"A log is left out: {error}."
        return []
    return sorted(rows, key=lambda row: row["iteration"])


def _errors(rows: Sequence[Row]) -> list[str]:
    """A sentence about the rollouts that ended in ERROR, if any did."""
    found = [reason for row in rows for reason in row["reasons"]]
    if not found:
        return []
    most = max(found, key=lambda reason: reason["count"])
    number, iterations = sum(reason["count"] for reason in found), len(rows)
    return [
        f"{number} practice rollouts of {iterations} iterations ended in ERROR and count nowhere, most of them with "
        f"{most['message']} (errors.jsonl has examples)."
    ]


def _result(path: Path, left_out: _LeftOut) -> Row | None:
    if not path.exists():
        return None
    try:
        found = read_json(path)
        if isinstance(found, dict):
            return found
        error = f"{path} is damaged: expected an object"
    except DataError as unread:
        error = str(unread)
    left_out[path.name] = f"How the run ended is not known: {error}."
    return None


def _gaps(
    metrics: Sequence[Row],
    evals: Sequence[Row],
    result: Row | None,
    videos: Sequence[VideoPair],
    left_out: _LeftOut,
) -> list[str]:
    gaps = []
    if result is None and "result.json" not in left_out:
        done = f"after iteration {metrics[-1]['iteration']}" if metrics else "before its first iteration was finished"
        gaps.append(f"The run has not ended: it was interrupted, or was still going on, {done}.")
    if not metrics and "metrics.jsonl" not in left_out:
        gaps.append("No iteration was logged, so there are no curves and no times.")
    if "evals.jsonl" not in left_out:
        measured = {"after" if row["iteration"] else "before" for row in evals}
        gaps += [f"No evaluation from {stage} post-training." for stage in _STAGES if stage not in measured]
    without = [stage for stage in _STAGES if not any(getattr(pair, stage) for pair in videos)]
    if len(without) == len(_STAGES) and not left_out.keys() & set(_STAGES):
        gaps.append("No videos were kept.")
    else:
        gaps += [f"No videos from {stage} post-training." for stage in without if stage not in left_out]
    return gaps


_STAGES = ("before", "after")


def _pair_videos(folder: Path, left_out: _LeftOut) -> list[VideoPair]:
    """Match videos/<stage>/<task>__<state id>__<status> by task and state; solved-since first, then by name."""
    found: dict[tuple[str, str], dict[str, tuple[Path, str]]] = {}
    for stage in _STAGES:
        try:
            names = sorted(os.listdir(folder / stage))
        except FileNotFoundError:
            continue
        except OSError as error:
            left_out[stage] = f"Videos from {stage} post-training are left out: {cannot_read(folder / stage, error)}."
            continue
        for path in (folder / stage / name for name in names if not name.startswith(".")):
            parts = path.stem.rsplit("__", 2)
            if len(parts) == 3 and path.suffix in (".mp4", ".webm"):
                found.setdefault((parts[0], parts[1]), {})[stage] = (path, parts[2])
    pairs = [
        VideoPair(task=task, state_id=state_id, before=sides.get("before"), after=sides.get("after"))
        for (task, state_id), sides in found.items()
    ]

    def rank(pair: VideoPair) -> tuple[int, str, str]:
        if pair.before is None or pair.after is None:
            order = 3
        else:
            order = {("failure", "success"): 0, ("success", "failure"): 1}.get((pair.before[1], pair.after[1]), 2)
        return order, pair.task, pair.state_id

    return sorted(pairs, key=rank)
