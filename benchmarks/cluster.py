"""How far does one driver reach? Nodes whose workers wait instead of computing, as many as asked for.

A rollout takes `--seconds` in the mean (half of them certain, half drawn from an exponential distribution), and leaves
a record of `--kilobytes` on its node. What is real: Ray, the driver, requests, outcomes and records, dynamic sampling.

python benchmarks/cluster.py --nodes 2 4 8 --workers 1 8 32 --seconds 1.5
python benchmarks/cluster.py --nodes 8 --workers 32 --seconds 0         (what the driver can do at most)
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

from ript.core.metrics import Metrics, Sum
from ript.core.types import InitialState, Rollout, RolloutRequest, Status, Task
from ript.rollout.cluster.connection import Connection
from ript.rollout.cluster.node import Node, Setup
from ript.rollout.cluster.pool import ClusterPool
from ript.rollout.cluster.roster import Size
from ript.rollout.local.process_pool import SPENT

TASK = Task(suite="waiting", name="task", instruction="wait", index=0, horizon=1)


class WaitingPool:
    """Workers that wait; one rollout at a time each."""

    def __init__(self, workers: int, seconds: float, kilobytes: float):
        self.workers, self.seconds, self.saturation = workers, seconds, workers
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
                time.sleep(min(0.005, left if busy else 0.005))
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

    def use(self, policy: object) -> None: ...

    def set_policy(self, weights: object, version: int) -> None: ...

    def timings(self) -> Metrics:
        spent, self.spent = self.spent, 0.0
        return {name: Sum(spent if name == "simulate" else 0.0) for name in SPENT}

    def close(self) -> None: ...


def waiting(workers: int, seconds: float, kilobytes: float) -> type[Node]:
    """A node with such workers."""

    class Waiting(Node):
        def pool(self, setup: Setup) -> Any:
            return WaitingPool(workers, seconds, kilobytes)

    return Waiting


def states() -> Iterator[InitialState]:
    for number in itertools.count():
        yield InitialState(task=TASK, state=np.full(200, float(number)), origin="sampled")


def pool_of(nodes: int, workers: int, seconds: float, kilobytes: float) -> ClusterPool:
    settings = {"slots": 1, "max_retries": 2, "max_error_rate": 0.2, "loaded_tasks": 1}
    pool = ClusterPool(
        Connection("local", nodes),
        str,  # type: ignore[arg-type]
        size=Size(nodes=nodes, workers_per_node=1),
        settings=settings,
        node=waiting(workers, seconds, kilobytes),
    )
    for member in pool.members:
        member.capacity = workers + max(1, workers // 8)
    return pool


class Untrained:
    """A policy with so many weights, which nothing acts with."""

    def act(self, *_: object) -> None: ...


def measure(nodes: int, workers: int, seconds: float, kilobytes: float, rollouts: int) -> dict[str, float]:
    import torch

    with pool_of(nodes, workers, seconds, kilobytes) as pool:
        pool.use(Untrained())  # type: ignore[arg-type]
        pool.set_policy({"weights": torch.zeros(1_000_000)}, 1)

        def requests(n: int, number: int) -> Iterator[RolloutRequest]:
            return (RolloutRequest(initial_state=s, index=0, seed=(number,)) for s in itertools.islice(states(), n))

        for _ in pool.run(requests(nodes * workers, 0)):
            pass
        pool.timings()
        busy = nodes * workers
        began, spent = time.perf_counter(), time.process_time()
        first = None
        done = 0
        for done, _rollout in enumerate(pool.run(requests(rollouts, 1)), 1):
            if done == rollouts - busy:  # the last ones leave workers idle, whatever hands them out
                first = time.perf_counter() - began
        wall, driver = time.perf_counter() - began, time.process_time() - spent
        simulated = pool.timings()["simulate"].value
    counted = rollouts - busy if first else rollouts
    span = first or wall
    ideal = busy * done / simulated if simulated else math.nan
    return {
        "rate": counted / span,
        "of_ideal": counted / span / ideal,
        "driver_ms": 1e3 * driver / done,
        "driver_share": driver / wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 8, 32], help="of each node")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a rollout")
    parser.add_argument("--kilobytes", type=float, default=100.0, help="of a record")
    parser.add_argument("--for-seconds", type=float, default=15.0, help="how long to measure")
    args = parser.parse_args()
    print("| nodes | workers | rollouts/s | of ideal | driver, ms a rollout | driver's core | records, MB/s |")
    print("|---|---|---|---|---|---|---|")
    for nodes in args.nodes:
        for workers in args.workers:
            busy = nodes * workers
            rollouts = int(busy * (args.for_seconds / args.seconds if args.seconds else 100)) + busy
            found = measure(nodes, workers, args.seconds, args.kilobytes, rollouts)
            row = [nodes, busy, f"{found['rate']:.1f}", f"{100 * found['of_ideal']:.0f} %", f"{found['driver_ms']:.2f}"]
            row += [f"{100 * found['driver_share']:.0f} %", f"{found['rate'] * args.kilobytes / 1e3:.1f}"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
