"""Small stand-ins with injected behaviour, for tests of the machinery around policies and simulators.

The episode of `FakeSimulator` is a game of chance in which each decision's first action is a number in [0, 1): it
succeeds when that number is below the state's chance, so success comes early or not at all, as in a real simulator.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from ript.core.errors import PolicyError, SimulatorError, UnknownNameError
from ript.core.types import ActionChunk, ChunkResult, InitialState, Observation, Rollout, SimulatorSpec, Task

CHUNK, ACTION_DIM, TOKENS, CODES = 4, 2, 2, 1000
SPEC = SimulatorSpec(suite="fake", cameras={"front": (6, 8)}, proprio={"proprio": 3}, action_dim=ACTION_DIM, render={})


def fake_task(name: str = "plain", horizon: int = 24) -> Task:
    return Task(suite="fake", name=name, instruction=f"do {name}", index=0, horizon=horizon)


def fake_state(number: int, chance: float = 0.1, task: Task | None = None) -> InitialState:
    """State `number`; `chance` is the probability of success per decision under an unbiased `FakePolicy`."""
    return InitialState(task=task or fake_task(), state=np.array([float(number), chance]), origin="sampled")


class PanicException(BaseException):
    """As extensions in Rust raise it (pyo3)."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        kind: "raise", "exit" (`sys.exit(3)`), "interrupt" (`KeyboardInterrupt`), "close" (`GeneratorExit`), "panic"
            (derives from `BaseException` alone, as panics of Rust do), "ctrl-c" (SIGINT to the own process),
            "leave" (`os._exit(3)`), "kill" (SIGKILL to the own process), "hang" or "build" (raise in the constructor).
        state: number of the initial state it happens on; None: all.
        decision: before executing which decision; 0: in reset.
        once: path of a marker file; the fault happens only while it does not exist, and creates it.
    """

    kind: str
    state: int | None = None
    decision: int = 1
    once: str | None = None

    def due(self, state: int, decision: int) -> bool:
        if self.state not in (None, state) or self.decision != decision:
            return False
        if self.once is None:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def strike(self) -> None:
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "hang":
            time.sleep(3600)
        if self.kind == "exit":
            sys.exit(3)
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        if self.kind == "close":
            raise GeneratorExit
        if self.kind == "panic":
            raise PanicException("index out of bounds")
        if self.kind == "ctrl-c":
            signal.raise_signal(signal.SIGINT)
        if self.kind == "leave":
            os._exit(3)
        raise ValueError("injected fault")


class FakeSimulator:
    """One task of the suite "fake". `delay` seconds pass at each decision (drawn around it)."""

    def __init__(self, task: Task, faults: Sequence[Fault] = (), delay: float = 0.0, log: str | None = None):
        if any(fault.kind == "build" for fault in faults):
            raise OSError("no screen")
        self.task, self.spec = task, SPEC
        self.seconds = {"simulate": 0.0, "render": 0.0}
        self._faults = [fault for fault in faults if fault.kind != "build"]
        self._delay, self._log = delay, log
        self._number, self._chance = 0, 0.0
        self._decision = self._step = 0
        self.closed = False

    def reset(self, initial_state: InitialState) -> Observation:
        if initial_state.task.key != self.task.key:
            raise SimulatorError(f"a state of {initial_state.task.key} for {self.task.key}")
        self._number, self._chance = int(initial_state.state[0]), float(initial_state.state[1])
        self._decision = self._step = 0
        if self._log is not None:
            with Path(self._log).open("a") as log:
                log.write(f"{os.getpid()} {self._number}\n")
        self._strike()
        return self.observe()

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        if self._step % CHUNK == 0:
            self._decision += 1
            self._strike()
            if self._delay:
                time.sleep(np.random.default_rng().exponential(self._delay))
        self.seconds["simulate"] += 0.001
        success = bool(self._step % CHUNK == 0 and actions[0, 0] < self._chance)
        steps = 1 if success else min(len(actions), self.task.horizon - self._step)
        self._step += steps
        return ChunkResult(success=success, env_steps=steps, done=success or self._step >= self.task.horizon)

    def observe(self) -> Observation:
        self.seconds["render"] += 0.001
        image = np.full((1, 6, 8, 3), self._step % 256, np.uint8)
        proprio = np.array([[self._number, self._step, self._chance]], np.float32)
        return Observation(images={"front": image}, proprio=proprio, instruction=(self.task.instruction,))

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self._step, np.uint8)

    def initial_states(self, n: int, seed: int = 0, split: str = "train", start: int = 0) -> list[InitialState]:
        return [fake_state(start + i, task=self.task) for i in range(n)]

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeSimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _strike(self) -> None:
        for fault in self._faults:
            if fault.due(self._number, self._decision):
                fault.strike()


@dataclass(frozen=True, kw_only=True)
class FakeFactory:
    """A picklable simulator factory. A task's name may end in "-<horizon>"."""

    faults: tuple[Fault, ...] = ()
    delay: float = 0.0
    log: str | None = None

    def __call__(self, key: str) -> FakeSimulator:
        name = key.split("/")[1]
        horizon = int(name.rpartition("-")[2]) if "-" in name else 24
        return FakeSimulator(fake_task(name, horizon), self.faults, self.delay, self.log)


class FakePolicy:
    """Draws TOKENS codes uniformly; the chunk's first action is code / CODES + bias. `bias` is its only weight.

    Args:
        breaks: "raise", "panic", "nan" (actions) or "density" (log-probability), when it acts on initial state number
            `at`.
    """

    def __init__(self, bias: float = 0.0, breaks: str = "", at: int = 0):
        self.bias, self.breaks, self.at = bias, breaks, at

    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        rows = len(observation)
        sample = np.zeros((rows, TOKENS), np.int64)
        if not greedy:
            sample = np.stack([generator.integers(CODES, size=TOKENS) for generator in generators])
        actions = np.zeros((rows, CHUNK, ACTION_DIM), np.float32)
        actions[:, 0] = sample / CODES + self.bias
        if self.breaks and (observation.proprio[:, 0] == self.at).any():
            if self.breaks == "raise":
                raise KeyError("a bug in the policy")
            if self.breaks == "panic":
                raise PanicException("index out of bounds")
            if self.breaks == "nan":
                actions[observation.proprio[:, 0] == self.at] = np.nan
        log_prob = (
            np.zeros((rows, TOKENS), np.float32) if greedy else np.full((rows, TOKENS), -np.log(CODES), np.float32)
        )
        if self.breaks == "density":
            log_prob[observation.proprio[:, 0] == self.at] = np.nan
        inputs = {"step": observation.proprio[:, 1].copy(), "pixel": observation.images["front"][:, 0, 0]}
        return ActionChunk(actions=actions, sample=sample, log_prob=log_prob, inputs=inputs)

    def log_prob(self, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value = torch.full(sample.shape, -float(np.log(CODES)))
        return value, -value

    def loss(self, batch: object) -> tuple[torch.Tensor, dict]:
        raise NotImplementedError("the fake policy does not learn from demonstrations")

    def check_simulator(self, spec: SimulatorSpec) -> None:
        assert spec.action_dim == ACTION_DIM

    def rl_parameters(self) -> list[dict]:
        return []

    def weights(self) -> dict[str, torch.Tensor]:
        return {"bias": torch.tensor([self.bias])}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.bias = float(weights["bias"][0])

    def save_pretrained(self, folder: str | Path) -> None:
        raise NotImplementedError("the fake policy is not saved")


class SlowPolicy(FakePolicy):
    """Takes `act` seconds for a decision and `load` seconds to take weights in."""

    def __init__(self, act: float = 0.0, load: float = 0.0):
        super().__init__()
        self.seconds = {"act": act, "load": load}

    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        time.sleep(self.seconds["act"])
        return super().act(observation, generators, greedy=greedy)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        time.sleep(self.seconds["load"])
        super().load_weights(weights)


@dataclass(frozen=True, kw_only=True)
class SlowFactory:
    """Simulators that take so many seconds to be built, reset, and for a picture of a video."""

    build: float = 0.0
    reset: float = 0.0
    render: float = 0.0

    def __call__(self, key: str) -> FakeSimulator:
        time.sleep(self.build)
        return _SlowSimulator(fake_task(key.split("/")[1]), self)


class _SlowSimulator(FakeSimulator):
    def __init__(self, task: Task, slow: SlowFactory):
        super().__init__(task)
        self._slow = slow

    def reset(self, initial_state: InitialState) -> Observation:
        time.sleep(self._slow.reset)
        return super().reset(initial_state)

    def render(self) -> np.ndarray:
        time.sleep(self._slow.render)
        return super().render()


class WrongName:
    """A factory that knows no task."""

    def __call__(self, key: str) -> FakeSimulator:
        raise UnknownNameError("task", "plane", ["plain"])


class PickyPolicy(FakePolicy):
    """Fits no simulator."""

    def check_simulator(self, spec: SimulatorSpec) -> None:
        raise PolicyError("the policy needs 7 actions, the simulator takes 2")


class Bomb:
    """A factory that harms the process which unpickles it: "kill", "raise" or "panic"."""

    def __init__(self, kind: str):
        self.kind = kind

    def __setstate__(self, state: dict) -> None:
        if state["kind"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if state["kind"] == "panic":
            raise PanicException("index out of bounds")
        raise ImportError("no module named left_at_home")

    def __call__(self, key: str) -> FakeSimulator:
        raise AssertionError


def moved(simulator: FakeSimulator, state: InitialState, marker: str = "", how: str = "kill", times: int = 1) -> str:
    """Where it was found out; the first few times its process ends instead.

    Errands lie here, in what workers have imported before they are timed: a test's own file brings pytest, which takes
    longer to import than some limits allow.
    """
    simulator.reset(state)
    if marker:
        with Path(marker).open("a") as file:
            file.write(".")
        if len(Path(marker).read_text()) <= times:
            if how == "leave":
                os._exit(3)
            time.sleep(3600) if how == "hang" else os.kill(os.getpid(), signal.SIGKILL)
    return f"{simulator.task.key} {int(state.state[0])} {os.getpid() if how == 'where' else ''}"


def slow(simulator: FakeSimulator, seconds: float) -> int:
    for _ in range(9):
        time.sleep(seconds)
        simulator.render()
    return 9


def same(a: Rollout, b: Rollout) -> bool:
    """Equal in every field, arrays included."""

    def equal(x: object, y: object) -> bool:
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
        return bool(np.array_equal(x, y)) if isinstance(x, np.ndarray) else x == y  # type: ignore[arg-type]

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
