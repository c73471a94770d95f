"""The loop: exact resume, the choice of the best policy, and how runs end."""

import dataclasses
import json
import math
import re
import resource
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_runs import Stopped, initial_states, lively_policy, stop_in, toy_config, toy_demos, weights, without_times

from ript import rl as loop
from ript.build import make_env_pool, simulator_factory
from ript.config.sections import Config
from ript.core.errors import (
    ConfigError,
    DataError,
    ErrorRateExceeded,
    NoSignalError,
    NotFiniteError,
    PolicyError,
    RatioError,
    RunError,
    SimulatorError,
    WorkerError,
)
from ript.core.interfaces import EnvPool
from ript.core.options import replace
from ript.core.types import ChunkResult, EvalResult, InitialState, Reason, Rollout, Status, Task
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.initial_states import demo_initial_states
from ript.evaluation import evaluate, tally
from ript.policies.loading import load_policy
from ript.policies.quest import stages
from ript.policies.quest.policy import QuestPolicy
from ript.report.read import read_run
from ript.report.tables import change, points
from ript.rl import RLResult, train_rl
from ript.rollout.sampling import Collection, Gathering, collect_groups
from ript.run import measure as measuring
from ript.run import start as starting
from ript.run.checkpoint import list_checkpoints, read_checkpoint
from ript.run.folder import RunFolder
from ript.run.reading import read_config, read_rows
from ript.run.states import InitialStates
from ript.sims.toy import simulator as toy
from ript.sims.toy.simulator import ToySimulator


def run(folder: Path, config: Config | None = None, policy: QuestPolicy | None = None) -> RLResult:
    config = config or toy_config()
    return train_rl(config, policy or lively_policy(config), folder)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> RLResult:
    """A run that nothing interrupts."""
    return run(tmp_path_factory.mktemp("reference") / "run")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------- the same again


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(reference: RLResult, tmp_path: Path) -> None:
    same = run(tmp_path / "same")
    assert weights(same.folder) == weights(reference.folder)
    assert without_times(same.folder) == without_times(reference.folder)
    assert (same.rollouts, same.env_steps, same.reason) == (reference.rollouts, reference.env_steps, reference.reason)
    other = run(tmp_path / "other", toy_config(seed=1))
    assert weights(other.folder) != weights(reference.folder)
    ids = [set(dict(r.before["sampled"].per_state["reach-centre"])) for r in (reference, other)]
    assert ids[0] == ids[1]  # the test states belong to eval.seed


INTERRUPTIONS: dict[str, tuple[str, Callable[..., bool] | int]] = {
    "before the first iteration": ("log_eval", lambda call, *_: call == 2),
    "logging iteration 1": ("log", 1),
    "logging iteration 2": ("log", 2),
    "logging iteration 3": ("log", 3),
    "writing checkpoint 0": ("save_checkpoint", 0),
    "writing checkpoint 2": ("save_checkpoint", 2),
    "validating after iteration 2": ("log_eval", lambda call, at, *_: at == 2),
    "keeping the best": ("replace", lambda call, *_: call == 2),
    "measuring at the end": ("log_eval", lambda call, at, *_: at == 3 and call > 5),
    "writing the policy": ("replace", lambda call, folder: folder.name == "policy"),
    "the last word": ("finish", lambda *_: True),
}


@pytest.mark.parametrize("moment", INTERRUPTIONS)
def test_a_run_stopped_at_any_moment_goes_on_to_the_same_end(
    reference: RLResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with monkeypatch.context() as patch:
        stop_in(patch, *INTERRUPTIONS[moment])
        with pytest.raises(Stopped):
            run(tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    torch.manual_seed(99)  # the state of this process does not matter
    resumed = train_rl(Config(), None, tmp_path / "run", resume=True)
    assert weights(resumed.folder) == weights(reference.folder)
    assert without_times(resumed.folder) == without_times(reference.folder)
    for mode in ("sampled", "greedy"):
        assert resumed.before[mode].per_state == reference.before[mode].per_state
        assert resumed.after[mode].per_state == reference.after[mode].per_state
    assert (resumed.rollouts, resumed.env_steps) == (reference.rollouts, reference.env_steps)
    assert not [path.name for path in tmp_path.glob("run/**/.*") if path.name != ".lock"]


def test_a_run_stopped_twice_goes_on_to_the_same_end(
    reference: RLResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment, resume in ((1, False), (3, True)):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_in(patch, "log", moment)
            train_rl(toy_config(), lively_policy(toy_config()), tmp_path / "run", resume=resume)
    resumed = train_rl(Config(), None, tmp_path / "run", resume=True)
    assert weights(resumed.folder) == weights(reference.folder)


def test_a_finished_run_that_is_resumed_stays_what_it_is(reference: RLResult) -> None:
    before = weights(reference.folder), without_times(reference.folder)
    train_rl(Config(), None, reference.folder, resume=True)
    assert (weights(reference.folder), without_times(reference.folder)) == before


@pytest.mark.parametrize("more", [{}, {"iterations": 4}])
def test_a_finished_run_without_its_checkpoints_is_refused_and_stays_what_it_is(
    reference: RLResult, tmp_path: Path, more: dict[str, int]
) -> None:
    folder = shutil.copytree(reference.folder, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    before = weights(folder), without_times(folder)
    said = r"run has ended, and its checkpoints are gone.*ript rl --recipe NAME --policy .*/run/policy"
    with pytest.raises(RunError, match=said):
        train_rl(toy_config(**more), None, folder, resume=True, asked=list(more))
    assert (weights(folder), without_times(folder)) == before and (folder / "result.json").exists()


def test_a_run_whose_best_policy_is_gone_goes_on_with_it_where_it_is_elsewhere(
    reference: RLResult, tmp_path: Path
) -> None:
    folder = shutil.copytree(reference.folder, tmp_path / "run")
    shutil.rmtree(folder / "best")  # the policy is the same one
    train_rl(Config(), None, folder, resume=True)
    assert (weights(folder), without_times(folder)) == (weights(reference.folder), without_times(reference.folder))


def test_a_run_whose_best_policy_is_lost_says_so_and_chooses_among_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    successes = iter([2, 4, 1, 0, 0, 0, 0, 0])

    def scripted(self: measuring.Measurements, states: object, modes: tuple[str, ...], at: Any, *rest: Any) -> Any:
        results = evaluated(self, states, modes, at, *rest)
        if states is not self.validation:
            return results
        (result,), n = results.values(), next(successes)
        statuses = ["success"] * n + ["failure"] * (5 - n)
        (ids,) = ([state for state, _ in rows] for rows in result.per_state.values())
        total = tally([Status(status) for status in statuses])
        found = {"per_state": {"reach-centre": list(zip(ids, statuses, strict=True))}}
        return {modes[0]: dataclasses.replace(result, total=total, tasks={"reach-centre": total}, **found)}

    evaluated = measuring.Measurements._evaluate
    monkeypatch.setattr(measuring.Measurements, "_evaluate", scripted)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 3)
        run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    resumed = train_rl(Config(), None, tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "is gone, and with it the best policy so far, of iteration 1 (80% of validation states)" in said
    assert resumed.iterations == 3 and json.loads((resumed.folder / "result.json").read_text())["policy_iteration"] in (
        2,
        3,
    )


def test_practice_does_not_go_on_from_other_demonstrated_states_than_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, file = toy_config(iterations=2), tmp_path / "d.hdf5"
    toy_demos(file, config, "reach-centre")
    config = replace(config, sampling=replace(config.sampling, demos=(str(file),)))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 2)
        run(tmp_path / "run", config)
    kept = file.read_bytes()
    collect_demos(simulator_factory(config.sim), ["toy/reach-centre"], 2, file, every=1, seed=1)
    with pytest.raises(RunError, match=r"what it began with.*the initial states of sampling\.demos are others"):
        train_rl(Config(), None, tmp_path / "run", resume=True)
    assert len(rows(tmp_path / "run")) == 1
    file.write_bytes(kept)
    assert train_rl(Config(), None, tmp_path / "run", resume=True).iterations == 2


def test_practice_that_was_killed_before_it_kept_its_policy_does_not_begin_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(iterations=1)
    lively_policy(config).save_pretrained(tmp_path / "policy")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "change_settings", lambda *_: True)
        train_rl(config, tmp_path / "policy", tmp_path / "run")
    lively_policy(config, seed=2).save_pretrained(tmp_path / "policy")
    with pytest.raises(RunError, match=r"what it began with.*the policy is another"):
        train_rl(Config(), None, tmp_path / "run", resume=True)
    lively_policy(config).save_pretrained(tmp_path / "policy")
    assert train_rl(Config(), None, tmp_path / "run", resume=True).iterations == 1


def test_workers_give_the_groups_and_the_evaluation_of_this_process(reference: RLResult, tmp_path: Path) -> None:
    """The first iteration, from equal weights: the same rollouts, up to the rounding of batched arithmetic."""
    config = toy_config(iterations=1, rollout={"workers": 2, "slots": 4})
    result = run(tmp_path / "run", config)
    for mode in ("sampled", "greedy"):
        assert result.before[mode].per_state == reference.before[mode].per_state
        assert result.before[mode].env_steps == reference.before[mode].env_steps
    (ours,), theirs = rows(result.folder), rows(reference.folder)[0]
    timing = ("time/", "total/seconds", "rollout/dropped", "update/update_seconds")
    for name in (name for name in theirs if not name.startswith(timing)):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name


def collect(pool: EnvPool, source: InitialStates) -> Collection:
    return collect_groups(pool, source.training(0), group_size=4, quota=3, max_attempts=6, seed=(0, 0))


def test_groups_do_not_depend_on_the_number_of_slots() -> None:
    config = toy_config()
    learner = lively_policy(config).tuned(config.policy, None)[0]
    found: list[Collection] = []
    with initial_states(config.sim, ("toy/reach-centre",), config.seed) as source:
        for slots in (1, 5, 64):
            pool = make_env_pool(config.sim, replace(config.rollout, slots=slots), learner)
            found.append(collect(pool, source))
            pool.close()
    for other in found[1:]:
        assert other.position == found[0].position
        for ours, theirs in zip(found[0].groups, other.groups, strict=True):
            assert ours.initial_state.id == theirs.initial_state.id
            for a, b in zip(ours.rollouts, theirs.rollouts, strict=True):
                assert same_rollout(a, b)


def same_rollout(a: Rollout, b: Rollout) -> bool:
    assert a.sample is not None and b.sample is not None and a.log_prob is not None and b.log_prob is not None
    return (
        a.status is b.status
        and a.env_steps == b.env_steps
        and np.array_equal(a.sample, b.sample)
        and np.allclose(a.log_prob, b.log_prob, atol=1e-5)
    )


def test_every_iteration_practises_on_fresh_states_with_fresh_noise_and_the_newest_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Collection] = []
    original = Gathering.collection
    monkeypatch.setattr(Gathering, "collection", lambda self: taken.append(original(self)) or taken[-1])
    result = run(tmp_path / "fresh", toy_config(eval={"trials": 2, "every": 0}))
    ids = [group.initial_state.id for collection in taken for group in collection.attempted]
    with initial_states(toy_config().sim, ("toy/reach-centre",), 0) as source:
        assert ids == [state.id for state in source.states("toy/reach-centre", len(ids), "train")]
    assert len(set(ids)) == len(ids) == result.rollouts / 4
    for iteration, collection in enumerate(taken):
        assert {r.policy_version for group in collection.groups for r in group.rollouts} == {iteration}
    taken.clear()
    fixed = {"states": 1, "groups": 1, "max_attempts": 1, "dynamic": False}
    run(tmp_path / "fixed", toy_config(iterations=2, sampling=fixed, learn={"learning_rate": 1e-12}, eval={"every": 0}))
    first, second = (collection.groups[0] for collection in taken)
    assert first.initial_state.id == second.initial_state.id
    assert not any(same_rollout(a, b) for a in first.rollouts for b in second.rollouts)


def test_the_initial_states_of_demonstrations_can_be_practised_on_and_are_found_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(sampling={"demos": ("two.hdf5",)}, eval={"trials": 2, "every": 0})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    toy_demos(tmp_path / "two.hdf5", config, "reach-centre")
    shown = [state.id for state in demo_initial_states(open_demos(tmp_path / "two.hdf5"))]
    taken: list[Collection] = []
    original = Gathering.collection
    with monkeypatch.context() as patch:
        patch.setattr(Gathering, "collection", lambda self: taken.append(original(self)) or taken[-1])
        whole = run(tmp_path / "whole", config)
    ids = [group.initial_state.id for collection in taken for group in collection.attempted]
    assert len(ids) > 2 and ids == [shown[i % 2] for i in range(len(ids))]
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 2)
        run(tmp_path / "stopped", config)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert weights(train_rl(Config(), None, tmp_path / "stopped", resume=True).folder) == weights(whole.folder)


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_iteration_ends_with_as_many_groups_as_were_asked_for(
    dynamic: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `sampling.groups` are learned from, though `max_attempts` more were allowed."""
    taken: list[Collection] = []
    original = Gathering.collection
    monkeypatch.setattr(Gathering, "collection", lambda self: taken.append(original(self)) or taken[-1])
    sampling = {"groups": 2, "max_attempts": 40, "dynamic": dynamic}
    run(tmp_path / "run", toy_config(sampling=sampling, eval={"every": 0, "trials": 2}))
    assert [len(collection.groups) for collection in taken] == [2] * 3
    assert all(group.has_signal for collection in taken for group in collection.groups) == dynamic


def test_the_learning_rate_follows_the_kl_of_the_iteration_before(tmp_path: Path) -> None:
    learn = {"learning_rate": 1e-3, "adapt_kl": 0.02, "target_kl": 0.0}
    result = run(tmp_path / "run", toy_config(iterations=5, learn=learn, eval={"trials": 2, "every": 0}))
    learned = [row for row in rows(result.folder) if "update/kl" in row]
    rate, rates = 1e-3, set()
    for row in learned:
        assert row["update/learning_rate"] == pytest.approx(rate)
        kl = row["update/kl_end"]
        rate *= 0.67 if kl > 0.03 else 1.2 if kl < 0.02 / 1.5 else 1.0
        rates.add(rate)
    assert len(learned) >= 3 and len(rates) >= 2


def test_a_run_can_be_held_near_its_start_and_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(weight: float) -> Config:
        return toy_config(learn={"kl_to_start": weight, "target_kl": 0.0}, eval={"trials": 2, "every": 0})

    held, free = run(tmp_path / "held", config(5.0)), run(tmp_path / "free", config(0.0))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 2)
        run(tmp_path / "stopped", config(5.0))
    assert weights(train_rl(Config(), None, tmp_path / "stopped", resume=True).folder) == weights(held.folder)
    distance = [row["update/kl_to_start"] for row in rows(held.folder) if "update/kl" in row]
    assert 0 < distance[0] < distance[-1] and not any("update/kl_to_start" in row for row in rows(free.folder))
    start = load_policy(held.folder / "start").state_dict()

    def moved(result: RLResult) -> float:
        checkpoint = read_checkpoint(list_checkpoints(result.folder / "checkpoints")[-1])
        return sum(float((w - start[name]).norm()) for name, w in checkpoint.state["weights"].items())

    assert moved(held) < 0.9 * moved(free)


def test_practice_rollouts_end_soon_after_the_time_that_successes_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Collection] = []
    original = Gathering.collection
    monkeypatch.setattr(Gathering, "collection", lambda self: taken.append(original(self)) or taken[-1])
    sampling = {"horizon_margin": 1.25, "group_size": 16, "groups": 6, "max_attempts": 6, "dynamic": False}
    config = toy_config(iterations=4, sim={"horizon": 64}, sampling=sampling, eval={"every": 0})
    horizons = [row["rollout/horizon"] for row in rows(run(tmp_path / "run", config).folder)]
    assert horizons[0] == 64 and min(horizons) < 64
    for collection, horizon, following in zip(taken, horizons, [*horizons[1:], None], strict=True):
        assert max(r.env_steps for g in collection.groups for r in g.rollouts) <= horizon
        mixed = [g for g in collection.groups if g.has_signal]
        steps = [r.env_steps for g in mixed for r in g.rollouts if r.status is Status.SUCCESS]
        told = len(mixed) >= 3 and len(steps) >= 8
        wanted = math.ceil(1.25 * np.quantile(steps, 0.9, method="higher")) if told else 2 * horizon
        assert following is None or following == min(64, max(16, wanted))


def test_a_minibatch_can_be_counted_in_trajectories(tmp_path: Path) -> None:
    learn = {"minibatch_trajectories": 3, "minibatch": 1, "epochs": 2, "target_kl": 0.0}
    result = run(tmp_path / "run", toy_config(iterations=3, learn=learn, eval={"trials": 2, "every": 0}))
    learned = [row for row in rows(result.folder) if "update/kl" in row]
    assert learned
    for row in learned:
        assert row["update/optimiser_steps"] == 2 * math.ceil(4 * row["rollout/accepted"] / 3)  # 4 a group, no errors


def test_a_temperature_chosen_at_the_start_is_kept_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(policy={"entropy": 2.9}, eval={"trials": 2, "every": 0})
    whole = run(tmp_path / "whole", config)
    temperature = load_policy(whole.policy).config.temperature
    assert temperature == load_policy(whole.folder / "start").config.temperature != 1
    assert whole.before["sampled"].mode == f"sampled (temperature {temperature:g})"
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 2)
        run(tmp_path / "stopped", config)
    monkeypatch.setattr(QuestPolicy, "tuned", _stop)
    assert weights(train_rl(Config(), None, tmp_path / "stopped", resume=True).folder) == weights(whole.folder)


@pytest.mark.parametrize("asked", [2.9, 6.5])
def test_the_entropy_that_a_chosen_temperature_gives_is_told_beside_the_one_asked_for(
    asked: float, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(policy={"entropy": asked})
    with initial_states(config.sim, ("toy/reach-centre",), 0) as source:
        policy = starting.learner(config, lively_policy(config), source, calibrate=True)
    (told,) = re.findall(r"temperature (\S+): entropy (\S+) nats a variable, asked for (\S+)", capsys.readouterr().err)
    assert float(told[0]) == policy.temperature and float(told[2]) == asked
    assert float(told[1]) == pytest.approx(2.9, abs=0.02) if asked == 2.9 else float(told[1]) < math.log(25)


# ---------------------------------------------------------------------- what a run leaves behind


def test_a_run_reports_what_it_spent_and_that_the_first_ratio_was_one(reference: RLResult) -> None:
    logged = rows(reference.folder)
    assert [row["iteration"] for row in logged] == [1, 2, 3]
    assert reference.reason == "all 3 iterations done" and reference.iterations == 3
    for before, row in zip([None, *logged], logged, strict=False):
        spent = {k: row[f"total/{k}"] - (before[f"total/{k}"] if before else 0) for k in ("rollouts", "env_steps")}
        assert spent == {k: row[f"rollout/{k}"] for k in spent}
        assert row["total/seconds"] > (before["total/seconds"] if before else 0)
        assert row["rollout/rollouts"] == 4 * row["rollout/attempted"]
        assert row["rollout/signal_share"] == pytest.approx(1 - row["rollout/rejected_share"])
        assert row["time/rollout"] + row["time/update"] <= row["time/total"]
    learned = [row for row in logged if "update/kl" in row]
    assert len(learned) >= 2
    assert all(row["update/first_ratio_deviation"] < 1e-4 for row in learned)
    assert all(row["update/optimiser_steps"] >= 1 and math.isfinite(row["update/grad_norm"]) for row in learned)
    assert (reference.rollouts, reference.env_steps) == (logged[-1]["total/rollouts"], logged[-1]["total/env_steps"])
    assert set(reference.seconds) == {"evaluate before", "post-train", "evaluate after"}
    assert all(seconds > 0 for seconds in reference.seconds.values())


def test_the_policy_of_a_run_acts_as_it_was_measured_and_its_card_tells(reference: RLResult) -> None:
    policy = load_policy(reference.policy)
    assert policy != load_policy(reference.folder / "start")
    config = toy_config()
    with initial_states(config.sim, ("toy/reach-centre",), 0) as source:
        states = source.measured("test", config.eval.trials, config.eval.seed)
    pool = make_env_pool(config.sim, config.rollout, policy)
    measured = measuring.run_evaluation(pool, states, name="again", seed=config.eval.seed, modes=("sampled", "greedy"))
    pool.close()
    for mode in ("sampled", "greedy"):
        assert measured[mode].per_state == reference.after[mode].per_state
    card = (reference.policy / "README.md").read_text()
    total = reference.after["greedy"].total
    assert f"| after, greedy | {total.successes}/6" in card and "| tasks | reach-centre |" in card
    assert f"| greedy | {points(change(reference.before['greedy'], reference.after['greedy']))} |" in card


def test_before_and_after_are_measured_on_the_same_states_in_both_modes(reference: RLResult) -> None:
    ids = [
        [state for state, _ in results[mode].per_state["reach-centre"]]
        for results in (reference.before, reference.after)
        for mode in ("sampled", "greedy")
    ]
    assert len(set(map(tuple, ids))) == 1 and len(set(ids[0])) == 6


def test_videos_are_kept_before_and_after(tmp_path: Path) -> None:
    result = run(tmp_path / "run", toy_config(iterations=1, eval={"trials": 2, "every": 0, "videos": 1}))
    names = [
        sorted(p.name.rsplit("__", 1)[0] for p in (result.folder / "videos" / s).iterdir()) for s in ("before", "after")
    ]
    assert names[0] == names[1] == [f"reach-centre__{result.before['sampled'].per_state['reach-centre'][0][0]}"]


def test_without_a_policy_a_run_starts_from_weights_of_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    babble = stages.babble
    monkeypatch.setattr(
        stages, "babble", lambda policy, seed: babble(policy, seed, steps=5)
    )  # enough to tell seeds apart
    config = toy_config(iterations=0, eval={"trials": 2, "every": 0})
    first = train_rl(config, None, tmp_path / "first")
    torch.set_num_threads(2)  # as a process may have that was started otherwise
    again = train_rl(config, None, tmp_path / "again")
    torch.set_num_threads(1)
    other = train_rl(replace(config, seed=1), None, tmp_path / "other")
    assert weights(first.folder) == weights(again.folder) != weights(other.folder)
    threads = replace(config, learn=replace(config.learn, threads=3))
    assert weights(train_rl(threads, None, tmp_path / "threads").folder) == weights(first.folder)
    assert first.iterations == 0 and first.rollouts == 0


def test_torchs_threads_are_afterwards_what_they_were_however_a_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(iterations=1, learn={"threads": 2}, eval={"trials": 2, "every": 0})
    within: list[int] = []
    gather = Gathering.gather
    monkeypatch.setattr(Gathering, "gather", lambda *a, **k: within.append(torch.get_num_threads()) or gather(*a, **k))
    run(tmp_path / "run", config)
    assert (within, torch.get_num_threads()) == ([2], 1)
    stop_in(monkeypatch, "log", 1)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", config)
    assert torch.get_num_threads() == 1


def test_what_chooses_the_temperature_opens_no_more_simulators_than_the_rollouts_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are 24 rollouts for each of two tasks."""
    opened: list[ToySimulator] = []
    create = ToySimulator.__init__
    monkeypatch.setattr(ToySimulator, "__init__", lambda self, *a, **k: opened.append(self) or create(self, *a, **k))
    config = toy_config(
        tasks=("reach-centre", "reach-left"),
        iterations=0,
        policy={"entropy": 2.9},
        rollout={"slots": 3},
        eval={"trials": 1, "every": 0},
    )
    run(tmp_path / "run", config)
    # one for each task's states; in both of calibration and evaluation as many as there are slots, of either task
    assert len(opened) <= 2 + 2 * (2 * 3)


def test_a_policy_in_memory_is_trained_in_place_and_a_folder_is_left_alone(tmp_path: Path) -> None:
    config = toy_config(iterations=1, eval={"trials": 2, "every": 0})
    policy = lively_policy(config)
    policy.save_pretrained(tmp_path / "start")
    content = (tmp_path / "start" / "model.safetensors").read_bytes()
    from_folder = train_rl(config, tmp_path / "start", tmp_path / "a")
    in_memory = train_rl(config, policy, tmp_path / "b")
    assert weights(from_folder.folder) == weights(in_memory.folder)
    assert (tmp_path / "start" / "model.safetensors").read_bytes() == content
    final = load_policy(in_memory.policy).state_dict()
    assert all(torch.equal(tensor, final[name]) for name, tensor in policy.state_dict().items())


# ---------------------------------------------------------------------- the choice of the best policy


@pytest.mark.parametrize(
    ("validation", "chosen"),
    [((0, 1, 4, 2), 2), ((3, 4, 1, 2), 1), ((0, 1, 2, 4), 3), ((3, 3, 3, 1), 2), ((0, 0, 0, 0), 3), ((4, 3, 1, 3), 0)],
    ids=["middle", "first", "last", "the later of equals", "never any", "before practice"],
)
def test_the_best_policy_is_chosen_on_validation_states_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: tuple[int, ...], chosen: int
) -> None:
    """Validation results are set by hand; test results are set to speak for another iteration."""
    config = toy_config()
    kept: list[dict[str, torch.Tensor]] = []
    asked: list[set[str]] = []
    evaluate = measuring.run_evaluation

    def scripted(pool: EnvPool, states: dict[Task, Sequence[InitialState]], **settings: Any) -> dict[str, EvalResult]:
        asked.append({state.id for group in states.values() for state in group})
        results = evaluate(pool, states, **settings)
        (group,) = states.values()
        if len(group) == config.eval.every_trials:
            iteration = len(kept)
            good = validation[min(iteration, len(validation) - 1)]
            kept.append({name: tensor.clone() for name, tensor in pool_policy(pool).weights().items()})
        else:
            good = 6
        return {mode: solving(result, good) for mode, result in results.items()}

    monkeypatch.setattr(measuring, "run_evaluation", scripted)
    result = run(tmp_path / "run", config)
    assert json.loads((result.folder / "result.json").read_text())["policy_iteration"] == chosen
    final = load_policy(result.policy).weights()
    assert all(torch.equal(final[name], tensor) for name, tensor in kept[chosen].items())
    assert len(kept) == 4 and any(not torch.equal(kept[0][n], kept[3][n]) for n in kept[0])
    test_states, validation_states = asked[0], asked[1]
    assert not test_states & validation_states and asked == [test_states, *[validation_states] * 4, test_states]


def solving(result: EvalResult, good: int) -> EvalResult:
    """The same evaluation, of one task, with the first `good` states solved and no other."""
    ((task, states),) = result.per_state.items()
    ends = [Status.SUCCESS if i < good else Status.FAILURE for i in range(len(states))]
    outcomes = [(state, end.value) for (state, _), end in zip(states, ends, strict=True)]
    return replace(result, total=tally(ends), tasks={task: tally(ends)}, per_state={task: outcomes})


def pool_policy(pool: EnvPool) -> QuestPolicy:
    return pool._recorder.policy  # type: ignore[attr-defined]


def test_the_best_policy_is_named_as_what_it_is_when_a_run_was_killed_after_it_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after iteration 1 was found the best and kept, before the next checkpoint; on another machine, validation
    may then find less in it than before."""
    config = toy_config()
    evaluate, rates = measuring.run_evaluation, [1, 4, *[0] * 9]

    def scripted(pool: EnvPool, states: dict[Task, Sequence[InitialState]], **settings: Any) -> dict[str, EvalResult]:
        results = evaluate(pool, states, **settings)
        (group,) = states.values()
        if len(group) != config.eval.every_trials:
            return results
        good = rates.pop(0)
        return {mode: solving(result, good) for mode, result in results.items()}

    monkeypatch.setattr(measuring, "run_evaluation", scripted)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 2)
        run(tmp_path / "run", config)
    first = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert first.iteration == 1 and first.state["progress"]["best_iteration"] == 0
    resumed = train_rl(Config(), None, tmp_path / "run", resume=True)
    assert json.loads((resumed.folder / "result.json").read_text())["policy_iteration"] == 1
    policy = load_policy(resumed.policy)
    assert all(torch.equal(policy.weights()[name], tensor) for name, tensor in first.state["weights"].items())
    spent = resumed.folder / "metrics.jsonl"
    first_row, *_, last_row = (json.loads(line) for line in spent.read_text().splitlines())
    told = policy.card["interactive post-training"]
    names = ("rollouts", "environment steps")
    assert (told["iteration"], told["iterations of the run"]) == (1, config.iterations)
    assert [told[f"{name} until then"] for name in names] == [
        first_row[f"total/{n}"] for n in ("rollouts", "env_steps")
    ]
    assert [told[f"{name} of the run"] for name in names] == [last_row[f"total/{n}"] for n in ("rollouts", "env_steps")]
    assert told["rollouts until then"] < told["rollouts of the run"]
    assert policy.card["choice on validation states"] == {"iteration": 1, "success": 0.8, "success, reach-centre": 0.8}


def test_without_validation_the_last_policy_is_the_result(tmp_path: Path) -> None:
    result = run(tmp_path / "run", toy_config(iterations=2, eval={"every": 0}))
    newest = read_checkpoint(list_checkpoints(result.folder / "checkpoints")[-1]).state["weights"]
    final = load_policy(result.policy).weights()
    assert all(torch.equal(final[name], tensor) for name, tensor in newest.items())
    assert json.loads((result.folder / "result.json").read_text())["policy_iteration"] == 2
    assert not result.folder.joinpath("best").exists()


# ---------------------------------------------------------------------- how runs end


def test_a_run_without_any_success_gives_up_after_three_iterations_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    config = toy_config(iterations=9, sim={"horizon": 1}, eval={"every": 0, "trials": 2})
    with pytest.raises(NoSignalError, match=r"every rollout failed in 3 iterations in a row.*videos"):
        run(tmp_path / "run", config)
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [1, 2]
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")][-1].endswith("2")
    with pytest.raises(NoSignalError):  # it remembers
        train_rl(config, None, tmp_path / "run", resume=True)
    assert [row["iteration"] for row in rows(tmp_path / "run")] == [1, 2]


def test_a_success_in_between_renews_the_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hopeless iterations 1, 2, then a good one, then hopeless 4, 5: five are done."""
    collections = iter([1, 1, 24, 1, 1])
    config = toy_config(iterations=5, eval={"every": 0, "trials": 2})
    original = Gathering.gather

    def shortened(*given: Any, **settings: Any) -> None:
        horizon = next(collections)
        with monkeypatch.context() as patch:
            patch.setattr(toy, "RADIUS", 0.3 if horizon > 1 else -1.0)
            original(*given, **settings)

    monkeypatch.setattr(Gathering, "gather", shortened)
    assert run(tmp_path / "run", config).iterations == 5
    successes = [row["rollout/success"] for row in rows(tmp_path / "run")]
    assert successes[:2] == [0, 0] and successes[2] > 0 and successes[3:] == [0, 0]


def test_a_run_that_reaches_its_goal_stops_early(tmp_path: Path) -> None:
    result = run(tmp_path / "run", toy_config(iterations=9, stop_at=0.01, eval={"every": 0}))
    assert result.reason.startswith("solved: at least 1%") and result.iterations < 9
    assert rows(result.folder)[-1]["rollout/success"] >= 0.01
    again = train_rl(Config(), None, result.folder, resume=True)
    assert again.iterations == result.iterations and again.reason == result.reason


def test_when_everything_succeeds_there_is_nothing_to_learn_and_the_run_is_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy, "RADIUS", 9.0)
    config = toy_config(eval={"every": 1, "trials": 3})
    result = run(tmp_path / "run", config)
    assert result.iterations == 3 and result.reason.startswith("solved: at least 100%")
    for row in rows(result.folder):
        assert row["rollout/rejected_all_success"] == row["rollout/attempted"] == 6
        assert "update/kl" not in row and row["time/update"] == 0
    assert load_policy(result.policy).weights().keys() == load_policy(result.folder / "start").weights().keys()
    start, final = load_policy(result.folder / "start").state_dict(), load_policy(result.policy).state_dict()
    assert all(torch.equal(start[name], final[name]) for name in start)


def broken_steps(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    """Every so-manieth chunk raises."""
    step, calls = ToySimulator.step_chunk, [0]

    def breaking(self: ToySimulator, actions: np.ndarray) -> ChunkResult:
        calls[0] += 1
        if calls[0] % every == 0:
            raise SimulatorError("the table fell over")
        return step(self, actions)

    monkeypatch.setattr(ToySimulator, "step_chunk", breaking)


def test_errors_of_the_simulator_are_counted_and_not_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_steps(monkeypatch, 25)
    result = run(tmp_path / "run", toy_config(rollout={"max_error_rate": 1.0}, iterations=2))
    logged = rows(result.folder)
    assert sum(row["rollout/errors"] for row in logged) > 0
    assert any("update/kl" in row for row in logged)
    assert sum(r.total.errors for r in (*result.before.values(), *result.after.values())) > 0
    for results in (result.before, result.after):
        assert all(r.total.trials + r.total.errors == 6 for r in results.values())


def test_why_rollouts_ended_in_error_is_in_the_run_folder_on_the_screen_and_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken_steps(monkeypatch, 25)
    result = run(tmp_path / "run", toy_config(rollout={"max_error_rate": 1.0}, iterations=2))
    said, counted = capsys.readouterr().err, {row["iteration"]: row["rollout/errors"] for row in rows(result.folder)}
    kept = read_rows(result.folder / "errors.jsonl")
    assert {row["iteration"]: sum(reason["count"] for reason in row["reasons"]) for row in kept} == {
        iteration: errors for iteration, errors in counted.items() if errors
    }
    (reason,) = kept[0]["reasons"]
    assert reason["message"] == "SimulatorError: the table fell over"
    assert "while stepping: toy/reach-centre, initial state" in reason["example"] and "Traceback" in reason["example"]
    for line in ("iteration 1", "evaluating (sampled)", "evaluating (greedy)"):
        assert re.search(
            rf"{re.escape(line)}: \d+ of \d+ rollouts ended in ERROR: \d+ with SimulatorError: the t", said
        )
    assert any("errors.jsonl" in line and "the table fell over" in line for line in read_run(result.folder).missing)
    with RunFolder.open(result.folder) as folder:
        folder.log_errors(7, [Reason(message="later", count=1, example="later")])
        folder.load_checkpoint()
    assert read_rows(result.folder / "errors.jsonl") == kept


@pytest.mark.parametrize("method", ["reset", "step_chunk"])
def test_whatever_a_simulator_raises_when_looked_at_before_practice_is_for_the_rollouts_to_tell_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    original, where = getattr(ToySimulator, method), {"closed": 0}

    def breaking(self: ToySimulator, given: Any) -> Any:
        state = given if method == "reset" else self._state
        if state.state[0] > 0.5:
            raise KeyError("a bug in a simulator")
        return original(self, given)

    def close(self: ToySimulator) -> None:
        where["closed"] += 1

    monkeypatch.setattr(ToySimulator, method, breaking)
    monkeypatch.setattr(ToySimulator, "close", close)
    config = toy_config(rollout={"max_error_rate": 1.0}, iterations=1)
    result = run(tmp_path / "run", config)
    assert result.iterations == 1 and rows(result.folder)[0]["rollout/errors"] > 0
    with make_env_pool(config.sim, config.rollout) as pool:
        before = where["closed"]
        starting.solved_by_nothing(config, InitialStates(pool, ("toy/reach-centre",), 0))
        assert where["closed"] == before + 1, "an instance that raised is not used again"


def test_what_a_simulator_raises_when_asked_for_initial_states_has_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ToySimulator, *_: Any, **__: Any) -> None:
        raise KeyError("a bug in a simulator")

    policy = lively_policy(toy_config())
    for method in ("initial_states", "__init__"):
        monkeypatch.setattr(ToySimulator, method, broken)
        with pytest.raises(SimulatorError, match=r"toy/reach-centre.*: KeyError: 'a bug in a simulator'"):
            run(tmp_path / "run", policy=policy)


def test_iterations_of_errors_alone_change_nothing_and_are_no_failures_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_steps(monkeypatch, 1)
    result = run(tmp_path / "run", toy_config(rollout={"max_error_rate": 1.0}, iterations=4))
    for row in rows(result.folder):
        assert row["rollout/errors"] == row["rollout/rollouts"] == 24 and row["rollout/success"] is None
        assert row["rollout/rejected_invalid"] == row["rollout/attempted"] and "update/kl" not in row
    start, final = load_policy(result.folder / "start").state_dict(), load_policy(result.policy).state_dict()
    assert all(torch.equal(start[name], final[name]) for name in start)
    assert (result.after["greedy"].total.trials, result.after["greedy"].total.errors) == (0, 6)


def test_too_many_errors_stop_the_run_with_what_went_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_steps(monkeypatch, 2)
    with pytest.raises(ErrorRateExceeded, match="the table fell over"):
        run(tmp_path / "run", toy_config(eval={"trials": 30}))


def test_a_policy_of_nans_stops_the_run(tmp_path: Path) -> None:
    config = toy_config()
    policy = lively_policy(config)
    with torch.no_grad():
        policy.autoencoder.action_out.bias[0] = torch.nan
    with pytest.raises(NotFiniteError, match=r"not saved in .*start: autoencoder\.action_out.bias holds NaN"):
        run(tmp_path / "run", config, policy)
    with pytest.raises(NotFiniteError, match="the policy returned NaN or infinite actions"):
        evaluate(policy, "reach-centre", trials=2, horizon=8, rollout=config.rollout)


@pytest.mark.parametrize("mode", ["sampled", "greedy"])
def test_a_prior_whose_scores_are_nan_stops_the_run_although_its_actions_look_well(tmp_path: Path, mode: str) -> None:
    config = toy_config(eval={"mode": mode})
    policy = lively_policy(config)
    with torch.no_grad():
        policy.prior.head.weight.fill_(3e38)  # finite weights, whose scores overflow
    where = r"toy/reach-centre, initial state [0-9a-f]+, rollout \d+, decision 1"
    with pytest.raises(NotFiniteError, match=f"NaN or infinite log-probabilities .*{where}"):
        run(tmp_path / "run", config, policy)
    with pytest.raises(NotFiniteError, match=f"NaN or infinite log-probabilities .*{where}"):
        evaluate(policy, "reach-centre", trials=2, greedy=mode == "greedy", horizon=8, rollout=config.rollout)


def test_a_gradient_of_nans_stops_the_run_and_the_last_good_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        log_prob = QuestPolicy.log_prob

        def poisoned(self: QuestPolicy, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
            value, entropy = log_prob(self, *args)
            if (tmp_path / "run" / "metrics.jsonl").exists():  # from the second iteration on
                value = value + 0.0 * torch.sqrt(value - value.detach())  # 0, with a gradient of NaN
            return value, entropy

        patch.setattr(QuestPolicy, "log_prob", poisoned)
        with pytest.raises(NotFiniteError, match=r"update, epoch \d of 2, minibatch \d"):
            run(tmp_path / "run")
    kept = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert kept.iteration == len(rows(tmp_path / "run")) == 1
    assert all(torch.isfinite(tensor).all() for tensor in kept.state["weights"].values())
    assert train_rl(Config(), None, tmp_path / "run", resume=True).iterations == 3


def test_learning_from_another_density_than_the_one_that_acted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_prob = QuestPolicy.log_prob
    monkeypatch.setattr(QuestPolicy, "log_prob", lambda self, *a: log_prob(self.configured(temperature=1.1), *a))
    with pytest.raises(RatioError, match="before the first update the ratio new / old probability must be 1"):
        run(tmp_path / "run")


# ---------------------------------------------------------------------- what cannot be run or resumed


def test_a_run_needs_a_task_and_a_policy_that_fits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task to practise on"):
        run(tmp_path / "run", toy_config(tasks=()))
    with pytest.raises(PolicyError, match=r"expected \{'top': \(8, 8\)\}, got \{'top': \(24, 24\)\}"):
        run(tmp_path / "run", toy_config(sim={"image_size": 24}), lively_policy(toy_config()))
    assert not (tmp_path / "run").exists()


def test_practice_sees_what_its_policy_was_trained_on_unless_somebody_asks_for_something_else(tmp_path: Path) -> None:
    policy = lively_policy(toy_config())
    config = toy_config(iterations=0, sim={"image_size": 16})  # as in the recipe, so nobody asked for it
    run(tmp_path / "run", config, policy)
    assert read_config(tmp_path / "run")["config"]["recipe_config"]["sim"]["image_size"] == 8
    with pytest.raises(PolicyError, match="24"):
        run(tmp_path / "other", toy_config(iterations=0, sim={"image_size": 24}), policy)


def test_a_place_that_cannot_be_used_is_refused_before_the_policy_is_measured(
    reference: RLResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(reference.folder)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(loop, "learner", None)
    with pytest.raises(RunError, match="already holds a run"):
        run(reference.folder)
    with pytest.raises(RunError, match="a part of this path is a file"):
        run(tmp_path / "file" / "run")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(RunError, match="permission denied"):
        run(tmp_path / "run")
    assert weights(reference.folder) == before and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_no_run_of_this_kind_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        train_rl(Config(), None, tmp_path / "nowhere", resume=True)
    RunFolder.create(tmp_path / "sft", {"recipe_config": toy_config().to_json()}, "sft").close()
    with pytest.raises(RunError, match="a run of supervised training: go on with `ript sft --resume"):
        train_rl(Config(), None, tmp_path / "sft", resume=True)


def test_a_run_stopped_before_it_kept_its_policy_starts_again_from_the_folder_it_was_given(
    reference: RLResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config()
    lively_policy(config).save_pretrained(tmp_path / "given")
    with monkeypatch.context() as patch:
        patch.setattr(QuestPolicy, "save_pretrained", _stop)
        for start, folder in ((tmp_path / "given", "a"), (lively_policy(config), "b")):
            with pytest.raises(PolicyError, match="save_pretrained raised Stopped"):
                train_rl(config, start, tmp_path / folder)
    assert weights(train_rl(Config(), None, tmp_path / "a", resume=True).folder) == weights(reference.folder)
    with pytest.raises(RunError, match="before it kept the policy that it was given"):
        train_rl(Config(), None, tmp_path / "b", resume=True)


def _stop(*args: object) -> None:
    raise Stopped


def test_workers_that_cannot_start_leave_no_run_folder_behind(tmp_path: Path) -> None:
    config = toy_config(rollout={"workers": 20})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        with pytest.raises(WorkerError, match=r"too few open files .*ulimit -n"):
            run(tmp_path / "run", config)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_logs_are_lost_says_so_before_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(iterations=1, eval={"trials": 2, "every": 0})
    train_rl(config, lively_policy(config), tmp_path / "run")
    evals = (tmp_path / "run" / "evals.jsonl").read_bytes()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    more = replace(config, iterations=2)
    for content in (b"", None, b"junk"):
        (tmp_path / "run" / "evals.jsonl").unlink()
        if content is not None:
            (tmp_path / "run" / "evals.jsonl").write_bytes(content)
        with pytest.raises((DataError, RunError), match=r"evals\.jsonl(, line 1: not a| lacks the evaluation)"):
            train_rl(more, None, tmp_path / "run", resume=True)
        (tmp_path / "run" / "evals.jsonl").write_bytes(evals)
    capsys.readouterr()
    train_rl(more, None, tmp_path / "run", resume=True)
    assert f"{tmp_path / 'run' / 'metrics.jsonl'} lacks 1 of the iterations up to 1" in capsys.readouterr().err


def test_with_one_policy_for_all_workers_a_run_says_for_which_share_each_side_had_nothing_to_do(tmp_path: Path) -> None:
    rows = {}
    for inference in ("central", "local"):
        config = toy_config(iterations=1)
        config = replace(config, rollout=replace(config.rollout, workers=1, inference=inference))
        train_rl(config, lively_policy(config), tmp_path / inference)
        (rows[inference],) = map(json.loads, (tmp_path / inference / "metrics.jsonl").read_text().splitlines())
    row = rows["central"]
    assert row["time/policy_idle"] == pytest.approx(1 - row["time/infer"] / row["time/collect"])
    assert row["time/workers_idle"] == pytest.approx(row["time/wait"] / row["time/collect"])
    assert 0 < row["time/policy_idle"] < 1 and 0 < row["time/workers_idle"] < 1
    assert not any("idle" in name for name in rows["local"])
