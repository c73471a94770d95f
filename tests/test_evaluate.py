"""Success rates: intervals by hand, errors apart, fixed states, and results that depend on nothing else."""

import contextlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeFactory, FakePolicy, Fault, fake_state, fake_task
from toy_runs import initial_states, lively_policy, toy_config

from ript.build import make_env_pool, simulator_factory
from ript.config.sections import RolloutConfig
from ript.core.errors import ConfigError, ErrorRateExceeded, PolicyError, SimulatorError, UnknownNameError
from ript.core.intervals import wilson
from ript.core.options import replace
from ript.core.types import EvalResult, InitialState, Rollout, RolloutRequest, Split, Status
from ript.evaluation import (
    SEED_TAG,
    evaluate,
    own_decisions,
    run_evaluation,
    tally,
)
from ript.policies.loading import load_policy
from ript.policies.quest.options import QuestOptions
from ript.policies.quest.policy import QuestPolicy
from ript.policies.quest.replay import replay_autoencoded
from ript.policies.temperature import TEMPERATURES, choose_temperature
from ript.rl import train_rl
from ript.rollout.pool import make_pool
from ript.rollout.reasons import reasons
from ript.run.reading import read_rows
from ript.sims.toy.simulator import ToySimulator

HERE = RolloutConfig(workers=0, slots=8)
S, F, E = Status.SUCCESS, Status.FAILURE, Status.ERROR


@pytest.fixture(scope="module")
def policy() -> QuestPolicy:
    return lively_policy(toy_config())


# ---------------------------------------------------------------------- counts


def test_errors_are_neither_successes_nor_trials() -> None:
    result = tally([S, E, F, S, E, E])
    assert (result.successes, result.trials, result.errors) == (2, 3, 3)
    assert result.interval == wilson(2, 3) and result.rate == pytest.approx(2 / 3)


def test_without_a_valid_trial_nothing_is_known() -> None:
    result = tally([E, E])
    assert (result.successes, result.trials, result.errors, result.interval) == (0, 0, 2, (0.0, 1.0))
    assert math.isnan(result.rate)


# ---------------------------------------------------------------------- run_evaluation


def fake_evaluation(faults: tuple[Fault, ...] = (), slots: int = 4, **settings: object) -> dict[str, EvalResult]:
    tasks = [fake_task("plain"), fake_task("late-40")]
    states = {task: [fake_state(10 * t + i, 0.05, task) for i in range(5 - t)] for t, task in enumerate(tasks)}
    with make_pool(FakeFactory(faults=faults), FakePolicy(), workers=0, slots=slots, max_error_rate=1.0) as pool:
        return run_evaluation(pool, states, name="fake", seed=3, **settings)  # type: ignore[arg-type]


def test_errors_of_the_simulator_are_counted_apart_and_named_by_state() -> None:
    result = fake_evaluation((Fault(kind="raise", state=2), Fault(kind="raise", state=11, decision=0)))["sampled"]
    assert {name: (r.trials, r.errors) for name, r in result.tasks.items()} == {"plain": (4, 1), "late-40": (3, 1)}
    assert (result.total.trials, result.total.errors) == (7, 2)
    assert [status for _, status in result.per_state["plain"]].index("error") == 2
    assert [status for _, status in result.per_state["late-40"]].index("error") == 1
    assert result.per_state["plain"][3][0] == fake_state(3, 0.05).id


def test_why_trials_ended_in_error_is_said_and_part_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    faults = (Fault(kind="raise", state=2), Fault(kind="raise", state=3), Fault(kind="raise", state=11, decision=0))
    result = fake_evaluation(faults)["sampled"]
    (reason,) = result.reasons
    assert (reason.message, reason.count) == ("ValueError: injected fault", 3)
    for part in ("fake/plain", fake_state(2, 0.05).id, "rollout 0", "decision 1", "fault.strike()"):
        assert part in reason.example
    document = json.loads(json.dumps(result.to_json()))
    assert document["reasons"] == [reason.to_json()]
    assert list(EvalResult.from_json(document, result.per_state).reasons) == [reason]
    said = capsys.readouterr().err
    assert "evaluating (sampled): 3 of 9 rollouts ended in ERROR: 3 with ValueError: injected fault (while step" in said
    assert fake_evaluation()["sampled"].reasons == () and not capsys.readouterr().err


def failed(state: int, message: str) -> Rollout:
    fields = {"status": Status.ERROR, "decisions": 1, "env_steps": 4, "policy_version": 0, "index": 0}
    return Rollout(initial_state_id=fake_state(state, 0.0).id, error=f"{message}\n  while stepping: ...", **fields)


def test_errors_that_differ_in_place_and_numbers_alone_have_one_reason() -> None:
    id_ = {i: fake_state(i, 0.0).id for i in range(9)}
    everywhere = [
        failed(i, f"SimulatorError: gym/a:Task{i}-v0, initial state {id_[i]}, step {i}: it raised KeyError: 'x'")
        for i in range(3)
    ]
    seen = [
        failed(i, f"SimulatorError: the observation of {id_[i]} is not finite: [{i}.5, -1e-0{i}, nan]") for i in (3, 4)
    ]
    others = [failed(5, "ValueError: it raised KeyError: 'x'"), failed(6, "SimulatorError: \n")]
    found = reasons([*seen, *others, *everywhere])
    assert [reason.count for reason in found] == [3, 2, 1, 1]
    assert found[0].message == "SimulatorError: it raised KeyError: 'x'" and id_[0] in found[0].example
    assert found[1].message == f"SimulatorError: the observation of {id_[3]} is not finite: [3.5, -1e-03, nan]"
    assert [reason.message for reason in found[2:]] == ["ValueError: it raised KeyError: 'x'", "SimulatorError: "]


def test_totals_add_up_over_tasks_and_states() -> None:
    result = fake_evaluation()["sampled"]
    assert 0 < result.total.successes < result.total.trials == 9
    assert sum(r.successes for r in result.tasks.values()) == result.total.successes
    for name, rows in result.per_state.items():
        assert sum(status == "success" for _, status in rows) == result.tasks[name].successes
    assert result.total.interval == wilson(result.total.successes, 9)
    assert result.env_steps > 0 and result.seconds > 0


def test_both_modes_in_one_stream_equal_each_mode_alone() -> None:
    both = fake_evaluation(modes=("sampled", "greedy"))
    assert both["sampled"].per_state == fake_evaluation(modes=("sampled",))["sampled"].per_state
    assert both["greedy"].per_state == fake_evaluation(modes=("greedy",))["greedy"].per_state
    assert both["greedy"].mode == "greedy" and both["sampled"].mode == "sampled"


def test_results_do_not_depend_on_the_number_of_slots() -> None:
    one, many = fake_evaluation(slots=1), fake_evaluation(slots=16)
    assert one["sampled"].per_state == many["sampled"].per_state
    assert one["sampled"].env_steps == many["sampled"].env_steps


def test_videos_are_of_each_tasks_first_states_in_the_first_mode() -> None:
    result = fake_evaluation(modes=("greedy", "sampled"), videos=2)
    first = {(task, rows[i][0]) for task, rows in result["greedy"].per_state.items() for i in range(2)}
    assert {(task, state) for task, state, _, _ in result["greedy"].videos} == first
    assert not result["sampled"].videos
    for task, state, status, frames in result["greedy"].videos:
        assert (state, status) in result["greedy"].per_state[task] and frames.ndim == 4


# ---------------------------------------------------------------------- evaluate


def test_an_evaluation_is_reproducible_and_its_seed_matters(policy: QuestPolicy) -> None:
    first = evaluate(policy, ["reach-centre"], trials=12, horizon=16, rollout=HERE)
    again = evaluate(policy, ["toy/reach-centre"], trials=12, horizon=16, rollout=replace(HERE, slots=3))
    assert first.to_json() == again.to_json() and first.per_state == again.per_state
    assert 0 < first.total.successes < 12
    other = evaluate(policy, ["reach-centre"], trials=12, horizon=16, seed=1, rollout=HERE)
    ids = [{state for state, _ in r.per_state["reach-centre"]} for r in (first, other)]
    assert len(ids[0]) == 12 and not ids[0] & ids[1]


def test_more_trials_or_tasks_extend_an_evaluation_without_changing_it(policy: QuestPolicy) -> None:
    few = evaluate(policy, ["reach-centre"], trials=5, horizon=16, rollout=HERE)
    more = evaluate(policy, ["reach-left", "reach-centre"], trials=8, horizon=16, rollout=HERE)
    assert list(more.tasks) == ["reach-left", "reach-centre"] and more.total.trials == 16
    assert more.per_state["reach-centre"][:5] == few.per_state["reach-centre"]


def test_the_document_is_the_documented_one(policy: QuestPolicy) -> None:
    document = evaluate(policy, ["reach-left"], trials=3, greedy=True, horizon=8, rollout=HERE).to_json()
    assert list(document) == ["policy", "seed", "mode", "horizon", "state_noise", "tasks", "total", "reasons"]
    assert document["horizon"] == {"reach-left": 8}
    assert document["mode"] == "greedy" and document["policy"] == "policy" and document["seed"] == 0
    row = document["tasks"]["reach-left"]
    assert row == document["total"] and list(row) == ["successes", "trials", "errors", "interval"]
    assert row["trials"] == 3 and isinstance(row["interval"], list)


def test_a_folder_gives_what_the_policy_in_memory_gives(policy: QuestPolicy, tmp_path) -> None:
    policy.save_pretrained(tmp_path / "p")
    ours = evaluate(policy, ["reach-centre"], trials=6, horizon=16, rollout=HERE)
    theirs = evaluate(tmp_path / "p", ["reach-centre"], trials=6, horizon=16, rollout=HERE)
    assert theirs.policy == str(tmp_path / "p") and ours.per_state == theirs.per_state
    assert load_policy(tmp_path / "p") == policy


def test_the_temperature_asked_for_is_used_and_recorded_and_the_policy_keeps_its_own(policy: QuestPolicy) -> None:
    sharp = policy.configured(temperature=1e-3)
    greedy = evaluate(policy, ["reach-centre"], trials=8, greedy=True, horizon=16, rollout=HERE)
    cold = evaluate(policy, ["reach-centre"], trials=8, temperature=1e-3, horizon=16, rollout=HERE)
    assert cold.mode == "sampled (temperature 0.001)" and cold.per_state == greedy.per_state
    assert evaluate(sharp, ["reach-centre"], trials=2, horizon=8, rollout=HERE).mode == cold.mode
    assert policy.config.temperature == 1


def test_the_horizon_is_respected(policy: QuestPolicy) -> None:
    result = evaluate(policy, ["reach"], trials=4, horizon=1, rollout=HERE)
    assert result.env_steps == 4 and result.total.successes == 0  # the start is farther from the goal than one step


@pytest.mark.parametrize(
    ("tasks", "settings", "error", "message"),
    [
        (["reach"], {"trials": 0}, ConfigError, r"trials must be a whole number in 1\.\.100000, got 0"),
        (["reach"], {"trials": 1.5}, ConfigError, r"trials must be a whole number in 1\.\.100000, got 1.5"),
        ([], {}, ConfigError, "no task to evaluate on"),
        (["reach-centr"], {}, UnknownNameError, "reach-centre"),
        (["drawer-open-v3"], {}, UnknownNameError, "toy task"),
        (["reach"], {"temperature": 0.0}, ConfigError, "temperature must be above 0"),
        (["reach"], {"horizon": 0}, ConfigError, "horizon"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    policy: QuestPolicy, tasks: list[str], settings: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate(policy, tasks, **{"trials": 2, "rollout": HERE} | settings)


def test_a_policy_folder_that_is_not_there_is_refused(tmp_path) -> None:
    with pytest.raises(PolicyError, match="no policy folder"):
        evaluate(tmp_path / "nowhere", ["reach"])


# ---------------------------------------------------------------------- states


def test_practice_validation_and_test_states_never_meet_for_any_seed() -> None:
    config = toy_config()
    seen: dict[str, set[str]] = {"practice": set(), "validation": set(), "test": set()}
    counts = dict.fromkeys(seen, 0)
    for seed in range(4):
        with initial_states(config.sim, ("toy/reach", "toy/reach-left"), seed) as source:
            stream = source.training(0)
            groups = {
                "practice": [next(stream) for _ in range(80)],
                "test": [s for states in source.measured("test", 30, seed).values() for s in states],
                "validation": [s for states in source.measured("validation", 30, seed).values() for s in states],
            }
        for name, states in groups.items():
            seen[name] |= {state.id for state in states}
            counts[name] += len(states)
    assert {name: len(ids) for name, ids in seen.items()} == counts  # nor does one come twice
    assert not seen["practice"] & seen["test"] and not seen["practice"] & seen["validation"]
    assert not seen["test"] & seen["validation"]


def test_a_pool_acts_with_the_weights_that_it_was_last_given(policy: QuestPolicy) -> None:
    config = toy_config(policy={"temperature": 0.3})
    learner = policy.tuned(config.policy, None)[0]
    with initial_states(config.sim, ("toy/reach-centre",), 0) as source:
        states = source.measured("test", 8)
    other = lively_policy(config, seed=2)
    kept = {name: tensor.clone() for name, tensor in learner.weights().items()}
    pool = make_env_pool(config.sim, config.rollout, learner)
    try:
        before = run_evaluation(pool, states, name="a", seed=0)["sampled"]
        pool.set_policy(other.weights(), 1)
        between = run_evaluation(pool, states, name="b", seed=0)["sampled"]
        pool.set_policy(kept, 2)
        after = run_evaluation(pool, states, name="a", seed=0)["sampled"]
    finally:
        pool.close()
    assert before.per_state == after.per_state and before.env_steps == after.env_steps
    assert (between.per_state, between.env_steps) != (before.per_state, before.env_steps)
    np.testing.assert_array_equal(learner.prior.head.weight.detach(), kept["prior.head.weight"])


# ---------------------------------------------------------------------- the temperature to practise at


def practice_states(n: int = 8) -> list[InitialState]:
    with initial_states(toy_config().sim, ("toy/reach-centre",), 0) as source:
        return source.states("toy/reach-centre", n, "train")


def test_evaluations_draw_from_other_streams_than_training_does(policy: QuestPolicy) -> None:
    asked: list[RolloutRequest] = []

    class Listening:
        def run(self, requests):  # type: ignore[no-untyped-def]
            asked.extend(requests)
            return iter(())

    (state,) = practice_states()[:1]
    with contextlib.suppress(Exception):
        run_evaluation(Listening(), {state.task: [state]}, name="x", seed=7)  # type: ignore[arg-type]
    training = [RolloutRequest(initial_state=state, index=0, seed=(7, iteration)) for iteration in range(50)]
    ours = asked[0].generator().random()
    assert asked[0].seed[0] == 7 and ours not in {request.generator().random() for request in training}


def test_a_state_that_is_there_several_times_gives_as_many_different_rollouts(policy: QuestPolicy) -> None:
    (state, *_) = practice_states()
    with make_env_pool(toy_config().sim, HERE) as pool:
        _, once = own_decisions(pool, policy, [state], horizon=8, seed=0)
        inputs, sample = own_decisions(pool, policy, [state] * 6, horizon=8, seed=0)
    assert len(sample) > len(once) and torch.equal(sample[: len(once)], once)
    firsts = {tuple(row.tolist()) for row in sample}
    assert len(firsts) > len(once) + 3
    assert all(len(tensor) == len(sample) for tensor in inputs.values())


def chosen(policy: QuestPolicy, entropy: float) -> tuple[float, float]:
    warm = policy.at_temperature(1.0)
    with make_env_pool(toy_config().sim, HERE) as pool:
        inputs, sample = own_decisions(pool, warm, practice_states(), horizon=8, seed=0)
    return choose_temperature(lambda t: policy.mean_entropy(inputs, sample, t), entropy)


def sampled_entropy(policy: QuestPolicy, temperature: float) -> float:
    """Mean over tokens of the policy's own rollouts at temperature 1, from their densities at another."""
    pool = make_env_pool(toy_config().sim, HERE, policy.configured(temperature=1.0))
    requests = [RolloutRequest(initial_state=s, index=0, seed=(0, SEED_TAG), horizon=8) for s in practice_states()]
    other, total, count = policy.configured(temperature=temperature, sampling="exact"), 0.0, 0
    for rollout in pool.run(iter(requests)):
        assert rollout.inputs is not None and rollout.sample is not None
        whole = {name: value[None].repeat(rollout.decisions, 0) for name, value in rollout.rollout_inputs.items()}
        inputs = {name: torch.from_numpy(value) for name, value in (rollout.inputs | whole).items()}
        entropy = other.log_prob(inputs, torch.from_numpy(rollout.sample))[1].detach()
        total, count = total + float(entropy.sum()), count + entropy.numel()
    pool.close()
    return total / count


@pytest.mark.parametrize("density", [{}, {"top_k": 5}, {"top_k": 5, "sampling": "published"}], ids=str)
def test_the_chosen_temperature_gives_the_wanted_entropy_of_what_is_sampled(density: dict) -> None:
    policy = lively_policy(toy_config()).configured(**density)
    with torch.no_grad():
        policy.prior.head.weight.mul_(10)  # an untrained policy is undecided at any temperature
    aim = sampled_entropy(policy, 0.6)
    assert sampled_entropy(policy, 0.3) < aim - 0.2 and sampled_entropy(policy, 1.5) > aim + 0.2
    temperature, reached = chosen(policy, aim)
    assert temperature == pytest.approx(0.6, abs=0.02)
    assert reached == pytest.approx(sampled_entropy(policy, temperature), abs=1e-5)


def test_an_entropy_out_of_reach_gives_the_nearer_bound(policy: QuestPolicy) -> None:
    assert chosen(policy, 0.0)[0] == pytest.approx(TEMPERATURES[0], abs=0.02)
    temperature, reached = chosen(policy, 99.0)
    assert temperature == pytest.approx(TEMPERATURES[1], abs=0.02) and reached < math.log(policy.config.codebook)


def test_the_entropy_of_a_density_may_be_negative() -> None:
    """Normal variables of deviation 0.1 times the temperature: entropy log(0.1 T) + 1.4189."""
    temperature, reached = choose_temperature(lambda t: math.log(0.1 * t) + 1.4189385, -1.2)
    assert temperature == pytest.approx(10 * math.exp(-1.2 - 1.4189385), abs=0.02)
    assert reached == pytest.approx(math.log(0.1 * temperature) + 1.4189385)
    assert QuestOptions(entropy=-1.2).entropy == -1.2


def test_without_a_rollout_no_temperature_is_chosen(policy: QuestPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: ToySimulator, actions: object) -> None:
        raise OSError("the table fell over")

    monkeypatch.setattr(ToySimulator, "step_chunk", broken)
    with pytest.raises((ErrorRateExceeded, SimulatorError), match="the table fell over"):
        chosen(policy, 1.0)


# ---------------------------------------------------------------------- splits of few states


@pytest.fixture
def five_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every split of the toy simulator has five states, again and again."""
    endless = ToySimulator.initial_states

    def finite(self: ToySimulator, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        five = endless(self, 5, 0, split)
        return [five[i % 5] for i in range(start, start + n)]

    monkeypatch.setattr(ToySimulator, "initial_states", finite)


def test_a_finished_evaluation_is_not_lost_for_a_simulator_that_cannot_be_closed(
    policy: QuestPolicy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stuck(self: ToySimulator) -> None:
        raise OSError("the window is gone")

    monkeypatch.setattr(ToySimulator, "close", stuck)
    few = {"slots": 2, "loaded_tasks": 1}  # another task takes the place of the first while others run
    result = evaluate(policy, ["reach-centre", "reach-left"], trials=12, horizon=16, rollout=replace(HERE, **few))
    assert result.total.trials == 24 and not result.reasons
    said = capsys.readouterr().err
    assert said.count("a simulator of toy/reach-centre cannot be closed (OSError: the window is gone)") == 1


@pytest.mark.usefixtures("five_states")
def test_a_split_of_five_states_gives_five_trials_however_many_are_asked_for(
    policy: QuestPolicy, capsys: pytest.CaptureFixture
) -> None:
    told = "toy/reach: there are 5 initial states in its split test of seed 0, not 50; each is measured once"
    result = evaluate(policy, "reach", trials=50, rollout=HERE)
    assert result.total.trials == 5 and result.total.interval == wilson(result.total.successes, 5)
    assert len(result.per_state["reach"]) == len(dict(result.per_state["reach"])) == 5
    assert told in capsys.readouterr().err
    evaluate(policy, "reach", trials=5, rollout=HERE)
    assert "measured once" not in capsys.readouterr().err


@pytest.mark.usefixtures("five_states")
def test_a_run_measures_and_validates_on_each_state_of_a_small_split_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = toy_config(iterations=0, eval={"trials": 12, "every": 1, "every_trials": 7})
    train_rl(config, lively_policy(config), tmp_path / "run")
    totals = [row["eval"]["total"]["trials"] for row in read_rows(tmp_path / "run" / "evals.jsonl")]
    assert totals and set(totals) == {5}
    told = capsys.readouterr().err
    assert "in its split test of seed 0, not 12" in told and "in its split validation of seed 0, not 7" in told


def test_practice_on_a_split_that_ends_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ToySimulator.initial_states
    monkeypatch.setattr(ToySimulator, "initial_states", lambda self, n, seed, split, start: few(self, n)[start:1])
    with initial_states(toy_config().sim, ("toy/reach",), 0) as source:
        stream = source.training(0)
        assert next(stream).task.key == "toy/reach"
        with pytest.raises(SimulatorError, match="toy/reach: its split train has no initial state number 1; seq"):
            next(stream)


def test_a_split_without_a_state_is_named(policy: QuestPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToySimulator, "initial_states", lambda *_: [])
    with pytest.raises(SimulatorError, match="toy/reach: its split test has no initial state to be measured on"):
        evaluate(policy, "reach", trials=3, rollout=HERE)


def test_a_state_that_is_given_several_times_is_one_trial() -> None:
    task = fake_task("plain")
    states = [fake_state(i % 2, 0.05, task) for i in range(10)]
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=4) as pool:
        result = run_evaluation(pool, {task: states}, name="fake", seed=3)["sampled"]
    assert result.total.trials == 2 and len(result.per_state["plain"]) == 2


@pytest.mark.usefixtures("five_states")
def test_the_bound_of_the_skills_counts_each_state_once(policy: QuestPolicy) -> None:
    assert replay_autoencoded(policy, simulator_factory(toy_config().sim), "toy/reach").count == 5
