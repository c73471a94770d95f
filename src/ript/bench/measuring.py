"""How long work takes, how many operations it counts, and how fast a matrix product is on the same device."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 5


def measured(
    work: Callable[[], object], naive: Callable[[], object], share: float, device: str, speed: float, batch: int
) -> dict[str, Any]:
    """Numbers of one piece of work.

    Args:
        work: what is measured; done once before, to warm up.
        naive: the same one decision at a time, or the `share` of it that is timed.
        speed: floating-point operations a second of a matrix product.
        batch: decisions in it.
    """
    before = peak_mib(device)
    work()
    peak = peak_mib(device) - (before if device == "cpu" else 0.0)
    took, took_naively = in_turn(device, work, naive)
    with FlopCounterMode(display=False) as counter:
        work()
    operations = counter.get_total_flops()
    return {
        "batch": batch,
        "milliseconds": took,
        "a_second": 1000 * batch / took,
        "ratio_to_one_by_one": took_naively / share / took,
        "gflop": operations / 1e9,
        "ratio_to_limit": operations / speed / (took / 1000),
        "peak_mib": peak,
    }


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Milliseconds of the fastest of a few repeats."""
    return in_turn(device, work)[0]


def in_turn(device: str, *works: Callable[[], object]) -> list[float]:
    """Milliseconds of each, the best of a few repeats after one to warm up; in turn, so that a machine whose speed
    changes meanwhile does not favour one."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(REPEATS + 1):
        for work, of_work in zip(works, times, strict=True):
            synchronise(device)
            began = time.perf_counter()
            work()
            synchronise(device)
            of_work.append(1000 * (time.perf_counter() - began))
    return [min(of_work[1:]) for of_work in times]


def matmul_speed(device: str, dtype: torch.dtype = torch.float32, size: int | None = None) -> float:
    """Floating-point operations a second of a matrix product `[size, size]`, large enough to fill the device."""
    size = size or (8192 if device == "cuda" else 1024 if dtype is torch.float32 else 512)
    a = torch.randn(size, size, device=device, dtype=dtype)
    rounds = 8 if dtype is torch.float32 else 1  # the best of a second, on a machine that others use too
    return 2 * size**3 / (min(milliseconds(lambda: a @ a, device) for _ in range(rounds)) / 1000)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: str) -> float:
    """On a GPU what torch had allocated at most since the last call; on a CPU the process's largest size ever."""
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return peak
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
