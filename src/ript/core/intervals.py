"""Intervals for success rates: over initial states, over seeds and states, and of differences on the same states.

A success rate is measured on initial states, which are a sample, by policies trained with some seeds, which are a
sample too. Seeds differ by more than their trials would tell: trials of several seeds must not be counted as one
binomial. Here outcomes are a table of seeds by states, seeds are shown one by one, and every 95 % interval says what it
is over:

- one seed: over states alone (Wilson). It is about this one policy, and says nothing of what another seed would give.
- two seeds: over seeds and states. The spread between seeds is estimated with one degree of freedom, so the interval is
  12.7 standard errors wide on either side; seeds that are 13 points apart give an interval from 0 to 100 %. That is
  what two seeds tell, unless they agree. Claims need seeds that agree, or more of them.
- three seeds: the same with 4.3 standard errors, five with 2.8: the least for a comparison of methods.

The two parts are joined by adding the squares of their distances from the estimate, on each side (Newcombe 1998, Zou
and Donner 2008). With a t quantile for each of two variance estimates that never covers less than 95 % when outcomes of
seeds are normal (Banerjee 1960); and each part holds the noise of single trials, so the sum is on the safe side, as is
the bootstrap that resamples seeds and states (Owen 2007). That bootstrap was not taken: with two or three seeds its
percentiles cover too little (LOG.md has both). Where seeds are not normal, one in five failing altogether, say, no
interval of so few knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964
"""Quantile of the normal distribution that leaves 2.5 % above it."""

_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""The same of Student's distribution with 1 to 10 degrees of freedom."""

PerState = Mapping[str, Sequence[Sequence[str]]]
"""Task -> [(initial state id, "success", "failure" or "error")], as evaluations keep it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A success rate, or a difference of two, with a 95 % interval.

    Attributes:
        value: mean over seeds; NaN when nothing was measured.
        low, high: the interval, over states with one seed, and over seeds and states with several.
        seeds: the value of each seed.
    """

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """One policy's outcomes before and after, on the same states. States with an ERROR in either are `dropped`."""

    gained: int
    lost: int
    solved: int
    unsolved: int
    dropped: int = 0

    @property
    def states(self) -> int:
        return self.gained + self.lost + self.solved + self.unsolved

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely as unequal a split of the changed states is by chance."""
        return mcnemar(self.gained, self.lost)


def wilson(successes: float, trials: float, z: float = Z) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default (Wilson 1927). (0, 1) without trials.

    Args:
        successes, trials: counts; effective ones need not be whole.
        z: normal quantile.
    """
    if trials <= 0:
        return 0.0, 1.0
    p, z2 = successes / trials, z * z
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    # Exact at the ends, where rounding would leave 1e-17.
    return centre - half if successes else 0.0, centre + half if successes < trials else 1.0


def mcnemar(gained: int, lost: int) -> float:
    """p value of McNemar's exact two-sided test: of n changed states at most so many go the rarer way by chance."""
    n = gained + lost
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)


def t_quantile(freedom: int) -> float:
    """Quantile of Student's distribution that leaves 2.5 % above it, to 0.003."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, n = Z, freedom  # expansion in 1 / n (Abramowitz and Stegun 26.7.5)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n * n)


def align(measurements: Sequence[PerState], tasks: Sequence[str] | None = None) -> np.ndarray:
    """Outcomes of several evaluations side by side: `[measurements, states]`.

    1 is a success, 0 a failure, NaN an ERROR or a state that this one did not measure.

    Args:
        measurements: the outcomes of each.
        tasks: those to look at; all by default.
    """
    known = {"success": 1.0, "failure": 0.0}
    tables = [
        {(task, state): known.get(status, math.nan) for task, rows in one.items() for state, status in rows}
        for one in measurements
    ]
    keys = [key for key in dict.fromkeys(key for one in tables for key in one) if tasks is None or key[0] in tasks]
    return np.array([[one.get(key, math.nan) for key in keys] for one in tables]).reshape(len(tables), len(keys))


def measured_once(outcomes: np.ndarray) -> np.ndarray:
    """The first row of `[S, N]` outcomes of one and the same policy when all rows agree: they are one measurement, not
    one of each seed. All of them when they differ."""
    same = len(outcomes) > 1 and all(np.array_equal(outcomes[0], row, equal_nan=True) for row in outcomes[1:])
    return outcomes[:1] if same else outcomes


def pairs(before: np.ndarray, after: np.ndarray) -> Pairs:
    """How outcomes `[N]` changed from state to state."""
    valid = ~np.isnan(before) & ~np.isnan(after)
    was, now = before[valid] > 0, after[valid] > 0
    return Pairs(
        gained=int((~was & now).sum()),
        lost=int((was & ~now).sum()),
        solved=int((was & now).sum()),
        unsolved=int((~was & ~now).sum()),
        dropped=int((~valid).sum()),
    )


def success(outcomes: np.ndarray) -> Estimate:
    """Success rate over seeds and states.

    Args:
        outcomes: `[S, N]`, seeds by states, or `[N]` of one: 1, 0, or NaN where there is none.

    Returns:
        the mean of the seeds' rates; with one seed, Wilson's interval.
    """
    table = np.atleast_2d(outcomes)
    rates = _means(table, axis=1)
    return over_seeds(rates[~np.isnan(rates)], _effective(table))


def over_seeds(rates: Sequence[float] | np.ndarray, states: float) -> Estimate:
    """Success rate over seeds and states, from each seed's rate.

    Args:
        rates: of each seed.
        states: independent trials that the states are worth: their number when outcomes of single states are unknown,
            which is safe, and at most that times the seeds (when seeds fail on different states).
    """
    each = np.asarray(rates, float)
    if not len(each):
        return Estimate(value=math.nan, low=0.0, high=1.0, seeds=())
    value = float(each.mean())
    low, high = wilson(value * states, states)
    spread = _spread(each)
    return Estimate(
        value=value,
        low=max(0.0, value - math.hypot(value - low, spread)),
        high=min(1.0, value + math.hypot(high - value, spread)),
        seeds=tuple(each.tolist()),
    )


def difference(before: np.ndarray, after: np.ndarray) -> Estimate:
    """Success after minus success before, on the same states.

    With one seed this is Newcombe's interval for paired proportions (1998, method 10). With several, its distances use
    the mean outcome of each state over seeds, and the spread of the seeds' own differences is added as in `over_seeds`.

    Args:
        before, after: `[S, N]`, seeds by states in the same order, or `[N]`; one row before may stand for all seeds.
            A state with a NaN on either side drops out of that seed's pair.
    """
    was, now = np.broadcast_arrays(np.atleast_2d(before), np.atleast_2d(after))
    valid = ~np.isnan(was) & ~np.isnan(now)
    was, now = np.where(valid, was, math.nan), np.where(valid, now, math.nan)
    each = _means(now, axis=1) - _means(was, axis=1)
    each = each[~np.isnan(each)]
    if not len(each):
        return Estimate(value=math.nan, low=-1.0, high=1.0, seeds=())
    p, q = _means(was, axis=0), _means(now, axis=0)
    p, q = p[~np.isnan(p)], q[~np.isnan(q)]
    (p_low, p_high), (q_low, q_high) = (
        wilson(x.mean() * n, n) for x, n in ((p, _effective(was)), (q, _effective(now)))
    )
    p_mean, q_mean, likeness = float(p.mean()), float(q.mean()), _correlation(p, q)
    value, spread = float(each.mean()), _spread(each)

    def distance(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * likeness * a * b + b * b) + spread * spread)

    return Estimate(
        value=value,
        low=max(-1.0, value - distance(q_mean - q_low, p_high - p_mean)),
        high=min(1.0, value + distance(q_high - q_mean, p_mean - p_low)),
        seeds=tuple(each.tolist()),
    )


def _means(table: np.ndarray, axis: int) -> np.ndarray:
    """Means that leave NaN out; NaN where there is nothing else."""
    valid = ~np.isnan(table)
    count = valid.sum(axis)
    return np.where(count > 0, np.where(valid, table, 0.0).sum(axis) / np.maximum(count, 1), math.nan)


def _spread(each: np.ndarray) -> float:
    """Half of the t interval for the mean over seeds; 0 with one, whose spread is unknown."""
    seeds = len(each)
    return t_quantile(seeds - 1) * float(each.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else 0.0


def _effective(table: np.ndarray) -> float:
    """How many independent trials have the variance of the mean over states: N when seeds agree, up to S N."""
    state = _means(table, axis=0)
    state = state[~np.isnan(state)]
    if not len(state):
        return 0.0
    mean, variance, trials = float(state.mean()), float(state.var()), float((~np.isnan(table)).sum())
    if not variance:
        return trials if 0 < mean < 1 else float(len(state))
    return min(trials, max(float(len(state)), mean * (1 - mean) / variance * len(state)))


def _correlation(p: np.ndarray, q: np.ndarray) -> float:
    """The correlation of states' outcomes before and after; a positive one is corrected for continuity (Newcombe's
    method 10)."""
    covariance = float(((p - p.mean()) * (q - q.mean())).mean())
    if covariance > 0:
        covariance = max(0.0, covariance - 1 / (2 * len(p)))
    product = float(p.std() * q.std())
    return covariance / product if product else 0.0
