"""A worker process: slots of simulators, with a copy of the policy or with a line to the parent's.

A thread reads the pipe, so that the parent's sends never wait for a cycle to end, and so that the worker notices at
once when the parent is gone.
"""

from __future__ import annotations

import io
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ript.core import children
from ript.core.types import Observation, Rollout, RolloutRequest
from ript.rollout.engine import LOADING, RESTING, Outcome, SimulatorCache, Slots, Watch
from ript.rollout.local.messages import (
    Answer,
    Ask,
    Attach,
    Crashed,
    Finished,
    Measure,
    Ready,
    Settings,
    Stop,
    Stopped,
    Weights,
    Work,
)
from ript.rollout.local.shared import Block, Memory
from ript.rollout.recorder import Recorder


class ParentGone(Exception):
    """The parent closed the pipe or died."""


class Interrupted(Exception):
    """The run was stopped while this worker waited for the parent's policy."""


class Link:
    """The worker's end of the pipe. `waited` counts the seconds blocked on it during a run."""

    def __init__(self, connection: Connection, watch: Watch):
        self._connection, self._watch = connection, watch
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._deferred: deque[Any] = deque()
        self.running = False
        self.waited = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self, *, block: bool) -> Any | None:
        """The next message, or None when there is none and `block` is False."""
        if self._deferred:
            return self._deferred.popleft()
        return self._take(block)

    def expect(self, kind: type) -> Any:
        """Wait for one kind of message; others are kept for `receive`.

        Raises:
            Interrupted: a `Stop` came instead.
        """
        while True:
            message = self._take(block=True)
            if isinstance(message, kind):
                return message
            self._deferred.append(message)
            if isinstance(message, Stop):
                raise Interrupted

    def send(self, message: Any) -> None:
        self._watch(RESTING)
        started = time.perf_counter()
        try:
            self._connection.send(message)
        except OSError:
            raise ParentGone from None
        self.waited += time.perf_counter() - started

    def _take(self, block: bool) -> Any | None:
        try:
            message = self._arrived.get_nowait()
        except queue.Empty:
            if not block:
                return None
            self._watch(RESTING)
            started = time.perf_counter()
            message = self._arrived.get()
            if self.running:
                self.waited += time.perf_counter() - started
        if isinstance(message, Exception):
            raise message
        return message

    def _read(self) -> None:
        while True:
            try:
                self._arrived.put(self._connection.recv())
            except (EOFError, OSError):
                self._arrived.put(ParentGone())
                return
            except Exception as error:  # such as a message that cannot be unpickled here
                self._arrived.put(error)


class RemoteBrain:
    """Decides by asking the parent; observations and actions travel through shared memory."""

    def __init__(self, link: Link, memory: Memory):
        self._link, self._memory = link, memory
        self._block: Block | None = None
        self.simulators: SimulatorCache | None = None

    def decide(self, tickets: Sequence[int], observation: Observation) -> np.ndarray:
        if self._block is None:
            assert self.simulators is not None
            assert self.simulators.spec is not None
            self._link.send(Measure(self.simulators.spec))
            self._block = self._memory.block(self._link.expect(Attach).layout)
        self._block.write(observation)
        self._link.send(Ask(tuple(tickets), observation.instruction))
        answer = self._link.expect(Answer)
        return self._block.actions[: len(tickets), : answer.steps].copy()

    def close(self) -> None:
        if self._block is not None:
            self._block.close()


class Worker:
    """Serves until the parent is gone."""

    def __init__(
        self,
        link: Link,
        memory: Memory,
        settings: Settings,
        make_simulator: Any,
        policy: Any | None,
        watch: Watch,
    ):
        self._link, self._watch = link, watch
        self._where = f"worker {settings.index}"
        self._recorder = None if settings.central else Recorder(policy, watch=watch)  # type: ignore[arg-type]
        self._remote = RemoteBrain(link, memory)
        check = None if policy is None else policy.check_simulator
        self.simulators = SimulatorCache(
            make_simulator, limit=settings.free_simulators, tasks=settings.loaded_tasks, check=check
        )
        self._remote.simulators = self.simulators
        self._slots = Slots(
            self._recorder or self._remote,
            self.simulators,
            size=settings.slots,
            where=self._where,
            frame_every=settings.frame_every,
            watch=watch,
        )
        self._backlog: deque[tuple[int, RolloutRequest]] = deque()
        self._run: int | None = None
        self._reported: dict[str, float] = {}

    def serve(self) -> None:
        """Alternate between messages and cycles.

        Raises:
            ParentGone: the only way out.
        """
        while True:
            try:
                self._messages()
                outcomes = self._fill()
                outcomes += self._slots.cycle()
                if outcomes:
                    self._watch(RESTING)
                    self._link.send(Finished([(o.ticket, self._result(o)) for o in outcomes], self._spent()))
            except Interrupted:
                self._drop()
            except ParentGone:
                raise
            except Exception as error:
                self._drop()
                self._link.send(Crashed.of(error, self._where, self._run))

    def _messages(self) -> None:
        while (message := self._link.receive(block=not (len(self._slots) or self._backlog))) is not None:
            if isinstance(message, Work):
                self._run = message.run
                self._link.running = True
                self._backlog.extend(message.requests)
            elif isinstance(message, Stop):
                self._drop()
                self._run = None
                self._link.running = False
                self._link.send(Stopped(message.run, self._spent()))
            elif isinstance(message, Weights) and self._recorder is not None:
                self._watch(LOADING)
                self._recorder.load(load_weights(message.data), message.version)

    def _fill(self) -> list[Outcome]:
        failed = []
        while self._backlog and self._slots.free:
            ticket, request = self._backlog.popleft()
            if self._recorder is not None:
                self._recorder.begin(ticket, request)
            outcome = self._slots.start(ticket, request)
            if outcome is not None:
                failed.append(outcome)
        return failed

    def _result(self, outcome: Outcome) -> Rollout | Outcome:
        return outcome if self._recorder is None else self._recorder.rollout(outcome)

    def _drop(self) -> None:
        self._slots.abandon()
        self._backlog.clear()
        if self._recorder is not None:
            self._recorder.clear()

    def _spent(self) -> dict[str, float]:
        now = {
            **self.simulators.seconds(),
            "infer": 0.0 if self._recorder is None else self._recorder.infer_seconds,
            "wait": self._link.waited,
            "env_steps": float(self._slots.env_steps),
        }
        spent = {name: value - self._reported.get(name, 0.0) for name, value in now.items()}
        self._reported = now
        return spent

    def close(self) -> None:
        """Close renderers explicitly: torn down at interpreter exit they print errors."""
        self.simulators.close()
        self._remote.close()


def dump_weights(weights: Mapping[str, Any]) -> bytes:
    """Tensors on any device -> bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in weights.items()}, buffer)
    return buffer.getvalue()


def load_weights(data: bytes) -> dict[str, Any]:
    import torch

    loaded: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return loaded


def main(connection: Connection, fileno: int, settings: Settings, payload: bytes) -> None:
    """What a worker process runs.

    Args:
        connection: this end of the pipe.
        fileno: of the memory shared with the parent.
        payload: pickled (simulator factory, policy or None).
    """
    memory = Memory(fileno)
    cell = memory.cell

    def watch(ticket: int) -> None:
        cell[1] = time.monotonic()
        cell[0] = ticket

    link = Link(connection, watch)
    worker = None
    try:
        try:
            import torch

            torch.set_num_threads(1)
            make_simulator, policy = children.unpack(payload)
            worker = Worker(link, memory, settings, make_simulator, policy, watch)
        except Exception as error:
            link.send(Crashed.of(error, f"worker {settings.index} while starting", None))
            return
        link.send(Ready())
        worker.serve()
    except ParentGone:
        pass
    finally:
        if worker is not None:
            worker.close()
