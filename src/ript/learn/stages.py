"""How supervised stages are run: resumable, on a CPU with parts of a batch side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence, Set
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
from ript.learn.gradient import Gradient, require_finite
from ript.learn.gradient import step as step_of

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


def run_stages(journal: Journal, policy: torch.nn.Module, stages: Sequence[Stage], settings: StageSettings) -> None:
    """All stages, from the journal's last checkpoint on; torch's random numbers are as before afterwards.

    Raises:
        NotFiniteError: loss, gradient or weights became NaN or infinite; the last checkpoint is finite.
    """
    if settings.micro_batch and _needs_whole_batches(policy):
        raise ConfigError(
            f"sft.micro_batch = {settings.micro_batch}: the policy normalises by statistics of whole batches, so a "
            "batch cannot be cut; leave it out and lower the size of batches"
        )
    with own_randomness(policy):
        done = 0  # steps of earlier stages
        found = journal.load_checkpoint()
        reached = found.iteration if found else 0
        kept = _changing(policy, stages)
        for number, stage in enumerate(stages):
            if reached >= done + stage.steps:  # finished before the interruption
                done += stage.steps
                if found and reached == done:
                    policy.load_state_dict(found.state["policy"], strict=False)
                continue
            running = _Running(journal, policy, stage, settings, number, done, kept)
            if found and reached > done:
                policy.load_state_dict(found.state["policy"], strict=False)
                running.optimiser.load_state_dict(found.state["optimiser"])
                running.rng.bit_generator.state = found.state["rng"]
            metrics = running.go(start=max(0, reached - done))
            done += stage.steps
            numbers = ", ".join(f"{k.split('/')[-1]} {v:.3g}" for k, v in metrics.items())
            journal.say(f"  {stage.name}: {stage.steps} steps, {numbers}")


@contextmanager
def own_randomness(policy: torch.nn.Module) -> Iterator[None]:
    """Within, what is drawn on the policy's device leaves torch's random state outside as it was."""
    device = device_of(policy)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def device_of(policy: torch.nn.Module) -> torch.device:
    """The device that a module's parameters are on."""
    return next(policy.parameters()).device


class _Running:
    """A stage while it is run.

    Args:
        number: of the stage.
        done: steps of the stages before it.
        kept: what of the policy a checkpoint holds; the rest is as it began.
    """

    def __init__(
        self,
        journal: Journal,
        policy: torch.nn.Module,
        stage: Stage,
        settings: StageSettings,
        number: int,
        done: int,
        kept: Set[str],
    ):
        self.journal, self.policy, self.stage, self.settings, self.kept = journal, policy, stage, settings, kept
        self.seed, self.done = (settings.seed, number), done
        self.rng = np.random.default_rng(self.seed)
        self.optimiser = _optimiser(stage, settings.weight_decay)

    def go(self, start: int) -> dict[str, float]:
        """Train from step `start` on; returns the metrics of the last stretch."""
        stage, policy = self.stage, self.policy
        parts: list[Metrics] = []
        last: dict[str, float] = {}
        first: Metrics = {}
        with (
            self.journal.progress(stage.steps - start, f"training: {stage.name}") as bar,
            Gradient(_trained(stage), part_threads(policy, self.settings.threads)) as gradient,
        ):
            draws = stage.draws(self.rng)
            for step in range(start, stage.steps):
                for group in self.optimiser.param_groups:
                    group["lr"] = schedule(step, stage.steps, stage.learning_rate, self.settings.warmup)
                try:
                    parts.append(self.step(gradient, next(draws), step))
                    first = first or parts[-1]
                    due = (step + 1) % self.settings.checkpoint_every == 0 or step + 1 == stage.steps
                    if due:
                        require_finite(policy.state_dict().items())
                except NotFiniteError as error:
                    raise NotFiniteError(f"{error} at step {step}; lower the learning rate") from error
                bar.advance()
                if due:
                    last = {f"{stage.name}/{k}": v for k, v in values(merge(parts)).items()}
                    rate = self.optimiser.param_groups[0]["lr"]
                    self.journal.log(self.done + step + 1, last | {"learning_rate": rate})
                    self.save(step + 1)
                    parts = []
        policy.eval()
        self.tell_divergence(values(first), last)
        return last

    def step(self, gradient: Gradient, rows: np.ndarray, step: int) -> Metrics:
        """One optimiser step on a batch."""
        s = self.settings
        return _step(
            self.policy, self.stage, self.optimiser, gradient, rows, (*self.seed, step), s.max_grad_norm, s.micro_batch
        )

    def save(self, step: int) -> None:
        self.journal.save_checkpoint(
            self.done + step,
            {
                "policy": {name: t for name, t in self.policy.state_dict().items() if name in self.kept},
                "optimiser": self.optimiser.state_dict(),
                "rng": self.rng.bit_generator.state,
            },
        )

    def tell_divergence(self, first: dict[str, float], last: dict[str, float]) -> None:
        """A line when the loss has grown over the stage (metrics of its first step and of its end)."""
        stage = self.stage
        began, ended = first.get(stage.judged, math.inf), last.get(f"{stage.name}/{stage.judged}", 0.0)
        if ended > began + (_DIVERGED - 1) * abs(began):  # a likelihood's loss may be negative
            self.journal.say(
                f"  {stage.name} has diverged: {stage.judged} was {began:.3g} at its first step and is {ended:.3g}; "
                f"lower sft.{stage.name}_learning_rate = {stage.learning_rate:g}"
            )


def _changing(policy: torch.nn.Module, stages: Sequence[Stage]) -> set[str]:
    """Names in a policy's state of all but the parameters that no stage trains: those of a large base are not kept."""
    trained = {id(p) for stage in stages for p in _trained(stage)}
    still = {n for n, p in policy.named_parameters(remove_duplicate=False) if id(p) not in trained}
    return set(policy.state_dict()) - still


def _trained(stage: Stage) -> list[torch.nn.Parameter]:
    return [p for module in stage.modules for p in module.parameters()]


def _optimiser(stage: Stage, weight_decay: float) -> torch.optim.AdamW:
    groups = [dict(group) for group in stage.groups] or [{"params": _trained(stage)}]
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
) -> Metrics:
    """One optimiser step on a batch; its dropout and augmentation depend on `seed` alone."""
    for module in (*stage.modules, *stage.noisy):
        module.train()
    policy.training = True
    optimiser.zero_grad(set_to_none=True)
    parts = max(gradient.threads, -(-len(rows) // (micro_batch or len(rows))))
    metrics = gradient.add(partial(part_loss, stage), batch_parts(rows, parts, _seeded(policy, seed)))
    norm = step_of(optimiser, gradient.parameters, max_grad_norm, policy.named_parameters())
    return metrics | {"grad_norm": Mean(norm)}


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


def _seeded(policy: torch.nn.Module, seed: tuple[int, ...]) -> tuple[int, ...] | None:
    """The seed of a step's noise; on a GPU, where torch's own generators are what is fast, they are set by it."""
    if device_of(policy).type == "cpu":
        return seed
    (state,) = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    torch.manual_seed(int(state) >> 1)
    return None


def part_loss(stage: Stage, part: Part) -> tuple[torch.Tensor, Metrics]:
    """The part's share of the batch's loss."""
    with drawing_from(part.noise):
        loss, metrics = stage.loss(part.rows, part.batch)
    if not torch.isfinite(loss):
        raise NotFiniteError(f"the loss of stage {stage.name} became {loss.item()}")
    return loss, metrics
