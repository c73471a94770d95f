"""Worker processes as the parent sees them: start (see `children`), talk, watch, kill."""

from __future__ import annotations

import copy
import signal
import time
from collections.abc import Sequence
from typing import Any

from torch import nn

from ript.core import children
from ript.core.interfaces import Policy, SimulatorFactory
from ript.core.liveness import Silence
from ript.rollout.engine import DECIDING, LOADING, RESTING, address
from ript.rollout.local.placement import Load
from ript.rollout.local.shared import Block, Layout, Memory
from ript.rollout.local.worker import Settings, main
from ript.rollout.stream import Flight

PRELOAD = ("torch", "ript.rollout.local.worker")
"""Imported once for all workers: 1 s, and most of their memory."""


def make_payload(make_simulator: SimulatorFactory, policy: Policy | None) -> bytes:
    """What a worker starts from. It acts on the CPU, wherever training computes.

    Raises:
        ConfigError: one of them cannot be sent to a process.
    """
    if isinstance(policy, nn.Module) and any(p.device.type != "cpu" for p in policy.parameters()):
        policy = copy.deepcopy(policy).to("cpu")
    return children.pack((make_simulator, policy))


class WorkerProcess:
    """One worker.

    Args:
        settings, payload: what it is told, and starts from.
        pipe_timeout: seconds after which a message that stands still means that it hangs.
        start_timeout: seconds that may pass until the process is there.
        layout: of the block that it will need, when that is known.

    Attributes:
        ready: it has started and may get work.
        stopping: number of a run that it was told to stop, until it has confirmed.
        load: what it has to do.
        block: observations and actions (central inference), once it has asked for it.
    """

    def __init__(
        self,
        settings: Settings,
        payload: bytes,
        *,
        pipe_timeout: float,
        start_timeout: float,
        layout: Layout | None = None,
    ):
        self.settings = settings
        self.ready = False
        self.stopping: int | None = None
        self.load = Load(settings.loaded_tasks)
        self.block: Block | None = None
        self._lost: str | None = None
        self._closed = False
        try:
            self.memory = Memory.create(layout)
        except OSError as error:
            raise children.cannot_start(error) from error
        self._cell: Sequence[float] = self.memory.cell
        self.memory.cell[0], self.memory.cell[1] = RESTING, time.monotonic()
        try:
            self.process = children.start(
                main,
                settings,
                payload,
                files=[self.memory.fileno],
                preload=PRELOAD,
                timeout=start_timeout,
                send_timeout=pipe_timeout,
            )
        except BaseException:
            self.memory.close()
            raise
        self.connection = self.process.connection
        self._silence = Silence(self._cell)

    @property
    def flights(self) -> dict[int, Flight]:
        """What it was given and has not returned, by ticket."""
        return self.load.flights

    @property
    def name(self) -> str:
        return f"worker {self.settings.index} (pid {self.process.pid})"

    def send(self, message: Any) -> None:
        """Send, or note that the worker is lost."""
        try:
            self.connection.send(message)
            if int(self._cell[0]) == RESTING:  # it has to read that first
                self._silence.broken()
        except BlockingIOError:
            self._lost = "hung: it took no messages"
        except OSError:
            self._lost = "died"
        except BaseException:
            self.kill()  # interrupted within a message: the worker would take the next one for its rest
            raise

    def receive(self) -> list[Any]:
        """All messages that have arrived; the last ones of a dead worker too."""
        messages = []
        try:
            while self.connection.poll():
                messages.append(self.connection.recv())
        except BlockingIOError:
            self._lost = "hung: it stopped in the middle of a message"
        except (EOFError, OSError):
            self._lost = "died"
        except BaseException:
            self.kill()  # likewise
            raise
        if messages:
            self._silence.broken()
        return messages

    def loss(self, request_timeout: float, start_timeout: float) -> str | None:
        """Why this worker must be replaced, or None. Call it after `receive`, and often.

        A worker is hung when it owes something and gave no sign of life within the limit (see `Silence`). Loading
        weights has the limit of a start, which does the same. What lies unread in its pipe is a sign of life.
        """
        sign = tuple(self._cell)
        doing = int(sign[0])
        limit = request_timeout if self.ready else start_timeout
        if doing == LOADING:
            limit = max(request_timeout, start_timeout)
        owes = not self.ready or doing != RESTING or self.flights or self.stopping is not None
        silent = self._silence.look(sign, excused=not owes or self._spoke(), limit=limit)
        if self._lost is None and silent:
            what = "no sign of life for" if self.ready else "it did not start within"
            self._lost = f"hung: {what} {limit:g} s"
        if self._lost is None:
            return None
        if self._lost == "died":
            return f"{self.name} {self._exit()} {self.doing()}"
        return f"{self.name} {self._lost} {self.doing()}"

    def _spoke(self) -> bool:
        """Whether something of it lies unread in the pipe."""
        try:
            return bool(self.connection.poll())
        except OSError:  # closed; `receive` says so
            return False

    def blamed(self) -> Flight | None:
        """The rollout whose simulator it works on, as far as that is known."""
        return self.flights.get(int(self._cell[0]))

    def doing(self) -> str:
        if not self.ready:
            return "while starting"
        flight = self.blamed()
        if flight is not None:
            return f"while working on {address(flight.request)}"
        other = {DECIDING: "while the policy decided", LOADING: "while it loaded weights"}
        return other.get(int(self._cell[0]), "between two units of work")

    def kill(self) -> None:
        """SIGKILL, and forget what belongs to it."""
        self.process.kill()
        self.process.join(5.0)
        self._lost = self._lost or "died"
        self.connection.close()
        if self.block is not None:
            self.block.close()
            self.block = None
        if not self._closed:
            self._closed = True
            self._cell = [RESTING, 0.0]
            self.memory.close()

    def _exit(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"died with exit code {code}"


def close_all(workers: list[WorkerProcess], grace: float) -> None:
    """End workers: closing the pipe tells them; what is not gone after `grace` seconds is killed."""
    for worker in workers:
        if worker.ready:
            worker.connection.close()
    deadline = time.monotonic() + grace
    for worker in workers:
        if worker.ready:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.kill()
