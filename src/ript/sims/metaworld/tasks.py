"""Meta-World's 50 tasks, the published lists of them, and the cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ript.core.errors import UnknownNameError
from ript.core.types import UNNAMED_PROPRIO, SimulatorSpec, Task
from ript.sims.metaworld.instructions import INSTRUCTIONS
from ript.sims.mujoco.rendering import Arm, CameraView, describe
from ript.sims.mujoco.views import resolve_views

NAME = "metaworld"
ACTION_DIM = 4
PROPRIO_DIM = 8
HORIZON = 500
"""Environment steps of an episode, as published."""
LOOK = 1
"""Raise it when a change of the code changes pictures: policies and demonstrations of another look are then refused."""

_ML10_TEST = ("door-close-v3", "drawer-open-v3", "lever-pull-v3", "shelf-place-v3", "sweep-into-v3")
_ML10_TRAIN = (
    "basketball-v3",
    "button-press-topdown-v3",
    "door-open-v3",
    "drawer-close-v3",
    "peg-insert-side-v3",
    "pick-place-v3",
    "push-v3",
    "reach-v3",
    "sweep-v3",
    "window-open-v3",
)
# As in the paper of RIPT-VLA; the package's own ML45 holds out other tasks.
_ML45_TEST = ("box-close-v3", "disassemble-v3", "hand-insert-v3", "pick-place-wall-v3", "stick-pull-v3")

LISTS: dict[str, tuple[str, ...]] = {
    "MT10": (
        "button-press-topdown-v3",
        "door-open-v3",
        "drawer-close-v3",
        "drawer-open-v3",
        "peg-insert-side-v3",
        "pick-place-v3",
        "push-v3",
        "reach-v3",
        "window-close-v3",
        "window-open-v3",
    ),
    "MT50": tuple(INSTRUCTIONS),
    "ML10-train": _ML10_TRAIN,
    "ML10-test": _ML10_TEST,
    "ML45-train": tuple(name for name in INSTRUCTIONS if name not in _ML45_TEST),
    "ML45-test": _ML45_TEST,
}
"""Named task lists."""

CAMERAS: dict[str, CameraView] = {
    "near": CameraView(position=(0.6, 0.05, 0.8), target=(0.0, 0.73, 0.1), fovy=38.0),
    "side": CameraView(position=(0.75, 0.35, 0.75), target=(0.0, 0.68, 0.14), fovy=42.0),
    "corner2": CameraView(base="corner2", position=(0.75, 0.075, 0.7), flip=True),
    "corner2-stock": CameraView(base="corner2", flip=True),
    **{name: CameraView(base=name, flip=True) for name in ("corner", "corner3", "corner4")},
    **{name: CameraView(base=name) for name in ("topview", "behindGripper", "gripperPOV")},
}
"""Views by name. "near" looks at the table from close by; "corner2" is where papers move that camera to; the others are
Meta-World's own. Its corner cameras stand on their heads and are flipped, as papers do."""

_INDEX = {name: i for i, name in enumerate(INSTRUCTIONS)}


def metaworld_tasks(horizon: int = HORIZON) -> tuple[Task, ...]:
    """The 50 tasks, in alphabetical order."""
    return tuple(task_of(name, horizon) for name in INSTRUCTIONS)


def task_of(name: str, horizon: int) -> Task:
    """One task.

    Raises:
        UnknownNameError: no such task.
    """
    if name not in INSTRUCTIONS:
        raise UnknownNameError("Meta-World task", name, INSTRUCTIONS)
    return Task(suite=NAME, name=name, instruction=INSTRUCTIONS[name], index=_INDEX[name], horizon=horizon)


def resolve_cameras(cameras: Mapping[str, CameraView] | Sequence[str]) -> dict[str, CameraView]:
    """Views from a mapping, or from names of `CAMERAS`; "front=corner2" is a camera named front with corner2's view.

    Raises:
        UnknownNameError: a view that is not in `CAMERAS`.
    """
    return resolve_views(cameras, CAMERAS)


def metaworld_spec(views: Mapping[str, CameraView], size: tuple[int, int], arm: Arm) -> SimulatorSpec:
    """What a policy is shown, and how large actions and proprioception are."""
    return SimulatorSpec(
        suite=NAME,
        cameras=dict.fromkeys(views, size),
        proprio={UNNAMED_PROPRIO: PROPRIO_DIM},
        action_dim=ACTION_DIM,
        render={
            "cameras": {name: describe(view) for name, view in views.items()},
            "size": list(size),
            "arm": arm,
            "look": LOOK,
        },
    )
