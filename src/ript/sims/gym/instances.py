"""Instances of a Gymnasium environment: what a process has once for all of them, and what each has of its own.

There are two kinds. A MuJoCo environment whose state can be held exactly is built once, and instances take turns with
it (`SharedInstance`). Of any other each instance is built for itself, and an initial state is the seed of a reset
(`OwnInstance`); it also holds the first observation, by which a reset that does not repeat itself is found out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from ript.core.errors import ConfigError, SimulatorError
from ript.sims.gym.cameras import RENDER, resolve
from ript.sims.gym.environment import ActionScale, build, calling, parts, picture_keys, returned, stepped
from ript.sims.gym.fields import Fields
from ript.sims.gym.numbers import NotExact
from ript.sims.gym.pictures import ModelPictures, close, require_shown
from ript.sims.gym.shared_model import SharedEnvironment, physics, set_physics
from ript.sims.gym.tasks import VIEWS
from ript.sims.mujoco import gl
from ript.sims.mujoco.rendering import CameraView
from ript.sims.mujoco.resources import Shelf, return_freed_memory

States = Literal["auto", "physics", "seed"]
RENDERERS = 4
"""Ways of drawing (views, size, meshes) of an environment that stay open, the latest."""
SUMMARISED = 256
"""An array of the first observation with more numbers than these is held as the means of so many pieces of it."""
TOLERANCE = 1e-4
"""Relative and absolute: what a first observation may differ by, on another machine."""
GREY = 2.0
"""The same of a piece's mean where the array holds bytes, as pictures do: they are drawn a little differently there."""


@dataclass(frozen=True)
class Request:
    """Which environment is wanted; those that are equal share one.

    Attributes:
        name: id, or PACKAGE:ID.
        arguments: keyword arguments of the environment, as JSON.
        views: camera name and view of each, as written.
        states: how initial states are held; "auto": by physics where that is exact.
        rebuild: build the environment anew for each reset.
    """

    name: str
    arguments: str
    views: tuple[tuple[str, str], ...]
    states: States
    rebuild: bool

    @property
    def key(self) -> str:
        return f"gym/{self.name}"

    def build(self, render: bool) -> Any:
        return build(self.name, json.loads(self.arguments or "{}"), render=render)


class Environment:
    """What all instances of an environment in this process share.

    Attributes:
        actions: between [-1, 1] and the environment's units.
        views: camera name -> view of the model, "render", or a key of the observation.
        seen: the arrays of a first observation, by name.
        first_step: (reward, terminated, info) of a step after a reset.
        shared: the environment that instances take turns with, or None.
        why_not: why it is None.
        model: the MuJoCo model of one instance, or None.
        fields, built: of that model, and what was in them when it was built.

    Raises:
        ConfigError: an environment that cannot be practised in; says why.
        SimulatorError: the environment raised.
    """

    def __init__(self, request: Request):
        self.request = request
        self.shared: SharedEnvironment | None = None
        self._renderers: dict[Hashable, ModelPictures] = {}
        self._env = request.build(False)
        self.actions = ActionScale(request.key, self._env.action_space)
        model, pictures = model_of(self._env), picture_keys(self._env.observation_space)
        own = VIEWS.get(request.name, ())
        self.views = {name: resolve(view, self._env.unwrapped, model, pictures, own) for name, view in request.views}
        self.why_not = self._reason(model)
        if not self.why_not:
            self._share()
        if self.why_not and request.states == "physics":
            raise ConfigError(f"sim.states=physics: the state of {request.key} cannot be held exactly: {self.why_not}")
        if self.renders:
            close(self._env)
            self._env = request.build(True)
        self.model = model_of(self._env)
        if self.model is not None:
            self.fields = self.shared.fields if self.shared else Fields(self.model)
            self.built = self.shared.built if self.shared else self.fields.snapshot(whole=True)
        with calling(lambda: f"{request.key}, reset and first step"):
            if self.shared:
                observation = self.shared.own_reset(0)[1]
            else:
                observation, _ = returned(request.key, "reset", self._env.reset(seed=0), "observation", "info")
            self.seen = parts(observation)
            result = self._env.step(self.actions.to_environment(np.zeros(self.actions.dim, np.float32)))
            _, reward, terminated, _, info = stepped(request.key, result)
            self.first_step = (reward, bool(terminated), dict(info))
        self.scratch = gl.import_mujoco().MjData(self.model) if self.model is not None else None
        return_freed_memory()

    @property
    def draws(self) -> bool:
        """Whether its model is drawn here."""
        return any(isinstance(view, CameraView) for view in self.views.values())

    @property
    def renders(self) -> bool:
        """Whether the environment makes its own pictures."""
        return RENDER in self.views.values()

    def _reason(self, model: Any) -> str:
        """Why instances cannot share the environment, as far as is known without trying; or ""."""
        if model is None:
            return "it is not a MuJoCo environment"
        if self.renders:
            return "it makes its own pictures"
        if self.request.rebuild:
            return "it is built anew for each reset"
        return "it shall be a seed" if self.request.states == "seed" else ""

    def _share(self) -> None:
        try:
            self.shared = SharedEnvironment(self.request.key, self._env, self._random_actions)
        except NotExact as error:
            self.why_not = str(error)
            close(self._env)
            self._env = self.request.build(False)

    def _random_actions(self, n: int, seed: int) -> list[np.ndarray]:
        drawn = np.random.default_rng(seed).uniform(-1, 1, (n, self.actions.dim)).astype(np.float32)
        return [self.actions.to_environment(action) for action in drawn]

    def state(self, number: int, where: str) -> np.ndarray:
        """The initial state of a reset with this seed: float64 `[S]`.

        Raises:
            SimulatorError: the environment raised.
            ConfigError: its state cannot be held as it could when it was tried.
        """
        with calling(lambda: where, seed=number):
            if self.shared is None:
                if self.request.rebuild:
                    close(self._env)
                    self._env = self.request.build(self.renders)
                return np.concatenate([[float(number)], summary(self._env.reset(seed=number)[0])])
            with _exact(where):
                return self.shared.state(number)

    def size(self) -> int:
        """Numbers in an initial state."""
        return self.shared.size if self.shared else 1 + summary(self.seen).size

    def pictures(self, key: Hashable, make: Callable[[], ModelPictures]) -> ModelPictures:
        """The renderer for this way of drawing, made if it is not there; the least recently used makes room."""
        found = self._renderers.pop(key, None) or make()
        self._renderers[key] = found
        while len(self._renderers) > RENDERERS:
            self._renderers.pop(next(iter(self._renderers))).close()
        return found

    def close_renderers(self) -> None:
        """Free what they hold in the OpenGL context; they are made again when needed."""
        while self._renderers:
            self._renderers.popitem()[1].close()

    def close(self) -> None:
        """For an environment that no simulator has open."""
        self.close_renderers()
        close(self._env)


@contextlib.contextmanager
def _exact(where: str) -> Iterator[None]:
    """What shows that instances cannot take turns ends the run, before rollouts could disturb each other."""
    try:
        yield
    except NotExact as error:
        raise ConfigError(
            f"sim.states: {where}: the environment's state cannot be held exactly: {error}; use --sim.states=seed"
        ) from error


SHELF: Shelf[Environment] = Shelf()
"""This process's environments, by request."""


def close_renderers() -> None:
    """Free every renderer of this process; they are made again when needed."""
    for environment in SHELF:
        environment.close_renderers()


class Instance(Protocol):
    """One instance of an environment."""

    env: Any
    """To be called only while the instance has its turn."""

    def reset(self, state: np.ndarray, where: str) -> Any:
        """Put it into an initial state and let it have its turn; returns the first observation."""
        ...

    def turn(self) -> None:
        """Let it have its turn."""
        ...

    def simulation(self) -> tuple[Any, Any]:
        """The environment's MuJoCo model and data."""
        ...

    def fields(self) -> Fields:
        """The fields of its model that change."""
        ...

    def ended(self, where: str) -> None:
        """An episode is over: raise `ConfigError` where it changed what could not be watched at each step."""
        ...

    def close(self) -> None: ...


class SharedInstance:
    """One that takes turns with others."""

    def __init__(self, shared: SharedEnvironment):
        self._shared, self._own, self.env = shared, shared.new_instance(), shared.env

    def reset(self, state: np.ndarray, where: str) -> Any:
        with _exact(where):
            return self._shared.put(self._own, state)

    def turn(self) -> None:
        self._shared.use(self._own)

    def simulation(self) -> tuple[Any, Any]:
        return self._shared.model, self._own.data

    def fields(self) -> Fields:
        return self._shared.fields

    def ended(self, where: str) -> None:
        with _exact(where):
            self._shared.ended(self._own)

    def close(self) -> None:
        self._shared.close(self._own)


class OwnInstance:
    """One that was built for itself."""

    def __init__(self, environment: Environment):
        self._environment, self._used = environment, False
        self._fields: Fields | None = None
        self.env = environment.request.build(environment.renders)

    def reset(self, state: np.ndarray, where: str) -> Any:
        if self._used and self._environment.request.rebuild:
            close(self.env)
            self.env = self._environment.request.build(self._environment.renders)
        self._used = True
        observation, _ = self.env.reset(seed=int(state[0]))
        shown, expected = summary(observation), state[1:]
        same = shown.shape == expected.shape and np.isclose(shown, expected, TOLERANCE, TOLERANCE, equal_nan=True)
        if not np.all(same):
            far = f"in {np.sum(~same)} of {same.size} numbers" if isinstance(same, np.ndarray) else "in its size"
            raise SimulatorError(
                f"{where}: reset(seed={int(state[0])}) does not repeat itself: its first observation differs {far} "
                f"from that of this state. Rollouts from one state could not be compared. The "
                "environment has to draw everything from self.np_random, or was changed; try --sim.rebuild=true"
            )
        self.ended(where)
        return observation

    def turn(self) -> None:
        pass

    def simulation(self) -> tuple[Any, Any]:
        return model_of(self.env), self.env.unwrapped.data

    def fields(self) -> Fields:
        model = model_of(self.env)
        if self._fields is None or self._fields.model is not model:
            found = Fields(model)
            if found.layout != self._environment.fields.layout:
                raise SimulatorError(
                    f"{self._environment.request.key}: the environment compiles another model with each instance or "
                    "reset; use its own pictures (--sim.cameras=render)"
                )
            self._fields = found
        return self._fields

    def ended(self, where: str) -> None:
        if self._environment.draws:
            require_shown(self._environment.request.key, self.fields().changed_large(self._environment.built))

    def close(self) -> None:
        close(self.env)


def model_of(env: Any) -> Any:
    """The MuJoCo model of an environment, or None."""
    inner = env.unwrapped
    model, data = getattr(inner, "model", None), getattr(inner, "data", None)
    if type(model).__module__.partition(".")[0] != "mujoco" or data is None:
        return None
    return model


def summary(observation: Any) -> np.ndarray:
    """Numbers by which a first observation is known again: those of vectors, and of a picture or another large array
    the means of its pieces, so that what is elsewhere in it is noticed."""
    found = [np.zeros(0)]
    for array in parts(observation).values():
        if array.dtype.kind in "biuf":
            flat = array.ravel().astype(np.float64)
            if flat.size > SUMMARISED:
                flat = _means(flat)
                flat = flat * (TOLERANCE / GREY) if array.dtype == np.uint8 else flat
            found.append(flat)
    return np.concatenate(found)


def _means(flat: np.ndarray) -> np.ndarray:
    edges = np.linspace(0, flat.size, SUMMARISED, endpoint=False).astype(int)
    return np.add.reduceat(flat, edges) / np.diff(edges, append=flat.size)


def draw(instance: Instance, pictures: ModelPictures, environment: Environment) -> dict[str, np.ndarray]:
    """Pictures of an instance's model now.

    Environments that show something only when they render (a goal's place) do that in a callback, which may move the
    simulation on: it works on a copy, and what it changes in the model is taken back.
    """
    instance.turn()
    model, data = instance.simulation()
    inner, fields = instance.env.unwrapped, instance.fields()
    callback = getattr(inner, "_render_callback", None)
    if callback is None or vars(inner).get("data") is not data:
        return pictures.draw(fields, data)
    kept = fields.snapshot(environment.built)
    set_physics(model, environment.scratch, physics(model, data))
    inner.data = environment.scratch
    try:
        callback()
        return pictures.draw(fields, environment.scratch)
    finally:
        inner.data = data
        fields.restore(kept)
