"""When a Meta-World task counts as solved, decided from the few positions it depends on.

The stock environment decides success while it computes its shaped reward (20 to 100 microseconds a step). The rules below are
the same decisions, in the same floating-point operations, without the reward; `check_simulator` holds them equal to the
stock flag step by step.

A rule is called after `mj_forward`, with live views of one `MjData`. `goal` is the task's target as it was at reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Rule = Callable[[], bool]


class Place(Protocol):
    """Builds a function that reads a position `[3]`."""

    def bind(self, data: Any) -> Callable[[], np.ndarray]: ...


@dataclass(frozen=True)
class Body:
    """Position of a body, plus fixed offsets (added one after the other, as the stock environment does)."""

    name: str
    offsets: tuple[tuple[float, float, float], ...] = ()

    def view(self, data: Any) -> np.ndarray:
        return data.body(self.name).xpos

    def bind(self, data: Any) -> Callable[[], np.ndarray]:
        view = self.view(data)
        if not self.offsets:
            return lambda: view
        if len(self.offsets) == 1:
            offset = np.array(self.offsets[0])
            return lambda: view + offset
        first, second = (np.array(o) for o in self.offsets)
        return lambda: view + first + second


@dataclass(frozen=True)
class Site(Body):
    """Position of a site."""

    def view(self, data: Any) -> np.ndarray:
        return data.site(self.name).xpos


@dataclass(frozen=True)
class Geom(Body):
    """Position of a geom."""

    def view(self, data: Any) -> np.ndarray:
        return data.geom(self.name).xpos


@dataclass(frozen=True)
class GripperCentre:
    """The point between the two finger tips."""

    def bind(self, data: Any) -> Callable[[], np.ndarray]:
        right, left = data.site("rightEndEffector").xpos, data.site("leftEndEffector").xpos
        return lambda: (right + left) / 2.0


@dataclass(frozen=True)
class DialPointer:
    """The end of the dial's pointer, 5 cm from its centre."""

    def bind(self, data: Any) -> Callable[[], np.ndarray]:
        centre, angle = data.body("dial").xpos, data.joint("knob_Joint_1").qpos
        # np.sin, not math.sin: the two may differ in the last bit.
        return lambda: centre + np.array([np.sin(angle).item(), -np.cos(angle).item(), 0.0]) * 0.05


def near(
    place: Place,
    radius: float,
    *,
    scale: tuple[float, float, float] | None = None,
    goal: Place | None = None,
    goal_height: float | None = None,
    strict: bool = False,
) -> Callable[[Any, np.ndarray], Rule]:
    """Success within `radius` of the goal.

    Args:
        place: what must be there.
        radius: metres.
        scale: weight of each axis in the distance.
        goal: where, if it is a moving place rather than the fixed target.
        goal_height: replaces the goal's height.
        strict: "<" instead of "<=".
    """

    def bind(data: Any, fixed_goal: np.ndarray) -> Rule:
        position = place.bind(data)
        target = goal.bind(data) if goal is not None else None
        weights = None if scale is None else np.array(scale)
        below = np.nextafter(radius, 0.0) if strict else radius

        if target is None and weights is None:

            def fixed() -> bool:
                error = position() - fixed_goal
                return math.sqrt(error.dot(error)) <= below

            return fixed

        def general() -> bool:
            end = fixed_goal if target is None else target()
            if goal_height is not None:
                end = np.array([end[0], end[1], goal_height])
            error = position() - end
            if weights is not None:
                error *= weights
            return math.sqrt(error.dot(error)) <= below

        return general

    return bind


def along(place: Place, axis: int, tolerance: float) -> Callable[[Any, np.ndarray], Rule]:
    """Success within `tolerance` (metres) of the goal's coordinate `axis`."""

    def bind(data: Any, goal: np.ndarray) -> Rule:
        position, target = place.bind(data), float(goal[axis])
        return lambda: abs(float(position()[axis]) - target) <= tolerance

    return bind


def _assembly(data: Any, goal: np.ndarray) -> Rule:
    """The nut's hole is around the peg and below its top."""
    centre = data.site("RoundNut").xpos

    def rule() -> bool:
        error = goal - centre
        return math.sqrt(error[:2].dot(error[:2])) < 0.02 and bool(error[2] > 0.0)

    return rule


def _disassemble(data: Any, goal: np.ndarray) -> Rule:
    height, target = data.site("RoundNut-8").xpos, float(goal[2])
    return lambda: float(height[2]) > target


def _hammer(data: Any, goal: np.ndarray) -> Rule:
    nail = data.joint("NailSlideJoint").qpos
    return lambda: float(nail[0]) > 0.09


def _lever(data: Any, goal: np.ndarray) -> Rule:
    lever = data.joint("LeverAxis").qpos
    return lambda: abs(-float(lever[0]) - np.pi / 2.0) <= np.pi / 24


def _sweep_into(data: Any, goal: np.ndarray) -> Rule:
    """The cube is over the hole, at any height."""
    cube = data.body("obj").xpos

    def rule() -> bool:
        error = cube - np.array([goal[0], goal[1], cube[2]])
        return math.sqrt(error.dot(error)) <= 0.05

    return rule


def _stick_pull(data: Any, goal: np.ndarray) -> Rule:
    """The thermos is at the goal with the stick through its handle."""
    handle, end = data.site("insertion").xpos, data.site("stick_end").xpos

    def rule() -> bool:
        error = handle - goal
        if math.sqrt(error.dot(error)) > 0.12:
            return False
        offset = end - handle
        return bool(end[0] >= handle[0] and abs(offset[1]) <= 0.040 and abs(offset[2]) <= 0.060)

    return rule


def _stick_push(data: Any, goal: np.ndarray) -> Rule:
    """The thermos is at the goal while both finger pads press the lifted stick."""
    container, stick = Site("insertion", ((0.0, 0.09, 0.0),)).bind(data), data.body("stick").xpos
    right, left = data.body("rightclaw").xpos, data.body("leftclaw").xpos
    object_id = data.geom("objGeom").id
    pads = data.geom("leftpad_geom").id, data.geom("rightpad_geom").id
    start_height = 0.02

    def presses(pad: int) -> bool:
        contacts = [c for c in data.contact if pad in (c.geom1, c.geom2) and object_id in (c.geom1, c.geom2)]
        return bool(0 < sum(data.efc_force[c.efc_address] for c in contacts))

    def rule() -> bool:
        error = container() - goal
        if math.sqrt(error.dot(error)) > 0.12 or not float(stick[2]) - 0.01 > start_height:
            return False
        opening = right - left
        return opening.dot(opening) > 0 and presses(pads[0]) and presses(pads[1])

    return rule


_BUTTON_FRONT = Body("button", ((0.0, -0.193, 0.0),))
_BUTTON_TOP = Body("button", ((0.0, 0.0, 0.193),))

SUCCESS: dict[str, Callable[[Any, np.ndarray], Rule]] = {
    "assembly-v3": _assembly,
    "basketball-v3": near(Body("bsktball"), 0.08, scale=(1.0, 1.0, 2.0), goal=Site("goal"), goal_height=0.3),
    "bin-picking-v3": near(Body("obj"), 0.05, goal=Body("bin_goal")),
    "box-close-v3": near(Body("top_link"), 0.08, strict=True),
    "button-press-topdown-v3": along(_BUTTON_TOP, 2, 0.024),
    "button-press-topdown-wall-v3": along(_BUTTON_TOP, 2, 0.024),
    "button-press-v3": along(_BUTTON_FRONT, 1, 0.02),
    "button-press-wall-v3": along(_BUTTON_FRONT, 1, 0.03),
    "coffee-button-v3": along(Site("buttonStart"), 1, 0.02),
    "coffee-pull-v3": near(Body("obj"), 0.07),
    "coffee-push-v3": near(Body("obj"), 0.07),
    "dial-turn-v3": near(DialPointer(), 0.07),
    "disassemble-v3": _disassemble,
    "door-close-v3": near(Geom("handle"), 0.08),
    "door-lock-v3": along(Site("lockStartLock"), 2, 0.02),
    "door-open-v3": along(Geom("handle"), 0, 0.08),
    "door-unlock-v3": along(Site("lockStartUnlock"), 0, 0.02),
    "drawer-close-v3": near(Body("drawer_link", ((0.0, -0.16, 0.05),)), 0.05 + 0.015),
    "drawer-open-v3": near(Body("drawer_link", ((0.0, -0.16, 0.0),)), 0.03),
    "faucet-close-v3": near(Site("handleStartClose", ((0.0, 0.0, -0.01),)), 0.07),
    "faucet-open-v3": near(Site("handleStartOpen", ((0.0, 0.0, -0.01), (-0.04, 0.0, 0.03))), 0.07),
    "hammer-v3": _hammer,
    "hand-insert-v3": near(Body("obj"), 0.05),
    "handle-press-side-v3": along(Site("handleStart"), 2, 0.02),
    "handle-press-v3": along(Site("handleStart"), 2, 0.02),
    "handle-pull-side-v3": near(Site("handleCenter"), 0.08),
    "handle-pull-v3": along(Site("handleRight"), 2, 0.05),
    "lever-pull-v3": _lever,
    "peg-insert-side-v3": near(Site("pegHead"), 0.07, scale=(1.0, 2.0, 2.0)),
    "peg-unplug-side-v3": near(Site("pegEnd"), 0.07),
    "pick-out-of-hole-v3": near(Body("obj"), 0.07),
    "pick-place-v3": near(Body("obj"), 0.07),
    "pick-place-wall-v3": near(Geom("objGeom"), 0.07),
    "plate-slide-back-side-v3": near(Geom("puck"), 0.07),
    "plate-slide-back-v3": near(Geom("puck"), 0.07),
    "plate-slide-side-v3": near(Geom("puck"), 0.07),
    "plate-slide-v3": near(Geom("puck"), 0.07),
    "push-back-v3": near(Geom("objGeom"), 0.07),
    "push-v3": near(Body("obj"), 0.05),
    "push-wall-v3": near(Geom("objGeom"), 0.07),
    "reach-v3": near(GripperCentre(), 0.05),
    "reach-wall-v3": near(GripperCentre(), 0.05),
    "shelf-place-v3": near(Body("obj"), 0.07),
    "soccer-v3": near(Body("soccer_ball"), 0.07),
    "stick-pull-v3": _stick_pull,
    "stick-push-v3": _stick_push,
    "sweep-into-v3": _sweep_into,
    "sweep-v3": near(Body("obj"), 0.05),
    "window-close-v3": along(Site("handleCloseStart"), 0, 0.05),
    "window-open-v3": along(Site("handleOpenStart"), 0, 0.05),
}
