"""Our own policy folders, written: see `checkpoint` for what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ript.core.files import expanded
from ript.core.types import SimulatorSpec
from ript.policies import folder as policy_folder
from ript.policies.openvla_oft.adapters import PEFT
from ript.policies.openvla_oft.config import Base, OftConfig
from ript.policies.openvla_oft.lora import lora_layers, lora_weights
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.prompt import Prompts
from ript.policies.openvla_oft.weights import HEADS

KIND = "openvla_oft"
HELD = (*HEADS, "scale_head")
"""Parts of the network that a folder with a base holds itself."""


def save(
    folder: Path,
    config: OftConfig,
    network: OpenVla,
    prompts: Prompts,
    simulator: SimulatorSpec,
    card: Mapping,
    caveats: Sequence[str],
) -> None:
    """Write a policy folder, whole or not at all; its card has the caveats, and says what else is needed to load it.

    Raises:
        PolicyError, NotFiniteError: see `folder.save`.
    """
    updates = lora_weights(network)
    whole = {k: v for k, v in network.state_dict().items() if ".lora_" not in k}
    held = whole if config.base is None else {k: v for k, v in whole.items() if k.partition(".")[0] in HELD}
    documents: dict[str, Mapping[str, Any]] = {}
    if updates:
        documents["adapter_config"] = adapter_document(config, network)
    if config.base is None and prompts.tokenizer is not None:
        documents["tokenizer"] = json.loads(prompts.tokenizer.to_str())
    policy_folder.save(
        expanded(folder),
        KIND,
        config.to_json(),
        simulator,
        {name: smallest(tensor) for name, tensor in held.items()},
        card,
        documents=documents,
        notes=[*_base_in_words(config.base), *caveats],
        adapter_model={PEFT + name: smallest(tensor) for name, tensor in updates.items()},
    )


def _base_in_words(base: Base | None) -> list[str]:
    """For the card of a folder that does not hold all weights itself."""
    if base is None:
        return []
    commit = f" (commit {base.revision})" if base.revision else ""
    return [
        f"This folder holds what was trained; the other weights are those of `{base.name}`{commit}, hash "
        f"{base.weights or base.index}, which must be there when it is loaded, or where config.json says."
    ]


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of what a folder holds itself: heads and adapter, or all of a policy without a base.

    Raises:
        PolicyError: a file is missing or damaged.
    """
    found = policy_folder.read_tensors(folder / "model.safetensors")
    adapter = folder / "adapter_model.safetensors"
    updates = policy_folder.read_tensors(adapter) if adapter.is_file() else {}
    return found | {name.removeprefix(PEFT): tensor for name, tensor in updates.items()}


def smallest(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in bfloat16, where that holds them all: frozen heads of published policies do."""
    short = tensor.detach().bfloat16()
    return short if torch.equal(short.to(tensor.dtype), tensor) else tensor


def adapter_document(config: OftConfig, network: OpenVla) -> dict[str, Any]:
    """adapter_config.json, as PEFT reads it."""
    layers = sorted(name for name, layer in lora_layers(network).items() if layer.lora_A is not None)
    base = config.base
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base.name if base else None,
        "revision": base.revision if base else None,
        "r": config.rank,
        "lora_alpha": config.scaling * config.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": layers,
    }
