"""Errands on their way to workers and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ript.core.errors import RiptError, WorkerError
from ript.core.types import Errand
from ript.core.workers import Crashed

AT_A_TIME = 2
"""Errands that a worker has: one that it runs, and the next."""
WORTH_LOADING = 4
"""Errands of other workers' tasks that must wait before a worker that has nothing else loads such a task as well."""


@dataclass(slots=True)
class Trip:
    """An errand that was sent out; `lost` counts the workers that died on it."""

    number: int
    errand: Errand
    lost: int = 0


class Errands:
    """Which errand goes where, and what came back.

    Args:
        max_retries: how often one is run again after its worker was lost.
    """

    def __init__(self, max_retries: int):
        self._max_retries = max_retries
        self._number = 0
        self._waiting: deque[Trip] = deque()
        self._missing: set[int] = set()
        self._answers: dict[int, Any] = {}

    def begin(self, errands: Sequence[Errand]) -> list[int]:
        """Take up errands; returns their numbers. Earlier ones are forgotten: their answers are not wanted any more."""
        numbers = list(range(self._number + 1, self._number + 1 + len(errands)))
        self._number += len(errands)
        self._waiting = deque(Trip(number, errand) for number, errand in zip(numbers, errands, strict=True))
        self._missing, self._answers = set(numbers), {}
        return numbers

    def next(self, here: Collection[str], elsewhere: Collection[str]) -> Trip | None:
        """The one to give to a worker, if any: of a task that it has loaded, else of one that no other has, else the
        first of several that wait.

        Args:
            here: tasks that it has loaded.
            elsewhere: tasks that others have loaded.
        """
        for among in (
            [trip for trip in self._waiting if trip.errand.task in here],
            [trip for trip in self._waiting if trip.errand.task not in elsewhere],
            self._waiting if len(self._waiting) >= WORTH_LOADING else (),
        ):
            if among:
                trip = among[0]
                self._waiting.remove(trip)
                return trip
        return None

    def back(self, number: int, answer: Any) -> None:
        """An answer, or the `Crashed` that came instead of one."""
        if number in self._missing:
            self._missing.remove(number)
            self._answers[number] = answer

    def lost(self, trip: Trip, cause: str, blamed: bool) -> None:
        """A worker was lost with it: it is run again, or given up."""
        if trip.number not in self._missing:
            return
        trip.lost += blamed
        if trip.lost > self._max_retries:
            self.back(trip.number, WorkerError(f"{trip.errand.task}: {cause}; that was its try number {trip.lost}"))
        else:
            self._waiting.appendleft(trip)

    def answers(self, numbers: Sequence[int]) -> list[Any] | None:
        """All answers, in order, or None while some are missing.

        Raises:
            RiptError: what came instead of an answer; the others are not waited for.
        """
        for answer in self._answers.values():
            if isinstance(answer, Crashed):
                raise answer.rebuild()
            if isinstance(answer, RiptError):
                raise answer
        if self._missing:
            return None
        return [self._answers[number] for number in numbers]
