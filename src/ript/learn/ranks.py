"""Processes that learn together: each works on rows of its own, and what they find is summed over all of them.

Every rank has the whole policy and goes through the same minibatches; sums come out the same, to the bit, on all.
"""

from __future__ import annotations

import datetime
import hashlib
import pickle
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from ript.core.errors import TrainingError
from ript.core.metrics import Metrics, merge

BUCKET = 2**24
"""Numbers that are summed at a time, in float64: 128 MiB."""


class Ranks(Protocol):
    """One of `world` processes that learn together, number `rank`."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over all ranks, in place; accumulated in float64."""
        ...

    def merge(self, metrics: Metrics) -> Metrics:
        """The metrics of all ranks, added up."""
        ...

    def together(self) -> Any:
        """A context for what a rank does alone: an error in it is raised on all ranks, and none waits for another.

        Raises:
            ElsewhereError: another rank raised.
        """
        ...


class ElsewhereError(TrainingError):
    """Another rank failed; that one says why."""


class Alone:
    """The only rank."""

    rank, world = 0, 1

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        pass

    def merge(self, metrics: Metrics) -> Metrics:
        return metrics

    @contextmanager
    def together(self) -> Iterator[None]:
        yield


ALONE: Ranks = Alone()


class Gloo:
    """A rank among processes on a CPU, or on GPUs whose sums go through the CPU; over torch.distributed.

    Args:
        rank, world: number of this process, and how many there are.
        store: where the ranks find each other.
        host: address of this machine that the others reach.
        seconds: that ranks wait for each other, at most.
    """

    def __init__(self, rank: int, world: int, store: Any, host: str, seconds: float):
        import torch.distributed as dist

        self.rank, self.world = rank, world
        options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = datetime.timedelta(seconds=seconds)
        self._group: Any = dist.ProcessGroupGloo(store, rank, world, options)

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1).to("cpu", torch.float64) for tensor in bucket])
            self._group.allreduce([flat]).wait()
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
                start += tensor.numel()

    def merge(self, metrics: Metrics) -> Metrics:
        return merge(self._gather(metrics))

    @contextmanager
    def together(self) -> Iterator[None]:
        failed = torch.zeros(1, dtype=torch.float64)
        try:
            yield
        except BaseException:
            failed += 1
            self._group.allreduce([failed]).wait()
            raise
        self._group.allreduce([failed]).wait()
        if failed:
            raise ElsewhereError("another rank failed")

    def _gather(self, thing: Any) -> list[Any]:
        """Every rank's, in order of ranks."""
        data = torch.frombuffer(bytearray(pickle.dumps(thing)), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self._group.allgather([sizes], [torch.tensor([len(data)])]).wait()
        longest = int(max(sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = data
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
        self._group.allgather([found], [padded]).wait()
        return [pickle.loads(part[: int(size)].numpy().tobytes()) for part, size in zip(found, sizes, strict=True)]

    def require_equal(self, tensors: Iterable[torch.Tensor]) -> None:
        """Raise TrainingError unless all ranks have these to the bit."""
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        found = self._gather(digest.hexdigest())
        if len(set(found)) > 1:
            raise TrainingError(
                f"the ranks' weights are not equal after the update (rank 0 has {found[0][:8]}, others "
                f"{', '.join(sorted({other[:8] for other in found} - {found[0][:8]}))}): they run on processors or "
                "versions of torch that round differently, so use ranks of one kind"
            )


def sum_gradients(ranks: Ranks, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Sum the parameters' gradients over all ranks; one that no rank has a gradient of stays without."""
    if ranks.world == 1:
        return
    there = torch.tensor([float(p.grad is not None) for p in parameters])
    ranks.sum([there])
    wanted = [p for p, some in zip(parameters, there.tolist(), strict=True) if some]
    for parameter in wanted:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    ranks.sum([p.grad for p in wanted if p.grad is not None])


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
