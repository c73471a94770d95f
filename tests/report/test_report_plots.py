"""Plots are small SVGs in the page's own colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from ript.report import plots
from ript.report.plots import Series, Stack, curves, stacked_bars


def parse(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def line(**changes) -> Series:
    return Series(**{"x": [0, 1, 2], "y": [0.1, 0.5, 0.9], "color": "s0", **changes})


def draw(series, **changes) -> str:
    return curves(series, **{"key": "k", "label": "Success", "x_label": "iterations", "scale": "whole", **changes})


def test_a_plot_is_well_formed_and_uses_only_the_pages_colours_and_fonts():
    svg = draw([line(band=([0, 0.4, 0.8], [0.2, 0.6, 1.0])), line(color="s1", marker="s", y=[0.2, 0.3, 0.4])])
    parse(svg)
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"s0", "s1", "muted", "rule"}
    assert not re.search(r"(fill|stroke): ?#", svg)
    assert "font-family" not in svg
    assert "http" not in svg


def test_text_stays_text_and_shares_are_per_cent():
    texts = [element.text for element in parse(draw([line()])).iter() if element.tag.endswith("text")]
    assert {"iterations", "0 %", "50 %", "100 %"} <= set(texts)
    free = [e.text for e in parse(draw([line(x=[0, 1250, 2500])], scale="zero")).iter() if e.tag.endswith("text")]
    assert {"0", "500", "1.5k"} <= set(free)
    assert not any("%" in (text or "") for text in free)


def test_what_is_below_zero_such_as_a_densitys_entropy_is_drawn_where_it_is():
    svg = draw([line(x=[0, 1, 2], y=[-3.0, -3.4, -4.0])], scale="zero")
    ticks = [
        e.text for e in parse(svg).iter() if e.tag.endswith("text") and e.text not in {"0", "1", "2", "iterations"}
    ]
    assert len(ticks) >= 3
    assert all(-4.2 <= float(tick.replace("\u2212", "-")) <= -2.8 for tick in ticks)


def test_ids_of_two_plots_do_not_meet_and_every_reference_has_its_target():
    series = [line(marker="o", band=([0, 0, 0], [1, 1, 1]))]
    ids = []
    for key in ("first", "second"):
        svg = draw(series, key=key)
        here = set(re.findall(r'id="([^"]+)"', svg))
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) == here
        assert here
        ids.append(here)
    assert not ids[0] & ids[1]


def test_points_that_are_not_finite_are_left_out_and_a_single_one_gets_a_marker():
    nan = float("nan")
    svg = draw([line(y=[nan, 0.5, nan], band=([nan, 0.4, nan], [nan, 0.6, nan]))])
    assert svg.count("<use") == 2  # the band and the marker
    assert "nan" not in svg.lower()
    parse(draw([line(x=[], y=[])]))
    parse(draw([line(x=[nan], y=[nan])], scale="zero"))


def test_the_same_numbers_give_the_same_text():
    assert draw([line()]) == draw([line()])


@pytest.mark.parametrize("label", ['a "quoted" <label> & more'])
def test_labels_are_escaped(label):
    assert parse(draw([line()], label=label)).get("aria-label") == label


def test_bars_are_stacked_to_the_sum_of_their_layers():
    layers = [Stack(name="a", heights=[2, 2], color="t0"), Stack(name="b", heights=[6, float("nan")], color="t1")]
    svg = stacked_bars([1, 2], layers, key="k", label="time", x_label="iteration")
    texts = [element.text for element in parse(svg).iter() if element.tag.endswith("text")]
    assert "8 s" in texts
    bars = re.findall(
        r'<path d="M ([\d.]+) ([\d.]+) \nL [\d.]+ [\d.]+ \nL [\d.]+ ([\d.]+) [^"]*"[^/]*fill: var\(--t', svg
    )
    heights = [float(bottom) - float(top) for _, bottom, top in bars]
    assert heights[2] == pytest.approx(3 * heights[0], rel=1e-3)
    assert heights[3] == pytest.approx(0, abs=1e-3)


def test_a_plot_does_not_depend_on_those_drawn_before_it():
    y = np.linspace(0.2, 0.7, 15) ** 2
    line = [Series(x=range(15), y=y, color="s0", band=(y - 0.1, y + 0.1))]
    points = [Series(x=[0, 5], y=[0.1, 90.0], color="s1", line="", marker="s", band=([0, 80.0], [0.3, 100.0]))]
    bars = [Stack(name="a", heights=[1, 2, 3], color="s3"), Stack(name="b", heights=[3, 2, 300], color="s4")]
    draw = [
        *(
            lambda scale=scale, series=series: curves(series, key="k", label="l", x_label="i", scale=scale)
            for scale in ("free", "zero", "share", "whole")
            for series in (line, points, line + points, [])
        ),
        lambda: stacked_bars([1, 2, 3], bars, key="k", label="l", x_label="i"),
    ]
    alone = []
    for one in draw:
        plots._figure.cache_clear()
        alone.append(one())
    for number in np.random.default_rng(0).permutation(3 * len(draw)) % len(draw):
        assert draw[number]() == alone[number]
