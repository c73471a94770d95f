"""A pool of worker processes: work is handed out as places become free, and what a lost worker had is run again."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Literal

from ript.core.errors import WorkerError
from ript.core.interfaces import Policy, SimulatorFactory
from ript.core.liveness import interval
from ript.core.metrics import Metrics, Sum
from ript.core.types import Observation, Rollout, RolloutRequest, SimulatorSpec, Status
from ript.rollout.engine import address
from ript.rollout.local.limits import open_files
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
from ript.rollout.local.placement import place
from ript.rollout.local.processes import WorkerProcess, close_all, make_payload
from ript.rollout.local.shared import Layout
from ript.rollout.local.worker import dump_weights
from ript.rollout.recorder import Recorder
from ript.rollout.stream import ErrorLimit, Flight, Stream, refuse_if

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

Inference = Literal["local", "central"]
BUSY = 8
"""Rollouts in flight per worker that make good batches; below, the policy's fixed cost of a call shows."""
SPENT = ("simulate", "render", "infer", "wait", "build", "rollouts", "env_steps", "retries", "worker_restarts")


class ProcessPool:
    """Rollouts in worker processes. See `make_pool` for the arguments and for what happens when a worker fails.

    Memory: at most workers x (slots + prefetch) requests are in flight, with prefetch = slots / 8. Each worker holds
    `slots` simulators in use, `free_simulators` unused ones, and the records of `slots` unfinished rollouts; the
    parent holds the rollouts of one message a worker until they are consumed, and a worker waits when they are not.
    """

    def __init__(
        self,
        make_simulator: SimulatorFactory,
        policy: Policy,
        *,
        workers: int,
        slots: int,
        inference: Inference,
        request_timeout: float,
        start_timeout: float,
        max_retries: int,
        max_error_rate: float,
        frame_every: int,
        free_simulators: int,
        loaded_tasks: int,
    ):
        if (limit := open_files(workers)).remedy:
            raise WorkerError(f"too few open files are allowed: {limit.detail}: {limit.remedy}")
        self.saturation = workers * min(slots, BUSY)
        self._capacity = slots + max(1, slots // 8)
        self._slots, self._max_retries = slots, max_retries
        self._timeout, self._start_timeout = request_timeout, start_timeout
        self._policy = policy
        self._central = Recorder(policy) if inference == "central" else None
        spec = getattr(policy, "simulator", None) if self._central else None
        self._layout = Layout.of(spec, slots) if isinstance(spec, SimulatorSpec) else None
        self._payload = make_payload(make_simulator, None if self._central else policy)
        self._weights: Weights | None = None
        self._errors = ErrorLimit(max_error_rate)
        self._spent: Counter[str] = Counter()
        self._infer_reported = 0.0
        self._run = 0
        self._ticket = 0
        self._running = False
        self._barren = 0
        self._workers: list[WorkerProcess] = []
        try:
            for index in range(workers):
                settings = Settings(
                    index=index,
                    slots=slots,
                    central=self._central is not None,
                    frame_every=frame_every,
                    free_simulators=free_simulators,
                    loaded_tasks=loaded_tasks,
                )
                self._workers.append(self._worker(settings))
            self._settle()
        except BaseException:
            self.close()
            raise

    def set_policy(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        refuse_if(self._running, "set_policy")
        if self._central is not None:
            self._central.load(weights, version)
            return
        self._settle()
        self._weights = Weights(dump_weights(weights), version)
        for worker in self._workers:
            worker.send(self._weights)

    def run(self, requests: Iterable[RolloutRequest | None]) -> Generator[Rollout, None, None]:
        refuse_if(self._running, "run")
        self._settle()
        self._running = True
        self._run += 1
        stream = Stream(requests, self._ticket)
        try:
            while True:
                self._assign(stream)
                if not any(worker.flights for worker in self._workers) and stream.finished():
                    return
                for rollout in [*self._listen(), *self._replace_lost(stream)]:
                    self._spent["rollouts"] += 1
                    self._errors.add(rollout)
                    stream.delivered()
                    yield rollout
        finally:
            self._ticket = stream.ticket
            self._stop()

    def timings(self) -> Metrics:
        if not self._running:
            self._settle()
        if self._central is not None:
            self._spent["infer"] += self._central.infer_seconds - self._infer_reported  # type: ignore[assignment]
            self._infer_reported = self._central.infer_seconds
        spent, self._spent = self._spent, Counter()
        return {name: Sum(float(spent[name])) for name in SPENT}

    def close(self, grace: float = 2.0) -> None:
        """End the workers. One that is not gone after `grace` seconds (its cycle is long, or it hangs) is killed."""
        close_all(self._workers, grace)
        self._workers = []

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(grace=2.0 if kind is None else 0.5)

    # ------------------------------------------------------------------------------------------ one run

    def _assign(self, stream: Stream) -> None:
        """Give requests to workers while there is room."""
        given: dict[int, list[tuple[int, RolloutRequest]]] = {}
        while True:
            open_workers = [w for w in self._workers if w.ready and len(w.flights) < self._capacity]
            if not open_workers:
                break
            flight = stream.draw()
            if flight is None:
                break
            task = flight.request.initial_state.task.key
            chosen = place(task, [worker.load for worker in open_workers], self._slots)
            if chosen is None:
                stream.back(flight)
                break
            worker = open_workers[chosen]
            worker.load.give(flight)
            given.setdefault(worker.settings.index, []).append((flight.ticket, flight.request))
            if self._central is not None:
                self._central.begin(flight.ticket, flight.request, worker.name)
        for index, requests in given.items():
            self._workers[index].send(Work(self._run, requests))

    def _listen(self) -> list[Rollout]:
        """Wait for messages, answer the workers' questions, return what has finished."""
        rollouts: list[Rollout] = []
        asked: list[tuple[WorkerProcess, Ask]] = []
        for worker, message in self._receive():
            if isinstance(message, Finished):
                self._barren = 0
                for ticket, result in message.results:
                    del worker.flights[ticket]
                    rollouts.append(result if isinstance(result, Rollout) else self._recorder.rollout(result))
            elif isinstance(message, Ask):
                asked.append((worker, message))
            elif isinstance(message, Measure):
                self._policy.check_simulator(message.spec)
                layout = Layout.of(message.spec, self._slots)
                worker.memory.make_room(layout)
                worker.block = worker.memory.block(layout)
                worker.send(Attach(layout))
            elif isinstance(message, Crashed):
                raise message.rebuild()
        if asked:
            self._answer(asked)
        return rollouts

    def _answer(self, asked: list[tuple[WorkerProcess, Ask]]) -> None:
        """One decision for all workers that wait for one."""
        blocks = [worker.block for worker, _ in asked if worker.block is not None]
        looks = [block.read(ask.instruction) for block, (_, ask) in zip(blocks, asked, strict=True)]
        tickets = [ticket for _, ask in asked for ticket in ask.tickets]
        actions = self._recorder.decide(tickets, Observation.concatenate(looks))
        start = 0
        for block, (worker, ask) in zip(blocks, asked, strict=True):
            block.put_actions(actions[start : start + len(ask.tickets)])
            worker.send(Answer(actions.shape[1]))
            start += len(ask.tickets)

    @property
    def _recorder(self) -> Recorder:
        assert self._central is not None
        return self._central

    def _stop(self) -> None:
        """End a run: workers drop what is in flight. They confirm later (`_settle`), while the caller goes on."""
        self._running = False
        if self._central is not None:
            self._central.clear()
        for worker in self._workers:
            worker.flights.clear()
            worker.stopping = self._run
            worker.send(Stop(self._run))

    def _settle(self) -> None:
        """Wait until every worker has started and has left the last run."""
        while not all(worker.ready and worker.stopping is None for worker in self._workers):
            for _, message in self._receive():
                if isinstance(message, Crashed) and message.run is None:
                    raise message.rebuild()
            self._replace_lost(None)

    # ------------------------------------------------------------------------------------------ workers

    def _worker(self, settings: Settings) -> WorkerProcess:
        return WorkerProcess(
            settings,
            self._payload,
            pipe_timeout=self._timeout,
            start_timeout=self._start_timeout,
            layout=self._layout,
        )

    def _receive(self) -> list[tuple[WorkerProcess, Any]]:
        """Messages of all workers; blocks until there are some, or until it is time to look for hung workers."""
        connections = [worker.connection for worker in self._workers if not worker.connection.closed]
        arrived = wait(connections, timeout=interval(self._timeout))
        messages = []
        for worker in self._workers:
            if worker.connection not in arrived:
                continue
            for message in worker.receive():
                if isinstance(message, Ready):
                    worker.ready = True
                elif isinstance(message, Stopped):
                    worker.stopping = None
                if isinstance(message, Finished | Stopped):
                    self._spent.update(message.spent)
                messages.append((worker, message))
        return messages

    def _replace_lost(self, stream: Stream | None) -> list[Rollout]:
        """Replace dead and hung workers. What they had in flight goes back to the stream, or becomes ERROR."""
        given_up = []
        for index, worker in enumerate(self._workers):
            cause = worker.loss(self._timeout, self._start_timeout)
            if cause is None:
                continue
            blamed, flights = worker.blamed(), list(worker.flights.values())
            _log.warning("%s; it is replaced, and the %d rollouts it had are run again", cause, len(flights))
            worker.kill()
            self._workers[index] = self._worker(worker.settings)
            self._spent["worker_restarts"] += 1
            if self._weights is not None:
                self._workers[index].send(self._weights)
            for flight in flights:
                flight.lost += blamed is None or blamed is flight
                if flight.lost > self._max_retries:
                    given_up.append(self._give_up(flight, cause))
                elif stream is not None:
                    stream.again(flight)
                    self._spent["retries"] += 1
            self._limit_restarts(cause, useless=not flights)
        return given_up

    def _limit_restarts(self, cause: str, useless: bool) -> None:
        """Raise when workers die without doing anything, one after the other."""
        self._barren = self._barren + 1 if useless else 0
        if self._barren >= 3:
            raise WorkerError(f"{self._barren} workers in a row were lost before they did anything; the last: {cause}")

    def _give_up(self, flight: Flight, cause: str) -> Rollout:
        if self._central is not None:
            self._central.forget(flight.ticket)
        request = flight.request
        summary = "WorkerError: the worker " + ("hung" if " hung: " in cause else "died")
        return Rollout(
            initial_state_id=request.initial_state.id,
            index=request.index,
            status=Status.ERROR,
            decisions=0,
            env_steps=0,
            policy_version=self._version,
            error=f"{summary}\n  with {address(request)}, {flight.lost} times; the last: {cause}",
        )

    @property
    def _version(self) -> int:
        if self._central is not None:
            return self._central.version
        return 0 if self._weights is None else self._weights.version
