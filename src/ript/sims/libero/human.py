"""One human demonstration of each of the 130 tasks: actions and where they began. See NOTICE for whose they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ript.core.errors import UnknownNameError

FILE = Path(__file__).with_name("human.npz")
"""Actions in millionths (they were published with six decimals), of all tasks one behind the other; so are states."""
SETTLE = 50
"""Steps of `WAITING` between setting the state and the first action, as they are to be replayed."""
WAITING = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)


@dataclass(frozen=True)
class HumanDemonstration:
    """What a person did.

    Attributes:
        task: such as "libero_goal/7".
        actions: float64 `[T, 7]` in [-1, 1].
        vector: the recorded state before the first action: time, qpos, qvel.
        source: name of the demonstration in the official file of the task.
    """

    task: str
    actions: np.ndarray
    vector: np.ndarray
    source: str


@cache
def _all() -> dict[str, HumanDemonstration]:
    with np.load(FILE) as file:
        arrays = dict(file)
    actions = np.split(arrays["actions"] / 1e6, np.cumsum(arrays["steps"])[:-1])
    vectors = np.split(arrays["states"], np.cumsum(arrays["sizes"])[:-1])
    names, sources = arrays["tasks"].tolist(), arrays["demos"].tolist()
    return {
        name: HumanDemonstration(name, one, vector, source)
        for name, one, vector, source in zip(names, actions, vectors, sources, strict=True)
    }


def has_human_demonstration(name: str) -> bool:
    """Whether a task has one: the 130 do."""
    return name in _all()


def human_demonstration(name: str) -> HumanDemonstration:
    """The demonstration of a task.

    Raises:
        UnknownNameError: there is none; those of LIBERO-PRO have none.
    """
    found = _all().get(name)
    if found is None:
        raise UnknownNameError("LIBERO task with a human demonstration", name, _all())
    return found
