"""The models of a scene: physics without textures, and one for pictures with few triangles and small textures.

All have the bodies, joints, sites, cameras and lights of the stock model, in its order. That for physics is the stock
model but for its textures, which are two thirds of it and of no use there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ript.core.errors import SimulatorError
from ript.sims.libero.meshes import Mesh, simplified
from ript.sims.mujoco.gl import import_mujoco

TRIANGLES = 400
"""Of a part of the robot in fast pictures. The stock model has 300,000 in all, the one for fast pictures 25,000."""
OBJECT_TRIANGLES = 1500
"""Of another mesh; bowls and plates have two thin sides, which meet in fewer."""
ROBOT = ("robot0_", "gripper0_", "mount0_")
"""How the names of its meshes begin."""
TEXTURES = 4
"""Fast pictures have textures of so many times fewer pixels in each direction."""
LARGEST = 512
"""Pixels of a texture's width in fast pictures."""
VISIBLE = 1
"""Group of the geoms that stock LIBERO draws; those of group 0 collide."""
SETTINGS: dict[str, object] = {
    "triangles": TRIANGLES,
    "object_triangles": OBJECT_TRIANGLES,
    "textures": TEXTURES,
    "largest": LARGEST,
}
"""What the model for pictures depends on besides."""
_PLACED = ("body_pos", "body_quat", "site_rgba")
"""What the stock environment changes in its model when it is reset."""
_LOOKS = ("tex_", "mesh_polynormal")
"""Arrays of the model that physics without textures has otherwise; the polygons' normals hold NaN."""


def physics_model(xml: str, stock: Any) -> Any:
    """The stock model without its textures.

    Args:
        xml: what the stock model was compiled from.
        stock: the stock model, after a reset.

    Raises:
        SimulatorError: it came out otherwise than the stock model.
    """
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_string(xml)
    for texture in spec.textures:
        texture.file, texture.builtin = "", mujoco.mjtBuiltin.mjBUILTIN_FLAT
        texture.width = texture.height = 1
    model = _placed(spec.compile(), stock)
    for name in dir(stock):
        array = getattr(stock, name) if not name.startswith(("_", *_LOOKS)) else None
        if isinstance(array, np.ndarray) and not np.array_equal(array, getattr(model, name)):
            raise SimulatorError(f"the model without textures differs from the stock model in {name}")
    return model


def picture_model(xml: str, stock: Any) -> Any:
    """A model to draw fast pictures from: what collides is left out, and the rest has few triangles and small textures.

    Args:
        xml, stock: see `physics_model`.
    """
    mujoco = import_mujoco()
    spec = mujoco.MjSpec.from_string(xml)
    spec.compiler.boundmass = spec.compiler.boundinertia = 1e-3  # bodies without anything that is seen
    for geom in list(spec.geoms):
        if geom.group != VISIBLE:
            geom.delete()
    used = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        if mesh.name in used:
            _simplify(mesh, stock)
        else:
            mesh.delete()
    for texture in spec.textures:
        if texture.file:
            _shrink(texture, stock)
    model = _placed(spec.compile(), stock)
    kept, expected = ((m.nq, m.nbody, m.nsite, m.ncam, m.nlight) for m in (model, stock))
    if kept != expected:
        raise SimulatorError(
            f"the model for pictures has {kept} positions, bodies, sites, cameras and lights; expected {expected}"
        )
    return model


def stock_model(xml: str, physics: Any) -> Any:
    """The stock model again.

    Args:
        xml: what it was compiled from.
        physics: the stock model without its textures.
    """
    return _placed(import_mujoco().MjModel.from_xml_string(xml), physics)


def _placed(model: Any, stock: Any) -> Any:
    for name in _PLACED:
        getattr(model, name)[:] = getattr(stock, name)
    return model


def mesh_of(model: Any, number: int) -> Mesh:
    """A mesh as it was before it was compiled, which moves it to its centre of mass and its principal axes."""
    mujoco = import_mujoco()
    vertices = model.mesh_vert[_rows(model.mesh_vertadr, model.mesh_vertnum, number)].astype(np.float64)
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[number])
    vertices = vertices @ rotation.reshape(3, 3).T + model.mesh_pos[number]
    faces = _rows(model.mesh_faceadr, model.mesh_facenum, number)
    if model.mesh_texcoordadr[number] < 0:
        return Mesh(vertices, model.mesh_face[faces])
    texture = model.mesh_texcoord[_rows(model.mesh_texcoordadr, model.mesh_texcoordnum, number)]
    return Mesh(vertices, model.mesh_face[faces], texture, model.mesh_facetexcoord[faces])


def _rows(first: np.ndarray, count: np.ndarray, number: int) -> slice:
    return slice(int(first[number]), int(first[number] + count[number]))


def _simplify(mesh: Any, stock: Any) -> None:
    most = TRIANGLES if mesh.name.startswith(ROBOT) else OBJECT_TRIANGLES
    few = simplified(mesh_of(stock, stock.mesh(mesh.name).id), most)
    mesh.file, mesh.scale, mesh.refpos, mesh.refquat = "", (1, 1, 1), (0, 0, 0), (1, 0, 0, 0)
    mesh.inertia = import_mujoco().mjtMeshInertia.mjMESH_INERTIA_SHELL  # it need not be closed
    mesh.uservert, mesh.userface = few.vertices.ravel(), few.faces.ravel()
    if few.texture is not None and few.texture_faces is not None:
        mesh.usertexcoord, mesh.userfacetexcoord = few.texture.ravel(), few.texture_faces.ravel()


def _shrink(texture: Any, stock: Any) -> None:
    number = stock.tex(texture.name).id
    width, height, channels = (int(x[number]) for x in (stock.tex_width, stock.tex_height, stock.tex_nchannel))
    start = int(stock.tex_adr[number])
    sides = height // width if height % width == 0 else 1  # of a cube, one above the other
    pixels = stock.tex_data[start : start + width * height * channels].reshape(sides, height // sides, width, channels)
    data = np.concatenate([_reduced(side, max(TEXTURES, -(-width // LARGEST))) for side in pixels])
    texture.file, texture.builtin, texture.nchannel = "", import_mujoco().mjtBuiltin.mjBUILTIN_NONE, channels
    texture.height, texture.width = data.shape[:2]
    texture.data = data.tobytes()


def _reduced(pixels: np.ndarray, times: int) -> np.ndarray:
    """Means over blocks of `times` by `times` pixels; what is left over at the end is left out."""
    times = min(times, *pixels.shape[:2])
    h, w = (n // times for n in pixels.shape[:2])
    total = np.full((h, w, pixels.shape[2]), times * times // 2, np.uint32)
    for i in range(times):
        for j in range(times):
            total += pixels[i : h * times : times, j : w * times : times]
    return (total // (times * times)).astype(np.uint8)
