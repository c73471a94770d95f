"""Worker processes as a pool of rollouts sees them: what each has to do, and whether it does it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from torch import nn

from ript.core import children
from ript.core.interfaces import Policy
from ript.core.workers import RESTING, WorkerProcess
from ript.rollout.engine import ANSWERING, DECIDING, LOADING, address
from ript.rollout.local.errand_queue import Trip
from ript.rollout.local.messages import Attach, Settings
from ript.rollout.local.placement import Load
from ript.rollout.local.shared_memory import Block, Layout, Memory
from ript.rollout.local.worker import main
from ript.rollout.stream import Flight

PRELOAD = ("torch", "ript.rollout.local.worker")
"""Imported once for all workers: 1 s, and most of their memory."""


def pack_policy(policy: Policy) -> bytes:
    """What a worker acts with: a copy that computes on the CPU, wherever training does.

    Raises:
        ConfigError: it cannot be sent to a process.
    """
    if isinstance(policy, nn.Module) and any(p.device.type != "cpu" for p in policy.parameters()):
        policy = copy.deepcopy(policy).to("cpu")
    return children.pack(policy)


class RolloutWorker:
    """One worker of a pool.

    Args:
        settings: of the pool.
        factory, policy: what it starts from, packed; no policy: it has none, or its parent's.
        pipe_timeout: seconds after which a message that stands still means that it hangs.
        start_timeout: seconds that may pass until the process is there.
        layout: of the block that it will need, when that is known.

    Attributes:
        stopping: number of a run that it was told to stop, until it has confirmed.
        load: rollouts that it has to do.
        errands: that it has to run, by number, in order.
        asked: parts of its slots that wait for the parent's policy.
        block: observations and actions (central inference), once it has asked for it.
    """

    def __init__(
        self,
        settings: Settings,
        factory: bytes,
        policy: bytes | None,
        *,
        pipe_timeout: float,
        start_timeout: float,
        layout: Layout | None = None,
    ):
        self.settings = settings
        self.stopping: int | None = None
        self.load = Load(settings.loaded_tasks)
        self.errands: dict[int, Trip] = {}
        self.asked: set[int] = set()
        self.block: Block | None = None
        try:
            self.memory = Memory.create(layout)
        except OSError as error:
            raise children.cannot_start(error) from error
        self.process = WorkerProcess(
            f"worker {settings.index}",
            main,
            settings,
            factory,
            policy,
            cell=self.memory.cell,
            preload=PRELOAD,
            start_timeout=start_timeout,
            pipe_timeout=pipe_timeout,
        )

    @property
    def flights(self) -> dict[int, Flight]:
        """What it was given and has not returned, by ticket."""
        return self.load.flights

    @property
    def ready(self) -> bool:
        """The worker has started and may get work."""
        return self.process.ready

    @property
    def name(self) -> str:
        return self.process.name

    @property
    def connection(self) -> Connection:
        return self.process.connection

    def attach(self, layout: Layout) -> None:
        """Let it have a block of this layout, instead of the one that it had.

        Raises:
            WorkerError: there is not so much shared memory.
        """
        self.memory.make_room(layout)
        if self.block is not None:
            self.block.close()
        self.block = self.memory.block(layout)
        self.send(Attach(layout))

    def send(self, message: Any) -> None:
        """Send, or note that the worker is lost."""
        self.process.send(message)

    def receive(self) -> Sequence[Any]:
        """All messages that have arrived; the last ones of a dead worker too."""
        return self.process.receive()

    def loss(self, request_timeout: float, start_timeout: float) -> str | None:
        """Why this worker must be replaced, or None. Call it after `receive`, and often.

        A worker is hung when it owes something and gave no sign of life within the limit. One that waits for the policy
        of its parent owes nothing. Loading a policy has the limit of a start, which does the same.
        """
        doing = self.process.doing
        limit = request_timeout if self.ready else start_timeout
        if doing == LOADING:
            limit = max(request_timeout, start_timeout)
        busy = (self.flights and not self.asked) or self.errands or self.stopping is not None
        silent = "no sign of life for" if self.ready else "it did not start within"
        owes = bool(not self.ready or doing != RESTING or busy)
        lost = self.process.loss(owes=owes, limit=limit, silent=silent)
        return None if lost is None else f"{self.name} {lost} {self._at()}"

    def blamed(self) -> Flight | Trip | None:
        """The rollout or errand whose simulator it works on, as far as that is known."""
        if self.process.doing == ANSWERING:
            return next(iter(self.errands.values()), None)
        return self.flights.get(self.process.doing)

    def _at(self) -> str:
        if not self.ready:
            return "while starting"
        blamed = self.blamed()
        if isinstance(blamed, Flight):
            return f"while working on {address(blamed.request)}"
        if blamed is not None:
            return f"while working on {self.process.noted}"
        other = {DECIDING: "while the policy decided", LOADING: "while it loaded the policy"}
        return other.get(self.process.doing, "between two units of work")

    def kill(self) -> None:
        """SIGKILL, and forget what belongs to it."""
        self.process.kill()
        if self.block is not None:
            self.block.close()
            self.block = None
