"""Gymnasium environments by name: found, built, and asked what they show, take and call a success.

A name is an id that Gymnasium knows (`FetchReach-v4`), or `PACKAGE:ID`, where PACKAGE is a module that registers it
when it is imported; it may lie in the current folder.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ript.core import interpreter, user_code
from ript.core.errors import ConfigError, DependencyMissing, RiptError, SimulatorError, UnknownNameError
from ript.core.memory import translated
from ript.sims.mujoco import gl

INSTALL = 'pip install "ript[gym]"'
OBSERVATION = "observation"
"""Name of an observation that is one array."""
PROPRIO_KEYS = (OBSERVATION, "agent_pos", "state", "proprio")
"""Keys of an observation that are taken for proprioception, where none is named."""

REGISTERED_BY = {
    "gymnasium_robotics": ("Fetch", "Hand", "Adroit", "FrankaKitchen", "PointMaze", "AntMaze"),
}
"""Packages that are imported without being named -> how the ids begin that they register."""
REMEDIES = {"gymnasium_robotics": 'pip install "ript[robotics]"'}


def import_gymnasium() -> Any:
    """The `gymnasium` package, with MuJoCo's OpenGL chosen first where MuJoCo is installed.

    Raises:
        DependencyMissing: it is not installed.
    """
    if importlib.util.find_spec("mujoco") is not None:
        gl.import_mujoco()
    with _quiet():
        try:
            return importlib.import_module("gymnasium")
        except ModuleNotFoundError as error:
            raise DependencyMissing(f"gymnasium is not installed ({error}): {INSTALL}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Packages and environments warn of older versions and of each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find_spec(name: str) -> Any:
    """Gymnasium's own record of an environment; the package that registers it is imported.

    Raises:
        UnknownNameError: no such environment; the nearest are suggested.
        DependencyMissing: gymnasium or the package is not installed, or cannot be imported.
    """
    gymnasium = import_gymnasium()
    package, _, id_ = name.rpartition(":")
    if package:
        user_code.require_module(package, f"gym/{name}")
        _import(package, name)
    elif id_ not in gymnasium.registry:
        _import_what_registers(id_)
    if id_ in gymnasium.registry:
        return gymnasium.registry[id_]
    raise UnknownNameError(
        "Gymnasium environment" + (f" of {package}" if package else " (of a package: PACKAGE:ID)"),
        id_,
        gymnasium.registry,
    )


def modules_of(name: str) -> tuple[str, ...]:
    """The modules of an environment: the package that is named, and where its class is."""
    package, _, _ = name.rpartition(":")
    entry: Any = find_spec(name).entry_point
    where = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
    if where:
        with _quiet(), contextlib.suppress(Exception):  # what cannot be imported says so when it is built
            importlib.import_module(where)
    return tuple(filter(None, (package, where)))


def _import_what_registers(id_: str) -> None:
    """Import the package that is known to register an id, or bears the name before its slash, if that is there."""
    namespace = id_.partition("/")[0] if "/" in id_ else None
    for package, beginnings in REGISTERED_BY.items():
        if id_.startswith(beginnings):
            _import(package, id_)
    if namespace and namespace.isidentifier() and importlib.util.find_spec(namespace) is not None:
        _import(namespace, id_)


def _import(package: str, name: str) -> None:
    here = interpreter.folder()
    if here and here not in sys.path:
        sys.path.append(here)
    advertises = package in REGISTERED_BY  # such packages print notices of their makers to stderr
    try:
        stderr = contextlib.redirect_stderr(io.StringIO() if advertises else sys.stderr)
        with _quiet(), interpreter.importing(), interpreter.staying(), stderr:
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and (package == error.name or package.startswith(f"{error.name}.")):
            remedy = REMEDIES.get(package, f"install it, or start `ript` in the folder of {package}.py")
            raise DependencyMissing(f"{name}: there is no package {package} here: {remedy}") from error
        raise DependencyMissing(f"{name}: package {package} needs {error.name}, which is not installed") from error
    except RiptError:
        raise
    except Exception as error:  # whatever a package raises when it is imported
        raise DependencyMissing(f"{name}: package {package} cannot be imported: {_line(error)}") from error


def in_one_form(arguments: str) -> str:
    """JSON of keyword arguments, written in one way whatever its spaces and order; as it is where it is none."""
    try:
        given = json.loads(arguments or "{}")
    except ValueError:
        return arguments
    return (json.dumps(given, sort_keys=True) if given else "") if isinstance(given, dict) else arguments


def build(name: str, arguments: Mapping[str, Any], *, render: bool) -> Any:
    """A newly built environment without a time limit.

    Args:
        name: of the environment.
        arguments: keyword arguments of its own.
        render: it shall make its own pictures.

    Raises:
        ConfigError: it does not take these arguments, or makes no pictures of its own.
        SimulatorError: it raised.
    """
    spec, gymnasium = find_spec(name), import_gymnasium()
    mode = {"render_mode": "rgb_array"} if render else {}

    def ours(error: BaseException) -> RiptError:
        refused = isinstance(error, TypeError) and "unexpected keyword argument" in str(error)
        if refused and "'render_mode'" in str(error):
            return no_pictures(name, "it takes no render_mode")
        if refused:
            return ConfigError(f"sim.arguments: gym/{name} refuses them: {_line(error)}")
        missing = isinstance(error, ImportError) or type(error).__name__ == "DependencyNotInstalled"
        kind = DependencyMissing if missing else SimulatorError
        return kind(f"gym/{name} cannot be built: {_line(error)}")

    with translated(ours), _quiet():
        env = gymnasium.make(spec, max_episode_steps=-1, disable_env_checker=True, **mode, **arguments)
    modes = (env.metadata or {}).get("render_modes", ["rgb_array"])
    if render and "rgb_array" not in modes:
        raise no_pictures(name, f"its render modes are {', '.join(map(str, modes)) or 'none'}")
    return env


def no_pictures(name: str, why: str) -> ConfigError:
    """The error to raise where an environment does not make pictures that a policy could see."""
    return ConfigError(
        f"sim.cameras: gym/{name} makes no pictures of its own ({why}); expected uint8 [h, w, 3] of render() with "
        'render_mode="rgb_array". Give it that, name a key of its observation that is a picture '
        "(--sim.cameras=KEY), or for a MuJoCo environment a camera or a view"
    )


@contextlib.contextmanager
def calling(where: Callable[[], str], seed: int = 0) -> Iterator[None]:
    """What an environment raises becomes a `SimulatorError` with an address; its warnings are not shown.

    Args:
        where: gives the address, asked for when the environment has raised.
        seed: that a reset is given.
    """

    def ours(error: BaseException) -> SimulatorError:
        why = f"{where()}: the environment raised {_line(error)}"
        if seed >= 2**32:  # which some generators do not take, and then speak of a seed that nobody gave
            why += f" (its reset was given the seed {seed}; with --seed below 256 those of all states are below 2^32)"
        return SimulatorError(why)

    with translated(ours), _quiet():
        yield


STEP = ("observation", "reward", "terminated", "truncated", "info")
"""What a step returns."""


def returned(key: str, method: str, result: Any, *names: str) -> tuple[Any, ...]:
    """What a method of the environment of task `key` returned, which has to be these things.

    Raises:
        SimulatorError: it is something else, as with environments of Gym's old interface.
    """
    if not isinstance(result, tuple) or len(result) != len(names):
        what = f"{len(result)} values" if isinstance(result, tuple) else f"one {type(result).__name__}"
        raise SimulatorError(
            f"{key}: {method} returned {what}; expected ({', '.join(names)}), as Gymnasium has it: an environment of "
            "Gym's old interface needs a wrapper, such as shimmy's"
        )
    return result


def stepped(where: str, result: Any) -> tuple[Any, float, Any, Any, Mapping[str, Any]]:
    """What a step returned, its reward as one number.

    Args:
        where: address, for errors.
        result: what it returned.

    Raises:
        SimulatorError: it is something else.
    """
    observation, reward, terminated, truncated, info = returned(where, "step", result, *STEP)
    if not isinstance(info, Mapping):
        raise SimulatorError(f"{where}: the info that step returned is {_described(info)}; expected a dict")
    return observation, reward_of(where, reward), terminated, truncated, info


def reward_of(where: str, reward: Any) -> float:
    """A reward as a number; an array that holds one number is one.

    Raises:
        SimulatorError: it is something else.
    """
    found = np.asarray(reward) if isinstance(reward, int | float | np.ndarray | np.generic) else None
    if found is None or found.size != 1 or found.dtype.kind not in "biuf":
        raise SimulatorError(
            f"{where}: the reward that step returned is {_described(reward)}; expected a number: make one of several "
            "in a wrapper of the environment"
        )
    return float(found.reshape(()))


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else repr(value)[:60]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")


ENDLESS = 1e30
"""Bounds of actions from which on a space has none: older environments write the largest number of float32."""


class ActionScale:
    """Actions in [-1, 1] as the environment takes them, and back.

    Args:
        key: of the task, for errors.
        space: the environment's action space.

    Attributes:
        dim: how many numbers an action has.

    Raises:
        ConfigError: it is not a bounded Box.
    """

    def __init__(self, key: str, space: Any):
        box = import_gymnasium().spaces.Box
        if not isinstance(space, box):
            raise ConfigError(
                f"{key}: its action space is {space}; policies here act with numbers in [-1, 1], which a bounded Box "
                "takes. Make one Box of several in a wrapper of the environment; discrete actions cannot be practised"
            )
        if space.dtype.kind not in "fiu":
            raise ConfigError(f"{key}: its action space is {space}, of {space.dtype}; expected numbers")
        if not (np.abs([space.low, space.high]) < ENDLESS).all():
            raise ConfigError(
                f"{key}: its action space is {space}, which is infinite; [-1, 1] can only be stretched to a bounded "
                "Box: give it one, with gymnasium.wrappers.TransformAction for example"
            )
        if space.low.size == 0 or (space.low >= space.high).any():
            raise ConfigError(f"{key}: its action space is {space}; expected an array with low below high everywhere")
        self.shape, self._dtype, self.dim = space.shape, space.dtype, int(space.low.size)
        self._low, self._high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
        self._same = bool((self._low == -1).all() and (self._high == 1).all()) and self._dtype.kind == "f"

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """float32 `[dim]` in [-1, 1] -> of the environment's shape, type and units."""
        if self._same:
            return np.clip(action, -1, 1).astype(self._dtype).reshape(self.shape)
        scaled = self._low + (np.clip(action, -1, 1).astype(np.float64) + 1) / 2 * (self._high - self._low)
        scaled = np.rint(scaled) if self._dtype.kind in "iu" else scaled
        return np.clip(scaled, self._low, self._high).astype(self._dtype).reshape(self.shape)

    def from_environment(self, action: Any) -> np.ndarray:
        """An action in the environment's units -> float32 `[dim]`, clipped to [-1, 1]."""
        flat = np.asarray(action, np.float64).ravel()
        return np.clip((flat - self._low) / (self._high - self._low) * 2 - 1, -1, 1).astype(np.float32)


def parts(observation: Any, name: str = "") -> dict[str, np.ndarray]:
    """The arrays of an observation by name: keys of nested dicts are joined by dots; one array is "observation"."""
    if isinstance(observation, Mapping):
        found: dict[str, np.ndarray] = {}
        for key, value in observation.items():
            found |= parts(value, f"{name}.{key}" if name else str(key))
        return found
    if isinstance(observation, tuple | list):
        return parts(dict(enumerate(observation)), name)
    return {name or OBSERVATION: np.asarray(observation)}


def is_picture(array: Any) -> bool:
    """Whether an array, or a space of arrays, is of pictures: uint8 `[h, w, 3]`."""
    return array.dtype == np.uint8 and len(array.shape) == 3 and array.shape[2] == 3


def picture_keys(space: Any, name: str = "") -> list[str]:
    """Names of the pictures among the parts of a space's observations."""
    spaces = import_gymnasium().spaces
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [key for k, part in inner for key in picture_keys(part, f"{name}.{k}" if name else str(k))]
    return [name or OBSERVATION] if isinstance(space, spaces.Box) and is_picture(space) else []


@dataclass(frozen=True)
class Taken:
    """Numbers of an observation that are taken for something: a key, or a range of its numbers.

    Attributes:
        word: as it is named: KEY, KEY[i], KEY[a:b].
        key: of `parts`.
        where: of the flattened array.
    """

    word: str
    key: str
    where: slice

    @staticmethod
    def of(words: tuple[str, ...], seen: Mapping[str, np.ndarray], field: str) -> tuple[Taken, ...]:
        """What these words name in an observation.

        Raises:
            UnknownNameError: a key that it does not have.
            ConfigError: numbers that it does not have, or a picture.
        """
        return tuple(Taken._one(word, seen, field) for word in words)

    @staticmethod
    def _one(word: str, seen: Mapping[str, np.ndarray], field: str) -> Taken:
        match = re.fullmatch(r"(?P<key>.+?)(?:\[(?P<a>\d*)(?P<colon>:?)(?P<b>\d*)\])?", word)
        key = match["key"] if match else word
        if match is None or key not in seen:
            raise UnknownNameError(f"key of the observation (sim.{field})", key, seen)
        if is_picture(seen[key]) or seen[key].dtype.kind not in "biuf":
            raise ConfigError(f"sim.{field}: {key} is {seen[key].dtype} {seen[key].shape}, not a vector of numbers")
        begin = int(match["a"] or 0)
        end = int(match["b"] or seen[key].size) if match["colon"] or match["a"] is None else begin + 1
        if not 0 <= begin < end <= seen[key].size:
            raise ConfigError(f"sim.{field}: {word}: {key} has {seen[key].size} numbers")
        return Taken(word, key, slice(begin, end))

    @property
    def size(self) -> int:
        return self.where.stop - self.where.start


def taken(what: tuple[Taken, ...], seen: Mapping[str, np.ndarray]) -> np.ndarray:
    """These numbers of an observation, one after the other: float32 `[n]`."""
    found = [np.asarray(seen[one.key], np.float64).ravel()[one.where] for one in what]
    return np.concatenate([np.zeros(0), *found]).astype(np.float32)


def default_proprio(seen: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """What is taken for proprioception where nothing is named: the vector, the usual key, or all that are vectors."""
    vectors = [name for name, value in seen.items() if not is_picture(value) and value.dtype.kind in "biuf"]
    usual = [name for name in PROPRIO_KEYS if name in vectors]
    return (usual[0],) if usual else tuple(vectors)


def instruction_of(name: str) -> str:
    """A sentence from an id: FetchPickAndPlace-v4 -> "Fetch pick and place."."""
    bare = re.sub(r"-v\d+$", "", name.rpartition(":")[2].rpartition("/")[2])
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", bare) or [bare]
    return " ".join([words[0], *(word.lower() for word in words[1:])]) + "."
