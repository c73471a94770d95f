"""Run tries in this process, or over worker processes."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from ript.core import children
from ript.core.errors import ConfigError, WorkerError
from ript.core.interfaces import EnvPool, Simulator
from ript.core.liveness import Cell
from ript.core.simulators import SimulatorCache, run_errand
from ript.core.types import Errand, SimulatorSpec
from ript.core.workers import Crashed, Link, ParentGone, WorkerProcess, close_all, receive
from ript.demos.expert import DemoSource, ExpertSettings, make_demo, require_source
from ript.demos.records import Demo

Take = Callable[[str | None], tuple[str, int] | None]
"""Preferred task -> (task key, try number) to start, or None when nothing can start now."""

Result = tuple[str, int, Demo | None, SimulatorSpec]
"""(task key, try number, demonstration or None for a failed try, what the simulator shows)."""


def run_inline(
    make_simulator: Callable[[str], Simulator], settings: ExpertSettings, take: Take
) -> Generator[Result, None, None]:
    """Yield the result of each try, one after the other."""
    key, simulators = None, _simulators(make_simulator, settings.source)
    try:
        while job := take(key):
            key, number = job
            demo, spec = run_errand(_errand(key, number, settings), simulators)
            yield key, number, demo, spec
    finally:
        simulators.close()


def run_processes(
    make_simulator: Callable[[str], Simulator],
    settings: ExpertSettings,
    take: Take,
    *,
    workers: int,
    try_seconds: float,
) -> Generator[Result, None, None]:
    """Yield results as they come in. Closing the iterator, or an error, ends all workers.

    Raises:
        ConfigError: the simulator cannot be sent to a process.
        WorkerError: a worker died, hung or cannot be started, or its simulator raised what is not a `RiptError`.
        RiptError: what a worker raised on purpose.
    """
    payload = children.pack((make_simulator, settings))
    team: list[_Worker] = []
    try:
        for number in range(workers):
            team.append(_Worker(number, payload))
        for worker in team:
            worker.start(take)
        while busy := [worker for worker in team if worker.job]:
            for worker, answer in receive(busy, try_seconds):
                yield worker.result(answer)
                for idle in team:
                    if not idle.job:
                        idle.start(take)
            for worker in busy:
                worker.require_life(try_seconds)
    finally:
        close_all([worker.process for worker in team], grace=5.0)


def run_errands(
    pool: EnvPool, settings: ExpertSettings, take: Take, *, at_a_time: int
) -> Generator[Result, None, None]:
    """Yield the results of tries that the workers of a pool make, so many at a time.

    Raises:
        RiptError: what a worker raised.
    """
    while jobs := [job for _ in range(at_a_time) if (job := take(None))]:
        answers = pool.ask([_errand(key, number, settings) for key, number in jobs])
        for (key, number), (demo, spec) in zip(jobs, answers, strict=True):
            yield key, number, demo, spec


class _Worker:
    """The parent's end of one worker, and the try that it works on."""

    def __init__(self, number: int, payload: bytes):
        self.job: tuple[str, int] | None = None
        self._name = f"demonstration worker {number}"
        self._last_key: str | None = None
        try:
            cell = Cell.create()
        except OSError as error:
            raise children.cannot_start(error) from error
        self.process = WorkerProcess(
            self._name, _serve, payload, self._name, cell=cell, preload=("ript.demos.workers",)
        )

    @property
    def connection(self) -> Connection:
        return self.process.connection

    def receive(self) -> Sequence[Any]:
        return self.process.receive()

    def start(self, take: Take) -> None:
        self.job = take(self._last_key)
        self.process.ready = self.job is None
        if self.job:
            self._last_key = self.job[0]
            self.process.send(self.job)

    def require_life(self, limit: float) -> None:
        """Raise WorkerError when it died, or has worked on one piece of its try for longer than `limit` seconds."""
        cause = self.process.loss(owes=self.job is not None, limit=limit)
        if cause is not None and self.job:
            raise WorkerError(f"{_address(self._name, *self.job)}: {cause} while working on {self.process.noted}")

    def result(self, answer: Any) -> Result:
        if isinstance(answer, Crashed):
            raise answer.rebuild()
        assert self.job is not None
        (key, number), self.job = self.job, None
        self.process.ready = True
        return key, number, *answer


def _serve(connection: Connection, fileno: int, payload: bytes, name: str) -> None:
    """A worker: answer each (task key, try number) with (demonstration or None, spec), until the parent goes.

    Args:
        fileno: of the cell that shows the parent its signs of life.
    """
    cell = Cell(fileno)
    link = Link(connection, cell.mark)
    try:
        make_simulator, settings = children.unpack(payload)
    except Exception as error:
        link.send(Crashed.of(error, f"{name} while starting"))
        return
    os.environ.setdefault("LP_NUM_THREADS", "0")  # software OpenGL: no threads of its own, every core has a worker
    simulators = _simulators(make_simulator, settings.source)
    try:
        while True:
            key, number = link.receive(block=True)  # type: ignore[misc]
            try:
                answer = run_errand(_errand(key, number, settings), simulators, cell.mark, cell.note)
            except Exception as error:
                answer = Crashed.of(error, _address(name, key, number))
            link.send(answer)
    except ParentGone:
        pass
    finally:
        simulators.close()


def _address(name: str, key: str, number: int) -> str:
    return f"{name}, {key}, try {number}"


def _errand(key: str, number: int, settings: ExpertSettings) -> Errand:
    return Errand(key, functools.partial(_try, number=number, settings=settings))


def _try(sim: Simulator, number: int, settings: ExpertSettings) -> tuple[Demo | None, SimulatorSpec]:
    return make_demo(sim, number, settings), sim.spec


def _simulators(make_simulator: Callable[[str], Simulator], source: DemoSource) -> SimulatorCache:
    """The one in use; another task's takes its place."""

    def make(key: str) -> Simulator:
        sim = make_simulator(key)
        try:
            require_source(sim, source)
        except ConfigError:
            sim.close()
            raise
        return sim

    return SimulatorCache(make, limit=1, tasks=1)
