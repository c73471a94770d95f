"""Curves and bars as SVG text that takes its colours and its font from the page around it.

Matplotlib draws with stand-in colours, which are then replaced by CSS variables: the same picture fits a light and a
dark page. The page must define `--ink`, `--muted`, `--rule` and the series colours it passes in.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.7, 2.25
"""Inches of a panel; at 72 units an inch it is shown at about its natural size on a phone."""

INSIDE = (0.15, 0.215, 0.83, 0.72)
"""Left, bottom, width and height of the axes as shares of the panel: the same in all, so that panels line up, and room
for seven characters beside the axis. Finding margins for each panel would double the time of a page."""


Scale = Literal["free", "zero", "share", "whole"]
"""How a y-axis is scaled: as the data wants; from zero, unless there is less; the same in per cent; or 0 to 100 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        x, y: `[n]`; points that are not finite are left out.
        color: name of a CSS variable, without the dashes.
        line: "-", "--", ":" or "" for markers alone, their bands drawn as bars.
        marker: matplotlib marker, or "".
        width: line width in points.
        band: (lower, upper), each `[n]`, shaded behind the line; or None.
    """

    x: Sequence[float]
    y: Sequence[float]
    color: str
    line: str = "-"
    marker: str = ""
    width: float = 1.6
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One layer of stacked bars: a name, heights `[n]`, and the name of a CSS variable."""

    name: str
    heights: Sequence[float]
    color: str


def curves(series: Sequence[Series], *, key: str, label: str, x_label: str, scale: Scale = "free") -> str:
    """Draw lines over a common axis.

    Args:
        series: what to draw.
        key: unique on the page; prefixes the SVG's ids.
        label: read out by screen readers.
        x_label: below the axis.
        scale: of the y-axis; see `Scale`.
    """
    ink = _Palette()
    with _style():
        figure, axes = _panel(ink)
        for one in series:
            x, y = np.asarray(one.x, dtype=float), np.asarray(one.y, dtype=float)
            there = np.isfinite(x) & np.isfinite(y)
            color = ink.stand_in(one.color)
            if one.band is not None:
                low, high = (np.asarray(edge, dtype=float)[there] for edge in one.band)
                if one.line:
                    axes.fill_between(x[there], low, high, color=color, alpha=0.16, linewidth=0)
                else:
                    axes.vlines(x[there], low, high, color=color, alpha=0.5, linewidth=2.2)
            marker = one.marker or ("o" if there.sum() == 1 else "")
            (line,) = axes.plot(x[there], y[there], one.line or " ", color=color, linewidth=one.width, clip_on=False)
            line.set(marker=marker, markersize=3.4 if one.line else 5)
        _y_axis(axes, scale)
        _x_axis(axes, x_label)
        return _to_svg(figure, ink, key, label)


def stacked_bars(x: Sequence[float], layers: Sequence[Stack], *, key: str, label: str, x_label: str) -> str:
    """Draw one bar for each x, made of layers from the bottom up; heights in seconds."""
    ink = _Palette()
    with _style():
        figure, axes = _panel(ink)
        bottom = np.zeros(len(x))
        for layer in layers:
            heights = np.nan_to_num(np.asarray(layer.heights, dtype=float))
            axes.bar(x, heights, 0.78, bottom, color=ink.stand_in(layer.color), linewidth=0)
            bottom += heights
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
        _x_axis(axes, x_label)
        return _to_svg(figure, ink, key, label)


class _Palette:
    """Hands out an unlikely stand-in colour for each CSS variable, to be replaced in the finished SVG."""

    def __init__(self) -> None:
        self._stand_ins: dict[str, str] = {}

    def stand_in(self, variable: str) -> str:
        return self._stand_ins.setdefault(variable, f"#01fe{len(self._stand_ins):02x}")

    def apply(self, svg: str) -> str:
        for variable, color in self._stand_ins.items():
            svg = svg.replace(color, f"var(--{variable})")
        return svg


def _style():  # type: ignore[no-untyped-def]
    import matplotlib

    # Text stays text, in the page's font; ids do not change from run to run.
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ript", "font.size": 9.0})


def _panel(ink: _Palette) -> tuple[Figure, Axes]:
    """An empty panel. It is one figure that serves again and again: a page has dozens, and making one takes as long as
    drawing it."""
    from matplotlib.ticker import AutoLocator, ScalarFormatter

    figure, axes = _figure(ink.stand_in("muted"), ink.stand_in("rule"))
    for bars in list(axes.containers):
        bars.remove()
    for artist in [*axes.lines, *axes.collections]:
        artist.remove()
    axes.relim()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.margins(x=0.05, y=0.05)
    axes.autoscale(True)
    axes.yaxis.set_major_locator(AutoLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    return figure, axes


@functools.cache
def _figure(muted: str, rule: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes(INSIDE)
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(rule)
    axes.grid(axis="y", color=rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=muted, length=0, labelcolor=muted, pad=4)
    axes.xaxis.label.set_color(muted)
    return figure, axes


def _y_axis(axes: Axes, scale: Scale) -> None:
    axes.margins(y=0.08)
    if scale == "whole":
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    elif scale != "free":
        lowest, top = axes.dataLim.ymin, axes.get_ylim()[1]
        if not lowest < 0:
            axes.set_ylim(0.0, top if top > 0 else 1.0)
        axes.locator_params(axis="y", nbins=5)
    if scale in ("whole", "share"):
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def _x_axis(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    """1500 -> 1.5k, 2000000 -> 2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _to_svg(figure: Figure, ink: _Palette, key: str, label: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    target = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(target, metadata=empty)
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style .*?</style>\s*| font-family: [^;]*;", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="patch_1">.*?</g>\s*', "", svg, count=1, flags=re.DOTALL)  # the figure's background
    svg = _own_ids(ink.apply(svg), key)
    view = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg class="plot" role="img" aria-label="{_escape(label)}" {view.group(0) if view else ""}>'
    return opening + svg[svg.index(">") + 1 :].strip()


def _own_ids(svg: str, key: str) -> str:
    """Keep only ids that are referred to, and make them this plot's own: a page holds many plots."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    svg = re.sub(r'\s+id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(url\(|href=")#', lambda m: f"{m[1]}#{key}-", svg)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
