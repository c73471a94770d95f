"""Layers with a low-rank update beside frozen weights (LoRA, Hu et al. 2022).

    y = W x + b + scaling * B (A x)

The weights keep their names; the update's are `lora_A.weight` and `lora_B.weight` below the layer's, as in PEFT.
The frozen weights may be bfloat16 while the update is float32: it is rounded to the type of what comes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class LoraLinear(nn.Linear):
    """A linear layer that may have an update."""

    lora_A: nn.Linear | None
    lora_B: nn.Linear | None
    scaling: float

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, bias=bias)
        self.lora_A = self.lora_B = None
        self.scaling = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.lora_A is None or self.lora_B is None:
            return y
        low = F.linear(x, self.lora_A.weight.to(x.dtype))
        return y + F.linear(low, self.lora_B.weight.to(x.dtype)) * self.scaling

    def add_lora(
        self, rank: int, scaling: float, dtype: torch.dtype = torch.float32, device: str | None = None
    ) -> None:
        """Give it an update that is zero: A from a normal distribution of deviation 1/rank, B zero. On the device of
        its weights unless said otherwise; on "meta" it is to be filled."""
        place: dict[str, Any] = {"device": device or self.weight.device, "dtype": dtype}
        self.lora_A = nn.Linear(self.in_features, rank, bias=False, **place)
        self.lora_B = nn.Linear(rank, self.out_features, bias=False, **place)
        self.scaling = scaling
        if not self.lora_A.weight.is_meta:
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
            nn.init.zeros_(self.lora_B.weight)


class LoraPatches(nn.Conv2d):
    """The convolution that makes tokens of patches; it may have an update: a convolution, then a 1x1 one."""

    lora_A: nn.Conv2d | None
    lora_B: nn.Conv2d | None
    scaling: float

    def __init__(self, width: int, patch: int):
        super().__init__(3, width, patch, stride=patch)
        self.lora_A = self.lora_B = None
        self.scaling = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride)
        if self.lora_A is None or self.lora_B is None:
            return y
        low = F.conv2d(x, self.lora_A.weight.to(x.dtype), stride=self.stride)
        return y + F.conv2d(low, self.lora_B.weight.to(x.dtype)) * self.scaling

    def add_lora(
        self, rank: int, scaling: float, dtype: torch.dtype = torch.float32, device: str | None = None
    ) -> None:
        """See `LoraLinear.add_lora`."""
        place: dict[str, Any] = {"device": device or self.weight.device, "dtype": dtype}
        patch = self.kernel_size[0]
        self.lora_A = nn.Conv2d(3, rank, patch, stride=patch, bias=False, **place)
        self.lora_B = nn.Conv2d(rank, self.out_channels, 1, bias=False, **place)
        self.scaling = scaling
        if not self.lora_A.weight.is_meta:
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
            nn.init.zeros_(self.lora_B.weight)


LoraLayer = LoraLinear | LoraPatches


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Name -> every layer that may have an update."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}


def add_lora(
    model: nn.Module,
    names: Iterable[str],
    rank: int,
    scaling: float,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
) -> None:
    """Give the layers of those names updates that are zero; see `LoraLinear.add_lora`."""
    layers = lora_layers(model)
    for name in sorted(names):
        layers[name].add_lora(rank, scaling, dtype, device)


def lora_weights(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """Name -> parameter of all updates."""
    return {
        f"{name}.{part}.weight": getattr(layer, part).weight
        for name, layer in lora_layers(model).items()
        if layer.lora_A is not None
        for part in ("lora_A", "lora_B")
    }
