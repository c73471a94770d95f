"""What lies in a run folder, read: config.json and the logs. Reading needs no lock, and takes a run in any state."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from ript.core.disk import reading
from ript.core.errors import DataError, RunError
from ript.core.files import expanded
from ript.core.types import EvalResult, Reason, Status
from ript.core.version import VERSION
from ript.run.files import read_json, read_lines

FORMAT = 2
READABLE = (1, 2)
"""Formats that reports read. Only a run of `FORMAT` can go on: earlier ones measured on other initial states."""
Kind = Literal["rl", "sft"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, evals.jsonl or errors.jsonl.

    Raises:
        DataError: a line that `log`, `log_eval` or `log_errors` cannot have written; names it.
    """
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        try:
            if not isinstance(row["iteration"], int):
                raise TypeError("iteration is no whole number")
            if path.name == "evals.jsonl":
                if not isinstance(row["mode"], str) or not isinstance(row["states"], str):
                    raise TypeError("mode and states must be words")
                if row["states"] == "held-out":  # as version 0.1.0 named the test states
                    row["states"] = "test"
                _require_counts(EvalResult.from_json(row["eval"], row["per_state"]))
            elif path.name == "errors.jsonl":
                for reason in row["reasons"]:
                    Reason(**reason)
            elif odd := [name for name, value in row.items() if not isinstance(value, int | float | None)]:
                raise TypeError(f"{', '.join(odd)}: no number")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}, line {number} is damaged ({error!r})") from error
    return rows


def _require_counts(result: EvalResult) -> None:
    """Raise `ValueError` where successes are no count of trials, or not those of the states, if all are there."""
    total = result.total
    if not all(isinstance(number, int) and number >= 0 for number in (total.successes, total.trials, total.errors)):
        raise ValueError(f"successes, trials and errors must be counts, got {total}")
    statuses = [status for rows in result.per_state.values() for _, status in rows]
    solved = statuses.count(Status.SUCCESS.value)
    whole = len(statuses) == total.trials + total.errors
    if total.successes > total.trials or (whole and total.successes != solved):
        raise ValueError(f"{total.successes} successes in {total.trials} trials, {solved} of the states")


def read_config(path: str | Path, *, to_resume: bool = False) -> dict[str, Any]:
    """The document config.json of a run folder: "format", "kind", "config", versions and command line.

    Args:
        path: the run folder.
        to_resume: of a run that goes on, which takes the present format.

    Raises:
        RunError: not a run folder, or of an incompatible version.
    """
    path = expanded(path)
    with reading(path, RunError):
        is_run = (path / "config.json").is_file()
    if not is_run:
        what = "is not a run folder (it has no config.json)" if path.is_dir() else "is a file, not a run folder"
        what = what if path.exists() else "does not exist"
        inside = sorted(str(file.parent) for file in path.glob("*/config.json") if (file.parent / ".lock").exists())
        hint = f"it contains {' and '.join(inside)}" if inside else "give the --out folder of an earlier run"
        raise RunError(f"{path} {what}: {hint}")
    document = read_json(path / "config.json")
    if not isinstance(document, dict) or "format" not in document:
        raise RunError(f"{path / 'config.json'} is not the config of a ript run: it has no format version")
    if document.get("kind", "rl") not in get_args(Kind):
        raise RunError(f"{path} is not a run folder, but holds a {document['kind']!r} policy: give the run's folder")
    if document["format"] not in ((FORMAT,) if to_resume else READABLE):
        older = document["format"] in READABLE
        what = f"has run format {document['format']} (written by ript {document.get('ript', '?')})"
        can = f"runs of format {FORMAT} can go on" if older else f"this is ript {VERSION}, which reads format {FORMAT}"
        raise RunError(
            f"{path} {what}; {can}: go on with the version that wrote it, or start again with another --out"
            + (f", from its policy if you like ({path / 'policy'})" if older else "")
        )
    missing = [key for key in ("kind", "config") if key not in document]
    if missing:
        raise RunError(f"{path / 'config.json'} is incomplete: {' and '.join(missing)} missing")
    if not isinstance(document["config"], dict):
        raise RunError(f"{path / 'config.json'} is damaged: config is no table of settings")
    notes, packages = document["config"].get("notes", []), document.get("packages", {})
    if not isinstance(notes, list) or not isinstance(packages, dict):
        raise RunError(f"{path / 'config.json'} is damaged: notes must be a list, packages a table")
    return document


def version(package: str) -> str | None:
    """The version of a distribution; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
