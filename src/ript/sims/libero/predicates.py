"""Has a task been solved? Its goal as functions that read positions, joints and contacts after a control step.

Positions and contacts are those of the last substep's beginning, one physics step old, as where stock asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ript.core.errors import SimulatorError
from ript.sims.libero.bddl import Fact

Test = Callable[[Any], bool]
"""`MjData` -> whether something holds."""

OVER = 0.10
"""Metres above a site in which something still stands on it."""
BELOW, SUNK = 0.01, 0.005
"""Metres by which something in a site may be below it, and on it within."""
CENTRED = 0.03
"""Metres between the centres of what is on an object and of the object."""


class Goal:
    """All of a task's goal.

    Args:
        model: the scene's.
        facts: of the scene (`stock.describe`).
        goal: of the task.

    Raises:
        SimulatorError: a predicate that is not known here.
    """

    def __init__(self, model: Any, facts: Mapping[str, Any], goal: Sequence[Fact]):
        self._model, self._facts = model, facts
        self._things = {**facts["fixtures"], **facts["objects"]}
        self._tests = tuple(self._test(fact) for fact in goal)

    def __call__(self, data: Any) -> bool:
        return all(test(data) for test in self._tests)

    def each(self, data: Any) -> tuple[bool, ...]:
        """Whether each predicate of the goal holds."""
        return tuple(test(data) for test in self._tests)

    def _test(self, fact: Fact) -> Test:
        name, *about = fact
        if name == "in" and about[1] in self._facts["sites"]:
            return self._in_site(*about)
        if name == "on":
            return self._on_site(*about) if about[1] in self._facts["sites"] else self._on_object(*about)
        if name in ("open", "close", "turnon", "turnoff"):
            return self._joints(name, about[0])
        raise SimulatorError(f"a goal that is not known here: {' '.join(fact)}")

    def _body(self, name: str) -> int:
        return int(self._model.body(self._things[name]["body"]).id)

    def _in_site(self, name: str, site: str) -> Test:
        body, number = self._body(name), int(self._model.site(site).id)
        size = np.array(self._facts["sites"][site]["size"])

        def test(data: Any) -> bool:
            extent = np.abs(data.site_xmat[number].reshape(3, 3) @ size)
            centre, where = data.site_xpos[number], data.xpos[body]
            low = centre - extent
            low[2] -= BELOW
            return bool((where > low).all() and (where < centre + extent).all())

        return test

    def _on_site(self, name: str, site: str) -> Test:
        body, number = self._body(name), int(self._model.site(site).id)
        size, parent = np.array(self._facts["sites"][site]["size"]), self._facts["sites"][site]["parent"]
        touching = self._touching(parent, name) if parent is not None else None

        def test(data: Any) -> bool:
            x, y, z = data.site_xmat[number].reshape(3, 3) @ (data.xpos[body] - data.site_xpos[number])
            above = size[2] - SUNK < z < size[2] + OVER and abs(x) < size[0] and abs(y) < size[1]
            return bool(above) and (touching is None or touching(data))

        return test

    def _on_object(self, name: str, other: str) -> Test:
        upper, lower = self._body(name), self._body(other)
        touching = self._touching(other, name)

        def test(data: Any) -> bool:
            low, high = data.xpos[lower], data.xpos[upper]
            return bool(low[2] <= high[2] and np.linalg.norm(low[:2] - high[:2]) < CENTRED) and touching(data)

        return test

    def _touching(self, one: str, other: str) -> Test:
        ones, others = (self._geoms(name) for name in (one, other))

        def test(data: Any) -> bool:
            pairs = data.contact.geom
            first, second = pairs[:, 0], pairs[:, 1]
            return bool(((ones[first] & others[second]) | (ones[second] & others[first])).any())

        return test

    def _geoms(self, name: str) -> np.ndarray:
        found = np.zeros(self._model.ngeom, bool)
        found[[self._model.geom(geom).id for geom in self._things[name]["geoms"]]] = True
        return found

    def _joints(self, name: str, about: str) -> Test:
        site = self._facts["sites"].get(about)
        thing = self._things[site["parent"] if site else about]
        joints = (site or thing)["joints"]
        addresses = [int(self._model.joint(joint).qposadr[0]) for joint in joints]
        relation, edge = thing["tests"][name]
        some = any if name in ("open", "turnon") else all

        def test(data: Any) -> bool:
            return some(holds(float(data.qpos[at]), relation, edge) for at in addresses)

        return test


def holds(value: float, relation: str, edge: float) -> bool:
    """Whether "<", ">" or ">=" holds."""
    if relation == "<":
        return value < edge
    return value >= edge if relation == ">=" else value > edge
