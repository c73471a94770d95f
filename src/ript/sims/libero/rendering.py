"""Pictures of LIBERO's scenes: fast ones for policies that learn from them, and faithful ones, equal to stock's.

Faithful pictures are what the stock environment draws at default settings, to the last bit: shadows, reflections,
multisampling, all triangles. Fast ones do without, and are drawn from a model of their own (`compiled.picture_model`).
One OpenGL context draws all views, sizes and instances of a scene in one look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ript.core.errors import UnknownNameError
from ript.sims.mujoco import gl
from ript.sims.mujoco.rendering import CameraView
from ript.sims.mujoco.views import resolve_views

Look = Literal["fast", "faithful"]

CAMERAS: dict[str, CameraView] = {
    "agentview": CameraView(base="agentview"),
    "wrist": CameraView(base="robot0_eye_in_hand"),
    "agentview-stock": CameraView(base="agentview", flip=True),
    "wrist-stock": CameraView(base="robot0_eye_in_hand", flip=True),
    **{name: CameraView(base=name) for name in ("frontview", "birdview", "sideview", "galleryview")},
}
"""Views by name. "agentview" looks at the scene from the front, "wrist" from the hand. Pictures are upright, but those
of the -stock views stand upside down, their first row being the lowest, as robosuite and LIBERO's demonstrations have
them: published policies learned from such ones."""


def resolve_cameras(cameras: Mapping[str, CameraView] | Sequence[str]) -> dict[str, CameraView]:
    """Views from a mapping, or from names of `CAMERAS`; "front=wrist" is a camera named front with the wrist's view.

    Raises:
        UnknownNameError: a view that is not in `CAMERAS`.
    """
    return resolve_views(cameras, CAMERAS)


@dataclass(frozen=True, eq=False)
class Moment:
    """What a picture shows.

    Attributes:
        qpos: float64 `[nq]`.
        fixture_pos: float64 `[F, 3]`, metres, of the bodies of the scene's fixtures, in their order.
        fixture_quat: float64 `[F, 4]`, w first.
        site_rgba: float32 `[nsite, 4]`; None: as compiled, with burners off.
    """

    qpos: np.ndarray
    fixture_pos: np.ndarray
    fixture_quat: np.ndarray
    site_rgba: np.ndarray | None = None


class SceneRenderer:
    """Draws one model in one look.

    Args:
        model: a model for this renderer alone.
        look: see the module.
        fixtures: ids of the fixtures' bodies.

    Raises:
        RendererMissing: no OpenGL renderer could be started.
    """

    def __init__(self, model: Any, look: Look, fixtures: Sequence[int]):
        mujoco = self._mujoco = gl.import_mujoco()
        gl.make_current()
        self._model, self._data = model, mujoco.MjData(model)
        self._fixtures, self._site_rgba = list(fixtures), model.site_rgba.copy()
        if look == "fast":
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            model.vis.quality.numquads, model.vis.quality.numslices, model.vis.quality.numstacks = 1, 12, 6
            model.vis.global_.offwidth = model.vis.global_.offheight = 1
        self._option, self._perturb, self._camera = mujoco.MjvOption(), mujoco.MjvPerturb(), mujoco.MjvCamera()
        self._option.geomgroup[0] = 0  # what collides
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        if look == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except mujoco.FatalError as error:
            raise gl.renderer_missing(error) from error

    def draw(self, views: Mapping[str, CameraView], size: tuple[int, int], moment: Moment) -> dict[str, np.ndarray]:
        """One picture a view, which is one of the model's cameras: uint8 `[height, width, 3]`.

        Args:
            views: name -> view.
            size: (height, width), pixels.
            moment: what is to be seen.

        Raises:
            UnknownNameError: a view's camera is not in the model.
        """
        mujoco, model, data = self._mujoco, self._model, self._data
        model.body_pos[self._fixtures], model.body_quat[self._fixtures] = moment.fixture_pos, moment.fixture_quat
        model.site_rgba[:] = self._site_rgba if moment.site_rgba is None else moment.site_rgba
        data.qpos[:] = moment.qpos
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        gl.make_current()
        self._fit(size)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        return {name: self._picture(view, size) for name, view in views.items()}

    def _fit(self, size: tuple[int, int]) -> None:
        height, width = max(size[0], self._context.offHeight), max(size[1], self._context.offWidth)
        if (height, width) != (self._context.offHeight, self._context.offWidth):
            self._mujoco.mjr_resizeOffscreen(width, height, self._context)

    def _picture(self, view: CameraView, size: tuple[int, int]) -> np.ndarray:
        mujoco, model = self._mujoco, self._model
        self._camera.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, view.base)
        if self._camera.fixedcamid < 0:
            raise UnknownNameError("camera", str(view.base), [model.cam(i).name for i in range(model.ncam)])
        mujoco.mjv_updateScene(
            model, self._data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        rectangle, pixels = mujoco.MjrRect(0, 0, size[1], size[0]), np.empty((*size, 3), np.uint8)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, rectangle, self._context)
        return pixels if view.flip else pixels[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free what the renderer holds in the OpenGL context."""
        if self._context is not None:
            gl.make_current()
            self._context.free()
            self._context = None
