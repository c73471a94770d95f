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
    splits = get_args(Split)
    if split not in splits:
        raise UnknownNameError("split", split, splits)
    if negative := [f"{name} = {value}" for name, value in (("n", n), ("seed", seed), ("start", start)) if value < 0]:
        raise ConfigError(f"{task.key}, initial states: {', '.join(negative)}, expected 0 or more")
    place = splits.index(split)
    return [
        (f"{split} seed {seed} #{i}", np.random.default_rng(np.random.SeedSequence([place, seed, task.index, i])))
        for i in range(start, start + n)
    ]
