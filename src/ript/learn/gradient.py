"""Gradients of a loss that is a sum over parts, worked on one after another or side by side in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self, TypeVar

import torch

from ript.metrics import Metrics, merge

Part = TypeVar("Part")
Loss = Callable[[Part], tuple[torch.Tensor, Metrics]]


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
