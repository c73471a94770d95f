"""The documentation says what is so: its examples run, its commands exist, its tables are complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def example_files(page: str) -> dict[str, str]:
    """Python blocks of a page whose first line is `# NAME.py`: name -> text."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    named = {match.group(1): block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}
    assert len(named) == len(blocks), f"{page}: a Python block without a file name would not be run"
    return named


def run_example(folder: Path, name: str, *pages: str) -> str:
    """Write the files of the pages into `folder` and run one of them, with warnings as errors; returns what it printed."""
    for page in pages:
        for file, text in example_files(page).items():
            (folder / file).write_text(text)
    run = subprocess.run(
        [sys.executable, "-W", "error", name],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def rate(printed: str, when: str) -> float:
    (successes, trials), = re.findall(rf"^{when} (\d+)/(\d+)$", printed, re.MULTILINE)
    return int(successes) / int(trials)


@pytest.mark.timeout(300)
def test_the_example_of_a_policy_imitates_practises_and_is_saved(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "try_policy.py", "adding_a_policy.md")
    assert rate(printed, "after") > rate(printed, "before") + 0.1
    assert "saved and loaded: True" in printed


@pytest.mark.timeout(300)
def test_the_example_of_a_simulator_keeps_the_contract_and_is_practised_in(tmp_path: Path) -> None:
    printed = run_example(tmp_path, "try_slider.py", "adding_a_policy.md", "adding_a_simulator.md")
    assert rate(printed, "after") > rate(printed, "before") + 0.05
    assert "refused: slider/stop-at-mark, initial state" in printed
    assert "all 1 iterations done" in printed
