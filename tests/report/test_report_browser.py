"""The page in a real browser: it plays, it draws, it fits a phone, and it asks nobody for anything."""

from __future__ import annotations

import pytest
from headless_browser import Browser, find_browser
from synthetic_run import make_run

from ript.report.page import write_report

EXECUTABLE = find_browser()
pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium or Chrome is installed")


@pytest.fixture(scope="module")
def browser():
    with Browser(EXECUTABLE) as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """One run, and two side by side of which one was interrupted."""
    folder = tmp_path_factory.mktemp("reports")
    first = make_run(folder / "first" / "rl", iterations=6, tasks=("drawer-open-v3", "door-open-v3"))
    second = make_run(folder / "second" / "rl", iterations=5, speed=0.1, finished=False, videos=0)
    return {
        "one": write_report([first], folder / "one.html"),
        "two": write_report([first, second], folder / "two.html"),
    }


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_the_page_loads_without_a_console_message_or_a_request_and_fits_its_width(browser, pages, name, dark, width):
    browser.events.clear()
    browser.open(pages[name], width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    said = [event for event in browser.events if event[0] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
    said += [event for event in browser.events if event[0] == "Log.entryAdded"]
    assert said == []
    asked = [event[1]["request"]["url"] for event in browser.events if event[0] == "Network.requestWillBeSent"]
    assert pages[name].resolve().as_uri() in asked
    assert [url for url in asked if not url.startswith(("data:", pages[name].resolve().as_uri()))] == []


def test_every_video_plays(browser, pages):
    browser.open(pages["one"])
    videos = browser.evaluate("""
        Promise.all([...document.querySelectorAll("video")].map(async video => {
            await video.play();
            while (video.currentTime < 0.2) await new Promise(r => setTimeout(r, 20));
            return {error: video.error, width: video.videoWidth, duration: video.duration, paused: video.paused};
        }))
    """)
    assert len(videos) == 6
    for video in videos:
        assert video == {"error": None, "width": 64, "duration": pytest.approx(1.5, abs=0.1), "paused": False}


def test_one_button_plays_both_videos_of_a_pair(browser, pages):
    browser.open(pages["one"])
    playing = browser.evaluate("""
        (async () => {
            const pair = document.querySelector(".pair");
            pair.querySelector("button").click();
            while ([...pair.querySelectorAll("video")].some(v => v.currentTime < 0.1)) {
                await new Promise(r => setTimeout(r, 20));
            }
            return [...document.querySelectorAll("video")].map(video => !video.paused);
        })()
    """)
    assert playing == [True, True, False, False, False, False]


def test_the_switch_shows_one_set_of_plots_at_a_time(browser, pages):
    browser.open(pages["one"])
    shown = browser.evaluate("""
        [...document.querySelectorAll(".tabs label")].map(label => {
            label.click();
            return [label.textContent, [...document.querySelectorAll(".pane svg.plot")]
                .filter(plot => plot.getBoundingClientRect().height > 100)
                .map(plot => plot.getAttribute("aria-label"))];
        })
    """)
    assert [title for title, _ in shown] == ["Iterations", "Rollouts", "Env steps", "Minutes"]
    for title, plots in shown:
        assert len(plots) == 6
        assert plots[0] == f"Success against {title.lower()}"


def test_curves_are_really_drawn_in_the_colours_of_the_page(browser, pages):
    script = """
        [...document.querySelectorAll(".pane svg.plot")].slice(0, 6).map(plot =>
            [...plot.querySelectorAll("path")].filter(path => {
                const stroke = getComputedStyle(path).stroke, box = path.getBoundingClientRect();
                return stroke === COLOR && box.width > 100;
            }).length)
    """
    for dark, color in ((False, "rgb(15, 118, 110)"), (True, "rgb(79, 195, 176)")):
        browser.open(pages["one"], dark=dark)
        assert all(browser.evaluate(script.replace("COLOR", f'"{color}"')))


def test_text_has_contrast_in_light_and_dark(browser, pages):
    script = """
        (() => {
            const light = css => {
                const parts = css.match(/[0-9.]+/g).slice(0, 3)
                    .map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
                return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
            };
            const paper = light(getComputedStyle(document.body).backgroundColor);
            const texts = ["h1", ".lead", ".kicker", "figcaption", ".big.was", "td", "th", "summary", "footer"];
            return Math.min(...texts.map(s => {
                const ink = light(getComputedStyle(document.querySelector(s)).color);
                return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
            }));
        })()
    """
    for dark in (False, True):
        browser.open(pages["one"], dark=dark)
        assert browser.evaluate(script) >= 4.5


def test_touching_a_square_says_which_initial_state_it_is(browser, pages):
    browser.open(pages["one"], width=360)
    told = browser.evaluate("""
        (() => {
            const grid = document.querySelector(".state-grid");
            grid.querySelector('i[data-n="3"]').click();
            return [grid.querySelector("output").textContent, grid.querySelectorAll("i.on").length];
        })()
    """)
    assert told[0].startswith("state ")
    assert "before" in told[0]
    assert told[1] == 2
