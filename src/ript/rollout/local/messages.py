"""What the parent and a worker process say to each other, over one duplex pipe."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ript.core import errors
from ript.core.errors import RiptError, WorkerError
from ript.core.types import Rollout, RolloutRequest, SimulatorSpec
from ript.rollout.engine import Outcome
from ript.rollout.local.shared import Layout


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told when it starts."""

    index: int
    slots: int
    central: bool
    frame_every: int
    free_simulators: int
    loaded_tasks: int


# ---------------------------------------------------------------------------------------------- parent -> worker


@dataclass(frozen=True, slots=True)
class Work:
    run: int
    requests: Sequence[tuple[int, RolloutRequest]]


@dataclass(frozen=True, slots=True)
class Weights:
    data: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is over: drop what is in flight and answer `Stopped`."""

    run: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Use this shared memory for observations and actions."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Answer:
    """The actions are in shared memory, `steps` of them a row."""

    steps: int


# ---------------------------------------------------------------------------------------------- worker -> parent


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class Finished:
    """Rollouts (local policy) or their outcomes (central policy), and what was spent since the last report."""

    results: Sequence[tuple[int, Rollout | Outcome]]
    spent: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Stopped:
    run: int
    spent: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measure:
    """Make shared memory that fits this simulator."""

    spec: SimulatorSpec


@dataclass(frozen=True, slots=True)
class Ask:
    """Observations are in shared memory, one row a ticket: decide."""

    tickets: Sequence[int]
    instruction: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Crashed:
    """An error that concerns the whole run (`run`), or every run (None)."""

    run: int | None
    kind: str
    message: str
    traceback: str

    @staticmethod
    def of(error: BaseException, where: str, run: int | None) -> Crashed:
        message = str(error) if isinstance(error, RiptError) else f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        return Crashed(run, type(error).__name__, f"{where}: {message}", trace)

    def rebuild(self) -> RiptError:
        """The same class of `errors` (WorkerError for any other), with the worker's traceback as a note."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, RiptError)):
            kind = WorkerError
        error: RiptError = kind.__new__(kind)
        error.args = (self.message,)
        error.add_note(f"raised in a worker process:\n{self.traceback}")
        return error
