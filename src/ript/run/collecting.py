"""The rollouts of a post-training run, an iteration at a time: when it is their turn, or one iteration ahead.

Ahead (`rollout.lag` = 1), the rollouts of the next iteration are made while the update learns from those of this one,
by the weights from before it. Whatever is faster waits for the other, and nothing depends on which that is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from ript.config.sections import Config
from ript.core import asking
from ript.core.interfaces import PostTrainable
from ript.core.metrics import values
from ript.rollout.sampling import Collection, collect_groups, practice_horizons
from ript.run.progress import status
from ript.run.rl_progress import Progress
from ript.run.states import InitialStates

LEAVE_SECONDS = 10.0
"""Within which rollouts that nobody wants any more are left."""


class _Stopped(Exception):
    """The run ended, and with it rollouts ahead."""


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What decides an iteration's rollouts besides the configuration."""

    iteration: int
    position: int
    horizons: Mapping[str, int]
    version: int


@dataclass(kw_only=True)
class _Ahead:
    """Rollouts that are being made while something else goes on."""

    order: _Order
    thread: threading.Thread
    made: Collection | None = None
    error: BaseException | None = None
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)


class Collecting:
    """Collections, one after another. A context manager, which ends with what is being made.

    Args:
        config: whose `sampling` and `rollout.lag` count.
        policy: acts with its present weights, whatever they are when an order is given.
        states: practised on, in the pool that makes the rollouts.
        longest: task key -> environment steps of a practice rollout at most.

    Attributes:
        horizons: task key -> environment steps of the rollouts that were taken last.
    """

    def __init__(self, config: Config, policy: PostTrainable, states: InitialStates, longest: Mapping[str, int]):
        self.config, self.policy, self.states, self.pool, self.longest = config, policy, states, states.pool, longest
        self.horizons: Mapping[str, int] = {}
        self._ahead: _Ahead | None = None
        self._acted: dict[str, Any] | None = None  # weights and version that the next collection is made with
        self._stopping, self._waited = False, 0.0

    def take(self, at: Progress) -> tuple[Collection, dict[str, float]]:
        """Rollouts from the same initial states, K at a time, until enough groups have a signal; and what they cost."""
        self.finish()
        ahead, self._ahead = self._ahead, None
        waited, self._waited = self._waited, 0.0
        if ahead is None:
            began = time.perf_counter()
            order = _Order(iteration=at.iteration, position=at.position, horizons=at.horizons, version=at.iteration)
            self._give(order)
            made, seconds = self._collect(order), time.perf_counter() - began
        elif ahead.error is not None:
            raise ahead.error
        else:
            assert ahead.made is not None
            made, order, seconds = ahead.made, ahead.order, ahead.seconds
        self.horizons, self._acted = order.horizons, None
        spent = values(self.pool.timings())
        costs = {f"time/{k}": spent[k] for k in ("simulate", "render", "infer", "wait")}  # summed over workers
        costs |= {"rollout/worker_restarts": spent["worker_restarts"], "time/collect": seconds}
        costs |= {"time/rollout": seconds if ahead is None else waited}  # beside nothing else
        costs |= of_nodes(getattr(self.pool, "rows", {}), seconds)
        return made, costs

    def go_ahead(self, at: Progress, collection: Collection) -> None:
        """Begin with the rollouts of the next iteration, if they are made ahead and there is one.

        Args:
            at: the present iteration, before it is counted.
            collection: its rollouts.
        """
        if not self.config.rollout.lag or at.ended:
            return
        order = _Order(
            iteration=at.iteration + 1,
            position=at.position + collection.position,
            horizons=self.horizons_after(collection, at.horizons),
            version=at.iteration,
        )
        weights = {name: t.detach().to("cpu", copy=True) for name, t in asking.weights(self.policy).items()}
        self._acted = {"weights": weights, "version": order.version}
        if order.iteration >= self.config.iterations:
            return
        self._give(order)
        self._ahead = ahead = _Ahead(order=order, thread=threading.Thread(target=self._make, daemon=True))
        ahead.thread.start()

    def finish(self) -> float:
        """Wait for what is being made. Returns seconds."""
        began = time.perf_counter()
        if self._ahead is not None:
            self._ahead.thread.join()
            self._waited += time.perf_counter() - began
        return self._waited

    def horizons_after(self, collection: Collection, present: Mapping[str, int]) -> dict[str, int]:
        """Task key -> practice horizon of the iteration after this collection."""
        if margin := self.config.sampling.horizon_margin:
            return practice_horizons(collection, present, margin=margin, longest=self.longest)
        return dict(present)

    # ------------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """For a checkpoint: what the next collection is made with, where that is not the policy as it is."""
        return {} if self._acted is None else {"acted": self._acted}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._acted = state.get("acted")

    # ------------------------------------------------------------------ how

    def _give(self, order: _Order) -> None:
        """Let the pool act with the weights of this order."""
        weights, version = asking.weights(self.policy), order.version
        if self._acted is not None:  # of a run that goes on, those from before its last update
            weights, version = self._acted["weights"], int(self._acted["version"])
        self.pool.set_policy(weights, version)
        self.pool.timings()  # from here on

    def _collect(self, order: _Order) -> Collection:
        s = self.config.sampling
        return collect_groups(
            self.pool,
            self.states.training(order.position, s.states, s.state_noise),
            group_size=s.group_size,
            quota=s.groups,
            max_attempts=s.max_attempts,
            seed=(self.config.seed, order.iteration),
            dynamic=s.dynamic,
            equal_tasks=len(self.states.tasks) if s.equal_tasks else 0,
            horizon=order.horizons,
            heed=self._heed if self.config.rollout.lag else None,
        )

    def _make(self) -> None:
        """In a thread of its own."""
        ahead = self._ahead
        assert ahead is not None
        torch.set_num_threads(1)
        try:
            ahead.made = self._collect(ahead.order)
        except BaseException as error:
            ahead.error = error
        ahead.seconds = time.perf_counter() - ahead.began

    def _heed(self) -> None:
        if self._stopping:
            raise _Stopped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        if self._ahead is not None:
            self._ahead.thread.join(LEAVE_SECONDS)


PER_NODE = ("simulate", "render", "infer", "wait", "rollouts", "worker_restarts", "bytes")
"""What is logged of each node of a cluster, besides its `idle` share."""


ROWS_SHOWN = 8
"""Nodes on the screen, at most."""


def of_nodes(rows: Mapping[str, Mapping[str, float]], seconds: float) -> dict[str, float]:
    """What each node did in a collection of so many seconds, for the log; on the screen a row a node, of many nodes
    the idlest.

    Its idle share is what of its workers' time was neither simulation, rendering nor the policy.
    """
    found: dict[str, float] = {}
    idle = {}
    for name, row in rows.items():
        busy = sum(row[part] for part in ("simulate", "render", "infer"))
        idle[name] = max(0.0, 1 - busy / max(1e-9, row["workers"] * seconds))
        found |= {f"time/{name}/{part}": row[part] for part in PER_NODE} | {f"time/{name}/idle": idle[name]}
    if len(idle) > ROWS_SHOWN:
        mean = sum(idle.values()) / len(idle)
        status(f"  {len(idle)} nodes, idle {mean:.0%} in the mean; the {ROWS_SHOWN} with the least to do:")
    for name in sorted(idle, key=lambda name: -idle[name])[:ROWS_SHOWN]:
        row = rows[name]
        spent = ", ".join(f"{part} {row[part]:.1f} s" for part in ("simulate", "render", "infer", "wait"))
        done = f"{row['rollouts']:.0f} rollouts, {row['worker_restarts']:.0f} restarts, {row['bytes'] / 1e6:.1f} MB"
        status(f"  {name}: idle {idle[name]:.0%}; {spent}; {done}")
    return found
