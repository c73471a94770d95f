"""Run tries in this process, or over processes that each own a simulator."""

from __future__ import annotations

import contextlib
import os
import pickle
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from ript.core import children
from ript.core.errors import ConfigError, RiptError, WorkerError
from ript.core.interfaces import Demonstrator, Simulator
from ript.core.liveness import Cell, Silence, interval
from ript.core.types import SimulatorSpec
from ript.demos.expert import ExpertSettings, make_demo
from ript.demos.records import Demo

TASKS_PER_PROCESS = 10
"""A worker that has served as many tasks is replaced: a simulator may keep models and renderers until its process ends
(Meta-World: 150 MB a task)."""

Take = Callable[[str | None], tuple[str, int] | None]
"""Preferred task -> (task key, try number) to start, or None when nothing can start now."""

Result = tuple[str, int, Demo | None, SimulatorSpec]
"""(task key, try number, demonstration or None for a failed try, what the simulator shows)."""


def run_inline(
    make_simulator: Callable[[str], Simulator], settings: ExpertSettings, take: Take
) -> Generator[Result, None, None]:
    """Yield the result of each try, one after the other."""
    key = None
    with _OneSimulator(make_simulator) as slot:
        while job := take(key):
            key, number = job
            sim = slot.simulator(key)
            yield key, number, make_demo(sim, number, settings), sim.spec


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
        RiptError: what a worker raised on purpose, as it was.
    """
    payload = children.pack((make_simulator, settings))
    team: list[_Worker] = []
    try:
        for number in range(workers):
            team.append(_Worker(number, payload))
        for worker in team:
            worker.start(take)
        while busy := {w.connection: w for w in team if w.job}:
            answered = wait(list(busy), timeout=interval(try_seconds))
            for worker in busy.values():
                worker.require_life(try_seconds)
            for connection in answered:
                worker = busy[connection]  # type: ignore[index]
                yield worker.receive()
                for idle in team:
                    if not idle.job:
                        idle.start(take)
    finally:
        for worker in team:
            worker.stop()


class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, number: int, payload: bytes):
        self.number = number
        self.job: tuple[str, int] | None = None
        self._payload = payload
        self._last_key: str | None = None
        self._spawn()

    def _spawn(self) -> None:
        self._tasks: set[str] = set()
        try:
            self._cell = Cell.create()
        except OSError as error:
            raise children.cannot_start(error) from error
        try:
            self._process = children.start(
                _serve, self._payload, files=[self._cell.fileno], preload=("ript.demos.workers",)
            )
        except BaseException:
            self._cell.close()
            raise
        self.connection = self._process.connection

    @property
    def address(self) -> str:
        return f"demonstration worker {self.number}" + (f", {self.job[0]}, try {self.job[1]}" if self.job else "")

    def start(self, take: Take) -> None:
        job = take(self._last_key)
        if job:
            if len(self._tasks | {job[0]}) > TASKS_PER_PROCESS:
                self.stop()
                self._spawn()
            self._tasks.add(job[0])
            self._last_key, self.job, self._silence = job[0], job, Silence(self._cell.view)
            with contextlib.suppress(OSError):  # it died: receive() says so
                self.connection.send(job)

    def require_life(self, limit: float) -> None:
        """Raise WorkerError when it has worked on one piece of its job for longer than `limit` seconds."""
        if self._silence.look(self._cell.view, excused=self.connection.poll(), limit=limit):
            raise WorkerError(f"{self.address}: no sign of life for {limit:g} s; the simulator hangs")

    def receive(self) -> Result:
        assert self.job is not None
        where = self.address
        (key, number), self.job = self.job, None
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise WorkerError(f"{where}: the process died (exit code {self._process.exitcode})") from error
        if isinstance(answer, _Failure):
            if isinstance(answer.error, RiptError):
                raise answer.error from WorkerError(f"{where}:\n{answer.text}")
            raise WorkerError(f"{where}: {answer.error}\n{answer.text}")
        demo, spec = answer
        return key, number, demo, spec

    def stop(self) -> None:
        """Idle workers leave by themselves when the connection closes (and close their renderer); others are ended."""
        idle = self.job is None
        self.connection.close()
        self._process.join(5 if idle else 0)
        self._process.kill()
        self._process.join(5)
        self._cell.close()


class _Failure:
    """What a worker raised: the error itself if it is ours, else its first line, and the traceback."""

    def __init__(self, error: BaseException):
        self.error = error if isinstance(error, RiptError) else f"{type(error).__name__}: {error}"
        self.text = traceback.format_exc()
        try:
            pickle.dumps(self.error)
        except Exception:  # such as an error that a script defines, which is known by name in the script alone
            self.error = f"{type(error).__name__}: {error}"


class _Watched:
    """A simulator each use of which is a sign of life."""

    def __init__(self, sim: Demonstrator, mark: Callable[[], None]):
        self._sim, self._mark = sim, mark

    def __getattr__(self, name: str) -> Any:
        self._mark()
        return getattr(self._sim, name)


def _serve(connection: Connection, fileno: int, payload: bytes) -> None:
    """A worker: answer each (task key, try number) with (demonstration or None, spec), until the parent goes.

    Args:
        fileno: of the cell that shows the parent its signs of life.
    """
    mark = Cell(fileno).mark
    mark()
    try:
        make_simulator, settings = children.unpack(payload)
    except Exception as error:
        connection.send(_Failure(error))
        return
    os.environ.setdefault("LP_NUM_THREADS", "0")  # software OpenGL: no threads of its own, every core has a worker
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError), _OneSimulator(make_simulator) as slot:
        while True:
            key, number = connection.recv()
            mark()
            try:
                sim = slot.simulator(key)
                watched = cast(Demonstrator, _Watched(sim, mark))
                answer: object = make_demo(watched, number, settings), sim.spec
            except Exception as error:
                answer = _Failure(error)
            mark()
            connection.send(answer)


class _OneSimulator:
    """Holds the one simulator in use; another task's takes its place."""

    def __init__(self, make_simulator: Callable[[str], Simulator]):
        self._make = make_simulator
        self._key: str | None = None
        self._sim: Demonstrator | None = None

    def simulator(self, key: str) -> Demonstrator:
        if self._sim is None or self._key != key:
            self._close()
            sim = self._make(key)
            if not isinstance(sim, Demonstrator):
                sim.close()
                raise ConfigError(f"the simulator of {key} has no scripted expert; demonstrations cannot be collected")
            self._key, self._sim = key, sim
        return self._sim

    def _close(self) -> None:
        sim, self._sim = self._sim, None
        if sim is not None:
            sim.close()

    def __enter__(self) -> _OneSimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()
