"""The policy update: epochs of clipped-objective minibatches over one batch of rollouts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from ript.core.errors import ConfigError, NoSignalError, NotFiniteError, RatioError, TrainingError
from ript.core.interfaces import LikelihoodPolicy
from ript.core.metrics import Max, Mean, Metrics, Sum, merge
from ript.core.types import UpdateBatch
from ript.learn.gradient import Gradient, Named, require_finite, step
from ript.learn.objective import Reduction, check_clip, reduction_count, reduction_weights, weighted_objective

Result = TypeVar("Result")

RATIO_TOLERANCE = 1e-3
"""Largest |ratio - 1| before the first step that counts as rounding; QueST's is below 1e-5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What an update did.

    Attributes:
        metrics: those of `weighted_objective` over all minibatches that were looked at, and: `grad_norm` (before
            clipping, mean over steps), `grad_norm_max`, `grad_clip_fraction` (steps that were clipped), `learning_rate`
            (of the first parameter group), `epochs_done` (may be a fraction), `optimiser_steps`,
            `first_ratio_deviation` (largest |ratio - 1| on the first minibatch), `kl_last`, `kl_end`, `kl_max`,
            `update_seconds`.
        kl_last: `kl` of the weights that are left, on the last minibatch that they were seen on: how far the policy has
            moved.
        kl_end: mean `kl` of the last epoch's minibatches, before their steps, one that was taken back included: what
            the learning rate led to.
        kl_max: largest `kl` of a minibatch: above `target_kl` when a step was taken back.
        stop_reason: why the update ended, in words.
    """

    metrics: Metrics
    kl_last: float
    kl_end: float
    kl_max: float
    stop_reason: str


def update(
    policy: LikelihoodPolicy,
    optimiser: torch.optim.Optimizer,
    batch: UpdateBatch,
    *,
    epochs: int,
    generator: torch.Generator | None,
    minibatch_decisions: int | None = None,
    minibatch_trajectories: int | None = None,
    micro_batch: int | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reduction: Reduction = "token",
    max_grad_norm: float = 1.0,
    target_kl: float | None = None,
    entropy_bonus: float = 0.0,
    kl_to_start: float = 0.0,
    start: LikelihoodPolicy | None = None,
    threads: int = 1,
    ratio_tolerance: float | None = None,
    on_minibatch: Callable[[int, int], None] | None = None,
) -> UpdateResult:
    """Improve the policy on a batch, in place.

    An epoch visits every row once, in minibatches of nearly equal size (they differ by at most one decision or
    trajectory), each one optimiser step. Exactly one of the two minibatch sizes is given.

    With reduction "token" a minibatch's loss is the mean over its valid tokens. With "trajectory" it is the mean over
    trajectories of the mean over a trajectory's tokens: over the minibatch's own trajectories for
    `minibatch_trajectories`; for `minibatch_decisions`, which cut trajectories apart, it is the estimate

        (minibatches an epoch) / N * sum over the minibatch's tokens of loss / (tokens of the token's trajectory)

    with N and the trajectories' token counts taken over the whole batch, so that the mean of these losses over an epoch
    (at fixed weights) is exactly the trajectory mean over the batch.

    Args:
        policy: put into eval mode (no dropout, frozen batch statistics), and left in it.
        optimiser: over the policy's parameters; rows are sent to the device of the first of them.
        batch: R rows.
        epochs: at least 1.
        generator: CPU generator of the permutations; None visits rows in order.
        minibatch_decisions: rows a minibatch, at most.
        minibatch_trajectories: whole trajectories a minibatch, at most.
        micro_batch: rows a forward pass, to bound memory; changes no result beyond float rounding. None: all.
        clip_low, clip_high, reduction, entropy_bonus: see `clipped_objective`.
        max_grad_norm: the gradient of each step is scaled down to this norm.
        target_kl: nats a decision (all variables of a row), whatever K is. The update ends at the first minibatch whose
            `kl` is above this; after the last step, the last minibatch is looked at once more. The step that led there
            is taken back (the weights; the optimiser's moments stay): what is left has a measured KL within the target.
        kl_to_start: weight of the KL to the policy `start`, nats a decision, in the loss; see `weighted_objective`. The
            batch's log-probabilities under `start` are computed once, beforehand.
        start: a policy to stay near, on the same device; it is not changed.
        threads: on a CPU, so many parts of a minibatch are worked on side by side (see `Gradient`). `policy.log_prob`
            must then be callable from several threads.
        ratio_tolerance: largest |ratio - 1| allowed on the first minibatch, where nothing has changed yet. None: the
            policy's own attribute `ratio_tolerance`, or `RATIO_TOLERANCE`. More is allowed where the log-probabilities
            are so large that rounding them alone moves the ratio further.
        on_minibatch: called with (minibatches done, minibatches in all) after each.

    Raises:
        RatioError: the first minibatch's ratio is not 1: the recomputed density differs from the one that acted.
        NotFiniteError: NaN or infinity in a loss or gradient, with its place; raised before the step, so the weights
            are those of the step before, and finite (after the last step: those of that step).
        ConfigError: sizes, epochs, a clip range or a tolerance that cannot work.
    """
    began = time.perf_counter()
    check_clip(clip_low, clip_high)
    if epochs < 1 or threads < 1 or (micro_batch is not None and micro_batch < 1) or not max_grad_norm > 0:
        raise ConfigError(
            f"update: epochs ({epochs}), micro_batch ({micro_batch}) and threads ({threads}) must be at least 1, "
            f"max_grad_norm ({max_grad_norm}) positive"
        )
    if isinstance(policy, torch.nn.Module):
        policy.eval()
    if kl_to_start and start is None:
        raise ConfigError(f"update: kl_to_start is {kl_to_start}, but no policy to stay near was given as `start`")
    if ratio_tolerance is None:
        ratio_tolerance = getattr(policy, "ratio_tolerance", RATIO_TOLERANCE)
    if not ratio_tolerance > 0:
        raise ConfigError(f"update: ratio_tolerance is {ratio_tolerance}; expected a positive number, such as 1e-3")
    objective = partial(
        weighted_objective, clip_low=clip_low, clip_high=clip_high, entropy_bonus=entropy_bonus, kl_to_start=kl_to_start
    )
    plan = _Plan(batch, epochs, reduction, minibatch_decisions, minibatch_trajectories, generator)
    parts: list[Metrics] = []
    before: list[torch.Tensor] = []
    kls: list[Mean] = []  # before each step
    after: list[Mean] = []
    steps, reason, names = 0, f"all {epochs} epochs done", _named(policy, optimiser)
    with _Gradient(policy, objective, batch, plan.weight, optimiser, micro_batch, threads) as gradient:
        if kl_to_start and start is not None:
            gradient.stay_near(start)
        for minibatch in plan:
            optimiser.zero_grad(set_to_none=True)
            try:
                measured = gradient.of(minibatch)
                if steps == 0:
                    measured |= _first_ratio(measured, max(ratio_tolerance, _rounding(batch, minibatch.rows)))
                parts.append(measured)
                kls += _kl(measured)
                if target_kl is not None and kls and kls[-1].value > target_kl:
                    reason = f"KL {kls[-1].value:.3g} passed the target {target_kl:.3g} in {minibatch.place}"
                    break
                before = _copy(optimiser) if target_kl is not None else []
                parts.append(_step(optimiser, gradient.parameters, max_grad_norm, names))
            except NotFiniteError as error:
                raise NotFiniteError(f"update, {minibatch.place}: {error}") from error
            finally:
                optimiser.zero_grad(set_to_none=True)
            steps += 1
            if on_minibatch is not None:
                on_minibatch(steps, epochs * plan.per_epoch)
        else:
            try:
                require_finite(names)
                after = _kl(gradient.look(minibatch))
            except NotFiniteError as error:
                raise NotFiniteError(f"update, after the last step: {error}") from error
    seen = [kl.value for kl in (*kls, *after)]
    passed = target_kl is not None and seen[-1] > target_kl
    if passed:
        steps -= _restore(optimiser, before)
        reason = reason if not after else f"KL {seen[-1]:.3g} passed the target {target_kl:.3g} after the last step"
    kl_last, kl_max = seen[-2] if passed and len(seen) > 1 else seen[-1], max(seen)
    kl_end = float(merge({"kl": kl} for kl in kls[-plan.per_epoch :])["kl"].value)
    done: Metrics = {
        "epochs_done": Mean(steps / plan.per_epoch),
        "optimiser_steps": Sum(steps),
        "learning_rate": Mean(optimiser.param_groups[0]["lr"]),
        "kl_last": Mean(kl_last),
        "kl_end": Mean(kl_end),
        "kl_max": Max(kl_max),
        "update_seconds": Sum(time.perf_counter() - began),
    }
    return UpdateResult(
        metrics=merge([*parts, done]), kl_last=kl_last, kl_end=kl_end, kl_max=kl_max, stop_reason=reason
    )


@dataclass(frozen=True, slots=True)
class _Minibatch:
    rows: torch.Tensor
    normaliser: float
    place: str


class _Plan:
    """The minibatches of all epochs, in order; each epoch's permutation is drawn when the epoch begins."""

    def __init__(
        self,
        batch: UpdateBatch,
        epochs: int,
        reduction: Reduction,
        decisions: int | None,
        trajectories: int | None,
        generator: torch.Generator | None,
    ):
        size = decisions if trajectories is None else trajectories
        if (decisions is None) == (trajectories is None) or size is None or size < 1:
            raise ConfigError(
                f"give one of minibatch_decisions ({decisions}) and minibatch_trajectories ({trajectories}), at least 1"
            )
        tokens = torch.bincount(batch.trajectory, weights=batch.mask.sum(1)).long()
        self.weight = reduction_weights(batch.mask, tokens[batch.trajectory], reduction)
        self.total = reduction_count(tokens, reduction)
        self.tokens, self.of_row, self.reduction = tokens, batch.trajectory, reduction
        self.valid = batch.mask.sum(1)
        if not self.total:
            raise NoSignalError(f"update: none of the batch's {len(batch)} rows has a valid token")
        self.units = len(batch) if trajectories is None else batch.trajectories
        self.per_epoch = math.ceil(self.units / size)
        self.epochs, self.generator = epochs, generator
        self.trajectory = None if trajectories is None else batch.trajectory
        self.over_batch = reduction == "trajectory" and trajectories is None

    def __iter__(self) -> Iterator[_Minibatch]:
        for epoch in range(self.epochs):
            order = torch.arange(self.units)
            if self.generator is not None:
                order = torch.randperm(self.units, generator=self.generator)
            for number, units in enumerate(order.tensor_split(self.per_epoch)):
                rows = units if self.trajectory is None else torch.isin(self.trajectory, units).nonzero()[:, 0]
                yield _Minibatch(
                    rows=rows,
                    normaliser=self.total / self.per_epoch if self.over_batch else self._count(rows),
                    place=f"epoch {epoch + 1} of {self.epochs}, minibatch {number + 1} of {self.per_epoch}",
                )

    def _count(self, rows: torch.Tensor) -> float:
        """Of these rows; with reduction "trajectory" they are whole trajectories."""
        if self.reduction == "token":
            return float(self.valid[rows].sum())
        return reduction_count(self.tokens[self.of_row[rows].unique()], self.reduction)


class _Gradient(Gradient):
    """Adds minibatches' gradients to the parameters' `grad`, micro-batch after micro-batch or some side by side."""

    def __init__(
        self,
        policy: LikelihoodPolicy,
        objective: Callable[..., tuple[torch.Tensor, Metrics]],
        batch: UpdateBatch,
        weight: torch.Tensor,
        optimiser: torch.optim.Optimizer,
        micro_batch: int | None,
        threads: int,
    ):
        self.policy, self.objective, self.batch, self.weight = policy, objective, batch, weight
        self.device: torch.device = optimiser.param_groups[0]["params"][0].device
        self.micro_batch = micro_batch
        self.start_log_prob: torch.Tensor | None = None
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        super().__init__(parameters, threads if self.device.type == "cpu" else 1)

    def of(self, minibatch: _Minibatch) -> Metrics:
        """Add a minibatch's gradient; returns its metrics."""
        return self.add(partial(self._loss, normaliser=minibatch.normaliser), self._parts(minibatch.rows))

    def look(self, minibatch: _Minibatch) -> Metrics:
        """A minibatch's metrics alone."""
        return merge(self._each(lambda rows: self._loss(rows, minibatch.normaliser)[1], self._parts(minibatch.rows)))

    def stay_near(self, start: LikelihoodPolicy) -> None:
        """Compute the batch's log-probabilities under a policy, for losses that have the KL to it, from now on."""
        if isinstance(start, torch.nn.Module):
            start.eval()
        parts = self._parts(torch.arange(len(self.batch)), limit=1024)
        self.start_log_prob = torch.cat(list(self._each(lambda rows: self._density(start, rows)[0].cpu(), parts)))

    def _parts(self, rows: torch.Tensor, limit: int | None = None) -> Sequence[torch.Tensor]:
        size = math.ceil(len(rows) / self.threads)
        return rows.split(min(size, self.micro_batch or limit or size))

    def _each(self, work: Callable[[torch.Tensor], Result], parts: Iterable[torch.Tensor]) -> Iterator[Result]:
        """`work` on every part, without gradients."""

        def apart(rows: torch.Tensor) -> Result:
            with torch.no_grad():  # a thread's own
                return work(rows)

        return map(apart, parts) if self.executor is None else self.executor.map(apart, parts)

    def _density(self, policy: LikelihoodPolicy, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = {name: tensor[rows].to(self.device) for name, tensor in self.batch.inputs.items()}
        return policy.log_prob(inputs, self.batch.sample[rows].to(self.device))

    def _loss(self, rows: torch.Tensor, normaliser: float) -> tuple[torch.Tensor, Metrics]:
        batch, device = self.batch, self.device
        log_prob, entropy = self._density(self.policy, rows)
        if torch.is_grad_enabled() and not log_prob.requires_grad:
            raise TrainingError("policy.log_prob returned no gradient: no parameter that it depends on is trained")
        return self.objective(
            log_prob,
            batch.old_log_prob[rows].to(device),
            batch.advantage[rows].to(device),
            batch.mask[rows].to(device),
            self.weight[rows].to(device),
            normaliser=normaliser,
            entropy=entropy,
            start_log_prob=None if self.start_log_prob is None else self.start_log_prob[rows].to(device),
        )


def _kl(measured: Metrics) -> list[Mean]:
    """The KL of a minibatch; none when no token of it is valid."""
    kl = measured.get("kl")
    return [kl] if isinstance(kl, Mean) else []


def _rounding(batch: UpdateBatch, rows: torch.Tensor) -> float:
    """|ratio - 1| that two roundings of the largest log-probability can make, with a factor of two to spare."""
    old = torch.where(batch.mask[rows], batch.old_log_prob[rows], 0.0)
    return 4 * torch.finfo(old.dtype).eps * float(old.abs().max()) if old.numel() else 0.0


def _first_ratio(measured: Metrics, tolerance: float) -> Metrics:
    """Before the first step every ratio is 1, or the update optimises another density than the one that acted."""
    if not measured:
        return {}
    low, high = measured["ratio_min"].value, measured["ratio_max"].value
    deviation = max(abs(high - 1), abs(low - 1))
    if deviation > tolerance:
        raise RatioError(
            f"before the first update the ratio new / old probability must be 1, but lies in [{low:.6g}, {high:.6g}] "
            f"(tolerance {tolerance:g}). log_prob(inputs, sample) is not what act recorded: compare temperature, "
            "top-k and dropout of the two, check that the inputs are what the policy saw, and that the rollouts were "
            "made with these weights. If all of that agrees, it is rounding: a density that is narrow beside its mean "
            "magnifies the mean's last digits, which depend on the batch. Give its width a floor, compute it in "
            "float64, or let the policy say a `ratio_tolerance` of its own"
        )
    return {"first_ratio_deviation": Max(deviation)}


def _step(
    optimiser: torch.optim.Optimizer, trained: list[torch.nn.Parameter], max_grad_norm: float, names: Named
) -> Metrics:
    """Clip the gradient and step; see `gradient.step` for what is raised."""
    norm = step(optimiser, trained, max_grad_norm, names)
    return {
        "grad_norm": Mean(norm),
        "grad_norm_max": Max(norm),
        "grad_clip_fraction": Mean(float(norm > max_grad_norm)),
    }


def _named(policy: LikelihoodPolicy, optimiser: torch.optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
    """The optimiser's parameters, by the policy's names where it has some."""
    names = {id(p): name for name, p in policy.named_parameters()} if isinstance(policy, torch.nn.Module) else {}
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    return [(names.get(id(p), f"a parameter of shape {tuple(p.shape)}"), p) for p in parameters]


def _copy(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [p.detach().clone() for group in optimiser.param_groups for p in group["params"]]


@torch.no_grad()
def _restore(optimiser: torch.optim.Optimizer, weights: list[torch.Tensor]) -> int:
    """Take back the last step; returns how many steps that were."""
    if not weights:
        return 0
    for parameter, old in zip((p for group in optimiser.param_groups for p in group["params"]), weights, strict=True):
        parameter.copy_(old)
    return 1


def make_optimiser(policy: LikelihoodPolicy, *, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over what post-training updates. A parameter group's own `lr` and `weight_decay` take precedence."""
    optimiser = torch.optim.AdamW(policy.rl_parameters(), lr=learning_rate, weight_decay=weight_decay)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveRate:
    """A learning-rate scale that follows the KL of each update (a frozen value: checkpoint `scale`).

        rate = rate.after(result.kl_end)
        scale_rate(optimiser, rate.scale)

    Attributes:
        target_kl: the KL that an update should end with.
        scale: present factor on the optimiser's initial learning rates.
        low, high: bounds of the scale.
    """

    target_kl: float
    scale: float = 1.0
    low: float = 0.1
    high: float = 10.0

    def __post_init__(self) -> None:
        if not (self.target_kl > 0 and 0 < self.low <= self.scale <= self.high):
            raise ConfigError(f"adaptive rate: need target_kl > 0 and 0 < low <= scale <= high, got {self}")

    def after(self, kl: float) -> AdaptiveRate:
        """The next rate: x0.67 when `kl` is above 1.5 target, x1.2 when below target / 1.5, within bounds."""
        factor = 0.67 if kl > 1.5 * self.target_kl else 1.2 if kl < self.target_kl / 1.5 else 1.0
        return replace(self, scale=min(max(self.scale * factor, self.low), self.high))


def scale_rate(optimiser: torch.optim.Optimizer, scale: float) -> None:
    """Set every parameter group's learning rate to its first one times `scale`; needs one of `make_optimiser`."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * scale
