"""Numbers of the robot: proprioception in, actions out, and what is clipped, turned or scaled on the way.

The one place of all of it, for demonstrations, acting and evaluation. Actions that the policy knows are normalised:
about [-1, 1] between the 1st and the 99th percentile of its data. What a simulator takes is in its own units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ript.core.errors import PolicyError, nearest

EPS = 1e-8
"""Added to a range, so that one that is empty divides."""
SUFFIX = "_no_noops"
"""Suffix in the names of data without idle steps, which published LIBERO checkpoints were trained on."""
UNTRAINED = ""
"""Key of statistics that change no number, of a policy whose heads have seen no demonstrations yet."""
Gripper = Literal["libero", "plain"]
"""How the last dimension of an action is meant. "libero": 1 opens and 0 closes in the data; in the simulator -1
opens and 1 closes, with nothing between. "plain": a dimension like the others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Percentiles of the data that a policy was trained on.

    Attributes:
        key: the data's name.
        action_low, action_high: float64 `[A]`.
        action_scaled: bool `[A]`; False where an action is not normalised (the gripper).
        proprio_low, proprio_high: float64 `[P]`.
        gripper: see `Gripper`.
    """

    key: str
    action_low: np.ndarray
    action_high: np.ndarray
    action_scaled: np.ndarray
    proprio_low: np.ndarray
    proprio_high: np.ndarray
    gripper: Gripper = "libero"

    @classmethod
    def plain(cls, key: str, actions: int, proprio: int) -> Statistics:
        """Statistics that change no number."""
        return cls(
            key=key,
            action_low=-np.ones(actions),
            action_high=np.ones(actions),
            action_scaled=np.ones(actions, bool),
            proprio_low=-np.ones(proprio),
            proprio_high=np.ones(proprio),
            gripper="plain",
        )

    def proprio(self, state: np.ndarray) -> np.ndarray:
        """Normalised proprioception float64 `[..., P]`, clipped to [-1, 1]."""
        span = self.proprio_high - self.proprio_low + EPS
        return (2 * (np.asarray(state, np.float64) - self.proprio_low) / span - 1).clip(-1, 1)

    def scaled_back(self, actions: np.ndarray) -> np.ndarray:
        """float64 `[..., A]` in the units of the data, of normalised float32 actions. Nothing is clipped."""
        actions = np.asarray(actions)
        wide = 0.5 * (actions + 1) * (self.action_high - self.action_low + EPS) + self.action_low
        return np.where(self.action_scaled, wide, actions.astype(np.float64))

    def simulator_actions(self, actions: np.ndarray) -> np.ndarray:
        """What the simulator takes, float64 `[..., A]`, of normalised actions, as the published code gives it: not
        clipped, see `commanded`."""
        out = self.scaled_back(actions)
        if self.gripper == "libero":
            out[..., -1] = -np.sign(2 * out[..., -1] - 1)
        return out

    def commanded(self, actions: np.ndarray) -> np.ndarray:
        """`simulator_actions` as float32, cut to [-1, 1], where controllers cut them too; NaN where a normalised action
        is not finite."""
        cut = self.simulator_actions(actions).clip(-1, 1)
        return np.where(np.isfinite(actions), cut, np.nan).astype(np.float32)

    def normalised(self, actions: np.ndarray) -> np.ndarray:
        """The inverse, for demonstrations: float32 `[..., A]`, clipped to [-1, 1], the gripper 1 (open) or 0."""
        wide = np.array(actions, np.float64)
        if self.gripper == "libero":
            wide[..., -1] = 1 - wide[..., -1].clip(0, 1)
        scaled = (2 * (wide - self.action_low) / (self.action_high - self.action_low + EPS) - 1).clip(-1, 1)
        return np.where(self.action_scaled, scaled, wide).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """As an entry of `dataset_statistics.json`."""
        low, high, mask = self.action_low.tolist(), self.action_high.tolist(), self.action_scaled.tolist()
        return {
            "key": self.key,
            "gripper": self.gripper,
            "action": {"q01": low, "q99": high, "mask": mask},
            "proprio": {"q01": self.proprio_low.tolist(), "q99": self.proprio_high.tolist()},
        }

    @classmethod
    def from_json(cls, entry: Mapping, key: str, gripper: Gripper = "libero") -> Statistics:
        """The statistics in an entry of `dataset_statistics.json`.

        Raises:
            PolicyError: not such an entry, or with numbers that are none.
        """
        try:
            action, proprio = entry["action"], entry["proprio"]
            rows = [np.array(action[name], np.float64) for name in ("q01", "q99")]
            rows += [np.array(proprio[name], np.float64) for name in ("q01", "q99")]
            given = action.get("mask", [True] * len(rows[0]))
            mask = np.array(given, bool)
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(
                f"the statistics of {key!r} lack {error}: expected q01 and q99 of actions and proprio"
            ) from error
        sizes = {len(rows[0]), len(rows[1]), len(mask)}, {len(rows[2]), len(rows[3])}
        if any(row.ndim != 1 or not np.isfinite(row).all() for row in rows) or any(len(size) > 1 for size in sizes):
            raise PolicyError(f"the statistics of {key!r} are no rows of finite numbers of one length each")
        if not all(isinstance(each, bool) for each in given):
            raise PolicyError(f"the statistics of {key!r}: mask = {given!r}, expected true or false for each number")
        if any((low > high).any() for low, high in (rows[:2], rows[2:])):
            raise PolicyError(f"the statistics of {key!r} have q01 above q99: actions would be mirrored")
        return cls(
            key=key,
            action_low=rows[0],
            action_high=rows[1],
            action_scaled=mask,
            proprio_low=rows[2],
            proprio_high=rows[3],
            gripper=gripper,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and self.to_json() == other.to_json()


def statistics_of(document: Mapping, suite: str | None, where: str) -> Statistics:
    """The entry of a suite among those of `dataset_statistics.json`: under its own name, or with `SUFFIX`.

    Args:
        document: key -> entry.
        suite: name such as "libero_spatial"; None takes the only entry.
        where: the file, for messages.

    Raises:
        PolicyError: no such entry, or several to choose from.
    """
    if not isinstance(document, Mapping) or not document:
        raise PolicyError(f"{where} holds no statistics: expected a table by name of data set")
    known = sorted(document)
    if suite is None:
        if len(known) > 1:
            raise PolicyError(
                f"{where} holds statistics of {', '.join(known)}: say which one is to be used (suite=..., or "
                "`ript import openvla --statistics NAME`)"
            )
        return Statistics.from_json(document[known[0]], known[0])
    for key in (suite, suite + SUFFIX):
        if key in document:
            return Statistics.from_json(document[key], key)
    hint = f"; did you mean {' or '.join(near)}?" if (near := nearest(suite, known)) else ""
    raise PolicyError(f"{where} has no statistics of {suite!r} or {suite + SUFFIX!r}, but of {', '.join(known)}{hint}")


PROTOCOLS = {f"libero_{name}": f"openvla-{name}" for name in ("spatial", "object", "goal", "10", "90")}
"""Data of a suite -> the protocol that policies trained on it are measured by."""


def protocol_of(key: str) -> str:
    """The protocol by which policies with these statistics are measured; for data of several suites the one with the
    longest episodes."""
    return PROTOCOLS.get(key.removesuffix(SUFFIX), PROTOCOLS["libero_10"] if key.startswith("libero_") else "published")


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vectors float64 `[..., 3]` of quaternions (x, y, z, w) `[..., 4]`.

    The sign of the quaternion is not canonicalised, so an angle may exceed pi: published checkpoints were trained so.
    """
    q = np.asarray(quaternion, np.float64)
    w = q[..., 3].clip(-1, 1)
    length = np.sqrt(1 - w * w)
    still = length == 0
    angle = 2 * np.vectorize(math.acos, otypes=[np.float64])(w)
    return np.where(still[..., None], 0.0, q[..., :3] * angle[..., None] / np.where(still, 1.0, length)[..., None])
