"""The curves of a report: which are drawn, against which axes, and how runs and evaluations are told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ript.report import plots, views
from ript.report.read import Comparison, Row, RunData

RUN_COLORS = 12


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


def rl_curves(runs: Sequence[tuple[int, RunData]], several: bool) -> dict[str, Any]:
    """The curves of runs of practice, each against every axis, and their legend.

    Args:
        runs: (number on the page, run).
        several: the page is about more than one run, so that colours tell runs apart.
    """
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


def sft_curves(runs: Sequence[tuple[int, RunData]], several: bool) -> dict[str, Any]:
    """The curves of runs of supervised training; see `rl_curves`. Every key that a stage logs gets a panel."""
    skip = ("iteration", "total/", "time/")
    keys = list(dict.fromkeys(k for _, run in runs for row in run.metrics for k in row if not k.startswith(skip)))
    keys = [key for key in keys if any(isinstance(row.get(key), int | float) for _, run in runs for row in run.metrics)]
    axis = Axis(name="steps", title="Steps", of_metrics=lambda r: r["iteration"], of_eval=lambda r: r["iteration"])
    pictures = []
    for place, key in enumerate(keys):
        series = [_metric_series(number, run, key, axis, several) for number, run in runs]
        svg = plots.curves(series, key=f"sft-{place}", label=f"{key} against steps", x_label="steps")
        pictures.append({"title": key, "says": "", "svg": svg})
    legend = [{"label": run.name, "color": color_of(number), "line": "solid"} for number, run in runs if several]
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
                color=color_of(number) if several else "muted",
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
                    color=color_of(number if several else list(looks).index(key)),
                    line=looks[key].line,
                    marker=looks[key].marker,
                )
            )
    return series


def _metric_series(number: int, run: RunData, key: str, axis: Axis, several: bool) -> plots.Series:
    return plots.Series(
        x=_numbers(axis.of_metrics(row) for row in run.metrics),
        y=_numbers(row.get(key) for row in run.metrics),
        color=color_of(number if several else 0),
    )


def _legend(runs: Sequence[tuple[int, RunData]], several: bool) -> list[dict[str, str]]:
    looks = _looks(runs, several).values()
    trained = {"label": "rollouts it trained on", "color": "muted", "line": "dashed"}
    if not several:
        colors = [color_of(place) for place in range(len(looks))]
        return [
            *({"label": k.label, "color": c, "line": k.swatch} for k, c in zip(looks, colors, strict=True)),
            trained,
        ]
    of_runs = [{"label": run.name, "color": color_of(number), "line": "solid"} for number, run in runs]
    return [*of_runs, *({"label": look.label, "color": "muted", "line": look.swatch} for look in looks), trained]


def time_plot(number: int, run: RunData) -> str:
    """The wall clock of each iteration by part, as SVG; empty when it is not known."""
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


def color_of(number: int) -> str:
    """The name of the CSS variable with the colour of a run."""
    return f"s{number % RUN_COLORS}"


def _numbers(values: Any) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _minutes(seconds: float | None) -> float | None:
    return None if seconds is None else seconds / 60
