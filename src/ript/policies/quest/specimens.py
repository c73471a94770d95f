"""Random QueST policies, for `ript bench policy`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ript.core.specimens import Comparison
from ript.core.types import Observation, SimulatorSpec
from ript.policies.quest.config import SIZES, QuestConfig
from ript.policies.quest.policy import QuestPolicy

ONE_CAMERA: dict[str, Any] = {"cameras": {"side": (64, 64)}, "proprio": {"proprio": 8}, "action_dim": 4}
"""What the quickstart's policy sees; the paper size sees two cameras of 128 pixels."""


def random_policy(size: str, device: str = "cpu") -> QuestPolicy:
    """A policy with weights drawn from seed 0."""
    settings = dict(SIZES[size]) if size == "paper" else {**SIZES[size], **ONE_CAMERA}
    config = QuestConfig(**settings, rl_trains="prior")
    spec = SimulatorSpec(
        suite="random",
        cameras=config.cameras,
        proprio=config.proprio,
        action_dim=config.action_dim,
        render={},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return QuestPolicy(config, spec).to(device)


def random_look(policy: QuestPolicy, batch: int) -> Observation:
    """Random pictures of `batch` different tasks."""
    rng = np.random.default_rng(0)
    instructions = tuple(f"task {i}" for i in range(batch))
    for i, instruction in enumerate(instructions):
        policy.remember(instruction, torch.full((policy.config.language_dim,), i / batch))
    images = {c: rng.integers(0, 256, (batch, *size, 3), np.uint8) for c, size in policy.config.cameras.items()}
    proprio = rng.normal(size=(batch, policy.simulator.proprio_dim)).astype(np.float32)
    return Observation(images=images, proprio=proprio, instruction=instructions)


def decisions(policy: QuestPolicy, look: Observation, rows: int) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
    """Inputs and tokens of `rows` decisions."""
    with torch.no_grad():
        prefix = policy.prefix(look)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(0, policy.config.codebook, (rows, policy.config.tokens), generator=generator)
    repeated = prefix[torch.arange(rows) % len(prefix)]
    return {"task_token": repeated[:, 0], "observation_token": repeated[:, 1]}, sample.to(prefix.device)


def comparisons(policy: QuestPolicy, look: Observation) -> list[Comparison]:
    """The key/value cache, alone and in an act; the CUDA graph, on a GPU; and how pictures are laid out."""
    generators = [np.random.default_rng(i) for i in range(len(look))]
    with torch.no_grad():
        prefix = policy.prefix(look)

    @torch.no_grad()
    def act_without_cache() -> None:
        """The whole sequence again for each token, encoders once."""
        policy.autoencoder.decode(_generate_without_cache(policy, policy.prefix(look)))

    without = "without a key/value cache"
    found = [
        Comparison(name="act", work=lambda: policy.act(look, generators), otherwise=without, other=act_without_cache),
        Comparison(
            name="tokens alone",
            work=lambda: policy.generate(prefix),
            otherwise=without,
            other=lambda: _generate_without_cache(policy, prefix),
        ),
    ]
    if prefix.device.type == "cuda":
        found.append(
            Comparison(
                name="tokens with a CUDA graph",
                work=lambda: policy.generate(prefix),
                otherwise="without",
                other=lambda: policy.generate(prefix, graphs=False),
            )
        )
    return [*found, _pictures(policy, look)]


@torch.no_grad()
def _generate_without_cache(policy: QuestPolicy, prefix: torch.Tensor) -> torch.Tensor:
    tokens = torch.zeros((len(prefix), policy.config.tokens), dtype=torch.int64, device=prefix.device)
    for step in range(policy.config.tokens):
        tokens[:, step] = policy.prior_logits(prefix, tokens[:, : step + 1])[:, -1].argmax(-1)
    return tokens


def _pictures(policy: QuestPolicy, look: Observation) -> Comparison:
    """The encoders on pictures as they are stored, channels last, and laid out channels first."""
    inputs = policy.inputs(look)
    images = {name: inputs[f"image/{name}"] for name in policy.config.cameras}
    first = {name: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) for name, x in images.items()}
    channels_first = copy.deepcopy(policy.encoder).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @torch.no_grad()
    def last() -> None:
        policy.encoder.features(images, inputs["proprio"])

    @torch.no_grad()
    def other() -> None:
        channels_first.features(first, inputs["proprio"])

    return Comparison(name="pictures alone", work=last, otherwise="laid out channels first", other=other)
