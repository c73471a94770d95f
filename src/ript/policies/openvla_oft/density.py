"""The density of actions: independent Laplace densities around the head's means.

One density for drawing and scoring: scale b = temperature * exp(log_b clipped to a range). RIPT-VLA's published code
draws with another scale (not clipped, times the factor) than it scores with (clipped, without it); `published` does
the same, for comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

CLIP = (-2.0, 0.5)
"""Range of log-scales, RIPT-VLA's."""
SMALLEST = 2.0**-53
"""Smallest probability of a tail: what a uniform float64 can tell from zero."""
Sampling = Literal["exact", "published"]
Terms = Literal["action", "dimension"]
"""What is one term of a decision, with a ratio of its own: an action of the chunk, or each of its dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """How to draw and score.

    Attributes:
        temperature: factor on the scale.
        sampling: see the module.
        terms: see `Terms`.
        clip: least and largest log-scale.
    """

    temperature: float = 1.0
    sampling: Sampling = "exact"
    terms: Terms = "action"
    clip: tuple[float, float] = CLIP

    def log_scale(self, log_b: torch.Tensor) -> torch.Tensor:
        """Log of the scale that samples are scored with."""
        clipped = log_b.float().clamp(*self.clip)
        return clipped if self.sampling == "published" else clipped + math.log(self.temperature)

    def drawn(self, mean: torch.Tensor, log_b: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        """Samples float32 `[B, H, A]` through the inverse of the cumulative distribution, in float64.

        Args:
            mean, log_b: `[B, H, A]`; log_b is the scale head's, not clipped.
            uniforms: float64 `[B, H, A]` in [0, 1), one a number.
        """
        if self.sampling == "published":
            scale = log_b.double().exp() * self.temperature
        else:
            scale = self.log_scale(log_b).double().exp()
        side = uniforms - 0.5
        tail = (1 - 2 * side.abs()).clamp(min=SMALLEST)
        return (mean.double() - scale * side.sign() * tail.log()).float()

    def log_prob(
        self, mean: torch.Tensor, log_b: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-density of `sample`, entropy) of each term, in nats, float32 `[B, K]`.

        Args:
            mean, log_b, sample: `[B, H, A]`.
        """
        log_scale = self.log_scale(log_b)
        each = -log_scale - (sample.float() - mean.float()).abs() / log_scale.exp() - math.log(2)
        return self.terms_of(each), self.terms_of(1 + math.log(2) + log_scale)

    def terms_of(self, each: torch.Tensor) -> torch.Tensor:
        """`[B, K]` of numbers a dimension `[B, H, A]`."""
        return each.sum(-1) if self.terms == "action" else each.flatten(1)
