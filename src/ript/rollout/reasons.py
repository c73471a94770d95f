"""Why rollouts ended in ERROR. An ERROR counts nowhere, so what it says is kept and told."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ript.core.types import Reason, Rollout, Status

MOST = 5
"""Different reasons that are kept of many rollouts."""
_NUMBER = re.compile(r"(?<![\w.])[-+]?(\d+(\.\d*)?(e[-+]?\d+)?|nan|inf)\b")


def reasons(rollouts: Iterable[Rollout]) -> tuple[Reason, ...]:
    """Why these ended in ERROR, as far as they did: the commonest reasons first, `MOST` at most.

    Errors that differ in their place (task, initial state, step) or in numbers alone have one reason, which is told in
    the words of the first.
    """
    alike: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.status is Status.ERROR:
            alike.setdefault(_kind(rollout), []).append(rollout)
    commonest = sorted(alike.values(), key=len, reverse=True)[:MOST]
    return tuple(
        Reason(message=_message(found[0]), count=len(found), example=_error(found[0]).rstrip()) for found in commonest
    )


def in_a_line(rollouts: Sequence[Rollout]) -> str:
    """Such as "3 of 16 rollouts ended in ERROR: 3 with ValueError: ... (while stepping: toy/reach, initial state ...)".

    Empty when none did.
    """
    found = reasons(rollouts)
    if not found:
        return ""
    errors, first = sum(rollout.status is Status.ERROR for rollout in rollouts), found[0]
    where = [line.strip() for line in first.example.splitlines()[1:] if line.startswith(("  while ", "  with "))]
    at = f" ({where[0]})" if where else ""
    return f"{errors} of {len(rollouts)} rollouts ended in ERROR: {first.count} with {first.message}{at}"


def _error(rollout: Rollout) -> str:
    return rollout.error or "unknown"


def _message(rollout: Rollout) -> str:
    """Class and first line of what was raised; without the place, where it begins with that."""
    first = (_error(rollout).splitlines() or ["unknown"])[0]
    kind, raised, _ = first.partition(": ")
    _, found, rest = first.partition(rollout.initial_state_id)
    place = re.match(r"(, \w+ \d+)*: (?=.)", rest)
    return f"{kind}: {rest[place.end() :]}" if raised and found and place else first


def _kind(rollout: Rollout) -> str:
    """The same for all errors that differ in place and numbers alone."""
    return _NUMBER.sub("#", _message(rollout).replace(rollout.initial_state_id, "#"))
