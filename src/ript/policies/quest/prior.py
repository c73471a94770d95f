"""QueST's skill GPT: the distribution of skill tokens given what the policy sees and is told."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ript.policies.quest.config import QuestConfig
from ript.policies.quest.layers import Block, Cache, Dropout, few_rows, sinusoid


class SkillPrior(nn.Module):
    """Causal transformer over [task, observation, start, token 0, token 1, ...]; positions on the token part only."""

    positions: torch.Tensor

    def __init__(self, config: QuestConfig):
        super().__init__()
        self.tokens, self.start = config.tokens, config.codebook
        self.embedding = nn.Embedding(config.codebook + 1, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.codebook)
        self.dropout = Dropout(config.dropout)
        self.register_buffer("positions", sinusoid(config.tokens + 1, config.width), persistent=False)

    def forward(self, prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits of every token given those before it.

        Args:
            prefix: `[B, 2, width]`, task and observation.
            tokens: int64 `[B, K]`, or the first few of them.

        Returns:
            `[B, K, codebook]`; row i predicts token i.
        """
        start = torch.full_like(tokens[:, :1], self.start)
        inputs = self.embedding(torch.cat([start, tokens[:, :-1]], 1)) + self.positions[: tokens.shape[1]]
        x = self.dropout(torch.cat([prefix, inputs], 1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, prefix.shape[1] :]))

    @torch.no_grad()
    def generate(
        self, prefix: torch.Tensor, choose: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate tokens one after another with a key/value cache.

        Args:
            prefix: `[B, 2, width]`.
            choose: (logits `[B, codebook]`, step) -> tokens int64 `[B]`.

        Returns:
            (tokens `[B, K]`, logits `[B, K, codebook]`).
        """
        caches = [Cache(prefix.shape[1] + self.tokens) for _ in self.blocks]
        token = torch.full((len(prefix),), self.start, device=prefix.device)
        tokens, logits = [], []
        for step in range(self.tokens):
            x = (self.embedding(token) + self.positions[step])[:, None]
            if step == 0:
                x = torch.cat([prefix, x], 1)
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, cache=cache)
            logits.append(few_rows(self.norm(x[:, -1]), self.head.weight, self.head.bias))
            token = choose(logits[-1], step)
            tokens.append(token)
        return torch.stack(tokens, 1), torch.stack(logits, 1)
