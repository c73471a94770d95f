"""A QueST policy so small that every outcome can be enumerated, and observations for it."""

from __future__ import annotations

import numpy as np
import torch

from ript.core.types import ActionChunk, Observation, SimulatorSpec
from ript.policies.quest.config import QuestConfig
from ript.policies.quest.policy import QuestPolicy

SENTENCES = ("open the drawer", "close the door")
SPEC = SimulatorSpec(
    suite="desk",
    cameras={"front": (8, 8), "wrist": (8, 6)},
    proprio={"hand": 2, "gripper": 1},
    action_dim=2,
    render={"arm": "boxes"},
)


def make_policy(seed: int = 0, **changes: object) -> QuestPolicy:
    """9 codes, 2 tokens a decision; preferences that depend on what is seen, and a memory of `SENTENCES`."""
    sizes: dict = {
        "action_dim": 2,
        "chunk": 8,
        "execute": 6,
        "fsq_levels": (3, 3),
        "autoencoder_width": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_heads": 2,
        "decoder_heads": 2,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "cameras": dict(SPEC.cameras),
        "vision": "cnn",
        "image_dim": 8,
        "proprio": {"hand": 2, "gripper": 1},
        "proprio_dim": 8,
        "language_dim": 4,
        "dropout": 0.2,
        "rl_trains": "prior+encoders",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = QuestPolicy(QuestConfig(**sizes | changes), SPEC)
        with torch.no_grad():
            policy.prior.head.weight.mul_(4)
            policy.encoder.observation.weight.mul_(10)
            policy.prior.blocks[0].attention.out_proj.weight.mul_(10)
            policy.autoencoder.fsq.project_in.weight.mul_(10)
            policy.autoencoder.fsq.project_in.bias.zero_()
            policy.encoder.proprio_mean.uniform_()
        for sentence in SENTENCES:
            policy.remember(sentence, torch.randn(policy.config.language_dim))
    return policy


def make_observation(rows: int, seed: int = 0) -> Observation:
    g = np.random.default_rng(seed)
    return Observation(
        images={name: g.integers(0, 256, (rows, h, w, 3), np.uint8) for name, (h, w) in SPEC.cameras.items()},
        proprio=g.normal(size=(rows, 3)).astype(np.float32),
        instruction=tuple(SENTENCES[i % 2] for i in range(rows)),
    )


def take(observation: Observation, rows: list[int]) -> Observation:
    return Observation(
        images={name: image[rows] for name, image in observation.images.items()},
        proprio=observation.proprio[rows],
        instruction=tuple(observation.instruction[i] for i in rows),
    )


def repeat(observation: Observation, times: int) -> Observation:
    """The first row, `times` times."""
    return take(observation, [0] * times)


def generators(rows: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, row]) for row in range(rows)]


def tensors(chunk: ActionChunk) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs and sample as `log_prob` takes them."""
    inputs = {**chunk.inputs, **chunk.rollout_inputs}
    return {name: torch.from_numpy(value) for name, value in inputs.items()}, torch.from_numpy(chunk.sample)
