"""Records of rollouts, which stay on the node that made them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Protocol

from ript.core.errors import WorkerError
from ript.core.types import Rollout, RolloutRequest
from ript.rollout.cluster.connection import require_ray, room_in_store
from ript.rollout.engine import address

LOST_AT_MOST, FETCH_SECONDS = 5, 30.0
"""Times that one record is looked for, and seconds after which it is asked whether its node is still there."""


@dataclass(frozen=True)
class Record:
    """The record of a rollout in the object store of the node that made it; freed when nobody has this any more."""

    node: str
    ref: Any

    def fetch(self, seconds: float | None = None) -> Rollout:
        """From wherever it is; `seconds` to wait at most, for a node that hangs.

        A copy: what Ray gives lies in the object store, which would have to hold all that is fetched.

        Raises:
            OutOfMemory: the object store has no room for it.
        """
        with room_in_store(f"the record of a rollout that {self.node} made"):
            rollout: Rollout = copy.deepcopy(require_ray().get(self.ref, timeout=seconds))
        return rollout


class Keeper(Protocol):
    """Who makes records again."""

    @property
    def lost_errors(self) -> tuple[type[Exception], ...]:
        """Errors that Ray raises when an object is gone with its node."""
        ...

    def look(self) -> None:
        """See whether nodes are lost."""
        ...

    def mend(self) -> None:
        """Make records again that were lost with their nodes."""
        ...


class Kept:
    """The record of a rollout, on its node, as long as the driver has a use for it. One that is lost is made again.

    On its way to another process it is the `Record` alone.
    """

    def __init__(self, record: Record, request: RolloutRequest, version: int, pool: Keeper):
        self.record, self.request, self.version, self._pool = record, request, version, pool

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self.record.node, self.record.ref)

    def fetch(self) -> Rollout:
        for _ in range(LOST_AT_MOST):
            self._pool.mend()
            try:
                return self.record.fetch(FETCH_SECONDS)
            except self._pool.lost_errors:
                self._pool.look()
        raise WorkerError(f"the record of {address(self.request)} was lost {LOST_AT_MOST} times")
