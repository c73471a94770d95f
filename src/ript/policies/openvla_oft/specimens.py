"""Random OpenVLA-OFT policies, for `ript bench policy`; one of the published size is made on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from ript.core import capacity
from ript.core.device_memory import Demands, free_on
from ript.core.specimens import Comparison
from ript.core.types import Observation, SimulatorSpec
from ript.policies.openvla_oft import memory
from ript.policies.openvla_oft.checkpoint import published_simulator
from ript.policies.openvla_oft.config import OftConfig
from ript.policies.openvla_oft.fresh import new_policy
from ript.policies.openvla_oft.heads import ScaleHead
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.numbers import Statistics
from ript.policies.openvla_oft.policy import PUBLISHED_CAMERAS, OpenVlaPolicy
from ript.policies.openvla_oft.prompt import FIRST, Prompts
from ript.policies.openvla_oft.saving import HELD
from ript.policies.openvla_oft.sizes import OpenVlaSizes

PUBLISHED = "published"
"""The 7 B policy."""
RANK, SCALING = 32, 0.5
WORDS = 28
"""Random tokens of an instruction with its question."""
BLOCK = 16
"""Pixels of random pictures that have one colour along a side: noise would hardly be compressed."""
PICTURE = {"tiny": 16, "small": 64}


def random_policy(size: str, device: str = "cpu") -> OpenVlaPolicy:
    """A policy with weights drawn from seed 0, and an adapter to train."""
    if size != PUBLISHED:
        side = PICTURE[size]
        spec = SimulatorSpec(
            suite="random", cameras={"side": (side, side)}, proprio={"proprio": 8}, action_dim=4, render={}
        )
        policy = new_policy(size, spec, seed=0).to(device)
    else:
        policy = _published(OpenVlaSizes(), device)
    return policy.with_adapter(RANK, SCALING).configured(recompute=size == PUBLISHED)


def _published(sizes: OpenVlaSizes, device: str) -> OpenVlaPolicy:
    """One of published sizes: bfloat16 on a GPU, and what can be trained float32."""
    config = OftConfig(
        sizes=sizes, statistics=Statistics.plain("random", sizes.action, sizes.proprio), cameras=PUBLISHED_CAMERAS
    )
    usual = torch.get_default_dtype()
    gpus = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpus), torch.device(device):
        torch.manual_seed(0)
        try:
            torch.set_default_dtype(torch.bfloat16 if gpus else torch.float32)
            network = OpenVla(sizes)
            network.scale_head = ScaleHead(sizes)
        finally:
            torch.set_default_dtype(usual)
    for name in HELD:
        network.get_submodule(name).float()
    prompts = Prompts(None, config.room, config.last, "a random policy")
    return OpenVlaPolicy(config, network, prompts, published_simulator(sizes))


def random_look(policy: OpenVlaPolicy, batch: int) -> Observation:
    """Random pictures of `batch` different tasks."""
    rng, vocabulary = np.random.default_rng(0), policy.config.sizes.llama.vocabulary
    instructions = tuple(f"task {i}" for i in range(batch))
    policy.remember({name: [FIRST, *rng.integers(3, vocabulary, WORDS).tolist()] for name in instructions})
    images = {}
    for name, (height, width) in policy.simulator.cameras.items():
        block = min(BLOCK, height)
        colours = rng.integers(0, 256, (batch, height // block, width // block, 3), np.uint8)
        images[name] = colours.repeat(block, axis=1).repeat(block, axis=2)
    proprio = rng.normal(size=(batch, policy.simulator.proprio_dim)).astype(np.float32)
    return Observation(images=images, proprio=proprio, instruction=instructions)


def decisions(policy: OpenVlaPolicy, look: Observation, rows: int) -> tuple[Mapping[str, torch.Tensor], torch.Tensor]:
    """Inputs of `rows` decisions, as rollouts keep them, and what was drawn."""
    chunk = policy.act(look, [np.random.default_rng(i) for i in range(len(look))])
    kept = {**chunk.inputs, **chunk.rollout_inputs}
    taken = np.arange(rows) % len(look)
    inputs = {name: torch.from_numpy(array[taken]).to(policy.device) for name, array in kept.items()}
    return inputs, torch.from_numpy(chunk.sample[taken]).to(policy.device)


def comparisons(policy: OpenVlaPolicy, look: Observation) -> list[Comparison]:
    """The network on what frames have become, and all of an act."""
    inputs = policy.inputs(look)
    inputs["pictures"] = policy.pictures(inputs).numpy()
    generators = [np.random.default_rng(i) for i in range(len(look))]

    @torch.no_grad()
    def network() -> None:
        policy.heads(inputs)

    return [
        Comparison(
            name=f"act on {len(look)} once pictures are prepared",
            work=network,
            otherwise="with their preparation, drawing and scoring",
            other=lambda: policy.act(look, generators),
        )
    ]


def use_of(size: str, batch: int, micro_batch: int) -> memory.Use:
    return memory.Use(rank=RANK, recompute=size == PUBLISHED, act_batch=batch, micro_batch=micro_batch)


def require_room(size: str, device: str, batch: int, micro_batch: int) -> None:
    """Raise `DeviceTooSmall` where the published size does not fit on a GPU, or into this machine; small ones fit
    anywhere."""
    if size != PUBLISHED:
        return
    free, use = free_on(device), use_of(size, batch, micro_batch)
    if free is None:  # float32 there
        free, use = capacity.memory().available, replace(use, dtype_bytes=4)
    memory.require(OpenVlaSizes(), use, Demands(device_bytes=free, act_batch=batch, micro_batch=micro_batch))


def plan(size: str, batch: int, micro_batch: int) -> list[str]:
    """The memory plan of a policy of the published size on a GPU; nothing for another size."""
    return memory.plan(OpenVlaSizes(), use_of(size, batch, micro_batch)) if size == PUBLISHED else []
