"""LIBERO's tasks as simulators: exact initial states, lean steps equal to stock's, pictures when the policy looks.

All simulators of one scene in a process share its model (`models.Scene`); an instance is its own `MjData`, a
controller, and the poses of fixtures that its initial state puts into the model before it steps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ript.core.errors import ConfigError, SimulatorError
from ript.core.types import ChunkResult, InitialState, Observation, Recording, Split
from ript.sims import episode
from ript.sims.libero import available, models
from ript.sims.libero.expert import Follower, Track, make_track
from ript.sims.libero.human import WAITING, has_human_demonstration, human_demonstration
from ript.sims.libero.perturb import perturbed
from ript.sims.libero.rendering import Look, Moment, resolve_cameras
from ript.sims.libero.spec import libero_spec, proprio_sizes
from ript.sims.libero.states import Parts, SceneParts, States
from ript.sims.libero.step import ACTION_DIM, Physics, Snapshot
from ript.sims.libero.stock import OBSERVED, StockLibero
from ript.sims.libero.tasks import HORIZON, INSTALL, info_of, task_of
from ript.sims.mujoco import stability
from ript.sims.mujoco.gl import import_mujoco
from ript.sims.mujoco.rendering import CameraView, image_shape
from ript.sims.mujoco.resources import Turn

VIDEO = (256, 256)
OPEN = -1.0
"""The gripper's action that opens it."""
SETTLED = 1024
"""States of a scene that are kept as they settled: all rollouts of a group begin in the same."""


class LiberoSimulator:
    """One LIBERO task. Implements `Recorded`, `Demonstrator` and `Perturbable`.

    Args:
        task_name: such as "libero_goal/7".
        horizon: steps after which an episode without success is over; those of settling do not count.
        cameras: views by name, or names of `rendering.CAMERAS`.
        image_size: pixels of a policy's pictures, one number or (height, width).
        look: of pictures.
        proprio: names of the parts of the proprioception vector; see `step.PARTS`.
        settle: steps without movement after a state is set.
        settle_gripper: whether the gripper opens meanwhile.
        physics: "exact" equals stock LIBERO bit for bit.

    Attributes:
        parts: of the scene.
        states: the task's initial states.
        physics: what is stepped.
        waiting: the action while a state settles, `[7]`.

    Raises:
        UnknownNameError: no such task, camera or part.
        DependencyMissing: LIBERO, robosuite or MuJoCo is not installed, or MuJoCo is too new.
    """

    def __init__(
        self,
        task_name: str,
        *,
        horizon: int = HORIZON,
        cameras: Mapping[str, CameraView] | Sequence[str] = ("agentview", "wrist"),
        image_size: int | tuple[int, int] = 128,
        look: Look = "fast",
        proprio: Sequence[str] = ("joint_states", "ee_pos", "gripper_states"),
        settle: int = 5,
        settle_gripper: Literal["none", "open"] = "none",
        physics: Literal["exact", "inexact"] = "exact",
    ):
        if horizon < 1:
            raise ConfigError(f"horizon: expected at least 1, got {horizon}")
        self._info = info_of(task_name)
        self.task = task_of(task_name, horizon)
        self.seconds = {"simulate": 0.0, "render": 0.0}
        self._views, self._size, self._look = resolve_cameras(cameras), image_shape(image_size), look
        self._proprio = tuple(proprio_sizes(proprio))
        self.spec = libero_spec(self._views, self._size, look, self._proprio)
        self._settle, self.waiting = settle, np.zeros(ACTION_DIM)
        self.waiting[-1] = OPEN if settle_gripper == "open" else 0.0
        available.require()
        mujoco = import_mujoco(INSTALL)
        self._scene, let_go = models.take(self._info, self)
        self._turn = Turn(self._scene, let_go)
        try:
            cache = self._scene.cache
            if "parts" not in cache:
                cache["parts"] = SceneParts(mujoco, self._scene.model, self._scene.facts)
            self.parts: SceneParts = cache["parts"]
            self.states = States(self._info, self.task, self.parts)
            self.physics = Physics(mujoco, self._scene.model, self.parts.arm, exact=physics == "exact")
        except BaseException:
            self._turn.end()
            raise
        self._exact = physics == "exact"
        self._settled: dict[tuple[str, int, float, bool], Snapshot] = cache.setdefault("settled", {})
        self._tracks: dict[str, Track] = cache.setdefault("tracks", {})
        self._follower: Follower | None = None
        self._executed: list[np.ndarray] = []
        self._beginning: Snapshot | None = None
        self._state: InitialState | None = None
        self._fixture_pos = self._fixture_quat = np.empty(0)
        self._steps, self._done = 0, True

    def reset(self, initial_state: InitialState) -> Observation:
        """Set the exact state, let it settle, then look."""
        self.set_state(initial_state)
        return self.observe()

    def set_state(self, initial_state: InitialState, *, settled: bool = True) -> None:
        """`reset` without a look.

        Args:
            initial_state: of this task.
            settled: let it settle.

        Raises:
            SimulatorError: the state is of another task or has a wrong size.
        """
        start = time.perf_counter()
        episode.require_own(self.task, initial_state)
        layout, state = self.parts.layout, initial_state.state
        episode.require_fit(self.task, initial_state, layout.problem(state))
        parts = layout.split(state)
        self._fixture_pos, self._fixture_quat = parts.fixture_pos, parts.fixture_quat
        self._state, self._steps, self._done = initial_state, 0, False
        self._follower, self._executed = None, []
        self._turn.take(self._place_fixtures, again=True)
        steps, waiting = self._settling(parts) if settled else (0, self.waiting)
        key = (initial_state.id, steps, float(waiting[-1]), self._exact)
        if (snapshot := self._settled.pop(key, None)) is None:
            self.physics.reset(parts.time, parts.qpos, parts.qvel)
            for _ in range(steps):
                self.physics.step(waiting)
            snapshot = self.physics.snapshot()
        self.physics.restore(snapshot)
        stability.begin(self.physics.data)
        self._settled[key] = self._beginning = snapshot  # the latest
        while len(self._settled) > SETTLED:
            del self._settled[next(iter(self._settled))]
        self.seconds["simulate"] += time.perf_counter() - start

    def _settling(self, parts: Parts) -> tuple[int, np.ndarray]:
        """How many steps a state settles, and their action."""
        if parts.settle < 0:
            return self._settle, self.waiting
        return parts.settle, np.array(WAITING)

    def _activate(self) -> None:
        """Put this instance's fixtures into the model that all share."""
        self._turn.take(self._place_fixtures)

    def _place_fixtures(self) -> None:
        model, bodies = self._scene.model, self.parts.fixtures
        model.body_pos[bodies], model.body_quat[bodies] = self._fixture_pos, self._fixture_quat

    def _address(self) -> str:
        return episode.address(self.task, self._state, self._steps)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute float32 `[H, 7]`, clipped to [-1, 1]: displacement of the hand (1 is 5 cm), its rotation (axis times
        angle, 1 is 0.5 rad), and the gripper (-1 opens, 1 closes)."""
        actions = episode.checked_actions(
            np.asarray(actions), ACTION_DIM, self._address(), begun=self._state is not None, over=self._done
        )
        start, executed, success = time.perf_counter(), 0, False
        self._activate()
        for action in actions[: self.task.horizon - self._steps].astype(np.float64):
            executed += 1
            unstable = f"{self._address()} and {executed} more: {stability.UNSTABLE}"
            self._executed.append(action)
            try:
                self.physics.step(action)
            except np.linalg.LinAlgError as error:  # of the controller, which is given NaN
                raise SimulatorError(unstable) from error
            if not stability.is_stable(self.physics.data):
                raise SimulatorError(unstable)
            if self.states.goal(self.physics.data):
                success = True
                break
        self._steps += executed
        self._done = success or self._steps >= self.task.horizon
        self.seconds["simulate"] += time.perf_counter() - start
        return ChunkResult(success=success, env_steps=executed, done=self._done)

    def _require_state(self) -> None:
        episode.require_begun(self.task, self._state)

    def observe(self) -> Observation:
        """Look: what stock would have observed after the same steps."""
        self._require_state()
        start = time.perf_counter()
        proprio = self.physics.seen.vector(self._proprio).astype(np.float32)
        middle = time.perf_counter()
        images = self._scene.draw(self._views, self._size, self._look, self._moment())
        self.seconds["simulate"] += middle - start
        self.seconds["render"] += time.perf_counter() - middle
        return Observation(
            images={name: image[None] for name, image in images.items()},
            proprio=proprio[None],
            instruction=(self.task.instruction,),
        )

    def _moment(self) -> Moment:
        seen = self.physics.seen
        return Moment(seen.qpos.copy(), self._fixture_pos, self._fixture_quat, self.parts.colours(seen.before))

    def render(self) -> np.ndarray:
        """A picture for videos from the first camera: uint8 `[h, w, 3]`."""
        self._require_state()
        start = time.perf_counter()
        name, view = next(iter(self._views.items()))
        picture = self._scene.draw({name: view}, VIDEO, self._look, self._moment())[name]
        self.seconds["render"] += time.perf_counter() - start
        return picture

    def privileged(self) -> np.ndarray:
        """Where what the goal is about is, and where it goes, of the first two facts of the goal (or of its only one
        twice): float32 `[12]`, metres."""
        self._require_state()
        return self.physics.data.xpos[self.states.wanted].astype(np.float32).ravel()

    def expert_action(self) -> np.ndarray:
        """What the human demonstration, adapted to this episode, does next: float32 `[7]`; see `expert`.

        Raises:
            UnknownNameError: the task has none.
        """
        self._require_state()
        if self._follower is None or self._follower.asked != len(self._executed):
            self._follower = self._followed()
        return self._follower.action(self.physics.data).astype(np.float32)

    def _followed(self) -> Follower:
        """One that was asked before each action of this episode; they are executed again where it was not."""
        follower = Follower(self._track(), self.parts.arm.site)
        if self._executed:
            assert self._beginning is not None
            self._activate()
            physics = Physics(self.parts.mujoco, self._scene.model, self.parts.arm, exact=self._exact)
            physics.restore(self._beginning)
            for action in self._executed:
                follower.action(physics.data)
                physics.step(action)
        return follower

    def _track(self) -> Track:
        name = self._info.name
        if name not in self._tracks:
            human, start = human_demonstration(name), self.parts.layout.split(self.states.human().state)
            model, bodies = self._scene.model, self.parts.fixtures
            model.body_pos[bodies], model.body_quat[bodies] = start.fixture_pos, start.fixture_quat
            self._scene.active = None
            physics = Physics(self.parts.mujoco, model, self.parts.arm, exact=self._exact)
            self._tracks[name] = make_track(physics, self.parts, start, self.states.problem.goal, human.actions)
            self._activate()
        return self._tracks[name]

    def state_vector(self) -> np.ndarray:
        """All that stock's state holds, and what it observes of the robot: float64 `[1 + nq + nv + 15]`."""
        self._require_state()
        data = self.physics.data
        return np.concatenate([[data.time], data.qpos, data.qvel, self.physics.seen.vector(OBSERVED)])

    def stock_episode(self, initial_state: InitialState, env: Any = None) -> StockLibero:
        """The stock environment in the same state, for `check_simulator`; `env` is one that was built for the task."""
        parts = self.parts.layout.split(initial_state.state)
        return StockLibero(self._info, parts, *self._settling(parts), env)

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        """States number start..start+n-1 of a split. test: the benchmark's 50, whatever the seed, which begin again at
        their end; the others are drawn as the task's own resets draw, and endless."""
        return self.states(n, seed, split, start)

    def perturbed_state(self, state: InitialState, std_metres: float, generator: np.random.Generator) -> InitialState:
        """A state near another; see `perturb.perturbed`. This instance is then in no episode.

        Raises:
            SimulatorError: no draw was accepted.
        """
        try:
            return perturbed(self, state, std_metres, generator)
        finally:
            self._state, self._done = None, True

    def recordings(self) -> list[Recording]:
        """The human demonstration of the task, if it has one."""
        if not has_human_demonstration(self._info.name):
            return []
        actions = human_demonstration(self._info.name).actions.astype(np.float32)
        return [Recording(initial_state=self.states.human(), actions=actions)]

    def close(self) -> None:
        """The model and its renderers stay for other instances of this process, a while even when there are none."""
        self._turn.end()
        self._state, self._done = None, True

    def __enter__(self) -> LiberoSimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
