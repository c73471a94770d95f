"""Simulations that have become unstable. MuJoCo's own step begins them again by itself, within an episode, and goes on;
where a step is made of its parts nobody does."""

from __future__ import annotations

from typing import Any

import numpy as np

UNSTABLE = (
    "the simulation has become unstable (NaN, infinite or huge positions, velocities or accelerations): what follows "
    "is no answer to the actions"
)
HUGE = 1e10
"""What MuJoCo takes for no number of a simulation."""
_SIGNS = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")


def is_stable(data: Any) -> bool:
    """Whether no position, velocity or acceleration of a simulation was NaN, infinite or huge since `begin`."""
    import mujoco

    numbers = data.warning.number
    if not (np.abs(data.qvel) < HUGE).all():
        return False
    return not any(numbers[int(getattr(mujoco.mjtWarning, sign))] for sign in _SIGNS)


def begin(data: Any) -> None:
    """What a simulation has been warned of is of an earlier episode."""
    data.warning.number[:] = 0
