"""A node of a cluster, as the driver sees it: what it has to do, and whether it does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ript.core.liveness import Silence
from ript.rollout.cluster.connection import Connection, Place
from ript.rollout.cluster.node import Node, Part, Setup, Started
from ript.rollout.local.placement import Load
from ript.rollout.stream import Flight

CALLS = 4
"""Calls that a node takes at a time: one that waits for results, what the driver asks for, and two to spare."""
PATIENCE = 1.0
"""Seconds after which a node answers though it has nothing to tell."""


@dataclass(frozen=True)
class Has:
    """A policy, its weights where these are others by now, and their version; both as objects of the cluster."""

    policy: Any = None
    weights: Any = None
    version: int = 0


class Member:
    """One node of the pool.

    Args:
        cluster: where it is started.
        place: on which machine.
        node: what runs there.
        setup: what it is told.
        has: the policy that it begins with.
        workers: of its pool, one core each.
        slots: of each worker.
        gpus: that it has to itself, or a share of one.

    Attributes:
        load: rollouts that it has to do.
        saturation: see `EnvPool.saturation`; 0 until it has started.
        pid: of its process, likewise.
        memory: bytes that were available there then, likewise.
        gpu_memory: bytes that were free on its GPU then; None: it has none, or has not started.
        poll: its next results.
    """

    def __init__(
        self,
        cluster: Connection,
        place: Place,
        node: type[Node],
        setup: Setup,
        has: Has,
        *,
        workers: int,
        slots: int,
        gpus: float,
    ):
        self.has = has
        self.place, self.name, self.workers, self.slots = place, setup.name, workers, slots
        self.capacity = max(1, workers) * (slots + max(1, slots // 8))
        self.load = Load(max(1, workers) * int(setup.pool["loaded_tasks"]))
        self.saturation = self.pid = self.memory = 0
        self.gpu_memory: int | None = None
        self._ray = cluster.ray
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place.id, soft=False)
        self.actor: Any = (
            self._ray.remote(node)
            .options(num_cpus=max(1, workers), num_gpus=gpus, max_concurrency=CALLS, scheduling_strategy=here)
            .remote()
        )
        self.starting = self.actor.start.remote(setup, has.policy, has.weights, has.version)
        self.poll: Any = None
        self._heard = 0
        self._silence = Silence((0,))

    def started(self, told: Started) -> None:
        """The node has started and may get work."""
        self.saturation = told.saturation
        self.pid, self.memory, self.gpu_memory = told.pid, told.memory, told.gpu_memory
        self.listen()

    def listen(self) -> None:
        """Ask for its next results."""
        self.poll = self.actor.results.remote(PATIENCE)

    def heard(self, part: Part) -> Part:
        """Results of the node came: ask for the next ones."""
        self._heard += 1
        self.listen()
        return part

    def hangs(self, limit: float) -> bool:
        """Whether it has been silent for longer than `limit` seconds. Call it often, after what has come was heard."""
        return self._silence.look((self._heard,), excused=self.poll is None, limit=limit)

    @property
    def flights(self) -> dict[int, Flight]:
        """What it was given and has not returned, by ticket."""
        return self.load.flights

    def fullness(self, task: str) -> float:
        """What it has to do for each of its workers; loading a task in another's place counts as half of the slots."""
        return (len(self.flights) + self.load.makes_room(task) * self.slots / 2) / max(1, self.workers)

    def landed(self, initial_state_id: str, index: int) -> Flight | None:
        """The flight that this rollout is of; it is no longer in the air."""
        for ticket, flight in self.flights.items():
            if flight.request.index == index and flight.request.initial_state.id == initial_state_id:
                return self.flights.pop(ticket)
        return None

    def kill(self) -> None:
        """End it, whatever it does."""
        self._ray.kill(self.actor)


def place_on(task: str, members: list[Member]) -> Member | None:
    """The node that a rollout of this task goes to: the one with the least to do for each worker, which prefers nodes
    that have the task loaded; None: all are full, or work on as many other tasks as they may have loaded."""
    fitting = [m for m in members if len(m.flights) < m.capacity and m.load.has_room(task)]
    return min(fitting, key=lambda member: member.fullness(task), default=None)


def workers_on(place: Place, wanted: int, share: int) -> int:
    """Workers of a node: those wanted, or one for each core of its share of the machine."""
    return wanted or max(1, place.cores // share)
