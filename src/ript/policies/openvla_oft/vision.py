"""The two vision transformers: DINOv2 with registers, and SigLIP. Names are those of published files."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ript.policies.openvla_oft.lora import LoraLinear, LoraPatches
from ript.policies.openvla_oft.sizes import OpenVlaSizes, TowerSizes

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention over `[B, T, D]`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = LoraLinear(width, 3 * width)
        self.proj = LoraLinear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = LoraLinear(width, hidden)
        self.fc2 = LoraLinear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale_factor


class Block(nn.Module):
    def __init__(self, sizes: TowerSizes):
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=NORM_EPS)
        self.attn = Attention(sizes.width, sizes.heads)
        self.norm2 = nn.LayerNorm(sizes.width, eps=NORM_EPS)
        self.mlp = Mlp(sizes.width, sizes.hidden)
        self.ls1 = LayerScale(sizes.width) if sizes.layer_scale else nn.Identity()
        self.ls2 = LayerScale(sizes.width) if sizes.layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = LoraPatches(width, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, 3, h, w]` to `[B, patches, D]`, row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Tower(nn.Module):
    """A vision transformer up to the block before its last.

    Positions are added to patches alone. The last block and the final norm are not here: nothing reads them.
    """

    def __init__(self, sizes: TowerSizes, patch: int, patches: int):
        super().__init__()
        self.prefix = sizes.prefix
        self.patch_embed = PatchEmbed(sizes.width, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, patches, sizes.width))
        if sizes.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
            self.reg_token = nn.Parameter(torch.zeros(1, sizes.prefix - 1, sizes.width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.blocks - 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `[B, patches, D]` of normalised pixels `[B, 3, h, w]`."""
        x = self.patch_embed(pixels) + self.pos_embed
        if self.prefix:
            before = torch.cat([self.cls_token, self.reg_token], dim=1).expand(len(x), -1, -1)
            x = torch.cat([before, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, self.prefix :]


class VisionBackbone(nn.Module):
    """Both towers over all pictures."""

    def __init__(self, sizes: OpenVlaSizes):
        super().__init__()
        self.featurizer = Tower(sizes.dino, sizes.patch, sizes.patches)
        self.fused_featurizer = Tower(sizes.siglip, sizes.patch, sizes.patches)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `[B, pictures * patches, D of both]`.

        Args:
            pixels: `[B, pictures, 6, h, w]`: three channels normalised for DINOv2, three for SigLIP.
        """
        flat = pixels.flatten(0, 1)
        features = torch.cat([self.featurizer(flat[:, :3]), self.fused_featurizer(flat[:, 3:])], dim=-1)
        return features.unflatten(0, pixels.shape[:2]).flatten(1, 2)


class Projector(nn.Module):
    """From features of patches to tokens of the language model."""

    def __init__(self, sizes: OpenVlaSizes):
        super().__init__()
        inputs, width = sizes.dino.width + sizes.siglip.width, sizes.llama.width
        self.fc1 = LoraLinear(inputs, 4 * inputs)
        self.fc2 = LoraLinear(4 * inputs, width)
        self.fc3 = LoraLinear(width, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))
