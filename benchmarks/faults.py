"""What happens when something is lost: rows of the table of docs/results.md, each done and judged here.

A cluster of a head without cores and two nodes on this machine (`ray.cluster_utils.Cluster`: the processes that
`ray start` starts). What is lost is really killed or stopped; every result is compared, bit for bit, with that of one
process that nothing disturbs.

python benchmarks/faults.py                        (all rows, a few minutes)
python benchmarks/faults.py node-killed evaluation (some)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from waiting import Waiting

from ript import build
from ript.build import make_env_pool, make_policy, some_task_keys
from ript.config.recipes import smoke
from ript.config.sections import ClusterConfig, Config
from ript.core.interfaces import PostTrainable
from ript.core.options import replace
from ript.core.types import Rollout, RolloutRequest
from ript.evaluation import evaluate
from ript.learn import spread
from ript.rl import train_rl
from ript.rollout.cluster.connection import require_ray
from ript.rollout.cluster.pool import ClusterPool
from ript.rollout.sampling import collect_groups
from ript.run.states import InitialStates

STORE = 80 * 2**20
"""Bytes of each node's object store: Ray's least."""
ROLLOUTS, GROUP = 48, 4
START_SECONDS = 600.0


class Here:
    """The cluster, and what is asked of it."""

    def __init__(self, cluster: Any, folder: Path):
        self.cluster, self.folder = cluster, folder
        base = smoke()
        self.config = replace(
            base,
            iterations=2,
            rollout=replace(base.rollout, workers=0, slots=4, fixed_batch=8),
            sampling=replace(base.sampling, dynamic=False, groups=ROLLOUTS // GROUP, group_size=GROUP),
            learn=replace(base.learn, epochs=2),
            eval=replace(base.eval, every=0, trials=8, videos=0),
        )

    def on(self, **settings: Any) -> ClusterConfig:
        address = self.cluster.address
        return ClusterConfig(address=address, workers_per_node=1, start_timeout=START_SECONDS, **settings)

    def policy(self) -> PostTrainable:
        with make_env_pool(self.config.sim, self.config.rollout) as pool:
            return make_policy(self.config, InitialStates(pool, some_task_keys(self.config), 0).spec, seed=1)

    def collected(self, pool: Any, disturb: Callable[[Any], None] = lambda pool: None) -> list[Rollout]:
        """An iteration's rollouts in order, after some of which the pool is disturbed; their records are fetched."""
        states, policy = InitialStates(pool, some_task_keys(self.config), 0), self.policy()
        policy.pretend_to_read([states.task(key).instruction for key in states.tasks])  # type: ignore[attr-defined]
        pool.use(policy)
        run, disturbed = pool.run, threading.Event()

        def noting(requests: Iterator[RolloutRequest | None], heed: Any = None) -> Iterator[Rollout]:
            for number, rollout in enumerate(run(requests, heed)):
                if number == 10 and not disturbed.is_set():
                    disturbed.set()
                    disturb(pool)
                yield rollout

        pool.run = noting
        groups = collect_groups(
            pool,
            states.training(0),
            group_size=GROUP,
            quota=ROLLOUTS // GROUP,
            max_attempts=ROLLOUTS // GROUP,
            seed=(0, 1),
            dynamic=False,
            horizon=dict.fromkeys(some_task_keys(self.config), 24),
        ).groups
        return [rollout.whole() for group in groups for rollout in group.rollouts]

    def disturbed(self, disturb: Callable[[Any], None], **settings: Any) -> str:
        """Collect with a fault, beside a process without one; in words."""
        with make_env_pool(self.config.sim, self.config.rollout) as pool:
            expected = self.collected(pool)
        make = build.simulator_factory
        factory = Waiting(make(self.config.sim), 0.05)
        on = self.on(**settings)
        with make_env_pool(self.config.sim, self.config.rollout, cluster=on, factory=factory) as pool:
            began = time.perf_counter()
            found = self.collected(pool, disturb)
            spent = pool.timings()
            lost, again = int(spent["worker_restarts"].value), int(spent["retries"].value)
            seconds, nodes = time.perf_counter() - began, len(pool.nodes)  # type: ignore[attr-defined]
        same = len(found) == len(expected) and all(map(equal, found, expected))
        return (
            f"{lost} lost, {again} rollouts run again; {len(found)} rollouts and records after {seconds:.0f} s, "
            f"{nodes} nodes at the end; {'same result' if same else 'ANOTHER RESULT'}"
        )

    def grown(self) -> None:
        """A node for each that was lost, when the cluster knows that it was."""
        for node in [
            node for node in self.cluster.worker_nodes if node.all_processes["raylet"][0].process.poll() is not None
        ]:
            self.cluster.worker_nodes.discard(node)
        while len(self.cluster.worker_nodes) < 2:
            self.cluster.add_node(num_cpus=1, object_store_memory=STORE)
        self.cluster.wait_for_nodes(120)


def equal(one: Rollout, other: Rollout) -> bool:
    """To the bit, records included."""
    if (one.status, one.env_steps, one.initial_state_id, one.index) != (
        other.status,
        other.env_steps,
        other.initial_state_id,
        other.index,
    ):
        return False
    pairs = [(one.sample, other.sample), (one.log_prob, other.log_prob), (one.mask, other.mask)]
    pairs += [((one.inputs or {})[name], (other.inputs or {})[name]) for name in (one.inputs or {})]
    return all(np.array_equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


def below(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, fresh = [pid], [pid]
    while fresh:
        fresh = [child for parent in fresh for child in parents.get(parent, [])]
        found += fresh
    return found


def alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def raylet_of(here: Here, pid: int) -> Any:
    """The machine of the cluster on which a process is."""
    for node in here.cluster.worker_nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        if pid in below(raylet):
            return node
    raise RuntimeError(f"process {pid} is on no node")


def first(pool: Any) -> int:
    """Process id of a node that works."""
    return int(pool.pids[pool.nodes[0]])


ROWS: dict[str, tuple[str, Callable[[Here], str]]] = {}
"""Word -> what is done, and the function that does it."""


def row(word: str, what: str) -> Callable[[Callable[[Here], str]], Callable[[Here], str]]:
    def add(work: Callable[[Here], str]) -> Callable[[Here], str]:
        ROWS[word] = (what, work)
        return work

    return add


@row("node-killed", "a node killed hard (raylet and all) in collection")
def _(here: Here) -> str:
    return here.disturbed(lambda pool: here.cluster.remove_node(raylet_of(here, first(pool)), allow_graceful=False))


@row("process-killed", "the process of a node killed")
def _(here: Here) -> str:
    return here.disturbed(lambda pool: os.kill(first(pool), signal.SIGKILL))


@row("worker-killed", "a worker on a node killed")
def _(here: Here) -> str:
    def kill(pool: Any) -> None:
        victim = [pid for pid in below(first(pool)) if not below(pid)[1:]][-1]  # the last without children
        os.kill(victim, signal.SIGKILL)

    return here.disturbed(kill)


@row("all-killed", "the processes of all nodes killed at once")
def _(here: Here) -> str:
    return here.disturbed(lambda pool: [os.kill(pid, signal.SIGKILL) for pid in pool.pids.values()] and None)


@row("process-stopped", "SIGSTOP of a node's process, silence of 5 s")
def _(here: Here) -> str:
    return here.disturbed(lambda pool: os.kill(first(pool), signal.SIGSTOP), silence=5.0)


@row("machine-stopped", "SIGSTOP of a raylet and all its processes, silence of 5 s")
def _(here: Here) -> str:
    stopped: list[int] = []

    def stop(pool: Any) -> None:
        stopped.extend(below(raylet_of(here, first(pool)).all_processes["raylet"][0].process.pid))
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)

    try:
        return here.disturbed(stop, silence=5.0)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@row("network", "the network of a node gone (all that its processes send and receive is lost), silence of 5 s")
def _(here: Here) -> str:
    library, file = here.folder / "cut_off.so", here.folder / "cut_off"
    source = Path(__file__).with_name("cut_off.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    here.cluster.remove_node(min(here.cluster.worker_nodes, key=lambda node: node.node_id), allow_graceful=False)
    os.environ |= {"LD_PRELOAD": str(library), "CUT_OFF": str(file)}  # for the processes of this node
    try:
        node = here.cluster.add_node(num_cpus=1, object_store_memory=STORE)
    finally:
        del os.environ["LD_PRELOAD"], os.environ["CUT_OFF"]
    here.cluster.wait_for_nodes(120)
    there: list[int] = []

    def cut(pool: Any) -> None:
        there.extend(below(node.all_processes["raylet"][0].process.pid))
        file.touch()

    try:
        found = here.disturbed(cut, silence=5.0)
        return f"{found}; {sum(map(alive, there))} of the node's {len(there)} processes live on, heard by nobody"
    finally:
        file.unlink(missing_ok=True)
        here.cluster.remove_node(node, allow_graceful=False)
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@row("joins", "a node joins in mid-run")
def _(here: Here) -> str:
    last = here.cluster.worker_nodes
    here.cluster.remove_node(sorted(last, key=lambda node: node.node_id)[0], allow_graceful=False)
    here.cluster.wait_for_nodes(120)  # until the cluster knows it
    make = build.simulator_factory
    with make_env_pool(
        here.config.sim, here.config.rollout, cluster=here.on(), factory=Waiting(make(here.config.sim), 0.1)
    ) as pool:
        states, policy = InitialStates(pool, some_task_keys(here.config), 0), here.policy()
        policy.pretend_to_read([states.task(key).instruction for key in states.tasks])  # type: ignore[attr-defined]
        pool.use(policy)
        nodes: Any = pool
        before, joined = len(nodes.nodes), threading.Event()
        state = next(iter(states.training(0)))
        assert state is not None
        began = 0.0

        def requests() -> Iterator[RolloutRequest]:
            number = 0
            while len(nodes.nodes) == before or number % 64:
                yield RolloutRequest(initial_state=state, index=number, seed=(0,), record=False)
                number += 1

        for number, _rollout in enumerate(pool.run(requests())):
            if number == 10 and not joined.is_set():
                joined.set()
                here.cluster.add_node(num_cpus=1, object_store_memory=STORE)
                began = time.perf_counter()
        return f"{before} -> {len(nodes.nodes)} nodes, within {time.perf_counter() - began:.0f} s of the machine"


@row("evaluation", "a node killed hard in evaluation")
def _(here: Here) -> str:
    policy = here.policy()
    alone = evaluate(policy, here.config.tasks, trials=40, rollout=here.config.rollout)
    run, killed = ClusterPool.run, threading.Event()

    def killing(pool: Any, requests: Any, heed: Any = None) -> Iterator[Rollout]:
        for number, rollout in enumerate(run(pool, requests, heed)):
            if number == 5 and not killed.is_set():
                killed.set()
                here.cluster.remove_node(raylet_of(here, first(pool)), allow_graceful=False)
            yield rollout

    ClusterPool.run = killing  # type: ignore[method-assign, assignment]
    try:
        found = evaluate(policy, here.config.tasks, trials=40, rollout=here.config.rollout, cluster=here.on())
    finally:
        ClusterPool.run = run  # type: ignore[method-assign]
    same = found.per_state == alone.per_state and killed.is_set()
    return f"{found.total.successes} of {found.total.trials}, {'same result' if same else 'ANOTHER RESULT'}"


def update_without(here: Here, signals: tuple[int, ...], **settings: Any) -> str:
    """An iteration with two ranks, one of which gets these signals when it has its job."""
    config = replace(here.config, iterations=1)
    alone = train_rl(config, None, here.folder / f"alone{time.time_ns()}")
    work, began, noticed = ClusterPool.work, [0.0], [0.0]

    def disturbing(pool: Any, function: Any, jobs: Any) -> Any:
        if function is spread.learn and not began[0]:
            victim = pool.pids[[*jobs][-1]]
            began[0] = time.perf_counter()
            os.kill(victim, signal.SIGSTOP)  # it takes its job, and never answers
            for number in signals:
                threading.Timer(0.5, os.kill, (victim, number)).start()
            try:
                return work(pool, function, jobs)
            finally:  # it may raise what tells that the rank is lost
                noticed[0] = time.perf_counter() - began[0]
        return work(pool, function, jobs)

    ClusterPool.work = disturbing  # type: ignore[method-assign]
    try:
        ranks = replace(config, cluster=here.on(**settings), learn=replace(config.learn, ranks="auto"))
        there = train_rl(ranks, None, here.folder / f"ranks{time.time_ns()}")
    finally:
        ClusterPool.work = work  # type: ignore[method-assign]
    ours, theirs = ((r.folder / "policy" / "model.safetensors").read_bytes() for r in (alone, there))
    same = "same weights" if ours == theirs else "OTHER WEIGHTS"
    if not began[0]:
        return f"NO RANK WAS DISTURBED; {same}"
    return f"given up after {noticed[0]:.1f} s, the update begins again with the rank that is left; {same}"


@row("rank-killed", "a rank killed in the update")
def _(here: Here) -> str:
    return update_without(here, (signal.SIGKILL,))


@row("rank-stopped", "a rank stopped (SIGSTOP) in the update, silence of 5 s")
def _(here: Here) -> str:
    return update_without(here, (), silence=5.0)


def driver(here: Here, number: int) -> str:
    """A driver that gets a signal after its first iteration; what is left of it, and whether it goes on exactly."""
    alone = train_rl(here.config, None, here.folder / f"alone{number}").folder
    out = here.folder / f"driver{number}"
    (here.folder / "recipe.toml").write_text(_toml(here.config), encoding="utf-8")
    words = ["--cluster", here.cluster.address, "--cluster.workers_per_node=1"]
    words.append(f"--cluster.start_timeout={START_SECONDS}")
    ript = [sys.executable, "-m", "ript", "rl"]
    before = _nodes()
    running = subprocess.Popen(
        [*ript, "--recipe", str(here.folder / "recipe.toml"), "--out", str(out), *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text(encoding="utf-8"):
        if running.poll() is not None:
            raise RuntimeError("the driver ended by itself")
        time.sleep(0.05)
    actors = [pid for pid in _nodes() if pid not in before]
    there = [pid for actor in actors for pid in below(actor)]
    began = time.perf_counter()
    running.send_signal(number)
    running.wait()
    while any(map(alive, there)) and time.perf_counter() - began < 60:
        time.sleep(0.02)
    seconds, left = time.perf_counter() - began, sum(map(alive, there))
    resumed = subprocess.run([*ript, "--resume", str(out)], capture_output=True, encoding="utf-8", check=False)
    if resumed.returncode:
        return f"COULD NOT BE RESUMED: {resumed.stderr[-300:]}"
    ours, theirs = ((folder / "policy" / "model.safetensors").read_bytes() for folder in (alone, out))
    same = "same weights" if ours == theirs else "OTHER WEIGHTS"
    return (
        f"of {len(there)} processes of {len(actors)} nodes {left} are left after {seconds:.1f} s; resumed on the "
        f"cluster: {same}"
    )


def _nodes() -> list[int]:
    """Processes that are nodes of somebody's pool."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::Node"):
                found.append(int(entry.name))
    return found


def _toml(config: Config) -> str:
    from ript.config.text import describe

    return describe(config)


@row("driver-killed", "the driver killed (SIGKILL)")
def _(here: Here) -> str:
    return driver(here, signal.SIGKILL)


@row("ctrl-c", "Ctrl-C")
def _(here: Here) -> str:
    return driver(here, signal.SIGINT)


@row("store-full", "a run whose records of an iteration are twice as many bytes as its node's object store has")
def _(here: Here) -> str:
    base = here.config
    config = replace(
        base,
        iterations=1,
        sim=replace(base.sim, image_size=128),
        rollout=replace(base.rollout, slots=16, fixed_batch=16),
        sampling=replace(base.sampling, groups=80, group_size=16),
        learn=replace(base.learn, epochs=1, micro_batch=64),
    )
    alone, there = (
        train_rl(replace(config, cluster=on), None, here.folder / f"store{number}").folder
        for number, on in enumerate((ClusterConfig(), here.on(nodes=1)))
    )
    (row,) = [json.loads(line) for line in (there / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = sum(value for name, value in row.items() if name.startswith("time/node") and name.endswith("/bytes"))
    ours, theirs = ((folder / "policy" / "model.safetensors").read_bytes() for folder in (alone, there))
    same = "same weights" if ours == theirs else "OTHER WEIGHTS"
    return f"{kept / 2**20:.0f} MiB of records, a store of {STORE >> 20}: Ray moves them to disk; {same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], default=[], metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--json", action="store_true", help="a line of JSON a row")
    args = parser.parse_args()
    require_ray()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    table = ["| what was done | what happened |", "|---|---|"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            here = Here(cluster, Path(folder))
            for word in args.rows or ROWS:
                what, work = ROWS[word]
                here.grown()
                try:
                    found = work(here)
                except Exception as error:
                    found = f"FAILED: {type(error).__name__}: {error}"
                print(json.dumps({word: found}) if args.json else f"{what}: {found}", flush=True)
                table.append(f"| {what} | {found} |")
    finally:
        cluster.shutdown()
        if not args.json:  # at the end, for Ray itself says much of what is killed
            print("\n".join(table))


if __name__ == "__main__":
    main()
