"""Transformer parts shared by the skill autoencoder and the skill GPT: pre-norm, exact GELU, biases everywhere."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def frequencies(dim: int) -> torch.Tensor:
    """Of a sinusoidal encoding: 10000^(-2i/dim), `[dim / 2]`."""
    return 1.0 / (10000 ** (torch.arange(0, dim, 2).float() / dim))


def sinusoid(positions: int, dim: int) -> torch.Tensor:
    """Sinusoidal table `[positions, dim]`; sine and cosine interleaved, frequency 10000^(-2i/dim)."""
    angle = torch.arange(positions).float()[:, None] * frequencies(dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim]


class Attention(nn.Module):
    """Multi-head attention of `x` over `memory` (over itself when None)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
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
        cache: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """`x` `[B, T, width]`. A `cache` holds the keys and values of earlier positions and is extended in place."""
        width = x.shape[-1]
        if memory is None:
            q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            q = F.linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width])
            k, v = F.linear(memory, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        q, k, v = self.split(q), self.split(k), self.split(v)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        # With a cache, either everything is new (causal) or one position is added (which sees all).
        is_causal = causal and q.shape[2] > 1
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=is_causal, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(out.transpose(1, 2).flatten(2))


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
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: torch.Tensor,
        memory: torch.Tensor | None = None,
        *,
        causal: bool = True,
        cache: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), causal=causal, cache=cache))
        if self.cross_attention is not None and self.norm_cross is not None:
            x = x + self.dropout(self.cross_attention(self.norm_cross(x), memory))
        return x + self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(self.norm2(x))))))
