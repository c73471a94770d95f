"""What reads and feeds the language model: the L1 head, the scale head, and the token of proprioception.

They compute in the type of their own weights, which may be float32 where the language model is bfloat16.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ript.policies.openvla_oft.sizes import OpenVlaSizes

SCALE_BIAS = -3.0
"""Bias of a new scale head, for scales of exp(-3) = 0.05 to begin with."""
SCALE_WEIGHTS = 1e-3
"""Standard deviation of a new scale head's last weights."""


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class ResidualMlp(nn.Module):
    """A residual MLP over an action's hidden states, joined: `[B, chunk, action * D]` to `[B, chunk, outputs]`."""

    def __init__(self, sizes: OpenVlaSizes, outputs: int):
        super().__init__()
        inputs, width = sizes.action * sizes.llama.width, sizes.llama.width
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(2))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class ActionHead(nn.Module):
    """Means of the normalised actions."""

    def __init__(self, sizes: OpenVlaSizes):
        super().__init__()
        self.sizes = sizes
        self.model = ResidualMlp(sizes, sizes.action)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[B, chunk, action]` of hidden states `[B, chunk * action, D]`."""
        return self.model(joined(hidden, self.sizes).to(self.model.fc1.weight.dtype))


class ScaleHead(nn.Module):
    """Log-scales of the normalised actions, not clipped."""

    def __init__(self, sizes: OpenVlaSizes):
        super().__init__()
        self.sizes = sizes
        self.trunk = ResidualMlp(sizes, sizes.llama.width)
        self.log_b_head = nn.Linear(sizes.llama.width, sizes.action)
        if not self.log_b_head.weight.is_meta:
            nn.init.normal_(self.log_b_head.weight, std=SCALE_WEIGHTS)
            nn.init.constant_(self.log_b_head.bias, SCALE_BIAS)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[B, chunk, action]` of hidden states `[B, chunk * action, D]`."""
        return self.log_b_head(self.trunk(joined(hidden, self.sizes).to(self.log_b_head.weight.dtype)))


class ProprioProjector(nn.Module):
    """Normalised proprioception `[B, P]` as one token `[B, D]`."""

    def __init__(self, sizes: OpenVlaSizes):
        super().__init__()
        self.fc1 = nn.Linear(sizes.proprio, sizes.llama.width)
        self.fc2 = nn.Linear(sizes.llama.width, sizes.llama.width)

    def forward(self, proprio: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(proprio.to(self.fc1.weight.dtype))))


def joined(hidden: torch.Tensor, sizes: OpenVlaSizes) -> torch.Tensor:
    """Hidden states `[B, chunk * action, D]`, or of a chunk's first actions, those of one action side by side:
    `[B, chunk, action * D]`."""
    return hidden.unflatten(1, (-1, sizes.action)).flatten(2)
