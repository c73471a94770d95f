"""What LIBERO's simulators show and take, without building one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ript.core.errors import UnknownNameError
from ript.core.types import SimulatorSpec
from ript.sims.libero.rendering import Look
from ript.sims.libero.step import ACTION_DIM, PARTS
from ript.sims.libero.tasks import NAME
from ript.sims.mujoco.rendering import CameraView, describe

LOOK = 1
"""Raise it when a change of the code changes fast pictures: policies and demonstrations of another look are then
refused."""


def proprio_sizes(parts: Sequence[str]) -> dict[str, int]:
    """Part -> its size, in order.

    Raises:
        UnknownNameError: no such part.
    """
    for name in parts:
        if name not in PARTS:
            raise UnknownNameError("part of the proprioception", name, PARTS)
    return {name: PARTS[name] for name in parts}


def libero_spec(
    views: Mapping[str, CameraView], size: tuple[int, int], look: Look, proprio: Sequence[str]
) -> SimulatorSpec:
    """What a policy is shown, and how large actions and proprioception are.

    Raises:
        UnknownNameError: no such part of the proprioception.
    """
    return SimulatorSpec(
        suite=NAME,
        cameras=dict.fromkeys(views, size),
        proprio=proprio_sizes(proprio),
        action_dim=ACTION_DIM,
        render={
            "cameras": {name: describe(view) for name, view in views.items()},
            "size": list(size),
            "look": look,
            **({"version": LOOK} if look == "fast" else {}),
        },
    )
