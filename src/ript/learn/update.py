"""The policy update: epochs of clipped-objective minibatches over one batch of rollouts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ript.core import hooks
from ript.core.errors import ConfigError, NotFiniteError, RatioError
from ript.core.interfaces import LikelihoodPolicy
from ript.core.metrics import Max, Mean, Metrics, Sum, merge
from ript.learn.batch import UpdateBatch
from ript.learn.gradient import require_finite, step
from ript.learn.minibatches import Minibatch, Minibatches
from ript.learn.objective import Reduction, check_clip, weighted_objective
from ript.learn.passes import Passes
from ript.learn.ranks import ALONE, Ranks

COMPUTED_AGAIN = (
    "rollout.lag: rollouts of earlier weights need the log-probabilities that they acted with, but these are computed "
    "again (learn.recompute_log_prob, or the policy's own ratio_tolerance)"
)
"""Why a run cannot be ahead of its updates."""
FAR_APART = 0.5
"""Nats between recorded and recomputed log-probabilities, in the mean over terms, that are no rounding any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    """What an update did.

    Attributes:
        metrics: those of `weighted_objective` over all minibatches that were looked at, and: `grad_norm` (before
            clipping, mean over steps), `grad_norm_max`, `grad_clip_fraction` (steps that were clipped), `learning_rate`
            (of the first parameter group), `epochs_done` (may be a fraction), `optimiser_steps`,
            `first_ratio_deviation` (largest |ratio - 1| on the first minibatch; of all terms where old
            log-probabilities are recomputed), `kl_last`, `kl_end`, `kl_max`, `update_seconds`; with `version` also
            `age` and `age_max` (versions since the rollouts' own, mean over rows and largest), and where there are any
            `importance` and `importance_max` (see `Passes.begin_here`).
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
    recompute: bool = False,
    version: int | None = None,
    ranks: Ranks = ALONE,
    on_minibatch: Callable[[int, int], None] | None = None,
) -> UpdateResult:
    """Improve the policy on a batch, in place.

    An epoch visits every row once, in minibatches of nearly equal size (they differ by at most one decision or
    trajectory), each one optimiser step. Exactly one of the two minibatch sizes is given.

    With reduction "token" a minibatch's loss is the mean over its valid terms. With "trajectory" it is the mean over
    trajectories of the mean over a trajectory's terms: over the minibatch's own trajectories for
    `minibatch_trajectories`; for `minibatch_decisions`, which cut trajectories apart, it is the estimate

        (minibatches an epoch) / N * sum over the minibatch's terms of loss / (terms of the term's trajectory)

    with N and the trajectories' term counts taken over the whole batch, so that the mean of these losses over an epoch
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
        ratio_tolerance: largest |ratio - 1| allowed on the first minibatch, where nothing has changed yet. None: what
            the policy says (`hooks.ratio_tolerance_of`). More is allowed where the log-probabilities are so large that
            rounding them alone moves the ratio further.
        recompute: learn from ratios to what `policy.log_prob` gives before the first step instead of what `act`
            recorded: where both round differently (another precision, device or kernel). One more pass over the batch.
            A policy may ask for it by itself. Nothing is refused then unless the two are `FAR_APART`.
        version: that the policy has now. Rollouts of earlier versions are learned from by the decoupled objective: clip
            and KL are about what this update changes, and each term is weighed by how much likelier the policy now is
            to draw it than the one that did. One more pass over the batch.
        ranks: that this process learns together with, each from rollouts of its own (`UpdateBatch.mine`) of one batch,
            and all with the same policy, optimiser and generator; so are they afterwards. Another number of ranks
            rounds differently.
        on_minibatch: called with (minibatches done, minibatches in all) after each.

    Raises:
        RatioError: the first minibatch's ratio is not 1: the recomputed density differs from the one that acted.
        TrainingError: the rollouts are of a later version than `version`.
        NotFiniteError: NaN or infinity in a loss or gradient, with its place; raised before the step, so the weights
            are those of the step before, and finite (after the last step: those of that step).
        ConfigError: sizes, epochs, a clip range or a tolerance that cannot work.
    """
    began = time.perf_counter()
    check_clip(clip_low, clip_high)
    sizes = {"epochs": epochs, "micro_batch": micro_batch, "threads": threads}
    _require_possible(sizes, max_grad_norm, ratio_tolerance)
    if kl_to_start and start is None:
        raise ConfigError(f"update: kl_to_start is {kl_to_start}, but no policy to stay near was given as `start`")
    tolerance = hooks.ratio_tolerance_of(policy) if ratio_tolerance is None else ratio_tolerance
    ratios = _Ratios.of(batch, version, tolerance, recompute)
    if isinstance(policy, torch.nn.Module):
        policy.eval()
    with ranks.together():
        batch = batch.here()
    minibatches = Minibatches(
        batch,
        epochs=epochs,
        reduction=reduction,
        decisions=minibatch_decisions,
        trajectories=minibatch_trajectories,
        generator=generator,
    )
    objective = partial(
        weighted_objective, clip_low=clip_low, clip_high=clip_high, entropy_bonus=entropy_bonus, kl_to_start=kl_to_start
    )
    with Passes(policy, objective, minibatches, optimiser, micro_batch, threads, ranks) as passes:
        if kl_to_start and start is not None:
            passes.stay_near(start)
        told = ratios.begin(passes)
        steps = _Steps(
            passes,
            optimiser,
            named=_named(policy, optimiser),
            max_grad_norm=max_grad_norm,
            target_kl=target_kl,
            ratio_tolerance=ratios.tolerance_of_first,
            on_minibatch=on_minibatch,
        )
        reason = steps.go(minibatches)
    return steps.result(reason, minibatches.per_epoch, told | {"update_seconds": Sum(time.perf_counter() - began)})


def _require_possible(sizes: Mapping[str, int | None], max_grad_norm: float, ratio_tolerance: float | None) -> None:
    if any(size is not None and size < 1 for size in sizes.values()) or not max_grad_norm > 0:
        told = ", ".join(f"{name} ({size})" for name, size in sizes.items())
        raise ConfigError(f"update: {told} must be at least 1, max_grad_norm ({max_grad_norm}) positive")
    if ratio_tolerance is not None and not ratio_tolerance > 0:
        raise ConfigError(f"update: ratio_tolerance is {ratio_tolerance}; expected a positive number, such as 1e-3")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ratios:
    """What the update's ratios are to: the log-probabilities that `act` recorded, or those before the first step.

    Attributes:
        tolerance: largest |ratio - 1| of recorded ones before the first step; None: no rounding is told apart.
        recompute: they are computed anew.
        ages: int64 `[R]`, versions since the rollouts' own; None: not told.
    """

    tolerance: float | None
    recompute: bool
    ages: torch.Tensor | None

    @classmethod
    def of(cls, batch: UpdateBatch, version: int | None, tolerance: float | None, recompute: bool) -> _Ratios:
        """See `update`, which raises the same."""
        ages = None if version is None else batch.ages(version)
        found = cls(tolerance=tolerance, recompute=recompute or tolerance is None, ages=ages)
        if found.recompute and found.aged:
            raise ConfigError(f"{COMPUTED_AGAIN}: set one of these otherwise")
        return found

    @property
    def aged(self) -> bool:
        """Whether there are rollouts of earlier weights."""
        return self.ages is not None and bool(self.ages.any())

    @property
    def tolerance_of_first(self) -> float | None:
        """The tolerance of the first minibatch's ratios; None where each is 1, for they are of this very policy."""
        return None if self.recompute or self.aged else self.tolerance

    def begin(self, passes: Passes) -> Metrics:
        """Compute what has to be before the first step; returns what is told of it."""
        told: Metrics = {} if self.ages is None else _age(self.ages)
        if self.recompute:
            return told | _apart(passes.recompute())
        if self.ages is not None and self.aged:
            rounding = _rounding(passes, torch.arange(len(self.ages)))
            return told | _importance(passes.begin_here(self.ages == 0), max(self.tolerance or 0.0, rounding))
        return told


class _Steps:
    """The optimiser steps of an update, and what was measured on their way."""

    def __init__(
        self,
        passes: Passes,
        optimiser: torch.optim.Optimizer,
        *,
        named: list[tuple[str, torch.Tensor]],
        max_grad_norm: float,
        target_kl: float | None,
        ratio_tolerance: float | None,
        on_minibatch: Callable[[int, int], None] | None,
    ):
        self.passes, self.optimiser, self.named = passes, optimiser, named
        self.max_grad_norm, self.target_kl, self.ratio_tolerance = max_grad_norm, target_kl, ratio_tolerance
        self.on_minibatch = on_minibatch
        self.steps = 0
        self.parts: list[Metrics] = []
        self.kls: list[Mean] = []  # before each step
        self.after: list[Mean] = []  # of the last
        self.before: list[torch.Tensor] = []  # weights before the last step
        self.taken_back = False

    def go(self, minibatches: Minibatches) -> str:
        """All steps, or those until the KL passes the target. Returns why it ended."""
        for minibatch in minibatches:
            with _placed(minibatch.place), self._without_gradient():
                measured = self._gradient(minibatch)
                self.kls += _kl(measured)
                if self._too_far(self.kls):
                    return self._take_back(f"in {minibatch.place}")
                self._step()
            if self.on_minibatch is not None:
                self.on_minibatch(self.steps, len(minibatches))
        with _placed("after the last step"):
            require_finite(self.named)
            self.after = _kl(self.passes.look(minibatch))
        if self._too_far(self.after):
            return self._take_back("after the last step")
        return f"all {minibatches.epochs} epochs done"

    def result(self, reason: str, per_epoch: int, told: Metrics) -> UpdateResult:
        """What it came to, with `per_epoch` minibatches an epoch; `told` is said of it besides."""
        seen = [kl.value for kl in (*self.kls, *self.after)]
        kl_last, kl_max = seen[-2] if self.taken_back and len(seen) > 1 else seen[-1], max(seen)
        kl_end = float(merge({"kl": kl} for kl in self.kls[-per_epoch:])["kl"].value)
        done: Metrics = {
            "epochs_done": Mean(self.steps / per_epoch),
            "optimiser_steps": Sum(self.steps),
            "learning_rate": Mean(self.optimiser.param_groups[0]["lr"]),
            "kl_last": Mean(kl_last),
            "kl_end": Mean(kl_end),
            "kl_max": Max(kl_max),
        }
        metrics = merge([*self.parts, done, told])
        return UpdateResult(metrics=metrics, kl_last=kl_last, kl_end=kl_end, kl_max=kl_max, stop_reason=reason)

    def _gradient(self, minibatch: Minibatch) -> Metrics:
        measured = self.passes.gradient(minibatch)
        if self.steps == 0 and self.ratio_tolerance is not None:
            measured |= _first_ratio(measured, max(self.ratio_tolerance, _rounding(self.passes, minibatch.rows)))
        self.parts.append(measured)
        return measured

    def _step(self) -> None:
        """Clip the gradient and step; see `gradient.step` for what is raised."""
        self.before = [p.detach().clone() for p in self._weights()] if self.target_kl is not None else []
        norm = step(self.optimiser, self.passes.parameters, self.max_grad_norm, self.named)
        clipped = float(norm > self.max_grad_norm)
        self.parts.append({"grad_norm": Mean(norm), "grad_norm_max": Max(norm), "grad_clip_fraction": Mean(clipped)})
        self.steps += 1

    def _too_far(self, kls: list[Mean]) -> bool:
        return self.target_kl is not None and bool(kls) and kls[-1].value > self.target_kl

    @torch.no_grad()
    def _take_back(self, where: str) -> str:
        """Take back the last step, if there was one; returns why, in words."""
        kl = (self.after or self.kls)[-1].value
        if self.before:
            for parameter, old in zip(self._weights(), self.before, strict=True):
                parameter.copy_(old)
            self.steps -= 1
        self.taken_back = True
        return f"KL {kl:.3g} passed the target {self.target_kl:.3g} {where}"

    def _weights(self) -> list[torch.Tensor]:
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    @contextlib.contextmanager
    def _without_gradient(self) -> Iterator[None]:
        """Before and after, whatever happens in between."""
        self.optimiser.zero_grad(set_to_none=True)
        try:
            yield
        finally:
            self.optimiser.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _placed(place: str) -> Iterator[None]:
    """Say where in the update something was not finite."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"update, {place}: {error}") from error


def _kl(measured: Metrics) -> list[Mean]:
    """The KL of a minibatch; none when no term of it is valid."""
    kl = measured.get("kl")
    return [kl] if isinstance(kl, Mean) else []


def _rounding(passes: Passes, rows: torch.Tensor) -> float:
    """|ratio - 1| that two roundings of the largest log-probability can make, with a factor of two to spare."""
    return 4 * torch.finfo(torch.float32).eps * passes.largest(rows)


def _importance(measured: Metrics, tolerance: float) -> Metrics:
    """How far rollouts of earlier weights are from the present policy; the present rows must not be; see
    `Passes.begin_here`."""
    now = {name: metric for name, metric in measured.items() if name.startswith("ratio_")}
    apart = {name: metric for name, metric in measured.items() if name not in now}
    return apart | _first_ratio(now, tolerance)


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
            "float64, let the policy say a `ratio_tolerance` of its own, or let the update compute the old "
            "log-probabilities again (learn.recompute_log_prob)"
        )
    return {"first_ratio_deviation": Max(deviation)}


def _apart(measured: Metrics) -> Metrics:
    """How far recomputed log-probabilities are from those recorded; see `Passes.recompute`."""
    mean = measured["apart"].value
    if mean >= FAR_APART:
        raise RatioError(
            f"recomputed log-probabilities are {mean:.3g} nats from those that act recorded, in the mean over terms "
            f"(at most {FAR_APART:g} may be rounding). log_prob(inputs, sample) is another density than the one that "
            "act drew from, or the rollouts were made with other weights"
        )
    return {"first_ratio_deviation": measured["first_ratio_deviation"]}


def _age(ages: torch.Tensor) -> Metrics:
    """Mean and largest age of the rows that an update learns from, in versions of the policy; `ages` is int64 `[R]`."""
    return {"age": Mean(float(ages.sum()), len(ages)), "age_max": Max(float(ages.max()))}


def _named(policy: LikelihoodPolicy, optimiser: torch.optim.Optimizer) -> list[tuple[str, torch.Tensor]]:
    """The optimiser's parameters, by the policy's names where it has some."""
    names = {id(p): name for name, p in policy.named_parameters()} if isinstance(policy, torch.nn.Module) else {}
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    return [(names.get(id(p), f"a parameter of shape {tuple(p.shape)}"), p) for p in parameters]
