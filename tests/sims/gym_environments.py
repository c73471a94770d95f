"""Small Gymnasium environments, good and bad, for tests; importing it registers them."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

POINT = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="above" pos="0 0 2.5"/>
    <geom type="plane" size="1 1 0.1" rgba="0.2 0.2 0.3 1"/>
    <body name="point" pos="0 0 0.1">
      <joint name="x" type="slide" axis="1 0 0" range="-0.9 0.9" damping="2"/>
      <joint name="y" type="slide" axis="0 1 0" range="-0.9 0.9" damping="2"/>
      <geom type="sphere" size="0.1" rgba="1 1 1 1" mass="1"/>
    </body>
    <site name="goal" type="sphere" size="0.12" pos="0 0 0.1" rgba="1 0 0 1"/>
  </worldbody>
  <actuator>
    <motor joint="x" gear="20" ctrlrange="-2 2"/>
    <motor joint="y" gear="20" ctrlrange="-2 2"/>
  </actuator>
</mujoco>
"""


class OldStep:
    """A mixin: steps as Gym's old interface has them."""

    def step(self, action: np.ndarray) -> Any:
        look, reward, terminated, _, info = super().step(action)  # type: ignore[misc]
        return look, reward, terminated, info


class OldReset:
    """A mixin: resets as Gym's old interface has them."""

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]  # type: ignore[misc]


class Dot(gymnasium.Env):
    """Move a dot in the square [-1, 1] x [-1, 1] to a goal."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}
    size = 48

    def __init__(self, render_mode: str | None = None, reach: float = 0.25):
        self.render_mode, self.reach = render_mode, reach
        self.action_space: Any = spaces.Box(np.array([-0.2, -0.1], np.float32), np.array([0.2, 0.3], np.float32))
        self.observation_space: Any = spaces.Dict(
            {"place": spaces.Box(-1, 1, (2,)), "goal": spaces.Box(-1, 1, (2,), np.float64)}
        )
        self.place, self.goal = np.zeros(2), np.zeros(2)

    def _see(self) -> Any:
        return {"place": self.place.astype(np.float32), "goal": self.goal.copy()}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, 2), self.np_random.uniform(-1, 1, 2)
        return self._see(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.place = np.clip(self.place + action, -1, 1)
        far = float(np.hypot(*(self.goal - self.place)))
        return self._see(), -far, False, False, self._info(far < self.reach)

    def _info(self, solved: bool) -> dict:
        return {"success": solved}

    def render(self) -> Any:
        picture = np.zeros((self.size, self.size, 3), np.uint8)
        for place, colour in ((self.goal, (0, 255, 0)), (self.place, (255, 255, 255))):
            column, row = ((place + 1) / 2 * (self.size - 1)).astype(int)
            picture[max(0, row - 3) : row + 4, max(0, column - 3) : column + 4] = colour
        return picture


class Point(MujocoEnv):
    """A ball on a table that is pushed to a goal. The goal's place is a site, which it moves when it renders."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None):
        import os
        import tempfile

        with tempfile.NamedTemporaryFile("w", suffix=".xml", delete=False) as file:
            file.write(POINT)
        super().__init__(file.name, 5, spaces.Box(-np.inf, np.inf, (6,)), render_mode)
        os.unlink(file.name)
        self.goal = np.zeros(2)

    def reset_model(self) -> np.ndarray:
        self.goal = self.np_random.uniform(-0.8, 0.8, 2)
        self.set_state(self.np_random.uniform(-0.8, 0.8, 2), np.zeros(2))
        return self._see()

    def _see(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel, self.goal])

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.do_simulation(action, self.frame_skip)
        far = float(np.hypot(*(self.goal - self.data.qpos)))
        return self._see(), -far, False, False, {"is_success": far < 0.15}

    def _render_callback(self) -> None:
        import mujoco

        self.model.site("goal").pos[:2] = self.goal
        self.data.qvel[:] = 0  # what a callback should not do, and some do: it disturbs the simulation
        mujoco.mj_forward(self.model, self.data)


class StickyPoint(Point):
    """Draws how much the joints brake at each reset: a change in the model."""

    def reset_model(self) -> np.ndarray:
        self.model.dof_damping[:] = self.np_random.uniform(1, 4)
        return super().reset_model()


class TiringPoint(Point):
    """Brakes more with each step: a change in the model within an episode."""

    def reset_model(self) -> np.ndarray:
        self.model.dof_damping[:] = 1
        return super().reset_model()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.model.dof_damping[:] *= 1.1
        return super().step(action)


class SecretPoint(Point):
    """Counts where no instance can be asked for it."""

    secret: ClassVar = [0]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.secret[0] += 1
        return super().step(action * (1 + 0.001 * self.secret[0]))


class NoisyPoint(Point):
    """Draws at each step, from its own generator; counts in a nested object."""

    def __init__(self, render_mode: str | None = None):
        self.counter = _Counter()
        super().__init__(render_mode)

    def reset_model(self) -> np.ndarray:
        self.counter.steps = 0
        return super().reset_model()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.counter.steps += 1
        return super().step(action + self.np_random.normal(0, 0.1, 2) * (self.counter.steps % 3))


class _Counter:
    steps = 0


class HiddenPoint(Point):
    """Keeps a part of its state where nobody can see it."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode)
        self.hidden = iter(range(10**9))

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        return super().step(action * (1 + 0.001 * next(self.hidden)))


class Bursting(Point):
    """Its simulation becomes unstable at a step."""

    def reset_model(self) -> np.ndarray:
        self.steps = 0
        return super().reset_model()

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        if self.steps == 10:
            self.data.qvel[0] = 1e20
        return super().step(action)


class Restless(Dot):
    """Its resets do not repeat themselves."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place = np.random.default_rng().uniform(-1, 1, 2)
        return self._see(), {}


class Counting(Dot):
    """Each reset is a little different from the one before."""

    resets = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.resets += 1
        self.place = self.place * 0.9 + 0.01 * (self.resets % 10)
        return self._see(), {}


class Leaky(Dot):
    """A reset leaves something behind that shows later."""

    drift = 0.0

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.drift += 0.001
        return super().step(action + self.drift)


class Discrete(Dot):
    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode)
        self.action_space = spaces.Discrete(4)


class Unbounded(Dot):
    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode)
        self.action_space = spaces.Box(-np.inf, np.inf, (2,))


class Silent(Dot):
    """Does not say whether it is solved."""

    def _info(self, solved: bool) -> dict:
        return {"distance": 1.0}


class Blind(Dot):
    def render(self) -> Any:
        return None


class Bright(Dot):
    """Pictures from 0 to 1."""

    def render(self) -> Any:
        return super().render() / 255


class NoRender(Dot):
    metadata: ClassVar = {"render_modes": []}


class Breaks(Dot):
    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        if self.place[0] > 0.9:
            raise ZeroDivisionError("of the environment")
        return super().step(action)


class Solved(Dot):
    """Is solved wherever it starts."""

    def _info(self, solved: bool) -> dict:
        return {"success": True}


class Falls(Dot):
    """Ends by itself when the dot is at the edge; solved at the goal, which is told by the reward alone."""

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        seen, reward, *_ = super().step(action)
        return seen, reward, bool(abs(self.place).max() >= 1), False, {}


class Later(Dot):
    """Something of what its steps return is another after the third."""

    later: Any = None
    steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        result = super().step(action)
        return result if self.steps <= 3 else self.changed(*result)

    def changed(self, seen: Any, reward: float, terminated: bool, truncated: bool, info: dict) -> Any:
        return seen, reward, terminated, truncated, info


class NanReward(Later):
    def changed(self, seen: Any, reward: float, terminated: bool, truncated: bool, info: dict) -> Any:
        return seen, float("nan"), terminated, truncated, info


class NanSuccess(Later):
    def changed(self, seen: Any, reward: float, terminated: bool, truncated: bool, info: dict) -> Any:
        return seen, reward, terminated, truncated, {"success": np.float32("nan")}


class NanEnd(Later):
    def changed(self, seen: Any, reward: float, terminated: bool, truncated: bool, info: dict) -> Any:
        return seen, reward, float("nan"), truncated, info


class NanGoal(Later):
    """Shows NaN where nobody looks, but for an auxiliary loss."""

    def changed(self, seen: Any, reward: float, terminated: bool, truncated: bool, info: dict) -> Any:
        return seen | {"goal": np.full(2, np.nan)}, reward, terminated, truncated, info


class Progress(Later):
    """Says how far it has come, and that it has not failed yet."""

    def _info(self, solved: bool) -> dict:
        return {"progress": self.steps / 100, "success": -1 if self.steps > 3 else 0}


class TwoStarts(Dot):
    """Has two different starts alone."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.goal = np.zeros(2), np.array([[0.5, 0.5], [-0.5, 0.5]])[self.np_random.integers(2)]
        return self._see(), {}


class OldSeeds(Dot):
    """Draws from a generator that takes seeds below 2^32."""

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.goal = np.random.RandomState(seed).uniform(-1, 1, 2)
        return self._see(), {}


class Pixels(Dot):
    """Pictures are part of the observation."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode)
        self.observation_space = spaces.Dict(
            {"pixels": spaces.Box(0, 255, (self.size, self.size, 3), np.uint8), "agent_pos": spaces.Box(-1, 1, (2,))}
        )

    def _see(self) -> Any:
        return {"pixels": self.render(), "agent_pos": self.place.astype(np.float32)}


class RestlessPixels(Dot):
    """A picture alone, of a goal that each reset draws elsewhere."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode)
        self.observation_space = spaces.Box(0, 255, (96, 96, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.goal = np.random.default_rng().uniform(-1, 1, 2)
        return self._see(), {}

    def _see(self) -> Any:
        picture = np.zeros((96, 96, 3), np.uint8)
        column, row = ((self.goal + 1) / 2 * 95).astype(int)
        picture[row, column] = (255, 0, 0)
        return picture


for kind in [Dot, Point, *Dot.__subclasses__(), *Later.__subclasses__(), *Point.__subclasses__()]:
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind, max_episode_steps=30)
gymnasium.register("Endless-v0", entry_point=Dot)


class Bytes(Dot):
    """Actions and observations are whole numbers without a sign."""

    def __init__(self, render_mode: str | None = None):
        super().__init__(render_mode)
        self.action_space = spaces.Box(0, 255, (2,), np.uint8)
        self.observation_space = spaces.Box(0, 255, (4,), np.uint8)

    def _see(self) -> Any:
        return np.rint((np.concatenate([self.place, self.goal]) + 1) * 127).astype(np.uint8)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert action.dtype == np.uint8, action.dtype
        return super().step(action / 1275 - 0.1)


gymnasium.register("Bytes-v0", entry_point=Bytes, max_episode_steps=30)
for name, bases in {"FourStep": (OldStep, Dot), "LookReset": (OldReset, Dot)}.items():
    gymnasium.register(f"{name}-v0", entry_point=type(name, bases, {}))
