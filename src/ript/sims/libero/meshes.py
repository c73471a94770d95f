"""Meshes with few triangles, for pictures: the shape by quadric edge collapses, its texture kept along the seams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ript.core.errors import DependencyMissing
from ript.core.interpreter import importing

WELDS = (1e-5, 1e-3, 5e-3)
"""Metres: vertices that are nearer count as one. Meshes have copies of a vertex where texture or shading breaks. Where
edges cannot be collapsed far enough, as in a mesh of many loose parts, it is tried again with the next."""
TEXELS = 4096
"""Places of a texture that are nearer than one of so many, in each direction, count as one."""
ENOUGH = 1.5
"""Times as many triangles as asked for count as reached."""


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh.

    Attributes:
        vertices: float64 `[V, 3]`.
        faces: int32 `[F, 3]`, rows of `vertices`.
        texture: float32 `[T, 2]`, texture coordinates, or None.
        texture_faces: int32 `[F, 3]`, rows of `texture`, or None.
    """

    vertices: np.ndarray
    faces: np.ndarray
    texture: np.ndarray | None = None
    texture_faces: np.ndarray | None = None


def simplified(mesh: Mesh, most: int) -> Mesh:
    """A mesh with about `most` triangles at most, or the same one if it has no more.

    A triangle that is left was one of the mesh, whose corners have moved. A corner gets the texture of the nearest
    vertex that moved into it on the same side of a seam, so that no triangle spans one.

    Raises:
        DependencyMissing: `fast-simplification` is not installed.
    """
    if len(mesh.faces) <= ENOUGH * most:
        return mesh
    simplification = _library()
    into, kept = np.arange(len(mesh.vertices)), np.arange(len(mesh.faces))
    points, faces = mesh.vertices, mesh.faces
    for weld in WELDS:
        if len(faces) <= ENOUGH * most:
            break
        welded, first = _welded(points, weld)
        faces, still = _proper(welded[faces])
        points, into, kept = np.ascontiguousarray(points[first], np.float32), welded[into], kept[still]
        if len(faces) > most:
            *_, collapses = simplification.simplify(points, faces, target_count=most, return_collapses=True)
            points, _, moved = simplification.replay_simplification(points, faces, collapses)
            faces, still = _proper(np.asarray(moved)[faces])
            into, kept = np.asarray(moved)[into], kept[still]
    found = Mesh(np.asarray(points, np.float64), faces)
    if mesh.texture is None or mesh.texture_faces is None:
        return _compact(found)
    return _compact(Mesh(found.vertices, faces, *_textured(mesh, into, found, kept)))


def _welded(points: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """(Number of each point when near ones are one, which point each number is)."""
    _, first, number = np.unique(
        np.round(points / distance).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    return number.reshape(-1), first


def _library() -> Any:
    try:
        with importing():
            import fast_simplification
    except ImportError as error:
        raise DependencyMissing(
            f'fast-simplification cannot be imported ({error}): pip install "ript[libero]"'
        ) from error
    return fast_simplification


def _proper(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Triangles with three different corners, each once; which they were)."""
    a, b, c = faces.T
    kept = np.flatnonzero((a != b) & (b != c) & (c != a))
    _, once = np.unique(np.sort(faces[kept], axis=1), axis=0, return_index=True)
    kept = kept[np.sort(once)]
    return np.ascontiguousarray(faces[kept], np.int32), kept


def _textured(mesh: Mesh, into: np.ndarray, found: Mesh, old: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates of a simplified mesh, and its triangles' rows of them.

    Args:
        mesh: as it was.
        into: vertex of `mesh` -> vertex of `found` that it moved into.
        found: the simplified mesh.
        old: triangle of `found` -> which of `mesh` it was.
    """
    assert mesh.texture is not None and mesh.texture_faces is not None
    corners = np.column_stack([_welded(mesh.vertices, WELDS[0])[0][mesh.faces.ravel()], mesh.texture_faces.ravel()])
    spots = np.round(mesh.texture[corners[:, 1]] * TEXELS).astype(np.int64)
    _, first, number = np.unique(
        np.column_stack([corners[:, 0], spots]), axis=0, return_index=True, return_inverse=True
    )
    number = number.reshape(-1, 3)  # of the corners of each triangle: a vertex with a place in the texture
    vertex, row = mesh.faces.ravel()[first], corners[first, 1]
    target = into[vertex]
    edges = number[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    piece = _pieces(edges[target[edges[:, 0]] == target[edges[:, 1]]], len(first))  # that moved into one, together
    distance = np.linalg.norm(mesh.vertices[vertex] - found.vertices[target], axis=1)
    order = np.lexsort((distance, piece))
    pieces, nearest = np.unique(piece[order], return_index=True)
    return mesh.texture[row[order[nearest]]], np.searchsorted(pieces, piece[number[old]]).astype(np.int32)


def _pieces(edges: np.ndarray, n: int) -> np.ndarray:
    """The connected pieces of n things: for each, the smallest number in its piece."""
    label = np.arange(n)
    while True:
        new = label.copy()
        np.minimum.at(new, edges.ravel(), np.repeat(label[edges].min(axis=1), 2))
        new = new[new]
        if np.array_equal(new, label):
            return label
        label = new


def _compact(mesh: Mesh) -> Mesh:
    """Without vertices that no triangle has."""
    used, faces = np.unique(mesh.faces, return_inverse=True)
    texture, texture_faces = mesh.texture, mesh.texture_faces
    if texture is not None and texture_faces is not None:
        rows, texture_faces = np.unique(texture_faces, return_inverse=True)
        texture, texture_faces = texture[rows], texture_faces.reshape(-1, 3).astype(np.int32)
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3).astype(np.int32), texture, texture_faces)
