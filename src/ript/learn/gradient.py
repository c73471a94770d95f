"""Gradients of a loss that is a sum over parts, worked on one after another or side by side in threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

import torch

from ript.core.errors import NotFiniteError, PolicyError, TrainingError
from ript.core.metrics import Metrics, merge

Part = TypeVar("Part")
Loss = Callable[[Part], tuple[torch.Tensor, Metrics]]


Named = Iterable[tuple[str, torch.Tensor]]
"""(name, tensor), for messages."""


def require_masters(groups: Iterable[Mapping[str, Any]], what: str) -> None:
    """Raise `PolicyError` unless all weights that an optimiser would change are at least float32.

    Rounding to fewer bits takes back what a step of the usual size changes, and AdamW's moments would be as short.

    Args:
        groups: of parameters, as an optimiser is given them; those that get no gradient may be of any type.
        what: would train them, in words.
    """
    lists = [group["params"] for group in groups if isinstance(group["params"], list | tuple)]  # others are used up
    trained = [p for parameters in lists for p in parameters if p.requires_grad and p.is_floating_point()]
    if short := sorted({str(p.dtype).removeprefix("torch.") for p in trained if torch.finfo(p.dtype).bits < 32}):
        raise PolicyError(
            f"{what} would train weights in {' and '.join(short)}, which rounds away what its steps change: give the "
            "policy float32 weights there (policy.float()); what is not trained may stay"
        )


class Gradient:
    """Adds the gradients of parts to the parameters' `grad`; a context manager, which ends its threads.

    With two threads of one torch thread each, two CPU cores do 1.4 times as much as with two torch threads on the whole
    (LOG.md). The order of sums is fixed, so runs repeat to the bit; another number of threads rounds differently.

    Args:
        parameters: of the module whose gradient it is.
        threads: parts at a time. With more than one, the loss must be callable from several threads.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], threads: int = 1):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.threads = threads
        self.executor: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self.threads > 1:
            self.executor = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *exc: object) -> None:
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)

    def add(self, loss: Loss[Part], parts: Iterable[Part]) -> Metrics:
        """Add the gradient of the sum of `loss(part)`; returns the parts' metrics together."""
        found = []
        if self.executor is None:  # one part's graph in memory at a time, and hooks on `backward` see it
            for part in parts:
                value, metrics = loss(part)
                value.backward()
                found.append(metrics)
            return merge(found)
        for gradients, metrics in self.executor.map(partial(self._gradients, loss), parts):
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
            found.append(metrics)
        return merge(found)

    def _gradients(self, loss: Loss[Part], part: Part) -> tuple[tuple[torch.Tensor | None, ...], Metrics]:
        value, metrics = loss(part)
        return torch.autograd.grad(value, self.parameters, allow_unused=True), metrics


def step(
    optimiser: torch.optim.Optimizer, trained: Iterable[torch.nn.Parameter], max_grad_norm: float, names: Named = ()
) -> float:
    """Scale the gradient down to `max_grad_norm` and take an optimiser step. Returns the norm before that.

    Args:
        optimiser: over `trained`.
        trained: parameters; those without a gradient do not count.
        max_grad_norm: positive.
        names: the model's named parameters, for messages.

    Raises:
        NotFiniteError: the gradient is NaN or infinite (nothing was changed), or the step is too large for the weights'
            type (they are lost).
        TrainingError: no parameter has a gradient.
    """
    parameters = [p for p in trained if p.grad is not None]
    if not parameters:
        raise TrainingError("no parameter of the optimiser got a gradient: the loss does not depend on any of them")
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm)
    if not math.isfinite(value):
        known = {id(tensor): name for name, tensor in names}
        first = next((p for p in parameters if p.grad is not None and not torch.isfinite(p.grad).all()), None)
        where = "" if first is None else known.get(id(first), f"a parameter of shape {tuple(first.shape)}")
        raise NotFiniteError(f"the gradient norm is {value}{where and f', first in {where}'}")
    torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    try:
        optimiser.step()
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        rates = ", ".join(sorted({f"{group['lr']:g}" for group in optimiser.param_groups}))
        raise NotFiniteError(f"a step at learning rate {rates} is beyond the range of the weights: {error}") from error
    return value


def require_finite(tensors: Named) -> None:
    """Raise NotFiniteError, naming the first bad one, unless all weights (or other tensors) are finite."""
    for name, tensor in tensors:
        if not torch.isfinite(tensor).all():
            raise NotFiniteError(f"{name} became NaN or infinite")
