"""Which decisions are worked on together, in which order, and what each of them weighs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ript.core.errors import ConfigError, NoSignalError
from ript.learn.batch import UpdateBatch
from ript.learn.objective import Reduction, reduction_count, reduction_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch:
    """The decisions of one optimiser step.

    Attributes:
        rows: int64 `[r]` of the batch.
        normaliser: what the sum of its weighted terms is divided by.
        place: which one it is, in words.
    """

    rows: torch.Tensor
    normaliser: float
    place: str


class Minibatches:
    """The minibatches of all epochs, in order; each epoch's permutation is drawn when the epoch begins.

    See `update.update` for the arguments: `decisions` and `trajectories` are its sizes of a minibatch.

    Raises:
        ConfigError: not exactly one size, or one below 1.
        NoSignalError: no term of the batch acted on the simulator.
    """

    def __init__(
        self,
        batch: UpdateBatch,
        *,
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
        self.batch, self.epochs, self.reduction, self.generator = batch, epochs, reduction, generator
        self.total = reduction_count(batch.terms, reduction)
        if not self.total:
            raise NoSignalError(f"update: none of the batch's {len(batch)} rows has a valid term")
        self.terms = batch.mask(torch.zeros(1, dtype=torch.int64)).shape[1]
        self.terms_each = self.terms if int(batch.terms.sum()) == self.terms * len(batch) else 0  # 0: not all are valid
        self.whole_trajectories = trajectories is not None
        self.units = len(batch.rollouts) if self.whole_trajectories else len(batch)
        self.per_epoch = math.ceil(self.units / size)

    def __len__(self) -> int:
        """The number of minibatches of all epochs together."""
        return self.epochs * self.per_epoch

    def __iter__(self) -> Iterator[Minibatch]:
        for epoch in range(self.epochs):
            order = torch.arange(self.units)
            if self.generator is not None:
                order = torch.randperm(self.units, generator=self.generator)
            for number, units in enumerate(order.tensor_split(self.per_epoch)):
                rows = units
                if self.whole_trajectories:
                    rows = torch.isin(self.batch.trajectory, units).nonzero()[:, 0]
                yield Minibatch(
                    rows=rows,
                    normaliser=self._normaliser(rows),
                    place=f"epoch {epoch + 1} of {self.epochs}, minibatch {number + 1} of {self.per_epoch}",
                )

    def weight(self, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Weight of each term `[r, K]` of rows int64 `[r]`, which have this mask; on the mask's device."""
        terms = self.batch.terms[self.batch.trajectory[rows]].to(mask.device)
        return reduction_weights(mask, terms, self.reduction)

    def _normaliser(self, rows: torch.Tensor) -> float:
        if self.reduction == "token":
            return float(len(rows) * self.terms_each if self.terms_each else self.batch.mask(rows).sum())
        if not self.whole_trajectories:
            return self.total / self.per_epoch
        return reduction_count(self.batch.terms[self.batch.trajectory[rows].unique()], self.reduction)
