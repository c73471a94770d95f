"""What counts as success in a Gymnasium environment: what it says itself, or a rule about what it says."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ript.core.errors import ConfigError, SimulatorError

SUCCESS_KEYS = ("is_success", "success")
"""Keys of `info` that say whether a task is solved, where none is named."""
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, ">": operator.gt}


def threshold(rule: str) -> Callable[[float], bool] | None:
    """The comparison that a rule such as "reward>=0.9" or "reward > 0" makes with a reward; None for any other rule.

    Raises:
        ConfigError: it compares with no finite number, or in another way.
    """
    match = re.fullmatch(r"reward\s*([<>=!]+)\s*(.*)", rule.strip())
    if match is None:
        return None
    compare = _COMPARISONS.get(match[1])
    try:
        number = float(match[2])
    except ValueError:
        number = math.nan
    if compare is None or not math.isfinite(number):
        raise ConfigError(
            f"sim.success: {rule!r}; expected reward>=NUMBER or reward>NUMBER with a finite number, such as reward>=0.9"
        )
    return lambda reward: compare(reward, number)


class Success:
    """Whether a step was the one that solved the task.

    Args:
        key: of the task, for errors.
        rule: "" (is_success or success of `info`), another key of it, "terminated", "reward>=NUMBER" or
            "reward>NUMBER".

    Raises:
        ConfigError: see `threshold`.
    """

    def __init__(self, key: str, rule: str):
        self._task, self._rule, self._reached = key, rule, threshold(rule)
        self._keys = (rule,) if rule else SUCCESS_KEYS

    def __call__(self, reward: float, terminated: bool, info: Mapping[str, Any], where: str = "") -> bool:
        """Whether it was.

        Args:
            reward, terminated, info: what the step returned.
            where: address, for errors; the task's key by default.

        Raises:
            ConfigError: `info` does not say, or says something that is neither true nor false.
            SimulatorError: what it is judged by is not finite, which says nothing of success.
        """
        where = where or self._task
        if self._reached is not None:
            if not math.isfinite(reward):
                raise SimulatorError(f"{where}: the reward is {reward}; expected a finite number, to judge success by")
            return bool(self._reached(reward))
        if self._rule == "terminated":
            return terminated
        for name in self._keys:
            if name in info:
                return self._said(name, info[name], where)
        keys = ", ".join(map(str, info)) or "none"
        raise ConfigError(
            f"sim.success: {self._task} does not say whether it is solved: {' and '.join(self._keys)} "
            f"{'are' if len(self._keys) > 1 else 'is'} not in the info of a step (its keys: {keys}). Name another key "
            "(--sim.success=KEY), or --sim.success='reward>=NUMBER', or --sim.success=terminated"
        )

    def _said(self, name: str, value: Any, where: str) -> bool:
        found = truth(value)
        if found is not None:
            return found
        if _is_number(value) and not np.isfinite(value).all():
            raise SimulatorError(f"{where}: info[{name!r}] is {value!r}; expected true or false")
        raise ConfigError(
            f"sim.success: {self._task}: info[{name!r}] is {value!r}; expected true or false (1 or 0). What says how "
            "far a task has come, or that it failed, is no word on success: name another key, or a rule on the reward"
        )


def truth(value: Any) -> bool | None:
    """Whether a value says success, when it is true or false, or the number 1 or 0, alone or in an array; None for any
    other value."""
    if not _is_number(value) or not np.isin(value, (0, 1)).all():
        return None
    return bool(np.asarray(value).reshape(()))


def _is_number(value: Any) -> bool:
    found = np.asarray(value)
    return found.size == 1 and found.dtype.kind in "biuf"
