"""What dropout and augmentation draw from in supervised training, so that a batch may be cut into parts.

Training says what a thread draws from (`drawing_from`); policies draw (`uniform`, `fill`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Noise:
    """Random numbers for consecutive rows of a batch, on the CPU.

    Every `BLOCK` rows of the batch have a generator of their own, seeded by `seed` and the block's number. What a row
    gets depends on its place in the batch, and not on the parts into which the batch was cut.

    Args:
        seed: integers, not negative: one sequence of them for each step of training.
        start: place in the batch of the first row.
    """

    BLOCK = 16

    def __init__(self, *seed: int, start: int = 0):
        self.seed, self.start = seed, start
        self.generators: dict[int, torch.Generator] = {}

    def fill(self, x: torch.Tensor, draw: Callable[[torch.Tensor, torch.Generator], object]) -> torch.Tensor:
        """Fill `x`, `[rows, ...]`, by `draw(x of some rows, generator)`, which works in place; returns `x`."""
        end = self.start + len(x)
        for block in range(self.start // self.BLOCK, -(-end // self.BLOCK)):
            first = block * self.BLOCK
            low, high = max(first, self.start), min(first + self.BLOCK, end)
            own = x[low - self.start : high - self.start]
            if len(own) == self.BLOCK:
                draw(own, self.generator(block))
            else:  # the generator must come to the same place as in the part that has the block's other rows
                whole = x.new_empty(self.BLOCK, *x.shape[1:])
                draw(whole, self.generator(block))
                own.copy_(whole[low - first : high - first])
        return x

    def generator(self, block: int) -> torch.Generator:
        if block not in self.generators:
            (seed,) = np.random.SeedSequence([*self.seed, block]).generate_state(1, np.uint64)
            self.generators[block] = torch.Generator().manual_seed(int(seed))
        return self.generators[block]


class _Source(threading.local):
    noise: Noise | None = None


_source = _Source()


@contextmanager
def drawing_from(noise: Noise | None) -> Iterator[None]:
    """Within, what this thread draws by `fill` and `uniform` comes from `noise`, or from torch's own generator."""
    before, _source.noise = _source.noise, noise
    try:
        yield
    finally:
        _source.noise = before


def fill(x: torch.Tensor, draw: Callable[[torch.Tensor, torch.Generator | None], object]) -> torch.Tensor:
    """Fill `x`, `[rows, ...]`, from what this thread draws from; returns `x`.

    Args:
        x: consecutive rows of a batch.
        draw: (some rows of `x`, generator, or None for torch's own) -> anything; works in place.
    """
    if _source.noise is None:
        draw(x, None)
        return x
    return _source.noise.fill(x, draw)


def uniform(rows: int, *shape: int) -> torch.Tensor:
    """Random numbers in [0, 1) from what this thread draws from: float32 `[rows, *shape]`, on the CPU."""
    return fill(torch.empty(rows, *shape), lambda x, generator: x.uniform_(generator=generator))
