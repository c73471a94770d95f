"""LIBERO's initial states: those of the benchmark, those of recordings, and ones drawn as the tasks' resets draw them.

The benchmark's vectors (time, positions, velocities) do not hold everything: stock draws where fixtures stand
(cabinets, stoves, racks, microwaves, shelves) anew at every reset, up to 1.6 cm apart. So a state here holds that too.
The fixtures of benchmark state i are those of a newly built stock environment after `np.random.seed(i)` and
`env.reset()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ript.core.errors import SimulatorError
from ript.core.types import InitialState, Split, Task
from ript.sims.libero.bddl import Fact, problem_of
from ript.sims.libero.controller import Arm
from ript.sims.libero.human import SETTLE, human_demonstration
from ript.sims.libero.placement import ARM_NOISE, Placement, Placer
from ript.sims.libero.predicates import Goal, holds
from ript.sims.libero.tasks import INSTALL, LiberoTask
from ript.sims.sequences import streams

GRIPPER = (0.020833, -0.020833)
"""Metres: the fingers after a reset."""


@dataclass(frozen=True)
class Layout:
    """Where the parts of an initial state's vector lie: `[F, settle, time, qpos (nq), qvel (nv), fixtures (7 F)]`.

    A fixture is position (m) and quaternion (w first) of its body. `settle` is how many steps the gripper opens, and
    nothing else moves, before the episode begins; below 0 the simulator's options say. Recordings have their own.
    """

    qpos: int
    qvel: int
    fixtures: int

    @property
    def physics(self) -> int:
        """Numbers of a recorded vector: time, qpos, qvel."""
        return 1 + self.qpos + self.qvel

    @property
    def size(self) -> int:
        return 2 + self.physics + 7 * self.fixtures

    def problem(self, state: np.ndarray) -> str:
        """Why a vector cannot be of this layout, or ""."""
        if state.size != self.size:
            return f"expected {self.size} numbers, got {state.size}"
        if state[0] != self.fixtures:
            return f"expected {self.fixtures} fixtures, got {state[0]:g}"
        return "" if np.isfinite(state).all() else "not all numbers are finite"

    def split(self, state: np.ndarray) -> Parts:
        """The inverse of `join`."""
        a = 3 + self.qpos
        b = a + self.qvel
        poses = state[b:].reshape(self.fixtures, 7)
        return Parts(int(state[1]), float(state[2]), state[3:a], state[a:b], poses[:, :3], poses[:, 3:])

    def join(self, vector: np.ndarray, poses: np.ndarray, settle: int = -1) -> np.ndarray:
        """A recorded vector (time, qpos, qvel) and `[F, 7]` -> a state's vector."""
        return np.concatenate([[float(self.fixtures), float(settle)], vector, poses.ravel()])


class Parts(NamedTuple):
    """The parts of an initial state's vector; see `Layout`."""

    settle: int
    time: float
    qpos: np.ndarray
    qvel: np.ndarray
    fixture_pos: np.ndarray
    fixture_quat: np.ndarray


class SceneParts:
    """What is derived from a scene's model and facts once, for all simulators in it.

    Attributes:
        arm: see `Arm`.
        layout: of states.
        fixtures, objects: ids of their bodies, in order.
        burners: (address of the knob in qpos, relation and edge of "on", site that glows).
    """

    def __init__(self, mujoco: Any, model: Any, facts: Mapping[str, Any]):
        self.mujoco, self.model, self.facts = mujoco, model, facts
        self.arm = Arm(mujoco, model, np.array(facts["home"]))
        self.fixtures = np.array([model.body(one["body"]).id for one in facts["fixtures"].values()], np.int64)
        self.objects = np.array([model.body(one["body"]).id for one in facts["objects"].values()], np.int64)
        self.layout = Layout(model.nq, model.nv, len(self.fixtures))
        things = [*facts["fixtures"].values(), *facts["objects"].values()]
        self.burners = tuple(
            (int(model.joint(one["joints"][0]).qposadr[0]), *one["tests"]["turnon"], int(model.site(site).id))
            for one in things
            for site in one["burner"]
        )
        self.rgba = model.site_rgba.copy()
        for *_, site in self.burners:
            self.rgba[site, 3] = 0.0
        self._scratch = mujoco.MjData(model)

    def body(self, name: str) -> int:
        """Body of an object, of a fixture, or of the one that a site is part of; 0, the world's, of a table."""
        facts = self.facts
        name = facts["sites"][name]["parent"] if name in facts["sites"] else name
        one = facts["objects"].get(name) or facts["fixtures"].get(name)
        return 0 if one is None else int(self.model.body(one["body"]).id)

    def about(self, fact: Fact) -> tuple[int, int]:
        """Bodies of what a fact is about, and of where that is to be; twice the same of one about joints."""
        return self.body(fact[1]), self.body(fact[-1])

    def colours(self, qpos: np.ndarray) -> np.ndarray | None:
        """Colours of all sites, with the burners glowing whose knobs are turned; None where none is."""
        lit = [site for at, relation, edge, site in self.burners if holds(float(qpos[at]), relation, edge)]
        if not lit:
            return None
        rgba = self.rgba.copy()
        rgba[lit, 3] = 1.0
        return rgba

    def site_position(self, site: str, joints: Sequence[tuple[str, float]]) -> np.ndarray:
        """Where a site is when its fixture stands at the origin, unturned, as before a reset."""
        model, data = self.model, self._scratch
        kept = model.body_pos[self.fixtures].copy(), model.body_quat[self.fixtures].copy()
        model.body_pos[self.fixtures], model.body_quat[self.fixtures] = 0.0, (1.0, 0.0, 0.0, 0.0)
        self.mujoco.mj_resetData(model, data)
        for joint, value in joints:
            data.qpos[model.joint(joint).qposadr[0]] = value
        self.mujoco.mj_kinematics(model, data)
        model.body_pos[self.fixtures], model.body_quat[self.fixtures] = kept
        return data.site_xpos[model.site(site).id].copy()


class States:
    """A task's initial states.

    Args:
        info: the task.
        task: the same for the house.
        parts: of its scene.

    Attributes:
        wanted: ids of the bodies that the first two facts of the goal are about, `[4]`.
    """

    def __init__(self, info: LiberoTask, task: Task, parts: SceneParts):
        self._info, self._task, self._parts = info, task, parts
        self.problem = problem_of(info.bddl)
        self.goal = Goal(parts.model, parts.facts, self.problem.goal)
        self._placer = Placer(parts.facts, self.problem, parts.site_position, task.key)
        self.wanted = np.array([body for fact in (self.problem.goal * 2)[:2] for body in parts.about(fact)])
        self._vectors: np.ndarray | None = None

    def __call__(self, n: int, seed: int, split: Split, start: int) -> list[InitialState]:
        """States start..start+n-1 of a split: test is the benchmark, whatever the seed, and begins again at its end;
        the others are drawn and endless."""
        drawn = streams(self._task, n, seed, split, start)
        if split == "test":
            return [self.benchmark(i % len(self._benchmark())) for i in range(start, start + n)]
        return [self._state(self.drawn(_legacy(generator)), "sampled", label) for label, generator in drawn]

    def benchmark(self, number: int) -> InitialState:
        """One of the benchmark's states.

        Raises:
            SimulatorError: it does not fit the scene, or is not there.
        """
        vectors = self._benchmark()
        if not 0 <= number < len(vectors):
            raise SimulatorError(f"{self._task.key}: its benchmark has states 0 to {len(vectors) - 1}, not {number}")
        return self.of_vector(vectors[number], "benchmark", f"benchmark #{number}", fixtures=number)

    def human(self) -> InitialState:
        """Where the human demonstration of the task began.

        Raises:
            UnknownNameError: it has none.
        """
        one = human_demonstration(self._info.name)
        return self.of_vector(one.vector, "demo", f"human {one.source}", settle=SETTLE)

    def of_vector(
        self, vector: np.ndarray, origin: Literal["demo", "benchmark"], label: str, fixtures: int = 0, settle: int = -1
    ) -> InitialState:
        """A state from a recorded vector.

        Args:
            vector: time, qpos, qvel, as robosuite's `get_state().flatten()` gives it.
            origin: of the state.
            label: in words.
            fixtures: seed of where fixtures stand, which the vector does not tell.
            settle: steps in which the gripper opens before the episode begins; -1: as the simulator's options say.

        Raises:
            SimulatorError: it is of another scene.
        """
        layout, vector = self._parts.layout, np.asarray(vector, np.float64).ravel()
        if vector.size != layout.physics:
            wanted = f"time, {layout.qpos} positions and {layout.qvel} velocities"
            raise SimulatorError(
                f"{self._task.key}, {label}: expected {layout.physics} numbers ({wanted}), got {vector.size}: "
                "the state is of another task, or of another version of LIBERO"
            )
        if not np.isfinite(vector).all():
            raise SimulatorError(f"{self._task.key}, {label}: not all numbers are finite")
        placement = self._placer.draw(np.random.RandomState(fixtures))
        return self._state(layout.join(vector, self._poses(placement), settle), origin, label)

    def drawn(self, generator: np.random.RandomState) -> np.ndarray:
        """What a reset of the task gives, with the arm's noise that the benchmark's states have; those of LIBERO-PRO
        have none."""
        parts, facts = self._parts, self._parts.facts
        model, arm = parts.model, parts.arm
        placement = self._placer.draw(generator)
        qpos = model.qpos0.copy()
        noise = 0.0 if self._info.perturbation else ARM_NOISE
        qpos[arm.qpos_at], qpos[arm.finger_qpos] = arm.home + placement.arm * noise, GRIPPER
        for joint, value in placement.joints:
            qpos[model.joint(joint).qposadr[0]] = value
        for name, one in placement.placed.items():
            if name in facts["objects"]:
                at = model.joint(one.thing["joints"][-1]).qposadr[0]
                qpos[at : at + 3], qpos[at + 3 : at + 7] = one.position, one.quaternion
        return parts.layout.join(np.concatenate([[0.0], qpos, np.zeros(model.nv)]), self._poses(placement))

    def _poses(self, placement: Placement) -> np.ndarray:
        poses = [placement.placed.get(name) for name in self._parts.facts["fixtures"]]
        unmoved = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        rows = [unmoved if one is None else np.concatenate([one.position, one.quaternion]) for one in poses]
        return np.array(rows).reshape(-1, 7)

    def _state(self, vector: np.ndarray, origin: Literal["demo", "benchmark", "sampled"], label: str) -> InitialState:
        return InitialState(task=self._task, state=vector, origin=origin, label=label)

    def _benchmark(self) -> np.ndarray:
        if self._vectors is None:
            try:
                with np.load(self._info.states) as file:
                    self._vectors = np.asarray(file["states"], np.float64)
            except (OSError, KeyError, ValueError) as error:
                where = f"{self._task.key}: cannot read the benchmark's initial states ({self._info.states})"
                raise SimulatorError(f"{where}: {error}; install the package again ({INSTALL})") from error
        return self._vectors


def _legacy(generator: np.random.Generator) -> np.random.RandomState:
    """A generator with the methods that stock draws with."""
    return np.random.RandomState(generator.bit_generator)
