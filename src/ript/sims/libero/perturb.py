"""Initial states with objects moved: Gaussian noise on where they stand, as in studies of robustness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from ript.core.errors import SimulatorError
from ript.core.types import InitialState
from ript.sims.libero.bddl import Problem
from ript.sims.libero.states import SceneParts, States
from ript.sims.libero.step import Physics

DRAWS = 500
DEEP = 0.008
"""Metres by which an object may be inside another at first; in the benchmark's own states they are up to 7 mm."""
TILTED = 0.03
"""Metres by which it may come to rest higher or lower than it would have: on something else, beside the table."""
REACH = 0.85
"""Metres from the arm's first joint, horizontally, that the hand reaches."""
STEPS = 10


class Instance(Protocol):
    """What is needed of a simulator."""

    parts: SceneParts
    states: States
    physics: Physics
    waiting: np.ndarray

    def set_state(self, initial_state: InitialState, *, settled: bool = True) -> None: ...


def movable(facts: Mapping[str, Any], problem: Problem) -> dict[str, tuple[str, ...]]:
    """Objects that stand on the table or the floor, each with what stands on it or in it and moves along."""
    on: dict[str, str] = {}
    for name, *about in problem.initial:
        if name in ("on", "in") and about[0] in facts["objects"]:
            region = problem.regions.get(about[1])
            on[about[0]] = region.target if region else about[1]
    things = {**facts["objects"], **facts["fixtures"]}
    found: dict[str, list[str]] = {name: [name] for name, below in on.items() if below not in things}
    for name in on:
        below = name
        while below in on and on[below] in things:
            below = on[below]
        if below in found and below != name:
            found[below].append(name)
    return {name: tuple(along) for name, along in found.items()}


def perturbed(
    simulator: Instance, state: InitialState, std_metres: float, generator: np.random.Generator
) -> InitialState:
    """A state near another: independent Gaussian noise on both horizontal coordinates of every object that stands on
    the table or the floor; what stands on an object moves along, fixtures and what is in them stay.

    Drawn again while an object would be inside something else, fall off, lie out of reach, or while the task would be
    solved. So objects may leave the places that initial states are drawn from, by a little or a lot.

    Args:
        simulator: of the state's task; it is reset.
        state: to be moved.
        std_metres: standard deviation.
        generator: drawn from.

    Raises:
        SimulatorError: no draw was accepted.
    """
    parts, states = simulator.parts, simulator.states
    model, layout, base = parts.model, parts.layout, parts.model.body("robot0_base").id
    places = [
        [int(model.joint(parts.facts["objects"][one]["joints"][-1]).qposadr[0]) for one in along]
        for along in movable(parts.facts, states.problem).values()
    ]
    first = [addresses[0] for addresses in places]
    rest = _at_rest(simulator, state)[first, 2] if places else np.zeros(0)
    for _ in range(DRAWS):
        vector = state.state.copy()
        qpos = layout.split(vector).qpos
        for addresses in places:
            offset = generator.normal(0.0, std_metres, 2)
            for at in addresses:
                qpos[at : at + 2] += offset
        moved = InitialState(
            task=state.task, state=vector, origin="sampled", label=f"{state.label} + noise {std_metres} m"
        )
        simulator.set_state(moved, settled=False)
        data = simulator.physics.data
        here = data.xpos[base][:2]
        if any(np.linalg.norm(qpos[at : at + 2] - here) > REACH for at in first) or _overlap(simulator) > DEEP:
            continue
        came_to_rest = _at_rest(simulator, moved)[first, 2] if places else rest
        if (np.abs(came_to_rest - rest) < TILTED).all() and not states.goal(data):
            return moved
    raise SimulatorError(
        f"{state.task.key}, initial state {state.id} with noise of {std_metres} m: none of {DRAWS} draws was one from "
        "which the task can be begun"
    )


def _at_rest(simulator: Instance, state: InitialState) -> np.ndarray:
    """Where what begins at an address of qpos stands a while after: `[nq, 3]`, of which the addresses' rows count."""
    simulator.set_state(state)
    for _ in range(STEPS):
        simulator.physics.step(simulator.waiting)
    qpos = simulator.physics.data.qpos
    return np.stack([np.roll(qpos, -k) for k in range(3)], axis=1)


def _overlap(simulator: Instance) -> float:
    """Metres by which an object is inside another one or a fixture."""
    parts, data = simulator.parts, simulator.physics.data
    parts.mujoco.mj_forward(parts.model, data)
    roots = parts.model.body_rootid[parts.model.geom_bodyid[data.contact.geom]]
    things = np.isin(roots, [*parts.objects, *parts.fixtures]).all(axis=1)
    apart = data.contact.dist[things & (roots[:, 0] != roots[:, 1]) & np.isin(roots, parts.objects).any(axis=1)]
    return float(-apart.min(initial=0.0))
