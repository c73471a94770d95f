"""The network of OpenVLA-OFT (Kim et al. 2025, arXiv 2502.19645): pictures, proprioception and words in, hidden states
of a chunk of actions out.

Two ways to compute these. `hidden` is the official one, which the published checkpoints were trained for: one sequence,
every token sees every other. `hidden_two_pass` is that of RIPT-VLA (Tan et al. 2025): what comes before the last word
of the prompt does not see what comes after it and gets no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ript.policies.openvla_oft.heads import ActionHead, ProprioProjector, ScaleHead
from ript.policies.openvla_oft.llama import Llama
from ript.policies.openvla_oft.sizes import OpenVlaSizes
from ript.policies.openvla_oft.vision import Projector, VisionBackbone

STOP = 2
"""Token that ends a sequence."""


class LanguageModel(nn.Module):
    """What published files put around the Llama. Its output layer is not here: no head reads it."""

    def __init__(self, sizes: OpenVlaSizes):
        super().__init__()
        self.model = Llama(sizes.llama)


class OpenVla(nn.Module):
    """The network and its heads, under the names of published files."""

    def __init__(self, sizes: OpenVlaSizes):
        super().__init__()
        self.sizes = sizes
        self.vision_backbone = VisionBackbone(sizes)
        self.projector = Projector(sizes)
        self.language_model = LanguageModel(sizes)
        self.proprio_projector = ProprioProjector(sizes)
        self.action_head = ActionHead(sizes)
        self.scale_head: ScaleHead | None = None

    @property
    def llama(self) -> Llama:
        return self.language_model.model

    @property
    def dtype(self) -> torch.dtype:
        return self.llama.norm.weight.dtype

    def seen(self, pixels: torch.Tensor, proprio: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, seen, D]` of pictures and proprioception.

        Args:
            pixels: `[B, pictures, 6, h, w]`, see `VisionBackbone`.
            proprio: `[B, P]`, normalised.
        """
        patches = self.projector(self.vision_backbone(pixels.to(self.dtype)))
        return torch.cat([patches, self.proprio_projector(proprio)[:, None].to(self.dtype)], dim=1)

    def hidden(self, seen: torch.Tensor, prompts: Sequence[Sequence[int]], *, recompute: bool = False) -> torch.Tensor:
        """Hidden states `[B, slots, D]` of the chunk, the official way.

        Rows of prompts with different lengths are padded on the right and their padding is hidden, so a row does not
        depend on its batch.

        Args:
            seen: `[B, seen, D]`.
            prompts: token ids of each row, from the first token on; stop and placeholders not among them.
            recompute: see `Llama.forward`.
        """
        embeddings, rows, mask = self.sequence(seen, prompts)
        return self.llama(embeddings, rows=rows, mask=mask, recompute=recompute)

    def sequence(
        self, seen: torch.Tensor, prompts: Sequence[Sequence[int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What the language model is given: embeddings `[B, T, D]`, positions int64 `[B, slots]` that are read out, and
        a mask `[B, T]`, False for padding, or None where there is none.

        The order is: first token, pictures and proprioception, rest of the prompt, placeholders (zeros), stop. Each
        number is read one position before its placeholder.
        """
        longest, lengths = max(map(len, prompts)), torch.tensor([len(p) for p in prompts], device=seen.device)
        words = self._embedded(prompts, longest)
        slots, stop = self.sizes.slots, self._embedded([[STOP]], 1)[0, 0]
        text = seen.new_zeros(len(prompts), longest - 1 + slots + 1, seen.shape[-1])
        for row, prompt in enumerate(prompts):
            text[row, : len(prompt) - 1] = words[row, 1 : len(prompt)]
            text[row, len(prompt) - 1 + slots] = stop
        embeddings = torch.cat([words[:, :1], seen, text], dim=1)
        mask = None
        if any(len(p) != longest for p in prompts):
            total = lengths + seen.shape[1] + slots + 1
            mask = torch.arange(embeddings.shape[1], device=seen.device) < total[:, None]
        rows = (lengths - 1 + seen.shape[1])[:, None] + torch.arange(slots, device=seen.device)
        return embeddings, rows, mask

    def hidden_two_pass(
        self, seen: torch.Tensor, prompts: Sequence[Sequence[int]], *, recompute: bool = False
    ) -> torch.Tensor:
        """Hidden states `[B, slots, D]` of the chunk, as RIPT-VLA computes them: without gradient up to the last word.

        Cheaper to train: the gradient goes through `slots` + 2 tokens instead of all. But another function than the one
        published checkpoints were trained for. Rows of different lengths are computed one length after another.
        """
        if len({len(p) for p in prompts}) > 1:
            groups = {len(p): [i for i, q in enumerate(prompts) if len(q) == len(p)] for p in prompts}
            parts = [
                self.hidden_two_pass(seen[rows], [prompts[i] for i in rows], recompute=recompute)
                for rows in groups.values()
            ]
            order = torch.tensor([i for rows in groups.values() for i in rows], device=seen.device)
            return torch.cat(parts)[order.argsort()]
        words = self._embedded(prompts, len(prompts[0]))
        with torch.no_grad():
            cache = self.llama.keys_and_values(torch.cat([words[:, :1], seen, words[:, 1:-1]], dim=1))
        slots, stop = self.sizes.slots, self._embedded([[STOP]], 1).expand(len(prompts), -1, -1)
        tail = torch.cat([words[:, -1:], words.new_zeros(len(words), slots, words.shape[-1]), stop], dim=1)
        return self.llama.after(cache, tail, recompute=recompute)[:, :slots]

    def _embedded(self, prompts: Sequence[Sequence[int]], length: int) -> torch.Tensor:
        """`[B, length, D]`; what is shorter is filled up with the stop token."""
        device = self.llama.embed_tokens.weight.device
        ids = torch.tensor([[*p, *[STOP] * (length - len(p))] for p in prompts], device=device)
        return self.llama.embed_tokens(ids)
