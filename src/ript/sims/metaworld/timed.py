"""The stock environment as existing systems use it: what `ript bench rollout` times ours beside."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ript.core.types import Observation
from ript.sims.metaworld.instructions import INSTRUCTIONS
from ript.sims.metaworld.options import MetaworldOptions
from ript.sims.metaworld.stock import import_metaworld
from ript.sims.metaworld.tasks import NAME, resolve_cameras
from ript.sims.mujoco.gl import import_mujoco
from ript.sims.mujoco.rendering import image_shape


class TimedMetaworld:
    """`gymnasium.make("Meta-World/MT1")` with default pictures. Implements `StockEnvironment`.

    Args:
        key: of the task.
        options: size of the pictures, and the cameras' names; all show what corner2 sees.
        seed: of the environment.
    """

    def __init__(self, key: str, options: MetaworldOptions, seed: int):
        import_metaworld()  # registers the environments
        import gymnasium

        height, width = image_shape(options.image_size)
        self._task, self._cameras = key.removeprefix(f"{NAME}/"), tuple(resolve_cameras(options.cameras))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gymnasium's checker, of observation bounds
            self._env = gymnasium.make(
                "Meta-World/MT1",
                env_name=self._task,
                seed=seed,
                render_mode="rgb_array",
                camera_name="corner2",
                width=width,
                height=height,
            )
        self._vector, self._picture = np.empty(0), np.empty(0)

    def reset(self) -> None:
        self._vector = self._env.reset()[0]
        self.draw()

    def step(self, action: np.ndarray) -> bool:
        self._vector, _, terminated, truncated, _ = self._env.step(action)
        return bool(terminated or truncated)

    def draw(self) -> None:
        self._picture = np.ascontiguousarray(self._env.render())

    def observation(self) -> Observation:
        seen = np.concatenate([self._vector[:4], self._vector[18:22]]).astype(np.float32)
        images = dict.fromkeys(self._cameras, self._picture[None])
        return Observation(images=images, proprio=seen[None], instruction=(INSTRUCTIONS[self._task],))

    def physics(self) -> None:
        env: Any = self._env.unwrapped
        import_mujoco().mj_step(env.model, env.data, env.frame_skip)

    def close(self) -> None:
        self._env.close()
