"""`ript check TASK`: the checker of the contract, for any suite, in words."""

from __future__ import annotations

import json
import sys

import pytest

from ript.cli.main import main
from ript.core.errors import ConfigError
from ript.core.registry import Registry, kinds, suites
from ript.sims.toy.suite import SUITE, ToySimulator

GET = Registry.get


def run(capsys, *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


class Leaky(ToySimulator):
    drift = 0.0

    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        self.drift += 0.01
        self._dot = self._dot + self.drift
        return result


def make_leaky(key, options):
    return Leaky(key.removeprefix("toy/"))


def test_a_kind_of_policy_that_cannot_be_used_does_not_keep_a_task_from_being_checked(capsys, monkeypatch):
    def get(self, name):
        if self is kinds:
            raise ConfigError(f"kind of policy {name!r} is claimed twice")
        return GET(self, name)

    monkeypatch.setattr(Registry, "get", get)
    code, out, _ = run(capsys, "toy/reach", "--states", "3", "--sim.image_size=16")
    assert code == 0 and "\nsound: " in out
    code, _, err = run(capsys, "toy/reach", "--sim.image_sise=16")
    assert code == 2
    assert "unknown setting of simulators of suite toy 'sim.image_sise': did you mean sim.image_size" in err


def test_a_sound_task_is_said_to_be_so(capsys):
    code, out, _ = run(capsys, "toy/reach", "--states", "5")
    assert code == 0 and out.endswith("sound: 10 of 10 checks that apply hold\n")
    assert "used equals fresh" in out and "solved by doing nothing" in out


def test_the_suite_need_not_be_said_where_the_name_is_in_one_alone(capsys):
    code, out, _ = run(capsys, "reach-corner", "--states", "2", "--json")
    document = json.loads(out)
    assert code == 0 and document["task"] == "toy/reach-corner" and document["sound"] is True
    assert {check["passed"] for check in document["checks"]} == {True, None}


def test_a_task_that_is_not_sound_has_an_exit_code_of_its_own(capsys, monkeypatch):
    monkeypatch.setitem(suites._loaded, "toy", SUITE.__class__(**{**vars(SUITE), "make": make_leaky}))
    code, out, _ = run(capsys, "toy/reach", "--states", "2")
    assert code == 1 and "FAILS" in out and "means: rollouts from one state would not start or run equal" in out
    assert out.splitlines()[-1].startswith("not sound: ")


@pytest.mark.parametrize(
    "words, message",
    [
        (("toy/reech",), "did you mean reach"),
        (("toy/reach", "--states", "0"), "--states must be at least 1, got 0"),
        (("toy/reach", "--sim.suite=metaworld"), "toy/reach is of suite toy: leave out --sim.suite"),
        (("toy/reach", "--learn.epochs=2"), "learn.epochs has no effect in `ript check`"),
        (("toy/reach", "--sim.image_size=2"), "sim.image_size"),
    ],
)
def test_what_cannot_be_checked_is_refused(words, message, capsys):
    code, out, err = run(capsys, *words)
    assert code == 2 and message in err and out == ""


def test_a_suite_in_a_file_of_ones_own_is_checked_by_its_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_suite.py").write_text(
        "from dataclasses import replace\nfrom typing import Literal\n"
        "from ript.sims.toy.options import ToyOptions\nfrom ript.sims.toy.suite import SUITE as TOY\n\n\n"
        "class Options(ToyOptions):\n    suite: Literal['own_suite:SUITE'] = 'own_suite:SUITE'\n\n\n"
        "SUITE = replace(TOY, name='own_suite:SUITE', options=Options, tasks=lambda: 1 / 0)\n"
    )
    code, _, err = run(capsys, "--sim.suite=own_suite:SUITE", "reach", "--states", "2")
    assert code == 2 and "simulator suite 'own_suite:SUITE': tasks raised ZeroDivisionError" in err
    code, _, err = run(capsys, "--sim.suite=toy", "gym/FetchReach-v4")
    assert code == 2 and "gym/FetchReach-v4 is of suite gym: leave out --sim.suite" in err
