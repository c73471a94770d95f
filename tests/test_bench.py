import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_runs import initial_states, lively_policy, toy_config

from ript.bench import rollout as bench
from ript.bench.update import bench_update, describe_update
from ript.build import make_policy, simulator_factory, task_keys
from ript.cli import main as cli
from ript.config import recipes
from ript.config.sections import Config
from ript.core.capacity import Cores
from ript.core.errors import ConfigError
from ript.core.metrics import Sum
from ript.core.options import replace
from ript.core.registry import suites
from ript.core.types import Status
from ript.learn.update import update
from ript.rollout.sampling import collect_groups
from ript.sims.metaworld.options import MetaworldOptions


def toy(**rollout: int) -> Config:
    config = recipes.get("smoke")
    return replace(config, rollout=replace(config.rollout, **rollout))


def test_the_actions_timed_for_the_limit_are_those_of_the_measured_rollouts() -> None:
    config = toy(workers=0, slots=4)
    with initial_states(config.sim, task_keys(config.sim, config.tasks), config.seed) as source:
        policy = make_policy(config, source.spec)
        ours = bench.measure_ours(config, policy, source, rollouts=24)
    assert ours.rollouts == 24
    assert sum(ours.split.values()) <= 1
    assert len(ours.kept) == bench.REPLAYED
    assert ours.decisions >= 24
    simulator = simulator_factory(config.sim)("toy/reach")
    for state, rollout in ours.kept:
        simulator.reset(state)
        steps = 0
        for chunk in bench.decoded(policy, rollout):
            result = simulator.step_chunk(chunk)
            steps += result.env_steps
        assert (result.success, steps) == (rollout.status is Status.SUCCESS, rollout.env_steps)
    looks = [simulator.reset(ours.kept[0][0])]
    seconds, batch = bench.best_inference(policy, looks)
    assert seconds > 0
    assert batch in bench.BATCHES


def test_the_limit_sums_its_parts_over_what_was_counted_and_divides_by_the_cores(monkeypatch) -> None:
    config = toy(workers=2)
    ours = bench.Ours(rollouts=10, env_steps=2000, decisions=100, seconds=9.0, split={}, kept=[])
    monkeypatch.setattr("ript.core.capacity.cores", lambda: Cores(usable=2, machine=64))
    best = {"step": 0.001, "reset": 0.1, "look": 0.02}
    limit = bench.limit_of(config, ours, best, decision=0.01, batch=32, raw=0.0005)
    assert limit["seconds_on_one_core"] == pytest.approx({"simulate": 2.0 + 1.0, "render": 2.0, "infer": 1.0})
    assert limit["env_steps_per_second"] == pytest.approx(2000 / (6.0 / 2))
    one = bench.limit_of(toy(workers=0), ours, best, decision=0.01, batch=32, raw=0.0005)
    assert one["env_steps_per_second"] == pytest.approx(2000 / 6.0)


def test_the_stock_speed_spreads_reset_and_decisions_over_a_whole_rollout() -> None:
    parts = {"reset": 0.5, "step": 0.001, "render": 0.01, "decision": 0.02}
    assert bench.stock_speed(parts, horizon=100, looks=7) == pytest.approx(100 / (0.5 + 100 * 0.011 + 7 * 0.02))


def test_rollouts_of_meta_world_are_measured_beside_stock_and_limit() -> None:
    config = recipes.get("quickstart")
    config = replace(
        config,
        sim=replace(config.sim, horizon=20),
        rollout=replace(config.rollout, workers=1, slots=2),
    )
    found = bench.bench_rollout(config, rollouts=3, stock_steps=3)
    keys = ["env_steps_per_second", "ratio_to_stock", "ratio_to_limit", "split", "workers", "stock", "limit"]
    assert list(found) == keys
    assert list(found["split"]) == ["simulate", "render", "infer", "wait"]
    assert found["ratio_to_stock"] == pytest.approx(
        found["env_steps_per_second"] / found["stock"]["env_steps_per_second"]
    )
    assert found["ratio_to_limit"] == pytest.approx(
        found["env_steps_per_second"] / found["limit"]["env_steps_per_second"]
    )
    assert (found["workers"], found["limit"]["rollouts"], found["limit"]["env_steps"]) == (1, 3, 60)
    assert found["stock"]["steps"] == 3
    assert found["stock"]["seconds_per_render"] > 3 * found["limit"]["seconds_per_look"]
    assert "times the stock environment" in bench.describe_rollout(found)


def test_an_iteration_is_timed_part_by_part() -> None:
    config = toy(workers=0, slots=8)
    found = bench_update(config)
    parts = ("set_policy", "rollouts", "batch", "update", "checkpoint")
    assert list(found["seconds"]) == [*parts, "total"]
    assert found["seconds"]["total"] == pytest.approx(sum(found["seconds"][name] for name in parts))
    assert 0 < found["update_share"] < 1
    assert found["rollouts"] == config.sampling.groups * config.sampling.group_size
    assert found["optimiser_steps"] == config.learn.epochs * -(-found["decisions"] // config.learn.minibatch)
    assert "of the iteration" in describe_update(found)


def test_rollouts_of_another_kind_of_policy_are_refused_before_a_simulator_is_made(monkeypatch) -> None:
    monkeypatch.setattr(bench, "make_env_pool", lambda *_, **__: pytest.fail("a pool was made"))
    with pytest.raises(ConfigError, match="known of QueST's parts only, not of gaussian's: give a recipe of QueST's"):
        bench.bench_rollout(
            Config.from_record(
                {"sim": {"suite": "metaworld"}, "policy": {"kind": "gaussian"}, "tasks": ["drawer-open-v3"]}
            )
        )


def test_a_stock_environment_that_breaks_is_reported_by_its_error(monkeypatch) -> None:
    received = []
    pipe = SimpleNamespace(send=received.append)
    make, options = suites.get("metaworld").stock, MetaworldOptions()
    bench.stock_worker(pipe, make, "metaworld/no-such-task-v3", options, None, 1, 0)  # type: ignore[arg-type]
    (error,) = received
    assert isinstance(error, RuntimeError)
    with pytest.raises(bench.WorkerError, match="the stock environment failed"):
        bench._receive(SimpleNamespace(recv=lambda: error))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def one_thread() -> object:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_shares_of_time_come_from_the_pool_and_are_of_all_workers() -> None:
    spent = {"simulate": Sum(3.0), "render": Sum(2.0), "infer": Sum(1.0), "wait": Sum(0.5), "rollouts": Sum(9)}
    split = bench.shares(spent, processes=2, seconds=5.0)
    assert split == pytest.approx({"simulate": 0.3, "render": 0.2, "infer": 0.1, "wait": 0.05})
    assert np.isclose(sum(split.values()), 0.65)


# ---------------------------------------------------------------------- what `ript bench update` is asked for


BENCH = ["bench", "update", "--recipe", "smoke", "--rollout.slots=4", "--sampling.groups=2", "--sampling.group_size=4"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("--sampling.state_noise=0.5", "sampling.state_noise: the simulator of toy/reach has no object"),
        ("--sampling.demos=/nonexistent.hdf5", "/nonexistent.hdf5"),
        ("--sampling.horizon=999", "sampling.horizon = 999 has no effect: episodes end after 24 steps"),
        ("--sampling.horizon_margin=1.5", "sampling.horizon_margin has no effect in `ript bench update`"),
        ("--learn.adapt_kl=0.1", "learn.adapt_kl has no effect in `ript bench update`"),
        ("--learn.target_kl=0.1", "learn.target_kl: no effect on random weights; leave it out, or give --policy"),
        ("--sampling.dynamic=false", "sampling.dynamic: no effect on random weights"),
        ("--sampling.max_attempts=99", "sampling.max_attempts: no effect on random weights"),
    ],
)
def test_a_setting_that_an_iterations_timing_cannot_follow_is_refused(word: str, says: str, capsys) -> None:
    assert cli.main([*BENCH, word]) != 0
    assert says in capsys.readouterr().err


def test_an_iteration_is_timed_with_the_states_groups_and_update_that_were_asked_for(monkeypatch) -> None:
    seen: list[dict] = []

    def collecting(pool, states, **settings):
        drawn: list = []
        found = collect_groups(pool, (drawn.append(state.id) or state for state in states), **settings)
        seen.append(settings | {"states": set(drawn), "groups": found.groups})
        return found

    def updating(policy, optimiser, batch, *, start, **settings):
        seen.append({"start": start, "policy": policy, "decay": optimiser.param_groups[0]["weight_decay"]} | settings)
        return update(policy, optimiser, batch, start=start, **settings)

    monkeypatch.setattr("ript.bench.update.collect_groups", collecting)
    monkeypatch.setattr("ript.bench.update.update", updating)
    asked = toy_config(
        tasks=("reach", "reach-centre"),
        sampling={"states": 2, "groups": 4, "max_attempts": 9, "equal_tasks": True},
        learn={"kl_to_start": 0.1, "weight_decay": 0.25, "target_kl": 0.0},
    )
    policy = lively_policy(asked)
    before = {name: weight.clone() for name, weight in policy.weights().items()}
    bench_update(asked, policy)
    _, collected, updated = seen
    assert len(collected["states"]) <= 4 and (collected["dynamic"], collected["equal_tasks"]) == (True, 2)
    assert updated["decay"] == 0.25 and updated["kl_to_start"] == 0.1 and updated["target_kl"] is None
    start, after = updated["start"].weights(), updated["policy"].weights()
    assert all(torch.equal(start[name], before[name]) for name in start)
    assert any(not torch.equal(start[name], after[name]) for name in start)
    first = replace(asked, sampling=replace(asked.sampling, dynamic=False, equal_tasks=False))
    seen.clear()
    with contextlib.suppress(ConfigError):  # the first two groups may have no signal
        bench_update(first, policy)
    assert len(seen[1]["groups"]) == 4 and seen[1]["dynamic"] is False


def test_a_setting_that_rollouts_of_random_weights_do_not_have_is_refused(capsys) -> None:
    assert cli.main(["bench", "rollout", "--recipe", "smoke", "--policy.standardise=false"]) == 2
    assert "policy.standardise has no effect in `ript bench rollout`" in capsys.readouterr().err
