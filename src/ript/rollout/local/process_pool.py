"""A pool of worker processes: work is handed out as places become free, and what a lost worker had is run again."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ript.core import children, policy_calls
from ript.core.errors import ConfigError, WorkerError
from ript.core.hooks import observation_steps_of
from ript.core.interfaces import Policy, SimulatorFactory
from ript.core.metrics import Metrics, Sum
from ript.core.types import Errand, Heed, Rollout, RolloutRequest, SimulatorSpec, Status
from ript.core.workers import close_all, receive
from ript.rollout.engine import address
from ript.rollout.local.errand_queue import AT_A_TIME, Errands
from ript.rollout.local.limits import open_files
from ript.rollout.local.messages import (
    Ask,
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
from ript.rollout.local.placement import place
from ript.rollout.local.processes import RolloutWorker, pack_policy
from ript.rollout.local.questions import Questions
from ript.rollout.local.shared_memory import Layout
from ript.rollout.local.worker import dump_weights
from ript.rollout.recorder import Recorder
from ript.rollout.stream import HEED_SECONDS, ErrorLimit, Flight, Stream, refuse_if, rollouts_as_they_end

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

Inference = Literal["local", "central"]
BUSY = 8
"""Rollouts in flight per worker that make good batches; below, the policy's fixed cost of a call shows."""
NO_POLICY = "rollout pool: it has no policy yet; give it one with `use`"
SPENT = ("simulate", "render", "infer", "wait", "build", "rollouts", "env_steps", "retries", "worker_restarts")


class ProcessPool:
    """Rollouts in worker processes. See `make_pool` for the arguments and for what happens when a worker fails.

    Memory: at most workers x (slots + prefetch) requests are in flight, with prefetch = slots / 8 (with central
    inference slots / 2: rollouts of equal length end together, a half of the slots at a time). Each worker holds
    `slots` simulators in use, `free_simulators` unused ones, and the records of `slots` unfinished rollouts; the
    parent holds the rollouts of one message a worker until they are consumed, and a worker waits when they are not.
    """

    def __init__(
        self,
        make_simulator: SimulatorFactory,
        policy: Policy | None,
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
        gather: float,
        fixed_batch: int,
    ):
        if (limit := open_files(workers)).remedy:
            raise WorkerError(f"too few open files are allowed: {limit.detail}: {limit.remedy}")
        self.saturation = workers * min(slots, BUSY)
        self._capacity = slots + max(1, slots // (2 if inference == "central" else 8))
        self._slots, self._max_retries = slots, max_retries
        self._timeout, self._start_timeout = request_timeout, start_timeout
        self._is_central = inference == "central"
        self._factory = children.pack(make_simulator)
        self._packed: bytes | None = None
        self._central: Recorder | None = None
        self._layout: Layout | None = None
        self._observation_steps = 1
        self._spec: SimulatorSpec | None = None
        self._weights: Weights | None = None
        self._errors = ErrorLimit(max_error_rate)
        self._spent: Counter[str] = Counter()
        self._infer_reported = 0.0
        self._run = 0
        self._ticket = 0
        self._running = False
        self._barren = 0
        self._stream: Stream | None = None
        self._done: deque[Rollout] = deque()
        self._errands = Errands(max_retries)
        self._questions, self._rows = Questions(gather), fixed_batch
        self._workers: list[RolloutWorker] = []
        if policy is not None:
            self._adopt(policy)
        try:
            for index in range(workers):
                settings = Settings(
                    index=index,
                    slots=slots,
                    central=self._is_central,
                    frame_every=frame_every,
                    free_simulators=free_simulators,
                    loaded_tasks=loaded_tasks,
                    fixed_batch=fixed_batch,
                )
                self._workers.append(self._worker(settings))
            self._settle()
        except BaseException:
            self.close()
            raise

    def use(self, policy: Policy) -> None:
        refuse_if(self._running, "use")
        self._adopt(policy)
        if self._layout is not None:
            for worker in self._workers:
                worker.memory.make_room(self._layout)
        if self._packed is not None:
            self._settle()
            for worker in self._workers:
                worker.send(Use(self._packed))

    def _adopt(self, policy: Policy) -> None:
        """Make this the policy of all workers that are started from now on."""
        self._observation_steps = observation_steps_of(policy)
        if not self._is_central:
            self._packed, self._weights = pack_policy(policy), None
            return
        if self._spec is not None:
            policy_calls.check_simulator(policy, self._spec)
        recorder = Recorder(policy, rows=self._rows)
        if self._central is not None:
            recorder.infer_seconds = self._central.infer_seconds
        self._policy, self._central = policy, recorder
        spec = getattr(policy, "simulator", None)
        steps = self._observation_steps
        self._layout = Layout.of(spec, self._slots, steps) if isinstance(spec, SimulatorSpec) else None

    def set_policy(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        refuse_if(self._running, "set_policy")
        self._need_policy()
        if self._central is not None:
            self._central.load(weights, version)
            return
        self._settle()
        self._weights = Weights(dump_weights(weights), version)
        for worker in self._workers:
            worker.send(self._weights)

    def run(
        self, requests: Iterable[RolloutRequest | None], heed: Heed | None = None
    ) -> Generator[Rollout, None, None]:
        refuse_if(self._running, "run")
        self._need_policy()
        self._settle()
        self._running = True
        self._run += 1
        stream = self._stream = Stream(requests, self._ticket)
        try:
            for rollout in rollouts_as_they_end(
                stream,
                self._done,
                self._errors,
                assign=lambda: self._assign(stream),
                busy=lambda: any(worker.flights for worker in self._workers),
                turn=lambda: self._turn(math.inf if heed is None else HEED_SECONDS),
                heed=heed,
            ):
                self._spent["rollouts"] += 1
                yield rollout
        finally:
            self._ticket = stream.ticket
            self._stop()

    def ask(self, errands: Sequence[Errand]) -> list[Any]:
        numbers = self._errands.begin(errands)
        while (answers := self._errands.answers(numbers)) is None:
            self._send_out()
            self._turn()
        return answers

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
        close_all([worker.process for worker in self._workers], grace)
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> ProcessPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self.close(grace=2.0 if kind is None else 0.5)

    # ------------------------------------------------------------------------------------------ work

    def _need_policy(self) -> None:
        if self._packed is None and self._central is None:
            raise ConfigError(NO_POLICY)

    def _assign(self, stream: Stream) -> None:
        """Give requests to workers while there is room."""
        room = sum(max(0, self._capacity - len(worker.flights)) for worker in self._workers if worker.ready)
        drawn: list[Flight] = []
        while len(drawn) < room and (flight := stream.draw()) is not None:
            drawn.append(flight)
        given: dict[int, list[tuple[int, RolloutRequest]]] = {}  # from here on: to draw may have replaced workers
        held = []
        for flight in drawn:
            open_workers = [w for w in self._workers if w.ready and len(w.flights) < self._capacity]
            task = flight.request.initial_state.task.key
            chosen = place(task, [worker.load for worker in open_workers], self._slots)
            if chosen is None:
                held.append(flight)
                continue
            worker = open_workers[chosen]
            worker.load.give(flight)
            given.setdefault(worker.settings.index, []).append((flight.ticket, flight.request))
            if self._central is not None:
                self._central.begin(flight.ticket, flight.request, worker.name)
        for flight in reversed(held):
            stream.back(flight)
        for index, requests in given.items():
            self._workers[index].send(Work(self._run, self._observation_steps, requests))

    def _send_out(self) -> None:
        """Give errands to workers that have next to none."""
        for worker in self._workers:
            elsewhere = {task for other in self._workers if other is not worker for task in other.load.loaded}
            while worker.ready and len(worker.errands) < AT_A_TIME:
                trip = self._errands.next(worker.load.loaded, elsewhere)
                if trip is None:
                    break
                worker.errands[trip.number] = trip
                worker.load.use(trip.errand.task)
                worker.send(Go(trip.number, trip.errand))

    def _turn(self, most: float = math.inf) -> None:
        """Wait for messages, at most so many seconds; take in what has finished, answer the workers' questions, replace
        those that are lost."""
        most = min(most, self._questions.patience(self._workers))
        for worker, message in receive(self._workers, self._timeout, most):
            if isinstance(message, Ready):
                worker.process.ready = True
            elif isinstance(message, Back):
                worker.errands.pop(message.number, None)
                self._errands.back(message.number, message.answer)
            elif isinstance(message, Stopped):
                worker.stopping = None
                self._spent.update(message.spent)
            elif isinstance(message, Finished):
                self._spent.update(message.spent)
                self._finish(worker, message)
            elif isinstance(message, Ask) and worker.stopping is None:
                self._questions.put(worker, message)
            elif isinstance(message, Measure) and worker.stopping is None:
                self._attach(worker, message.spec)
            elif isinstance(message, Failure) and (message.run is None or self._running):
                raise message.crash.rebuild()
        if self._questions.patience(self._workers) <= 0:
            self._questions.answer(self._recorder)
        self._replace_lost()

    def _finish(self, worker: RolloutWorker, message: Finished) -> None:
        for ticket, result in message.results:
            if worker.flights.pop(ticket, None) is not None:  # else it is of a run that was stopped
                self._barren = 0
                self._done.append(result if isinstance(result, Rollout) else self._recorder.rollout(result))

    def _attach(self, worker: RolloutWorker, spec: SimulatorSpec) -> None:
        """Let a worker that has its first simulator have shared memory for what that shows."""
        policy_calls.check_simulator(self._policy, spec)
        self._spec = spec
        worker.attach(Layout.of(spec, self._slots, self._observation_steps))

    @property
    def _recorder(self) -> Recorder:
        assert self._central is not None
        return self._central

    def _stop(self) -> None:
        """End a run: workers drop what is in flight. They confirm later (`_settle`), while the caller goes on."""
        self._running, self._stream = False, None
        self._done.clear()
        self._questions.clear()
        if self._central is not None:
            self._central.clear()
        for worker in self._workers:
            worker.flights.clear()
            worker.asked.clear()
            worker.stopping = self._run
            worker.send(Stop(self._run))

    def _settle(self) -> None:
        """Wait until every worker has started and has left the last run."""
        while not all(worker.ready and worker.stopping is None for worker in self._workers):
            self._turn()

    # ------------------------------------------------------------------------------------------ workers

    def _worker(self, settings: Settings) -> RolloutWorker:
        return RolloutWorker(
            settings,
            self._factory,
            self._packed,
            pipe_timeout=self._timeout,
            start_timeout=self._start_timeout,
            layout=self._layout,
        )

    def _replace_lost(self) -> None:
        """Replace dead and hung workers. What they had in flight goes back to the stream, or becomes ERROR."""
        for index, worker in enumerate(self._workers):
            cause = worker.loss(self._timeout, self._start_timeout)
            if cause is None:
                continue
            blamed, flights, trips = worker.blamed(), list(worker.flights.values()), list(worker.errands.values())
            _log.warning("%s; it is replaced, and the %d rollouts it had are run again", cause, len(flights))
            worker.kill()
            self._questions.forget(worker)
            self._workers[index] = self._worker(worker.settings)
            self._spent["worker_restarts"] += 1
            if self._weights is not None:
                self._workers[index].send(self._weights)
            for trip in trips:
                self._errands.lost(trip, cause, blamed is None or blamed is trip)
            for flight in flights:
                flight.lost += blamed is None or blamed is flight
                if flight.lost > self._max_retries:
                    self._done.append(self._give_up(flight, cause))
                elif self._stream is not None:
                    self._stream.again(flight)
                    self._spent["retries"] += 1
            self._limit_restarts(cause, useless=not flights and not trips)

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
