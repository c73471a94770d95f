"""What the policy sees and is told, as two tokens for the skill GPT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ript.policies.quest.config import QuestConfig
from ript.policies.vision import ImageEncoder


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


class PrefixEncoder(nn.Module):
    """Pictures, proprioception, instruction embedding -> prefix `[B, 2, width]`: a task and an observation token."""

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
        return torch.stack([self.task(language), self.observation_token(features)], 1)

    def observation_token(self, features: torch.Tensor) -> torch.Tensor:
        """`[B, width]`."""
        token = self.observation(features)
        return token if self.adapter is None else token + self.adapter(features)

    def forward(
        self, images: Mapping[str, torch.Tensor], proprio: torch.Tensor, language: torch.Tensor
    ) -> torch.Tensor:
        return self.tokens(self.features(images, proprio), language)
