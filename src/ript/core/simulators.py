"""Simulators of one process: instances that are used again, and errands that are run on them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from ript.core import interpreter, streams
from ript.core.errors import SimulatorError
from ript.core.interfaces import Simulator, SimulatorFactory
from ript.core.memory import translated
from ript.core.types import Errand, InitialState, Observation, Split


class SimulatorCache:
    """Simulator instances of one process: a free list, most recently used last, closed when it grows too long.

    What is heavy, a task's model and renderer, is shared by its instances and goes with the last one; so the number of
    tasks that have instances bounds memory.

    Args:
        make_simulator: builds an instance for a task key.
        limit: free instances kept (at least one a slot, or every refill would build), besides one of each task.
        tasks: tasks that have instances at a time; another takes the place of the one that was used least recently.
    """

    def __init__(
        self,
        make_simulator: SimulatorFactory,
        *,
        limit: int,
        tasks: int,
    ):
        self._make = make_simulator
        self._limit, self._tasks = limit, tasks
        self._recent: dict[str, None] = {}
        self._free: list[tuple[str, Simulator]] = []
        self._taken: list[Simulator] = []
        self._closed = {"simulate": 0.0, "render": 0.0}
        self._build_seconds = 0.0
        self._told: set[str] = set()  # tasks of simulators that cannot be closed

    def has_room(self, key: str) -> bool:
        """Whether an instance of this task can be had now without more tasks than there may be. (An errand may have one
        all the same, and gives it back soon.)"""
        taken = {simulator.task.key for simulator in self._taken}
        return key in taken or len(taken) < self._tasks

    def take(self, key: str) -> Simulator:
        """A free instance of this task, or a new one; see `has_room`."""
        self._recent.pop(key, None)
        self._recent[key] = None
        for position in range(len(self._free) - 1, -1, -1):
            if self._free[position][0] == key:
                simulator = self._free.pop(position)[1]
                self._taken.append(simulator)
                return simulator
        started = time.perf_counter()
        self._make_room({key})
        simulator = self._make(key)
        self._build_seconds += time.perf_counter() - started
        self._taken.append(simulator)
        return simulator

    def release(self, simulator: Simulator) -> None:
        """Give an instance back for the next rollout of its task."""
        self._taken.remove(simulator)
        self._free.append((simulator.task.key, simulator))
        keys = Counter([key for key, _ in self._free] + [other.task.key for other in self._taken])
        spare = [number for number, (key, _) in enumerate(self._free) if keys[key] > 1]
        if len(self._free) > self._limit and spare:
            self._close(self._free.pop(spare[0])[1])
        self._make_room(set())

    def discard(self, simulator: Simulator) -> None:
        """Close an instance that failed: its state cannot be trusted."""
        self._taken.remove(simulator)
        self._close(simulator)

    def seconds(self) -> dict[str, float]:
        """Cumulative seconds in "simulate", "render" and "build" of all instances, closed ones included."""
        total = {**self._closed, "build": self._build_seconds}
        for simulator in [*self._taken, *(free for _, free in self._free)]:
            for name in ("simulate", "render"):
                total[name] += simulator.seconds.get(name, 0.0)
        return total

    def close(self) -> None:
        """Close every instance (renderers must not wait for interpreter exit). Taken ones become unusable too."""
        for simulator in [*self._taken, *(free for _, free in self._free)]:
            self._close(simulator)
        self._taken, self._free = [], []

    def _make_room(self, coming: set[str]) -> None:
        """Close free instances of the tasks used least recently, until these tasks may have some."""
        taken = {simulator.task.key for simulator in self._taken} | coming
        free = {task for task, _ in self._free} - taken
        oldest = [task for task in self._recent if task in free]
        while oldest and len(taken | free) > self._tasks:
            free.remove(task := oldest.pop(0))
            del self._recent[task]
            closing = [simulator for name, simulator in self._free if name == task]
            self._free = [(name, simulator) for name, simulator in self._free if name != task]
            for simulator in closing:
                self._close(simulator)

    def _close(self, simulator: Simulator) -> None:
        for name in ("simulate", "render"):
            self._closed[name] += simulator.seconds.get(name, 0.0)
        if (trouble := close(simulator)) and (key := simulator.task.key) not in self._told:
            self._told.add(key)
            streams.say(trouble)


def close(simulator: Simulator) -> str:
    """Close a simulator whose work is done: that it cannot be closed takes nothing from that. Returns why, in words; or
    "" when it is closed."""
    try:
        with surviving():
            simulator.close()
    except Exception as error:  # of anyone's simulator
        return f"a simulator of {simulator.task.key} cannot be closed ({type(error).__name__}: {error})"
    return ""


def surviving() -> AbstractContextManager[None]:
    """Within, a simulator that ends the program, or raises what is no `Exception`, raises `SimulatorError` instead, as
    if it had raised anything else."""
    return interpreter.ending(_in_words)


def _in_words(stop: BaseException) -> SimulatorError:
    said = interpreter.said_by(stop)
    if not interpreter.ends_programs(stop):
        return SimulatorError(f"it raised {said}")
    return SimulatorError(f"it ends the program ({said}): let it raise an error, or end the episode, instead")


@contextmanager
def opened(simulator: Simulator) -> Iterator[Simulator]:
    """The simulator, which is closed afterwards; that it cannot be is said, and ends nothing."""
    try:
        yield simulator
    finally:
        if trouble := close(simulator):
            streams.say(trouble)


class Spoilt(Exception):
    """Raised by an errand that has its answer, on a simulator that is not to be used again."""

    def __init__(self, answer: Any):
        self.answer = answer


def run_errand(
    errand: Errand,
    simulators: SimulatorCache,
    mark: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda where: None,
) -> Any:
    """Run an errand on a simulator of this process; returns its answer.

    Args:
        errand: to run.
        simulators: where its simulator comes from; one on which the errand failed is closed.
        mark: leaves a sign of life, before each use of the simulator.
        note: told what the simulator works on, its task and the state that it was last asked for or reset to.

    Raises:
        SimulatorError: the simulator raised something that is no `RiptError`.
    """
    where = errand.task

    def begin(state: str) -> None:
        nonlocal where
        where = f"{errand.task}, {state}"
        note(where)

    mark()
    note(where)
    with translated(lambda error: SimulatorError(f"{where}: {interpreter.said_by(error)}")):
        simulator = simulators.take(errand.task)
        try:
            answer = errand.work(cast(Simulator, _Watched(simulator, mark, begin)))
        except Spoilt as spoilt:
            simulators.discard(simulator)
            return spoilt.answer
        except BaseException:
            simulators.discard(simulator)
            raise
        simulators.release(simulator)
        return answer


class _Watched:
    """A simulator each use of which is a sign of life, and which says what it works on."""

    def __init__(self, simulator: Simulator, mark: Callable[[], None], begin: Callable[[str], None]):
        self._simulator, self._mark, self._begin = simulator, mark, begin

    def reset(self, initial_state: InitialState) -> Observation:
        self._mark()
        self._begin(f"initial state {initial_state.id}")
        return self._simulator.reset(initial_state)

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        self._mark()
        numbers = f"state number {start}" if n == 1 else f"states number {start} to {start + n - 1}"
        self._begin(f"initial {numbers} of split {split} of seed {seed}")
        return self._simulator.initial_states(n, seed, split, start)

    def __getattr__(self, name: str) -> Any:
        self._mark()
        return getattr(self._simulator, name)
