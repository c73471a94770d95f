"""Where demonstrations, kinds of policy and supervised training meet: windows, and the stages that learn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ript.core.metrics import Metrics
from ript.core.types import DemoBatch, SimulatorSpec, Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """Means and deviations over all windows that a policy is trained on. They are saved with it, and normalise its
    inputs.

    Attributes:
        proprio_mean, proprio_std: float32 `[P]`; no deviation is so small that noise is blown up to signal.
        privileged_mean, privileged_std: float32 `[O]`, or None without privileged state.
    """

    proprio_mean: np.ndarray
    proprio_std: np.ndarray
    privileged_mean: np.ndarray | None
    privileged_std: np.ndarray | None


class DemoSource(Protocol):
    """Windows over demonstrations: a look, and the actions from it on. W windows, N demonstrated steps."""

    @property
    def spec(self) -> SimulatorSpec:
        """What the simulator showed and took."""
        ...

    @property
    def tasks(self) -> tuple[Task, ...]: ...

    @property
    def privileged(self) -> np.ndarray | None:
        """float32 `[W, O]`, object state from the simulator; None unless every demonstration has it."""
        ...

    def __len__(self) -> int: ...

    def statistics(self) -> Statistics: ...

    def batch(self, rows: np.ndarray) -> DemoBatch:
        """The windows `rows`, int `[B]`."""
        ...

    def draws(
        self, batch_size: int, rng: np.random.Generator, *, task_weights: Mapping[str, float] | None = None
    ) -> Iterator[np.ndarray]:
        """The windows of endless random batches, int `[B]` each; the state of `rng` is the whole position.

        `task_weights`: task key -> share of the windows, on any scale; None: every window equally often.
        """
        ...

    def target_weights(self, targets: Sequence[str], fraction: float) -> dict[str, float]:
        """Task weights by which this share of the windows is of the tasks `targets`."""
        ...

    def windows_of(self, targets: Sequence[str]) -> int:
        """How many windows are of these tasks."""
        ...

    def executed(self, rows: np.ndarray) -> int:
        """Actions of the windows `rows` that were demonstrated, not repeated to fill a window."""
        ...

    def action_chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """A window from every demonstrated step: actions float32 `[N, H, A]`, and mask bool `[N, H]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One supervised stage of a kind of policy; `learn.stages` runs it.

    Attributes:
        name: a word. The kind's training options that are about this stage begin with it: NAME_learning_rate.
        steps: optimiser steps.
        learning_rate: the highest; see `learn.stages.schedule`.
        modules: what is trained; in training mode meanwhile.
        draws: generator -> rows of endless batches, int `[B]` each; its state is the whole position.
        loss: (rows of a part, rows of its batch) -> (loss, metrics). Losses of a batch's parts add up to its own, so
            each divides by a count of the whole batch.
        judged: the metric that a stage which diverges is known by.
        groups: optimiser parameter groups (torch format) of what is trained; none: all parameters of `modules` alike.
        noisy: modules that are not trained, but in training mode all the same.
    """

    name: str
    steps: int
    learning_rate: float
    modules: Sequence[torch.nn.Module]
    draws: Callable[[np.random.Generator], Iterator[np.ndarray]]
    loss: Callable[[np.ndarray, np.ndarray], tuple[torch.Tensor, Metrics]]
    judged: str
    groups: Sequence[Mapping[str, Any]] = ()
    noisy: Sequence[torch.nn.Module] = ()
