"""The rollout engine: the loop that every process runs, whether it owns a policy or not.

A slot is one rollout in progress, with a simulator instance of its own. A cycle looks at nothing that is not needed:

    decide for all slots in one batch  ->  each slot executes its chunk  ->  the finished leave, the others look

and free places are filled before the next cycle, so that the batch stays full while there is work. Slots may be in two
parts, so that those of one execute while another process decides for those of the other.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np

from ript.core.errors import ConfigError, DependencyMissing, PolicyError, SimulatorError, WorkerError
from ript.core.interfaces import Simulator
from ript.core.simulators import SimulatorCache, surviving
from ript.core.types import ChunkResult, Observation, RolloutRequest, SimulatorSpec, Status
from ript.core.workers import RESTING

DECIDING, LOADING, ANSWERING = -1, -3, -4
"""What a process does when it does not work on a rollout's simulator (see `Watch`)."""

Watch = Callable[[int], None]
"""Called when a unit of work begins; whatever may take long is one of its own. With a ticket (that rollout's simulator
is built, reset, stepped by a chunk, looked at, filmed or closed), DECIDING (a call of the policy), LOADING (a policy or
its weights), ANSWERING (an errand's use of its simulator) or RESTING."""

FATAL = (ConfigError, DependencyMissing, PolicyError)
"""Raised by a simulator, these concern every rollout: the run stops instead of counting an ERROR."""


class Brain(Protocol):
    """Decides for slots."""

    def decide(self, tickets: Sequence[int], observation: Observation) -> np.ndarray:
        """Actions float32 `[B, H, A]` for the rollouts with these tickets, given B observations."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a rollout ended, as the simulator's side knows it. See `types.Rollout` for the fields.

    Attributes:
        executed: environment steps of each decision's chunk, the last one's up to the success; empty for an ERROR.
    """

    ticket: int
    status: Status
    decisions: int
    env_steps: int
    executed: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    error: str | None = None


@dataclass(slots=True)
class _Slot:
    ticket: int
    request: RolloutRequest
    part: int
    horizon: int = 0
    simulator: Simulator | None = None
    seen: deque[Observation] = field(default_factory=deque)
    decisions: int = 0
    env_steps: int = 0
    executed: list[int] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)


class Slots:
    """Up to `size` rollouts in progress in this process.

    Args:
        simulators: where instances come from; not closed here.
        size: rollouts in progress at most, hence the largest batch.
        parts: that take turns, of nearly equal size.
        where: this process in messages, such as "worker 3".
        frame_every: environment steps between the frames of a video.
        watch: told what the process works on.

    Attributes:
        check: raises unless the policy fits a simulator.
        observation_steps: n, consecutive steps that the policy sees at a time (`hooks.observation_steps_of`); it may
            change while no rollout is in progress.
        spec: of the first simulator that was built.
    """

    def __init__(
        self,
        simulators: SimulatorCache,
        *,
        size: int,
        parts: int = 1,
        where: str,
        frame_every: int = 4,
        watch: Watch = lambda ticket: None,
    ):
        self._simulators = simulators
        self.check: Callable[[SimulatorSpec], None] = lambda spec: None
        self.observation_steps = 1
        self.spec: SimulatorSpec | None = None
        self._size, self._where, self._frame_every, self._watch = size, where, frame_every, watch
        self.sizes = [size // parts + (part < size % parts) for part in range(parts)]
        self._slots: list[_Slot] = []
        self._asked: dict[int, list[_Slot]] = {}
        self.env_steps = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        return self._size - len(self._slots)

    def busy(self, part: int) -> int:
        """Rollouts in progress in a part."""
        return sum(slot.part == part for slot in self._slots)

    def has_room(self, request: RolloutRequest) -> bool:
        """Whether a place is free, and a simulator of its task can be had; see `SimulatorCache.has_room`."""
        return bool(self.free) and self._simulators.has_room(request.initial_state.task.key)

    def start(self, ticket: int, request: RolloutRequest, part: int = 0) -> Outcome | None:
        """Build or take a simulator, reset it and look. Returns an Outcome only when that failed (ERROR).

        Raises:
            ConfigError, DependencyMissing, PolicyError: from the simulator, or it does not fit the policy or the pool's
            other simulators; no rollout could work.
        """
        slot = _Slot(ticket, request, part)
        self._watch(ticket)
        what = "building the simulator"
        try:
            with surviving():
                slot.simulator = self._simulators.take(request.initial_state.task.key)
            self._admit(request.initial_state.task.key, slot.simulator.spec)
            slot.horizon = _horizon(request, slot.simulator)
            what = "resetting"
            self._watch(ticket)
            with surviving():
                first = _checked(slot.simulator.reset(request.initial_state), slot.simulator.spec)
                slot.seen = deque([first] * self.observation_steps, maxlen=self.observation_steps)
                if request.video:
                    self._film(slot, slot.simulator)
        except FATAL:
            if slot.simulator is not None:
                self._simulators.discard(slot.simulator)
            raise
        except Exception as error:
            return self._failed(slot, error, what)
        self._slots.append(slot)
        return None

    def _admit(self, key: str, spec: SimulatorSpec) -> None:
        """Raise unless the policy fits a simulator, and that shows and takes what the others do."""
        self.check(spec)
        first = self.spec = self.spec or spec
        for name in ("cameras", "proprio", "action_dim"):
            have, want = getattr(spec, name), getattr(first, name)
            if have != want:
                raise ConfigError(
                    f"{key} has {name} = {have}, but the pool's other simulators have {want}: one policy acts "
                    f"on all of them in one batch; use one configuration of cameras for all tasks"
                )

    def cycle(self, brain: Brain) -> Iterator[Outcome]:
        """One decision for every slot, executed; yields the rollouts that ended, as they end."""
        asked = self.ask()
        if asked is not None:
            self._watch(DECIDING)
            yield from self.execute(brain.decide(*asked))

    def ask(self, part: int = 0) -> tuple[list[int], Observation] | None:
        """(tickets, what B slots see) of those of a part, which then wait to `execute`; None when there are none."""
        active = self._asked[part] = [slot for slot in self._slots if slot.part == part]
        if not active:
            return None
        return [slot.ticket for slot in active], Observation.concatenate(
            [Observation.stacked(slot.seen) for slot in active]
        )

    def execute(self, actions: np.ndarray, part: int = 0) -> Iterator[Outcome]:
        """Execute float32 `[B, H, A]` in the slots of a part that were asked for; yields the rollouts that ended."""
        active = self._asked.pop(part)
        actions = _fitting(actions, active)
        # All chunks first, then all looks: physics and renderer would push each other out of the processor's cache.
        going_on = []
        for slot, chunk in zip(active, actions, strict=True):
            outcome = self._advance(slot, chunk)
            if outcome is None:
                going_on.append(slot)
                continue
            self._slots.remove(slot)
            yield outcome
        for slot in going_on:
            outcome = self._look(slot)
            if outcome is not None:
                self._slots.remove(slot)
                yield outcome

    def abandon(self) -> None:
        """Drop what is in progress; the instances stay (reset makes them as new)."""
        for slot in self._slots:
            if slot.simulator is not None:
                self._watch(RESTING)
                self._simulators.release(slot.simulator)
        self._slots, self._asked = [], {}

    def _advance(self, slot: _Slot, chunk: np.ndarray) -> Outcome | None:
        """Execute a chunk. Returns an Outcome when the rollout ended with it."""
        simulator = slot.simulator
        assert simulator is not None
        self._watch(slot.ticket)
        try:
            with surviving():
                result = self._execute(slot, simulator, chunk)
        except FATAL:
            raise
        except Exception as error:
            return self._failed(slot, error, "stepping")
        if not result.done and slot.env_steps < slot.horizon:
            return None
        self._watch(slot.ticket)
        self._simulators.release(simulator)
        return Outcome(
            ticket=slot.ticket,
            status=Status.SUCCESS if result.success else Status.FAILURE,
            decisions=slot.decisions,
            env_steps=slot.env_steps,
            executed=tuple(slot.executed),
            frames=np.stack(slot.frames) if slot.frames else None,
        )

    def _look(self, slot: _Slot) -> Outcome | None:
        """The observation for the next decision. Returns an Outcome only when that failed (ERROR)."""
        assert slot.simulator is not None
        self._watch(slot.ticket)
        try:
            with surviving():
                slot.seen.append(_checked(slot.simulator.observe(), slot.simulator.spec))
        except FATAL:
            raise
        except Exception as error:
            return self._failed(slot, error, "looking")
        return None

    def _execute(self, slot: _Slot, simulator: Simulator, chunk: np.ndarray) -> ChunkResult:
        """A chunk, in one call; in pieces where it is filmed, or where steps before its last are looked at too."""
        slot.decisions += 1
        chunk = chunk[: slot.horizon - slot.env_steps]
        end, before = len(chunk), slot.env_steps
        filmed = {*range(self._frame_every, end, self._frame_every), end} if slot.request.video else set()
        looked_at = range(max(1, end - self.observation_steps + 1), end)
        for start, stop in pairwise(sorted({0, *filmed, *looked_at, end})):
            if start:
                self._watch(slot.ticket)
            result = _executed(simulator.step_chunk(chunk[start:stop]), stop - start)
            slot.env_steps += result.env_steps
            self.env_steps += result.env_steps
            if stop in filmed or (filmed and result.done):
                self._film(slot, simulator)
            if result.done:
                break
            if stop in looked_at:
                slot.seen.append(_checked(simulator.observe(), simulator.spec))
        slot.executed.append(slot.env_steps - before)
        return result

    def _film(self, slot: _Slot, simulator: Simulator) -> None:
        self._watch(slot.ticket)
        slot.frames.append(_picture(simulator.render(), slot.frames))

    def _failed(self, slot: _Slot, error: Exception, what: str) -> Outcome:
        if slot.simulator is not None:
            self._watch(slot.ticket)
            self._simulators.discard(slot.simulator)
        return Outcome(
            ticket=slot.ticket,
            status=Status.ERROR,
            decisions=slot.decisions,
            env_steps=slot.env_steps,
            error=f"{type(error).__name__}: {error}\n"
            f"  while {what}: {address(slot.request)}, decision {slot.decisions}, {self._where}\n"
            + "".join(traceback.format_exception(error)),
        )


def address(request: RolloutRequest) -> str:
    """The address of a rollout, for messages."""
    state = request.initial_state
    return f"{state.task.key}, initial state {state.id}, rollout {request.index}"


def _horizon(request: RolloutRequest, simulator: Simulator) -> int:
    """Steps after which a rollout is a failure, whether its simulator ends the episode or not."""
    if simulator.task.horizon < 1:
        raise SimulatorError(f"its task has horizon = {simulator.task.horizon}; expected at least 1 step")
    return min(request.horizon or simulator.task.horizon, simulator.task.horizon)


def _fitting(actions: np.ndarray, slots: Sequence[_Slot]) -> np.ndarray:
    """Raise WorkerError unless the policy's actions `[B, H, A]` are as long as the simulators' are: it is no error of
    theirs."""
    for chunk, slot in zip(actions, slots, strict=True):
        if slot.simulator is not None and chunk.shape[1] != (takes := slot.simulator.spec.action_dim):
            raise WorkerError(
                f"the policy returned chunks of {chunk.shape[1]} numbers an action; the simulator of "
                f"{slot.request.initial_state.task.key} takes {takes}"
            )
    return actions


def _executed(result: ChunkResult, steps: int) -> ChunkResult:
    """Raise SimulatorError unless this is what executing a chunk of so many actions can come to."""
    if not isinstance(result, ChunkResult):
        raise SimulatorError(f"step_chunk returned a {type(result).__name__}; expected a ChunkResult")
    if result.env_steps > steps:
        raise SimulatorError(f"{result.env_steps} steps were executed of a chunk of {steps} actions")
    return result


def _picture(frame: np.ndarray, before: Sequence[np.ndarray]) -> np.ndarray:
    """Raise SimulatorError unless a picture fits into the video of those before it."""
    want = before[0].shape if before else (*frame.shape[:2], 3)
    if frame.shape != want or frame.dtype != np.uint8:
        raise SimulatorError(f"render gave a picture of shape {frame.shape}, {frame.dtype}; expected {want}, uint8")
    return frame


def _checked(look: Observation, spec: SimulatorSpec) -> Observation:
    """Raise SimulatorError unless an observation is what the simulator's spec says, and finite."""
    want: dict[str, tuple[int, ...]] = {name: (1, h, w, 3) for name, (h, w) in spec.cameras.items()}
    have = {name: image.shape for name, image in look.images.items()}
    if have != want or look.proprio.shape != (1, spec.proprio_dim):
        raise SimulatorError(
            f"an observation with images {have} and proprio {look.proprio.shape}; "
            f"expected {want} and (1, {spec.proprio_dim}), as in the simulator's spec"
        )
    if odd := [name for name, image in look.images.items() if image.dtype != np.uint8]:
        raise SimulatorError(f"pictures of {', '.join(odd)} are {look.images[odd[0]].dtype}; expected uint8")
    if not np.isfinite(look.proprio).all():
        raise SimulatorError(f"an observation with proprio {look.proprio[0].tolist()}; expected finite numbers")
    return look
