"""The endless sequences that initial states are drawn from: one for each task, split and seed."""

from __future__ import annotations

from typing import get_args

import numpy as np

from ript.core.errors import ConfigError, UnknownNameError
from ript.core.types import Split, Task


def streams(task: Task, n: int, seed: int, split: Split, start: int) -> list[tuple[str, np.random.Generator]]:
    """(label, random stream) of states number start..start+n-1. A stream depends on its own number alone.

    Raises:
        ConfigError: a negative number.
        UnknownNameError: no such split.
    """
    place = _place(task, n, seed, split, start)
    return [
        (_label(split, seed, i), np.random.default_rng(np.random.SeedSequence([place, seed, task.index, i])))
        for i in range(start, start + n)
    ]


LENGTH = 2**20
"""States of a sequence of numbers; then it begins again."""
_PLACES = 8
"""Room for splits."""
_OTHERS = 2**31 // (LENGTH * _PLACES)
"""Sequences that are left to others: whoever numbers episodes 0, 1, 2, ... records none that is measured here."""
_SEEDS = 2**30 - _OTHERS


def numbers(task: Task, n: int, seed: int, split: Split, start: int) -> list[tuple[str, int]]:
    """(label, number) of states number start..start+n-1, for simulators that are reset with a seed.

    No number is there twice: neither in a sequence of `LENGTH` states, nor in those of two splits, or of two seeds
    below 2^30 - 256. All are at least 2^31, so that the seeds of demonstrations that others recorded are none of them,
    and below 2^53, which float64 holds; with seeds below 256 they are below 2^32, which every generator takes.

    Raises:
        ConfigError: a negative number.
        UnknownNameError: no such split.
    """
    place = _place(task, n, seed, split, start)
    first = seed if seed < _SEEDS else int(np.random.SeedSequence(seed).generate_state(1)[0]) % _SEEDS
    return [
        (_label(split, seed, i % LENGTH), ((_OTHERS + first) * LENGTH + i % LENGTH) * _PLACES + place)
        for i in range(start, start + n)
    ]


def _label(split: Split, seed: int, i: int) -> str:
    return f"{split} seed {seed} #{i}"


def _place(task: Task, n: int, seed: int, split: Split, start: int) -> int:
    """The number of the split, after a look at the others."""
    splits = get_args(Split)
    if split not in splits:
        raise UnknownNameError("split", split, splits)
    if negative := [f"{name} = {value}" for name, value in (("n", n), ("seed", seed), ("start", start)) if value < 0]:
        raise ConfigError(f"{task.key}, initial states: {', '.join(negative)}, expected 0 or more")
    return splits.index(split)
