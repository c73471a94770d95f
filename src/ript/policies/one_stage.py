"""Supervised training in one stage, for policies whose loss on demonstrations is all that there is to minimise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from ript.core import policy_calls
from ript.core.errors import PolicyError
from ript.core.metrics import Mean, Metrics
from ript.core.options import TrainingOptions
from ript.core.supervised import DemoSource, Stage

if TYPE_CHECKING:
    import torch

    from ript.core.types import DemoBatch


class OneStage(TrainingOptions):
    ABOUT: ClassVar[str] = "Supervised training: one stage, on demonstrated actions."
    OF_BASE: ClassVar[tuple[str, ...]] = ("policy",)
    OF_TARGETS: ClassVar[tuple[str, ...]] = ("policy",)

    policy_steps: int = Field(1000, ge=0, description="Optimiser steps.")
    policy_batch: int = Field(64, ge=1, description="Looks in a batch.")
    policy_learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate.")


def one_stage(
    policy: Any,
    training: Any,
    windows: DemoSource,
    targets: Sequence[str],
    fresh: bool,
    *,
    loss: Callable[[DemoBatch], tuple[torch.Tensor, Metrics]] | None = None,
    groups: Sequence[Mapping[str, Any]] = (),
    judged: str = "loss",
) -> list[Stage]:
    """A new policy learns from all demonstrations, one that is trained further from those of the target tasks.

    Args:
        policy: a torch module.
        training: a `OneStage`.
        windows: demonstrations.
        targets: keys of the target tasks.
        fresh: the policy is new.
        loss: batch -> (mean over its demonstrated actions, metrics); None: `policy.loss`. A part of a batch counts by
            how many actions it has.
        groups, judged: see `Stage`. A loss whose metrics do not have the name `judged` gets one by it.
    """
    own_loss = loss or policy.loss
    if not callable(own_loss):
        raise PolicyError(f"{policy_calls.named(policy)}: loss is {own_loss!r}; expected a method")

    def share(rows: np.ndarray, batch: np.ndarray) -> tuple[torch.Tensor, Metrics]:
        batch_of_rows, count = windows.batch(rows), windows.executed(rows)
        with policy_calls.asking(policy, "loss"):
            found = own_loss(batch_of_rows)
        value, told = policy_calls.loss(policy, found)
        metrics = {name: Mean(float(x) * count, count) if _is_number(x) else x for name, x in told.items()}
        return value * (count / windows.executed(batch)), {judged: Mean(float(value.detach()) * count, count)} | metrics

    weights = None if fresh else windows.target_weights(targets, 1.0)
    return [
        Stage(
            name="policy",
            steps=training.policy_steps,
            learning_rate=training.policy_learning_rate,
            modules=[policy],
            groups=groups,
            draws=lambda rng: windows.draws(training.policy_batch, rng, task_weights=weights),
            loss=share,
            judged=judged,
        )
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "shape", None) == ()
