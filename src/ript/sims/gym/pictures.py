"""Pictures of Gymnasium environments: MuJoCo models drawn by our renderer, or what an environment makes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ript.core.errors import SimulatorError
from ript.sims.gym.environment import no_pictures
from ript.sims.mujoco import gl
from ript.sims.mujoco.rendering import CameraView, ModelRenderer

Meshes = Literal["boxes", "mesh"]
FACES = 300
"""Meshes with fewer faces are drawn as they are: they cost no more than a box."""
SHOWN = (
    *("body_pos", "body_quat", "geom_pos", "geom_quat", "geom_size", "geom_rgba", "mat_rgba", "tendon_rgba"),
    *("site_pos", "site_quat", "site_size", "site_rgba", "light_pos", "light_dir"),
)
"""Arrays of a model that change how it looks; environments set some of them (a goal's place, a colour)."""


class ModelPictures:
    """Draws a MuJoCo environment's model as it is now, without touching it.

    Args:
        model: the environment's; as it was built.
        views: camera name -> view.
        size: (height, width).
        meshes: draw meshes, or the boxes around them (ten times as fast).

    Raises:
        RendererMissing: no OpenGL renderer could be started.
    """

    def __init__(self, model: Any, views: Mapping[str, CameraView], size: tuple[int, int], meshes: Meshes):
        drawn = model.__copy__()
        if meshes == "boxes":
            _boxes_for_meshes(drawn)
        self._renderer = ModelRenderer(drawn, views, size, coarse=meshes == "boxes")
        self._built = {name: getattr(model, name).copy() for name in SHOWN if getattr(model, name).size}
        self._drawn = {name: getattr(drawn, name).copy() for name in self._built}
        self._dirty: set[str] = set()

    def draw(self, model: Any, data: Any) -> dict[str, np.ndarray]:
        """One picture a view: uint8 `[height, width, 3]`.

        Args:
            model: the environment's, with what it changed since it was built.
            data: its simulation; positions are read from it.
        """
        drawn = self._renderer.model
        for name, built in self._built.items():
            now = getattr(model, name)
            changed = now != built
            if changed.any():
                getattr(drawn, name)[...] = np.where(changed, now, self._drawn[name])
                self._dirty.add(name)
            elif name in self._dirty:
                getattr(drawn, name)[...] = self._drawn[name]
                self._dirty.discard(name)
        return self._renderer.draw(data, drawn.body_pos.copy(), drawn.site_pos.copy())

    def close(self) -> None:
        self._renderer.close()


def _boxes_for_meshes(model: Any) -> None:
    """Let a model show the box around each of its meshes that has many faces."""
    mujoco = gl.import_mujoco()
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
        if model.mesh_facenum[model.geom_dataid[geom]] < FACES:
            continue
        offset = np.empty(3)
        mujoco.mju_rotVecQuat(offset, model.geom_aabb[geom, :3].copy(), model.geom_quat[geom].copy())
        model.geom_pos[geom] += offset
        model.geom_size[geom] = model.geom_aabb[geom, 3:]
        model.geom_type[geom] = mujoco.mjtGeom.mjGEOM_BOX
        model.geom_dataid[geom] = -1


def checked(name: str, picture: Any) -> np.ndarray:
    """What an environment gave for a picture.

    Raises:
        ConfigError: it gave none.
        SimulatorError: it is not uint8 `[h, w, 3]`.
    """
    if picture is None:
        raise no_pictures(name, "its render() gave None")
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        got = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture).__name__
        raise SimulatorError(
            f"gym/{name}: a picture is {got}; expected uint8 [h, w, 3], red, green and blue from 0 to 255: convert it "
            "in the environment's render(), or name another camera (--sim.cameras)"
        )
    return picture


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A picture in another size, each new pixel the mean of what it covers: uint8 `[*size, 3]`, a new array."""
    if picture.shape[:2] == size:
        return np.ascontiguousarray(picture).copy()
    rows, columns = (_cover(old, new) for old, new in zip(picture.shape[:2], size, strict=True))
    means = np.einsum("ij,jkc,lk->ilc", rows, picture.astype(np.float32), columns, optimize=True)
    return np.clip(np.rint(means), 0, 255).astype(np.uint8, order="C")


def _cover(old: int, new: int) -> np.ndarray:
    """float32 `[new, old]`: the share of each old pixel in each new one."""
    edges = np.arange(new + 1) * (old / new)
    begin, end = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)
    shared = np.clip(np.minimum(end, pixels + 1) - np.maximum(begin, pixels), 0, None)
    return (shared / shared.sum(axis=1, keepdims=True)).astype(np.float32)
