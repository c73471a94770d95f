"""Why rollouts ended in ERROR. An ERROR counts nowhere, so what it says is kept and told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ript.core.types import Reason, Rollout, Status

MOST = 5
"""Different reasons that are kept of many rollouts."""


def reasons(rollouts: Iterable[Rollout]) -> tuple[Reason, ...]:
    """Why these ended in ERROR, as far as they did: the commonest reasons first, `MOST` at most."""
    errors = [rollout.error or "unknown" for rollout in rollouts if rollout.status is Status.ERROR]
    messages = [_message(error) for error in errors]
    return tuple(
        Reason(message=message, count=count, example=errors[messages.index(message)].rstrip())
        for message, count in Counter(messages).most_common(MOST)
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


def _message(error: str) -> str:
    return (error.splitlines() or ["unknown"])[0]
