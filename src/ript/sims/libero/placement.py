"""Where a reset puts things: drawn as stock LIBERO draws, number for number, but without building anything.

A generator seeded like NumPy's global one gives what stock gives after `np.random.seed` and `env.reset()` in a newly
built environment; the test compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ript.core.errors import SimulatorError
from ript.sims.libero.bddl import Problem
from ript.sims.libero.controller import matrix

TRIES = 5000
ARM_NOISE = 0.02
"""Radians, standard deviation, of the arm's joints in the benchmark's initial states."""
_LYING = 0.01
"""Metres above a table at which objects begin."""


@dataclass(frozen=True)
class Placed:
    """A thing that has its place: position (m) and quaternion."""

    position: np.ndarray
    quaternion: np.ndarray
    thing: Mapping[str, Any]


@dataclass(frozen=True)
class Placement:
    """What a reset drew.

    Attributes:
        arm: noise on the arm's joints, `[7]`, in standard deviations.
        joints: (joint, its position) of what is open, closed or turned on.
        placed: fixture or object -> its pose.
    """

    arm: np.ndarray
    joints: Sequence[tuple[str, float]]
    placed: Mapping[str, Placed]


SitePosition = Callable[[str, Sequence[tuple[str, float]]], np.ndarray]
"""(site, joints that are set) -> where it is `[3]`, its fixture standing where the model puts it."""


class Placer:
    """Draws for one task.

    Args:
        facts: of its scene (`stock.describe`).
        problem: of the task.
        site_position: for what is put into or onto parts of fixtures.
        where: for errors.
    """

    def __init__(self, facts: Mapping[str, Any], problem: Problem, site_position: SitePosition, where: str):
        self._facts, self._problem, self._where = facts, problem, where
        self._things = {**facts["fixtures"], **facts["objects"]}
        self._site_position = site_position

    def draw(self, generator: np.random.RandomState) -> Placement:
        """A reset.

        Raises:
            SimulatorError: no place was found.
        """
        arm = generator.randn(7)
        joints: list[tuple[str, float]] = []
        for _ in range(2):  # a newly built stock environment has each of these twice after its first reset
            joints = [one for fact in self._problem.initial for one in self._joints(fact, generator)]
        placed: dict[str, Placed] = {}
        later: dict[str, list[tuple[str, str]]] = {"site": [], "inside": [], "object": []}
        for name, *about in self._problem.initial:
            if name == "on" and about[1] in self._facts["objects"]:
                later["object"].append((about[0], about[1]))
            elif name in ("in", "on") and about[-1] in self._problem.regions:
                if name == "in":
                    later["inside"].append((about[0], about[1]))
                elif self._problem.regions[about[1]].target in self._things:
                    later["site"].append((about[0], about[1]))
                else:
                    self._on_table(about[0], about[1], placed, generator)
        for thing, region in later["site"]:
            self._at_site(thing, region, joints, placed, generator, inside=False)
        for thing, region in later["inside"]:
            self._at_site(thing, region, joints, placed, generator, inside=True)
        for thing, other in later["object"]:
            self._on_thing(thing, other, placed, generator)
        return Placement(arm, joints, placed)

    def _joints(self, fact: Sequence[str], generator: np.random.RandomState) -> list[tuple[str, float]]:
        name, about = fact[0], fact[1]
        if name not in ("open", "close", "turnon", "turnoff"):
            return []
        site = self._facts["sites"].get(about)
        thing = self._things[site["parent"] if site else about]
        low, high = thing["ranges"][name]
        value = float(generator.uniform(high=high, low=low))
        return [(joint, value) for joint in (site or thing)["joints"]]

    def _on_table(self, name: str, region: str, placed: dict[str, Placed], generator: np.random.RandomState) -> None:
        place, thing, workspace = self._problem.regions[region], self._things[name], self._facts["workspace"]
        base = np.array(workspace["offset"])
        ranges = [((x0, x1), (y0, y1)) for x0, y0, x1, y1 in place.ranges]
        if name in self._facts["fixtures"]:
            height = workspace["fixture_height"]
            placed[name] = self._drawn(thing, ranges, base, height, generator, {}, lambda: _yaw(generator, place.yaw))
            return
        margin = thing["radius"] if workspace["name"] in ("main_table", "floor", "coffee_table") else 0.0
        placed[name] = self._drawn(
            thing, ranges, base, _LYING, generator, placed, lambda: _turned(generator, thing), margin
        )

    def _at_site(
        self,
        name: str,
        region: str,
        joints: Sequence[tuple[str, float]],
        placed: dict[str, Placed],
        generator: np.random.RandomState,
        *,
        inside: bool,
    ) -> None:
        thing, reference = self._things[name], placed[self._problem.regions[region].target]
        site = matrix(reference.quaternion) @ self._site_position(region, joints)
        base = np.array(reference.position)
        if inside:
            ranges, margin = [((0.0, 0.0), (0.0, 0.0))], 0.0
        else:
            base[2] += reference.thing["top"]
            width, depth = (float(x) / 2 for x in self._facts["sites"][region]["size"][:2])
            ranges, margin = [((-width, width), (-depth, depth))], thing["radius"]
        placed[name] = self._drawn(
            thing, ranges, base, 0.0, generator, placed, lambda: _turned(generator, thing), margin, site
        )

    def _on_thing(self, name: str, other: str, placed: dict[str, Placed], generator: np.random.RandomState) -> None:
        thing, reference = self._things[name], placed[other]
        base = np.array(reference.position)
        base[2] += reference.thing["top"]
        ranges = [((0.0, 0.0), (0.0, 0.0))]
        placed[name] = self._drawn(thing, ranges, base, _LYING, generator, {}, lambda: _turned(generator, thing))

    def _drawn(
        self,
        thing: Mapping[str, Any],
        ranges: Sequence[tuple[tuple[float, float], tuple[float, float]]],
        base: np.ndarray,
        height: float,
        generator: np.random.RandomState,
        avoided: Mapping[str, Placed],
        turned: Callable[[], np.ndarray],
        margin: float = 0.0,
        site: np.ndarray | None = None,
    ) -> Placed:
        for _ in range(TRIES):
            (x_low, x_high), (y_low, y_high) = ranges[generator.randint(len(ranges))]
            x = generator.uniform(high=x_high - margin, low=x_low + margin) + base[0]
            y = generator.uniform(high=y_high - margin, low=y_low + margin) + base[1]
            z = height + base[2]
            if site is not None:
                x, y, z = x + site[0], y + site[1], z + site[2]
            z -= thing["bottom"]
            if not any(_overlap(x, y, z, thing, other) for other in avoided.values()):
                return Placed(np.array([x, y, z]), turned(), thing)
        raise SimulatorError(f"{self._where}: no place was found for {thing['body']} in {TRIES} draws")


def _overlap(x: float, y: float, z: float, thing: Mapping[str, Any], other: Placed) -> bool:
    apart = np.linalg.norm((x - other.position[0], y - other.position[1]))
    near = apart <= other.thing["radius"] + thing["radius"]
    return bool(near and z - other.position[2] <= other.thing["top"] - thing["bottom"])


def _yaw(generator: np.random.RandomState, yaw: tuple[float, float]) -> np.ndarray:
    angle = generator.uniform(high=max(yaw), low=min(yaw))
    return np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


def _turned(generator: np.random.RandomState, thing: Mapping[str, Any]) -> np.ndarray:
    """As stock: the scalar part last, where MuJoCo has it first. So the half turns that objects are given lay them down
    otherwise than they say."""
    quaternion = np.array([0.0, 0.0, 0.0, 1.0])
    for axis, angles in thing["rotation"]:
        angle = generator.uniform(high=max(angles), low=min(angles))
        one = np.zeros(4)
        one["xyz".index(axis)], one[3] = np.sin(angle / 2), np.cos(angle / 2)
        quaternion = _product(one, quaternion) if thing["several_turns"] else one
    return quaternion


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The product of two quaternions, in single precision as robosuite's."""
    x0, y0, z0, w0 = other
    x1, y1, z1, w1 = one
    return np.array(
        (
            x1 * w0 + y1 * z0 - z1 * y0 + w1 * x0,
            -x1 * z0 + y1 * w0 + z1 * x0 + w1 * y0,
            x1 * y0 - y1 * x0 + z1 * w0 + w1 * z0,
            -x1 * x0 - y1 * y0 - z1 * z0 + w1 * w0,
        ),
        dtype=np.float32,
    )
