"""Everything in a MuJoCo model that an environment could change, watched at the price of comparing some memory.

A model's arrays lie in memory one after the other, so that hundreds of them are compared, kept and put back as a few
blocks of bytes. Its options (`opt`, `stat`, `vis`) are numbers and small arrays of their own.
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGE = 2**15
"""Bytes; larger arrays of a model are meshes and textures, which are looked at once an episode."""
_PARTS = ("opt", "stat", *(f"vis.{part}" for part in ("global_", "headlight", "map", "quality", "rgba", "scale")))
_NUMBERS = "biuf"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What was in a model's arrays and options at one time.

    Attributes:
        small, large: bytes of each block of arrays.
        options: float64 `[n]`.
        head: bytes of the model's own structure, in which the options lie.
    """

    small: tuple[np.ndarray, ...]
    large: tuple[np.ndarray, ...]
    options: np.ndarray
    head: np.ndarray


class Fields:
    """The arrays and options of a model, by name: `geom_rgba`, `opt.timestep`, `vis.headlight.diffuse`.

    Args:
        model: an `MjModel`; what is in it is read and written in place.

    Attributes:
        layout: equal for models of which one's snapshot can be another's.
    """

    def __init__(self, model: Any):
        self.model = model
        self._arrays = _arrays(model)
        small, large = (_blocks(self._arrays, of_large) for of_large in (False, True))
        self._small, self._large = small, large
        parts = {name: operator.attrgetter(name)(model) for name in _PARTS}
        own = {f"{part}.{name}": getattr(held, name) for part, held in parts.items() for name in _public(held)}
        self._vectors = {name: value for name, value in own.items() if isinstance(value, np.ndarray) and value.size}
        scalars = [name for name, value in own.items() if isinstance(value, int | float)]
        self._scalars = operator.attrgetter(*scalars)
        self._owners = {name: (parts[name.rpartition(".")[0]], name.rpartition(".")[2]) for name in scalars}
        sizes = [value.size for value in self._vectors.values()]
        self._options = np.array([*self._vectors, *scalars])
        self._head = _head(model)
        self._ends = np.cumsum([*sizes, *(1 for _ in scalars)])
        self.layout = tuple((block.names, block.starts, block.bytes.size) for block in (*small, *large))

    # ------------------------------------------------------------------------------------------------ as a whole

    def _option_numbers(self) -> np.ndarray:
        return np.concatenate([*(value.ravel() for value in self._vectors.values()), self._scalars(self.model)])

    def _head_is(self, snapshot: Snapshot) -> bool:
        """Whether no option can have changed; asking each takes ten times as long."""
        return self._head.size > 0 and np.array_equal(self._head, snapshot.head)

    def snapshot(self, like: Snapshot | None = None, *, whole: bool = False) -> Snapshot:
        """What is in the model now; of the large arrays where the whole of it is asked for.

        Args:
            like: an earlier one: its options need not be asked for again where they cannot have changed.
            whole: with the large arrays.
        """
        return Snapshot(
            tuple(block.bytes.copy() for block in self._small),
            tuple(block.bytes.copy() for block in self._large) if whole else (),
            like.options if like is not None and self._head_is(like) else self._option_numbers(),
            self._head.copy(),
        )

    def changed(self, since: Snapshot) -> set[str]:
        """Names of what is not as it was in a snapshot, but for large arrays."""
        found = {name for block, then in zip(self._small, since.small, strict=True) for name in block.changed(then)}
        if not self._head_is(since):
            now = self._option_numbers()
            different = np.flatnonzero((now != since.options) & ~(np.isnan(now) & np.isnan(since.options)))
            found |= set(self._options[np.searchsorted(self._ends, different, side="right")].tolist())
        return found

    def changed_large(self, since: Snapshot) -> set[str]:
        """Names of large arrays that are not as they were in a snapshot of the whole."""
        return {name for block, then in zip(self._large, since.large, strict=True) for name in block.changed(then)}

    def restore(self, snapshot: Snapshot) -> None:
        """Make the model what it was, but for large arrays."""
        for block, then in zip(self._small, snapshot.small, strict=True):
            block.bytes[...] = then
        if not self._head_is(snapshot):
            for name in self._options.tolist():
                self.set(name, self._option(name, snapshot))

    def restore_large(self, snapshot: Snapshot) -> None:
        """Make the large arrays what they were in a snapshot of the whole."""
        for block, then in zip(self._large, snapshot.large, strict=True):
            if not np.array_equal(_words(block.bytes), _words(then)):
                block.bytes[...] = then

    # ------------------------------------------------------------------------------------------------ one by one

    def value(self, name: str) -> np.ndarray:
        """A copy of an array, or an option's number as an array without axes."""
        if name in self._arrays:
            return self._arrays[name].copy()
        if name in self._vectors:
            return self._vectors[name].copy()
        owner, attribute = self._owners[name]
        return np.array(getattr(owner, attribute))

    def then(self, name: str, snapshot: Snapshot) -> np.ndarray:
        """The same as it was in a snapshot; of a large array only where that is of the whole."""
        if name not in self._arrays:
            return self._option(name, snapshot)
        array = self._arrays[name]
        blocks = (*zip(self._small, snapshot.small, strict=True), *zip(self._large, snapshot.large, strict=False))
        block, held = next((block, then) for block, then in blocks if name in block.names)
        start = block.starts[block.names.index(name)]
        return held[start : start + array.nbytes].view(array.dtype).reshape(array.shape)

    def _option(self, name: str, snapshot: Snapshot) -> np.ndarray:
        place = self._options.tolist().index(name)
        numbers = snapshot.options[self._ends[place - 1] if place else 0 : self._ends[place]]
        return numbers.reshape(self.value(name).shape)

    def set(self, name: str, value: np.ndarray) -> None:
        """Write an array or an option."""
        if name in self._owners:
            owner, attribute = self._owners[name]
            setattr(owner, attribute, type(getattr(owner, attribute))(value))
        else:
            (self._arrays[name] if name in self._arrays else self._vectors[name])[...] = value


def _public(held: Any) -> list[str]:
    return [name for name in dir(held) if not name.startswith("_")]


def _arrays(model: Any) -> dict[str, np.ndarray]:
    """The model's arrays of numbers in the order of their addresses; one that has two names by its first."""
    found: dict[int, tuple[str, np.ndarray]] = {}
    for name in _public(model):
        value = getattr(model, name)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in _NUMBERS:
            found.setdefault(value.ctypes.data, (name, value))
    return dict(found[address] for address in sorted(found))


def _head(model: Any) -> np.ndarray:
    """The beginning of MuJoCo's structure, up to its last option: sizes and options, none of which is an address.

    Empty where it is not as this version of MuJoCo has it.
    """
    begin, last = getattr(model, "_address", 0), model.stat.center
    size = _end(last) - begin
    if not 0 < size < LARGE or not 0 <= model.opt.gravity.ctypes.data - begin < size:
        return np.zeros(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(begin))


@dataclass(frozen=True, eq=False)
class _Block:
    """Arrays that lie one after the other in memory.

    Attributes:
        names, starts, ends: of its arrays, in order, and where each begins and ends.
        bytes: all of it, in place; also what lies between arrays and belongs to none.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    bytes: np.ndarray

    def changed(self, then: np.ndarray) -> Iterable[str]:
        if np.array_equal(_words(self.bytes), _words(then)):
            return ()
        places = np.flatnonzero(self.bytes != then)
        indices = np.searchsorted(self.starts, places, side="right") - 1
        return {self.names[i] for i in np.unique(indices[places < np.asarray(self.ends)[indices]])}


GAP = 64
"""Bytes that may lie between two arrays of a block: MuJoCo begins each at a multiple of these."""


def _blocks(arrays: dict[str, np.ndarray], of_large: bool) -> list[_Block]:
    blocks: list[list[tuple[str, np.ndarray]]] = []
    for name, array in arrays.items():
        if (array.nbytes > LARGE) is not of_large:
            continue
        if not blocks or array.ctypes.data - _end(blocks[-1][-1][1]) not in range(GAP):
            blocks.append([])
        blocks[-1].append((name, array))
    return [_block(block) for block in blocks]


def _end(array: np.ndarray) -> int:
    return array.ctypes.data + array.nbytes


def _block(arrays: list[tuple[str, np.ndarray]]) -> _Block:
    (_, first), (_, last) = arrays[0], arrays[-1]
    begin = first.ctypes.data
    whole = np.lib.stride_tricks.as_strided(first.reshape(-1).view(np.uint8), (_end(last) - begin,), (1,))
    return _Block(
        tuple(name for name, _ in arrays),
        tuple(array.ctypes.data - begin for _, array in arrays),
        tuple(_end(array) - begin for _, array in arrays),
        whole,
    )


def _words(block: np.ndarray) -> np.ndarray:
    """Bytes, eight at a time where that comes out even: compared faster."""
    return block.view(np.uint64) if block.size % 8 == 0 and block.ctypes.data % 8 == 0 else block
