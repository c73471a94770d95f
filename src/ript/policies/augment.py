"""Random changes of pictures in supervised training, drawn row by row: see `core.noise`."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ript.core.noise import uniform

JITTERED = 0.9
"""Share of pictures whose colours change, where they do."""


def augment(images: torch.Tensor, shift: int = 2, brightness: float = 0.1, colour_jitter: float = 0.0) -> torch.Tensor:
    """Random translation by up to `shift` pixels (edges repeated) and other colours, each picture for itself.

    Args:
        images: uint8 `[B, h, w, 3]`.
        shift: pixels.
        brightness: every picture gets up to this share brighter or darker.
        colour_jitter: instead of that, nine in ten pictures change in brightness, contrast, saturation (factors within
            1 +- this) and hue (this share of the circle either way).

    Returns:
        float32 `[B, h, w, 3]` in [0, 1].
    """
    b, h, w = images.shape[:3]
    pad = F.pad(images.permute(0, 3, 1, 2).float(), (shift,) * 4, mode="replicate")
    offsets = (uniform(b, 2) * (2 * shift + 1)).long().tolist()
    moved = torch.stack([pad[i, :, y : y + h, x : x + w] for i, (y, x) in enumerate(offsets)])
    if colour_jitter:
        return jitter(moved / 255, colour_jitter).permute(0, 2, 3, 1)
    scale = (1 + brightness * (2 * uniform(b, 1, 1, 1).to(images.device) - 1)) / 255
    return (moved * scale).clamp(0, 1).permute(0, 2, 3, 1)


def jitter(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Brightness, contrast, saturation and hue of nine in ten pictures `[B, 3, h, w]` in [0, 1], in this order."""
    drawn = uniform(len(x), 5, 1, 1, 1).to(x.device).transpose(0, 1)
    brightness, contrast, saturation = 1 + strength * (2 * drawn[:3] - 1)
    y = (x * brightness).clamp(0, 1)
    y = _blend(y, grey(y).mean((2, 3), keepdim=True), contrast)
    y = _blend(y, grey(y), saturation)
    y = turn_hue(y, strength * (2 * drawn[3] - 1))
    return torch.where(drawn[4] < JITTERED, y, x)


def grey(x: torch.Tensor) -> torch.Tensor:
    """Luma (ITU-R BT.601) of pictures `[B, 3, h, w]`: `[B, 1, h, w]`."""
    red, green, blue = x.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _blend(x: torch.Tensor, toward: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(toward.expand_as(x), x, factor.expand_as(x)).clamp(0, 1)


def turn_hue(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Pictures `[B, 3, h, w]` in [0, 1] with their hue (of HSV) turned by so many circles, `[B, 1, 1, 1]`."""
    red, green, blue = x.split(1, dim=1)
    high = x.amax(1, keepdim=True)
    chroma = high - x.amin(1, keepdim=True)
    safe = chroma.clamp(min=1e-12)
    unless_red = torch.where(high == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    sixth = torch.where(high == red, (green - blue) / safe, unless_red) + 6 * turns
    channels = []
    for n in (5, 3, 1):
        k = (n + sixth) % 6
        channels.append(high - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(channels, 1)
