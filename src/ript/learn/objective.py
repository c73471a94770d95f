"""The clipped surrogate objective of PPO (Schulman et al. 2017, equation 7) on the terms that decisions are scored by.

One core, `weighted_objective`, works on flat rows `[R, K]`; the update calls it on micro-batches, and the public
`clipped_objective` on whole trajectories `[B, D, K]`. Weights and normaliser are computed outside the core, over
whatever the mean is to be taken of, so how the rows were cut into micro-batches cannot change a gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from ript.core.errors import ConfigError, NotFiniteError, TrainingError
from ript.core.metrics import Max, Mean, Metrics, Min

Reduction = Literal["token", "trajectory"]

LOG_RATIO_FLOOR = -20.0
"""Below it a ratio is 0 to every digit, and the objective needs no more; estimates of KL go on (to `_FAR`). A density
with a hard edge gives -inf beyond it (QueST's has none: see `QuestPolicy._density_of`)."""

LOG_RATIO_CEILING = 20.0
"""Above it the ratio goes on as a straight line in the log ratio (e^89 is infinite in float32). A term with a positive
advantage is clipped there and has no gradient. One with a negative advantage is not (equation 7 takes the worse of the
two terms): it is still pushed down, as hard as at the ceiling."""

_FAR = 1e4
"""Log ratio at which a distance ends that would be infinite: a density with a hard edge."""

KL_KNEE = 1.0
"""Log ratio above which a token's share of `kl` grows with the log ratio instead of with the ratio."""


def clipped_objective(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    reduction: Reduction = "token",
    entropy: torch.Tensor | None = None,
    entropy_bonus: float = 0.0,
    normaliser: float | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """Loss to minimise: minus the mean of `min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`.

    r = exp(log_prob - old_log_prob), A the advantage.

    Args:
        log_prob: `[B, D, K]`, under the policy being updated, with gradient.
        old_log_prob: `[B, D, K]`, under the policy that acted.
        advantage: `[B]`, one a trajectory, on each of its terms.
        mask: bool `[B, D, K]`, True for terms that acted on the simulator. What lies elsewhere, NaN included, is
            ignored, and so is the advantage of a trajectory without any.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        reduction: "token", every valid term weighs the same; or "trajectory", the mean over each trajectory's valid
            terms first, so every trajectory weighs the same.
        entropy: `[B, D, K]` of each token's distribution, or None.
        entropy_bonus: subtract this times the mean entropy (same weights) from the loss.
        normaliser: what the sum is divided by: the number of valid terms, or of trajectories with any. By default that
            of these arrays; give the global one when they are a part (a micro-batch, a rank) and add up the losses.

    Returns:
        loss: scalar with gradient; 0 when no term is valid.
        metrics: over valid terms, see `weighted_objective`. They merge over parts.

    Raises:
        NotFiniteError: a valid place is NaN or infinite (a `log_prob` of -inf is a ratio of 0, and allowed; a large
            ratio is, too: see `LOG_RATIO_CEILING`).
        TrainingError: shapes disagree.
    """
    if log_prob.ndim != 3:
        raise TrainingError(f"clipped_objective: log_prob must be [B, D, K], got shape {tuple(log_prob.shape)}")
    if normaliser is not None and not normaliser > 0:
        raise ConfigError(f"clipped_objective: normaliser must be positive, got {normaliser}")
    b, d, k = log_prob.shape
    _check_shape("advantage", advantage, (b,))
    named = {"old_log_prob": old_log_prob, "mask": mask} | ({} if entropy is None else {"entropy": entropy})
    for name, tensor in named.items():
        _check_shape(name, tensor, (b, d, k))
    trajectory = torch.arange(b, device=log_prob.device).repeat_interleave(d)
    mask = mask.reshape(b * d, k).bool()
    terms = mask.reshape(b, d * k).sum(1)
    weight = reduction_weights(mask, terms[trajectory], reduction, log_prob.dtype)
    return weighted_objective(
        log_prob.reshape(b * d, k),
        old_log_prob.reshape(b * d, k),
        advantage[trajectory],
        mask,
        weight,
        normaliser=reduction_count(terms, reduction) if normaliser is None else normaliser,
        clip_low=clip_low,
        clip_high=clip_high,
        entropy=None if entropy is None else entropy.reshape(b * d, k),
        entropy_bonus=entropy_bonus,
    )


def reduction_weights(
    mask: torch.Tensor, terms: torch.Tensor, reduction: Reduction, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Weight of each term before normalisation: `[R, K]`, 0 where masked.

    "token": 1. "trajectory": 1 / (valid terms of its trajectory). They sum to `reduction_count`.

    Args:
        mask: bool `[R, K]`.
        terms: int64 `[R]`, valid terms of each row's trajectory.
    """
    weight = mask.to(dtype)
    if reduction == "token":
        return weight
    if reduction != "trajectory":
        raise ConfigError(f"reduction must be 'token' or 'trajectory', got {reduction!r}")
    return weight / terms.clamp(min=1).to(dtype)[:, None]


def reduction_count(terms: torch.Tensor, reduction: Reduction) -> float:
    """What the mean is over, a whole number: valid terms, or trajectories that have any.

    Args:
        terms: int64 `[N]`, valid terms of each trajectory.
    """
    return float(terms.sum() if reduction == "token" else (terms > 0).sum())


def weighted_objective(
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    advantage: torch.Tensor,
    mask: torch.Tensor,
    weight: torch.Tensor,
    *,
    normaliser: float,
    clip_low: float,
    clip_high: float,
    entropy: torch.Tensor | None = None,
    entropy_bonus: float = 0.0,
    start_log_prob: torch.Tensor | None = None,
    kl_to_start: float = 0.0,
    importance: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Metrics]:
    """The core: `sum(weight * term loss) / normaliser` over rows `[R, K]`, with advantage `[R]`.

    With `importance` `[R, K]`, each term's loss is multiplied by it: how much likelier the term is under the density of
    `old_log_prob` than under the one that it was drawn from.

    Metrics, all over valid terms: `loss` (the weighted mean without the bonus), `clip_fraction` (terms whose clipped
    term is the larger loss, so that they have no gradient), `ratio_mean`, `ratio_min`, `ratio_max`, and `entropy` when
    given. And three estimates of KL(old || new) in nats a decision: a row's valid terms together, mean over rows that
    have any. `kl_k3` sums `r - 1 - log r`, never negative, of which single large ratios are most; `kl_k1` sums
    `-log r`, noisier; `kl` is `kl_k3` with the tangent at log r = `KL_KNEE` above it: equal while no ratio is above e,
    and less where one is. All are empty when no term is valid.

    With `start_log_prob` `[R, K]`, of a policy to stay near, `kl_to_start` times the mean of that last estimate with
    r = start / new is added to the loss, in nats a decision with the terms' weights, and `kl_to_start` is among the
    metrics. On policy its gradient is that of KL(start || new).
    """
    check_clip(clip_low, clip_high)
    _check_finite("log_prob", torch.where(torch.isneginf(log_prob), 0.0, log_prob), mask)
    _check_finite("old_log_prob", old_log_prob, mask)
    _check_finite("advantage", advantage[:, None].expand_as(mask), mask)
    difference = torch.where(mask, log_prob - old_log_prob, 0.0)
    log_ratio = difference.clamp(min=LOG_RATIO_FLOOR)
    ratio = _ratio(log_ratio)
    _check_finite("ratio exp(log_prob - old_log_prob)", ratio, mask)
    gain = torch.where(mask, advantage[:, None].to(ratio.dtype), 0.0)
    unclipped = -gain * ratio
    clipped = -gain * ratio.clamp(1 - clip_low, 1 + clip_high)
    total = (torch.maximum(unclipped, clipped) * (weight if importance is None else weight * importance)).sum()
    objective = total
    if entropy is not None:
        _check_finite("entropy", entropy, mask)
        entropy = torch.where(mask, entropy, 0.0)
        objective = total - entropy_bonus * (entropy * weight).sum()
    elif entropy_bonus:
        raise ConfigError(
            f"entropy_bonus is {entropy_bonus:g}, but there is no entropy: a density that has none in closed form can "
            "have no bonus on it; set entropy_bonus to 0"
        )
    distance = None
    if start_log_prob is not None:
        _check_finite("start_log_prob", torch.where(torch.isneginf(start_log_prob), 0.0, start_log_prob), mask)
        away = torch.where(mask, start_log_prob - log_prob, 0.0).clamp(-_FAR, _FAR)
        distance = _robust_kl(away, away.clamp(max=KL_KNEE).exp() - 1 - away)
        objective = objective + kl_to_start * mask.shape[1] * (distance * weight).sum()
    with torch.no_grad():
        left = difference.clamp(min=-_FAR)
        metrics = _measure(total, weight, left, ratio, clipped > unclipped, mask, entropy, distance)
    return objective / (normaliser or 1.0), metrics


def _ratio(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp(log ratio), and its tangent above `LOG_RATIO_CEILING`."""
    line = math.exp(LOG_RATIO_CEILING) * (1 + log_ratio - LOG_RATIO_CEILING)
    return torch.where(log_ratio > LOG_RATIO_CEILING, line, log_ratio.clamp(max=LOG_RATIO_CEILING).exp())


def _robust_kl(log_ratio: torch.Tensor, k3: torch.Tensor) -> torch.Tensor:
    """`k3`, and its tangent above `KL_KNEE`."""
    slope = math.exp(KL_KNEE) - 1
    return torch.where(log_ratio > KL_KNEE, slope * (log_ratio - KL_KNEE) + slope - KL_KNEE, k3)


def check_clip(clip_low: float, clip_high: float) -> None:
    """Raise `ConfigError` unless 0 < clip_low < 1 and 0 < clip_high."""
    if not (0 < clip_low < 1 and 0 < clip_high < float("inf")):
        raise ConfigError(
            f"clip_low = {clip_low}, clip_high = {clip_high}: the ratio is clipped to [1 - clip_low, 1 + clip_high], "
            "so clip_low must lie in (0, 1) and clip_high be positive; 0.2 and 0.2 are usual"
        )


def _measure(
    total: torch.Tensor,
    weight: torch.Tensor,
    log_ratio: torch.Tensor,
    ratio: torch.Tensor,
    was_clipped: torch.Tensor,
    mask: torch.Tensor,
    entropy: torch.Tensor | None,
    distance: torch.Tensor | None,
) -> Metrics:
    """One transfer from the device for all numbers. Masked places have ratio 1, hence add nothing to the sums of KL."""
    k3 = ratio - 1 - log_ratio
    count = float(mask.sum())
    if not count:
        return {}
    sums = [total, weight.sum(), was_clipped.sum(), mask.any(1).sum()]
    sums += [_robust_kl(log_ratio, k3).sum(), k3.sum(), -log_ratio.sum()]
    sums += [(ratio * mask).sum(), ratio[mask].min(), ratio[mask].max()]
    sums += [total.new_zeros(()) if tensor is None else tensor.sum() for tensor in (entropy, distance)]
    numbers = torch.stack([s.double() for s in sums]).tolist()
    loss, weights, clips, decisions, kl, kl_k3, kl_k1, ratio_sum, low, high, nats, far = numbers
    metrics: Metrics = {
        "loss": Mean(loss, weights),
        "clip_fraction": Mean(clips, count),
        "kl": Mean(kl, decisions),
        "kl_k3": Mean(kl_k3, decisions),
        "kl_k1": Mean(kl_k1, decisions),
        "ratio_mean": Mean(ratio_sum, count),
        "ratio_min": Min(low),
        "ratio_max": Max(high),
    }
    metrics |= {} if entropy is None else {"entropy": Mean(nats, count)}
    return metrics | ({} if distance is None else {"kl_to_start": Mean(far, decisions)})


def _check_shape(name: str, tensor: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise TrainingError(f"clipped_objective: {name} must have shape {expected}, got {tuple(tensor.shape)}")


def _check_finite(name: str, tensor: torch.Tensor, mask: torch.Tensor) -> None:
    bad = mask & ~torch.isfinite(tensor)
    if bad.any():
        row, variable = bad.nonzero()[0].tolist()
        raise NotFiniteError(
            f"{name} is {float(tensor[row, variable].detach())} at row {row}, term {variable} "
            f"({int(bad.sum())} of {int(mask.sum())} valid places are not finite)"
        )
