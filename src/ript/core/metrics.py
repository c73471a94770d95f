"""Metrics that add.

A metric is a small record with an associative, commutative `merge`; merging the metrics of any split of the work gives
the same number as measuring it whole, so micro-batch size, worker count and world size cannot change a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean that carries its total and count. `value` is NaN when nothing was counted."""

    total: float
    count: float = 1.0

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan

    def merge(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)


@dataclass(frozen=True, slots=True)
class Sum:
    total: float

    @property
    def value(self) -> float:
        return self.total

    def merge(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)


@dataclass(frozen=True, slots=True)
class Max:
    value: float

    def merge(self, other: Max) -> Max:
        return Max(max(self.value, other.value))


@dataclass(frozen=True, slots=True)
class Min:
    value: float

    def merge(self, other: Min) -> Min:
        return Min(min(self.value, other.value))


@dataclass(frozen=True, slots=True)
class Distinct:
    """How many different things there were: parts may have some in common."""

    seen: frozenset[int]

    @property
    def value(self) -> float:
        return float(len(self.seen))

    def merge(self, other: Distinct) -> Distinct:
        return Distinct(self.seen | other.seen)


Metric = Mean | Sum | Max | Min | Distinct
Metrics = dict[str, Metric]


def merge(parts: Iterable[Mapping[str, Metric]]) -> Metrics:
    """Merge metrics key by key; a key that some parts lack is merged over those that have it.

    Raises:
        TypeError: one key with two kinds of metric.
    """
    merged: Metrics = {}
    for part in parts:
        for key, metric in part.items():
            have = merged.get(key)
            if have is None:
                merged[key] = metric
            elif type(have) is not type(metric):
                raise TypeError(f"metric {key!r} is a {type(have).__name__} here and a {type(metric).__name__} there")
            else:
                merged[key] = have.merge(metric)  # type: ignore[arg-type]
    return merged


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Plain numbers, for a log line."""
    return {key: metric.value for key, metric in metrics.items()}
