"""What the parent and a worker process say to each other, over one duplex pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ript.core.types import Errand, Rollout, RolloutRequest, SimulatorSpec
from ript.core.workers import Crashed
from ript.rollout.engine import Outcome
from ript.rollout.local.shared_memory import Layout


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told when it starts."""

    index: int
    slots: int
    central: bool
    frame_every: int
    free_simulators: int
    loaded_tasks: int
    fixed_batch: int


# ---------------------------------------------------------------------------------------------- parent -> worker


@dataclass(frozen=True, slots=True)
class Work:
    """Make rollouts, for a policy that sees so many observation steps at a time."""

    run: int
    observation_steps: int
    requests: Sequence[tuple[int, RolloutRequest]]


@dataclass(frozen=True, slots=True)
class Use:
    """Act with this policy (packed) from now on."""

    policy: bytes


@dataclass(frozen=True, slots=True)
class Weights:
    data: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The run is over: drop what is in flight and answer `Stopped`. Errands are not part of it."""

    run: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Use this shared memory for observations and actions."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Answer:
    """The actions for a part are in shared memory, `steps` of them a row."""

    part: int
    steps: int


@dataclass(frozen=True, slots=True)
class Go:
    """Run this errand."""

    number: int
    errand: Errand


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
    """Observations of a part of the slots are in shared memory, one row a ticket, from row `first` on: decide."""

    part: int
    first: int
    tickets: Sequence[int]
    instruction: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Back:
    """From an errand, with its answer, or with why there is none."""

    number: int
    answer: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that concerns the whole run (`run`), or every run (None)."""

    run: int | None
    crash: Crashed
