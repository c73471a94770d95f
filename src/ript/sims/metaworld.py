"""The 50 Meta-World v3 tasks as simulators: exact initial states, lean steps, pictures only when the policy looks.

All simulators of one task in a process share one model and one renderer (`metaworld_stock.SharedTask`); an instance is its own
`MjData` and the positions that its initial state puts into the model before it steps.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ript.errors import ConfigError, SimulatorError, UnknownNameError
from ript.sims import gl
from ript.sims.instructions import INSTRUCTIONS
from ript.sims.metaworld_stock import SharedTask, shared_task
from ript.sims.metaworld_success import SUCCESS, Body, Site
from ript.sims.mujoco_rendering import ARMS, Arm, CameraView, ModelRenderer, descendants, describe, image_shape
from ript.types import ChunkResult, InitialState, Observation, SimulatorSpec, Split, Task

SUITE = "metaworld"
ACTION_DIM = 4
PROPRIO_DIM = 8
ARM_ROOT = "base"

_ML10_TEST = ("door-close-v3", "drawer-open-v3", "lever-pull-v3", "shelf-place-v3", "sweep-into-v3")
_ML10_TRAIN = (
    "basketball-v3",
    "button-press-topdown-v3",
    "door-open-v3",
    "drawer-close-v3",
    "peg-insert-side-v3",
    "pick-place-v3",
    "push-v3",
    "reach-v3",
    "sweep-v3",
    "window-open-v3",
)
# As in the paper of RIPT-VLA; the package's own ML45 holds out other tasks.
_ML45_TEST = ("box-close-v3", "disassemble-v3", "hand-insert-v3", "pick-place-wall-v3", "stick-pull-v3")

SPLITS: dict[str, tuple[str, ...]] = {
    "MT10": (
        "button-press-topdown-v3",
        "door-open-v3",
        "drawer-close-v3",
        "drawer-open-v3",
        "peg-insert-side-v3",
        "pick-place-v3",
        "push-v3",
        "reach-v3",
        "window-close-v3",
        "window-open-v3",
    ),
    "MT50": tuple(INSTRUCTIONS),
    "ML10-train": _ML10_TRAIN,
    "ML10-test": _ML10_TEST,
    "ML45-train": tuple(name for name in INSTRUCTIONS if name not in _ML45_TEST),
    "ML45-test": _ML45_TEST,
}
"""Named task lists."""

CAMERAS: dict[str, CameraView] = {
    "near": CameraView(position=(0.6, 0.05, 0.8), target=(0.0, 0.73, 0.1), fovy=38.0),
    "corner2": CameraView(base="corner2", position=(0.75, 0.075, 0.7)),
    **{
        name: CameraView(base=name)
        for name in ("topview", "corner", "corner3", "corner4", "behindGripper", "gripperPOV")
    },
    "corner2-stock": CameraView(base="corner2"),
}
"""Views by name. "near" looks at the table from close by; "corner2" is where the papers move that camera to."""

# These two tasks keep the goal as a live view of the simulation, not as a fixed point.
_LIVE_GOALS = {"basketball-v3": Site("goal"), "bin-picking-v3": Body("bin_goal")}

_renderers: dict[tuple, ModelRenderer] = {}


def close_renderers() -> None:
    """Free every renderer of this process."""
    while _renderers:
        _renderers.popitem()[1].close()


def metaworld_tasks(horizon: int = 500) -> tuple[Task, ...]:
    """The 50 tasks, in alphabetical order."""
    return tuple(
        Task(suite=SUITE, name=name, instruction=text, index=i, horizon=horizon)
        for i, (name, text) in enumerate(INSTRUCTIONS.items())
    )


def resolve_cameras(cameras: Mapping[str, CameraView] | Sequence[str]) -> dict[str, CameraView]:
    """Views from a mapping, or from names of `CAMERAS`.

    Raises:
        UnknownNameError: a name that is not in `CAMERAS`.
    """
    if isinstance(cameras, Mapping):
        return dict(cameras)
    for name in cameras:
        if name not in CAMERAS:
            raise UnknownNameError("camera", name, CAMERAS)
    return {name: CAMERAS[name] for name in cameras}


class MetaworldSimulator:
    """One Meta-World task. Implements `Simulator` and `Demonstrator`.

    Args:
        task_name: such as "drawer-open-v3".
        horizon: steps after which an episode without success is over.
        cameras: views by name, or names of `CAMERAS`.
        image_size: pixels of a policy's pictures, one number or (height, width).
        arm: how the robot is drawn for the policy: "boxes" (the boxes around its meshes; cheap), "mesh" (the stock look)
            or "hidden".
        video_size: pixels of `render`'s pictures.

    Raises:
        UnknownNameError: no such task or camera.
        DependencyMissing: metaworld or mujoco is not installed.
    """

    def __init__(
        self,
        task_name: str,
        *,
        horizon: int = 500,
        cameras: Mapping[str, CameraView] | Sequence[str] = ("near",),
        image_size: int | tuple[int, int] = 64,
        arm: Arm = "boxes",
        video_size: int | tuple[int, int] = 160,
    ):
        if task_name not in INSTRUCTIONS:
            raise UnknownNameError("Meta-World task", task_name, INSTRUCTIONS)
        if arm not in ARMS:
            raise UnknownNameError("way to draw the arm", arm, ARMS)
        if horizon < 1:
            raise ConfigError(f"horizon: expected at least 1, got {horizon}")
        self.task = metaworld_tasks(horizon)[list(INSTRUCTIONS).index(task_name)]
        self.seconds = {"simulate": 0.0, "render": 0.0}
        self._views, self._size, self._arm = resolve_cameras(cameras), image_shape(image_size), arm
        self._video_size = image_shape(video_size)
        self.spec = SimulatorSpec(
            suite=SUITE,
            cameras=dict.fromkeys(self._views, self._size),
            proprio_dim=PROPRIO_DIM,
            action_dim=ACTION_DIM,
            render={"cameras": {k: describe(v) for k, v in self._views.items()}, "size": list(self._size), "arm": arm},
        )
        self._shared: SharedTask = shared_task(task_name)
        self._mujoco, self._model = self._shared.mujoco, self._shared.model
        self._data = self._mujoco.MjData(self._model)
        self._qpos, self._mocap, self._ctrl = self._data.qpos, self._data.mocap_pos[0], self._data.ctrl
        self._previous_qpos = self._qpos.copy()
        self._state: InitialState | None = None
        self._steps, self._done = 0, True

    def reset(self, initial_state: InitialState) -> Observation:
        """Set the exact state, then look."""
        start = time.perf_counter()
        state, layout = initial_state.state, self._shared.layout
        if initial_state.task.key != self.task.key:
            raise SimulatorError(f"{self.task.key}: initial state {initial_state.id} is of {initial_state.task.key}")
        if state.size != layout.size or state[0] != layout.rand_vec or not np.isfinite(state).all():
            raise SimulatorError(
                f"{self.task.key}: initial state {initial_state.id} does not fit: expected {layout.size} finite numbers, the "
                f"first {layout.rand_vec}, got {state.size}, the first {state[0] if state.size else None}"
            )
        _, self._body_pos, self._site_pos, self._first, physics = layout.split(state)
        self._state, self._steps, self._done = initial_state, 0, False
        self._shared.active = None
        self._activate()
        self._mujoco.mj_setState(self._model, self._data, physics.copy(), self._shared.integration)
        # The stock reset leaves poses of the moment before in some tasks (window-*): what is looked at must be the state.
        self._mujoco.mj_kinematics(self._model, self._data)
        self._success = SUCCESS[self.task.name](self._data, self._first[-3:])
        self.seconds["simulate"] += time.perf_counter() - start
        return self.observe()

    def _activate(self) -> None:
        if self._shared.active is not self:
            self._model.body_pos[:], self._model.site_pos[:] = self._body_pos, self._site_pos
            self._shared.active = self

    def _address(self) -> str:
        return f"{self.task.key}, initial state {self._state.id if self._state else None}, step {self._steps}"

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute float32 `[H, 4]`: three hand displacements (1 = 1 cm, clipped to [-1, 1]) and the gripper's effort."""
        if self._done:
            why = "stepped before reset" if self._state is None else "stepped after the episode was over"
            raise SimulatorError(f"{self._address()}: {why}")
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            raise SimulatorError(f"{self._address()}: expected actions [H, {ACTION_DIM}], got {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise SimulatorError(f"{self._address()}: actions are not finite: {actions.tolist()}")
        start = time.perf_counter()
        self._activate()
        executed, success = self._run(actions[: self.task.horizon - self._steps])
        self._steps += executed
        self._done = success or self._steps >= self.task.horizon
        self.seconds["simulate"] += time.perf_counter() - start
        return ChunkResult(success=success, env_steps=executed, done=self._done)

    def _run(self, actions: np.ndarray) -> tuple[int, bool]:
        """Step until success or the end of `actions`: the stock `step` without observation and reward."""
        env, model, data = self._shared.env, self._model, self._data
        step, forward, frame_skip, succeeded = (
            self._mujoco.mj_step,
            self._mujoco.mj_forward,
            env.frame_skip,
            self._success,
        )
        qpos, previous, mocap, ctrl = self._qpos, self._previous_qpos, self._mocap, self._ctrl
        low, high = env.mocap_low, env.mocap_high
        moves = np.clip(actions[:, :3], -1, 1) * env.action_scale  # in float32, as the stock environment
        for k, (move, effort) in enumerate(zip(moves, actions[:, 3].tolist(), strict=True)):
            previous[:] = qpos
            np.add(mocap, move, out=mocap)
            np.maximum(mocap, low, out=mocap)
            np.minimum(mocap, high, out=mocap)
            ctrl[0], ctrl[1] = effort, -effort
            step(model, data, frame_skip)
            forward(model, data)  # changes the solver's warm start, so it belongs to the trajectory
            if succeeded():
                return k + 1, True
        return len(actions), False

    def _frames(self) -> tuple[np.ndarray, np.ndarray]:
        """The stock observation's 18 numbers now and one step before, not clipped."""
        if self._steps == 0:
            return self._first[:18], self._first[:18]
        self._activate()
        current = self._shared.current_part(self._data)
        if self._steps == 1:
            return current, self._first[:18]
        before = self._shared.previous
        before.qpos[:] = self._previous_qpos
        self._mujoco.mj_kinematics(self._model, before)
        return current, self._shared.current_part(before)

    def _goal(self) -> np.ndarray:
        live = _LIVE_GOALS.get(self.task.name)
        return self._first[-3:] if live is None or self._steps == 0 else live.bind(self._data)()

    def state_vector(self) -> np.ndarray:
        """The stock observation, fully observable: float64 `[39]`."""
        self._require_state()
        vector = np.concatenate([*self._frames(), self._goal()])
        return vector if self._steps == 0 else np.clip(vector, self._shared.low, self._shared.high)

    def _require_state(self) -> None:
        if self._state is None:
            raise SimulatorError(f"{self.task.key}: looked at before reset")

    def observe(self) -> Observation:
        """Look: images `[1, h, w, 3]`; proprio `[1, 8]` = hand position (m) and gripper opening, now and one step before."""
        self._require_state()
        start = time.perf_counter()
        vector = self.state_vector()
        middle = time.perf_counter()
        images = self._renderer(self._views, self._size, self._arm).draw(self._data, self._body_pos, self._site_pos)
        self.seconds["simulate"] += middle - start
        self.seconds["render"] += time.perf_counter() - middle
        return Observation(
            images={name: image[None] for name, image in images.items()},
            proprio=np.concatenate([vector[:4], vector[18:22]]).astype(np.float32)[None],
            instruction=(self.task.instruction,),
        )

    def _renderer(self, views: Mapping[str, CameraView], size: tuple[int, int], arm: Arm) -> ModelRenderer:
        key = (self.task.name, tuple(views.items()), size, arm)
        if key not in _renderers:
            bodies = descendants(self._model, ARM_ROOT)
            gl.before_close(close_renderers)
            _renderers[key] = ModelRenderer(self._model, views, size, arm=arm, arm_bodies=bodies)
        return _renderers[key]

    def render(self) -> np.ndarray:
        """A picture for videos from the first camera, with the robot's stock look: uint8 `[h, w, 3]`."""
        self._require_state()
        start = time.perf_counter()
        name, view = next(iter(self._views.items()))
        picture = self._renderer({name: view}, self._video_size, "mesh").draw(
            self._data, self._body_pos, self._site_pos
        )[name]
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
        self._activate()
        now = self._shared.current_part(self._data)
        return np.concatenate([now[4:7], now[11:14], self._goal()]).astype(np.float32)

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        """States number start..start+n-1 of the sequence (split, seed), drawn from the task's own reset space."""
        return [self._sampled(seed, split, i) for i in range(start, start + n)]

    def _sampled(self, seed: int, split: Split, i: int) -> InitialState:
        entropy = [("train", "heldout").index(split), seed, self.task.index, i]
        generator = np.random.default_rng(np.random.SeedSequence(entropy))
        where = f"{self.task.key}, {split} seed {seed} #{i}"
        vector = self._shared.sample_vector(generator, where)
        return self._built(vector, f"{split} seed {seed} #{i}")

    def _built(self, rand_vec: np.ndarray, label: str) -> InitialState:
        state = self._shared.reset_stock(lambda: rand_vec, f"{self.task.key}, {label}")
        return InitialState(task=self.task, state=state, origin="sampled", label=label)

    def perturbed_state(self, state: InitialState, std_metres: float, generator: np.random.Generator) -> InitialState:
        """A state near another: Gaussian noise on the object's position, drawn again while the task does not accept it.

        Raises:
            SimulatorError: no draw was accepted.
        """
        space = self._shared.env._random_reset_space
        centre = self._shared.layout.split(state.state)[0]
        free = (space.high > space.low) & (np.arange(centre.size) < 3)

        def draw() -> np.ndarray:
            for _ in range(1000):
                vector = centre + np.where(free, generator.normal(0.0, std_metres, centre.size), 0.0)
                if (vector >= space.low).all() and (vector <= space.high).all():
                    return vector
            raise SimulatorError(
                f"{self.task.key}, initial state {state.id}: noise of {std_metres} m never stays in bounds"
            )

        vector = self._shared.accepted_vector(draw, f"{self.task.key}, perturbed {state.id}")
        return self._built(vector, f"{state.label} + noise {std_metres} m")

    def close(self) -> None:
        """The renderer and the model stay for other instances of this process; `close_renderers` frees them."""
        if self._shared.active is self:
            self._shared.active = None
        self._state, self._done = None, True

    def __enter__(self) -> MetaworldSimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def make_metaworld(key: str, **settings: Any) -> MetaworldSimulator:
    """ "metaworld/drawer-open-v3" (or the bare task name) -> simulator. Works in worker processes with `functools.partial`."""
    return MetaworldSimulator(key.removeprefix(f"{SUITE}/"), **settings)
