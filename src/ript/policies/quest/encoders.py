"""What the policy sees and is told, as two tokens for the skill GPT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from ript.policies.quest.config import QuestConfig


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


def three_convolutions() -> nn.Sequential:
    """A small network for two CPU cores: 64 channels at 1/4 of the size."""
    layers = [nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 1, 1)]
    network = nn.Sequential(*layers)
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
        x = images.permute(0, 3, 1, 2)  # stored channels-last, which is also what convolutions like
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        size = self.size_seen(x.shape[2], x.shape[3])
        if size != tuple(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False)
        return self.projection(self.keypoints(self.features(x)))


class Adapter(nn.Module):
    """Adds a linear function of whitened features to the observation token; zero at first, trained in post-training.

    Within the states of one task, where an object stands changes the features by a few percent of what the arm's own
    movement does. To a gradient step such states are the same: what is learned in one is learned in all, and a policy
    that must go left here and right there learns to toss a coin. In whitened coordinates, fitted to the policy's own
    rollouts, every direction counts alike.

    Args:
        features: F.
        rank: whitened directions, those of the largest variance.
        width: of the token.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    def __init__(self, features: int, rank: int, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("basis", torch.zeros(features, rank))
        self.linear = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.linear((features - self.mean) @ self.basis)

    @torch.no_grad()
    def fit(self, features: torch.Tensor, task: torch.Tensor) -> None:
        """Whiten what varies within tasks.

        Args:
            features: `[N, F]`, of rollouts.
            task: int64 `[N]`, which task a row is from.
        """
        x = features.double()
        counts = torch.bincount(task).clamp(min=1)[:, None]
        means = torch.zeros(len(counts), x.shape[1], dtype=x.dtype).index_add(0, task, x) / counts
        _, scale, directions = torch.linalg.svd(x - means[task], full_matrices=False)
        rank = self.basis.shape[1]
        deviation = scale.clamp(min=1e-4 * float(scale[0]) + 1e-9) / len(x) ** 0.5  # nothing is blown up beyond reason
        self.mean.copy_(x.mean(0))
        self.basis.copy_(directions[:rank].T / deviation[:rank])


class ContextEncoder(nn.Module):
    """Pictures, proprioception, instruction embedding -> context `[B, 2, width]`: a task and an observation token."""

    proprio_mean: torch.Tensor
    proprio_std: torch.Tensor
    privileged_mean: torch.Tensor
    privileged_std: torch.Tensor

    def __init__(self, config: QuestConfig):
        super().__init__()
        self.images = nn.ModuleDict(
            {name: ImageEncoder(config.vision, config.image_dim, h, w) for name, (h, w) in config.cameras.items()}
        )
        self.sizes = list(config.proprio.values())
        self.proprio = nn.ModuleDict(
            {name: nn.Linear(size, config.proprio_dim) for name, size in config.proprio.items()}
        )
        features = config.image_dim * len(config.cameras) + config.proprio_dim * len(config.proprio)
        self.observation = nn.Linear(features, config.width)
        self.task = nn.Linear(config.language_dim, config.width)
        self.privileged = nn.Linear(features, config.privileged_dim) if config.privileged_dim else None
        self.adapter = Adapter(features, config.adapter, config.width) if config.adapter else None
        self.register_buffer("proprio_mean", torch.zeros(sum(self.sizes)))
        self.register_buffer("proprio_std", torch.ones(sum(self.sizes)))
        if config.privileged_dim:
            self.register_buffer("privileged_mean", torch.zeros(config.privileged_dim))
            self.register_buffer("privileged_std", torch.ones(config.privileged_dim))

    def features(self, images: Mapping[str, torch.Tensor], proprio: torch.Tensor) -> torch.Tensor:
        """Concatenated features `[B, cameras * image_dim + entries * proprio_dim]`."""
        parts = [encoder(images[name]) for name, encoder in self.images.items()]
        proprio = (proprio - self.proprio_mean) / self.proprio_std
        parts += [layer(x) for layer, x in zip(self.proprio.values(), proprio.split(self.sizes, -1), strict=True)]
        return torch.cat(parts, -1)

    def tokens(self, features: torch.Tensor, language: torch.Tensor) -> torch.Tensor:
        observation = self.observation(features)
        if self.adapter is not None:
            observation = observation + self.adapter(features)
        return torch.stack([self.task(language), observation], 1)

    def forward(
        self, images: Mapping[str, torch.Tensor], proprio: torch.Tensor, language: torch.Tensor
    ) -> torch.Tensor:
        return self.tokens(self.features(images, proprio), language)
