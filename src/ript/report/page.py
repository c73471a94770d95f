"""The report: one HTML page that needs nothing but itself, made from run folders alone."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ript.core import arguments
from ript.core.errors import ConfigError, DataError, DependencyMissing, RunError
from ript.core.files import absolute, write_text
from ript.core.places import require_replaceable
from ript.report import plots, seeds, views
from ript.report.read import Comparison, Row, RunData, VideoPair, read_run
from ript.run.progress import status
from ript.run.video import first_frame, poster

if TYPE_CHECKING:
    from jinja2 import Template

RUN_COLORS = 12
_MEDIA = {".mp4": "video/mp4", ".webm": "video/webm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An x-axis that all curves can be drawn against.

    Attributes:
        name: short; part of ids.
        title: on the switch.
        of_metrics, of_eval: x of a line of metrics.jsonl and of evals.jsonl.
    """

    name: str
    title: str
    of_metrics: Callable[[Row], Any]
    of_eval: Callable[[Row], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A curve of one key of metrics.jsonl and what it tells."""

    key: str
    title: str
    says: str
    scale: plots.Scale = "zero"


AXES = (
    Axis(name="iterations", title="Iterations", of_metrics=lambda r: r["iteration"], of_eval=lambda r: r["iteration"]),
    Axis(
        name="rollouts",
        title="Rollouts",
        of_metrics=lambda r: r.get("total/rollouts"),
        of_eval=lambda r: r.get("rollouts"),
    ),
    Axis(
        name="steps",
        title="Env steps",
        of_metrics=lambda r: r.get("total/env_steps"),
        of_eval=lambda r: r.get("env_steps"),
    ),
    Axis(
        name="minutes",
        title="Minutes",
        of_metrics=lambda r: _minutes(r.get("total/seconds")),
        of_eval=lambda r: _minutes(r.get("seconds")),
    ),
)

PANELS = (
    Panel(
        key="rollout/signal_share",
        title="Groups with signal",
        says="Share of groups whose rollouts did not all end alike. The others teach nothing.",
        scale="whole",
    ),
    Panel(
        key="update/clip_fraction",
        title="Clip fraction",
        says="Share of terms whose gradient the clip has cut off (a term: a token, a step or dimension of an action).",
        scale="share",
    ),
    Panel(
        key="update/kl",
        title="KL",
        says="How far an iteration moved the policy from the one that acted, in nats a decision.",
    ),
    Panel(
        key="update/entropy",
        title="Entropy",
        says="How undecided the policy is, in nats a term. A discrete choice near zero explores nothing "
        "any more; of a continuous variable it may be negative, and only a fall means less exploration.",
    ),
    Panel(key="update/grad_norm", title="Gradient norm", says="Before clipping."),
)


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
        again = f"ript report {' '.join(map(str, folders))} --out FILE.html"
        status(f"there is no report: {error}; all else is done, and this makes another: {again}")
        return None


def render(runs: Sequence[RunData], *, max_videos: int = 6, table: Mapping[str, Any] | None = None) -> str:
    """The page as HTML text."""
    blocks = []
    for kind, draw in (("rl", _rl_curves), ("sft", _sft_curves)):
        of_kind = [(number, run) for number, run in enumerate(runs) if run.document["kind"] == kind and run.metrics]
        if of_kind:
            blocks.append({"kind": kind, **draw(of_kind, len(runs) > 1)})
    return _template().render(
        title=_title(runs),
        table=table,
        generated=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[_run_view(number, run, max_videos) for number, run in enumerate(runs)],
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
        "color": _color(number),
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
        "time_plot": _time_plot(number, run),
        "grids": views.state_grids(run),
        "videos": videos,
        "videos_left_out": max(0, len(run.videos) - max_videos),
        "command": views.command(run.document),
        "config": views.flatten(run.config),
        "versions": views.versions(run.document),
    }


def _rl_curves(runs: Sequence[tuple[int, RunData]], several: bool) -> dict[str, Any]:
    panels = [
        panel for panel in PANELS if any(row.get(panel.key) is not None for _, run in runs for row in run.metrics)
    ]
    axes = []
    for axis in AXES:
        pictures = [
            {
                "title": "Success",
                "says": "On test and validation states, with 95 % intervals, and of the rollouts it trained on.",
                "svg": plots.curves(
                    _success_series(runs, axis, several),
                    key=f"rl-{axis.name}-success",
                    label=f"Success against {axis.title.lower()}",
                    x_label=axis.title.lower(),
                    scale="whole",
                ),
            }
        ]
        for place, panel in enumerate(panels):
            series = [_metric_series(number, run, panel.key, axis, several) for number, run in runs]
            svg = plots.curves(
                series,
                key=f"rl-{axis.name}-{place}",
                label=f"{panel.title} against {axis.title.lower()}",
                x_label=axis.title.lower(),
                scale=panel.scale,
            )
            pictures.append({"title": panel.title, "says": panel.says, "svg": svg})
        axes.append({"name": axis.name, "title": axis.title, "pictures": pictures})
    return {"title": "Learning curves", "axes": axes, "legend": _legend(runs, several)}


def _sft_curves(runs: Sequence[tuple[int, RunData]], several: bool) -> dict[str, Any]:
    """Supervised stages log what they like: every key gets its panel."""
    skip = ("iteration", "total/", "time/")
    keys = list(dict.fromkeys(k for _, run in runs for row in run.metrics for k in row if not k.startswith(skip)))
    keys = [key for key in keys if any(isinstance(row.get(key), int | float) for _, run in runs for row in run.metrics)]
    axis = Axis(name="steps", title="Steps", of_metrics=lambda r: r["iteration"], of_eval=lambda r: r["iteration"])
    pictures = []
    for place, key in enumerate(keys):
        series = [_metric_series(number, run, key, axis, several) for number, run in runs]
        svg = plots.curves(series, key=f"sft-{place}", label=f"{key} against steps", x_label="steps")
        pictures.append({"title": key, "says": "", "svg": svg})
    legend = [{"label": run.name, "color": _color(number), "line": "solid"} for number, run in runs if several]
    axes = [{"name": "sft", "title": "Steps", "pictures": pictures}]
    return {"title": "Supervised training", "axes": axes, "legend": legend}


_LINES = (("-", "solid"), (":", "dotted"), ("-.", "dashdot"))
_MARKERS = (("o", "o"), ("s", "square"), ("^", "triangle"), ("D", "diamond"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How the evaluations of one set of states in one mode are drawn, in every run alike. `swatch` is its CSS class."""

    label: str
    line: str
    swatch: str
    marker: str


def _looks(runs: Sequence[tuple[int, RunData]], several: bool) -> dict[tuple[str, str], Look]:
    """A look for each (states, mode). Two points make no curve: they stay points, with bars for their intervals.

    One run needs no line styles, for a colour tells the modes apart; with several, the colour is the run's.
    """
    most: dict[tuple[str, str], int] = {}
    for _, run in runs:
        for one in run.comparisons():
            key = _look_key(one, several)
            most[key] = max(most.get(key, 0), len(one.evaluations))
    looks: dict[tuple[str, str], Look] = {}
    for place, (key, evaluations) in enumerate(most.items()):
        lines = sum(1 for look in looks.values() if look.line)
        marker, shape = _MARKERS[place % len(_MARKERS)]
        line, swatch = _LINES[lines % len(_LINES) if several else 0] if evaluations > 2 else ("", f"points {shape}")
        looks[key] = Look(label=", ".join(key), line=line, swatch=swatch, marker=marker)
    return looks


def _look_key(one: Comparison, several: bool) -> tuple[str, str]:
    """Runs may differ in temperature and still be compared: "sampled" is one mode then."""
    return one.states, views.short_mode(one.mode) if several else one.mode


def _success_series(runs: Sequence[tuple[int, RunData]], axis: Axis, several: bool) -> list[plots.Series]:
    """Training success of each run, then its evaluations."""
    series = []
    looks = _looks(runs, several)
    for number, run in runs:
        series.append(
            plots.Series(
                x=_numbers(axis.of_metrics(row) for row in run.metrics),
                y=_numbers(row.get("rollout/success") for row in run.metrics),
                color=_color(number) if several else "muted",
                line="--",
                width=1.0,
            )
        )
        for one in run.comparisons():
            key = _look_key(one, several)
            totals = [row["eval"]["total"] for row in one.evaluations]
            series.append(
                plots.Series(
                    x=_numbers(axis.of_eval(row) for row in one.evaluations),
                    y=[t["successes"] / t["trials"] if t["trials"] else float("nan") for t in totals],
                    band=([t["interval"][0] for t in totals], [t["interval"][1] for t in totals]),
                    color=_color(number if several else list(looks).index(key)),
                    line=looks[key].line,
                    marker=looks[key].marker,
                )
            )
    return series


def _metric_series(number: int, run: RunData, key: str, axis: Axis, several: bool) -> plots.Series:
    return plots.Series(
        x=_numbers(axis.of_metrics(row) for row in run.metrics),
        y=_numbers(row.get(key) for row in run.metrics),
        color=_color(number if several else 0),
    )


def _legend(runs: Sequence[tuple[int, RunData]], several: bool) -> list[dict[str, str]]:
    looks = _looks(runs, several).values()
    trained = {"label": "rollouts it trained on", "color": "muted", "line": "dashed"}
    if not several:
        colors = [_color(place) for place in range(len(looks))]
        return [
            *({"label": k.label, "color": c, "line": k.swatch} for k, c in zip(looks, colors, strict=True)),
            trained,
        ]
    of_runs = [{"label": run.name, "color": _color(number), "line": "solid"} for number, run in runs]
    return [*of_runs, *({"label": look.label, "color": "muted", "line": look.swatch} for look in looks), trained]


def _time_plot(number: int, run: RunData) -> str:
    split = [views.wall_clock(row) for row in run.metrics]
    layers = [
        plots.Stack(name=label, heights=[parts[name] for parts in split], color=color)
        for name, label, color in (*views.ROLLOUT_PARTS, *views.WALL_PARTS)
        if any(parts[name] for parts in split)
    ]
    if not layers:
        return ""
    iterations = [row["iteration"] for row in run.metrics]
    label = "Wall-clock seconds of each iteration by part"
    return plots.stacked_bars(iterations, layers, key=f"run{number}-time", label=label, x_label="iteration")


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


def _color(number: int) -> str:
    return f"s{number % RUN_COLORS}"


def _numbers(values: Any) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60
