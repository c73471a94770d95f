"""A worker process: slots of simulators, with a copy of the policy or with a line to the parent's."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ript.core import children
from ript.core.simulators import SimulatorCache, run_errand
from ript.core.types import Observation, Rollout, RolloutRequest
from ript.core.workers import RESTING, Crashed, Link, ParentGone
from ript.rollout.engine import ANSWERING, LOADING, Outcome, Slots, Watch
from ript.rollout.local.messages import (
    Answer,
    Ask,
    Attach,
    Back,
    Failure,
    Finished,
    Go,
    Measure,
    Ready,
    Settings,
    Stop,
    Stopped,
    Use,
    Weights,
    Work,
)
from ript.rollout.local.shared import Block, Memory
from ript.rollout.recorder import Recorder


class Interrupted(Exception):
    """The run was stopped while this worker waited for the parent's policy."""


class RemoteBrain:
    """Decides by asking the parent; observations and actions travel through shared memory."""

    def __init__(self, link: Link, memory: Memory):
        self._link, self._memory = link, memory
        self._block: Block | None = None
        self.slots: Slots | None = None

    def decide(self, tickets: Sequence[int], observation: Observation) -> np.ndarray:
        if self._block is None:
            assert self.slots is not None
            assert self.slots.spec is not None
            self._link.send(Measure(self.slots.spec))
            self._block = self._memory.block(self._link.expect(Attach, Stop, Interrupted).layout)
        self._block.write(observation)
        self._link.send(Ask(tuple(tickets), observation.instruction))
        answer = self._link.expect(Answer, Stop, Interrupted)
        return self._block.actions[: len(tickets), : answer.steps].copy()

    def close(self) -> None:
        if self._block is not None:
            self._block.close()


class Worker:
    """Serves until the parent is gone."""

    def __init__(
        self, link: Link, memory: Memory, settings: Settings, make_simulator: Any, policy: Any | None, watch: Watch
    ):
        self._link, self._watch = link, watch
        self._where = f"worker {settings.index}"
        self._recorder: Recorder | None = None
        self.simulators = SimulatorCache(make_simulator, limit=settings.free_simulators, tasks=settings.loaded_tasks)
        self._remote = RemoteBrain(link, memory)
        self._slots = Slots(
            self._remote,
            self.simulators,
            size=settings.slots,
            where=self._where,
            frame_every=settings.frame_every,
            watch=watch,
        )
        self._remote.slots = self._slots
        self._backlog: deque[tuple[int, RolloutRequest]] = deque()
        self._errands: deque[Go] = deque()
        self._run: int | None = None
        self._reported: dict[str, float] = {}
        if policy is not None:
            self._use(policy)

    def serve(self) -> None:
        """Alternate between messages, errands and cycles.

        Raises:
            ParentGone: the only way out.
        """
        while True:
            try:
                self._messages()
                if self._errands:
                    self._go(self._errands.popleft())
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
                self._link.send(Failure(self._run, Crashed.of(error, self._where)))

    def _messages(self) -> None:
        while (message := self._link.receive(block=not self._busy())) is not None:
            if isinstance(message, Work):
                self._run = message.run
                self._link.running = True
                self._backlog.extend(message.requests)
            elif isinstance(message, Go):
                self._errands.append(message)
            elif isinstance(message, Stop):
                self._drop()
                self._run = None
                self._link.running = False
                self._link.send(Stopped(message.run, self._spent()))
            elif isinstance(message, Use):
                self._watch(LOADING)
                self._use(children.unpack(message.policy))
            elif isinstance(message, Weights) and self._recorder is not None:
                self._watch(LOADING)
                self._recorder.load(load_weights(message.data), message.version)

    def _busy(self) -> bool:
        return bool(len(self._slots) or self._backlog or self._errands)

    def _use(self, policy: Any) -> None:
        recorder = Recorder(policy, watch=self._watch)
        if self._recorder is not None:
            recorder.infer_seconds = self._recorder.infer_seconds
        self._recorder = recorder
        self._slots.follow(recorder, policy.check_simulator)

    def _go(self, message: Go) -> None:
        errand = message.errand
        try:
            answer = run_errand(errand, self.simulators, lambda: self._watch(ANSWERING))
        except Exception as error:
            answer = Crashed.of(error, f"{self._where}, for {errand.task}")
        self._link.send(Back(message.number, answer))

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


def main(connection: Connection, fileno: int, settings: Settings, factory: bytes, policy: bytes | None) -> None:
    """What a worker process runs.

    Args:
        connection: this end of the pipe.
        fileno: of the memory shared with the parent.
        settings: of the pool.
        factory: packed simulator factory.
        policy: packed, when each worker has its own and there is one yet.
    """
    memory = Memory(fileno)
    link = Link(connection, memory.cell.mark)
    worker = None
    try:
        try:
            import torch

            torch.set_num_threads(1)
            own = None if policy is None else children.unpack(policy)
            worker = Worker(link, memory, settings, children.unpack(factory), own, memory.cell.mark)
        except Exception as error:
            link.send(Failure(None, Crashed.of(error, f"worker {settings.index} while starting")))
            return
        link.send(Ready())
        worker.serve()
    except ParentGone:
        pass
    finally:
        if worker is not None:
            worker.close()
