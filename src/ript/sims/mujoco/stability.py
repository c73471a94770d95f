"""Simulations that have become unstable. MuJoCo begins them again by itself, within an episode, and goes on."""

from __future__ import annotations

from typing import Any

UNSTABLE = (
    "the simulation has become unstable (NaN, infinite or huge positions, velocities or accelerations), and MuJoCo has "
    "begun it again from the model's own state: what followed is no answer to the actions"
)
_SIGNS = ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC")


def is_stable(data: Any) -> bool:
    """Whether no position, velocity or acceleration of a simulation was NaN, infinite or huge since `begin`."""
    import mujoco

    numbers = data.warning.number
    return not any(numbers[int(getattr(mujoco.mjtWarning, sign))] for sign in _SIGNS)


def begin(data: Any) -> None:
    """What a simulation has been warned of is of an earlier episode."""
    data.warning.number[:] = 0
