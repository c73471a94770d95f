"""Statistics of demonstrations; they are saved with the policy, which normalises its inputs with them."""

from __future__ import annotations

import numpy as np

from ript.core.supervised import Statistics

SMALLEST_STD = 1e-3
"""Dimensions that hardly move are divided by this at least (metres, radians): noise is not blown up to signal."""


def measure(proprio: np.ndarray, privileged: np.ndarray | None) -> Statistics:
    """Means and deviations of proprioception `[W, P]` and of object state `[W, O]`, which have a row a window."""
    proprio_mean, proprio_std = _moments(proprio)
    privileged_mean, privileged_std = (None, None) if privileged is None else _moments(privileged)
    return Statistics(
        proprio_mean=proprio_mean,
        proprio_std=proprio_std,
        privileged_mean=privileged_mean,
        privileged_std=privileged_std,
    )


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and guarded standard deviation over rows, float32, accumulated in float64."""
    std = np.maximum(values.std(0, dtype=np.float64), SMALLEST_STD)
    return values.mean(0, dtype=np.float64).astype(np.float32), std.astype(np.float32)
