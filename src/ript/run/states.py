"""Initial states to practise on and to be measured on, from the simulators of a run's pool."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence

from ript.core.errors import ConfigError, RiptError, SimulatorError
from ript.core.interfaces import EnvPool
from ript.core.types import Errand, InitialState, SimulatorSpec, Split, Task
from ript.demos.demo_set import open_demos
from ript.demos.initial_states import demo_initial_states
from ript.rollout import state_errands
from ript.rollout.state_errands import Found
from ript.run.progress import status

PART, AHEAD = 16, 32
"""States that one errand draws at most; training states that are drawn ahead, at least one of each task."""
LOOKED = 16
"""States of each task and split that are looked at before they are practised or measured on."""


class InitialStates:
    """Initial states of some tasks. Where they are drawn does not matter: a state is a function of its number.

    Args:
        pool: asked for states. It needs no policy for that.
        tasks: task keys.
        seed: of the states.
        demos: demonstration files whose initial states are practised on; none: states that the simulator draws.

    Raises:
        DataError: a task has no demonstration in `demos`, or a file is damaged.
    """

    def __init__(self, pool: EnvPool, tasks: tuple[str, ...], seed: int, demos: Sequence[str] = ()):
        self.pool, self.tasks, self.seed = pool, tasks, seed
        shown = open_demos(demos) if demos else None
        self._demonstrated = {} if shown is None else {task: demo_initial_states(shown, [task]) for task in tasks}
        self._known: dict[str, Found] = {}
        self._looks: dict[str, str] = {}
        self._practised: dict[tuple[str, int, float], InitialState | RiptError | None] = {}

    def fingerprint(self) -> str:
        """A hash of the demonstrated states, 16 hex digits; empty when the simulator draws the states."""
        ids = [state.id for states in self._demonstrated.values() for state in states]
        return hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] if ids else ""

    def task(self, key: str) -> Task:
        """The task as its simulators have it."""
        return self._look(key).task

    @property
    def spec(self) -> SimulatorSpec:
        """What the first task's simulators show and take."""
        return self._look(self.tasks[0]).spec

    def _look(self, key: str) -> Found:
        if key not in self._known:
            missing = [task for task in dict.fromkeys((key, *self.tasks)) if task not in self._known]
            self._ask([Errand(task, state_errands.look) for task in missing])
        return self._known[key]

    def _ask(self, wanted: Sequence[Errand]) -> list[Found]:
        found: list[Found] = self.pool.ask(wanted)
        for errand, answer in zip(wanted, found, strict=True):
            self._known.setdefault(errand.task, answer)
            for state in answer.states:
                if isinstance(state, InitialState):
                    state.state.setflags(write=False)  # which is lost on the way from another process
        return found

    def states(self, task: str, n: int, split: Split, start: int = 0, seed: int | None = None) -> list[InitialState]:
        """States start..start+n-1 of a task."""
        return self._several([task], n, split, start, self.seed if seed is None else seed)[task]

    def _several(
        self, tasks: Sequence[str], n: int, split: Split, start: int, seed: int, noise: float = 0.0
    ) -> dict[str, list[InitialState]]:
        drawn = functools.partial(state_errands.states, seed=seed, split=split, noise=noise)
        wanted = [
            Errand(task, functools.partial(drawn, n=min(PART, n - at), start=start + at))
            for task in tasks
            for at in range(0, n, PART)
        ]
        found: dict[str, list[InitialState]] = {task: [] for task in tasks}
        for errand, answer in zip(wanted, self._ask(wanted), strict=True):
            found[errand.task] += [state for state in answer.states if isinstance(state, InitialState)]
        return found

    def measured(self, split: Split, trials: int, seed: int = 0, noise: float = 0.0) -> dict[Task, list[InitialState]]:
        """Task -> the first `trials` states of its split, "test" or "validation", to be measured on; with `noise`,
        metres, on where objects stand.

        Each is there once: a split that has fewer states gives those that it has, which the screen tells, as it does
        where states look the same.

        Raises:
            ConfigError: noise, and a simulator that cannot move its object.
            SimulatorError: it has none, or one in which nothing can be moved that far.
        """
        found = {}
        for key, drawn in self._several(self.tasks, trials, split, 0, seed, noise).items():
            states = {state.id: state for state in drawn}
            if not states:
                raise SimulatorError(f"{key}: its split {split} has no initial state to be measured on")
            if len(states) < trials:
                there = f"there are {len(states)} initial states in its split {split} of seed {seed}"
                status(f"  {key}: {there}, not {trials}; each is measured once")
            found[self.task(key)] = list(states.values())
        looks = self.looks([state for states in found.values() for state in states[:LOOKED]])
        for task, several in found.items():
            seen = [look for state in several[:LOOKED] if (look := looks[state.id])]
            if len(set(seen)) < len(seen):
                status(
                    f"  {task.key}: the first {len(seen)} states of split {split} look like {len(set(seen))}, to the "
                    "last pixel and number: trials from them are no independent ones, and intervals too narrow"
                )
        return found

    def looks(self, states: Sequence[InitialState]) -> dict[str, str]:
        """Id of a state -> what it looks like: equal for states that nothing tells apart that a simulator shows, empty
        where it cannot be looked at."""
        of_task: dict[str, dict[str, InitialState]] = {}
        for state in states:
            if state.id not in self._looks:
                of_task.setdefault(state.task.key, {})[state.id] = state
        wanted = [
            Errand(task, functools.partial(state_errands.first_looks, states=list(several.values())))
            for task, several in of_task.items()
        ]
        for several, found in zip(of_task.values(), self.pool.ask(wanted), strict=True):
            self._looks |= dict(zip(several, found, strict=True))
        return {state.id: self._looks[state.id] for state in states}

    def training(self, position: int, fixed: int = 0, noise: float = 0.0) -> Iterator[InitialState]:
        """The endless sequence of training states from `position` on, task after task in turn.

        Args:
            position: how many were used before.
            fixed: size of the set per task that is gone through again and again; 0: always fresh ones, or all that
                were demonstrated.
            noise: standard deviation of Gaussian noise on the object's position, metres; the same for a state whenever
                it comes up.

        Raises:
            ConfigError: noise, and a simulator that cannot move its object; or fewer demonstrated states than `fixed`.
        """
        if not self.tasks:
            raise ConfigError("no task to practise on: give --tasks")
        for task, states in self._demonstrated.items():
            if len(states) < fixed:
                raise ConfigError(f"sampling.states: {fixed} states wanted; {task} has {len(states)} demonstrated")
        if not fixed and not self._demonstrated:  # those before are not wanted again
            done = position // len(self.tasks)
            self._practised = {key: state for key, state in self._practised.items() if key[1] >= done}
        for i in itertools.count(position):
            key = self._place(i, fixed, noise)
            if not noise and key[0] in self._demonstrated:
                yield self._demonstrated[key[0]][key[1]]
                continue
            if key not in self._practised:
                ahead = range(i, i + max(AHEAD, len(self.tasks)))
                self._draw(dict.fromkeys(self._place(j, fixed, noise) for j in ahead))
            state = self._practised[key]
            if state is None:
                raise SimulatorError(
                    f"{key[0]}: its split train has no initial state number {key[1]}; sequences of states are endless, "
                    "so one with few of them begins again (docs/adding_a_simulator.md)"
                )
            if not isinstance(state, InitialState):
                raise state
            yield state

    def _place(self, i: int, fixed: int, noise: float) -> tuple[str, int, float]:
        """(task, number among its states, noise) of training state number i."""
        task, number = self.tasks[i % len(self.tasks)], i // len(self.tasks)
        among = fixed or len(self._demonstrated.get(task, ()))
        return task, number % among if among else number, noise

    def _draw(self, places: dict[tuple[str, int, float], None]) -> None:
        """Let the pool make those training states that are not there yet."""
        wanted, asked = [], []
        for task in self.tasks:
            missing = [place for place in places if place[0] == task and place not in self._practised]
            for part in (missing[at : at + PART // 2] for at in range(0, len(missing), PART // 2)):
                numbers = [number for _, number, _ in part]
                shown = self._demonstrated.get(task)
                given = {number: shown[number] for number in numbers} if shown else None
                work = functools.partial(
                    state_errands.practice_states, numbers=numbers, seed=self.seed, noise=part[0][2], given=given
                )
                wanted.append(Errand(task, work))
                asked.append(part)
        for part, answer in zip(asked, self._ask(wanted), strict=True):
            self._practised |= dict(zip(part, answer.states, strict=True))
