"""Lean off-screen rendering of a MuJoCo model on a CPU.

A `ModelRenderer` draws from a model of its own, in which what is only for show can be changed without touching the
physics; poses are computed there again from qpos and mocap poses. All renderers of a process share one OpenGL context.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ript.core.errors import ConfigError, SimulatorError, UnknownNameError
from ript.sims.mujoco import gl

Arm = Literal["boxes", "mesh", "hidden"]
ARMS: tuple[Arm, ...] = ("boxes", "mesh", "hidden")
Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraView:
    """Where a picture is taken from: a free-standing camera, or one of the model's own with changes.

    Attributes:
        position: metres; None keeps the model camera's.
        target: the point looked at; for free-standing cameras.
        fovy: vertical field of view, degrees; None keeps the model camera's.
        base: name of a camera of the model, or None for a free-standing one (which needs the other three).
        flip: reverse the order of rows. Some cameras of Meta-World stand on their heads; papers flip their pictures,
            which gives an upright but mirrored one.
    """

    position: Vector | None = None
    target: Vector | None = None
    fovy: float | None = None
    base: str | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        free = (self.position, self.target, self.fovy)
        if self.base is None and any(x is None for x in free):
            raise ConfigError(
                "a free-standing camera needs position, target and fovy; a camera of the model needs base"
            )
        if self.base is not None and self.target is not None:
            raise ConfigError(f"camera {self.base!r} of the model keeps its direction: target must be left out")


def image_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    if not (1 <= height <= 4096 and 1 <= width <= 4096):
        raise ConfigError(f"image size: expected 1..4096 pixels, got {size}")
    return int(height), int(width)


def lean_model(xml_path: str, model: Any, arm: Arm, bodies: Collection[int], min_faces: int = 300) -> Any:
    """A model to draw from, with the meshes of an arm replaced by the boxes around them, or left out.

    Args:
        xml_path: file that `model` was compiled from.
        model: the physics model; it is not changed.
        arm: "mesh" gives a plain copy.
        bodies: ids of the arm's bodies.
        min_faces: meshes with fewer faces stay as they are.

    Returns:
        A model with the bodies, joints and sites of `model`; geoms may differ in shape.
    """
    mujoco = gl.import_mujoco()
    if arm == "mesh":
        return copy.copy(model)
    spec = mujoco.MjSpec.from_file(xml_path)
    for i, geom in enumerate(spec.geoms):
        if model.geom_type[i] != mujoco.mjtGeom.mjGEOM_MESH or int(model.geom_bodyid[i]) not in bodies:
            continue
        if model.mesh_facenum[model.geom_dataid[i]] < min_faces:
            continue
        centre, half_size = model.geom_aabb[i, :3], model.geom_aabb[i, 3:]
        offset = np.empty(3)
        mujoco.mju_rotVecQuat(offset, centre, model.geom_quat[i])
        geom.type, geom.meshname = mujoco.mjtGeom.mjGEOM_BOX, ""
        geom.pos, geom.quat, geom.size = model.geom_pos[i] + offset, model.geom_quat[i], half_size
        if arm == "hidden":
            geom.material, geom.rgba = "", (0.0, 0.0, 0.0, 0.0)
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name not in used:
            mesh.delete()
    lean = spec.compile()
    kept, expected = ((m.nq, m.nbody, m.nsite) for m in (lean, model))
    if kept != expected:
        raise SimulatorError(f"the lean model has {kept} positions, bodies and sites, the stock model {expected}")
    return lean


def _cheapen(model: Any, size: tuple[int, int], *, coarse: bool) -> None:
    """Set what MuJoCo reads when it makes a rendering context. Shadow maps alone would take 64 MB.

    Planes become flat boxes with the same upper side: MuJoCo draws a plane as a fine grid, which took half of a frame.
    """
    mujoco = gl.import_mujoco()
    finite = (model.geom_size[:, 0] > 0) & (model.geom_size[:, 1] > 0)
    for plane in np.flatnonzero(finite & (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)):
        model.geom_type[plane] = mujoco.mjtGeom.mjGEOM_BOX
        up = np.empty(3)
        mujoco.mju_rotVecQuat(up, np.array([0.0, 0.0, 1.0]), model.geom_quat[plane])
        model.geom_pos[plane] -= up * model.geom_size[plane, 2]
        moved(model, int(plane))
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    model.vis.global_.offheight, model.vis.global_.offwidth = size
    if coarse:  # facets of boxes, cylinders and spheres
        model.vis.quality.numquads, model.vis.quality.numslices, model.vis.quality.numstacks = 1, 12, 6


def moved(model: Any, geom: int) -> None:
    """Let MuJoCo see that a geom has another place than it was compiled with.

    One whose frame was its body's then (or its body's inertial frame's) is placed there whatever its own place says.
    """
    same = gl.import_mujoco().mjtSameFrame
    rotated = {same.mjSAMEFRAME_BODY: same.mjSAMEFRAME_BODYROT, same.mjSAMEFRAME_INERTIA: same.mjSAMEFRAME_INERTIAROT}
    kind = same(int(model.geom_sameframe[geom]))
    model.geom_sameframe[geom] = rotated.get(kind, kind)


def descendants(model: Any, root: str) -> set[int]:
    """Ids of a body and of all bodies attached to it."""
    found = {model.body(root).id}
    for body in range(model.nbody):  # parents come before their children
        if int(model.body_parentid[body]) in found:
            found.add(body)
    return found


class ModelRenderer:
    """Draws one model from given views, without shadows, reflections and multisampling.

    Args:
        model: a model for this renderer alone (see `lean_model`).
        views: camera name -> view.
        size: (height, width).
        coarse: also without sky and haze, and with fewer facets on round shapes.

    Raises:
        RendererMissing: no OpenGL renderer could be started.
        UnknownNameError: a view's base camera is not in the model.
    """

    def __init__(
        self,
        model: Any,
        views: Mapping[str, CameraView],
        size: tuple[int, int],
        *,
        coarse: bool,
    ):
        mujoco = self._mujoco = gl.import_mujoco()
        gl.make_current()
        self.model = model
        self.data = mujoco.MjData(self.model)
        self.height, self.width = size
        _cheapen(self.model, size, coarse=coarse)
        self._cameras = {name: self._camera(view) for name, view in views.items()}
        self._views = dict(views)
        centred = (mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM, mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODYCOM)
        self._follows = bool(np.isin([*model.cam_mode, *model.light_mode], centred).any())
        self._option, self._perturb = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._scene = mujoco.MjvScene(self.model, maxgeom=1000)
        off = ["mjRND_SHADOW", "mjRND_REFLECTION", *(["mjRND_SKYBOX", "mjRND_HAZE"] if coarse else [])]
        for flag in off:
            self._scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        try:
            self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_50)
        except mujoco.FatalError as error:
            raise gl.renderer_missing(error) from error
        self._rectangle = mujoco.MjrRect(0, 0, self.width, self.height)
        self._pixels = np.empty((self.height, self.width, 3), np.uint8)

    def _camera(self, view: CameraView) -> Any:
        mujoco = self._mujoco
        camera = mujoco.MjvCamera()
        if view.base is None:
            assert view.position is not None and view.target is not None
            forward = np.subtract(view.target, view.position)
            camera.type = mujoco.mjtCamera.mjCAMERA_FREE
            camera.lookat[:] = view.target
            camera.distance = float(np.linalg.norm(forward))
            camera.azimuth = math.degrees(math.atan2(forward[1], forward[0]))
            camera.elevation = math.degrees(math.asin(forward[2] / camera.distance))
            return camera
        names = [self.model.cam(i).name for i in range(self.model.ncam)]
        if view.base not in names:
            raise UnknownNameError("camera", view.base, names)
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = names.index(view.base)
        return camera

    def draw(self, data: Any, body_pos: np.ndarray, site_pos: np.ndarray) -> dict[str, np.ndarray]:
        """One picture a view: uint8 `[height, width, 3]`, upright.

        Args:
            data: qpos and mocap poses are read from it.
            body_pos, site_pos: positions that replace the model's.
        """
        mujoco, model, own = self._mujoco, self.model, self.data
        model.body_pos[:], model.site_pos[:] = body_pos, site_pos
        own.qpos[:], own.mocap_pos[:], own.mocap_quat[:] = data.qpos, data.mocap_pos, data.mocap_quat
        mujoco.mj_kinematics(model, own)
        if self._follows:
            mujoco.mj_comPos(model, own)
        if model.ntendon:
            mujoco.mj_tendon(model, own)
        gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        return {name: self._draw_view(self._views[name], camera) for name, camera in self._cameras.items()}

    def _draw_view(self, view: CameraView, camera: Any) -> np.ndarray:
        mujoco, model, fixed = self._mujoco, self.model, camera.fixedcamid
        kept = (model.cam_pos[fixed].copy(), model.cam_fovy[fixed]) if view.base is not None else None
        if view.base is None:
            model.vis.global_.fovy = view.fovy
        elif view.position is not None:
            model.cam_pos[fixed] = view.position
        if view.base is not None and view.fovy is not None:
            model.cam_fovy[fixed] = view.fovy
        mujoco.mj_camlight(model, self.data)
        mujoco.mjv_updateScene(
            model, self.data, self._option, self._perturb, camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        if kept is not None:  # two views may share a camera of the model
            model.cam_pos[fixed], model.cam_fovy[fixed] = kept
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels.copy() if view.flip else self._pixels[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free what the renderer holds in the OpenGL context."""
        if self._context is not None:
            gl.make_current()
            self._context.free()
            self._context = None


def describe(view: CameraView) -> dict[str, object]:
    """A view as plain values, without what is not set."""
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in asdict(view).items() if v is not None and v is not False
    }
