"""Transformer parts shared by the skill autoencoder and the skill GPT: pre-norm, exact GELU, biases everywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


def frequencies(dim: int) -> torch.Tensor:
    """Of a sinusoidal encoding: 10000^(-2i/dim), `[dim / 2]`; float64, whose roundings to float32 are the same on every
    machine (float32 powers are not)."""
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def sinusoid(positions: int, dim: int) -> torch.Tensor:
    """Sinusoidal table `[positions, dim]`; sine and cosine interleaved, frequency 10000^(-2i/dim)."""
    angle = torch.arange(positions)[:, None] * frequencies(dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim].float()


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


class _Randomness(threading.local):
    noise: Noise | None = None
    dropout = True


randomness = _Randomness()
"""What dropout and augmentation draw from in this thread (None: torch's own generator), and whether there is any
dropout."""


@contextmanager
def drawing_from(noise: Noise | None) -> Iterator[None]:
    """Within, this thread's dropout and augmentation draw from `noise`, or from torch's own generator."""
    before, randomness.noise = randomness.noise, noise
    try:
        yield
    finally:
        randomness.noise = before


def uniform(rows: int, *shape: int) -> torch.Tensor:
    """Random numbers in [0, 1) from what this thread draws from: float32 `[rows, *shape]`, on the CPU."""
    if randomness.noise is None:
        return torch.rand(rows, *shape)
    return randomness.noise.fill(torch.empty(rows, *shape), lambda x, g: x.uniform_(generator=g))


@contextmanager
def without_dropout() -> Iterator[None]:
    """Within, there is no dropout in this thread, whatever mode a module is in."""
    before, randomness.dropout = randomness.dropout, False
    try:
        yield
    finally:
        randomness.dropout = before


class Dropout(nn.Dropout):
    """Draws from what this thread draws from; see `drawing_from`."""

    @property
    def drops(self) -> bool:
        return self.training and self.p > 0 and randomness.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.drops:
            return x
        keep = torch.empty_like(x)
        if randomness.noise is None:
            keep.bernoulli_(1 - self.p)
        else:
            randomness.noise.fill(keep, lambda part, g: part.bernoulli_(1 - self.p, generator=g))
        return x * keep.div_(1 - self.p)


class Cache:
    """Keys and values of the positions that a layer has seen, `[B, heads, T, dim]`, in room for all of them."""

    def __init__(self, room: int):
        self.room, self.length = room, 0
        self.keys = self.values = torch.empty(0)

    def extend(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add positions; returns all so far."""
        if not self.length:
            shape = (*k.shape[:2], self.room, k.shape[3])
            self.keys, self.values = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = k, v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


FEW_ROWS = 128
"""Up to here a CPU multiplies faster with the weights on the left (measured: LOG.md)."""


def few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`F.linear` without gradients, for the few rows of a decoding step: W x^T instead of x W^T on a CPU."""
    rows = x.flatten(0, -2)
    if x.is_cuda or len(rows) > FEW_ROWS:
        return F.linear(x, weight, bias)
    return torch.addmm(bias[:, None], weight, rows.t()).t().unflatten(0, x.shape[:-1])


def one_query(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of one position, `[B, heads, 1, dim]`, over `[B, heads, T, dim]`, without gradients: a few sums take
    less than what torch does there, on a CPU (measured: LOG.md)."""
    weights = (q * k).sum(-1).mul_(q.shape[-1] ** -0.5).softmax(-1)
    return (weights[..., None] * v).sum(2, keepdim=True)


class Attention(nn.Module):
    """Multi-head attention of `x` over `memory` (over itself when None)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor | None = None,
        *,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """`x` `[B, T, width]`. A `cache` (in inference) holds earlier positions' keys and values and is extended."""
        width = x.shape[-1]
        linear = F.linear if cache is None else few_rows
        if memory is None:
            q, k, v = linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            q = F.linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(memory, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        q, k, v = self.split(q), self.split(k), self.split(v)
        if cache is not None:
            k, v = cache.extend(k, v)
        # With a cache, either everything is new (causal) or one position is added (which sees all).
        is_causal = causal and q.shape[2] > 1
        if cache is not None and q.shape[2] == 1 and not q.is_cuda:
            out = one_query(q, k, v)
        elif self.dropout.drops:  # torch's kernel takes no generator
            weights = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
            if is_causal:
                later = torch.ones(weights.shape[2:], dtype=torch.bool, device=q.device).triu(1)
                weights = weights.masked_fill(later, -torch.inf)
            out = self.dropout(weights.softmax(-1)) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)


class Block(nn.Module):
    """x += attention(norm(x)); with `cross`: x += attention(norm(x), memory); x += feed-forward(norm(x))."""

    def __init__(self, width: int, heads: int, dropout: float, *, cross: bool = False):
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads, dropout) if cross else None
        self.norm_cross = nn.LayerNorm(width) if cross else None
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor | None = None,
        *,
        causal: bool = True,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        linear = F.linear if cache is None else few_rows
        x = x + self.dropout(self.attention(self.norm1(x), causal=causal, cache=cache))
        if self.cross_attention is not None and self.norm_cross is not None:
            x = x + self.dropout(self.cross_attention(self.norm_cross(x), memory))
        hidden = self.dropout(F.gelu(linear(self.norm2(x), self.linear1.weight, self.linear1.bias)))
        return x + self.dropout(linear(hidden, self.linear2.weight, self.linear2.bias))
