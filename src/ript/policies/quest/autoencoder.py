"""QueST's skill autoencoder: a chunk of actions <-> a few discrete skill tokens (Mete et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ript.policies.quest.config import QuestConfig
from ript.policies.quest.layers import Block, sinusoid


class FSQ(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2023): bound each dimension, then round it to one of its levels."""

    levels: torch.Tensor
    basis: torch.Tensor

    def __init__(self, levels: Sequence[int], width: int):
        super().__init__()
        self.project_in = nn.Linear(width, len(levels))
        self.project_out = nn.Linear(len(levels), width)
        basis = [1]
        for level in levels[:-1]:
            basis.append(basis[-1] * level)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """Squash to just above the outermost levels; even level counts are shifted by half a step."""
        half = (self.levels - 1) * 1.001 / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return (z + (offset / half).atanh()).tanh() * half - offset

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`z` `[..., width]` -> (quantised `[..., width]` with a straight-through gradient, tokens int64 `[...]`)."""
        bounded = self.bound(self.project_in(z))
        rounded = bounded + (bounded.round() - bounded).detach()
        half = self.levels // 2
        tokens = ((rounded.detach().round() + half) * self.basis).sum(-1).long()
        return self.project_out(rounded / half), tokens

    def lookup(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[...]` -> quantised `[..., width]`."""
        half = self.levels // 2
        level = (tokens[..., None] // self.basis) % self.levels
        return self.project_out((level - half) / half)


class CausalConv(nn.Module):
    """Convolution over time padded on the left only, GroupNorm, Mish."""

    def __init__(self, width: int, kernel: int, stride: int):
        super().__init__()
        self.kernel = kernel
        self.conv = nn.Conv1d(width, width, kernel, stride)
        # Its statistics run over all time steps, so the encoder as a whole is not causal; as published.
        self.norm = nn.GroupNorm(8, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.mish(self.norm(self.conv(F.pad(x, (self.kernel - 1, 0)))))


class SkillAutoencoder(nn.Module):
    """Actions `[B, H, A]` -> tokens `[B, K]` -> actions `[B, H, A]`."""

    positions: torch.Tensor
    queries: torch.Tensor

    def __init__(self, config: QuestConfig):
        super().__init__()
        width, halvings = config.autoencoder_width, config.downsample.bit_length() - 1
        kernels, strides = [5] + [3] * halvings, [2] * halvings + [1]
        self.action_in = nn.Linear(config.action_dim, width)
        self.convs = nn.Sequential(*(CausalConv(width, k, s) for k, s in zip(kernels, strides, strict=True)))
        self.encoder = nn.ModuleList(
            Block(width, config.encoder_heads, config.autoencoder_dropout) for _ in range(config.encoder_layers)
        )
        self.fsq = FSQ(config.fsq_levels, width)
        self.decoder = nn.ModuleList(
            Block(width, config.decoder_heads, config.autoencoder_dropout, cross=True)
            for _ in range(config.decoder_layers)
        )
        self.action_out = nn.Linear(width, config.action_dim)
        self.register_buffer("positions", sinusoid(config.tokens, width), persistent=False)
        self.register_buffer("queries", sinusoid(config.chunk, width), persistent=False)

    def latents(self, actions: torch.Tensor) -> torch.Tensor:
        """`[B, H, A]` -> `[B, K, width]`, before quantisation."""
        x = self.convs(self.action_in(actions).transpose(1, 2)).transpose(1, 2) + self.positions
        for block in self.encoder:
            x = block(x)
        return x

    def encode(self, actions: torch.Tensor) -> torch.Tensor:
        """Tokens int64 `[B, K]`."""
        return self.fsq(self.latents(actions))[1]

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Every action attends to all codes: no mask."""
        x = self.queries.expand(len(codes), -1, -1)
        for block in self.decoder:
            x = block(x, codes)
        return self.action_out(x)

    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, K]` -> actions `[B, H, A]`, not clipped."""
        return self.decode_codes(self.fsq.lookup(tokens))

    def forward(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(reconstruction `[B, H, A]`, tokens `[B, K]`)."""
        codes, tokens = self.fsq(self.latents(actions))
        return self.decode_codes(codes), tokens
