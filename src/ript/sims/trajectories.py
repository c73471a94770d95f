"""Trajectories of a simulator, recorded and compared: the tools of `check`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from ript.core.errors import SimulatorError
from ript.core.interfaces import Simulator
from ript.core.types import ChunkResult, InitialState, Observation, Task


@dataclass(frozen=True)
class Moment:
    """What a trajectory looked like after some step; `vector` where the simulator has a `state_vector`."""

    step: int
    result: ChunkResult | None
    observation: Observation
    vector: np.ndarray | None


def moment(simulator: Simulator, step: int, result: ChunkResult | None, observation: Observation) -> Moment:
    """What there is to see now."""
    vector = simulator.state_vector() if hasattr(simulator, "state_vector") else None
    return Moment(step, result, copied(observation), vector)


class Violation(SimulatorError):
    """A simulator does what it must not do, which is another thing than that it raises."""


def fail(task: Task, state: InitialState | None, step: int | None, what: str) -> NoReturn:
    """Raise `Violation` with its address."""
    where = [task.key]
    if state is not None:
        where.append(f"initial state {state.id}")
    if step is not None:
        where.append(f"step {step}")
    raise Violation(f"{', '.join(where)}: {what}")


def difference(a: Observation, b: Observation) -> str:
    """What differs between two observations, or "". NaN equals NaN: whether one may be there is asked elsewhere."""
    if a.instruction != b.instruction:
        return f"instruction {a.instruction} and {b.instruction}"
    if not same(a.proprio, b.proprio):
        return f"proprio {a.proprio.tolist()} and {b.proprio.tolist()}"
    for name in a.images:
        x, y = a.images[name].astype(int), b.images[name].astype(int)
        if not np.array_equal(x, y):
            where = tuple(int(i) for i in np.argwhere(x != y)[0])
            return f"image {name!r} in {int((x != y).sum())} values, first at {where}: {x[where]} and {y[where]}"
    return ""


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are equal to the last bit; NaN equals NaN."""
    return bool(np.array_equal(a, b, equal_nan=True))


def alike(a: Moment, b: Moment) -> bool:
    """Whether nothing that a simulator shows tells two moments apart."""
    vectors = a.vector is None or b.vector is None or same(a.vector, b.vector)
    return a.result == b.result and vectors and not difference(a.observation, b.observation)


def copied(observation: Observation) -> Observation:
    """The same observation in arrays of its own."""
    return replace(
        observation,
        images={name: image.copy() for name, image in observation.images.items()},
        proprio=observation.proprio.copy(),
    )


def compare(subject: Sequence[Moment], other: Sequence[Moment], task: Task, state: InitialState, what: str) -> None:
    """Fail at the first moment in which two trajectories differ."""
    for a, b in zip(subject, other, strict=False):
        if a.result != b.result:
            fail(task, state, a.step, f"{what} differ: {a.result} and {b.result}")
        different = difference(a.observation, b.observation)
        if not different and a.vector is not None and b.vector is not None and not same(a.vector, b.vector):
            different = f"state vector {a.vector} and {b.vector}"
        if different:
            fail(task, state, a.step, f"{what} differ: {different}")
    if len(subject) != len(other):
        fail(task, state, min(len(subject), len(other)), f"{what} differ in length: {len(subject)} and {len(other)}")


def random_actions(simulator: Simulator, steps: int, seed: int) -> np.ndarray:
    """Random actions that keep a direction for four steps, so that they get somewhere: float32 `[steps, A]`, no more
    than an episode takes."""
    generator, steps = np.random.default_rng(seed), min(steps, simulator.task.horizon)
    shape = (-(-steps // 4), simulator.spec.action_dim)
    return np.repeat(generator.uniform(-1, 1, shape), 4, axis=0)[:steps].astype(np.float32)


def looks(simulator: Simulator, states: Sequence[InitialState], steps: int, seed: int) -> Observation:
    """What a policy sees, so many steps at a time, in these states at first and a little later."""
    found = []
    for state in states:
        seen = deque([copied(simulator.reset(state))] * steps, maxlen=steps)
        found.append(Observation.stacked(list(seen)))
        for action in random_actions(simulator, 2, seed):
            if simulator.step_chunk(action[None]).done:
                break
            seen.append(copied(simulator.observe()))
            found.append(Observation.stacked(list(seen)))
    return Observation.concatenate(found)


def plans(simulator: Simulator, state: InitialState, steps: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Action sequences to check with: random ones, and the expert's where there is one."""
    yield "random actions", random_actions(simulator, steps, seed)
    if hasattr(simulator, "expert_action"):
        actions: list[np.ndarray] = []
        simulator.reset(state)
        for _ in range(min(steps, simulator.task.horizon)):
            actions.append(simulator.expert_action())
            if simulator.step_chunk(actions[-1][None]).done:
                break
        yield "expert actions", np.array(actions, np.float32)


def trajectory(simulator: Simulator, state: InitialState, actions: np.ndarray, chunk: int = 1) -> list[Moment]:
    """Reset, execute in chunks, look after each."""
    moments, step = [moment(simulator, 0, None, simulator.reset(state))], 0
    while step < len(actions):
        result = simulator.step_chunk(actions[step : step + chunk])
        step += result.env_steps
        moments.append(moment(simulator, step, result, simulator.observe()))
        if result.done:
            break
    return moments
