"""The temperature to practise at, by the entropy of what is sampled."""

from __future__ import annotations

import math
from collections.abc import Callable

TEMPERATURES = (0.3, 1.5)
"""Bounds of a chosen temperature."""


def choose_temperature(entropy_at: Callable[[float], float], wanted: float) -> tuple[float, float]:
    """The temperature at which the entropy is what is wanted.

    A policy fine-tuned on one demonstration may be so sure of itself that the K rollouts of a group end alike, or so
    unsure that none succeeds; the same number of nats is a start that can be learned from in both cases.

    Args:
        entropy_at: temperature -> mean entropy of a sampled variable, nats, which rises with it; of continuous
            variables it may be negative.
        wanted: such an entropy.

    Returns:
        temperature: within `TEMPERATURES`; the nearer bound when the entropy cannot be reached.
        entropy: that it gives.
    """
    low, high = TEMPERATURES
    for _ in range(8):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if entropy_at(middle) < wanted else (low, middle)
    chosen = round(math.sqrt(low * high), 2)
    return chosen, entropy_at(chosen)
