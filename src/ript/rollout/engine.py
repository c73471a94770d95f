"""The rollout engine: the loop that every process runs, whether it owns a policy or not.

A slot is one rollout in progress, with a simulator instance of its own. A cycle looks at nothing that is not needed:

    decide for all slots in one batch  ->  each slot executes its chunk  ->  the finished leave, the others look

and free places are filled before the next cycle, so the batch stays full while there is work. Who decides is a `Brain`:
the policy in this process (`recorder.Recorder`) or the one in the parent (`worker.RemoteBrain`).
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ript.core.errors import ConfigError, DependencyMissing, PolicyError, SimulatorError, WorkerError
from ript.core.interfaces import Simulator, SimulatorFactory
from ript.core.types import ChunkResult, Observation, RolloutRequest, SimulatorSpec, Status

DECIDING, RESTING, LOADING = -1, -2, -3
"""What a process does when it does not work on a rollout's simulator (see `Watch`)."""

Watch = Callable[[int], None]
"""Called when a unit of work begins; whatever may take long is one of its own. With a ticket (that rollout's simulator
is built, reset, stepped by a chunk, looked at, filmed or closed), DECIDING (a call of the policy), LOADING (weights) or
RESTING."""

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
        executed: environment steps of each decision's chunk, the last one's up to the success; empty of an ERROR.
    """

    ticket: int
    status: Status
    decisions: int
    env_steps: int
    executed: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    error: str | None = None


class SimulatorCache:
    """Simulator instances of one process: a free list, most recently used last, closed when it grows too long.

    What is heavy, a task's model and renderer, is shared by its instances and goes with the last one; so the number of
    tasks that have instances bounds memory.

    Args:
        make_simulator: builds an instance for a task key.
        limit: free instances kept (at least one a slot, or every refill would build), besides one of each task.
        tasks: tasks that have instances at a time; another takes the place of the one that was used least recently.
        check: called with each new instance's spec; raises when the policy does not fit it.
    """

    def __init__(
        self,
        make_simulator: SimulatorFactory,
        *,
        limit: int,
        tasks: int,
        check: Callable[[SimulatorSpec], None] | None = None,
    ):
        self._make = make_simulator
        self._limit, self._tasks = limit, tasks
        self._check = check
        self._recent: dict[str, None] = {}
        self._free: list[tuple[str, Simulator]] = []
        self._taken: list[Simulator] = []
        self._closed = {"simulate": 0.0, "render": 0.0}
        self._build_seconds = 0.0
        self.spec: SimulatorSpec | None = None

    def has_room(self, key: str) -> bool:
        """Whether an instance of this task can be had now without more tasks than there may be."""
        taken = {simulator.task.key for simulator in self._taken}
        return key in taken or len(taken) < self._tasks

    def take(self, key: str) -> Simulator:
        """A free instance of this task, or a new one; see `has_room`.

        Raises:
            ConfigError: its observations or actions are of another layout than those of the pool's other simulators.
        """
        self._recent.pop(key, None)
        self._recent[key] = None
        for position in range(len(self._free) - 1, -1, -1):
            if self._free[position][0] == key:
                simulator = self._free.pop(position)[1]
                self._taken.append(simulator)
                return simulator
        started = time.perf_counter()
        self._make_room(key)
        simulator = self._make(key)
        self._build_seconds += time.perf_counter() - started
        self._taken.append(simulator)
        self._admit(key, simulator.spec)
        return simulator

    def release(self, simulator: Simulator) -> None:
        """Give an instance back for the next rollout of its task."""
        self._taken.remove(simulator)
        self._free.append((simulator.task.key, simulator))
        keys = Counter([key for key, _ in self._free] + [other.task.key for other in self._taken])
        spare = [number for number, (key, _) in enumerate(self._free) if keys[key] > 1]
        if len(self._free) > self._limit and spare:
            self._close(self._free.pop(spare[0])[1])

    def discard(self, simulator: Simulator) -> None:
        """Close an instance that failed: its state cannot be trusted."""
        self._taken.remove(simulator)
        with suppress(Exception):  # it is broken already; its first error was reported
            self._close(simulator)

    def seconds(self) -> dict[str, float]:
        """Cumulative seconds in "simulate", "render" and "build" of all instances, closed ones included."""
        total = {**self._closed, "build": self._build_seconds}
        for simulator in [*self._taken, *(free for _, free in self._free)]:
            for name in ("simulate", "render"):
                total[name] += simulator.seconds.get(name, 0.0)
        return total

    def close(self) -> None:
        """Close every instance (renderers must not wait for interpreter exit). Taken ones become unusable too."""
        for simulator in [*self._taken, *(free for _, free in self._free)]:
            with suppress(Exception):
                self._close(simulator)
        self._taken, self._free = [], []

    def _make_room(self, key: str) -> None:
        """Close the free instances of the tasks used least recently, so that another task may have one."""
        taken = {simulator.task.key for simulator in self._taken}
        free = {task for task, _ in self._free} - taken
        oldest = [task for task in self._recent if task in free and task != key]
        while oldest and len(taken | free | {key}) > self._tasks:
            free.remove(task := oldest.pop(0))
            del self._recent[task]
            closing = [simulator for name, simulator in self._free if name == task]
            self._free = [(name, simulator) for name, simulator in self._free if name != task]
            for simulator in closing:
                self._close(simulator)

    def _admit(self, key: str, spec: SimulatorSpec) -> None:
        if self._check is not None:
            self._check(spec)
        first = self.spec = self.spec or spec
        for name in ("cameras", "proprio_dim", "action_dim"):
            have, want = getattr(spec, name), getattr(first, name)
            if have != want:
                raise ConfigError(
                    f"{key} has {name} = {have}, but the pool's other simulators have {want}: one policy acts "
                    f"on all of them in one batch; use one configuration of cameras for all tasks"
                )

    def _close(self, simulator: Simulator) -> None:
        for name in ("simulate", "render"):
            self._closed[name] += simulator.seconds.get(name, 0.0)
        simulator.close()


@dataclass(slots=True)
class _Slot:
    ticket: int
    request: RolloutRequest
    horizon: int = 0
    simulator: Simulator | None = None
    observation: Observation | None = None
    decisions: int = 0
    env_steps: int = 0
    executed: list[int] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)


class Slots:
    """Up to `size` rollouts in progress in this process.

    Args:
        brain: decides.
        simulators: where instances come from; not closed here.
        size: rollouts in progress at most, hence the largest batch.
        where: this process in messages, such as "worker 3".
        frame_every: environment steps between the frames of a video.
        watch: told what the process works on.
    """

    def __init__(
        self,
        brain: Brain,
        simulators: SimulatorCache,
        *,
        size: int,
        where: str,
        frame_every: int = 4,
        watch: Watch = lambda ticket: None,
    ):
        self._brain, self._simulators = brain, simulators
        self._size, self._where, self._frame_every, self._watch = size, where, frame_every, watch
        self._slots: list[_Slot] = []
        self.env_steps = 0

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        return self._size - len(self._slots)

    def has_room(self, request: RolloutRequest) -> bool:
        """Whether a place is free, and a simulator of its task can be had; see `SimulatorCache.has_room`."""
        return bool(self.free) and self._simulators.has_room(request.initial_state.task.key)

    def start(self, ticket: int, request: RolloutRequest) -> Outcome | None:
        """Build or take a simulator, reset it and look. Returns an Outcome only when that failed (ERROR).

        Raises:
            ConfigError, DependencyMissing, PolicyError: from the simulator; no rollout could work.
        """
        slot = _Slot(ticket, request)
        self._watch(ticket)
        what = "building the simulator"
        try:
            slot.simulator = self._simulators.take(request.initial_state.task.key)
            slot.horizon = _horizon(request, slot.simulator)
            what = "resetting"
            self._watch(ticket)
            slot.observation = _checked(slot.simulator.reset(request.initial_state), slot.simulator.spec)
            if request.video:
                self._film(slot, slot.simulator)
        except FATAL:
            raise
        except Exception as error:
            return self._failed(slot, error, what)
        self._slots.append(slot)
        return None

    def cycle(self) -> Iterator[Outcome]:
        """One decision for every slot, executed; yields the rollouts that ended, as they end."""
        active = list(self._slots)
        if not active:
            return
        self._watch(DECIDING)
        looks = Observation.concatenate([slot.observation for slot in active if slot.observation is not None])
        actions = _fitting(self._brain.decide([slot.ticket for slot in active], looks), active)
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
        self._slots = []

    def _advance(self, slot: _Slot, chunk: np.ndarray) -> Outcome | None:
        """Execute a chunk. Returns an Outcome when the rollout ended with it."""
        simulator = slot.simulator
        assert simulator is not None
        self._watch(slot.ticket)
        try:
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
            slot.observation = _checked(slot.simulator.observe(), slot.simulator.spec)
        except FATAL:
            raise
        except Exception as error:
            return self._failed(slot, error, "looking")
        return None

    def _execute(self, slot: _Slot, simulator: Simulator, chunk: np.ndarray) -> ChunkResult:
        """A chunk, in one call; for a video in pieces, with a frame after each."""
        slot.decisions += 1
        chunk = chunk[: slot.horizon - slot.env_steps]
        stride = self._frame_every if slot.request.video else len(chunk)
        before = slot.env_steps
        for start in range(0, len(chunk), stride):
            if start:
                self._watch(slot.ticket)
            piece = chunk[start : start + stride]
            result = _executed(simulator.step_chunk(piece), len(piece))
            slot.env_steps += result.env_steps
            self.env_steps += result.env_steps
            if slot.request.video:
                self._film(slot, simulator)
            if result.done:
                break
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
    """Which rollout, for messages."""
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
