"""The protocols that packages meet in. See `types` for the legend of shapes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np

from ript.core.metrics import Metrics
from ript.core.types import (
    ActionChunk,
    ChunkResult,
    Errand,
    Heed,
    InitialState,
    Observation,
    Recording,
    Rollout,
    RolloutRequest,
    SimulatorSpec,
    Split,
    Task,
)

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Simulator(Protocol):
    """One simulator instance of one task. A context manager.

    Contract (held by `sims.check` over every simulator): after `reset(s)` the trajectory depends on `s` and the actions
    alone, never on what the instance did before, and equals that of a freshly built instance, bit for bit.
    """

    task: Task
    spec: SimulatorSpec
    seconds: dict[str, float]
    """Cumulative wall-clock seconds spent in "simulate" (resets and steps) and "render"."""

    def reset(self, initial_state: InitialState) -> Observation:
        """Set the exact state, then look. Returns B = 1.

        Raises:
            SimulatorError: the state is of another task or has a wrong size.
        """
        ...

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute float32 `[H, A]`, stopping at success or at the horizon; never renders."""
        ...

    def observe(self) -> Observation:
        """Look (renders once per camera). Returns B = 1."""
        ...

    def render(self) -> np.ndarray:
        """A picture for videos: uint8 `[h, w, 3]`."""
        ...

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        """States number start..start+n-1 of the sequence of (split, seed).

        State i does not depend on n or start. A short sequence, as of a benchmark, begins again at its end, or ends:
        then fewer are returned, and none beyond it. Sequences of two splits or two seeds have no state in common: what
        a policy is reported on (test) was never practised on (train), demonstrated (demo) or used to choose
        (validation).
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Simulator: ...

    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class Demonstrator(Simulator, Protocol):
    """A simulator that comes with a scripted expert."""

    def expert_action(self) -> np.ndarray:
        """The expert's clean action for the present state: float32 `[A]` in [-1, 1]."""
        ...

    def privileged(self) -> np.ndarray:
        """Object state for an auxiliary loss in pre-training: float32 `[O]`, metres. An acting policy never sees it."""
        ...


@runtime_checkable
class Recorded(Simulator, Protocol):
    """A simulator that brings demonstrations of people."""

    def recordings(self) -> Sequence[Recording]:
        """Recordings of its task, in a stable order; empty where there is none."""
        ...


@runtime_checkable
class Perturbable(Simulator, Protocol):
    """A simulator whose object can be moved."""

    def perturbed_state(self, state: InitialState, std_metres: float, generator: np.random.Generator) -> InitialState:
        """A state near another: Gaussian noise on the object's position.

        Raises:
            SimulatorError: no draw gave a state that the task accepts.
        """
        ...


class StockEnvironment(Protocol):
    """The environment that a suite's simulators stand for, as existing systems use it: to be timed beside them."""

    def reset(self) -> None:
        """Reset as the environment itself does, first pictures included."""
        ...

    def step(self, action: np.ndarray) -> bool:
        """One step with float32 `[A]`; whether the episode is over."""
        ...

    def draw(self) -> None:
        """The pictures that existing systems draw after every step, unless its steps have drawn them."""
        ...

    def observation(self) -> Observation:
        """What a policy sees of it now, B = 1."""
        ...

    def physics(self) -> None:
        """What the physics engine does in one step, alone."""
        ...

    def close(self) -> None: ...


SimulatorFactory = Callable[[str], Simulator]
"""Task key "suite/name" -> a new simulator. Picklable: worker processes call it."""


@runtime_checkable
class Policy(Protocol):
    """Acts on observations. Stateless: an action depends on its observation and draws alone, on nothing before them."""

    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        """Decide for B observations.

        Args:
            observation: B rows; of the last n steps each for a policy whose `n_obs_steps` is n > 1 (`core.hooks`).
            generators: one a row; a row draws from its own alone, so its result does not depend on its batch.
            greedy: take the most likely sample; generators are not used.

        Everything returned must be finite, or the run stops.
        """
        ...

    def check_simulator(self, spec: SimulatorSpec) -> None:
        """Raise `PolicyError`, saying expected against got, unless the policy fits the simulator."""
        ...

    def save_pretrained(self, folder: str | Path) -> None: ...


@runtime_checkable
class LikelihoodPolicy(Policy, Protocol):
    """A policy whose sampling density is known.

    Contract: `log_prob(inputs, sample)` equals what `act` returned for them (ratio 1 before the first update, but for
    rounding: see `core.hooks.ratio_tolerance_of`); a batch of one equals the row of a batch; a saved and loaded policy
    is equal.
    """

    def log_prob(
        self, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score samples again.

        The update calls it from several threads at once unless told not to.

        Args:
            inputs: name -> `[R, ...]`, the inputs and the rollout inputs that `act` gave.
            sample: `[R, ...]`.

        Returns:
            log_prob: `[R, K]`, nats, with gradient.
            entropy: of each term's distribution, `[R, K]`, nats, with gradient; that of a density may be negative. None
                of a policy whose density has none in closed form.
        """
        ...

    def rl_parameters(self) -> list[dict]:
        """Optimiser parameter groups (torch format) of what post-training updates."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """Everything that changes in post-training, by name; what workers are sent."""
        ...

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None: ...


@runtime_checkable
class PostTrainable(LikelihoodPolicy, Protocol):
    """What `train_rl`, `evaluate` and the command line take: a policy that knows where it came from. `core.hooks` says
    what else it may have."""

    simulator: SimulatorSpec
    """What it was trained on."""
    card: dict[str, Any]
    """How it was trained and measured, plain values; saved with it, in its model card."""

    def to(self, device: str) -> Self:
        """The same policy, computing on "cpu" or "cuda"; what `act` takes and gives stays on the CPU."""
        ...


class EnvPool(Protocol):
    """Runs rollouts over simulator instances; an instance that finishes is refilled at once. A context manager."""

    @property
    def saturation(self) -> int:
        """Rollouts in flight below which workers idle or batches are small: worth filling with work on speculation."""
        ...

    def use(self, policy: Policy) -> None:
        """The policy of all rollouts requested from now on, with its present weights; simulators stay as they are.

        Raises:
            ConfigError: it cannot be sent to a process, or rollouts are in flight.
        """
        ...

    def ask(self, errands: Sequence[Errand]) -> list[Any]:
        """Run errands on simulators; their answers, in order. Also while rollouts are in flight.

        One whose worker died is run again up to a limit.

        Raises:
            WorkerError: its work raised, or its workers die; other errors of `errors` come as they are.
        """
        ...

    def set_policy(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        """Weights for all rollouts requested from now on."""
        ...

    def run(
        self, requests: Iterable[RolloutRequest | None], heed: Heed | None = None
    ) -> Generator[Rollout, None, None]:
        """Yield rollouts as they finish, in any order.

        `requests` is drawn lazily, as places become free; it may look at what was yielded so far to choose the next,
        and yields None for "nothing now: ask again after the next rollout".
        `heed` is called between two turns, a second apart at most, for those that have something to say from another
        thread: `requests` is asked again after it, and what it raises ends the run.
        Closing the iterator early abandons what is in flight. Rollouts whose worker died are run again up to a limit,
        then yielded as ERROR.

        Raises:
            ErrorRateExceeded: too many rollouts ended in ERROR.
            WorkerError: the policy raised, or workers die again and again; other errors of `errors` come as they are.
        """
        ...

    def timings(self) -> Metrics:
        """Seconds in "simulate", "render", "infer", "wait" (Sum, over workers) since the last call."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...
