"""MuJoCo environments that change their model in all kinds of ways; importing this file registers them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.mujoco import MujocoEnv

ROOM = """
<mujoco>
  <option timestep="0.01"/>
  <asset>
    <material name="red" rgba="1 0 0 1"/>
    <material name="green" rgba="0 1 0 1"/>
    <texture name="paper" type="2d" builtin="checker" width="{texture}" height="{texture}"/>
    <material name="paper" texture="paper"/>
  </asset>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="side" pos="0 -2 1" xyaxes="1 0 0 0 .5 1"/>
    <camera name="top" pos="0 0 2"/>
    <geom name="floor" type="plane" pos="0 0 -.05" size="1 1 .1" rgba=".5 .5 .5 1"/>
    <body name="lamp" pos="0 .5 .1">
      <geom name="lamp" type="sphere" size=".1" material="red" contype="0" conaffinity="0"/>
    </body>
    <body name="sheet" pos="-.5 -.5 .1">
      <geom name="sheet" type="box" size=".1 .1 .01" material="paper" contype="0" conaffinity="0"/>
    </body>
    <body name="wall" pos=".3 0 .1"><geom name="wall" type="box" size=".02 .3 .1"/></body>
    <body name="cart" pos="0 0 .1">
      <joint name="x" type="slide" axis="1 0 0" range="-1 1"/>
      <geom name="cart" type="box" size=".05 .05 .05" rgba="0 0 1 1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="4" ctrlrange="-1 1"/></actuator>
</mujoco>
"""
LATE = 12
"""The step of a late change: after those by which it is tried what an environment changes."""


class Room(MujocoEnv):
    """A cart on a rail, a wall in its way, a lamp. A subclass changes the model at resets or at a step."""

    metadata: ClassVar = {"render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 20}
    texture = 64
    steps = 0

    def __init__(self, **kwargs: Any):
        with tempfile.NamedTemporaryFile("w", suffix=".xml", delete=False) as file:
            file.write(ROOM.format(texture=self.texture))
        space = spaces.Box(-np.inf, np.inf, (2,))
        super().__init__(file.name, 5, observation_space=space, width=64, height=64, **kwargs)
        os.unlink(file.name)

    def reset_model(self) -> np.ndarray:
        self.steps = 0
        self.at_reset()
        self.set_state(self.np_random.uniform(-0.3, 0.1, 1), np.zeros(1))
        return self._see()

    def _see(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self.do_simulation(action, self.frame_skip)
        self.steps += 1
        self.at_step()
        return self._see(), 0.0, False, False, {"success": False}

    def at_reset(self) -> None: ...

    def at_step(self) -> None: ...

    def let_through(self, through: bool) -> None:
        wall = self.model.geom("wall").id
        self.model.geom_contype[wall] = self.model.geom_conaffinity[wall] = 0 if through else 1


class DrawnWall(Room):
    """Whether the wall is one is drawn: whole numbers."""

    def at_reset(self) -> None:
        self.let_through(bool(self.np_random.integers(2)))


class LateWall(Room):
    """The wall lets through from a step on: whole numbers."""

    def at_reset(self) -> None:
        self.let_through(False)

    def at_step(self) -> None:
        if self.steps == LATE:
            self.let_through(True)


class LateMove(Room):
    """The wall goes away at a step: a place."""

    def at_reset(self) -> None:
        self.model.body("wall").pos[2] = 0.1

    def at_step(self) -> None:
        if self.steps == LATE:
            self.model.body("wall").pos[2] = -5


class LateOptions(Room):
    """Time goes slower from a step on, and down is elsewhere: a number and an array of the options."""

    def at_reset(self) -> None:
        self.model.opt.timestep = 0.01
        self.model.opt.gravity[0] = 0

    def at_step(self) -> None:
        if self.steps == LATE:
            self.model.opt.timestep = 0.002
            self.model.opt.gravity[0] = -9


class LatePaint(Room):
    """A texture is painted over at a step."""

    texture = 256

    def at_reset(self) -> None:
        self.model.tex_data[:64] = 0

    def at_step(self) -> None:
        if self.steps == LATE:
            self.model.tex_data[:64] = 99


class Repainted(LatePaint):
    """Each reset paints a texture."""

    def at_reset(self) -> None:
        self.model.tex_data[:64] = self.np_random.integers(256)

    def at_step(self) -> None: ...


class LatePaintOnly(LatePaint):
    """The same, of a texture that no reset touches."""

    def at_reset(self) -> None: ...


class Lamp(Room):
    """The lamp is red or green, the light bright or not, the camera here or there."""

    def at_reset(self) -> None:
        self.model.geom_matid[self.model.geom("lamp").id] = self.np_random.integers(2)
        self.model.light_diffuse[0] = self.model.vis.headlight.diffuse[:] = self.np_random.uniform(0.3, 0.6, 3)
        self.model.cam_pos[self.model.camera("top").id, 0] = self.np_random.uniform(-0.5, 0.5)


class LateSecret(Room):
    """Counts steps where nobody looks, and brakes from a step on."""

    def __init__(self, **kwargs: Any):
        self.count = counter()
        super().__init__(**kwargs)

    def at_reset(self) -> None:
        self.count(-self.count(0))

    def at_step(self) -> None:
        if self.count(1) > 2 * LATE:
            self.data.qvel[0] *= 0.5


def counter() -> Callable[[int], int]:
    counted = 0

    def count(more: int) -> int:
        nonlocal counted
        counted += more
        return counted

    return count


for kind in [Room, *Room.__subclasses__(), *LatePaint.__subclasses__()]:
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind, max_episode_steps=30)
