"""Tasks of Gymnasium environments: any id is one; these are known, with what a policy is told."""

from __future__ import annotations

import zlib

from ript.core.errors import ConfigError
from ript.core.types import Task
from ript.sims.gym.environment import find_spec, instruction_of

NAME = "gym"
KNOWN: dict[str, tuple[str, int]] = {
    "FetchReach-v4": ("Move the gripper to the red target.", 50),
    "FetchPush-v4": ("Push the block to the red target.", 50),
    "FetchSlide-v4": ("Hit the puck so that it slides to the red target.", 50),
    "FetchPickAndPlace-v4": ("Pick up the block and bring it to the red target.", 50),
}
"""Id -> (instruction, horizon)."""
_TABLE = {
    "front": "2.15 0.75 0.95 to 1.33 0.75 0.5 fovy 36",
    "side": "1.35 0 0.65 to 1.35 0.75 0.5 fovy 40",
    "right": "1.8 0.2 0.9 to 1.34 0.75 0.44 fovy 32",
    "left": "1.85 1.15 0.95 to 1.34 0.75 0.44 fovy 34",
}
VIEWS: dict[str, dict[str, str]] = {
    "FetchReach-v4": _TABLE,
    "FetchPush-v4": _TABLE,
    "FetchPickAndPlace-v4": _TABLE,
    "FetchSlide-v4": {
        "front": "2.75 0.75 1.4 to 1.4 0.75 0.4 fovy 40",
        "side": "1.45 -0.55 1 to 1.45 0.75 0.35 fovy 50",
    },
}
"""Id -> views by name, beside those of `cameras`: closer than the environment's own."""


def known_tasks() -> tuple[Task, ...]:
    """Tasks that are listed; every other environment is one as well."""
    return tuple(_task(name, horizon, text) for name, (text, horizon) in KNOWN.items())


def find(name: str) -> Task:
    """The task of any environment; its horizon is 0 where the environment has no limit of steps.

    Raises:
        UnknownNameError: no such environment.
        DependencyMissing: gymnasium or the package is not installed, or cannot be imported.
    """
    return _task(name, find_spec(name).max_episode_steps or 0, instruction_of(name))


def own_horizon(limit: int, repeat: int) -> int:
    """Actions of an episode within an environment's own limit of steps, where each is executed `repeat` times."""
    return max(1, limit // repeat) if limit else 0


def task_of(name: str, horizon: int = 0, instruction: str = "", repeat: int = 1) -> Task:
    """The task of any environment.

    Args:
        name: id, or PACKAGE:ID.
        horizon: actions after which an episode without success is over; 0: those of the environment's own limit.
        instruction: a sentence; "": the known one, or one made of the id.
        repeat: steps of the environment for each action.

    Raises:
        UnknownNameError: no such environment.
        ConfigError: neither a horizon nor a limit of the environment.
    """
    found, (text, _) = find(name), KNOWN.get(name, ("", 0))
    if not (horizon or found.horizon):
        raise ConfigError(
            f"sim.horizon: gym/{name} has no limit of steps of its own: give one (--sim.horizon=200; "
            "`ript eval` takes --horizon=200)"
        )
    horizon = horizon or own_horizon(found.horizon, repeat)
    return _task(name, horizon, instruction or text or found.instruction)


def _task(name: str, horizon: int, instruction: str) -> Task:
    index = zlib.crc32(name.encode()) & 0x7FFFFFFF  # there is no list in which it could have a place
    return Task(suite=NAME, name=name, instruction=instruction, index=index, horizon=horizon)
