"""A cluster of nodes makes what one machine makes, bit for bit; what a lost node had is made again elsewhere.

One cluster for all tests of this file: a head that gives no cores, and nodes of one core each.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from ript.build import make_env_pool, make_policy, some_task_keys  # noqa: E402
from ript.cli import main as cli  # noqa: E402
from ript.config.sections import ClusterConfig  # noqa: E402
from ript.core.errors import ConfigError, WorkerError  # noqa: E402
from ript.core.metrics import values  # noqa: E402
from ript.core.options import replace  # noqa: E402
from ript.demos.demo_set import open_demos  # noqa: E402
from ript.demos.windows import Windows  # noqa: E402
from ript.learn import spread, spread_stages  # noqa: E402
from ript.rl import train_rl  # noqa: E402
from ript.rollout.sampling import collect_groups  # noqa: E402
from ript.run.states import InitialStates  # noqa: E402
from ript.sft import resume_sft, train_sft  # noqa: E402
from tests.fakes import FakeFactory, FakePolicy, same  # noqa: E402
from tests.rollout.test_pool import collect, inline, requests  # noqa: E402
from tests.toy_runs import (  # noqa: E402
    Stopped,
    lively_policy,
    stop_in,
    toy_config,
    toy_demos,
    weights,
    without_times,
)

STORE = 80 * 2**20
"""Bytes of object store: Ray's least."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster = Cluster()
    try:
        _patiently(cluster, num_cpus=0, include_dashboard=False)
        for _ in range(2):
            _patiently(cluster, num_cpus=1)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def _patiently(cluster: Any, **settings: Any) -> None:
    """Add a node; Ray itself waits for 30 s, which a busy machine may need."""
    for _ in range(3):
        try:
            cluster.add_node(**settings, object_store_memory=STORE)
            return
        except Exception as error:
            last = error
    raise last


SETTINGS = {
    "slots": 3,
    "inference": "local",
    "request_timeout": 60.0,
    "max_retries": 2,
    "max_error_rate": 0.2,
    "loaded_tasks": 16,
    "gather": 0.005,
}


def pool_of(cluster: Any, policy: Any = None, *, delay: float = 0.0, **size: int) -> Any:
    from ript.rollout.cluster.pool import make_cluster_pool
    from ript.rollout.cluster.roster import Size

    return make_cluster_pool(
        FakeFactory(delay=delay),
        policy or FakePolicy(),
        address=cluster.address,
        size=Size(**({"workers_per_node": 1} | size)),
        settings=SETTINGS,
    )


def test_nodes_make_the_rollouts_that_this_process_makes_and_keep_their_records(cluster: Any) -> None:
    wanted = requests()
    expected = inline(wanted)
    with pool_of(cluster, delay=0.001) as pool:
        assert len(pool.nodes) == 2
        for _ in range(2):
            done = collect(pool, wanted)
            assert done.keys() == expected.keys()
            assert all(r.sample is None and r.inputs is None for r in done.values())
            assert all(same(done[key].whole(), expected[key]) for key in expected)


def test_what_a_killed_node_had_to_do_and_had_recorded_is_made_again(cluster: Any) -> None:
    wanted = requests(12)
    expected = inline(wanted)
    done: dict[tuple[str, int], Any] = {}
    with pool_of(cluster, delay=0.01) as pool:
        for number, rollout in enumerate(pool.run(iter(wanted))):
            done[rollout.initial_state_id, rollout.index] = rollout
            if number == 10:
                os.kill(pool.pids[pool.nodes[0]], signal.SIGKILL)
        assert values(pool.timings())["worker_restarts"] == 1
        assert any(r.held and pool.home(r) is None for r in done.values())  # some records are gone
        assert done.keys() == expected.keys()
        assert all(same(done[key].whole(), expected[key]) for key in expected)
        while len(pool.nodes) < 2:  # another took its place
            assert collect(pool, wanted).keys() == expected.keys()


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ({"nodes": 9}, "cluster.nodes = 9, but the cluster has 2 with cores to give"),
        ({"workers_per_node": 5}, "cluster.workers_per_node = 5, but .* has 1 core"),
    ],
)
def test_more_than_the_cluster_has_is_refused(cluster: Any, size: dict[str, int], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        pool_of(cluster, **size)


def test_a_node_of_another_version_is_refused_by_name(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ript.rollout.cluster import roster

    monkeypatch.setattr(roster, "installed", lambda packages: dict.fromkeys(packages, "0"))
    with pytest.raises(
        ConfigError, match=r"node \d at .* has other versions than this process: ript .* \(here 0\), torch"
    ):
        pool_of(cluster)


def test_a_second_run_is_told_that_the_cores_are_in_use(cluster: Any) -> None:
    with (
        pool_of(cluster),
        pytest.raises(WorkerError, match="did not start within 2 s: its cores may be in use by another"),
    ):
        pool_of(cluster, start=2)


def test_a_run_on_a_cluster_is_that_of_one_process(cluster: Any, tmp_path: Path) -> None:
    config = toy_config(rollout={"fixed_batch": 8})
    here = train_rl(config, lively_policy(config), tmp_path / "here")
    config = replace(config, cluster=ClusterConfig(address=cluster.address, workers_per_node=1))
    there = train_rl(config, lively_policy(config), tmp_path / "there")
    assert weights(there.folder) == weights(here.folder)
    assert without_times(there.folder) == without_times(here.folder)


def collected(pool: Any, config: Any, policy: Any) -> list[Any]:
    """Every rollout of an iteration, with its record, in order."""
    states = InitialStates(pool, some_task_keys(config), 0)
    policy.pretend_to_read([states.task(key).instruction for key in states.tasks])
    pool.use(policy)
    groups = collect_groups(
        pool, states.training(0), group_size=2, quota=4, max_attempts=4, seed=(0, 1), dynamic=False, horizon=HORIZON
    ).groups
    return [rollout.whole() for group in groups for rollout in group.rollouts]


TASKS = ("drawer-open-v3", "reach-v3")
HORIZON = {f"metaworld/{task}": 12 for task in TASKS}


def test_the_collection_of_an_iteration_on_meta_world_is_that_of_one_process(cluster: Any) -> None:
    pytest.importorskip("metaworld")
    config = toy_config(tasks=TASKS, sim={"suite": "metaworld", "image_size": 32})
    config = replace(config, rollout=replace(config.rollout, slots=4, fixed_batch=4))
    with make_env_pool(config.sim, config.rollout) as here:
        spec = InitialStates(here, some_task_keys(config), 0).spec
        policy = make_policy(config, spec, seed=1)
        expected = collected(here, config, policy)
    on = ClusterConfig(address=cluster.address, workers_per_node=1)
    with make_env_pool(config.sim, config.rollout, cluster=on) as there:
        found = collected(there, config, policy)
    assert len(found) == 8 and all(same(a, b) for a, b in zip(found, expected, strict=True))
    assert {r.decisions for r in found} == {3}


def test_ranks_on_nodes_learn_what_one_process_learns(cluster: Any, tmp_path: Path) -> None:
    config = toy_config(iterations=1, rollout={"fixed_batch": 8}, eval={"every": 0})
    here = train_rl(config, lively_policy(config), tmp_path / "here")
    on = ClusterConfig(address=cluster.address, workers_per_node=1)
    config = replace(config, cluster=on, learn=replace(config.learn, ranks="auto"))
    there = train_rl(config, lively_policy(config), tmp_path / "there")
    ours, theirs = (_trained(result.folder) for result in (here, there))
    before = load_file(here.folder / "start" / "model.safetensors")
    assert any(not torch.equal(ours[name], tensor) for name, tensor in before.items())
    for name in ours:
        apart = (ours[name].double() - theirs[name].double()).norm()
        assert float(apart) <= 1e-6 * float(ours[name].double().norm()), name


def test_an_update_that_loses_a_rank_begins_again_with_the_others(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ript.rollout.cluster.pool import ClusterPool

    config = toy_config(iterations=1, rollout={"fixed_batch": 8}, eval={"every": 0})
    here = train_rl(config, lively_policy(config), tmp_path / "here")
    work, lost = ClusterPool.work, []

    def killing_one(pool: Any, function: Any, jobs: Any) -> Any:
        if function is spread.learn and not lost:
            lost.append(pool.pids[[*jobs][-1]])
            os.kill(lost[0], signal.SIGSTOP)  # it takes its job, and never answers
            threading.Timer(0.5, os.kill, (lost[0], signal.SIGKILL)).start()
        return work(pool, function, jobs)

    monkeypatch.setattr(ClusterPool, "work", killing_one)
    on = ClusterConfig(address=cluster.address, workers_per_node=1)
    config = replace(config, cluster=on, learn=replace(config.learn, ranks="auto"))
    there = train_rl(config, lively_policy(config), tmp_path / "there")
    assert lost and weights(there.folder) == weights(here.folder)  # one rank was left


def _trained(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, without biases of attention's keys: nothing depends on them, their gradient is rounding alone, and AdamW
    makes steps of it all the same. (Another size of micro-batches in one process moves them as far.)"""
    found = {n: t for n, t in load_file(folder / "policy" / "model.safetensors").items() if t.is_floating_point()}
    for name in [name for name in found if name.endswith("in_proj_bias")]:
        query, _, value = found[name].chunk(3)
        found[name] = torch.cat([query, value])
    return found


def test_demonstrations_and_evaluations_are_those_of_one_machine(
    cluster: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ript(*words: object) -> Any:
        assert cli.main([*map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    config = toy_config()
    policy = tmp_path / "policy"
    lively_policy(config).save_pretrained(policy)
    on = ("--cluster", cluster.address, "--cluster.workers-per-node=1")
    collect = ("demos", "collect", "--recipe", "smoke", "--tasks", "reach-left", "reach-centre", "--per-task", 3)
    made = [ript(*collect, "--out", tmp_path / f"{name}.hdf5", *words) for name, words in (("a", on), ("b", ()))]
    assert [row["tries"] for row in made] == [made[0]["tries"]] * 2
    fingerprints = [Windows(open_demos(tmp_path / f"{name}.hdf5"), 4).fingerprint() for name in "ab"]
    assert fingerprints[0] == fingerprints[1]
    asked = ("eval", "--policy", policy, "--tasks", "reach-centre", "--trials", 8)
    assert ript(*asked, *on) == ript(*asked, "--workers", 0)


def test_supervised_training_by_ranks_goes_on_without_one_that_is_lost_and_here(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ript.rollout.cluster.pool import ClusterPool

    config = toy_config(sft={"autoencoder_steps": 2, "policy_steps": 10, "finetune_steps": 6, "checkpoint_every": 4})
    demos = toy_demos(tmp_path / "demos.hdf5", config, "reach-left", "reach-centre")
    alone = train_sft(config, demos, tmp_path / "alone")
    on = ClusterConfig(address=cluster.address, workers_per_node=1)
    config = replace(config, cluster=on, learn=replace(config.learn, ranks="auto"))
    work, asked = ClusterPool.work, []

    def killing_one(pool: Any, function: Any, jobs: Any) -> Any:
        if function is spread_stages.train:
            asked.append(len(jobs))
            if len(asked) == 3:  # in the middle of the second stage
                victim = pool.pids[[*jobs][-1]]
                os.kill(victim, signal.SIGSTOP)  # it takes its job, and never answers
                threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
        return work(pool, function, jobs)

    monkeypatch.setattr(ClusterPool, "work", killing_one)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 16)  # after the stretch up to its checkpoint
        train_sft(config, demos, tmp_path / "run")
    assert asked[:4] == [2, 2, 2, 1]
    monkeypatch.undo()
    there = resume_sft(tmp_path / "run", {"cluster.address": "none", "learn.ranks": 0})
    ours, theirs = without_times(tmp_path / "alone"), without_times(tmp_path / "run")
    assert [row["iteration"] for row in ours["metrics.jsonl"]] == [row["iteration"] for row in theirs["metrics.jsonl"]]
    for one, other in zip(ours["metrics.jsonl"], theirs["metrics.jsonl"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    state = there.state_dict()
    assert all(torch.allclose(t.float(), state[n].float(), atol=2e-3) for n, t in alone.state_dict().items())
