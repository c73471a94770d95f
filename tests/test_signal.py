"""Runs whose rollouts have nothing to compare, and states that need no policy."""

import dataclasses
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import lively_policy, toy_config

from ript.build import load_policy
from ript.errors import NoSignalError
from ript.metrics import Mean
from ript.report.run import read_config
from ript.rollout.sampling import Collection
from ript.sims import toy
from ript.sims.toy import ToySimulator
from ript.train_rl import RLResult, train_rl
from ript.types import Status

loop = importlib.import_module("ript.train_rl")  # `ript.train_rl` is the function


def run(folder: Path, **changes: Any) -> RLResult:
    config = toy_config(**changes)
    return train_rl(config, lively_policy(config), folder / "run")


def collections(monkeypatch: pytest.MonkeyPatch, *successes: str) -> None:
    """Iterations whose groups of rollouts end like these words: "+-" is a group of a success and a failure."""
    waiting = [word.split() for word in successes]
    original = loop.collect_groups

    def scripted(*args: Any, **settings: Any) -> Collection:
        taken = original(*args, **settings)
        groups = []
        for group, word in zip(taken.attempted, waiting.pop(0), strict=False):
            ends = [Status.SUCCESS if letter == "+" else Status.FAILURE for letter in word]
            rollouts = [dataclasses.replace(r, status=end) for r, end in zip(group.rollouts, ends, strict=False)]
            groups.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
        rewards = [rollout.reward for group in groups for rollout in group.rollouts if rollout.reward is not None]
        return dataclasses.replace(
            taken, groups=tuple(g for g in groups if g.has_signal), attempted=tuple(groups),
            metrics=taken.metrics | {"success": Mean(sum(rewards), len(rewards))},
        )  # fmt: skip

    monkeypatch.setattr(loop, "collect_groups", scripted)


ALONE = {"iterations": 9, "eval": {"every": 0, "trials": 2}, "sampling": {"dynamic": False, "groups": 3}}


def test_a_run_whose_states_are_solved_always_or_never_says_so_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections(monkeypatch, *["++++ ---- ---- ---- ---- ----"] * 3)
    with pytest.raises(NoSignalError, match=r"both solved and failed in 3 iterations in a row \(1 of the last 6 were"):
        run(tmp_path, **ALONE | {"sampling": {"dynamic": False, "groups": 6}})
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_has_learned_and_has_no_signal_any_more_keeps_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three initial states an iteration, it takes six iterations: few states may fail by chance."""
    collections(monkeypatch, "++-- ++++ ----", *["++++ ++++ ----"] * 5, "++-- ++++ ----", *["++++ ++++ ----"] * 6)
    result = run(tmp_path, **ALONE | {"iterations": 20})
    assert result.iterations == 13 and result.reason.startswith("stopped: no initial state was both solved and failed")
    assert json.loads((result.folder / "result.json").read_text())["reason"] == result.reason
    assert load_policy(result.policy) != load_policy(result.folder / "start")


def test_states_that_are_solved_by_doing_nothing_are_named_before_practice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy, "CLEARANCE", 0.0)
    result = run(tmp_path, iterations=1, eval={"every": 0, "trials": 2})
    found = re.search(r"reach-centre: (\d+) of the first 16 training states are .* nothing for 10 steps \((.*)\)",
                      capsys.readouterr().err)  # fmt: skip
    assert found
    named = found[2].split(", ")
    assert 0 < len(named) == int(found[1]) < 16
    (note,) = read_config(result.folder)["config"]["notes"]
    assert all(name in note for name in named)
    with ToySimulator("reach-centre") as simulator:
        for state in simulator.initial_states(16):
            simulator.reset(state)
            assert simulator.step_chunk(np.zeros((1, 2))).success == (state.id in named)


def test_a_run_that_makes_a_policy_worse_hands_over_the_one_from_before_and_names_the_tasks_that_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that ruins the policy; without validation there is no choice, and the loss is told."""
    ruinous = {
        "iterations": 2, "tasks": ("reach-centre", "reach-left"), "sim": {"horizon": 24},
        "learn": {"learning_rate": 1.0, "target_kl": 0.0, "adapt_kl": 0.0, "epochs": 1},
    }  # fmt: skip
    kept = run(tmp_path / "kept", **ruinous, eval={"trials": 20, "every": 1, "every_trials": 20, "mode": "sampled"})
    assert json.loads((kept.folder / "result.json").read_text())["policy_iteration"] == 0
    assert load_policy(kept.policy).weights().keys() == load_policy(kept.folder / "start").weights().keys()
    assert kept.after["sampled"].per_state == kept.before["sampled"].per_state
    told = capsys.readouterr().err
    assert "no iteration was better on validation states than the policy from before" in told
    assert "practice cost" not in told and load_policy(kept.policy).card["tasks that lost by practice"] == "none"

    spoilt = run(tmp_path / "spoilt", **ruinous, eval={"trials": 20, "every": 0, "mode": "sampled"})
    worse = {
        task for task, was in spoilt.before["sampled"].tasks.items()
        if spoilt.after["sampled"].tasks[task].rate < was.rate
    }  # fmt: skip
    told = capsys.readouterr().err
    assert worse and {task for task in ruinous["tasks"] if f"practice cost {task}: -" in told} == worse
    assert set(load_policy(spoilt.policy).card["tasks that lost by practice"]) == worse
