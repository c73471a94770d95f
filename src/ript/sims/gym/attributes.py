"""The Python side of a MuJoCo environment: the objects that it keeps things in, and what is in them.

An environment is a chain of wrappers around one object, which may hold others (a robot, a nested environment). The
attributes of all of them are taken apart: plain values belong to one instance; what is big, or no state (models,
spaces, renderers, functions), is shared; the one `MjData` is replaced by an instance's own.
"""

from __future__ import annotations

import enum
import functools
import io
import logging
import pickle
import types
from collections import OrderedDict, defaultdict, deque
from typing import Any

import numpy as np

from ript.sims.gym.numbers import NotExact

_PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), slice, range, type(...), pickle.PickleBuffer)
_CONTAINERS = (dict, list, set, frozenset, deque, OrderedDict, defaultdict)
_RANDOM = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, np.random.SeedSequence)
_INERT = (
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MappingProxyType),
    *(enum.Enum, staticmethod, classmethod, property, functools.partial, np.dtype, np.ufunc, logging.Logger),
)
_INERT_MODULES = (
    *("mujoco.", "glfw.", "OpenGL.", "numpy.", "logging.", "gymnasium.spaces.", "gymnasium.logger."),
    *("gymnasium.envs.registration.", "gymnasium.envs.mujoco.mujoco_rendering."),
)
DATA = "the simulation"
"""What stands for the `MjData` where attributes are held apart from it."""


def _owns_attributes(value: Any) -> bool:
    return hasattr(value, "__dict__") and not _inert(value)


def _inert(value: Any) -> bool:
    """Whether a value is shared by all instances: not state, or state that is taken care of elsewhere."""
    if isinstance(value, _INERT) or "cython_function" in type(value).__name__:
        return True
    return any(f"{kind.__module__}.".startswith(_INERT_MODULES) for kind in type(value).__mro__[:-1])


def _by_value(value: Any) -> bool:
    plain = isinstance(value, np.generic | tuple) or type(value) in (*_PLAIN, *_CONTAINERS)
    return plain or isinstance(value, _RANDOM)


def _foreign(array: np.ndarray) -> bool:
    """Whether an array looks into memory that no array owns, such as a simulation's."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is not None and not isinstance(array.base, bytes | bytearray | memoryview)


class Attributes:
    """The attributes of an environment's objects, put away as bytes and taken out again.

    Args:
        env: the environment, outermost wrapper first.

    Attributes:
        owners: the objects whose attributes they are.
        model, data: the environment's one `MjModel` and one `MjData`.

    Raises:
        NotExact: it keeps state in something that is not understood, or has not exactly one simulation.
    """

    def __init__(self, env: Any):
        import mujoco

        self.owners: list[Any] = []
        self._shared: list[Any] = []
        self._places: dict[int, int] = {}
        models: dict[int, Any] = {}
        datas: dict[int, Any] = {}
        waiting, seen = [env], {id(env)}
        while waiting:
            owner = waiting.pop()
            self.owners.append(owner)
            for value in _values(vars(owner)):
                if isinstance(value, mujoco.MjModel):
                    models[id(value)] = value
                elif isinstance(value, mujoco.MjData):
                    datas[id(value)] = value
                elif _owns_attributes(value) and not _by_value(value) and id(value) not in seen:
                    seen.add(id(value))
                    waiting.append(value)
        if len(models) != 1 or len(datas) != 1:
            raise NotExact(f"it has {len(models)} MuJoCo models and {len(datas)} simulations, not one of each")
        (self.model,), (self.data,) = models.values(), datas.values()
        self._owned = set(map(id, self.owners))

    def now(self) -> list[dict[str, Any]]:
        """The attributes that the owners have now; not copies."""
        return [vars(owner) for owner in self.owners]

    def use(self, attributes: list[dict[str, Any]]) -> None:
        """Give the owners these attributes: from now on they change in place."""
        for owner, own in zip(self.owners, attributes, strict=True):
            object.__setattr__(owner, "__dict__", own)

    def put_away(self, attributes: list[dict[str, Any]], data: Any) -> bytes:
        """Attributes of an instance whose simulation is `data`, as bytes for `take_out` of this process alone.

        Raises:
            NotExact: something in them is not understood.
        """
        try:
            return self._pickled(attributes, data)
        except Exception:
            for own in attributes:
                for name, value in own.items():
                    self._try(name, value, data)
            raise

    def _try(self, name: str, value: Any, data: Any) -> None:
        try:
            self._pickled(value, data)
        except NotExact as error:
            raise NotExact(f"its attribute {name!r} holds {error}") from None
        except Exception as error:  # of any class's own way to be pickled
            raise NotExact(f"its attribute {name!r} cannot be copied: {error}") from error

    def _pickled(self, value: Any, data: Any) -> bytes:
        buffer = io.BytesIO()
        pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.persistent_id = functools.partial(self._reference, data)  # type: ignore[method-assign]
        pickler.dump(value)
        return buffer.getvalue()

    def take_out(self, stored: bytes, data: Any) -> list[dict[str, Any]]:
        """New copies of attributes, for an instance whose simulation is `data`."""
        unpickler = pickle.Unpickler(io.BytesIO(stored))
        unpickler.persistent_load = lambda place: data if place == DATA else self._shared[place]  # type: ignore[method-assign]
        return unpickler.load()

    def _reference(self, data: Any, value: Any) -> int | str | None:
        """What stands for a shared value in stored attributes; None: it is stored itself."""
        if value is data:
            return DATA
        if type(value) is np.ndarray:
            if value.dtype == object or not _foreign(value):
                return None
            raise NotExact("a view into the simulation's memory")
        if _by_value(value):
            return None
        if id(value) not in self._owned and not _inert(value):
            raise NotExact(f"a {type(value).__module__}.{type(value).__qualname__}, which may have a state of its own")
        place = self._places.setdefault(id(value), len(self._shared))
        if place == len(self._shared):
            self._shared.append(value)
        return place


def _values(held: Any) -> list[Any]:
    """Everything in nested containers."""
    found, waiting = [], [held]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, tuple | list | set | frozenset | deque):
            waiting += value
        else:
            found.append(value)
    return found
