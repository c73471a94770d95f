"""The stock Meta-World environment: one per task and process, used to draw and build initial states; and a plain wrapper of
it, `StockMetaworld`, that simulators are compared with.

The stock environment has traps that are dealt with here, once:
- `reset` uses what earlier resets left behind (body and site positions of the model, python attributes). Every reset here
  starts from those of a newly built environment, so that it depends on the drawn vector alone.
- A pinned vector that the task holds invalid makes `reset` draw for ever. Here the number of draws is bounded.
- Full observability must be chosen before the observation space is first read, else goals are clipped to zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from ript.errors import DependencyMissing, SimulatorError, UnknownNameError
from ript.sims.gl import import_mujoco
from ript.sims.instructions import INSTRUCTIONS

OBSERVATION_DIM = 39
MAX_DRAWS = 1000
"""Draws of one reset; the tasks accept at least one draw in five."""


def import_metaworld() -> Any:
    """The `metaworld` package, with MuJoCo's backend chosen first.

    Raises:
        DependencyMissing: metaworld, mujoco or a package that they forgot to require is not installed.
    """
    import_mujoco()
    try:
        import metaworld
        import metaworld.env_dict
        import metaworld.policies
    except ImportError as error:
        raise DependencyMissing(f'Meta-World cannot be imported ({error}): pip install "ript[metaworld]"') from error
    return metaworld


def new_environment(task_name: str) -> Any:
    """A newly built stock environment, fully observable, with success steps unlimited."""
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

    `[R, rand_vec (R), body_pos (3 nbody), site_pos (3 nsite), first observation (39), physics (P)]`: the drawn vector; the two
    arrays of the model that a reset moves; the stock observation after the reset (its last three numbers are the goal); and
    MuJoCo's integration state (time, qpos, qvel, warm start, controls, mocap pose, ...). Together they are all that the
    following trajectory depends on.
    """

    rand_vec: int
    bodies: int
    sites: int
    physics: int

    def split(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rand_vec, body_pos `[nbody, 3]`, site_pos `[nsite, 3]`, observation `[39]`, physics `[P]`)."""
        a = 1 + self.rand_vec
        b = a + 3 * self.bodies
        c = b + 3 * self.sites
        d = c + OBSERVATION_DIM
        return state[1:a], state[a:b].reshape(-1, 3), state[b:c].reshape(-1, 3), state[c:d], state[d:]

    @property
    def size(self) -> int:
        return 1 + self.rand_vec + 3 * self.bodies + 3 * self.sites + OBSERVATION_DIM + self.physics


class SharedTask:
    """What all simulators of one task in this process share: a stock environment, its model and its expert.

    Attributes:
        env: the stock environment; its own `MjData` is used by resets only.
        model: the physics model. Its body and site positions are those of `active`.
        active: whose positions are in the model now.
        previous: scratch data in which the frame before is recomputed.
    """

    def __init__(self, task_name: str):
        self.mujoco = import_mujoco()
        self.task_name = task_name
        self.env = new_environment(task_name)
        self.model = self.env.model
        self.active: object | None = None
        self.integration = int(self.mujoco.mjtState.mjSTATE_INTEGRATION)
        self.layout = Layout(
            rand_vec=int(self.env._random_reset_space.low.size),
            bodies=self.model.nbody,
            sites=self.model.nsite,
            physics=self.mujoco.mj_stateSize(self.model, self.integration),
        )
        self.previous = self.mujoco.MjData(self.model)
        space = self.env.sawyer_observation_space
        self.low, self.high = space.low, space.high
        self._scratch = self.env.data
        self._new_body_pos, self._new_site_pos = self.model.body_pos.copy(), self.model.site_pos.copy()
        self._new_attributes = {
            name: value.copy() if isinstance(value, np.ndarray) and value.base is None else value
            for name, value in self.env.__dict__.items()
        }
        self.expert = import_metaworld().policies.ENV_POLICY_MAP[task_name]()

    def reset_stock(self, draw: Callable[[], np.ndarray], where: str) -> np.ndarray:
        """Reset the stock environment as if newly built, and return the initial state's vector.

        Args:
            draw: gives the random vector each time the task asks for one.
            where: for errors.

        Raises:
            SimulatorError: the task refused `MAX_DRAWS` vectors.
        """
        env = self.env
        self.active = None
        env.__dict__.clear()
        env.__dict__.update(
            {
                k: v.copy() if isinstance(v, np.ndarray) and v.base is None else v
                for k, v in self._new_attributes.items()
            }
        )
        env.data = self._scratch
        self.model.body_pos[:], self.model.site_pos[:] = self._new_body_pos, self._new_site_pos
        self.mujoco.mj_resetData(self.model, self._scratch)
        self.mujoco.mj_forward(self.model, self._scratch)
        last, draws = np.empty(0), 0

        def bounded() -> np.ndarray:
            nonlocal last, draws
            draws += 1
            if draws > MAX_DRAWS:
                raise SimulatorError(
                    f"{where}: the task refused {MAX_DRAWS} vectors, the last {np.round(last, 4).tolist()}; "
                    "initial states must come from the simulator's own sampling"
                )
            last = np.array(draw(), dtype=np.float64)
            return last

        env._get_state_rand_vec = bounded
        observation, _ = env.reset()
        physics = np.empty(self.layout.physics)
        self.mujoco.mj_getState(self.model, self._scratch, physics, self.integration)
        return np.concatenate(
            [[last.size], last, self.model.body_pos.ravel(), self.model.site_pos.ravel(), observation, physics]
        )

    def accepted_vector(self, draw: Callable[[], np.ndarray], where: str) -> np.ndarray:
        """The first drawn vector that the task accepts (see `reset_stock`)."""
        last = np.empty(0)

        def remembered() -> np.ndarray:
            nonlocal last
            last = draw()
            return last

        self.reset_stock(remembered, where)
        return last

    def sample_vector(self, generator: np.random.Generator, where: str) -> np.ndarray:
        """A random vector that the task accepts, from its own reset space."""
        space = self.env._random_reset_space
        return self.accepted_vector(lambda: generator.uniform(space.low, space.high, size=space.low.size), where)

    def current_part(self, data: Any) -> np.ndarray:
        """The first 18 numbers of the stock observation for `data`, whose kinematics must be up to date."""
        self.env.data = data
        return self.env._get_curr_obs_combined_no_goal()


@cache
def shared_task(task_name: str) -> SharedTask:
    """This process's `SharedTask`."""
    return SharedTask(task_name)


class StockMetaworld:
    """The unmodified environment, put into one initial state: what a simulator must equal step for step."""

    def __init__(self, task_name: str):
        self.env = new_environment(task_name)

    def reset(self, rand_vec: np.ndarray) -> np.ndarray:
        """Stock observation `[39]` after a reset with this vector. Call once per instance."""
        self.env._last_rand_vec = np.array(rand_vec)
        return self.env.reset()[0]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """(observation `[39]`, reward, success)."""
        observation, reward, _, _, info = self.env.step(action)
        return observation, float(reward), bool(info["success"])

    def close(self) -> None:
        self.env.close()
