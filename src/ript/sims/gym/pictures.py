"""Pictures of Gymnasium environments: MuJoCo models drawn by our renderer, or what an environment makes itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np

from ript.core.errors import ConfigError, SimulatorError
from ript.sims.gym.environment import no_pictures
from ript.sims.gym.fields import Fields, Snapshot
from ript.sims.mujoco import gl
from ript.sims.mujoco.rendering import CameraView, ModelRenderer, moved

Meshes = Literal["boxes", "mesh"]
FACES = 300
"""Meshes with fewer faces are drawn as they are: they cost no more than a box."""
UPLOADED = ("tex_", "mesh_", "hfield_", "skin_")
"""How the names of a model's arrays begin of which OpenGL has a copy, made once."""
OURS = ("vis.quality.", "vis.global_.off", "vis.global_.fovy", "opt.")
"""How the names of options begin that a renderer sets itself, or that show nothing."""
GEOMETRY = ("geom_type", "geom_dataid", "geom_pos", "geom_quat", "geom_size")
"""What of a geom is another where it is drawn as a box."""


class ModelPictures:
    """Draws a MuJoCo environment's model as it is now, without touching it.

    Args:
        key: of the task, for errors.
        model: of the environment.
        built: what was in it when it was built.
        views: camera name -> view.
        size: (height, width).
        meshes: draw meshes, or the boxes around them (ten times as fast).

    Raises:
        RendererMissing: no OpenGL renderer could be started.
    """

    def __init__(
        self,
        key: str,
        model: Any,
        built: Snapshot,
        views: Mapping[str, CameraView],
        size: tuple[int, int],
        meshes: Meshes,
    ):
        self._key, self._built, drawn = key, built, model.__copy__()
        self._drawn = Fields(drawn)
        self._drawn.restore(built)
        self._drawn.restore_large(built)
        kinds = drawn.geom_type.copy()
        if meshes == "boxes":
            _boxes_for_meshes(drawn)
        self._renderer = ModelRenderer(drawn, views, size, coarse=meshes == "boxes")
        self._replaced = np.flatnonzero(drawn.geom_type != kinds)
        self._own: dict[str, np.ndarray] = {}
        self._dirty: set[str] = set()

    def draw(self, fields: Fields, data: Any) -> dict[str, np.ndarray]:
        """One picture a view: uint8 `[height, width, 3]`.

        Args:
            fields: of the environment's model, with what it changed since it was built.
            data: its simulation; positions are read from it.

        Raises:
            ConfigError: it changed what cannot be shown.
        """
        changed = {name for name in fields.changed(self._built) if not name.startswith(OURS)}
        require_shown(self._key, changed)
        if changed or self._dirty:
            self._show(fields, changed)
        drawn = self._renderer.model
        return self._renderer.draw(data, drawn.body_pos.copy(), drawn.site_pos.copy())

    def _show(self, fields: Fields, changed: set[str]) -> None:
        """Let what is drawn have what was changed, and what is no longer changed be as it was."""
        moved = [name for name in GEOMETRY if name in changed] if self._replaced.size else []
        changed = changed.union(GEOMETRY) if moved else changed
        for name in changed | self._dirty:
            own = self._own.setdefault(name, self._drawn.value(name))
            now = fields.value(name)
            self._drawn.set(name, np.where(now != fields.then(name, self._built), now, own))
        for geom in self._replaced if moved else ():  # where it was changed it is drawn as it is, not as a box
            if any((fields.value(name)[geom] != fields.then(name, self._built)[geom]).any() for name in moved):
                for name in GEOMETRY:
                    getattr(self._renderer.model, name)[geom] = fields.value(name)[geom]
        self._dirty = changed

    def close(self) -> None:
        self._renderer.close()


def require_shown(key: str, changed: Collection[str]) -> None:
    """Raise `ConfigError` where pictures that are drawn here would not show what was changed in a model."""
    if hidden := sorted(name for name in changed if name.startswith(UPLOADED)):
        raise ConfigError(
            f"sim.cameras: {key} changes its model's {', '.join(hidden)}, which pictures drawn here do not show: use "
            "the environment's own (--sim.cameras=render)"
        )


def _boxes_for_meshes(model: Any) -> None:
    """Let a model show the box around each of its meshes that has many faces."""
    mujoco = gl.import_mujoco()
    for geom in np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_MESH):
        if model.mesh_facenum[model.geom_dataid[geom]] < FACES:
            continue
        offset = np.empty(3)
        mujoco.mju_rotVecQuat(offset, model.geom_aabb[geom, :3].copy(), model.geom_quat[geom].copy())
        model.geom_pos[geom] += offset
        moved(model, int(geom))
        model.geom_size[geom] = model.geom_aabb[geom, 3:]
        model.geom_type[geom] = mujoco.mjtGeom.mjGEOM_BOX
        model.geom_dataid[geom] = -1


def own_picture(env: Any) -> Any:
    """What an environment renders, with the OpenGL context of its own in place of whatever was used last.

    Gymnasium makes a context for each instance and takes it for granted that no other is used.
    """
    for viewer in _viewers(env):
        viewer.make_context_current()
    return env.render()


def close(env: Any) -> None:
    """Close an environment. What its viewer has in its OpenGL context is freed there: left to the garbage collector it
    would be freed in the context that is used then, where the same numbers name what another instance draws into."""
    for viewer in _viewers(env):
        viewer.make_context_current()
        viewer.con.free()
    env.close()


def _viewers(env: Any) -> list[Any]:
    """The viewers of Gymnasium's renderer of MuJoCo models that draw without a window."""
    held = getattr(getattr(env.unwrapped, "mujoco_renderer", None), "_viewers", None)
    found = held.values() if isinstance(held, dict) else ()
    return [viewer for viewer in found if hasattr(viewer, "make_context_current") and hasattr(viewer, "con")]


def checked(name: str, picture: Any) -> np.ndarray:
    """What an environment gave for a picture.

    Raises:
        ConfigError: it gave none.
        SimulatorError: it is not uint8 `[h, w, 3]`, or has no pixels.
    """
    if picture is None:
        raise no_pictures(name, "its render() gave None")
    fits = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3 and picture.size > 0
    if not fits or picture.dtype != np.uint8:
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
