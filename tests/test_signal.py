"""Runs whose rollouts have nothing to compare, and states that need no policy."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import lively_policy, toy_config

from ript.core.errors import NoSignalError
from ript.core.metrics import Mean
from ript.core.types import EvalResult, Status
from ript.evaluation import tally
from ript.policies.loading import load_policy
from ript.rl import RLResult, train_rl
from ript.rollout.sampling import Collection, Gathering
from ript.run.measure import Measurements
from ript.run.reading import read_config
from ript.run.rl_progress import Progress, iteration_line
from ript.sims.toy import simulator as toy
from ript.sims.toy.simulator import ToySimulator


def run(folder: Path, **changes: Any) -> RLResult:
    config = toy_config(**changes)
    return train_rl(config, lively_policy(config), folder / "run")


def collections(monkeypatch: pytest.MonkeyPatch, *successes: str) -> None:
    """Iterations whose groups of rollouts end like these words: "+-" is a group of a success and a failure."""
    waiting = [word.split() for word in successes]
    original = Gathering.collection

    def scripted(gathering: Gathering) -> Collection:
        taken = original(gathering)
        groups = []
        for group, word in zip(taken.attempted, waiting.pop(0), strict=False):
            ends = [Status.SUCCESS if letter == "+" else Status.FAILURE for letter in word]
            rollouts = [dataclasses.replace(r, status=end) for r, end in zip(group.rollouts, ends, strict=False)]
            groups.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
        rewards = [rollout.reward for group in groups for rollout in group.rollouts if rollout.reward is not None]
        return dataclasses.replace(
            taken,
            groups=tuple(g for g in groups if g.has_signal),
            attempted=tuple(groups),
            metrics=taken.metrics | {"success": Mean(sum(rewards), len(rewards))},
        )

    monkeypatch.setattr(Gathering, "collection", scripted)


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
    found = re.search(
        r"reach-centre: (\d+) of the first 16 training states are .* nothing for 10 steps \((.*)\)",
        capsys.readouterr().err,
    )
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
        "iterations": 2,
        "tasks": ("reach-centre", "reach-left"),
        "sim": {"horizon": 24},
        "learn": {"learning_rate": 1.0, "target_kl": 0.0, "adapt_kl": 0.0, "epochs": 1},
    }
    kept = run(tmp_path / "kept", **ruinous, eval={"trials": 20, "every": 1, "every_trials": 20, "mode": "sampled"})
    assert json.loads((kept.folder / "result.json").read_text())["policy_iteration"] == 0
    assert load_policy(kept.policy).weights().keys() == load_policy(kept.folder / "start").weights().keys()
    assert kept.after["sampled"].per_state == kept.before["sampled"].per_state
    told = capsys.readouterr().err
    assert "no iteration was better on validation states than the policy from before" in told
    assert "practice cost" not in told and load_policy(kept.policy).card["tasks that lost by practice"] == "none"

    spoilt = run(tmp_path / "spoilt", **ruinous, eval={"trials": 20, "every": 0, "mode": "sampled"})
    worse = {
        task
        for task, was in spoilt.before["sampled"].tasks.items()
        if spoilt.after["sampled"].tasks[task].rate < was.rate
    }
    told = capsys.readouterr().err
    assert worse and {task for task in ruinous["tasks"] if f"practice cost {task}: -" in told} == worse
    assert set(load_policy(spoilt.policy).card["tasks that lost by practice"]) == worse


RUIN = {"learning_rate": 100.0, "adapt_kl": 0.0, "target_kl": 0.05}


def test_updates_that_keep_no_step_lower_the_rate_until_one_does_and_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"eval": {"every": 0, "trials": 2}, "sampling": {"group_size": 8, "groups": 6}, "learn": RUIN}
    result = run(tmp_path / "two", **few, iterations=2)
    assert result.reason == "all 2 iterations done, and none changed the policy"
    assert (result.policy / "model.safetensors").read_bytes() == (
        result.folder / "start" / "model.safetensors"
    ).read_bytes()
    told = [line for line in capsys.readouterr().err.splitlines() if "no step was kept" in line]
    assert [line.rsplit(" ", 1)[1] for line in told] == ["25", "6.2"] and "above learn.target_kl = 0.05" in told[0]
    result = run(tmp_path / "many", **few, iterations=10)
    assert result.reason == "all 10 iterations done"
    steps = [
        json.loads(line).get("update/optimiser_steps")
        for line in (result.folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps[0] == 0 and sum(step for step in steps if step) > 0
    assert "the update ended early, its last step taken back: KL " in capsys.readouterr().err


def test_a_few_states_that_are_solved_by_chance_do_not_end_a_run_as_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections(monkeypatch, *["++++ ++++ ++++"] * 3, "++++ ++-- ++++", *["++++ ++++ ++++"] * 9)
    result = run(tmp_path, **ALONE | {"iterations": 20})
    assert result.iterations == 4 + 6 and result.reason.startswith("solved")  # 18 groups in a row


def test_a_run_that_learned_and_then_fails_always_hands_over_its_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections(monkeypatch, "++-- ++++ ----", *["---- ---- ----"] * 6)
    result = run(tmp_path, **ALONE | {"iterations": 20, "eval": {"trials": 4, "every": 1, "every_trials": 4}})
    assert result.reason == "stopped: every rollout failed in 6 iterations in a row"
    assert load_policy(result.policy) == load_policy(result.folder / "best")


def test_advantages_below_the_least_are_no_signal_and_the_setting_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collections(monkeypatch, *["++-- ++-- ++--"] * 6)
    with pytest.raises(NoSignalError, match=r"advantage of learn.min_abs_advantage = 0.9 in 6 iterations"):
        run(tmp_path, **ALONE, learn={"min_abs_advantage": 0.9})  # these have 0.67


def test_a_task_without_a_signal_among_others_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collections(monkeypatch, *["++-- ---- ++-- ----"] * 5)
    alone = ALONE | {"iterations": 5, "sampling": {"dynamic": False, "groups": 4}}
    run(tmp_path, **alone, tasks=("reach-centre", "reach-left"))
    told = capsys.readouterr().err
    assert told.count("reach-left: no group with a signal in 3 iterations in a row") == 1
    assert "reach-centre: no group" not in told


def test_errors_decide_neither_which_policy_is_the_best_nor_which_task_has_lost() -> None:
    """Compared are the states that gave no error in either: here nothing changed on them."""

    def result(*ends: Status) -> EvalResult:
        per_state = {"reach": [(f"state {i}", end.value) for i, end in enumerate(ends)]}
        return EvalResult(
            policy="p", seed=0, mode="greedy", tasks={"reach": tally(ends)}, total=tally(ends), per_state=per_state
        )

    good, bad, broken = Status.SUCCESS, Status.FAILURE, Status.ERROR
    measured = Measurements.__new__(Measurements)
    measured.config = toy_config(eval={"mode": "greedy"})
    before = result(good, good, bad, bad)
    assert measured.lost({"greedy": before}, {"greedy": result(broken, good, bad, bad)}) == {}
    assert set(measured.lost({"greedy": before}, {"greedy": result(good, bad, broken, broken)})) == {"reach"}

    class Logged:
        def evals(self) -> list[dict[str, Any]]:
            return [{"states": "validation", "mode": "greedy", "iteration": 2, "per_state": before.per_state}]

    measured.run = Logged()  # type: ignore[assignment]
    at = Progress(best_success=0.5, best_iteration=2)
    assert not measured._is_best(result(good, bad, broken, broken), at)  # 1 of 2, and one state lost
    assert measured._is_best(result(broken, good, bad, bad), at)  # 1 of 3, and nothing lost
    assert not measured._is_best(result(broken, broken, broken, broken), at)


def test_the_line_of_an_iteration_leaves_out_the_entropy_of_a_density_that_has_none() -> None:
    row = {
        "rollout/success": 0.5,
        "rollout/attempted": 3,
        "rollout/signal_share": 2 / 3,
        "time/rollout": 1.0,
        "time/update": 2.0,
    }
    row |= {"update/kl_last": 0.1, "update/clip_fraction": 0.2}
    assert "kl 0.100, clipped 0.20, 1.0 s rollouts" in iteration_line(1, row)
    assert "clipped 0.20, entropy -1.25, 1.0 s" in iteration_line(1, row | {"update/entropy": -1.25})
    # without dynamic sampling groups without a signal are accepted too, and are not counted as having one
    assert "2/3 groups with signal" in iteration_line(1, row | {"rollout/accepted": 3})
    nothing = row | {"rollout/attempted": 0, "rollout/signal_share": float("nan")}
    assert "0/0 groups with signal" in iteration_line(1, nothing)
