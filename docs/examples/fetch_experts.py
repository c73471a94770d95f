"""Scripted experts for Fetch, as `ript demos collect --demos.expert=fetch_experts:reach` takes them.

An expert is given the simulator, whose `observation` is the environment's own, and a random generator, and answers an
action in [-1, 1]. It is asked anew before every step and remembers nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

REACH = 0.05
"""Metres that an action of 1 asks for."""


def reach(simulator: Any, generator: np.random.Generator) -> np.ndarray:
    """Straight to the target."""
    seen = simulator.observation
    return _go(seen["desired_goal"] - seen["achieved_goal"])


def push(simulator: Any, generator: np.random.Generator) -> np.ndarray:
    """Around the block to its far side, down, and toward the target."""
    seen = simulator.observation
    hand, block, goal = seen["observation"][:3], seen["achieved_goal"], seen["desired_goal"]
    along = (goal - block)[:2]
    distance = np.linalg.norm(along)
    along = along / max(distance, 1e-6)
    offset = (hand - block)[:2]
    behind, beside = -offset @ along, abs(offset @ [-along[1], along[0]])
    if behind > 0.02 and beside < 0.015 and hand[2] < block[2] + 0.02:
        forward = along * min(1.0, 0.3 + 8 * distance)
        centre = -(offset + behind * along) * 10  # stay on the line through block and target
        return np.array([*np.clip(forward + centre, -1, 1), (block[2] - hand[2]) * 10, 0], np.float32)
    start = block[:2] - along * 0.09
    away = start - hand[:2]
    if np.linalg.norm(away) < 0.015:
        return _go(np.array([*away, block[2] - hand[2]]))  # down behind the block
    height = block[2] + 0.1  # clear of the block on the way
    if hand[2] < height - 0.03 and np.linalg.norm(offset) < 0.12:
        return _go(np.array([0, 0, height - hand[2]]))
    return _go(np.array([*away, height - hand[2]]))


def pick_and_place(simulator: Any, generator: np.random.Generator) -> np.ndarray:
    """Above the block with an open gripper, down, close it, and carry the block to the target."""
    seen = simulator.observation
    hand, block, goal = seen["observation"][:3], seen["achieved_goal"], seen["desired_goal"]
    rest, opening = block - hand, seen["observation"][9:11].sum()
    beside = np.linalg.norm(rest[:2])
    if np.linalg.norm(rest) < 0.03 and opening < 0.055:
        return _go((goal - block) / 2, grip=-1)
    if np.linalg.norm(rest) < 0.02:
        return _go(rest, grip=-1)
    if beside < 0.015:
        return _go(rest, grip=1)
    return _go(rest + np.array([0, 0, 0.08]), grip=1)


def _go(displacement: np.ndarray, grip: float = 0.0) -> np.ndarray:
    """The action that moves the hand this far, or in this direction: float32 `[4]`."""
    return np.array([*np.clip(displacement / REACH, -1, 1), grip], np.float32)
