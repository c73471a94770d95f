"""Requests on their way to slots: drawn lazily, retried ones first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace

from ript.core.errors import ConfigError, ErrorRateExceeded
from ript.core.types import Heed, Rollout, RolloutRequest, Status
from ript.rollout.reasons import reasons

HEED_SECONDS = 0.01
"""Between two calls of what heeds (`EnvPool.run`), at most, in a pool on this machine."""


@dataclass(slots=True)
class Flight:
    """A request in flight; `lost` counts the workers that died on it."""

    ticket: int
    request: RolloutRequest
    lost: int = 0


class Stream:
    """Draws from an iterable of requests. None from it means: nothing now, ask again after the next rollout."""

    def __init__(self, requests: Iterable[RolloutRequest | None], first_ticket: int = 0):
        self._source = iter(requests)
        self._retries: deque[Flight] = deque()
        self._ended = False
        self._paused = False
        self.ticket = first_ticket

    def draw(self) -> Flight | None:
        """The next flight, or None when there is none now (or none at all: `ended`)."""
        if self._retries:
            return self._retries.popleft()
        if self._ended or self._paused:
            return None
        try:
            request = next(self._source)
        except StopIteration:
            self._ended = True
            return None
        if request is None:
            self._paused = True
            return None
        self.ticket += 1
        return Flight(self.ticket, request)

    def again(self, flight: Flight) -> None:
        """Run this flight once more, before anything new."""
        self._retries.append(flight)

    def back(self, flight: Flight) -> None:
        """There is no place for this flight yet: it is drawn again before any other."""
        self._retries.appendleft(flight)

    def ask_again(self) -> None:
        """The source may now know more: a rollout was yielded, or something else has come to pass."""
        self._paused = False

    def finished(self) -> bool:
        """Nothing is left to draw. Call it only when nothing is in flight.

        Raises:
            ConfigError: the source waits for a rollout although none is in flight: it would wait for ever.
        """
        if self._paused and not self._retries:
            raise ConfigError("the requests yielded None (wait for a rollout) although no rollout is in flight")
        return self._ended and not self._retries


class ErrorLimit:
    """Stops a run in which too many rollouts end in ERROR.

    One bad initial state fails K times in a row, and at once: a group's errors alone do not stop a run in which other
    rollouts work.

    Args:
        rate: the share of ERROR that is still accepted, over the last `window` rollouts.
        at_least: rollouts needed before judging.
    """

    def __init__(self, rate: float, *, at_least: int = 20, window: int = 100):
        self._rate, self._at_least = rate, at_least
        self._recent: deque[Rollout] = deque(maxlen=window)

    def add(self, rollout: Rollout) -> None:
        """Count a rollout.

        Raises:
            ErrorRateExceeded: names the commonest error, with one full example.
        """
        self._recent.append(replace(rollout.outcome(), frames=None))
        failed = [recent for recent in self._recent if recent.status is Status.ERROR]
        total = len(self._recent)
        if total < self._at_least or len(failed) <= self._rate * total:
            return
        if len({rollout.initial_state_id for rollout in failed}) == 1 and len(failed) < total:
            return
        commonest = reasons(failed)[0]
        self._recent.clear()
        raise ErrorRateExceeded(
            f"{len(failed)} of the last {total} rollouts ended in ERROR (limit {self._rate:.0%}); "
            f"{commonest.count} of them with:\n{commonest.example}"
        )


def rollouts_as_they_end(
    stream: Stream,
    done: deque[Rollout],
    errors: ErrorLimit,
    *,
    assign: Callable[[], None],
    busy: Callable[[], bool],
    turn: Callable[[], object],
    heed: Heed | None,
) -> Generator[Rollout, None, None]:
    """Rollouts of a stream as they end, from whoever makes them.

    Args:
        stream: drawn from by `assign`.
        done: where rollouts that have ended are put.
        errors: judges them.
        assign: hands out requests while there is room.
        busy: whether anything is in flight.
        turn: waits until something happens, and takes it in.
        heed: see `EnvPool.run`.
    """
    while True:
        if heed is not None:
            heed()
            stream.ask_again()
        assign()
        if not done:
            if not busy() and stream.finished():
                return
            turn()
        while done:
            rollout = done.popleft()
            errors.add(rollout)
            stream.ask_again()
            yield rollout


def refuse_if(running: bool, what: str) -> None:
    """A pool does one thing at a time."""
    if running:
        raise ConfigError(f"{what} while rollouts are in flight: finish or close the iterator of `run` first")
