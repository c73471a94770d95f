"""What a supervised stage is, and how stages are run: resumable, on a CPU with parts of a batch side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from ript.build import computing
from ript.config.sections import Config
from ript.core.errors import NotFiniteError
from ript.core.metrics import Mean, Metrics, merge, values
from ript.learn.gradient import Gradient, require_finite
from ript.learn.gradient import step as step_of
from ript.policies.parameters import parameter_groups
from ript.policies.quest.layers import Noise, drawing_from
from ript.policies.quest.policy import QuestPolicy
from ript.run.checkpoint import list_checkpoints
from ript.run.folder import RunFolder
from ript.run.progress import progress, status

_DIVERGED = 3.0
"""A loss that has grown by this factor over a stage is no noise of batches."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One supervised stage.

    Attributes:
        name: for logs.
        steps: optimiser steps.
        learning_rate: peak; see `schedule`.
        modules: what is trained.
        draws: generator -> rows of endless batches, int `[B]` each.
        loss: (rows of a part, rows of the batch) -> (loss, metrics); losses of a batch's parts add up to its own.
        noisy: what is not trained, but in training mode all the same.
        judged: the metric that a stage which diverges is known by.
    """

    name: str
    steps: int
    learning_rate: float
    modules: Sequence[torch.nn.Module]
    draws: Callable[[np.random.Generator], Iterator[np.ndarray]]
    loss: Callable[[np.ndarray, np.ndarray], tuple[torch.Tensor, Metrics]]
    noisy: Sequence[torch.nn.Module] = ()
    judged: str = "token_loss"


def schedule(step: int, steps: int, peak: float, warmup: float = 0.05) -> float:
    """Learning rate: linear warm-up over a share of the steps, then a cosine from `peak` to a tenth of it."""
    rising = max(1, int(warmup * steps + 1e-9)) if warmup else 0  # 0.05 of 140 is 7, whatever it rounds to
    if step < rising:
        return peak * (step + 1) / rising
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def run_stages(run: RunFolder, config: Config, policy: QuestPolicy, stages: Sequence[Stage]) -> None:
    """All stages, from the run's last checkpoint on; torch's threads and random numbers are as before afterwards.

    Raises:
        NotFiniteError: loss, gradient or weights became NaN or infinite; the last checkpoint, which is finite, is kept.
    """
    with _threads_and_randomness(config, policy):
        _run_stages(run, config, policy, stages)


@contextmanager
def _threads_and_randomness(config: Config, policy: QuestPolicy) -> Iterator[None]:
    """Within, torch has the configuration's threads and random numbers of its own."""
    devices = [policy.device] if policy.device.type == "cuda" else []
    with computing("cpu", config.sft.threads), torch.random.fork_rng(devices=devices):
        yield


def _run_stages(run: RunFolder, config: Config, policy: QuestPolicy, stages: Sequence[Stage]) -> None:
    done = 0  # steps of earlier stages
    found = run.load_checkpoint()
    reached = found.iteration if found else 0
    for number, stage in enumerate(stages):
        if reached >= done + stage.steps:  # finished before the interruption
            done += stage.steps
            if found and reached == done:
                policy.load_state_dict(found.state["policy"])
            continue
        rng = np.random.default_rng([config.seed, number])
        optimiser = torch.optim.AdamW(parameter_groups(stage.modules), weight_decay=config.sft.weight_decay)
        start = 0
        if found and reached > done:
            start = reached - done
            policy.load_state_dict(found.state["policy"])
            optimiser.load_state_dict(found.state["optimiser"])
            rng.bit_generator.state = found.state["rng"]

        def save(
            step: int, rng: np.random.Generator = rng, optimiser: torch.optim.Optimizer = optimiser, done: int = done
        ) -> None:
            run.save_checkpoint(
                done + step,
                {
                    "policy": policy.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "rng": rng.bit_generator.state,
                },
            )

        metrics = _run_stage(run, config, policy, stage, (config.seed, number), optimiser, rng, start, done, save)
        done += stage.steps
        numbers = ", ".join(f"{k.split('/')[-1]} {v:.3g}" for k, v in metrics.items())
        status(f"  {stage.name}: {stage.steps} steps, {numbers}")


def _run_stage(
    run: RunFolder,
    config: Config,
    policy: QuestPolicy,
    stage: Stage,
    seed: tuple[int, int],
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    start: int,
    offset: int,
    save: Callable[[int], None],
) -> dict[str, float]:
    """Train one stage from step `start`; returns the metrics of its last stretch."""
    parts: list[Metrics] = []
    last: dict[str, float] = {}
    first: Metrics = {}
    every = config.sft.checkpoint_every
    bar: progress[None]
    with (
        progress(stage.steps - start, f"training: {stage.name}") as bar,
        Gradient(_trained(stage), part_threads(config, policy)) as gradient,
    ):
        draws = stage.draws(rng)
        for step in range(start, stage.steps):
            for group in optimiser.param_groups:
                group["lr"] = schedule(step, stage.steps, stage.learning_rate, config.sft.warmup)
            try:
                parts.append(_step(config, policy, stage, optimiser, gradient, next(draws), (*seed, step)))
                first = first or parts[-1]
                due = (step + 1) % every == 0 or step + 1 == stage.steps
                if due:
                    require_finite(policy.state_dict().items())
            except NotFiniteError as error:
                there = list_checkpoints(run.path / "checkpoints")
                kept = f"the last checkpoint in {run.path} is kept" if there else "there was no checkpoint yet"
                raise NotFiniteError(f"{error} at step {step}; lower the learning rate; {kept}") from error
            bar.advance()
            if due:
                last = {f"{stage.name}/{k}": v for k, v in values(merge(parts)).items()}
                run.log(offset + step + 1, last | {"learning_rate": optimiser.param_groups[0]["lr"]})
                save(step + 1)
                parts = []
    policy.eval()
    _tell_divergence(stage, values(first), last)
    return last


def _tell_divergence(stage: Stage, first: dict[str, float], last: dict[str, float]) -> None:
    """A line on the screen when the loss has grown over a stage (metrics of its first step and of its end)."""
    began, ended = first.get(stage.judged, math.inf), last.get(f"{stage.name}/{stage.judged}", 0.0)
    if ended > _DIVERGED * began:
        status(
            f"  {stage.name} has diverged: {stage.judged} was {began:.3g} at its first step and is {ended:.3g}; "
            f"lower sft.{stage.name}_learning_rate = {stage.learning_rate:g}"
        )


def _trained(stage: Stage) -> list[torch.nn.Parameter]:
    return [p for module in stage.modules for p in module.parameters()]


def _step(
    config: Config,
    policy: QuestPolicy,
    stage: Stage,
    optimiser: torch.optim.Optimizer,
    gradient: Gradient,
    rows: np.ndarray,
    seed: tuple[int, ...],
) -> Metrics:
    """One optimiser step on a batch; its dropout and augmentation depend on `seed` alone."""
    for module in (*stage.modules, *stage.noisy):
        module.train()
    policy.training = True
    optimiser.zero_grad(set_to_none=True)
    seeded = _seeded(policy, seed)
    metrics = gradient.add(partial(part_loss, stage), batch_parts(rows, gradient.threads, seeded))
    norm = step_of(optimiser, gradient.parameters, config.sft.max_grad_norm, policy.named_parameters())
    return metrics | {"grad_norm": Mean(norm)}


def time_steps(config: Config, policy: QuestPolicy, stages: Sequence[Stage]) -> dict[str, float]:
    """Seconds that an optimiser step of each stage takes, on a policy that nobody needs afterwards."""
    seconds = {}
    with _threads_and_randomness(config, policy):
        for stage in stages:
            rng = np.random.default_rng(0)
            optimiser = torch.optim.AdamW(parameter_groups(stage.modules), lr=0.0, weight_decay=0.0)
            with Gradient(_trained(stage), part_threads(config, policy)) as gradient:
                draws = stage.draws(rng)
                for step in range(2):  # the first time is for starting up
                    began = time.perf_counter()
                    _step(config, policy, stage, optimiser, gradient, next(draws), (0, step))
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


def part_threads(config: Config, policy: QuestPolicy) -> int:
    """Parts of a batch that are worked on side by side: one where it must stay whole, for batch statistics or a GPU."""
    whole = policy.device.type != "cpu" or any(isinstance(m, torch.nn.BatchNorm2d) for m in policy.modules())
    return 1 if whole else config.sft.threads


def batch_parts(rows: np.ndarray, threads: int, seed: Sequence[int] | None) -> list[Part]:
    """A batch cut into one part a thread; `seed` is that of its noise, None leaves it to torch's own generator."""
    cut = [part for part in np.array_split(rows, threads) if len(part)]
    starts = np.cumsum([0, *map(len, cut)])
    return [
        Part(part, rows, None if seed is None else Noise(*seed, start=int(start)))
        for part, start in zip(cut, starts, strict=False)
    ]


def _seeded(policy: QuestPolicy, seed: tuple[int, ...]) -> tuple[int, ...] | None:
    """The seed of a step's noise; on a GPU, where torch's own generators are what is fast, they are set by it."""
    if policy.device.type == "cpu":
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
