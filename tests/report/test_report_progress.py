"""Progress goes to stderr, as bars for people and as lines for logs; stdout stays clean."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from ript.run import progress as module
from ript.run.progress import progress, status


def test_without_a_terminal_there_are_plain_lines_on_stderr_and_nothing_on_stdout(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_EVERY_SECONDS", 0.0)
    with progress(4, "rollouts") as bar:
        bar.note("50 % success")
        bar.advance(2)
    status("stage 2: policy")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "rollouts: 2/4 (50 %), 0 s, 50 % success",
        "rollouts: 2/4 (50 %), 0 s, 50 % success",
        "stage 2: policy",
    ]


def test_what_is_done_at_once_says_nothing(capsys):
    assert list(progress([1, 2, 3], "things")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_a_generator_of_unknown_length_is_counted(capsys, monkeypatch):
    monkeypatch.setattr(module, "PLAIN_EVERY_SECONDS", 0.0)
    assert list(progress((i for i in range(2)), "things")) == [0, 1]
    assert capsys.readouterr().err.splitlines()[-1] == "things: 2, 0 s"


def test_iterating_over_a_number_says_how_to_do_it():
    with pytest.raises(TypeError, match="context manager"):
        list(progress(3, "steps"))


def test_on_a_terminal_bars_nest_and_stdout_is_still_the_callers_own():
    code = """
        import time
        from ript.run.progress import progress, status
        with progress(2, "iterations") as outer:
            for _ in range(2):
                for _ in progress(range(3), "rollouts"):
                    time.sleep(0.06)
                status("a stage line [not markup]")
                print("{}")
                outer.advance()
    """
    terminal, side = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=side,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(side)
    shown = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux: the other side was closed
            break
        if not data:
            break
        shown += data
    os.close(terminal)
    assert process.stdout is not None
    assert process.stdout.read() == b"{}\n{}\n"
    process.stdout.close()
    assert process.wait() == 0
    text = shown.decode()
    assert "iterations" in text
    assert "rollouts" in text
    assert "1/2" in text
    assert "1/3" in text
    assert text.count("a stage line [not markup]") == 2
