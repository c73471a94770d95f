"""An expert of a user's own: a function that acts in a simulator, so that demonstrations can be collected.

    def reach(simulator, generator):
        ...
        return action

`simulator` is the simulator itself, in its present state: what it offers (a Gymnasium environment's `observation` and
`env`) is there to be looked at. `generator` is a random generator whose numbers depend on the initial state alone. The
action is `[A]` in [-1, 1]. A class is made anew for each try, and its object called in the same way, which may remember
what it did.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ript.core import user_code
from ript.core.errors import ConfigError, SimulatorError
from ript.core.interfaces import Simulator
from ript.core.interpreter import said_by
from ript.core.memory import translated
from ript.core.types import ChunkResult, InitialState, Observation, Split

Expert = Callable[[Any, np.random.Generator], Any]


def load_expert(name: str) -> Expert:
    """The function or class that "module:name" names. The module may lie in the current folder.

    Raises:
        ConfigError: not of this form, a module that is not there or cannot be imported, or nothing that can be called.
        UnknownNameError: the module has no such name.
    """
    expert = user_code.find(name, "demos.expert", "MODULE:FUNCTION, such as my_file:reach")
    if not callable(expert):
        raise ConfigError(f"demos.expert: {name} is {expert!r}, which cannot be called")
    return expert


def with_expert(make_simulator: Callable[[str], Simulator], expert: str) -> Callable[[str], Scripted]:
    """A function that makes simulators with this expert: task key -> simulator. Picklable if the given one is.

    Raises:
        ConfigError, UnknownNameError: as `load_expert`.
    """
    load_expert(expert)  # here already, not once in each worker
    return functools.partial(_make, make_simulator, expert)


def _make(make_simulator: Callable[[str], Simulator], expert: str, key: str) -> Scripted:
    return Scripted(make_simulator(key), load_expert(expert), expert)


class Scripted:
    """A simulator with an expert of a user's own. Implements `Demonstrator`.

    Args:
        simulator: what the expert acts in; closed with this.
        expert: called before every step.
        name: of the expert, for errors.
    """

    def __init__(self, simulator: Simulator, expert: Expert, name: str):
        self._simulator, self._expert, self._name = simulator, expert, name
        self.task, self.spec, self.seconds = simulator.task, simulator.spec, simulator.seconds
        self._asked: Expert | None = None
        self._where = self.task.key

    def reset(self, initial_state: InitialState) -> Observation:
        self._asked = None
        self._where = f"{self.task.key}, initial state {initial_state.id}"
        self._generator = np.random.default_rng(int(initial_state.id, 16))
        return self._simulator.reset(initial_state)

    def expert_action(self) -> np.ndarray:
        """What the expert does now: float32 `[A]`.

        Raises:
            SimulatorError: it raised, or answered something else.
        """
        with translated(self._raised):
            if self._asked is None:
                self._asked = cast(Expert, self._expert()) if inspect.isclass(self._expert) else self._expert
            answer = self._asked(self._simulator, self._generator)
            action = np.asarray(answer, np.float32)
        if action.shape != (self.spec.action_dim,):
            raise SimulatorError(
                f"{self._where}: the expert {self._name} answered {answer!r}; expected {self.spec.action_dim} numbers "
                "in [-1, 1]"
            )
        return action

    def _raised(self, error: BaseException) -> SimulatorError:
        return SimulatorError(f"{self._where}: the expert {self._name} raised {said_by(error)}")

    def privileged(self) -> np.ndarray:
        """The simulator's own, or none: float32 `[O]`."""
        own = getattr(self._simulator, "privileged", None)
        return np.zeros(0, np.float32) if own is None else own()

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        return self._simulator.step_chunk(actions)

    def observe(self) -> Observation:
        return self._simulator.observe()

    def render(self) -> np.ndarray:
        return self._simulator.render()

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        return self._simulator.initial_states(n, seed, split, start)

    def close(self) -> None:
        self._simulator.close()

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
