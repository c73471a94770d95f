"""Transformer parts shared by the skill autoencoder and the skill GPT: pre-norm, exact GELU, biases everywhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

from ript.core.noise import fill


def frequencies(dim: int) -> torch.Tensor:
    """The frequencies of a sinusoidal encoding, 10000^(-2i/dim), `[dim / 2]`, in float64: rounded to float32 they are
    the same on every machine, while powers in float32 are not."""
    return 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def sinusoid(positions: int, dim: int) -> torch.Tensor:
    """Sinusoidal table `[positions, dim]`; sine and cosine interleaved, frequency 10000^(-2i/dim)."""
    angle = torch.arange(positions)[:, None] * frequencies(dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim].float()


class _Mode(threading.local):
    dropout = True


_mode = _Mode()
"""Whether there is any dropout in this thread."""


@contextmanager
def without_dropout() -> Iterator[None]:
    """Within, there is no dropout in this thread, whatever mode a module is in."""
    before, _mode.dropout = _mode.dropout, False
    try:
        yield
    finally:
        _mode.dropout = before


class Dropout(nn.Dropout):
    """Draws from what this thread draws from; see `core.noise`."""

    @property
    def drops(self) -> bool:
        return self.training and self.p > 0 and _mode.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.drops:
            return x
        keep = fill(torch.empty_like(x), lambda part, generator: part.bernoulli_(1 - self.p, generator=generator))
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
