"""Picture encoders that kinds of policy share: convolutions, then key points."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class SpatialSoftArgmax(nn.Module):
    """Expected image coordinates of each channel, in [-1, 1]: all rows first, then all columns (Levine et al. 2016)."""

    grid: torch.Tensor

    def __init__(self, channels: int, keypoints: int, height: int, width: int):
        super().__init__()
        # Published checkpoints carry this convolution but skip it when it would keep the channel count.
        self.conv = nn.Conv2d(channels, keypoints, 1)
        self.skip = channels == keypoints
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([rows.flatten(), columns.flatten()], 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, h, w]` -> `[B, 2 * keypoints]`."""
        x = x if self.skip else self.conv(x)
        attention = x.flatten(2).contiguous().softmax(-1)
        return (attention @ self.grid).transpose(1, 2).flatten(1)


class ResidualBlock(nn.Module):
    """ResNet's basic block (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet18_two_stages() -> nn.Sequential:
    """ResNet-18 up to its second stage: 128 channels at 1/8 of the size."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = [ResidualBlock(64, 64), ResidualBlock(64, 64), ResidualBlock(64, 128, 2), ResidualBlock(128, 128)]
    return nn.Sequential(*stem, *blocks)


def three_convolutions(channels: int = 64) -> nn.Sequential:
    """A small network for two CPU cores: so many channels at 1/4 of the size."""
    layers = [nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(32, channels, 3, 1, 1))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the layout of the pictures
    return network


class ImageEncoder(nn.Module):
    """uint8 pictures `[B, h, w, 3]` -> features `[B, image_dim]`."""

    MAX_SIZE = 128

    def __init__(self, vision: str, image_dim: int, height: int, width: int):
        super().__init__()
        channels, stride = (128, 8) if vision == "resnet18" else (64, 4)
        self.features = resnet18_two_stages() if vision == "resnet18" else three_convolutions()
        height, width = self.size_seen(height, width)
        self.keypoints = SpatialSoftArgmax(channels, image_dim // 2, -(-height // stride), -(-width // stride))
        self.projection = nn.Linear(image_dim, image_dim)

    @classmethod
    def size_seen(cls, height: int, width: int) -> tuple[int, int]:
        """What the network sees of a picture: one with a longer side than `MAX_SIZE` is scaled to that square."""
        return (cls.MAX_SIZE, cls.MAX_SIZE) if max(height, width) > cls.MAX_SIZE else (height, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.projection(self.keypoints(self.features(_planes(images))))


def _planes(images: torch.Tensor) -> torch.Tensor:
    """Pictures `[B, h, w, 3]`, uint8 or float in [0, 1], as a network sees them: `[B, 3, h, w]` in [0, 1]."""
    x = images.permute(0, 3, 1, 2)  # stored channels-last, which is also what convolutions like
    x = x.float() / 255 if x.dtype == torch.uint8 else x
    size = ImageEncoder.size_seen(x.shape[2], x.shape[3])
    return x if size == tuple(x.shape[2:]) else F.interpolate(x, size, mode="bilinear", align_corners=False)


class KeyPoints(nn.Module):
    """uint8 pictures `[B, h, w, 3]` -> where learned features are in them: `[B, 2 * points]`, rows and columns in
    [-1, 1].

    A feature's map is standardised and sharpened before its expected place is taken. Unlike a plain soft argmax, whose
    attention is nearly even at first, it follows an object of a few pixels after some hundred steps on a few
    demonstrations (measured: LOG.md).

    Args:
        points: how many features.
        height, width: of the pictures.
    """

    SHARPNESS = 5.0
    grid: torch.Tensor

    def __init__(self, points: int, height: int, width: int):
        super().__init__()
        self.features = three_convolutions(points)
        height, width = (-(-side // 4) for side in ImageEncoder.size_seen(height, width))
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("grid", torch.stack([rows.flatten(), columns.flatten()], 1), persistent=False)
        self.sharpness = nn.Parameter(torch.full((points,), self.SHARPNESS))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.features(_planes(images)).flatten(2)
        standard = (maps - maps.mean(2, keepdim=True)) / (maps.std(2, keepdim=True) + 1e-3)
        return ((standard * self.sharpness[:, None]).softmax(-1) @ self.grid).flatten(1)
