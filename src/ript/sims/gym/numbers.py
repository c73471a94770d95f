"""Plain values as float64 numbers and back: what an environment keeps in its attributes, and what it shows.

A value is numbers (bool, int, float, numeric arrays, random generators) in tuples, lists and dicts. Its structure is
everything else about it: types, shapes, keys, strings, and other objects by identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

EXACT = 2**53
"""Largest whole number up to which float64 holds every one."""
WORD = 2**32
_WORDS = 4
"""32-bit words of each of a PCG64 generator's two 128-bit numbers."""


class NotExact(Exception):
    """A value that float64 numbers cannot hold exactly, or an environment whose state is not in reach; says why."""


def structure(value: Any) -> Any:
    """What of a value is not numbers; values of equal structure can be made of each other's numbers."""
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return type(value)
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise NotExact(f"an array of {value.dtype}")
        return np.ndarray, value.dtype.str, value.shape
    if isinstance(value, np.random.Generator):
        if not isinstance(value.bit_generator, np.random.PCG64):
            raise NotExact(f"a random generator of kind {type(value.bit_generator).__name__}")
        return np.random.Generator
    if isinstance(value, dict):
        return type(value), tuple((key, structure(item)) for key, item in value.items())
    if isinstance(value, tuple | list):
        return type(value), tuple(structure(item) for item in value)
    if value is None or isinstance(value, str | bytes):
        return type(value), value
    return type(value), id(value)


def numbers(value: Any) -> np.ndarray:
    """The numbers of a value: float64 `[n]`.

    Raises:
        NotExact: one that float64 does not hold.
    """
    parts = [np.zeros(0), *_numbers(value)]
    return np.concatenate(parts)


def _numbers(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, bool | int | float | np.number | np.bool_ | np.ndarray):
        found = np.asarray(value)
        if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:
            raise NotExact(f"a value of {found.dtype}")
        if found.dtype.kind in "iu" and found.size and max(abs(int(found.max())), abs(int(found.min()))) > EXACT:
            raise NotExact(f"a whole number above 2^53: {found.max()}")
        yield found.ravel().astype(np.float64)
    elif isinstance(value, np.random.Generator):
        state: Any = value.bit_generator.state
        words = [state["state"][name] >> (32 * i) & (WORD - 1) for name in ("state", "inc") for i in range(_WORDS)]
        yield np.array([*words, state["has_uint32"], state["uinteger"]], np.float64)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _numbers(item)


def count(value: Any) -> int:
    """How many numbers a value has."""
    return sum(part.size for part in _numbers(value))


def rebuilt(value: Any, given: np.ndarray) -> Any:
    """A value of the structure of `value` with other numbers. Arrays, lists, dicts and generators are filled in place.

    Args:
        value: a template; its mutable parts are changed and returned.
        given: float64, as many as `value` has.
    """
    return _rebuilt(value, _Taken(given))


class _Taken:
    """Gives numbers away in order."""

    def __init__(self, given: np.ndarray):
        self._given, self._at = given, 0

    def take(self, n: int) -> np.ndarray:
        self._at += n
        return self._given[self._at - n : self._at]


def _rebuilt(value: Any, source: _Taken) -> Any:
    if isinstance(value, np.ndarray):
        value[...] = source.take(value.size).reshape(value.shape).astype(value.dtype)
        return value
    if isinstance(value, bool | int | float | np.number | np.bool_):
        return type(value)(source.take(1)[0])
    if isinstance(value, np.random.Generator):
        words = [int(word) for word in source.take(2 * _WORDS + 2)]
        wide = [sum(word << (32 * i) for i, word in enumerate(words[k : k + _WORDS])) for k in (0, _WORDS)]
        value.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": wide[0], "inc": wide[1]},
            "has_uint32": words[-2],
            "uinteger": words[-1],
        }
        return value
    if isinstance(value, dict):
        for key in value:
            value[key] = _rebuilt(value[key], source)
        return value
    if isinstance(value, list):
        value[:] = [_rebuilt(item, source) for item in value]
        return value
    if isinstance(value, tuple):
        items = [_rebuilt(item, source) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two vectors are equal to the last bit, NaN being equal to NaN."""
    return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=True))
