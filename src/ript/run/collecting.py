"""The rollouts of a post-training run, an iteration at a time: when it is their turn, or in part ahead of it.

Ahead (`rollout.lag` = 1), the first groups of the next iteration, `rollout.ahead` of the quota, are made while the
update learns from this one, by the weights from before it; the others follow by the new weights. Whatever is faster
waits for the other, and nothing depends on which that is.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from ript.config.sections import Config
from ript.core import policy_calls
from ript.core.interfaces import PostTrainable
from ript.core.metrics import values
from ript.rollout.sampling import Collection, Gathering, practice_horizons
from ript.run.progress import status
from ript.run.rl_progress import Progress
from ript.run.states import InitialStates

LEAVE_SECONDS = 10.0
"""Within which rollouts that nobody wants any more are left."""


class _Stopped(Exception):
    """The run ended, and with it rollouts ahead."""


@dataclass(kw_only=True)
class _Making:
    """An iteration's rollouts in the making.

    Attributes:
        gathering: the groups.
        horizons: task key -> environment steps of a rollout at most.
        seconds: for which rollouts were made.
        spent, rows: of the pool meanwhile; see `EnvPool.timings` and the cluster's `rows`.
        thread: that makes the first part ahead, if one does.
        error: what ended it.
    """

    gathering: Gathering
    horizons: Mapping[str, int]
    seconds: float = 0.0
    spent: Counter[str] = field(default_factory=Counter)
    rows: dict[str, Counter[str]] = field(default_factory=dict)
    thread: threading.Thread | None = None
    error: BaseException | None = None


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
        self._ahead: _Making | None = None
        self._acted: dict[str, Any] | None = None  # weights and version that the next first part is made with
        self._stopping, self._waited = False, 0.0

    def take(self, at: Progress) -> tuple[Collection, dict[str, float]]:
        """Rollouts from the same initial states, K at a time, until enough groups have a signal; and what they cost."""
        self.finish()
        making, self._ahead = self._ahead, None
        waited, self._waited = self._waited, 0.0
        began = time.perf_counter()
        if making is None:
            making = self._making(at.iteration, at.position, at.horizons)
            if self._acted is not None:  # a run that goes on, with weights from before its last update
                self._give(self._acted["weights"], int(self._acted["version"]))
                self._gather(making, self._share)
        elif making.error is not None:
            raise making.error
        if self._acted is None or self._share is not None:
            self._give(policy_calls.weights(self.policy), at.iteration)
            self._gather(making, None)
        self.horizons, self._acted = making.horizons, None
        costs = {f"time/{k}": float(making.spent[k]) for k in ("simulate", "render", "infer", "wait")}  # of all workers
        costs |= {"rollout/worker_restarts": float(making.spent["worker_restarts"]), "time/collect": making.seconds}
        costs |= {"time/rollout": waited + time.perf_counter() - began}  # beside nothing else
        costs |= of_nodes(making.rows, making.seconds)
        rollout = self.config.rollout
        if rollout.workers and rollout.inference == "central" and not making.rows:
            costs |= idle_shares(making.spent, rollout.workers, making.seconds)
        return making.gathering.collection(), costs

    def go_ahead(self, at: Progress, collection: Collection) -> None:
        """Begin with the rollouts of the next iteration, if some are made ahead and there is one.

        Args:
            at: the present iteration, before it is counted.
            collection: its rollouts.
        """
        if not self.config.rollout.lag or at.ended:
            return
        weights = {name: t.detach().to("cpu", copy=True) for name, t in policy_calls.weights(self.policy).items()}
        self._acted = {"weights": weights, "version": at.iteration}
        if at.iteration + 1 >= self.config.iterations:
            return
        horizons = self.horizons_after(collection, at.horizons)
        self._give(weights, at.iteration)
        self._ahead = making = self._making(at.iteration + 1, at.position + collection.position, horizons)
        making.thread = threading.Thread(target=self._make, args=(making,), daemon=True)
        making.thread.start()

    def finish(self) -> float:
        """Wait for what is being made. Returns seconds."""
        began = time.perf_counter()
        if self._ahead is not None and self._ahead.thread is not None:
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

    @property
    def _share(self) -> int | None:
        """Groups that are attempted ahead; None: all."""
        share = self.config.rollout.ahead
        return None if share == 1 else math.ceil(share * self.config.sampling.groups)

    def _making(self, iteration: int, position: int, horizons: Mapping[str, int]) -> _Making:
        """Nothing yet of the iteration's rollouts, from the initial states after `position`."""
        s = self.config.sampling
        gathering = Gathering(
            self.states.training(position, s.states, s.state_noise),
            group_size=s.group_size,
            quota=s.groups,
            max_attempts=s.max_attempts,
            seed=(self.config.seed, iteration),
            dynamic=s.dynamic,
            equal_tasks=len(self.states.tasks) if s.equal_tasks else 0,
            horizon=horizons,
        )
        return _Making(gathering=gathering, horizons=horizons)

    def _give(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Let the pool act with these weights."""
        self.pool.set_policy(weights, version)
        self.pool.timings()  # from here on

    def _gather(self, making: _Making, attempts: int | None) -> None:
        """Make rollouts, until so many groups have been attempted or all are there."""
        began = time.perf_counter()
        making.gathering.gather(self.pool, attempts, heed=self._heed if self.config.rollout.lag else None)
        making.seconds += time.perf_counter() - began
        making.spent.update(values(self.pool.timings()))
        for name, row in getattr(self.pool, "rows", {}).items():
            workers = row["workers"]
            making.rows.setdefault(name, Counter()).update(row)
            making.rows[name]["workers"] = workers

    def _make(self, making: _Making) -> None:
        """In a thread of its own."""
        torch.set_num_threads(1)
        try:
            self._gather(making, self._share)
        except BaseException as error:
            making.error = error

    def _heed(self) -> None:
        if self._stopping:
            raise _Stopped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        if self._ahead is not None and self._ahead.thread is not None:
            self._ahead.thread.join(LEAVE_SECONDS)


PER_NODE = ("simulate", "render", "infer", "wait", "rollouts", "worker_restarts", "bytes")
"""What is logged of each node of a cluster, besides its `idle` share."""


def idle_shares(spent: Mapping[str, float], workers: int, seconds: float) -> dict[str, float]:
    """Which share of a collection of so many seconds one policy for all workers had nothing to do, and they."""
    policy, simulators = spent["infer"] / max(1e-9, seconds), spent["wait"] / max(1e-9, workers * seconds)
    return {"time/policy_idle": max(0.0, 1 - policy), "time/workers_idle": min(1.0, simulators)}


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
