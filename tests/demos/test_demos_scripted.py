"""Demonstrations by an expert of a user's own, "module:function"."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from ript.core.errors import ConfigError, SimulatorError, UnknownNameError
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.scripted import load_expert, with_expert
from ript.demos.verify import verify
from ript.sims.registry import make_simulator

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
TEXT = """
import numpy as np

number = 3
drawn = []

def to_the_goal(simulator, generator):
    drawn.append(generator.random())
    dot, goal = simulator._dot, simulator._goal
    return np.clip((goal - dot) / 0.15, -1, 1) + 0.01 * generator.standard_normal(2)

class Remembers:
    def __init__(self):
        self.steps = 0
    def __call__(self, simulator, generator):
        self.steps += 1
        assert self.steps <= 40, "not made anew"
        return to_the_goal(simulator, generator)

def raises(simulator, generator):
    raise KeyError("goal")

def closes(simulator, generator):
    raise GeneratorExit

def short(simulator, generator):
    return [0.0]
"""


@pytest.fixture
def experts(tmp_path, monkeypatch):
    """A folder with my_experts.py, which is the current one."""
    (tmp_path / "my_experts.py").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    sys.modules.pop("my_experts", None)
    sys.path[:] = before


def collected(expert: str, out: Path, *, workers: int = 0) -> dict:
    collect_demos(with_expert(make_simulator, expert), ["toy/reach"], 3, out, noise=0.1, every=1, workers=workers)
    demos = open_demos(out)
    return {demo.initial_state.id: demo for demo in demos.demos("toy/reach")}


@pytest.mark.parametrize("expert", ["my_experts:to_the_goal", "my_experts:Remembers"])
def test_a_function_and_a_class_of_a_users_own_make_demonstrations_that_replay(experts, expert):
    found = collected(expert, experts / "a.hdf5")
    assert len(found) == 3
    assert all(one.exact for one in verify(experts / "a.hdf5", make_simulator))


def test_the_file_does_not_depend_on_how_many_workers_made_it(experts):
    alone = collected("my_experts:to_the_goal", experts / "a.hdf5")
    beside = collected("my_experts:to_the_goal", experts / "b.hdf5", workers=2)
    assert alone.keys() == beside.keys()
    for key, demo in alone.items():
        assert np.array_equal(demo.actions, beside[key].actions)


def test_a_simulator_without_privileged_information_gives_none(experts):
    class Plain:
        def __init__(self, toy):
            self._toy = toy

        def __getattr__(self, name):
            if name in ("privileged", "expert_action"):
                raise AttributeError(name)
            return getattr(self._toy, name)

    make = with_expert(lambda key: Plain(make_simulator(key)), "my_experts:to_the_goal")
    collect_demos(make, ["toy/reach"], 1, experts / "c.hdf5", every=1)
    (demo,) = open_demos(experts / "c.hdf5").demos("toy/reach")
    assert demo.privileged is None


@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("my_experts", ConfigError, "expected MODULE:FUNCTION, such as my_file:reach"),
        ("no_such_file:reach", ConfigError, "there is no module no_such_file; start `ript` in the folder"),
        ("my_experts:to_the_gaol", UnknownNameError, "did you mean to_the_goal"),
        ("my_experts:number", ConfigError, "is 3, which cannot be called"),
    ],
)
def test_an_expert_that_is_not_there_is_refused_before_anything_is_made(experts, name, kind, message):
    with pytest.raises(kind, match=message):
        with_expert(make_simulator, name)


def test_a_file_that_cannot_be_imported_is_named(experts):
    (experts / "broken_experts.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="broken_experts cannot be imported: ZeroDivisionError"):
        load_expert("broken_experts:reach")


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_experts:raises", r"initial state \w+: the expert my_experts:raises raised KeyError: 'goal'"),
        ("my_experts:closes", r"initial state \w+: the expert my_experts:closes raised GeneratorExit"),
        ("my_experts:short", r"answered \[0\.0\]; expected 2 numbers in \[-1, 1\]"),
    ],
)
def test_what_an_expert_does_wrong_has_an_address(experts, name, message):
    with pytest.raises(SimulatorError, match=message):
        collected(name, experts / "a.hdf5")


@pytest.mark.parametrize(
    ("expert", "task"),
    [("reach", "FetchReach-v4"), ("push", "FetchPush-v4"), ("pick_and_place", "FetchPickAndPlace-v4")],
)
def test_the_experts_for_fetch_that_the_pages_show_solve_their_tasks(expert, task, tmp_path, monkeypatch):
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.chdir(EXAMPLES)
    make = with_expert(functools.partial(make_simulator, image_size=16), f"fetch_experts:{expert}")
    made = collect_demos(make, [f"gym/{task}"], 5, tmp_path / "fetch.hdf5", noise=0.2, max_tries_factor=1.2)
    assert made.demos == 5 and made.tries <= 6
