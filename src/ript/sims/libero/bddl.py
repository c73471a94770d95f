"""Reads the files that describe LIBERO's tasks: regions, what is where at the start, and the goal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ript.core.errors import SimulatorError

Fact = tuple[str, ...]
"""Predicate and what it is about, such as ("on", "plate_1", "main_table_plate_region")."""


@dataclass(frozen=True)
class Region:
    """Part of a table, of a fixture or of an object.

    Attributes:
        target: whose part.
        ranges: rectangles (x low, y low, x high, y high) around the middle of the table, metres; none for parts of
            other things.
        yaw: (low, high) of a fixture's rotation, rad.
    """

    target: str
    ranges: tuple[tuple[float, float, float, float], ...]
    yaw: tuple[float, float]


@dataclass(frozen=True)
class Problem:
    """What a file says.

    Attributes:
        kind: of scene, such as "libero_kitchen_tabletop_manipulation".
        fixtures, objects: name -> what it is.
        regions: TARGET_NAME -> region.
        initial: what holds at the start, in the file's order.
        goal: what is to hold all at once.
    """

    kind: str
    fixtures: Mapping[str, str]
    objects: Mapping[str, str]
    regions: Mapping[str, Region]
    initial: tuple[Fact, ...]
    goal: tuple[Fact, ...]


@cache
def problem_of(path: Path) -> Problem:
    """Read a file.

    Raises:
        SimulatorError: it cannot be read, or is no description of a task.
    """
    try:
        tree = _tree(path.read_text(encoding="utf-8"))
        parts = {part[0]: part[1:] for part in tree[1:]}
        goal = parts[":goal"][0]
        return Problem(
            kind=parts["problem"][0],
            fixtures=_typed(parts.get(":fixtures", [])),
            objects=_typed(parts.get(":objects", [])),
            regions=dict(_region(part) for part in parts.get(":regions", [])),
            initial=tuple(tuple(fact) for fact in parts[":init"]),
            goal=tuple(tuple(fact) for fact in (goal[1:] if goal[0] == "and" else [goal])),
        )
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise SimulatorError(f"{path} is no description of a LIBERO task: {type(error).__name__}: {error}") from error


def _tree(text: str) -> list[Any]:
    stack: list[list[Any]] = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*$", "", text, flags=re.MULTILINE).lower()):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    (only,), () = stack[0], stack[1:]
    return only


def _typed(words: list[str]) -> dict[str, str]:
    """ "a b - bowl c - plate" -> {"a": "bowl", "b": "bowl", "c": "plate"}."""
    found: dict[str, str] = {}
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "-":
            found |= dict.fromkeys(names, next(rest))
            names = []
        else:
            names.append(word)
    return found


def _region(part: list[Any]) -> tuple[str, Region]:
    attributes = {one[0]: one[1] for one in part[1:]}
    target = attributes[":target"]
    ranges = tuple(tuple(float(x) for x in one) for one in attributes.get(":ranges", []))
    low, high = (float(x) for x in attributes.get(":yaw_rotation", [[0, 0]])[-1])
    return f"{target}_{part[0]}", Region(target, ranges, (low, high))  # type: ignore[arg-type]
