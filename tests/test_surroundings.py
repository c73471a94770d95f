"""What a process may be given to run in: optimised Python, `~` in options, a deleted folder, an odd environment."""

from __future__ import annotations

import argparse
import ast
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from toy_runs import initial_states, lively_policy, toy_config, toy_demos

import ript
from ript import train_rl
from ript.cli.main import main, make_parser
from ript.core.disk import unexpected
from ript.core.errors import RunError
from ript.policies.loading import load_policy
from ript.sft import train_sft

ROOT = Path(__file__).parent.parent


# ---------------------------------------------------------------------- optimised Python


OPTIMISED = """
import sys
from ript.cli.main import main
assert False, "this is not optimised"
sys.exit(main(["recipes"]) or main(["recipes", "smoke"]) or main(["tasks", "reach"]))
"""


def test_python_without_docstrings_and_asserts_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "-c", OPTIMISED], capture_output=True, encoding="utf-8", env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in (["recipes"], ["recipes", "smoke"], ["tasks", "reach"]):
        assert main(words) == 0
    assert done.stdout == capsys.readouterr().out


def only_for_types(test: ast.expr) -> bool:
    """An assertion that tells a type checker what is so anyway: `x is not None`, `isinstance(x, y)`, and both."""
    if isinstance(test, ast.BoolOp):
        return all(map(only_for_types, test.values))
    if isinstance(test, ast.Compare):
        return isinstance(test.ops[0], ast.IsNot) and ast.unparse(test.comparators[0]) == "None"
    return isinstance(test, ast.Call) and ast.unparse(test.func) == "isinstance"


@pytest.mark.parametrize("path", sorted(Path(ript.__file__).parent.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_is_checked_by_an_assertion_which_optimised_python_leaves_out(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Assert) and not only_for_types(node.test)]
    assert [f"line {node.lineno}: {ast.unparse(node)}" for node in found] == []


# ---------------------------------------------------------------------- ~


def options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options(inner)
        else:
            yield action


def test_every_option_that_takes_a_file_or_folder_expands_a_tilde() -> None:
    places = [a for a in options(make_parser()) if str(a.metavar).startswith(("DIR", "FILE"))]
    places += [a for a in options(make_parser()) if a.dest in ("recipe", "config")]
    assert len(places) > 25
    assert [a.dest for a in places if a.type is not os.path.expanduser] == []


def test_a_tilde_is_expanded_by_commands_settings_and_functions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    config = toy_config(iterations=0, eval={"trials": 1, "every": 0})
    toy_demos(Path("~/demos.hdf5"), config, "reach-centre")
    assert main(["demos", "info", "~/demos.hdf5"]) == 0
    lively_policy(config).save_pretrained("~/policy")
    result = train_rl(config, "~/policy", "~/run")
    assert result.policy == home / "run" / "policy" and load_policy("~/run/policy") is not None
    assert main(["report", "~/run", "--out=~/page.html"]) == 0
    assert main(["export", "quest", "~/run/policy", "~/a.pth"]) == 1  # a small policy: but the folder was found
    with initial_states(config.sim, ("toy/reach-centre",), 0, ("~/demos.hdf5",)) as source:
        assert len(source.tasks) == 1
    assert os.listdir(here) == []
    assert sorted(os.listdir(home)) == ["demos.hdf5", "page.html", "policy", "run"]


# ---------------------------------------------------------------------- a folder that is not there any more


def test_a_deleted_current_folder_is_named_and_full_paths_do_not_need_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(iterations=0, eval={"trials": 1, "every": 0})
    gone = tmp_path / "gone"
    gone.mkdir()
    with chdir(gone):
        gone.rmdir()
        assert main(["recipes"]) == 0
        train_sft(config, [toy_demos(tmp_path / "d.hdf5", config, "reach-centre")], tmp_path / "sft")
        lively_policy(config).save_pretrained(tmp_path / "policy")
        assert main(["report", "run", "--out", "page.html"]) == 1
        assert "the current folder, which does not exist any more: change to one that does" in capsys.readouterr().err
        with pytest.raises(RunError, match="the current folder, which does not exist any more"):
            train_rl(config, tmp_path / "policy", "run")
        assert train_rl(config, tmp_path / "policy", tmp_path / "run").policy == tmp_path / "run" / "policy"
        os.chdir(tmp_path)


DELETED = """
import os, shutil, sys
base = sys.argv[1]
os.chdir(os.path.join(base, "gone"))
os.rmdir(os.path.join(base, "gone"))
import ript
from ript.cli.main import main
words = ["eval", "--policy", base + "/policy", "--tasks", "reach", "--trials", "1", "--horizon", "4", "--workers", "1"]
codes = [main(words), main(["report", "run", "--out", base + "/page.html"]), main(["doctor"])]
sys.exit(f"codes {codes}")
"""


def test_programs_that_begin_in_a_deleted_folder_work_with_full_paths(tmp_path: Path) -> None:
    """Torch's libraries end a process that loads them there: the command, workers and doctor's children."""
    lively_policy(toy_config()).save_pretrained(tmp_path / "policy")
    (tmp_path / "gone").mkdir()
    done = subprocess.run([sys.executable, "-c", DELETED, tmp_path], capture_output=True, encoding="utf-8", check=False)
    assert "codes [0, 1, 1]" in done.stderr
    assert "current folder" in done.stderr and "MKL" not in done.stdout + done.stderr
    assert "MISSING  disk: the current folder was deleted" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("MISSING  pack")] == []


def test_an_error_of_the_system_that_nobody_expected_has_its_path_and_a_remedy(tmp_path: Path) -> None:
    for number in errno.errorcode:
        said = unexpected(OSError(number, os.strerror(number), str(tmp_path / "x")))
        assert said.startswith(f"{tmp_path / 'x'} cannot be used: ") and not said.endswith(": ")
    assert unexpected(OSError(errno.EIO, "Input/output error")) == "Input/output error"


# ---------------------------------------------------------------------- make


def test_make_works_with_an_environment_whose_name_has_spaces(tmp_path: Path) -> None:
    place = tmp_path / "my own env"
    (place / "bin").mkdir(parents=True)
    for tool in ("python", "ruff", "mypy", "ript"):
        (place / "bin" / tool).write_text(f'#!/bin/sh\necho "ran {tool} $@"\n')
        (place / "bin" / tool).chmod(0o755)
    for round in ("first", "second"):
        done = subprocess.run(
            ["make", "-s", "-C", ROOT, f"VENV={place}", "check", "test", "bench", "quickstart"],
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert ("ran python -m pip install" in done.stdout) == (round == "first")
        for words in (
            "ran ruff check .",
            "ran mypy",
            "ran python -m pytest",
            "ran ript bench update",
            "ran ript quick",
        ):
            assert words in done.stdout
    assert sorted(os.listdir(place)) == [".installed", "bin"]


def test_a_python_whose_path_has_spaces_can_be_named(tmp_path: Path) -> None:
    python = tmp_path / "my python"
    python.symlink_to(sys.executable)
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "find_python"],
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.stdout.strip() == str(python), done.stderr
