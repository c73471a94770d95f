"""A worker process: slots of simulators, with a copy of the policy or with a line to the parent's."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ript.core import children
from ript.core.simulators import SimulatorCache, run_errand
from ript.core.types import Rollout, RolloutRequest
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
from ript.rollout.local.shared_memory import Block, Memory
from ript.rollout.recorder import Recorder

PARTS = 2
"""Parts of the slots with central inference: one works while the policy decides for the other."""


class Interrupted(Exception):
    """The run was stopped while this worker waited for the parent's policy."""


class Server:
    """The parent's policy, from here: each part of the slots asks it, and goes on when the answer is there.

    Observations and actions travel through shared memory, in which each part has rows of its own.
    """

    def __init__(self, link: Link, memory: Memory, slots: Slots):
        self._link, self._memory, self._slots = link, memory, slots
        self._block: Block | None = None
        self._first = [sum(slots.sizes[:part]) for part in range(len(slots.sizes))]
        self._waiting: dict[int, int] = {}
        self._answers: dict[int, int] = {}

    def open(self, part: int) -> bool:
        """Whether a part may be given rollouts: its question has not been asked yet."""
        return part not in self._waiting

    def ask(self, part: int) -> None:
        """Ask for a part, unless it is empty or waits already."""
        if part in self._waiting or (asked := self._slots.ask(part)) is None:
            return
        tickets, looks = asked
        if self._block is None or self._block.layout.observation_steps != self._slots.observation_steps:
            assert self._slots.spec is not None
            self.close()
            self._link.send(Measure(self._slots.spec))
            self._block = self._memory.block(self._link.expect(Attach, Stop, Interrupted).layout)
        self._block.write(looks, self._first[part])
        self._waiting[part] = len(tickets)
        self._link.send(Ask(part, self._first[part], tickets, looks.instruction))

    def answered(self, answer: Answer) -> None:
        self._answers[answer.part] = answer.steps

    def take(self) -> tuple[int, np.ndarray] | None:
        """(part, actions `[B, H, A]`) of a part that has its answer, if there is one."""
        if not self._answers or self._block is None:
            return None
        part, steps = next(iter(self._answers.items()))
        del self._answers[part]
        first, rows = self._first[part], self._waiting.pop(part)
        return part, self._block.actions[first : first + rows, :steps].copy()

    @property
    def stuck(self) -> bool:
        """Nothing to do but wait for an answer."""
        parts = range(len(self._first))
        return not self._answers and all(part in self._waiting or not self._slots.busy(part) for part in parts)

    def clear(self) -> None:
        self._waiting, self._answers = {}, {}

    def close(self) -> None:
        if self._block is not None:
            self._block.close()
        self._block = None


class Worker:
    """Serves until the parent is gone."""

    def __init__(
        self, link: Link, memory: Memory, settings: Settings, make_simulator: Any, policy: Any | None, watch: Watch
    ):
        self._link, self._watch, self._note = link, watch, memory.cell.note
        self._where = f"worker {settings.index}"
        self._recorder: Recorder | None = None
        self._rows = settings.fixed_batch
        self.simulators = SimulatorCache(make_simulator, limit=settings.free_simulators, tasks=settings.loaded_tasks)
        self._slots = Slots(
            self.simulators,
            size=settings.slots,
            parts=min(PARTS, settings.slots) if settings.central else 1,
            where=self._where,
            frame_every=settings.frame_every,
            watch=watch,
        )
        self._server = Server(link, memory, self._slots) if settings.central else None
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
                outcomes = self._fill() + self._advance()
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
        while (message := self._link.receive(block=self._idle())) is not None:
            if isinstance(message, Work):
                self._run = message.run
                self._slots.observation_steps = message.observation_steps
                self._link.running = True
                self._backlog.extend(message.requests)
            elif isinstance(message, Answer) and self._server is not None:
                self._server.answered(message)
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

    def _idle(self) -> bool:
        """Nothing to do before a message comes."""
        if self._errands:
            return False
        if self._server is None:
            return not (len(self._slots) or self._backlog)
        return self._server.stuck and not (self._backlog and self._open_parts())

    def _open_parts(self) -> list[int]:
        """Parts that have room, the emptiest first."""
        room = {part: size - self._slots.busy(part) for part, size in enumerate(self._slots.sizes)}
        found = [part for part in room if room[part] and (self._server is None or self._server.open(part))]
        return sorted(found, key=lambda part: -room[part])

    def _use(self, policy: Any) -> None:
        recorder = Recorder(policy, watch=self._watch, rows=self._rows)
        if self._recorder is not None:
            recorder.infer_seconds = self._recorder.infer_seconds
        self._recorder = recorder
        self._slots.check = policy.check_simulator

    def _go(self, message: Go) -> None:
        errand = message.errand
        try:
            answer = run_errand(errand, self.simulators, lambda: self._watch(ANSWERING), self._note)
        except Exception as error:
            answer = Crashed.of(error, f"{self._where}, for {errand.task}")
        self._link.send(Back(message.number, answer))

    def _fill(self) -> list[Outcome]:
        failed = []
        while self._backlog and (parts := self._open_parts()):
            ticket, request = self._backlog.popleft()
            if self._recorder is not None:
                self._recorder.begin(ticket, request)
            outcome = self._slots.start(ticket, request, parts[0])
            if outcome is not None:
                failed.append(outcome)
        return failed

    def _advance(self) -> list[Outcome]:
        """One decision, executed: of all slots, or of a part that has its answer while the other waits for one."""
        if self._server is None:
            return [] if self._recorder is None else list(self._slots.cycle(self._recorder))
        outcomes: list[Outcome] = []
        if (answer := self._server.take()) is not None:
            part, actions = answer
            outcomes = list(self._slots.execute(actions, part))
            outcomes += self._fill()
        for part in range(len(self._slots.sizes)):
            self._server.ask(part)
        return outcomes

    def _result(self, outcome: Outcome) -> Rollout | Outcome:
        return outcome if self._recorder is None else self._recorder.rollout(outcome)

    def _drop(self) -> None:
        self._slots.abandon()
        self._backlog.clear()
        if self._server is not None:
            self._server.clear()
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
        if self._server is not None:
            self._server.close()


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
