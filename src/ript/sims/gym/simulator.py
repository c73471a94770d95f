"""A Gymnasium environment as a simulator: exact initial states, its own success, pictures when a policy looks.

The environment's own `step` is called, so what happens is what happens there. See `instances` for what instances share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ript.core.errors import SimulatorError
from ript.core.types import ChunkResult, InitialState, Observation, SimulatorSpec, Split
from ript.sims import episode
from ript.sims.gym import instances
from ript.sims.gym.cameras import RENDER, named_views
from ript.sims.gym.environment import (
    ActionScale,
    Taken,
    calling,
    default_proprio,
    in_one_form,
    is_picture,
    parts,
    stepped,
)
from ript.sims.gym.environment import taken as numbers_of
from ript.sims.gym.instances import SHELF, Environment, OwnInstance, Request, SharedInstance, States
from ript.sims.gym.numbers import numbers
from ript.sims.gym.pictures import Meshes, ModelPictures, checked, own_picture, resized
from ript.sims.gym.success import Success, truth
from ript.sims.gym.tasks import NAME, VIEWS, task_of
from ript.sims.mujoco import gl, stability
from ript.sims.mujoco.rendering import CameraView, image_shape
from ript.sims.sequences import numbers as seeds_of

VIDEO = (160, 160)
UNSEEN = ("success", "states", "rebuild")
"""Settings that change neither what a policy sees nor what its actions do."""


class GymSimulator:
    """One Gymnasium environment. Implements `Simulator`.

    An initial state is what `reset(seed=...)` of a new environment makes: its whole state where that can be held
    exactly, which is tried (`sims/gym/shared_model.py`), otherwise the seed.

    Args:
        task_name: id, or PACKAGE:ID, as `environment.find_spec` takes it.
        horizon: actions after which an episode without success is over; 0: those of the environment's own limit.
        cameras: see `cameras`.
        image_size: pixels of a policy's pictures, one number or (height, width).
        meshes: draw a MuJoCo model's meshes, or the boxes around them.
        proprio: keys of the observation, or ranges of their numbers (KEY, KEY[i], KEY[a:b]); none: see
            `environment.default_proprio`.
        privileged: of the observation, for an auxiliary loss in supervised training; none: nothing.
        success: see `success.Success`.
        instruction: a sentence; "": made of the id.
        repeat: steps of the environment for each action.
        states: how initial states are held.
        rebuild: build the environment anew for each reset: slow, and exact where `reset` leaves something behind.
        arguments: keyword arguments of the environment, as JSON.

    Attributes:
        env: the environment, innermost; in this instance's state after `reset`, `step_chunk` and `observe`.
        observation: the environment's own last observation.
        terminated: the environment ended the episode without success.

    Raises:
        UnknownNameError: no such environment, camera or key.
        ConfigError: an environment that cannot be practised in; says why.
        DependencyMissing: a package is not installed.
        SimulatorError: the environment raised.
    """

    def __init__(
        self,
        task_name: str,
        *,
        horizon: int = 0,
        cameras: Sequence[str] = ("default",),
        image_size: int | tuple[int, int] = 64,
        meshes: Meshes = "boxes",
        proprio: Sequence[str] = (),
        privileged: Sequence[str] = (),
        success: str = "",
        instruction: str = "",
        repeat: int = 1,
        states: States = "auto",
        rebuild: bool = False,
        arguments: str = "",
    ):
        self.task = task_of(task_name, horizon, instruction, repeat)
        self.seconds = {"simulate": 0.0, "render": 0.0}
        self._success, arguments = Success(self.task.key, success), in_one_form(arguments)
        self._size, self._meshes, self._repeat = image_shape(image_size), meshes, repeat
        views = named_views(cameras, VIEWS.get(task_name, {}))
        request = Request(task_name, arguments, tuple(views.items()), states, rebuild)
        self._environment, self._let_go = SHELF.take(request, lambda: Environment(request), self)
        try:
            self._success(*self._environment.first_step)
            seen = self._environment.seen
            self._proprio = Taken.of(tuple(proprio) or default_proprio(seen), seen, "proprio")
            self._privileged = Taken.of(tuple(privileged), seen, "privileged")
            self.spec = self._spec(cameras, proprio, privileged, success, instruction, states, rebuild, arguments)
            self._instance: SharedInstance | OwnInstance = (
                SharedInstance(self._environment.shared)
                if self._environment.shared is not None
                else OwnInstance(self._environment)
            )
        except BaseException:
            self._let_go()
            raise
        self._state: InitialState | None = None
        self._closed = False
        self.observation: Any = None
        self.terminated = False
        self._reward, self._steps, self._done = 0.0, 0, True

    def _spec(self, *words: Any) -> SimulatorSpec:
        names = ("cameras", "proprio", "privileged", "success", "instruction", "states", "rebuild", "arguments")
        given = {k: list(v) if isinstance(v, tuple | list) else v for k, v in zip(names, words, strict=True)}
        unseen = {name: given.pop(name) for name in UNSEEN}
        return SimulatorSpec(
            suite=NAME,
            cameras=dict.fromkeys(self._environment.views, self._size),
            proprio={one.word: one.size for one in self._proprio},
            action_dim=self._environment.actions.dim,
            render={**given, "image_size": list(self._size), "meshes": self._meshes, "repeat": self._repeat},
            unseen=unseen,
        )

    @property
    def env(self) -> Any:
        self._instance.turn()
        return self._instance.env.unwrapped

    @property
    def actions(self) -> ActionScale:
        """Between [-1, 1] and the environment's units."""
        return self._environment.actions

    @property
    def exact(self) -> str:
        """Why initial states are not held by their physics, or "" when they are."""
        return self._environment.why_not

    @property
    def notes(self) -> tuple[str, ...]:
        """What `ript check` says of how initial states are held."""
        if self.exact:
            return (f"an initial state is the seed of a reset, not a state of its own: {self.exact}",)
        return ("an initial state is the whole physical state; one model is shared by all instances of a process",)

    @property
    def remedy(self) -> str:
        """What may help where rollouts disturb each other, or a reset leaves something behind."""
        if not self.exact:
            return "try --sim.states=seed, with which each instance is built for itself"
        rebuilds = self._environment.request.rebuild
        return "" if rebuilds else "try --sim.rebuild=true, with which it is built anew for each reset"

    def reset(self, initial_state: InitialState) -> Observation:
        """Put the environment into this state, then look."""
        start = time.perf_counter()
        episode.require_own(self.task, initial_state)
        state, expected = initial_state.state, self._environment.size()
        if state.size != expected or not 0 <= state[0] < 2**53:
            raise SimulatorError(
                f"{self.task.key}: initial state {initial_state.id} does not fit: expected {expected} numbers after a "
                f"seed, got {state.size}; it was made by another version of the environment, or with other --sim.states"
            )
        self._state, self._steps, self._done, self.terminated = initial_state, 0, False, False
        with calling(self._address, seed=int(state[0])):
            self.observation = self._instance.reset(state, self._address())
            if self._environment.model is not None:
                stability.begin(self._instance.simulation()[1])
        self.seconds["simulate"] += time.perf_counter() - start
        return self.observe()

    def _address(self) -> str:
        return episode.address(self.task, self._state, self._steps)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute float32 `[H, A]` (clipped to [-1, 1], which is stretched to the environment's bounds)."""
        actions = episode.checked_actions(
            np.asarray(actions, np.float32),
            self._environment.actions.dim,
            self._address(),
            begun=self._state is not None,
            over=self._done,
        )
        start, before, success = time.perf_counter(), self._steps, False
        with calling(self._address):
            self._instance.turn()
            for action in actions[: self.task.horizon - self._steps]:
                success = self._act(self._environment.actions.to_environment(action))
                self._steps += 1
                if success or self.terminated:
                    break
            if self._environment.model is not None and not stability.is_stable(self._instance.simulation()[1]):
                raise SimulatorError(f"{self._address()}: {stability.UNSTABLE}")
            self._done = success or self.terminated or self._steps >= self.task.horizon
            if self._done:
                self._instance.ended(self._address())
        self.seconds["simulate"] += time.perf_counter() - start
        return ChunkResult(success=success, env_steps=self._steps - before, done=self._done)

    def _act(self, action: np.ndarray) -> bool:
        """One action, repeated; whether it solved the task."""
        for _ in range(self._repeat):
            where, result = self._address(), self._instance.env.step(action)
            self.observation, self._reward, terminated, truncated, info = stepped(where, result)
            ended = self._said("terminated", terminated), self._said("truncated", truncated)
            if self._success(self._reward, ended[0], info, where):
                return True
            if any(ended):
                self.terminated = True
                break
        return False

    def _said(self, name: str, value: Any) -> bool:
        if (found := truth(value)) is None:
            raise SimulatorError(f"{self._address()}: step returned {name} = {value!r}; expected true or false")
        return found

    def _require_state(self) -> None:
        episode.require_begun(self.task, self._state)

    def _parts(self) -> dict[str, np.ndarray]:
        self._require_state()
        return parts(self.observation)

    def observe(self) -> Observation:
        """Look: the cameras' pictures, and what is taken for proprioception in the environment's units."""
        start = time.perf_counter()
        seen = self._parts()
        proprio = numbers_of(self._proprio, seen)
        if not np.isfinite(proprio).all():
            raise SimulatorError(f"{self._address()}: the observation is not finite: {proprio.tolist()}")
        middle = time.perf_counter()
        with calling(self._address):
            images = self._look(seen, self._environment.views, self._size, self._meshes)
        self.seconds["simulate"] += middle - start
        self.seconds["render"] += time.perf_counter() - middle
        return Observation(
            images={name: image[None] for name, image in images.items()},
            proprio=proprio[None],
            instruction=(self.task.instruction,),
        )

    def _look(
        self, seen: dict[str, np.ndarray], views: dict[str, CameraView | str], size: tuple[int, int], meshes: Meshes
    ) -> dict[str, np.ndarray]:
        drawn = {name: view for name, view in views.items() if isinstance(view, CameraView)}
        found = {}
        if drawn:
            found = instances.draw(self._instance, self._model_pictures(drawn, size, meshes), self._environment)
        for name, view in views.items():
            if name not in drawn:
                picture = own_picture(self._instance.env) if view == RENDER else seen[str(view)]
                found[name] = resized(checked(self.task.name, picture), size)
        return {name: found[name] for name in views}

    def _model_pictures(self, views: dict[str, CameraView], size: tuple[int, int], meshes: Meshes) -> ModelPictures:
        def make() -> ModelPictures:
            gl.before_close(instances.close_renderers)
            environment = self._environment
            return ModelPictures(self.task.key, environment.model, environment.built, views, size, meshes)

        return self._environment.pictures((tuple(views.items()), size, meshes), make)

    def render(self) -> np.ndarray:
        """A picture for videos from the first camera, of a MuJoCo model with its meshes: uint8 `[h, w, 3]`."""
        seen = self._parts()
        start = time.perf_counter()
        name, view = next(iter(self._environment.views.items()))
        size = VIDEO if isinstance(view, CameraView) else self._size
        with calling(self._address):
            picture = self._look(seen, {name: view}, size, "mesh")[name]
        self.seconds["render"] += time.perf_counter() - start
        return picture

    def privileged(self) -> np.ndarray:
        """What `privileged` names: float32 `[O]`."""
        return numbers_of(self._privileged, self._parts())

    def from_environment(self, action: Any) -> np.ndarray:
        """An action in the environment's units -> float32 `[A]` in [-1, 1]."""
        return self._environment.actions.from_environment(action)

    def state_vector(self) -> np.ndarray:
        """All numbers of the environment's observation but pictures: float64 `[n]`."""
        return _vector(self._parts())

    def stock_reward(self, action: np.ndarray) -> float:
        """The environment's reward for the last step."""
        return self._reward

    def stock_episode(self, initial_state: InitialState) -> StockGym:
        """A newly built environment after the reset that made this state, for `check_simulator`."""
        return StockGym(self, int(initial_state.state[0]))

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        """States number start..start+n-1 of the sequence (split, seed): each a seed of the environment's reset."""
        return [
            InitialState(
                task=self.task,
                state=self._environment.state(number, f"{self.task.key}, {label}"),
                origin="sampled",
                label=label,
            )
            for label, number in seeds_of(self.task, n, seed, split, start)
        ]

    def state_of_seed(self, number: int) -> InitialState:
        """The initial state that the environment's `reset(seed=number)` gives; below 2^31 it is in no split."""
        label = f"seed {number}"
        state = self._environment.state(number, f"{self.task.key}, {label}")
        return InitialState(task=self.task, state=state, origin="demo", label=label)

    def close(self) -> None:
        """What instances share stays for others of this process, a while even when there are none."""
        if not self._closed:
            self._closed = True
            self._instance.close()
            self._let_go()
        self._state, self._done = None, True

    def __enter__(self) -> GymSimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _vector(seen: dict[str, np.ndarray]) -> np.ndarray:
    vectors = [numbers(value) for value in seen.values() if not is_picture(value) and value.dtype.kind in "biuf"]
    return np.concatenate([np.zeros(0), *vectors])


class StockGym:
    """A newly built, unmodified environment after `reset(seed=seed)`."""

    def __init__(self, simulator: GymSimulator, seed: int):
        request, self._of = simulator._environment.request, simulator
        self._env = request.build(simulator._environment.renders)
        self.first: np.ndarray = _vector(parts(self._env.reset(seed=seed)[0]))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """(observation vector, reward, success)."""
        of = self._of
        for _ in range(of._repeat):
            result = self._env.step(of._environment.actions.to_environment(action))
            observation, reward, terminated, truncated, info = stepped(of.task.key, result)
            success = of._success(reward, terminated, info)
            if success or terminated or truncated:
                break
        return _vector(parts(observation)), reward, success
