"""Passes of a policy over the rows of a batch: log-probabilities, losses, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from ript.core import policy_calls
from ript.core.errors import TrainingError
from ript.core.interfaces import LikelihoodPolicy
from ript.core.metrics import Max, Mean, Metrics, Min, merge
from ript.learn.batch import Rows, UpdateBatch
from ript.learn.gradient import Gradient
from ript.learn.minibatches import Minibatch, Minibatches
from ript.learn.ranks import ALONE, Ranks, sum_gradients

Result = TypeVar("Result")
Objective = Callable[..., tuple[torch.Tensor, Metrics]]
"""`weighted_objective`, with what is the same for all rows."""

IMPORTANCE_CEILING = 2.0
"""Terms of earlier weights count as so much likelier now at most."""
MOST_ROWS = 1024
"""Rows of one forward pass over the whole batch at most, where no micro-batch bounds it."""


class Passes(Gradient):
    """Works on rows micro-batch after micro-batch, or some side by side in threads.

    Args:
        policy: its parameters are those of the optimiser; rows are sent to the device of the first of them.
        objective: of rows.
        minibatches: of the batch that is worked on.
        micro_batch: rows a forward pass, at most; None: all of a minibatch.
        threads: see `Gradient`; 1 on another device than a CPU.
        ranks: what each finds on its rows is summed over all of them.
    """

    def __init__(
        self,
        policy: LikelihoodPolicy,
        objective: Objective,
        minibatches: Minibatches,
        optimiser: torch.optim.Optimizer,
        micro_batch: int | None,
        threads: int,
        ranks: Ranks = ALONE,
    ):
        self.ranks = ranks
        self.policy, self.objective, self.minibatches, self.micro_batch = policy, objective, minibatches, micro_batch
        self.batch: UpdateBatch = minibatches.batch
        self.device: torch.device = optimiser.param_groups[0]["params"][0].device
        self.start_log_prob: torch.Tensor | None = None
        self.old_log_prob: torch.Tensor | None = None
        self.importance: torch.Tensor | None = None
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        super().__init__(parameters, threads if self.device.type == "cpu" else 1)

    def gradient(self, minibatch: Minibatch) -> Metrics:
        """Add a minibatch's gradient; returns its metrics."""
        with self.ranks.together():
            measured = self.add(partial(self._loss, normaliser=minibatch.normaliser), self._parts(minibatch.rows))
        sum_gradients(self.ranks, self.parameters)
        return self.ranks.merge(measured)

    def look(self, minibatch: Minibatch) -> Metrics:
        """A minibatch's metrics alone."""
        with self.ranks.together():
            parts = self._parts(minibatch.rows)
            found = list(self._each(lambda rows: self._loss(rows, minibatch.normaliser)[1], parts))
        return self.ranks.merge(merge(found))

    def largest(self, rows: torch.Tensor) -> float:
        """The largest absolute value among the recorded log-probabilities of these rows."""
        rows = self.batch.own(rows)
        valid = self.batch.old_log_prob(rows)[self.batch.mask(rows)] if len(rows) else torch.zeros(0)
        found = self.ranks.merge({"largest": Max(float(valid.abs().max()) if len(valid) else 0.0)})
        return float(found["largest"].value)

    def stay_near(self, start: LikelihoodPolicy) -> None:
        """Compute the batch's log-probabilities under a policy, for losses that have the KL to it, from now on."""
        self.start_log_prob = self._log_prob_of_all(start)

    def recompute(self) -> Metrics:
        """From now on the old log-probabilities are what the policy gives here and now, not what `act` recorded.

        Returns:
            apart: nats between the two, mean over valid terms.
            first_ratio_deviation: largest |ratio - 1| of the two.
        """
        self.old_log_prob = self._log_prob_of_all(self.policy)
        found: list[Metrics] = []
        for rows in self.batch.own(torch.arange(len(self.batch))).split(MOST_ROWS):
            apart = (self.old_log_prob[rows] - self.batch.old_log_prob(rows))[self.batch.mask(rows)]
            if len(apart):
                found.append(
                    {
                        "apart": Mean(float(apart.abs().sum()), len(apart)),
                        "first_ratio_deviation": Max(float((apart.double().exp() - 1).abs().max())),
                    }
                )
        return self.ranks.merge(merge(found))

    def begin_here(self, present: torch.Tensor) -> Metrics:
        """From now on ratios are to the policy as it is, and every term weighs as much more as it has become likelier
        since it was drawn, `IMPORTANCE_CEILING` at most: the decoupled objective of Hilton et al. (2022, eq. 4).

        Args:
            present: bool `[R]`, rows of the weights as they are, whose ratios are 1.

        Returns:
            importance, importance_max: before the ceiling, mean over valid terms and largest.
            ratio_min, ratio_max: of present and recorded density, over the present rows; not there without any.
        """
        self.old_log_prob = self._log_prob_of_all(self.policy)
        self.importance = torch.ones_like(self.old_log_prob)
        found: list[Metrics] = []
        for rows in self.batch.own(torch.arange(len(self.batch))).split(MOST_ROWS):
            mask = self.batch.mask(rows)
            since = torch.where(mask, self.old_log_prob[rows] - self.batch.old_log_prob(rows), 0.0)
            self.importance[rows] = since.clamp(max=math.log(IMPORTANCE_CEILING)).exp()
            if (ratios := since.double().exp()[mask]).numel():
                found.append(
                    {"importance": Mean(float(ratios.sum()), len(ratios)), "importance_max": Max(float(ratios.max()))}
                )
            if (ratios := since.double().exp()[mask & present[rows, None]]).numel():
                found.append({"ratio_min": Min(float(ratios.min())), "ratio_max": Max(float(ratios.max()))})
        return self.ranks.merge(merge(found))

    def _log_prob_of_all(self, policy: LikelihoodPolicy) -> torch.Tensor:
        """`[R, K]`, on the CPU; 0 in rows of other ranks."""
        if isinstance(policy, torch.nn.Module):
            policy.eval()

        def log_prob(rows: torch.Tensor) -> torch.Tensor:
            taken = self.batch.take(rows, self.device)
            return policy_calls.log_prob(policy, taken.inputs, taken.sample, taken.old_log_prob.shape[1])[0].cpu()

        shape = (len(self.batch), self.minibatches.terms)
        found = torch.zeros(shape)
        with self.ranks.together():
            parts = self._parts(torch.arange(len(self.batch)), limit=MOST_ROWS)
            for part, values in zip(parts, self._each(log_prob, parts), strict=True):
                found = found if found.dtype == values.dtype else values.new_zeros(shape)
                found[part] = values
        return found

    def _parts(self, rows: torch.Tensor, limit: int | None = None) -> Sequence[torch.Tensor]:
        """This rank's rows of these, for one pass each."""
        rows = self.batch.own(rows)
        if not len(rows):
            return []
        size = math.ceil(len(rows) / self.threads)
        return rows.split(min(size, self.micro_batch or limit or size))

    def _each(self, work: Callable[[torch.Tensor], Result], parts: Iterable[torch.Tensor]) -> Iterator[Result]:
        """`work` on every part, without gradients."""

        def apart(rows: torch.Tensor) -> Result:
            with torch.no_grad():  # a thread's own
                return work(rows)

        return map(apart, parts) if self.executor is None else self.executor.map(apart, parts)

    def _loss(self, rows: torch.Tensor, normaliser: float) -> tuple[torch.Tensor, Metrics]:
        taken: Rows = self.batch.take(rows, self.device)
        terms = taken.old_log_prob.shape[1]
        log_prob, entropy = policy_calls.log_prob(self.policy, taken.inputs, taken.sample, terms)
        if torch.is_grad_enabled() and not log_prob.requires_grad:
            raise TrainingError("policy.log_prob returned no gradient: no parameter that it depends on is trained")
        old, start, importance = self.old_log_prob, self.start_log_prob, self.importance
        return self.objective(
            log_prob,
            taken.old_log_prob if old is None else old[rows].to(self.device),
            taken.advantage,
            taken.mask,
            self.minibatches.weight(rows, taken.mask),
            normaliser=normaliser,
            entropy=entropy,
            start_log_prob=None if start is None else start[rows].to(self.device),
            importance=None if importance is None else importance[rows].to(self.device),
        )
