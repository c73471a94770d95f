"""Passes of a policy over the rows of a batch: log-probabilities, losses, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch

from ript.core.errors import TrainingError
from ript.core.interfaces import LikelihoodPolicy
from ript.core.metrics import Metrics, merge
from ript.learn.batch import Rows, UpdateBatch
from ript.learn.gradient import Gradient
from ript.learn.minibatches import Minibatch, Minibatches

Result = TypeVar("Result")
Objective = Callable[..., tuple[torch.Tensor, Metrics]]
"""`weighted_objective`, with what is the same for all rows."""

MOST_ROWS = 1024
"""Of a pass over the whole batch, where no micro-batch bounds it."""


class Passes(Gradient):
    """Works on rows micro-batch after micro-batch, or some side by side in threads.

    Args:
        policy: its parameters are those of the optimiser; rows are sent to the device of the first of them.
        objective: of rows.
        minibatches: of the batch that is worked on.
        micro_batch: rows a forward pass, at most; None: all of a minibatch.
        threads: see `Gradient`; 1 on another device than a CPU.
    """

    def __init__(
        self,
        policy: LikelihoodPolicy,
        objective: Objective,
        minibatches: Minibatches,
        optimiser: torch.optim.Optimizer,
        micro_batch: int | None,
        threads: int,
    ):
        self.policy, self.objective, self.minibatches, self.micro_batch = policy, objective, minibatches, micro_batch
        self.batch: UpdateBatch = minibatches.batch
        self.device: torch.device = optimiser.param_groups[0]["params"][0].device
        self.start_log_prob: torch.Tensor | None = None
        self.old_log_prob: torch.Tensor | None = None
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        super().__init__(parameters, threads if self.device.type == "cpu" else 1)

    def gradient(self, minibatch: Minibatch) -> Metrics:
        """Add a minibatch's gradient; returns its metrics."""
        return self.add(partial(self._loss, normaliser=minibatch.normaliser), self._parts(minibatch.rows))

    def look(self, minibatch: Minibatch) -> Metrics:
        """A minibatch's metrics alone."""
        return merge(self._each(lambda rows: self._loss(rows, minibatch.normaliser)[1], self._parts(minibatch.rows)))

    def stay_near(self, start: LikelihoodPolicy) -> None:
        """Compute the batch's log-probabilities under a policy, for losses that have the KL to it, from now on."""
        self.start_log_prob = self._log_prob_of_all(start)

    def recompute(self) -> torch.Tensor:
        """From now on the old log-probabilities are what the policy gives here and now, not what `act` recorded.

        Returns:
            the valid terms' log ratios of the two, `[T]`.
        """
        self.old_log_prob = self._log_prob_of_all(self.policy)
        apart = []
        for rows in torch.arange(len(self.batch)).split(MOST_ROWS):
            apart.append((self.old_log_prob[rows] - self.batch.old_log_prob(rows))[self.batch.mask(rows)])
        return torch.cat(apart)

    def _log_prob_of_all(self, policy: LikelihoodPolicy) -> torch.Tensor:
        """`[R, K]`, on the CPU."""
        if isinstance(policy, torch.nn.Module):
            policy.eval()

        def log_prob(rows: torch.Tensor) -> torch.Tensor:
            taken = self.batch.take(rows, self.device)
            return policy.log_prob(taken.inputs, taken.sample)[0].cpu()

        parts = self._parts(torch.arange(len(self.batch)), limit=MOST_ROWS)
        return torch.cat(list(self._each(log_prob, parts)))

    def _parts(self, rows: torch.Tensor, limit: int | None = None) -> Sequence[torch.Tensor]:
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
        log_prob, entropy = self.policy.log_prob(taken.inputs, taken.sample)
        if torch.is_grad_enabled() and not log_prob.requires_grad:
            raise TrainingError("policy.log_prob returned no gradient: no parameter that it depends on is trained")
        old, start = self.old_log_prob, self.start_log_prob
        return self.objective(
            log_prob,
            taken.old_log_prob if old is None else old[rows].to(self.device),
            taken.advantage,
            taken.mask,
            self.minibatches.weight(rows, taken.mask),
            normaliser=normaliser,
            entropy=entropy,
            start_log_prob=None if start is None else start[rows].to(self.device),
        )
