"""What is found out from a simulator by an errand (`EnvPool.ask`): its initial states, and what becomes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ript.core.errors import ConfigError, RiptError, SimulatorError
from ript.core.interfaces import Perturbable, Simulator
from ript.core.simulators import Spoilt, surviving
from ript.core.types import InitialState, SimulatorSpec, Split, Task
from ript.rollout.engine import FATAL


@dataclass(frozen=True, slots=True)
class Found:
    """A simulator's task and spec, and initial states of it; where there is no state, None or the reason."""

    task: Task
    spec: SimulatorSpec
    states: Sequence[InitialState | RiptError | None] = ()


def look(simulator: Simulator) -> Found:
    """The simulator's task and what it shows and takes, without states."""
    return Found(simulator.task, simulator.spec)


def states(simulator: Simulator, n: int, seed: int, split: Split, start: int, noise: float = 0.0) -> Found:
    """Initial states number start..start+n-1 of a simulator, or as many of these as there are.

    Args:
        noise: standard deviation by which their objects are moved, metres; the same for a state at any time.

    Raises:
        ConfigError: noise, and a simulator that cannot move its object.
        SimulatorError: a state from which nothing can be moved that far.
    """
    drawn = simulator.initial_states(n, seed, split, start)
    if noise:
        movers = [np.random.default_rng([seed, simulator.task.index, start + i, MEASURED]) for i in range(len(drawn))]
        mover = _mover(simulator, "noise on states")
        drawn = [mover(state, noise, generator) for state, generator in zip(drawn, movers, strict=True)]
    return Found(simulator.task, simulator.spec, drawn)


MEASURED = 1
"""Keeps noise on states to be measured on apart from that on states to practise on."""


def _mover(simulator: Simulator, what: str) -> Callable[[InitialState, float, np.random.Generator], InitialState]:
    """The simulator's `perturbed_state`.

    Raises:
        ConfigError: it has none.
    """
    mover: Callable[[InitialState, float, np.random.Generator], InitialState] | None
    mover = getattr(simulator, "perturbed_state", None)
    if mover is None:
        raise ConfigError(f"{what}: the simulator of {simulator.task.key} has no object that could be moved")
    return mover


def practice_states(
    simulator: Perturbable,
    numbers: Sequence[int],
    seed: int,
    noise: float,
    given: Mapping[int, InitialState] | None = None,
) -> Found:
    """States to practise on, by their numbers.

    Args:
        simulator: of their task.
        numbers: in the sequence of its training states.
        seed: of that sequence, and of the noise.
        noise: standard deviation on the object's position, metres; the same for a state whenever it comes up.
        given: number -> state that is practised on instead of the simulator's own.
    """
    mover = _mover(simulator, "sampling.state_noise") if noise else None
    found: list[InitialState | RiptError | None] = []
    for number in numbers:
        drawn = [given[number]] if given else simulator.initial_states(1, seed, "train", number)
        try:
            generator = np.random.default_rng([seed, simulator.task.index, number])
            with surviving():
                moved = [mover(state, noise, generator) if mover else state for state in drawn]
        except FATAL:
            raise
        except Exception as error:  # it is for the rollout that would begin there
            why = f"{simulator.task.key}: {type(error).__name__}: {error}"
            found.append(error if isinstance(error, RiptError) else SimulatorError(why))
            continue
        found.append(moved[0] if moved else None)
    return Found(simulator.task, simulator.spec, found)


def first_looks(simulator: Simulator, states: Sequence[InitialState]) -> list[str]:
    """What tells each state from others that a simulator shows, as a digest: equal ones look alike. Empty of a state
    that cannot be looked at: a simulator that raises is for the rollouts to tell of."""
    found, spoilt = [], False
    for state in states:
        try:
            with surviving():
                look = simulator.reset(state)
                vector = getattr(simulator, "state_vector", None)
                hidden = np.empty(0) if vector is None else vector()
            digest = hashlib.sha256(" ".join(look.instruction).encode())
            for array in (*look.images.values(), look.proprio, hidden):
                digest.update(np.ascontiguousarray(array).tobytes())
            found.append(digest.hexdigest())
        except FATAL:
            raise
        except Exception:
            found.append("")
            spoilt = True
    if spoilt:
        raise Spoilt(found)
    return found


def solved_by_nothing(simulator: Simulator, states: Sequence[InitialState], steps: int) -> list[str]:
    """Ids of the states from which so many steps of zero actions succeed, as far as they can be looked at: a simulator
    that raises is for the rollouts to tell of."""
    found, spoilt = [], False
    for state in states:
        try:
            with surviving():
                simulator.reset(state)
                result = simulator.step_chunk(np.zeros((steps, simulator.spec.action_dim), np.float32))
            if result.success:
                found.append(state.id)
        except FATAL:
            raise
        except Exception:
            spoilt = True
    if spoilt:
        raise Spoilt(found)
    return found
