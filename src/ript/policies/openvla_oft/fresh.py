"""New policies, of sizes that two cores can train: the same classes as the published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from ript.core.errors import ConfigError
from ript.core.supervised import DemoSource
from ript.core.types import SimulatorSpec
from ript.policies.openvla_oft.config import OftConfig
from ript.policies.openvla_oft.heads import ScaleHead
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.numbers import Statistics
from ript.policies.openvla_oft.policy import OpenVlaPolicy
from ript.policies.openvla_oft.presets import PRESETS
from ript.policies.openvla_oft.prompt import Prompts, small_tokenizer
from ript.policies.openvla_oft.sizes import OpenVlaSizes

DEVIATIONS = 3.0
"""Deviations of proprioception on each side of its mean that are normalised to [-1, 1]."""
NARROWEST = 1e-3
"""Range of an action dimension, below which it counts as one that is never used."""
SPREAD = 0.02
"""Standard deviation of new embeddings."""


def new_policy(
    size: str, spec: SimulatorSpec, seed: int, *, chunk: int = 0, execute: int = 0, **settings: object
) -> OpenVlaPolicy:
    """A new policy for a simulator, with weights drawn from the seed.

    It sees frames as they are, knows bytes but no words, and normalises nothing until it has seen demonstrations
    (`take_statistics`). Its scale head is new, too.

    Args:
        size: one of `PRESETS`.
        spec: what it is for.
        chunk, execute: actions of a decision, and those executed before the next look; 0: as the size says, and all.
        settings: other fields of `OftConfig`.

    Raises:
        ConfigError: pictures of different or oblong sizes, or that do not divide into patches.
    """
    preset, views = PRESETS[size], set(spec.cameras.values())
    if len(views) != 1 or len(set(side := next(iter(views)))) != 1 or side[0] % preset.side:
        raise ConfigError(
            f"cameras {dict(spec.cameras)}: size {size!r} takes square pictures of one size, divisible by {preset.side}"
        )
    sizes = OpenVlaSizes(
        image=side[0],
        patch=side[0] // preset.side,
        pictures=len(spec.cameras),
        dino=preset.dino,
        siglip=preset.siglip,
        llama=preset.llama,
        proprio=spec.proprio_dim,
        action=spec.action_dim,
        chunk=chunk or preset.chunk,
    )
    fields = {"pictures": "plain", "upside_down": False, "last": None} | settings
    config = OftConfig(
        sizes=sizes,
        statistics=Statistics.plain(spec.suite, spec.action_dim, spec.proprio_dim),
        cameras=tuple(spec.cameras),
        execute=execute or sizes.chunk,
        **fields,  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = OpenVla(sizes)
        network.scale_head = ScaleHead(sizes)
        for tower in (network.vision_backbone.featurizer, network.vision_backbone.fused_featurizer):
            for name in ("pos_embed", "cls_token", "reg_token"):
                if hasattr(tower, name):
                    nn.init.normal_(getattr(tower, name), std=SPREAD)
        nn.init.normal_(network.llama.embed_tokens.weight, std=SPREAD)
    return OpenVlaPolicy(config, network, prompts_for(config, []), spec)


def prompts_for(config: OftConfig, instructions: Sequence[str]) -> Prompts:
    """Prompts of a new policy, which knows the words of these instructions."""
    tokenizer = small_tokenizer(instructions, config.sizes.llama.vocabulary)
    return Prompts(tokenizer, config.room, config.last)


def take_statistics(policy: OpenVlaPolicy, windows: DemoSource) -> None:
    """Normalise by these demonstrations from now on, and learn the words of their instructions."""
    policy.config = replace(policy.config, statistics=statistics_of(windows))
    policy.prompts = prompts_for(policy.config, [task.instruction for task in windows.tasks])


def statistics_of(windows: DemoSource) -> Statistics:
    """Statistics of demonstrations, named by their suites.

    Actions lie between the 1st and the 99th percentile of what was demonstrated, as published policies' do;
    proprioception within some deviations of its mean. A dimension that hardly moves keeps its whole range.
    """
    actions, mask = windows.action_chunks()
    low, high = np.quantile(actions[mask].astype(np.float64), (0.01, 0.99), axis=0)
    still = high - low < NARROWEST
    seen = windows.statistics()
    mean, spread = seen.proprio_mean.astype(np.float64), DEVIATIONS * seen.proprio_std.astype(np.float64)
    return Statistics(
        key=", ".join(dict.fromkeys(task.key.partition("/")[0] for task in windows.tasks)),
        action_low=np.where(still, -1.0, low),
        action_high=np.where(still, 1.0, high),
        action_scaled=np.ones(len(low), bool),
        proprio_low=mean - spread,
        proprio_high=mean + spread,
        gripper="plain",
    )
