"""When a Meta-World task counts as solved, decided from the few positions it depends on.

The stock environment decides success while it computes its shaped reward (20 to 100 microseconds a step). The rules
below are the same decisions, in the same floating-point operations, without the reward; `check_simulator` holds them
equal to the stock flag step by step.

A rule is called after `mj_forward`, with live views of one `MjData`. `goal` is the task's target as it was at reset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Rule = Callable[[], bool]
Reader = Callable[[], Sequence[float]]
Offset = tuple[float, float, float]


class Place(Protocol):
    """Something whose position can be read."""

    def bind(self, data: Any) -> Reader:
        """A function that reads x, y, z (metres) from this `MjData`."""
        ...


@dataclass(frozen=True)
class Body:
    """A body, plus fixed offsets (added one after the other, as the stock environment does)."""

    name: str
    offsets: tuple[Offset, ...] = ()

    def view(self, data: Any) -> np.ndarray:
        return data.body(self.name).xpos

    def bind(self, data: Any) -> Reader:
        view = self.view(data)
        if not self.offsets:
            return view.tolist

        def read() -> Sequence[float]:
            x, y, z = view.tolist()
            for dx, dy, dz in self.offsets:
                x, y, z = x + dx, y + dy, z + dz
            return x, y, z

        return read


@dataclass(frozen=True)
class Site(Body):
    """A site."""

    def view(self, data: Any) -> np.ndarray:
        return data.site(self.name).xpos


@dataclass(frozen=True)
class Geom(Body):
    """A geom."""

    def view(self, data: Any) -> np.ndarray:
        return data.geom(self.name).xpos


@dataclass(frozen=True)
class GripperCentre:
    """The point between the two finger tips."""

    def bind(self, data: Any) -> Reader:
        right, left = data.site("rightEndEffector").xpos, data.site("leftEndEffector").xpos

        def read() -> Sequence[float]:
            (rx, ry, rz), (lx, ly, lz) = right.tolist(), left.tolist()
            return (rx + lx) / 2.0, (ry + ly) / 2.0, (rz + lz) / 2.0

        return read


@dataclass(frozen=True)
class DialPointer:
    """The end of the dial's pointer, 5 cm from its centre."""

    def bind(self, data: Any) -> Reader:
        centre, angle = data.body("dial").xpos, data.joint("knob_Joint_1").qpos

        def read() -> Sequence[float]:
            x, y, z = centre.tolist()
            # np.sin, not math.sin: the two may differ in the last bit.
            return x + np.sin(angle).item() * 0.05, y + -np.cos(angle).item() * 0.05, z

        return read


def near(
    place: Place,
    radius: float,
    *,
    scale: Offset = (1.0, 1.0, 1.0),
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
        read = place.bind(data)
        target: Reader = fixed_goal.tolist if goal is None else goal.bind(data)
        limit = np.nextafter(radius, 0.0) if strict else radius
        surely_out, surely_in = (radius * (1 + 1e-9)) ** 2, (radius * (1 - 1e-9)) ** 2
        (wx, wy, wz), (gx, gy, gz) = scale, target()

        def rule() -> bool:
            nonlocal gx, gy, gz
            if goal is not None:
                gx, gy, gz = target()
            x, y, z = read()
            dx, dy, dz = (x - gx) * wx, (y - gy) * wy, (z - (gz if goal_height is None else goal_height)) * wz
            square = dx * dx + dy * dy + dz * dz
            if square > surely_out or square < surely_in:
                return square < surely_in
            error = np.array([dx, dy, dz])  # numpy's sum may round another way, which matters only here
            return math.sqrt(error.dot(error)) <= limit

        return rule

    return bind


def along(place: Place, axis: int, tolerance: float) -> Callable[[Any, np.ndarray], Rule]:
    """Success within `tolerance` (metres) of the goal's coordinate `axis`."""

    def bind(data: Any, goal: np.ndarray) -> Rule:
        read, target = place.bind(data), float(goal[axis])
        return lambda: abs(read()[axis] - target) <= tolerance

    return bind


def _assembly(data: Any, goal: np.ndarray) -> Rule:
    """The nut's hole is around the peg and below its top."""
    centre = data.site("RoundNut").xpos

    def rule() -> bool:
        error = goal - centre
        return math.sqrt(error[:2].dot(error[:2])) < 0.02 and bool(error[2] > 0.0)

    return rule


def _disassemble(data: Any, goal: np.ndarray) -> Rule:
    handle, target = data.site("RoundNut-8").xpos, float(goal[2])
    return lambda: handle.item(2) > target


def _hammer(data: Any, goal: np.ndarray) -> Rule:
    nail = data.joint("NailSlideJoint").qpos
    return lambda: nail.item() > 0.09


def _lever(data: Any, goal: np.ndarray) -> Rule:
    lever = data.joint("LeverAxis").qpos
    return lambda: abs(-lever.item() - np.pi / 2.0) <= np.pi / 24


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
    container, stick = data.site("insertion").xpos, data.body("stick").xpos
    handle_offset = np.array([0.0, 0.09, 0.0])
    right, left = data.body("rightclaw").xpos, data.body("leftclaw").xpos
    object_id = data.geom("objGeom").id
    pads = data.geom("leftpad_geom").id, data.geom("rightpad_geom").id
    start_height = 0.02

    def presses(pad: int) -> bool:
        contacts = [c for c in data.contact if pad in (c.geom1, c.geom2) and object_id in (c.geom1, c.geom2)]
        return bool(sum(data.efc_force[c.efc_address] for c in contacts) > 0)

    def rule() -> bool:
        error = container + handle_offset - goal
        if math.sqrt(error.dot(error)) > 0.12 or not float(stick[2]) - 0.01 > start_height:
            return False
        opening = right - left
        return opening.dot(opening) > 0 and presses(pads[0]) and presses(pads[1])

    return rule


_BUTTON_FRONT = Body("button", ((0.0, -0.193, 0.0),))
_BUTTON_TOP = Body("button", ((0.0, 0.0, 0.193),))

LIVE_GOALS: dict[str, Place] = {"basketball-v3": Site("goal"), "bin-picking-v3": Body("bin_goal")}
"""Tasks whose goal is a place that moves with the simulation, not a fixed point."""

SUCCESS: dict[str, Callable[[Any, np.ndarray], Rule]] = {
    "assembly-v3": _assembly,
    "basketball-v3": near(
        Body("bsktball"), 0.08, scale=(1.0, 1.0, 2.0), goal=LIVE_GOALS["basketball-v3"], goal_height=0.3
    ),
    "bin-picking-v3": near(Body("obj"), 0.05, goal=LIVE_GOALS["bin-picking-v3"]),
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
