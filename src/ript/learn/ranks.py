"""Processes that learn together: each works on rows of its own, and what they find is summed over all of them.

Every rank has the whole policy and goes through the same minibatches; sums come out the same, to the bit, on all.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch

from ript.core.errors import TrainingError
from ript.core.memory import ran_out
from ript.core.metrics import Metrics, merge

BUCKET = 2**24
"""Numbers that are summed at a time, in float64: 128 MiB."""
WATCH_SECONDS = 0.0002
"""Between two looks at whether GPUs are done with a sum."""


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


class Grouped:
    """A rank among processes that speak over a process group of torch's; see `over`.

    Args:
        name: of this rank, for messages.
        group: the process group of this rank.
        rank, world: number of this process, and how many there are.
        device: where sums are made: that of the tensors that the group takes.
        finish: waits until what was asked of the group is done; raises RuntimeError where it cannot be.
    """

    def __init__(self, name: str, group: Any, rank: int, world: int, *, device: str, finish: Callable[[Any], None]):
        self.rank, self.world, self.device = rank, world, device
        self._name, self._group, self._finish = name, group, finish

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.detach().reshape(-1).to(self.device, torch.float64) for tensor in bucket])
            self._all(self._group.allreduce, [flat])
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
                start += tensor.numel()

    def merge(self, metrics: Metrics) -> Metrics:
        return merge(self._gather(metrics))

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(ElsewhereError):  # what happened here says more than that the others are gone
                self._failures(1)
            raise
        if self._failures(0):
            raise ElsewhereError("another rank failed")

    def _failures(self, own: int) -> int:
        """How many ranks have failed."""
        failed = torch.full((1,), float(own), dtype=torch.float64, device=self.device)
        self._all(self._group.allreduce, [failed])
        return int(failed)

    def _all(self, ask: Callable[..., Any], *tensors: Any) -> None:
        """What all ranks do together: ask it of the group, and wait until it is done."""
        with reaching(self._name):
            self._finish(ask(*tensors))

    def _gather(self, thing: Any) -> list[Any]:
        """Every rank's, in order of ranks."""
        data = torch.frombuffer(bytearray(pickle.dumps(thing)), dtype=torch.uint8)
        sizes = [int(size) for size in self._gathered(torch.tensor([len(data)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(data)] = data
        found = zip(self._gathered(padded), sizes, strict=True)
        return [pickle.loads(part[:size].cpu().numpy().tobytes()) for part, size in found]

    def _gathered(self, own: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, all of one shape and type."""
        own = own.to(self.device)
        found = [torch.zeros_like(own) for _ in range(self.world)]
        self._all(self._group.allgather, [found], [own])
        return found

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


def over(
    backend: str,
    rank: int,
    world: int,
    store: Any,
    *,
    host: str,
    device: str,
    seconds: float,
    abandoned: threading.Event,
) -> Grouped:
    """Become one of `world` ranks; every one of them calls this.

    Args:
        backend: "gloo", between processes on CPUs, or on GPUs whose sums go through the CPU; or "nccl", between GPUs,
            one for each rank.
        rank, world: number of this process, and how many there are.
        store: where the ranks find each other.
        host: address of this machine, which the others reach.
        device: "cpu" or "cuda", where this rank learns.
        seconds: that ranks wait for each other, at most.
        abandoned: set by whoever notices that a rank was lost; over gloo its connections tell the others.

    Raises:
        ElsewhereError: the others cannot be reached.
    """
    name = f"rank {rank} of {world} at {host} (over {backend})"
    with reaching(name):
        if backend == "nccl":
            group = _nccl(rank, world, store, seconds)
            finish = functools.partial(watched, give_up=group.abort, seconds=seconds, abandoned=abandoned)
            return Grouped(name, group, rank, world, device=device, finish=finish)
        group = _gloo(rank, world, store, host, seconds)
        return Grouped(name, group, rank, world, device="cpu", finish=lambda work: work.wait())


@contextmanager
def reaching(name: str) -> Iterator[None]:
    """Within, what torch raises becomes an `ElsewhereError` that names this rank: another is gone, cannot be reached,
    or is not in time. Memory that runs out comes as it is."""
    try:
        yield
    except RuntimeError as error:
        if ran_out(error):
            raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ElsewhereError(
            f"{name} does not reach the others ({said}): a rank has ended, or what lies between their machines lets no "
            "connection through"
        ) from error


def _gloo(rank: int, world: int, store: Any, host: str, seconds: float) -> Any:
    import torch.distributed as dist

    options: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = datetime.timedelta(seconds=seconds)
    return dist.ProcessGroupGloo(store, rank, world, options)


def _nccl(rank: int, world: int, store: Any, seconds: float) -> Any:
    """Errors are raised where a rank waits, as over gloo: by default a thread of the group ends the process."""
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"
    import torch.distributed as dist

    options = dist.ProcessGroupNCCL.Options()
    options._timeout = datetime.timedelta(seconds=seconds)
    return dist.ProcessGroupNCCL(store, rank, world, options)


def watched(work: Any, *, give_up: Callable[[], None], seconds: float, abandoned: threading.Event) -> None:
    """Wait until work of a group is done, as long as nobody says that a rank was lost: over nccl nothing else tells,
    for GPUs wait for each other whatever becomes of processes.

    Args:
        work: that was asked of the group.
        give_up: ends it.
        seconds: to wait at most.
        abandoned: set when a rank was lost.

    Raises:
        RuntimeError: it was given up, or failed.
    """
    deadline = time.monotonic() + seconds
    while not work.is_completed():
        if abandoned.wait(WATCH_SECONDS):
            give_up()
            raise RuntimeError("a rank was lost")
        if time.monotonic() > deadline:
            give_up()
            raise RuntimeError(f"no answer within {seconds:g} s")
    work.wait()  # raises what it failed of; on a GPU what comes next waits for it


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
