"""The 50 Meta-World v3 tasks as simulators: exact initial states, lean steps, pictures only when the policy looks.

All simulators of one task in a process share one model and one renderer (`stock.SharedTask`); an instance is
its own `MjData`, and the positions that its initial state puts into the model before it steps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ript.core.errors import ConfigError, SimulatorError, UnknownNameError
from ript.core.types import ChunkResult, InitialState, Observation, Split
from ript.sims import episode
from ript.sims.metaworld.stock import SHELF, SharedTask, StockMetaworld, StockReward
from ript.sims.metaworld.success import SUCCESS
from ript.sims.metaworld.tasks import (
    ACTION_DIM,
    CAMERAS,
    HORIZON,
    metaworld_spec,
    metaworld_tasks,
    resolve_cameras,
    task_of,
)
from ript.sims.mujoco import gl, stability
from ript.sims.mujoco.rendering import (
    ARMS,
    Arm,
    CameraView,
    ModelRenderer,
    descendants,
    image_shape,
    lean_model,
)
from ript.sims.mujoco.resources import Turn
from ript.sims.sequences import streams

__all__ = [
    "CAMERAS",
    "CameraView",
    "MetaworldSimulator",
    "close_renderers",
    "metaworld_tasks",
]

ARM_ROOT = "base"
VARIES = 1e-3
"""Metres: a direction in which initial states differ by less counts as fixed."""


def close_renderers() -> None:
    """Free every renderer of this process; they are made again when needed."""
    for shared in SHELF:
        shared.close_renderers()


class MetaworldSimulator:
    """One Meta-World task. Implements `Simulator` and `Demonstrator`.

    Args:
        task_name: such as "drawer-open-v3".
        horizon: steps after which an episode without success is over.
        cameras: views by name, or names of `CAMERAS`; see `resolve_cameras`.
        image_size: pixels of a policy's pictures, one number or (height, width).
        arm: how the robot is drawn for the policy: "boxes" (the boxes around its meshes), "mesh" (the stock look; seven
            times as expensive) or "hidden".
        video_size: pixels of `render`'s pictures.

    Raises:
        UnknownNameError: no such task or camera.
        DependencyMissing: metaworld or mujoco is not installed.
    """

    def __init__(
        self,
        task_name: str,
        *,
        horizon: int = HORIZON,
        cameras: Mapping[str, CameraView] | Sequence[str] = ("side",),
        image_size: int | tuple[int, int] = 64,
        arm: Arm = "boxes",
        video_size: int | tuple[int, int] = 160,
    ):
        if arm not in ARMS:
            raise UnknownNameError("way to draw the arm", arm, ARMS)
        if horizon < 1:
            raise ConfigError(f"horizon: expected at least 1, got {horizon}")
        self.task = task_of(task_name, horizon)
        self.seconds = {"simulate": 0.0, "render": 0.0}
        self._views, self._size, self._arm = resolve_cameras(cameras), image_shape(image_size), arm
        self._video_size = image_shape(video_size)
        self.spec = metaworld_spec(self._views, self._size, arm)
        self._shared: SharedTask
        self._shared, let_go = SHELF.take(task_name, partial(SharedTask, task_name), self)
        self._turn = Turn(self._shared, let_go)
        self._mujoco, self._model = self._shared.mujoco, self._shared.model
        self._data = self._mujoco.MjData(self._model)
        self._qpos, self._mocap, self._ctrl = self._data.qpos, self._data.mocap_pos[0], self._data.ctrl
        self._hand = self._shared.hand_of(self._data)
        self._previous_qpos = self._qpos.copy()
        self._state: InitialState | None = None
        self._reward: StockReward | None = None
        self._steps, self._done, self._forwarded = 0, True, False
        self._seen = (-1, np.empty(0))

    def reset(self, initial_state: InitialState) -> Observation:
        """Set the exact state, then look."""
        start = time.perf_counter()
        episode.require_own(self.task, initial_state)
        layout, state = self._shared.layout, initial_state.state
        episode.require_fit(self.task, initial_state, layout.problem(state))
        _, self._body_pos, self._site_pos, self._first, physics = layout.split(state)
        self._state, self._steps, self._done, self._forwarded = initial_state, 0, False, False
        self._seen = (-1, self._first)
        self._turn.take(self._place_fixtures, again=True)
        self._mujoco.mj_setState(self._model, self._data, physics.copy(), self._shared.integration)
        stability.begin(self._data)
        # In some tasks (window-*) the stock reset leaves poses of the moment before; the policy sees the state itself.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._success = SUCCESS[self.task.name](self._data, self._first[-3:])
        self.seconds["simulate"] += time.perf_counter() - start
        return self.observe()

    def _activate(self) -> None:
        self._turn.take(self._place_fixtures)

    def _place_fixtures(self) -> None:
        self._model.body_pos[:], self._model.site_pos[:] = self._body_pos, self._site_pos

    def _address(self) -> str:
        return episode.address(self.task, self._state, self._steps)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute float32 `[H, 4]`: hand displacement x, y, z (1 is 1 cm; clipped to [-1, 1]) and gripper effort."""
        actions = episode.checked_actions(
            np.asarray(actions, np.float32), ACTION_DIM, self._address(), begun=self._state is not None, over=self._done
        )
        start = time.perf_counter()
        self._activate()
        executed, success = self._run(actions[: self.task.horizon - self._steps])
        self._steps += executed
        if not stability.is_stable(self._data):
            raise SimulatorError(f"{self._address()}: {stability.UNSTABLE}")
        self._done = success or self._steps >= self.task.horizon
        self.seconds["simulate"] += time.perf_counter() - start
        return ChunkResult(success=success, env_steps=executed, done=self._done)

    def _run(self, actions: np.ndarray) -> tuple[int, bool]:
        """Step until success or the end of `actions`: the stock `step` without observation and reward."""
        mujoco, model, data, env = self._mujoco, self._model, self._data, self._shared.env
        (x_low, y_low, z_low), (x_high, y_high, z_high) = env.mocap_low.tolist(), env.mocap_high.tolist()
        qpos, previous, mocap, ctrl, succeeded = self._qpos, self._previous_qpos, self._mocap, self._ctrl, self._success
        step, forward, substeps = mujoco.mj_step, mujoco.mj_forward, env.frame_skip
        moves = (np.clip(actions[:, :3], -1, 1) * env.action_scale).tolist()  # in float32, as the stock environment
        x, y, z = mocap.tolist()
        for k, ((dx, dy, dz), effort) in enumerate(zip(moves, actions[:, 3].tolist(), strict=True)):
            previous[:] = qpos
            mocap[0] = x = min(max(x + dx, x_low), x_high)
            mocap[1] = y = min(max(y + dy, y_low), y_high)
            mocap[2] = z = min(max(z + dz, z_low), z_high)
            ctrl[0], ctrl[1] = effort, -effort
            if self._forwarded:
                _finish_substep(mujoco, model, data)
                step(model, data, substeps - 1)
            else:
                step(model, data, substeps)
            forward(model, data)  # changes the solver's warm start, so it belongs to the trajectory
            self._forwarded = True
            if succeeded():
                return k + 1, True
        return len(actions), False

    def _before(self) -> Any:
        """Scratch data in which the poses of one step before are computed again."""
        self._activate()
        before = self._shared.previous
        before.qpos[:] = self._previous_qpos
        self._mujoco.mj_kinematics(self._model, before)
        return before

    def _frame(self) -> np.ndarray:
        """The stock observation's first 18 numbers now, not clipped."""
        if self._seen[0] != self._steps:
            self._seen = (self._steps, self._shared.current_part(self._data))
        return self._seen[1]

    def state_vector(self) -> np.ndarray:
        """The stock observation, fully observable: float64 `[39]`."""
        self._require_state()
        if self._steps == 0:
            return self._first.copy()
        if self._steps == 1:
            before = self._first[:18]
        elif self._seen[0] == self._steps - 1:
            before = self._seen[1]
        else:
            before = self._shared.current_part(self._before())
        vector = np.concatenate([self._frame(), before, self._goal()])
        return np.clip(vector, self._shared.low, self._shared.high)

    def _goal(self) -> np.ndarray:
        return self._first[-3:] if self._steps == 0 else self._shared.goal(self._data, self._first[-3:])

    def _proprio(self) -> np.ndarray:
        """Numbers 0..3 and 18..21 of `state_vector`, without the others: float32 `[8]`."""
        if self._steps == 0:
            vector = np.concatenate([self._first[:4], self._first[18:22]])
        else:
            before = self._first[:4] if self._steps == 1 else self._shared.hand_before(self._before())
            vector = np.clip([*self._hand(), *before], self._shared.hand_low, self._shared.hand_high)
        return vector.astype(np.float32)

    def _require_state(self) -> None:
        episode.require_begun(self.task, self._state)

    def observe(self) -> Observation:
        """Look. Proprio `[1, 8]`: hand position (m) and gripper opening (0 to 1), now and one step before."""
        self._require_state()
        start = time.perf_counter()
        proprio = self._proprio()
        middle = time.perf_counter()
        images = self._renderer(self._views, self._size, self._arm).draw(self._data, self._body_pos, self._site_pos)
        self.seconds["simulate"] += middle - start
        self.seconds["render"] += time.perf_counter() - middle
        return Observation(
            images={name: image[None] for name, image in images.items()},
            proprio=proprio[None],
            instruction=(self.task.instruction,),
        )

    def _renderer(self, views: Mapping[str, CameraView], size: tuple[int, int], arm: Arm) -> ModelRenderer:
        def make() -> ModelRenderer:
            gl.before_close(close_renderers)
            model = lean_model(self._shared.env.fullpath, self._model, arm, descendants(self._model, ARM_ROOT))
            return ModelRenderer(model, views, size, coarse=arm != "mesh")

        return self._shared.renderer((tuple(views.items()), size, arm), make)

    def render(self) -> np.ndarray:
        """A picture for videos from the first camera, with the robot's stock look: uint8 `[h, w, 3]`."""
        self._require_state()
        start = time.perf_counter()
        name, view = next(iter(self._views.items()))
        renderer = self._renderer({name: view}, self._video_size, "mesh")
        picture = renderer.draw(self._data, self._body_pos, self._site_pos)[name]
        self.seconds["render"] += time.perf_counter() - start
        return picture

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action now: float32 `[4]`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experts ask for more than the clipped action can give, and warn of it
            action = self._shared.expert.get_action(self.state_vector())
        return np.clip(action, -1, 1).astype(np.float32)

    def privileged(self) -> np.ndarray:
        """Positions of the first object, the second (zeros if there is none) and the goal: float32 `[9]`, metres."""
        self._require_state()
        # After a reset the frame is computed here, not taken from the stock observation: see `reset`.
        now = self._shared.current_part(self._data) if self._steps == 0 else self._frame()
        return np.concatenate([now[4:7], now[11:14], self._goal()]).astype(np.float32)

    def stock_episode(self, initial_state: InitialState) -> StockMetaworld:
        """A newly built stock environment after a reset to this state, for `check_simulator`."""
        return StockMetaworld(self.task.name, self._shared.layout.split(initial_state.state)[0])

    def stock_reward(self, action: np.ndarray) -> float:
        """Meta-World's shaped reward for the last step, which executed `action` `[4]`. Training never uses it.

        Some tasks' rewards remember their first call, so call it after every step or not at all.
        """
        if self._state is None or self._steps == 0:
            raise SimulatorError(f"{self._address()}: a reward needs a step before it")
        if self._reward is None or self._steps == 1:
            self._reward = StockReward(self.stock_episode(self._state))
        physics = np.empty(self._shared.layout.physics)
        self._mujoco.mj_getState(self._model, self._data, physics, self._shared.integration)
        return self._reward(physics, self.state_vector(), action)

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        """States number start..start+n-1 of the sequence (split, seed), drawn from the task's own reset space."""
        return [self._sampled(label, generator) for label, generator in streams(self.task, n, seed, split, start)]

    def _sampled(self, label: str, generator: np.random.Generator) -> InitialState:
        space = self._shared.env._random_reset_space
        state = self._shared.build(lambda: generator.uniform(space.low, space.high), f"{self.task.key}, {label}")
        return InitialState(task=self.task, state=state, origin="sampled", label=label)

    def perturbed_state(self, state: InitialState, std_metres: float, generator: np.random.Generator) -> InitialState:
        """A state near another: Gaussian noise on the object's place on the table.

        Both horizontal directions that the task itself varies; drawn again while the object is out of the hand's reach
        or the task does not accept it. So it may leave the places that initial states are drawn from.

        Raises:
            SimulatorError: no draw was accepted.
        """
        where = f"{self.task.key}, initial state {state.id} with noise of {std_metres} m"
        space = self._shared.env._random_reset_space
        centre = self._shared.layout.split(state.state)[0]
        free = (space.high - space.low > VARIES) & (np.arange(centre.size) < 2)
        low, high = self._shared.env.mocap_low[:2], self._shared.env.mocap_high[:2]

        def draw() -> np.ndarray:
            for _ in range(1000):
                vector = centre + np.where(free, generator.normal(0.0, std_metres, centre.size), 0.0)
                if ((vector[:2] >= low) & (vector[:2] <= high) | ~free[:2]).all():
                    return vector
            raise SimulatorError(f"{where}: 1000 draws left the hand's reach")

        built = self._shared.build(draw, where)
        return InitialState(
            task=self.task, state=built, origin="sampled", label=f"{state.label} + noise {std_metres} m"
        )

    def close(self) -> None:
        """Model and renderers stay for other instances of this process, a while even when there are none."""
        self._turn.end()
        self._state, self._done = None, True

    def __enter__(self) -> MetaworldSimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _finish_substep(mujoco: Any, model: Any, data: Any) -> None:
    """`mj_step` for a state that `mj_forward` has just seen, with other controls and another mocap pose.

    What depends on neither (collisions, inertia, velocities) is as `mj_forward` left it; the rest is computed again, in
    the order of `mj_step`.
    """
    mujoco.mj_kinematics(model, data)
    mujoco.mj_makeConstraint(model, data)
    mujoco.mj_projectConstraint(model, data)
    mujoco.mj_referenceConstraint(model, data)
    mujoco.mj_fwdActuation(model, data)
    mujoco.mj_fwdAcceleration(model, data)
    mujoco.mj_fwdConstraint(model, data)
    mujoco.mj_Euler(model, data)
