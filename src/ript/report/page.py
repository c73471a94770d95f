"""The report: one HTML page that needs nothing but itself, made from run folders alone."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ript.core import arguments
from ript.core.errors import ConfigError, DataError, DependencyMissing, RunError
from ript.core.files import absolute, write_text
from ript.core.interpreter import as_typed
from ript.core.places import require_replaceable
from ript.report import curves, seeds, views
from ript.report.read import RunData, VideoPair, read_run
from ript.run.progress import status
from ript.run.video import first_frame, poster

if TYPE_CHECKING:
    from jinja2 import Template

_MEDIA = {".mp4": "video/mp4", ".webm": "video/webm"}


def write_report(
    folders: Sequence[str | Path], out: str | Path, *, max_videos: int = 6, table: Mapping[str, Any] | None = None
) -> Path:
    """Write one self-contained page about one run, or several side by side.

    Args:
        folders: run folders, or one; only their files are read, and no lock is needed.
        out: the HTML file, written atomically.
        max_videos: pairs of videos shown for each run, at most.
        table: to begin with, such as that of a study: {"title", "columns", "rows", "notes"}, all text.

    Raises:
        ConfigError: no folder, or one given twice.
        RunError: a folder is not a run or of an incompatible version, or the page cannot be written.
    """
    paths, out = [absolute(folder) for folder in arguments.places("folders", folders)], arguments.place("out", out)
    max_videos = arguments.whole("max_videos", max_videos, 0)
    if not paths:
        raise ConfigError("a report needs at least one run folder")
    require_replaceable(out, "a report of ript", _is_report)
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("a run folder was given twice")
    runs = [read_run(path, name) for path, name in zip(paths, views.unique_names(paths), strict=True)]
    try:
        page = render(runs, max_videos=max_videos, table=table)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise RunError(
            f"{' or '.join(map(str, paths))} holds what no run writes ({type(error).__name__}: {error}): "
            "was a file in it edited?"
        ) from error
    write_text(out, page)
    return out


_TITLE = re.compile(rb"^<title>.* \xc2\xb7 ript report</title>$", re.MULTILINE)
"""As in page.html.j2."""


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return _TITLE.search(file.read(100_000)) is not None


def report_or_say(
    folders: Sequence[str | Path], out: str | Path, *, table: Mapping[str, Any] | None = None
) -> Path | None:
    """Write the report of work that is done. It is extra: when it cannot be written, that is said on stderr.

    Returns:
        the page, or None.
    """
    try:
        return write_report(folders, out, table=table)
    except Exception as error:
        again = as_typed("report", *folders, "--out", "FILE.html")
        status(f"there is no report: {error}; all else is done, and this makes another: {again}")
        return None


def render(runs: Sequence[RunData], *, max_videos: int = 6, table: Mapping[str, Any] | None = None) -> str:
    """The page as HTML text."""
    blocks = []
    for kind, draw in (("rl", curves.rl_curves), ("sft", curves.sft_curves)):
        of_kind = [(number, run) for number, run in enumerate(runs) if run.document["kind"] == kind and run.metrics]
        if of_kind:
            blocks.append({"kind": kind, **draw(of_kind, len(runs) > 1)})
    shown = [_run_view(number, run, max_videos) for number, run in enumerate(runs)]
    return _template().render(
        title=_title(runs),
        table=table,
        generated=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=shown,
        apart=views.measured_apart([run["heads"] for run in shown]),
        together=seeds.over_seeds(runs),
        curves=blocks,
    )


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("ript.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template("page.html.j2")


def _title(runs: Sequence[RunData]) -> str:
    tasks = list(dict.fromkeys(task for run in runs for task in views.task_names(run)))
    about = ", ".join(tasks) if 0 < len(tasks) <= 3 else f"{len(tasks)} tasks" if tasks else runs[0].name
    return f"{len(runs)} runs: {about}" if len(runs) > 1 else about


def _run_view(number: int, run: RunData, max_videos: int) -> dict[str, Any]:
    heads = [views.headline(comparison, run.kept) for comparison in views.told(run)]
    missing = list(run.missing)
    videos = _videos(run.videos[:max_videos], missing)
    return {
        "id": f"run{number}",
        "color": curves.color_of(number),
        "name": run.name,
        "kind": run.document["kind"],
        "created": str(run.document.get("created", ""))[:10],
        "tasks": views.task_names(run),
        "ended": (run.result or {}).get("reason"),
        "lead": views.lead(run, heads),
        "heads": heads,
        "cost": views.cost(run),
        "thresholds": views.thresholds(run),
        "notes": [str(note) for note in run.config.get("notes") or []],
        "missing": missing,
        "time": views.time_split(run.metrics),
        "stages": [(name, views.duration(s)) for name, s in ((run.result or {}).get("seconds") or {}).items()],
        "time_plot": curves.time_plot(number, run),
        "idle": views.idle(run.metrics),
        "nodes": views.nodes(run.metrics),
        "grids": views.state_grids(run),
        "videos": videos,
        "videos_left_out": max(0, len(run.videos) - max_videos),
        "command": views.command(run.document),
        "config": views.flatten(run.config),
        "versions": views.versions(run.document),
    }


def _videos(pairs: Sequence[VideoPair], missing: list[str]) -> list[dict[str, Any]]:
    """Videos as data URLs; one that cannot be read is named in `missing` instead."""
    shown = []
    for pair in pairs:
        sides = {}
        for stage in ("before", "after"):
            found = getattr(pair, stage)
            if found is None:
                continue
            path, status = found
            try:
                still = base64.b64encode(poster(first_frame(path))).decode()
                data = base64.b64encode(path.read_bytes()).decode()
            except (DataError, DependencyMissing, OSError) as error:
                missing.append(f"A video is left out: {error}.")
                continue
            sides[stage] = {
                "status": status,
                "poster": f"data:image/png;base64,{still}",
                "source": f"data:{_MEDIA[path.suffix]};base64,{data}",
            }
        if sides:
            shown.append({"task": pair.task, "state": pair.state_id, "sides": sides})
    return shown
