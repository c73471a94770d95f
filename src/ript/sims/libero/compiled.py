"""The models of a scene: one for physics, without all that is only seen, and one for fast pictures.

All have the bodies, joints, sites, cameras and lights of the stock model, in its order. The stock model has 284 MB,
most of them textures and shapes that nothing collides with; that for physics has 3, that for fast pictures 17.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ript.core.errors import SimulatorError
from ript.sims.libero.meshes import Mesh, simplified
from ript.sims.mujoco.gl import import_mujoco

TRIANGLES = 400
"""Triangles of a part of the robot in fast pictures. The stock model has 300,000, that for fast pictures 25,000."""
OBJECT_TRIANGLES = 1500
"""Triangles of another mesh; bowls and plates have two thin sides, which meet in fewer."""
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
SPECK = 1e-3 * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
SPECK_FACES = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
"""A tetrahedron, metres."""


def physics_model(xml: str, stock: Any) -> Any:
    """The stock model without textures and without the shapes that are only seen, with physics equal to the last bit.

    What is only seen becomes a speck; then all that both models have is taken from the stock model, the trees of boxes
    around each body's geoms too, which decide in which order contacts are found.

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
    colliding = {geom.meshname for geom in spec.geoms if geom.group != VISIBLE}
    for mesh in spec.meshes:
        if mesh.name not in colliding:
            _replace(mesh, Mesh(SPECK, SPECK_FACES))
    model = spec.compile()
    if not np.array_equal(model.body_bvhadr, stock.body_bvhadr):
        raise SimulatorError("the model for physics has other boxes around its bodies than the stock model")
    for name in ("meansize", "extent"):
        setattr(model.stat, name, getattr(stock.stat, name))
    boxes = int(stock.body_bvhnum.sum())  # of bodies; those of meshes follow
    for name in dir(stock):
        theirs = None if name.startswith(("_", "mesh_", "tex_")) else getattr(stock, name)
        if isinstance(theirs, np.ndarray):
            ours = getattr(model, name)
            if name.startswith("bvh_"):
                ours, theirs = ours[:boxes], theirs[:boxes]
            if ours.shape != theirs.shape:
                raise SimulatorError(f"the model for physics has {name} {ours.shape}, the stock model {theirs.shape}")
            ours[...] = theirs
    for name in colliding - {""}:
        _require_equal_meshes(model, stock, name)
    return model


def _require_equal_meshes(model: Any, stock: Any, name: str) -> None:
    """Raise `SimulatorError` unless a mesh that collides is in both models the same."""
    for array, first, count in (
        ("mesh_vert", "mesh_vertadr", "mesh_vertnum"),
        ("mesh_face", "mesh_faceadr", "mesh_facenum"),
        ("mesh_polyvertnum", "mesh_polyadr", "mesh_polynum"),
    ):
        ours, theirs = (
            getattr(m, array)[_rows(getattr(m, first), getattr(m, count), m.mesh(name).id)] for m in (model, stock)
        )
        if not np.array_equal(ours, theirs):
            raise SimulatorError(f"mesh {name} of the model for physics has another {array} than the stock model's")
    ours, theirs = (np.concatenate([m.mesh_pos[m.mesh(name).id], m.mesh_quat[m.mesh(name).id]]) for m in (model, stock))
    if not np.array_equal(ours, theirs):
        raise SimulatorError(f"mesh {name} of the model for physics lies otherwise than the stock model's")


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
    _replace(mesh, few)


def _replace(mesh: Any, by: Mesh) -> None:
    """Give a mesh of a spec another shape."""
    mesh.file, mesh.scale, mesh.refpos, mesh.refquat = "", (1, 1, 1), (0, 0, 0), (1, 0, 0, 0)
    mesh.inertia = import_mujoco().mjtMeshInertia.mjMESH_INERTIA_SHELL  # it need not be closed
    mesh.uservert, mesh.userface = by.vertices.ravel(), by.faces.ravel()
    if by.texture is not None and by.texture_faces is not None:
        mesh.usertexcoord, mesh.userfacetexcoord = by.texture.ravel(), by.texture_faces.ravel()


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
