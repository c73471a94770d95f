"""Leave-one-out advantages: how much better a rollout did than the others from the same initial state."""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ript.core.errors import NotFiniteError

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")


def leave_one_out(rewards: Array, *, normalise_std: bool = False) -> Array:
    """Advantage of each rollout of a group over the mean of the group's other valid rollouts.

    `A_k = R_k - mean over valid j != k of R_j`. With m successes among K valid rollouts a success gets
    `1 - (m-1)/(K-1)` and a failure `-m/(K-1)`: the advantages of a group sum to zero, and equal rewards give zeros.

        leave_one_out(np.array([1.0, 0.0, 0.0, 1.0]))     -> [0.667, -0.667, -0.667, 0.667]
        leave_one_out(np.array([1.0, 0.0, np.nan]))       -> [1.0, -1.0, nan]

    Args:
        rewards: `[..., K]`, numpy or torch; NaN marks a rollout that ended in ERROR. Integers become floats.
        normalise_std: divide by the standard deviation (n - 1) of the group's valid rewards. An ablation: it makes
            groups of nearly equal rewards count most, and is reported to do worse (Chen et al. 2025, LOOP).

    Returns:
        `[..., K]` of the same kind; NaN where the rollout is invalid; zeros at the valid places of a group with fewer
        than two valid rollouts.

    Raises:
        NotFiniteError: a reward is infinite.

    Source: Kool et al. 2019; Ahmadian et al. 2024; Chen et al. 2025 (LOOP).
    """
    xp, rewards = _as_float(rewards)
    if xp.isinf(rewards).any():
        raise NotFiniteError("leave_one_out: a reward is infinite; use NaN for a rollout that ended in an error")
    valid = ~xp.isnan(rewards)
    clean = xp.where(valid, rewards, 0.0)
    count = xp.where(valid, xp.ones_like(rewards), 0.0).sum(-1)[..., None]
    others = xp.clip(count - 1, 1, None)
    advantage = clean - (clean.sum(-1)[..., None] - clean) / others
    if normalise_std:
        mean = clean.sum(-1)[..., None] / xp.clip(count, 1, None)
        variance = xp.where(valid, (clean - mean) ** 2, 0.0).sum(-1)[..., None] / others
        advantage = xp.where(variance > 0, advantage / xp.where(variance > 0, variance, 1.0) ** 0.5, 0.0)
    if rewards.shape[-1]:  # rewards that are equal leave rounding errors, which must not be divided by
        highest = xp.amax(xp.where(valid, clean, -math.inf), -1)[..., None]
        lowest = xp.amin(xp.where(valid, clean, math.inf), -1)[..., None]
        advantage = xp.where(highest > lowest, advantage, 0.0)
    advantage = xp.where(count >= 2, advantage, 0.0)
    return xp.where(valid, advantage, xp.nan)


def _as_float(rewards: Any) -> tuple[ModuleType, Any]:
    """(the array module, rewards in floating point). torch is not imported for numpy input."""
    if type(rewards).__module__.partition(".")[0] == "torch":
        import torch

        return torch, rewards if rewards.is_floating_point() else rewards.to(torch.get_default_dtype())
    rewards = np.asarray(rewards)
    return np, rewards if np.issubdtype(rewards.dtype, np.floating) else rewards.astype(np.float64)
