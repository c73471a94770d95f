"""The stock Meta-World environment: one for each task and process, used to draw and build initial states; and a plain
wrapper of it, `StockMetaworld`, that simulators are compared with.

The stock environment has traps that are dealt with here, once:
- `reset` uses what earlier resets left behind (positions in the model, python attributes). Every reset here starts from
  those of a newly built environment, so that it depends on the drawn vector alone.
- A pinned vector that the task holds invalid makes `reset` draw for ever. Here the number of draws is bounded.
- Full observability must be chosen before the observation space is first read, else goals are clipped to zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ript.core.errors import DependencyMissing, SimulatorError, UnknownNameError
from ript.core.interpreter import importing
from ript.sims.metaworld.instructions import INSTRUCTIONS
from ript.sims.metaworld.success import LIVE_GOALS
from ript.sims.mujoco.gl import import_mujoco
from ript.sims.mujoco.rendering import ModelRenderer
from ript.sims.mujoco.resources import Shelf, Turn, return_freed_memory

OBSERVATION_DIM = 39
MAX_DRAWS = 1000
"""Draws in one reset; the tasks accept at least one in five of their own."""
INSTALL = 'pip install "ript[metaworld]"'
RENDERERS = 4
"""Ways of drawing (cameras, size, arm) of a task that stay open, the latest."""


def import_metaworld() -> Any:
    """The `metaworld` package, with MuJoCo's backend chosen first.

    Raises:
        DependencyMissing: metaworld, mujoco or a package that they forgot to require is not installed, or broken.
    """
    import_mujoco(INSTALL)
    try:
        with importing():
            import metaworld
            import metaworld.env_dict
            import metaworld.policies
    except Exception as error:  # of any of the packages that it imports, which load libraries and start processes
        remedy = INSTALL if isinstance(error, ModuleNotFoundError) else "look with `ript doctor`"
        raise DependencyMissing(f"Meta-World cannot be imported ({error}): {remedy}") from error
    return metaworld


def new_environment(task_name: str) -> Any:
    """A newly built stock environment, fully observable, whose random vector is pinned."""
    if task_name not in INSTRUCTIONS:
        raise UnknownNameError("Meta-World task", task_name, INSTRUCTIONS)
    env = import_metaworld().env_dict.ALL_V3_ENVIRONMENTS[task_name]()
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    env._set_task_called = True
    env._freeze_rand_vec = True
    return env


@dataclass(frozen=True)
class Layout:
    """Where the parts of an initial state's vector lie.

    `[R, rand_vec (R), body_pos (3 nbody), site_pos (3 nsite), first observation (39), physics (P)]`: the drawn vector;
    the two arrays of the model that a reset moves; the stock observation after the reset (its last three numbers are
    the goal); MuJoCo's integration state (time, qpos, qvel, warm start, controls, mocap pose, ...). The following
    trajectory depends on nothing else.
    """

    rand_vec: int
    bodies: int
    sites: int
    physics: int

    @property
    def size(self) -> int:
        return 1 + self.rand_vec + 3 * self.bodies + 3 * self.sites + OBSERVATION_DIM + self.physics

    def problem(self, state: np.ndarray) -> str:
        """Why a vector cannot be of this layout, or ""."""
        if state.size != self.size:
            return f"expected {self.size} numbers, got {state.size}"
        if state[0] != self.rand_vec:
            return f"expected the first number to be {self.rand_vec}, got {state[0]}"
        return "" if np.isfinite(state).all() else "not all numbers are finite"

    def split(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rand_vec `[R]`, body_pos `[nbody, 3]`, site_pos `[nsite, 3]`, observation `[39]`, physics `[P]`)."""
        a = 1 + self.rand_vec
        b = a + 3 * self.bodies
        c = b + 3 * self.sites
        d = c + OBSERVATION_DIM
        return state[1:a], state[a:b].reshape(-1, 3), state[b:c].reshape(-1, 3), state[c:d], state[d:]


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes with their arrays copied; arrays that are views into simulation data stay views."""
    return {k: v.copy() if isinstance(v, np.ndarray) and v.base is None else v for k, v in attributes.items()}


class SharedTask:
    """What all simulators of one task in this process share: a stock environment, its model, renderers and expert.

    Attributes:
        env: the stock environment; its own `MjData` is used by resets only.
        model: the physics model. Its body and site positions are those of `active`.
        active: stands for the simulator whose positions are in the model now.
        previous: scratch data in which the step before is looked at.
        low, high: bounds of the stock observation `[39]`; hand_low, hand_high: of the proprioception `[8]`.
    """

    def __init__(self, task_name: str):
        self.mujoco = import_mujoco(INSTALL)
        self.task_name = task_name
        self.env = new_environment(task_name)
        self.model = self.env.model
        self.active: Turn | None = None
        self.integration = int(self.mujoco.mjtState.mjSTATE_INTEGRATION)
        self.layout = Layout(
            rand_vec=int(self.env._random_reset_space.low.size),
            bodies=self.model.nbody,
            sites=self.model.nsite,
            physics=self.mujoco.mj_stateSize(self.model, self.integration),
        )
        self.previous = self.mujoco.MjData(self.model)
        self._hand_previous = self.hand_of(self.previous)
        space, proprio = self.env.sawyer_observation_space, [0, 1, 2, 3, 18, 19, 20, 21]
        self.low, self.high = space.low, space.high
        self.hand_low, self.hand_high = space.low[proprio], space.high[proprio]
        self.expert = import_metaworld().policies.ENV_POLICY_MAP[task_name]()
        self._scratch = self.env.data
        self._new_body_pos, self._new_site_pos = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._new_attributes = _copied(self.env.__dict__)
        self._renderers: dict[Hashable, ModelRenderer] = {}
        return_freed_memory()

    def _renew(self) -> None:
        """Put the stock environment into the state of a newly built one."""
        self.active = None
        self.env.__dict__.clear()
        self.env.__dict__.update(_copied(self._new_attributes))
        self.model.body_pos[:], self.model.site_pos[:] = self._new_body_pos, self._new_site_pos
        self.mujoco.mj_resetData(self.model, self._scratch)
        self.mujoco.mj_forward(self.model, self._scratch)

    def build(self, draw: Callable[[], np.ndarray], where: str) -> np.ndarray:
        """An initial state's vector, from the first drawn vector that the task accepts.

        Args:
            draw: gives a random vector `[R]` within the task's reset space.
            where: for errors.

        Raises:
            SimulatorError: the task refused `MAX_DRAWS` vectors.
        """
        env, drawn, draws = self.env, np.empty(0), 0

        def bounded() -> np.ndarray:
            nonlocal drawn, draws
            draws += 1
            if draws > MAX_DRAWS:
                raise SimulatorError(f"{where}: the task refused {MAX_DRAWS} vectors, the last {drawn.tolist()}")
            drawn = np.array(draw(), dtype=np.float64)
            return drawn.copy()

        self._renew()
        env._get_state_rand_vec = bounded
        env._reset_hand = lambda: setattr(env, "init_tcp", env.tcp_center)  # accepting does not depend on the hand
        env.reset_model()
        self._renew()
        env._get_state_rand_vec = drawn.copy
        observation, _ = env.reset()
        physics = np.empty(self.layout.physics)
        self.mujoco.mj_getState(self.model, self._scratch, physics, self.integration)
        positions = self.model.body_pos.ravel(), self.model.site_pos.ravel()
        return np.concatenate([[drawn.size], drawn, *positions, observation, physics])

    def renderer(self, key: Hashable, make: Callable[[], ModelRenderer]) -> ModelRenderer:
        """The renderer for this way of drawing, made if it is not there; the least recently used makes room."""
        renderer = self._renderers.pop(key, None) or make()
        self._renderers[key] = renderer
        while len(self._renderers) > RENDERERS:
            self._renderers.pop(next(iter(self._renderers))).close()
        return renderer

    def close_renderers(self) -> None:
        """Free what they hold in the OpenGL context; they are made again when needed."""
        while self._renderers:
            self._renderers.popitem()[1].close()

    def close(self) -> None:
        """Free all that is shared of the task. No simulator may have it open."""
        self.close_renderers()

    def current_part(self, data: Any) -> np.ndarray:
        """The first 18 numbers of the stock observation for `data`, whose poses must be up to date."""
        self.env.data = data
        return self.env._get_curr_obs_combined_no_goal()

    def goal(self, data: Any, at_reset: np.ndarray) -> np.ndarray:
        """The goal `[3]` now."""
        live = LIVE_GOALS.get(self.task_name)
        return at_reset if live is None else np.array(live.bind(data)())

    def hand_of(self, data: Any) -> Callable[[], list[float]]:
        """Binds a function that reads hand position and gripper opening, the first four numbers of the observation."""
        hand = data.body("hand").xpos
        right, left = data.body("rightclaw").xpos, data.body("leftclaw").xpos

        def read() -> list[float]:
            apart = right - left
            opening = math.sqrt(apart.dot(apart)) / 0.1
            return [*hand.tolist(), min(max(opening, 0.0), 1.0)]

        return read

    def hand_before(self, previous: Any) -> list[float]:
        """`hand_of` for the scratch data."""
        if previous is not self.previous:
            raise SimulatorError("the hand was asked for in other data than it is bound to")
        return self._hand_previous()


SHELF: Shelf[SharedTask] = Shelf()
"""This process's tasks, by name."""


class StockMetaworld:
    """The unmodified environment, put into one initial state: what a simulator must equal step for step.

    Args:
        task_name: such as "drawer-open-v3".
        rand_vec: a random vector that the task accepts.

    Attributes:
        first: stock observation `[39]` after the reset.
    """

    def __init__(self, task_name: str, rand_vec: np.ndarray):
        self.env = new_environment(task_name)
        self.env._last_rand_vec = np.array(rand_vec)
        self.first: np.ndarray = self.env.reset()[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """(observation `[39]`, reward, success)."""
        observation, reward, _, _, info = self.env.step(action)
        return observation, float(reward), bool(info["success"])


class StockReward:
    """The stock reward function, applied to the physics of another simulator.

    Args:
        episode: after a reset to the other simulator's initial state; not to be stepped.
    """

    def __init__(self, episode: StockMetaworld):
        self._env = episode.env

    def __call__(self, physics: np.ndarray, observation: np.ndarray, action: np.ndarray) -> float:
        mujoco, env = import_mujoco(), self._env
        mujoco.mj_setState(env.model, env.data, physics, int(mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_forward(env.model, env.data)
        return float(env.evaluate_state(observation, action)[0])
