"""Demonstrations of people: recorded actions, replayed and looked at."""

import functools
from argparse import Namespace

import numpy as np
import pytest
from point import Point

from ript.build import demo_source
from ript.cli.arguments import _suite_of_tasks
from ript.config import overrides
from ript.config.sections import Config
from ript.core.errors import ConfigError, SimulatorError, UnknownNameError
from ript.core.plugins import Suite
from ript.core.registry import suites
from ript.core.types import Recording
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.verify import verify


class Recorded(Point):
    """With two recordings: the expert's way from other states than it demonstrates from, and some more actions."""

    def __init__(self, key, turned=1.0):
        super().__init__(key)
        self._turned = turned

    def recordings(self):
        found = []
        for state in self.initial_states(2, split="train"):
            place, goal = state.state[:2].copy(), state.state[2:]
            actions = []
            for _ in range(40):
                actions.append(np.clip((goal - place) / 0.1, -1, 1))
                place += 0.1 * actions[-1]
            found.append(Recording(initial_state=state, actions=self._turned * np.float32(actions)))
        return found


def test_recorded_actions_are_replayed_until_they_succeed_and_looked_at(tmp_path):
    out = tmp_path / "human.hdf5"
    made = collect_demos(Recorded, ["point/red", "point/blue"], 2, out, source="human", every=3)
    assert (made.demos, made.tries) == (4, 4)
    demos = list(open_demos(out).demos())
    recorded = Recorded("point/red").recordings()
    for demo, recording in zip(demos[:2], recorded, strict=True):
        assert demo.initial_state.id == recording.initial_state.id
        assert 0 < len(demo) < 40 and np.array_equal(demo.actions, recording.actions[: len(demo)])
        assert np.array_equal(demo.executed_actions, demo.actions)
        assert demo.frame_steps.tolist() == list(range(0, len(demo), 3)) and demo.images["top"].any()
    (file,) = open_demos(out).info()["files"]
    assert file["settings"] == {"per_task": 2, "source": "human", "seed": 0, "noise": 0.0, "every": 3}
    assert all(result.exact for result in verify(out, Point))


def test_workers_replay_recordings_too(tmp_path):
    out = tmp_path / "human.hdf5"
    assert collect_demos(Recorded, ["point/red"], 2, out, source="human", workers=2).demos == 2


def test_recorded_actions_that_do_not_solve_the_task_are_an_error_with_an_address(tmp_path):
    with pytest.raises(
        SimulatorError, match=r"point/red, train seed 0 #0: its 40 recorded actions do not solve the task"
    ):
        collect_demos(functools.partial(Recorded, turned=-1.0), ["point/red"], 1, tmp_path / "f.hdf5", source="human")
    assert list(tmp_path.iterdir()) == []


def test_more_than_there_are_and_a_simulator_without_recordings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="point/red has 2 recorded demonstrations"):
        collect_demos(Recorded, ["point/red"], 3, tmp_path / "f.hdf5", source="human")
    with pytest.raises(ConfigError, match="brings no demonstrations of people"):
        collect_demos(Point, ["point/red"], 1, tmp_path / "f.hdf5", source="human")
    with pytest.raises(UnknownNameError, match="source of demonstrations"):
        collect_demos(Point, ["point/red"], 1, tmp_path / "f.hdf5", source="humans")


def test_who_demonstrates_is_what_was_asked_for_or_what_the_suite_has():
    toy = overrides.apply(Config(), {"sim.suite": ["toy"]})
    assert demo_source(toy) == "expert"
    with pytest.raises(ConfigError, match=r"demos.source = human: suite toy has none; it has expert demonstrations"):
        demo_source(overrides.apply(toy, {"demos.source": ["human"]}))
    gym = overrides.apply(Config(), {"sim.suite": ["gym"]})
    assert demo_source(gym) is None
    assert demo_source(overrides.apply(gym, {"demos.expert": ["my_file:reach"]})) == "expert"


def test_the_target_may_be_demonstrated_by_others_than_the_tasks_for_pretraining():
    both = overrides.apply(Config(), {"sim.suite": ["libero"], "demos.source": ["expert"]})
    assert demo_source(both) == demo_source(both, target=True) == "expert"
    people = overrides.apply(both, {"demos.target_source": ["human"]})
    assert (demo_source(people), demo_source(people, target=True)) == ("expert", "human")
    toy = overrides.apply(Config(), {"sim.suite": ["toy"], "demos.target_source": ["human"]})
    with pytest.raises(ConfigError, match="target_source = human: suite toy has none"):
        demo_source(toy, target=True)


def test_patterns_stand_for_the_tasks_of_a_suite():
    toy: Suite = suites.get("toy")
    assert [task.name for task in toy.expanded(["reach*"])] == [
        t.name for t in toy.tasks() if t.name.startswith("reach")
    ]
    assert toy.lists_all(["toy/reach*"]) and not toy.lists_all(["reach*", "nothing*"])
    with pytest.raises(UnknownNameError):
        toy.expanded(["nothing*"])


@pytest.mark.parametrize(
    "recipe, words, suite",
    [
        ("quickstart", ["reach-centre"], ["toy"]),
        ("smoke", ["MT10", "push-v3"], ["metaworld"]),
        ("quickstart", ["reach"], None),  # Meta-World's, as the recipe is, though toy has one of that name, too
        ("quickstart", ["MT10,reach-centre"], None),
    ],
)
def test_tasks_that_one_other_suite_alone_lists_say_which_suite_is_meant(recipe, words, suite):
    assert _suite_of_tasks(words, Namespace(recipe=recipe)).get("sim.suite") == suite
