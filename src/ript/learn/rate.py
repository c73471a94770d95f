"""The optimiser of post-training and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ript.core import policy_calls
from ript.core.errors import ConfigError
from ript.core.interfaces import LikelihoodPolicy
from ript.learn.gradient import require_masters


def make_optimiser(policy: LikelihoodPolicy, *, learning_rate: float, weight_decay: float = 0.0) -> torch.optim.AdamW:
    """AdamW over what post-training updates. A parameter group's own `lr` and `weight_decay` take precedence.

    Raises:
        PolicyError: weights of fewer bits than float32; see `require_masters`.
    """
    groups = policy_calls.rl_parameters(policy)
    require_masters(groups, "practice")
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
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
