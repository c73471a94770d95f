"""How far does one driver reach? Nodes whose workers wait instead of computing, as many as asked for.

A rollout takes `--seconds` in the mean (half of them certain, half drawn from an exponential distribution), and leaves
a record of `--kilobytes` on its node. What is real: Ray, a raylet and an object store for each node, the driver,
requests, outcomes, records and weights. Only the workers are none.

python benchmarks/cluster.py --nodes 2 8 32 --workers 1 2 8 32 --most 256 --seconds 1.5
python benchmarks/cluster.py --nodes 8 --workers 32 --seconds 0         (what the driver can do at most)
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ript.core.metrics import Metrics, Sum
from ript.core.types import InitialState, Rollout, RolloutRequest, Status, Task
from ript.rollout.cluster.connection import Connection, require_ray
from ript.rollout.cluster.node import Node, Setup
from ript.rollout.cluster.pool import ClusterPool
from ript.rollout.cluster.starter import Size
from ript.rollout.local.process_pool import SPENT

STORE = 80 * 2**20
"""Bytes of each node's object store: Ray's least."""
LOOK_SECONDS = 0.02
"""After which a node whose workers all wait looks for requests."""
TASK = Task(suite="waiting", name="task", instruction="wait", index=0, horizon=1)


class Untrained:
    """A policy that nothing acts with, for so many workers a node."""

    def __init__(self, workers: int):
        self.workers = workers

    def act(self, *_: object) -> None: ...


class WaitingPool:
    """Workers that wait, one rollout at a time each, as many as the policy says."""

    def __init__(self, seconds: float, kilobytes: float):
        self.workers, self.seconds, self.saturation = 1, seconds, 1
        self.record = np.zeros(int(kilobytes * 1e3), np.uint8)
        self.spent = 0.0

    def run(
        self, requests: Iterable[RolloutRequest | None], heed: Callable[[], None] | None = None
    ) -> Generator[Rollout, None, None]:
        source, busy, numbers = iter(requests), [], itertools.count()
        while True:
            if heed is not None:
                heed()
            while len(busy) < self.workers and (request := next(source)) is not None:
                seconds = self.seconds * (0.5 + request.generator().exponential(0.5))
                self.spent += seconds
                heapq.heappush(busy, (time.perf_counter() + seconds, next(numbers), request))
            if not busy or (left := busy[0][0] - time.perf_counter()) > 0:
                time.sleep(min(LOOK_SECONDS, left if busy else LOOK_SECONDS))
                continue
            yield self.done(heapq.heappop(busy)[2])

    def done(self, request: RolloutRequest) -> Rollout:
        success = request.generator().random() < 0.5
        return Rollout(
            initial_state_id=request.initial_state.id,
            index=request.index,
            status=Status.SUCCESS if success else Status.FAILURE,
            decisions=1,
            env_steps=1,
            policy_version=0,
            sample=np.zeros((1, 1)),
            log_prob=np.zeros((1, 1), np.float32),
            mask=np.ones((1, 1), bool),
            inputs={"pictures": self.record[None]},
            rollout_inputs={},
        )

    def use(self, policy: Untrained) -> None:
        self.workers = policy.workers

    def set_policy(self, weights: object, version: int) -> None: ...

    def timings(self) -> Metrics:
        spent, self.spent = self.spent, 0.0
        return {name: Sum(spent if name == "simulate" else 0.0) for name in SPENT}

    def close(self) -> None: ...


def waiting(seconds: float, kilobytes: float) -> type[Node]:
    """A node with such workers."""

    class Waiting(Node):
        def pool(self, setup: Setup) -> Any:
            return WaitingPool(seconds, kilobytes)

    return Waiting


def states() -> Iterator[InitialState]:
    for number in itertools.count():
        yield InitialState(task=TASK, state=np.full(200, float(number)), origin="sampled")


@contextlib.contextmanager
def machines(nodes: int) -> Iterator[str]:
    """A cluster of so many machines of a core each, all of them here, beside a head without cores; its address."""
    require_ray()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(wait=False, num_cpus=1, object_store_memory=STORE)
        cluster.wait_for_nodes(600)
        yield cluster.address
    finally:
        cluster.shutdown()


def pool_of(address: str, nodes: int, seconds: float, kilobytes: float) -> ClusterPool:
    settings = {"slots": 1, "max_retries": 2, "max_error_rate": 0.2, "loaded_tasks": 1}
    return ClusterPool(
        Connection(address),
        str,  # type: ignore[arg-type]
        size=Size(nodes=nodes, workers_per_node=1, start=600),
        settings=settings,
        node=waiting(seconds, kilobytes),
    )


def seconds_of(pids: Iterable[int]) -> float:
    """Of processor that some processes have had."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def mebibytes(pids: Iterable[int]) -> float:
    """Memory of some processes, what they share counted once."""
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            found += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return found / 1024


def measure(pool: ClusterPool, workers: int, rollouts: int, weights: int) -> dict[str, float]:
    """So many rollouts by so many workers of each node, and weights of so many bytes sent to all nodes."""
    import torch

    nodes = len(pool.members)
    for member in pool.members:
        member.capacity = workers + max(1, workers // 8)
    pool.use(Untrained(workers))  # type: ignore[arg-type]
    sent = []
    for version in range(1, 4):
        began = time.perf_counter()
        pool.set_policy({"weights": torch.full((weights // 4,), float(version))}, version)
        sent.append(time.perf_counter() - began)

    def requests(n: int, number: int) -> Iterator[RolloutRequest]:
        return (RolloutRequest(initial_state=s, index=0, seed=(number,)) for s in itertools.islice(states(), n))

    for _ in pool.run(requests(nodes * workers, 0)):
        pass
    pool.timings()
    busy = nodes * workers
    began, spent, theirs = time.perf_counter(), time.process_time(), seconds_of(pool.pids.values())
    first = None
    done = 0
    for done, _rollout in enumerate(pool.run(requests(rollouts, 1)), 1):
        if done == rollouts - busy:  # the last ones leave workers idle, whatever hands them out
            first = time.perf_counter() - began
    wall, driver = time.perf_counter() - began, time.process_time() - spent
    theirs = seconds_of(pool.pids.values()) - theirs
    simulated = pool.timings()["simulate"].value
    counted = rollouts - busy if first else rollouts
    span = first or wall
    ideal = busy * done / simulated if simulated else math.nan
    return {
        "rate": counted / span,
        "of_ideal": counted / span / ideal,
        "driver_ms": 1e3 * driver / done,
        "driver_share": driver / wall,
        "node_ms": 1e3 * theirs / done,
        "weights_seconds": min(sent),
        "memory": mebibytes(pool.pids.values()) / nodes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8, 32], help="of each node")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a rollout")
    parser.add_argument("--kilobytes", type=float, default=100.0, help="of a record")
    parser.add_argument("--weights", type=float, default=4.0, help="MB")
    parser.add_argument("--for-seconds", type=float, default=15.0, help="how long to measure")
    parser.add_argument("--most", type=int, default=1024, help="workers in all; larger combinations are left out")
    args = parser.parse_args()
    for nodes in args.nodes:
        with machines(nodes) as address, pool_of(address, nodes, args.seconds, args.kilobytes) as pool:
            for workers in [count for count in args.workers if nodes * count <= args.most]:
                busy = nodes * workers
                rollouts = int(busy * (args.for_seconds / args.seconds if args.seconds else 100)) + busy
                found = measure(pool, workers, rollouts, int(args.weights * 1e6))
                told = {
                    "nodes": nodes,
                    "workers": busy,
                    "rollouts/s": f"{found['rate']:.1f}",
                    "of ideal": f"{100 * found['of_ideal']:.0f} %",
                    "driver, ms a rollout": f"{found['driver_ms']:.2f}",
                    "driver's core": f"{100 * found['driver_share']:.0f} %",
                    "node, ms a rollout": f"{found['node_ms']:.1f}",
                    "records, MB/s": f"{found['rate'] * args.kilobytes / 1e3:.1f}",
                    "weights to all, s": f"{found['weights_seconds']:.2f}",
                    "weights, MB/s": f"{nodes * args.weights / found['weights_seconds']:.0f}",
                    "MiB a node": f"{found['memory']:.0f}",
                    "load": f"{os.getloadavg()[0]:.0f}",
                }
                print(" | ".join(f"{name} {value}" for name, value in told.items()), flush=True)


if __name__ == "__main__":
    main()
