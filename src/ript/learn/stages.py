"""How supervised stages are run: resumable, on a CPU with parts of a batch side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from ript.core.errors import ConfigError, NotFiniteError
from ript.core.metrics import Mean, Metrics, merge, values
from ript.core.noise import Noise, drawing_from
from ript.core.supervised import Stage
from ript.learn.gradient import Gradient, require_finite, require_masters
from ript.learn.gradient import step as step_of
from ript.learn.ranks import ALONE, Ranks, sum_gradients

_DIVERGED = 3.0
"""A loss that has grown by this factor over a stage is no noise of batches."""


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """What all stages have in common.

    Attributes:
        seed: of batches, dropout and augmentation.
        threads: parts of a batch worked on side by side on a CPU; see `part_threads`.
        weight_decay: AdamW's; groups of parameters may have their own.
        max_grad_norm: norm above which a gradient is scaled down to it.
        warmup: share of a stage's steps over which its learning rate rises.
        checkpoint_every: steps.
        micro_batch: windows in one pass, at most; 0: all.
    """

    seed: int
    threads: int
    weight_decay: float
    max_grad_norm: float
    warmup: float
    checkpoint_every: int
    micro_batch: int = 0


class _Found(Protocol):
    @property
    def iteration(self) -> int: ...

    @property
    def state(self) -> Mapping[str, Any]: ...


class _Bar(Protocol):
    def advance(self) -> None: ...


class Journal(Protocol):
    """Where the stages keep and say how far they have come; steps count over all of them."""

    def load_checkpoint(self) -> _Found | None:
        """The newest, or None."""
        ...

    def save_checkpoint(self, iteration: int, state: Mapping[str, Any]) -> None: ...

    def log(self, iteration: int, row: Mapping[str, float]) -> None: ...

    def progress(self, total: int, what: str) -> AbstractContextManager[_Bar]:
        """Shows steps while they are done."""
        ...

    def say(self, line: str) -> None: ...


def schedule(step: int, steps: int, peak: float, warmup: float = 0.05) -> float:
    """Learning rate: linear warm-up over a share of the steps, then a cosine from `peak` to a tenth of it."""
    rising = max(1, int(warmup * steps + 1e-9)) if warmup else 0  # 0.05 of 140 is 7, whatever it rounds to
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What the steps from one checkpoint to the next came to.

    Attributes:
        first: metrics of its first step.
        metrics: of all its steps together.
        rate: learning rate of its last step.
        state: where the stage is now: "policy" (what of its state changes), "optimiser", and "rng" of the batches.
    """

    first: Metrics
    metrics: Metrics
    rate: float
    state: Mapping[str, Any]


class Trainer(Protocol):
    """Who trains the stages: this process (`Here`), or ranks on the nodes of a cluster."""

    def begin(self, number: int, state: Mapping[str, Any] | None) -> None:
        """Stage `number` is next: from its first step, or from a checkpoint's state on."""
        ...

    def go(self, start: int, end: int, advance: Callable[[], None]) -> Stretch:
        """Steps start..end-1 of it, which follow those before; `advance` is called once for each."""
        ...


def run_stages(
    journal: Journal,
    policy: torch.nn.Module,
    stages: Sequence[Stage],
    settings: StageSettings,
    trainer: Trainer | None = None,
) -> None:
    """All stages, from the journal's last checkpoint on; torch's random numbers are as before afterwards.

    Args:
        trainer: of these stages and this policy; None: this process.

    Raises:
        ConfigError: parts of batches cannot be worked on apart, and shall be.
        NotFiniteError: loss, gradient or weights became NaN or infinite; the last checkpoint is finite.
    """
    require_parts(policy, f"sft.micro_batch = {settings.micro_batch}" if settings.micro_batch else "")
    trainer = trainer or Here(policy, stages, settings)
    with own_randomness(policy):
        done = 0  # steps of earlier stages
        found = journal.load_checkpoint()
        reached = found.iteration if found else 0
        for number, stage in enumerate(stages):
            if reached >= done + stage.steps:  # finished before the interruption
                done += stage.steps
                if found and reached == done:
                    policy.load_state_dict(found.state["policy"], strict=False)
                continue
            trainer.begin(number, found.state if found and reached > done else None)
            metrics = _run(journal, policy, stage, settings, trainer, done, max(0, reached - done))
            done += stage.steps
            numbers = ", ".join(f"{k.split('/')[-1]} {v:.3g}" for k, v in metrics.items())
            journal.say(f"  {stage.name}: {stage.steps} steps, {numbers}")


def _run(
    journal: Journal,
    policy: torch.nn.Module,
    stage: Stage,
    settings: StageSettings,
    trainer: Trainer,
    done: int,
    start: int,
) -> dict[str, float]:
    """A stage from step `start` on, after `done` steps of others; returns the metrics of its last stretch."""
    last: dict[str, float] = {}
    first: Metrics = {}
    with journal.progress(stage.steps - start, f"training: {stage.name}") as bar:
        while start < stage.steps:
            end = min(stage.steps, (start // settings.checkpoint_every + 1) * settings.checkpoint_every)
            found = trainer.go(start, end, bar.advance)
            try:
                require_finite(policy.state_dict().items())
            except NotFiniteError as error:
                raise _too_fast(error, end - 1) from error
            first, start = first or found.first, end
            last = {f"{stage.name}/{k}": v for k, v in values(found.metrics).items()}
            journal.log(done + end, last | {"learning_rate": found.rate})
            journal.save_checkpoint(done + end, found.state)
    policy.eval()
    _tell_divergence(journal, stage, values(first), last)
    return last


def require_parts(policy: torch.nn.Module, what: str) -> None:
    """Raise `ConfigError` where batches shall be cut into parts, by what this names (empty: they shall not), and the
    policy needs them whole."""
    if what and _needs_whole_batches(policy):
        raise ConfigError(
            f"{what}: the policy normalises by statistics of whole batches, so a batch cannot be cut; leave it out and "
            "lower the size of batches"
        )


def _too_fast(error: NotFiniteError, step: int) -> NotFiniteError:
    return NotFiniteError(f"{error} at step {step}; lower the learning rate")


@contextmanager
def own_randomness(policy: torch.nn.Module) -> Iterator[None]:
    """Within, what is drawn on the policy's device leaves torch's random state outside as it was."""
    device = device_of(policy)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def device_of(policy: torch.nn.Module) -> torch.device:
    """The device that a module's parameters are on."""
    return next(policy.parameters()).device


class Here:
    """Trains stages in this process, alone or as one of several ranks.

    Args:
        policy: whose modules the stages train.
        ranks: that work on parts of each batch; all begin with the same weights, and have the same afterwards.
    """

    def __init__(self, policy: torch.nn.Module, stages: Sequence[Stage], settings: StageSettings, ranks: Ranks = ALONE):
        self.policy, self.stages, self.settings, self.ranks = policy, stages, settings, ranks
        self.kept = changing(policy, stages)

    def begin(self, number: int, state: Mapping[str, Any] | None) -> None:
        self.stage, self.seed = self.stages[number], (self.settings.seed, number)
        self.rng = np.random.default_rng(self.seed)
        self.optimiser = _optimiser(self.stage, self.settings.weight_decay)
        if state is not None:
            self.policy.load_state_dict(state["policy"], strict=False)
            self.optimiser.load_state_dict(state["optimiser"])
            self.rng.bit_generator.state = state["rng"]
        self.draws = self.stage.draws(self.rng)

    def go(self, start: int, end: int, advance: Callable[[], None]) -> Stretch:
        found: list[Metrics] = []
        rate = 0.0
        with Gradient(_trained(self.stage), part_threads(self.policy, self.settings.threads)) as gradient:
            for step in range(start, end):
                rate = schedule(step, self.stage.steps, self.stage.learning_rate, self.settings.warmup)
                for group in self.optimiser.param_groups:
                    group["lr"] = rate
                try:
                    found.append(self._step(gradient, next(self.draws), step))
                except NotFiniteError as error:
                    raise _too_fast(error, step) from error
                advance()
        first, metrics = (self.ranks.merge(part) for part in (found[0], merge(found)))
        return Stretch(first=first, metrics=metrics, rate=rate, state=self._state())

    def _step(self, gradient: Gradient, rows: np.ndarray, step: int) -> Metrics:
        """One optimiser step on a batch; the norm of its gradient is told by the first rank."""
        s = self.settings
        seed = (*self.seed, step)
        return _step(
            self.policy, self.stage, self.optimiser, gradient, rows, seed, s.max_grad_norm, s.micro_batch, self.ranks
        )

    def _state(self) -> dict[str, Any]:
        return {
            "policy": {name: t for name, t in self.policy.state_dict().items() if name in self.kept},
            "optimiser": self.optimiser.state_dict(),
            "rng": self.rng.bit_generator.state,
        }


def _tell_divergence(journal: Journal, stage: Stage, first: dict[str, float], last: dict[str, float]) -> None:
    """A line when the loss has grown over the stage (metrics of its first step and of its end)."""
    began, ended = first.get(stage.judged, math.inf), last.get(f"{stage.name}/{stage.judged}", 0.0)
    if ended > began + (_DIVERGED - 1) * abs(began):  # a likelihood's loss may be negative
        journal.say(
            f"  {stage.name} has diverged: {stage.judged} was {began:.3g} at its first step and is {ended:.3g}; "
            f"lower sft.{stage.name}_learning_rate = {stage.learning_rate:g}"
        )


def changing(policy: torch.nn.Module, stages: Sequence[Stage]) -> set[str]:
    """Names in a policy's state of all but the parameters that no stage trains: those of a large base are not kept."""
    trained = {id(p) for stage in stages for p in _trained(stage)}
    still = {n for n, p in policy.named_parameters(remove_duplicate=False) if id(p) not in trained}
    return set(policy.state_dict()) - still


def _trained(stage: Stage) -> list[torch.nn.Parameter]:
    return [p for module in stage.modules for p in module.parameters()]


def _groups(stage: Stage) -> list[dict[str, Any]]:
    return [dict(group) for group in stage.groups] or [{"params": _trained(stage)}]


def require_trainable(stages: Iterable[Stage]) -> None:
    """Raise `PolicyError` unless what the stages train has weights that can learn; see `require_masters`."""
    for stage in stages:
        require_masters(_groups(stage), f"supervised training (stage {stage.name})")


def _optimiser(stage: Stage, weight_decay: float) -> torch.optim.AdamW:
    require_trainable([stage])
    groups = _groups(stage)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=weight_decay)  # the schedule sets the learning rate


def _step(
    policy: torch.nn.Module,
    stage: Stage,
    optimiser: torch.optim.Optimizer,
    gradient: Gradient,
    rows: np.ndarray,
    seed: tuple[int, ...],
    max_grad_norm: float,
    micro_batch: int = 0,
    ranks: Ranks = ALONE,
) -> Metrics:
    """One optimiser step on a batch, of which each rank works on a part; its dropout and augmentation depend on `seed`
    alone."""
    for module in (*stage.modules, *stage.noisy):
        module.train()
    policy.training = True
    optimiser.zero_grad(set_to_none=True)
    own = -(-len(rows) // ranks.world)
    parts = max(gradient.threads, -(-own // (micro_batch or own)))
    cut = batch_parts(rows, parts * ranks.world, _seeded(policy, seed, ranks.rank))
    with ranks.together():
        metrics = gradient.add(partial(part_loss, stage), cut[ranks.rank * parts : (ranks.rank + 1) * parts])
    sum_gradients(ranks, gradient.parameters)
    norm = step_of(optimiser, gradient.parameters, max_grad_norm, policy.named_parameters())
    return metrics if ranks.rank else metrics | {"grad_norm": Mean(norm)}


def time_steps(policy: torch.nn.Module, stages: Sequence[Stage], threads: int) -> dict[str, float]:
    """Seconds that an optimiser step of each stage takes, on a policy that nobody needs afterwards."""
    seconds = {}
    with own_randomness(policy):
        for stage in stages:
            rng = np.random.default_rng(0)
            optimiser = _optimiser(stage, weight_decay=0.0)
            with Gradient(_trained(stage), part_threads(policy, threads)) as gradient:
                draws = stage.draws(rng)
                for step in range(2):  # the first time is for starting up
                    began = time.perf_counter()
                    _step(policy, stage, optimiser, gradient, next(draws), (0, step), math.inf)
                    seconds[stage.name] = time.perf_counter() - began
            policy.eval()
    return seconds


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch that a thread works on.

    Attributes:
        rows: int `[b]`.
        batch: all rows of the batch, int `[B]`.
        noise: what its dropout and augmentation draw from; None: torch's own generator.
    """

    rows: np.ndarray
    batch: np.ndarray
    noise: Noise | None


def part_threads(policy: torch.nn.Module, threads: int) -> int:
    """Parts of a batch that are worked on side by side: one where it must stay whole, for batch statistics or a GPU."""
    return 1 if device_of(policy).type != "cpu" or _needs_whole_batches(policy) else threads


def _needs_whole_batches(policy: torch.nn.Module) -> bool:
    norms = torch.nn.modules.batchnorm._BatchNorm
    return any(isinstance(m, norms) for m in policy.modules())


def batch_parts(rows: np.ndarray, parts: int, seed: Sequence[int] | None) -> list[Part]:
    """A batch cut into so many parts; `seed` is that of its noise, None leaves it to torch's own generator."""
    cut = [part for part in np.array_split(rows, parts) if len(part)]
    starts = np.cumsum([0, *map(len, cut)])
    return [
        Part(part, rows, None if seed is None else Noise(*seed, start=int(start)))
        for part, start in zip(cut, starts, strict=False)
    ]


def _seeded(policy: torch.nn.Module, seed: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """The seed of a step's noise; on a GPU, where torch's own generators are what is fast, they are set by it, and each
    rank has others."""
    if device_of(policy).type == "cpu":
        return seed
    (state,) = np.random.SeedSequence((*seed, rank) if rank else seed).generate_state(1, np.uint64)
    torch.manual_seed(int(state) >> 1)
    return None


def part_loss(stage: Stage, part: Part) -> tuple[torch.Tensor, Metrics]:
    """The part's share of the batch's loss."""
    with drawing_from(part.noise):
        loss, metrics = stage.loss(part.rows, part.batch)
    if not torch.isfinite(loss):
        raise NotFiniteError(f"the loss of stage {stage.name} became {loss.item()}")
    return loss, metrics
