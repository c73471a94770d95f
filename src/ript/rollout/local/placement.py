"""Which worker a rollout goes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ript.rollout.stream import Flight


@dataclass(slots=True)
class Load:
    """What a worker has to do, and which tasks it has loaded, as far as its parent knows.

    Attributes:
        tasks: that it may have loaded at a time.
        flights: what it was given and has not returned, by ticket.
        loaded: tasks that it probably has simulators of, least recently used first.
    """

    tasks: int
    flights: dict[int, Flight] = field(default_factory=dict)
    loaded: dict[str, None] = field(default_factory=dict)

    def has_room(self, task: str) -> bool:
        """Whether a rollout of this task can start without more tasks in use than may be loaded."""
        in_use = self._in_use()
        return task in in_use or len(in_use) < self.tasks

    def makes_room(self, task: str) -> bool:
        """Whether this task would take the place of another."""
        return task not in self.loaded and len(self.loaded) >= self.tasks

    def give(self, flight: Flight) -> None:
        """Note a rollout that the worker was given."""
        task = flight.request.initial_state.task.key
        self.flights[flight.ticket] = flight
        self.use(task)

    def use(self, task: str) -> None:
        """Note that the worker works on a task, which it will therefore have loaded, as the one used last."""
        self.loaded.pop(task, None)
        self.loaded[task] = None
        in_use = self._in_use()
        for other in [other for other in self.loaded if other not in in_use][: max(0, len(self.loaded) - self.tasks)]:
            del self.loaded[other]

    def _in_use(self) -> set[str]:
        return {flight.request.initial_state.task.key for flight in self.flights.values()}


def place(task: str, loads: Sequence[Load], slots: int) -> int | None:
    """Number of the worker that a rollout of this task goes to: the one with the least to do, where loading a task in
    another's place counts as half of the `slots`. None: each works on as many other tasks as it may have loaded."""
    fitting = [number for number, load in enumerate(loads) if load.has_room(task)]
    return min(fitting, key=lambda n: len(loads[n].flights) + loads[n].makes_room(task) * slots / 2, default=None)
