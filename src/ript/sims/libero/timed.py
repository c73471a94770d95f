"""The stock environment as existing systems use it: what `ript bench rollout` times ours beside."""

from __future__ import annotations

from typing import Any

import numpy as np

from ript.core.types import Observation
from ript.sims.libero import stock
from ript.sims.libero.controller import SUBSTEPS
from ript.sims.libero.options import LiberoOptions
from ript.sims.libero.rendering import resolve_cameras
from ript.sims.libero.step import axis_angle
from ript.sims.libero.tasks import NAME, info_of
from ript.sims.mujoco.gl import import_mujoco
from ript.sims.mujoco.rendering import image_shape


class TimedLibero:
    """`OffScreenRenderEnv`, whose steps draw all cameras, reset to the benchmark's initial states in turn. Implements
    `StockEnvironment`.

    Args:
        key: of the task.
        options: cameras, the size of their pictures, and proprioception.
        seed: of where fixtures stand.
    """

    def __init__(self, key: str, options: LiberoOptions, seed: int):
        self._info = info_of(key.removeprefix(f"{NAME}/"))
        self._views, self._parts, self._seed = resolve_cameras(options.cameras), options.proprio, seed
        height, width = image_shape(options.image_size)
        self._env = stock.new_environment(
            self._info,
            seed,
            has_offscreen_renderer=True,
            use_camera_obs=True,
            camera_names=list(dict.fromkeys(str(view.base) for view in self._views.values())),
            camera_heights=height,
            camera_widths=width,
        )
        with np.load(self._info.states) as file:
            self._vectors = file["states"]
        self._resets = 0
        self._seen: dict[str, Any] = {}

    def reset(self) -> None:
        stock.reset(self._env, self._seed + self._resets)
        self._seen = self._env.set_init_state(self._vectors[self._resets % len(self._vectors)])
        self._resets += 1

    def step(self, action: np.ndarray) -> bool:
        self._seen, _, done, _ = self._env.step(action)
        return bool(done)

    def draw(self) -> None:
        """Nothing to do: the environment's steps have drawn their pictures."""

    def observation(self) -> Observation:
        images = {name: self._seen[f"{view.base}_image"] for name, view in self._views.items()}
        upright = {name: image if self._views[name].flip else image[::-1] for name, image in images.items()}
        proprio = np.concatenate([self._part(name) for name in self._parts]).astype(np.float32)
        return Observation(
            images={name: np.ascontiguousarray(image)[None] for name, image in upright.items()},
            proprio=proprio[None],
            instruction=(self._info.instruction,),
        )

    def _part(self, name: str) -> np.ndarray:
        seen = self._seen
        x, y, z, w = seen["robot0_eef_quat"]
        position, turned = seen["robot0_eef_pos"], axis_angle(np.array([w, x, y, z]))
        parts = {
            "joint_states": seen["robot0_joint_pos"],
            "gripper_states": seen["robot0_gripper_qpos"],
            "gripper_qpos": seen["robot0_gripper_qpos"],
            "ee_pos": position,
            "eef_pos": position,
            "ee_states": np.concatenate([position, turned]),
        }
        return parts.get(name, turned)

    def physics(self) -> None:
        sim = self._env.env.sim
        import_mujoco().mj_step(sim.model._model, sim.data._data, SUBSTEPS)

    def close(self) -> None:
        self._env.close()
