"""The language model: Llama without a causal mask. Names are those of published files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ript.policies.openvla_oft.lora import LoraLinear
from ript.policies.openvla_oft.sizes import LlamaSizes

Cache = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values `[B, heads, T, d]` of every layer."""
Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines `[T, d]` of positions."""


class RmsNorm(nn.Module):
    """Division by the root mean square in float32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def angles(positions: torch.Tensor, size: int, theta: float, dtype: torch.dtype) -> Angles:
    """Rotary angles of positions `[T]`, computed in float32, for heads of `size`: both halves of a head turn alike."""
    steps = torch.arange(0, size, 2, dtype=torch.int64, device=positions.device).float()
    turns = torch.outer(positions.float(), 1.0 / theta ** (steps / size))
    turns = torch.cat([turns, turns], dim=-1)
    return turns.cos().to(dtype), turns.sin().to(dtype)


def rotated(x: torch.Tensor, turns: Angles) -> torch.Tensor:
    """`[B, heads, T, d]` with every head turned."""
    left, right = x.chunk(2, dim=-1)
    return x * turns[0] + torch.cat([-right, left], dim=-1) * turns[1]


class Attention(nn.Module):
    def __init__(self, sizes: LlamaSizes):
        super().__init__()
        self.heads = sizes.heads
        self.q_proj = LoraLinear(sizes.width, sizes.width, bias=False)
        self.k_proj = LoraLinear(sizes.width, sizes.width, bias=False)
        self.v_proj = LoraLinear(sizes.width, sizes.width, bias=False)
        self.o_proj = LoraLinear(sizes.width, sizes.width, bias=False)

    def keys_and_values(self, x: torch.Tensor, turns: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        return rotated(self._heads(self.k_proj(x)), turns), self._heads(self.v_proj(x))

    def forward(
        self, x: torch.Tensor, turns: Angles, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """`[B, T, D]`; see `Layer`."""
        q = rotated(self._heads(self.q_proj(x)), turns)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=hidden)
        return self.o_proj(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self, sizes: LlamaSizes):
        super().__init__()
        self.gate_proj = LoraLinear(sizes.width, sizes.hidden, bias=False)
        self.up_proj = LoraLinear(sizes.width, sizes.hidden, bias=False)
        self.down_proj = LoraLinear(sizes.hidden, sizes.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, sizes: LlamaSizes):
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes)
        self.input_layernorm = RmsNorm(sizes.width, sizes.norm_eps)
        self.post_attention_layernorm = RmsNorm(sizes.width, sizes.norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        turns: Angles,
        mask: torch.Tensor | None = None,
        before: tuple[torch.Tensor, torch.Tensor] | None = None,
        rows: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """The residual stream behind this layer, and the layer's keys and values.

        Args:
            x: `[B, T, D]`.
            turns: of the T positions.
            mask: bool `[B, 1, 1, keys]`, True for keys that may be seen; None for all.
            before: keys and values that come before those of `x`.
            rows: int64 `[B, R]`, positions whose result is wanted: `[B, R, D]` then. All when None.
        """
        normed = self.input_layernorm(x)
        keys, values = own = self.self_attn.keys_and_values(normed, turns)
        if before is not None:
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        if rows is not None:
            x, normed = _taken(x, rows), _taken(normed, rows)
            turns = turns[0][rows][:, None], turns[1][rows][:, None]
        x = x + self.self_attn(normed, turns, keys, values, mask)
        return x + self.mlp(self.post_attention_layernorm(x)), own


def _taken(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`[B, R, D]` of `[B, T, D]`."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """As usual, but not on the meta device: for that torch imports its compiler, which takes seconds."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Llama(nn.Module):
    """Every token sees every other one."""

    def __init__(self, sizes: LlamaSizes):
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = RmsNorm(sizes.width, sizes.norm_eps)

    def forward(
        self,
        embeddings: torch.Tensor,
        *,
        rows: torch.Tensor,
        mask: torch.Tensor | None = None,
        recompute: bool = False,
    ) -> torch.Tensor:
        """Hidden states `[B, R, D]` behind the final norm, at positions `rows` `[B, R]`.

        Args:
            embeddings: `[B, T, D]`, at positions 0..T-1.
            rows: int64; the last layer is computed at these alone.
            mask: bool `[B, T]`, False for padding on the right; None when there is none.
            recompute: keep no activations within layers for the gradient, but compute them again.
        """
        x, turns = embeddings, self._turns(embeddings, 0)
        keys = None if mask is None else mask[:, None, None, :]
        for i, layer in enumerate(self.layers):
            wanted = rows if i == len(self.layers) - 1 else None
            if recompute and torch.is_grad_enabled():
                x, _ = checkpoint(layer, x, turns, keys, None, wanted, use_reentrant=False)
            else:
                x, _ = layer(x, turns, keys, None, wanted)
        return self.norm(x)

    def keys_and_values(self, embeddings: torch.Tensor) -> Cache:
        """Keys and values of all layers, for tokens `[B, T, D]` at positions 0..T-1 that see each other alone."""
        x, turns, cache = embeddings, self._turns(embeddings, 0), []
        for layer in self.layers:
            x, own = layer(x, turns)
            cache.append(own)
        return cache

    def after(self, cache: Cache, embeddings: torch.Tensor, *, recompute: bool = False) -> torch.Tensor:
        """Hidden states `[B, T, D]` behind the final norm, of tokens that come after the cached ones."""
        x, turns = embeddings, self._turns(embeddings, cache[0][0].shape[2])
        for layer, before in zip(self.layers, cache, strict=True):
            if recompute and torch.is_grad_enabled():
                x, _ = checkpoint(layer, x, turns, None, before, use_reentrant=False)
            else:
                x, _ = layer(x, turns, None, before)
        return self.norm(x)

    def _turns(self, x: torch.Tensor, start: int) -> Angles:
        positions = torch.arange(start, start + x.shape[1], device=x.device)
        return angles(positions, self.sizes.width // self.sizes.heads, self.sizes.theta, x.dtype)
