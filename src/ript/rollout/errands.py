"""What is found out from a simulator by an errand (`EnvPool.ask`): its initial states, and what becomes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ript.core.errors import ConfigError, RiptError, SimulatorError
from ript.core.interfaces import Perturbable, Simulator
from ript.core.simulators import Spoilt
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


def states(simulator: Simulator, n: int, seed: int, split: Split, start: int) -> Found:
    """Initial states number start..start+n-1 of a simulator, or as many of these as there are."""
    return Found(simulator.task, simulator.spec, simulator.initial_states(n, seed, split, start))


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
    if noise and not hasattr(simulator, "perturbed_state"):
        raise ConfigError(
            f"sampling.state_noise: the simulator of {simulator.task.key} has no object that could be moved"
        )
    found: list[InitialState | RiptError | None] = []
    for number in numbers:
        drawn = [given[number]] if given else simulator.initial_states(1, seed, "train", number)
        try:
            generator = np.random.default_rng([seed, simulator.task.index, number])
            moved = [simulator.perturbed_state(state, noise, generator) if noise else state for state in drawn]
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
            look = simulator.reset(state)
            vector = getattr(simulator, "state_vector", None)
            digest = hashlib.sha256(" ".join(look.instruction).encode())
            for array in (*look.images.values(), look.proprio, np.empty(0) if vector is None else vector()):
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
            simulator.reset(state)
            if simulator.step_chunk(np.zeros((steps, simulator.spec.action_dim), np.float32)).success:
                found.append(state.id)
        except FATAL:
            raise
        except Exception:
            spoilt = True
    if spoilt:
        raise Spoilt(found)
    return found
