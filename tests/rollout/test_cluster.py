"""A cluster of nodes makes what one machine makes, bit for bit; what a lost node had is made again elsewhere.

One cluster for all tests of this file: a head that gives no cores, and two machines that give two each, one of them a
GPU too, as far as Ray knows. A pool that is asked for again is still there (`keep`): to start one takes longer than
what is done with it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from ript.bench.update import bench_update, describe_update  # noqa: E402
from ript.build import RENDERS, make_env_pool, make_policy, some_task_keys  # noqa: E402
from ript.cli import main as cli  # noqa: E402
from ript.config.sections import ClusterConfig  # noqa: E402
from ript.config.text import describe  # noqa: E402
from ript.core import children  # noqa: E402
from ript.core.capacity import RENDER_GPU  # noqa: E402
from ript.core.errors import ConfigError, RendererMissing, WorkerError  # noqa: E402
from ript.core.metrics import values  # noqa: E402
from ript.core.options import replace  # noqa: E402
from ript.demos.demo_set import open_demos  # noqa: E402
from ript.demos.windows import Windows  # noqa: E402
from ript.learn import spread, spread_stages  # noqa: E402
from ript.rl import train_rl  # noqa: E402
from ript.rollout.cluster import pool as cluster_pool  # noqa: E402
from ript.rollout.cluster import roster, starter  # noqa: E402
from ript.rollout.cluster.connection import Connection  # noqa: E402
from ript.rollout.cluster.pool import ClusterPool, make_cluster_pool  # noqa: E402
from ript.rollout.cluster.starter import Size  # noqa: E402
from ript.rollout.sampling import collect_groups  # noqa: E402
from ript.run.states import InitialStates  # noqa: E402
from ript.sft import resume_sft, train_sft  # noqa: E402
from ript.studies.catalogue import STUDIES, Cell, Study  # noqa: E402
from tests.fakes import FakeFactory, FakePolicy, same  # noqa: E402
from tests.packages import needs  # noqa: E402
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
CORES = 2
"""Of each machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster = Cluster()
    try:
        _patiently(cluster, num_cpus=0, include_dashboard=False)
        _patiently(cluster, num_cpus=CORES, num_gpus=1)  # so Ray is told: there need be none
        _patiently(cluster, num_cpus=CORES)
        with contextlib.closing(Connection(cluster.address)), pytest.MonkeyPatch.context() as patch:
            patch.setattr(roster, "LOOK_SECONDS", 0.5)
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


def on_each(cluster: Any, **size: Any) -> dict[str, Any]:
    """Settings of a pool with a worker on each machine, or of another size."""
    return {"address": cluster.address, "size": Size(**({"workers_per_node": 1} | size)), "settings": SETTINGS}


def refused(cluster: Any, check: str = "", **size: Any) -> None:
    """A pool that cannot be."""
    make_cluster_pool(FakeFactory(), None, check=check, **on_each(cluster, **size)).close()


@pytest.fixture(scope="module")
def keep(cluster: Any) -> Iterator[Callable[..., ClusterPool]]:
    """As `make_cluster_pool`, but a pool stays until one of other settings is asked for."""
    kept: dict[Any, ClusterPool] = {}

    def close() -> None:
        for key in list(kept):
            ClusterPool.close(kept.pop(key))

    def make(factory: Any, policy: Any, *, size: Size, **settings: Any) -> ClusterPool:
        key = children.pack(factory), size, *map(repr, settings.values())
        if key not in kept:
            close()
            kept[key] = make_cluster_pool(factory, None, size=size, **settings)
            kept[key].close = lambda: None  # type: ignore[method-assign]
        while len(kept[key].nodes) < (size.nodes or 2):  # of one that was lost
            kept[key].look()
        if policy is not None:
            kept[key].use(policy)
        return kept[key]

    yield make
    close()


@pytest.fixture
def fakes(cluster: Any, keep: Callable[..., ClusterPool]) -> ClusterPool:
    return keep(FakeFactory(delay=0.01), FakePolicy(), **on_each(cluster))


@pytest.fixture
def standing(cluster: Any, keep: Any, monkeypatch: pytest.MonkeyPatch) -> ClusterConfig:
    """A cluster for runs and commands."""
    monkeypatch.setattr(cluster_pool, "make_cluster_pool", keep)
    return ClusterConfig(address=cluster.address, workers_per_node=1)


@pytest.mark.slow
def test_nodes_share_the_gpu_that_ray_gives_them_and_hide_none_from_their_renderers(cluster: Any, keep: Any) -> None:
    pool = keep(FakeFactory(), FakePolicy(), **on_each(cluster, nodes=2, gpus_per_node=0.5))
    assert {member.place.gpus for member in pool._roster.members} == {1}  # both on the machine that has one
    told = pool.work(
        lambda desk: (
            ray.get_runtime_context().get_accelerator_ids()["GPU"],
            ray.get_runtime_context().get_assigned_resources()["GPU"],
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            os.environ[RENDER_GPU],
        ),
        dict.fromkeys(pool.nodes, ()),
    )
    assert list(told.values()) == [(["0"], 0.5, None, "0")] * 2
    assert collect(pool, requests(2)).keys() == inline(requests(2)).keys()


def test_nodes_make_the_rollouts_that_this_process_makes_and_keep_their_records(fakes: ClusterPool) -> None:
    wanted = requests()
    expected = inline(wanted)
    assert len(fakes.nodes) == 2
    for _ in range(2):
        done = collect(fakes, wanted)
        assert done.keys() == expected.keys()
        assert all(r.sample is None and r.inputs is None for r in done.values())
        whole = {key: rollout.whole() for key, rollout in done.items()}
        assert all(same(whole[key], expected[key]) for key in expected)
        assert all(r.sample.flags.writeable for r in whole.values() if r.recorded)  # what lies in the store is not


def test_a_second_run_is_told_that_the_cores_are_in_use(cluster: Any, fakes: ClusterPool) -> None:
    with pytest.raises(WorkerError, match="did not start within 1 s: its cores may be in use by another"):
        refused(cluster, workers_per_node=CORES, start=1)


@pytest.mark.slow
def test_two_runs_of_one_node_each_take_a_machine_each_and_no_more_when_theirs_is_lost(
    cluster: Any, fakes: ClusterPool, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = requests(12)
    settings = on_each(cluster, nodes=1)
    with (
        contextlib.closing(make_cluster_pool(FakeFactory(delay=0.01), FakePolicy(), **settings)) as one,
        contextlib.closing(make_cluster_pool(FakeFactory(delay=0.01), FakePolicy(), **settings)) as other,
    ):
        machines = {pool._roster.members[0].place.id for pool in (one, other)}
        assert len(machines) == 2
        for number, _ in enumerate(one.run(iter(wanted))):
            if number == 10:
                os.kill(one.pids[one.nodes[0]], signal.SIGKILL)
        for _ in range(5):
            one.look()
        assert len(one.nodes) == 1 and not one._roster._coming
        assert any("rollouts it had are run again" in message for message in caplog.messages)


def test_what_a_killed_node_had_to_do_and_had_recorded_is_made_again(fakes: ClusterPool) -> None:
    wanted = requests(12)
    expected = inline(wanted)
    done: dict[tuple[str, int], Any] = {}
    fakes.timings()
    for number, rollout in enumerate(fakes.run(iter(wanted))):
        done[rollout.initial_state_id, rollout.index] = rollout
        if number == 10:
            os.kill(fakes.pids[fakes.nodes[0]], signal.SIGKILL)
    assert values(fakes.timings())["worker_restarts"] == 1
    assert any(r.held and fakes.home(r) is None for r in done.values())  # some records are gone
    assert done.keys() == expected.keys()
    assert all(same(done[key].whole(), expected[key]) for key in expected)
    while len(fakes.nodes) < 2:  # another took its place
        assert collect(fakes, wanted).keys() == expected.keys()


@pytest.mark.parametrize(
    ("size", "complaint"),
    [
        ({"nodes": 9}, "cluster.nodes = 9, but the cluster has 2 with cores to give"),
        ({"workers_per_node": 5}, "cluster.workers_per_node = 5, but .* has 2 cores"),
        ({"nodes": 3, "gpus_per_node": 0.5}, r"but the cluster has GPUs for 2 of them \(cluster.gpus_per_node = 0.5\)"),
        ({"gpus_per_node": 1}, r"gpus_per_node = 1, but \S+ \(\w+\) has no GPU to give, .*--cluster.nodes=1\)"),
    ],
)
def test_more_than_the_cluster_has_is_refused(cluster: Any, size: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        refused(cluster, **size)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")
def test_a_node_whose_gpu_torch_does_not_see_is_refused_by_name(cluster: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"node \d at .*: Ray gave it GPU 0, but torch \S+ sees no CUDA device there: install a build"
    ):
        refused(cluster, nodes=1, gpus_per_node=1, device="cuda")


def test_a_node_of_another_version_is_refused_by_name(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "installed", lambda packages: dict.fromkeys(packages, "0"))
    with pytest.raises(
        ConfigError, match=r"node \d at .* has other versions than this process: ript .* \(here 0\), torch"
    ):
        refused(cluster, nodes=1)


@needs("mujoco")
def test_a_machine_that_cannot_render_is_refused_by_name_with_the_remedy(cluster: Any) -> None:
    blind = cluster.add_node(num_cpus=1, object_store_memory=STORE, env_vars={"MUJOCO_EGL_DEVICE_ID": "99"})
    try:
        with pytest.raises(RendererMissing) as raised:
            refused(cluster, check=RENDERS)
    finally:
        cluster.remove_node(blind)
    assert re.match(
        rf"node \d at \S+ \({blind.node_id[:6]}\): no OpenGL renderer could be started .* "
        "MUJOCO_EGL_DEVICE_ID is 99: unset it, or choose a device that is there",
        str(raised.value),
    )


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


@pytest.mark.slow
@needs("metaworld")
def test_the_collection_of_an_iteration_on_meta_world_is_that_of_one_process(cluster: Any) -> None:
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


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration, here."""
    folder = tmp_path_factory.mktemp("updated") / "run"
    train_rl(ONE, lively_policy(ONE), folder)
    return folder


ONE = toy_config(iterations=1, rollout={"fixed_batch": 8}, eval={"every": 0})
RANKS = replace(ONE.learn, ranks="auto")


def test_ranks_on_nodes_learn_what_one_process_learns(standing: ClusterConfig, updated: Path, tmp_path: Path) -> None:
    there = train_rl(replace(ONE, cluster=standing, learn=RANKS), lively_policy(ONE), tmp_path / "there")
    assert apart(updated, there.folder) <= 1e-6


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ranks_on_four_machines_learn_what_one_process_learns(
    cluster: Any, standing: ClusterConfig, updated: Path, tmp_path: Path
) -> None:
    more = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    try:
        config = replace(ONE, cluster=replace(standing, nodes=4), learn=replace(ONE.learn, ranks=4))
        there = train_rl(config, lively_policy(ONE), tmp_path / "there")
    finally:
        for node in more:
            cluster.remove_node(node)
    assert apart(updated, there.folder) <= 1e-6
    (ours,), (theirs,) = (without_times(folder)["metrics.jsonl"] for folder in (updated, there.folder))
    counts = [name for name in ours if name.startswith("rollout/") or name.split("/")[-1] in COUNTED]
    assert len(counts) > 12 and [ours[name] for name in counts] == [theirs[name] for name in counts]
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


COUNTED = ("decisions", "optimiser_steps", "epochs_done", "clip_fraction", "grad_clip_fraction")
"""Metrics of an update that are counts, or shares of them."""


def apart(ours: Path, theirs: Path) -> float:
    """The largest relative distance of a weight that was trained, of two runs."""
    before = load_file(ours / "start" / "model.safetensors")
    one, other = _trained(ours), _trained(theirs)
    assert any(not torch.equal(one[name], tensor) for name, tensor in before.items())
    distance = {name: (one[name].double() - other[name].double()).norm() for name in one}
    return max(float(d) / max(1e-30, float(one[name].double().norm())) for name, d in distance.items())


def kill_one(monkeypatch: pytest.MonkeyPatch, function: Any, call: int) -> list[int]:
    """When this function is asked of ranks for the so-manieth time, the last of them is killed, its job in hand.
    Returns how many ranks it was asked of, each time."""
    work, asked = ClusterPool.work, []

    def killing(pool: Any, asked_for: Any, jobs: Any) -> Any:
        if asked_for is function:
            asked.append(len(jobs))
            if len(asked) == call:
                victim = pool.pids[[*jobs][-1]]
                os.kill(victim, signal.SIGSTOP)  # it takes its job, and never answers
                threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
        return work(pool, asked_for, jobs)

    monkeypatch.setattr(ClusterPool, "work", killing)
    return asked


def test_an_update_that_loses_a_rank_begins_again_with_the_others(
    standing: ClusterConfig, updated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = kill_one(monkeypatch, spread.learn, 1)
    there = train_rl(replace(ONE, cluster=standing, learn=RANKS), lively_policy(ONE), tmp_path / "there")
    assert asked == [2, 1] and weights(there.folder) == weights(updated)


def _trained(folder: Path) -> dict[str, torch.Tensor]:
    """Weights, without biases of attention's keys: nothing depends on them, their gradient is rounding alone, and AdamW
    makes steps of it all the same. (Another size of micro-batches in one process moves them as far.)"""
    found = {n: t for n, t in load_file(folder / "policy" / "model.safetensors").items() if t.is_floating_point()}
    for name in [name for name in found if name.endswith("in_proj_bias")]:
        query, _, value = found[name].chunk(3)
        found[name] = torch.cat([query, value])
    return found


@pytest.mark.slow
def test_a_run_on_two_nodes_goes_on_here_and_then_on_one_with_the_same_result(
    standing: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(rollout={"fixed_batch": 8})
    here = train_rl(config, lively_policy(config), tmp_path / "here")
    for iteration, on in ((2, standing), (3, ClusterConfig())):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_in(patch, "log", iteration)
            policy = lively_policy(config) if iteration == 2 else None
            train_rl(replace(config, cluster=on), policy, tmp_path / "there", resume=policy is None)
    words = ["--cluster", standing.address, "--cluster.nodes=1", "--cluster.workers_per_node=1"]
    assert cli.main(["rl", "--resume", str(tmp_path / "there"), *words]) == 0
    assert weights(tmp_path / "there") == weights(here.folder)
    assert without_times(tmp_path / "there") == without_times(here.folder)


def test_an_iteration_timed_on_a_cluster_says_how_large_that_is(standing: ClusterConfig) -> None:
    found = bench_update(toy_config(cluster=standing, rollout={"workers": 3, "slots": 2}))
    assert (found["workers"], found["nodes"]) == (2, 2)
    assert ", 2 workers on 2 nodes: 12 rollouts, " in describe_update(found)


def run(*words: object) -> Any:
    """The document of a command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(out.getvalue())


def twice(standing: ClusterConfig, *words: object) -> list[Any]:
    """The documents of a command, on the cluster and here; THERE in a path is `here` then."""
    on = ("--cluster", standing.address, "--cluster.workers-per-node=1")
    here = [str(word).replace("THERE", "here") for word in words]
    return [run(*words, *on), run(*here, *(() if words[0] == "demos" else ("--workers", 0)))]


def test_demonstrations_and_evaluations_are_those_of_one_machine(standing: ClusterConfig, tmp_path: Path) -> None:
    config = toy_config()
    lively_policy(config).save_pretrained(tmp_path / "policy")
    words = ("--recipe", "smoke", "--tasks", "reach-left", "reach-centre", "--per-task", 3)
    made = twice(standing, "demos", "collect", *words, "--out", tmp_path / "THERE.hdf5")
    assert made[0]["tries"] == made[1]["tries"]
    there, here = (Windows(open_demos(tmp_path / f"{name}.hdf5"), 4).fingerprint() for name in ("THERE", "here"))
    assert there == here
    measured = twice(standing, "eval", "--policy", tmp_path / "policy", "--tasks", "reach-centre", "--trials", 8)
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_the_quickstart_a_study_and_a_measurement_of_rollouts_run_on_a_cluster(
    standing: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path / "cache"))
    config = toy_config(
        iterations=1,
        pretrain_tasks=("reach-left", "reach-corner"),
        sft={"autoencoder_steps": 10, "policy_steps": 10, "finetune_steps": 5, "autoencoder_batch": 16},
        rollout={"fixed_batch": 8},
        eval={"trials": 4, "every": 0, "mode": "greedy"},
    )
    (tmp_path / "toy.toml").write_text(describe(config))
    cells = (Cell(name="all", config=config),)
    about = {"question": "Does it run?", "expected": "yes", "needs": "toy", "tasks_instead": "all"}
    monkeypatch.setitem(STUDIES, "toy", lambda scale: Study(name="toy", cells=cells, seeds=(0,), **about))
    recipe = ("--recipe", tmp_path / "toy.toml")
    twice(standing, "quickstart", *recipe, "--target", "reach-centre", "--out", tmp_path / "q-THERE")
    for folder in ("sft", "rl"):
        assert weights(tmp_path / "q-THERE" / folder) == weights(tmp_path / "q-here" / folder)
    on = ("--cluster", standing.address, "--cluster.workers_per_node=1")
    done = run("study", "toy", "--out", tmp_path / "study", *on)
    assert not done["failed"] and [row["after"]["trials"] for row in done["rows"]] == [4]
    found = run("bench", "rollout", *recipe, *on)
    assert (found["nodes"], found["workers"]) == (2, 2) and found["ratio_to_local"] > 0


def test_supervised_training_by_ranks_goes_on_without_one_that_is_lost_and_here(
    standing: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(sft={"autoencoder_steps": 2, "policy_steps": 10, "finetune_steps": 6, "checkpoint_every": 4})
    demos = toy_demos(tmp_path / "demos.hdf5", config, "reach-left", "reach-centre")
    alone = train_sft(config, demos, tmp_path / "alone")
    config = replace(config, cluster=standing, learn=RANKS)
    asked = kill_one(monkeypatch, spread_stages.train, 3)  # in the middle of the second stage
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_in(patch, "log", 16)  # after the stretch up to its checkpoint
        train_sft(config, demos, tmp_path / "run")
    assert asked[:4] == [2, 2, 2, 1]
    there = resume_sft(tmp_path / "run", {"cluster.address": "none", "learn.ranks": 0})
    ours, theirs = without_times(tmp_path / "alone"), without_times(tmp_path / "run")
    assert [row["iteration"] for row in ours["metrics.jsonl"]] == [row["iteration"] for row in theirs["metrics.jsonl"]]
    for one, other in zip(ours["metrics.jsonl"], theirs["metrics.jsonl"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    state = there.state_dict()
    assert all(torch.allclose(t.float(), state[n].float(), atol=2e-3) for n, t in alone.state_dict().items())
