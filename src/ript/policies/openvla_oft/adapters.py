"""LoRA adapters in PEFT's format, RIPT-VLA's among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ript.core.disk import reading
from ript.core.errors import PolicyError
from ript.policies.openvla_oft.lora import add_lora, lora_layers
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.published import document
from ript.policies.openvla_oft.weights import assign, listed, opened, require_names, unused


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What an adapter's configuration says.

    Attributes:
        rank: of the updates.
        scaling: factor on them.
    """

    rank: int
    scaling: float


PEFT = "base_model.model."
"""Prefix of names in PEFT's files."""


def adapter_of(folder: Path, alpha: float | None = None) -> Adapter:
    """What adapter_config.json says of an adapter.

    Args:
        folder: in PEFT's format.
        alpha: to be used instead of the one in the file: scaling = alpha / rank.

    Raises:
        PolicyError: not such a file, or a kind of adapter that is not plain LoRA.
    """
    config, path = document(folder, "adapter_config.json"), folder / "adapter_config.json"
    if config.get("peft_type") != "LORA":
        raise PolicyError(f"{path}: peft_type = {config.get('peft_type')!r}; only 'LORA' is supported")
    for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication"):
        if config.get(name):
            raise PolicyError(f"{path}: {name} = {config[name]!r} is not supported")
    if config.get("bias", "none") != "none":
        raise PolicyError(f"{path}: bias = {config['bias']!r}; only 'none' is supported")
    rank, own = config.get("r"), config.get("lora_alpha")
    if (
        not isinstance(rank, int)
        or isinstance(rank, bool)
        or rank < 1
        or not isinstance(own, int | float)
        or isinstance(own, bool)
    ):
        raise PolicyError(f"{path}: r = {rank!r} and lora_alpha = {own!r}; expected a whole number and a number")
    return Adapter(rank=rank, scaling=(own if alpha is None else alpha) / rank)


def adapts_more_than_language(folder: Path) -> bool:
    """Whether an adapter that was saved here is in other layers than the language model's."""
    layers = document(folder, "adapter_config.json").get("target_modules")
    return isinstance(layers, list) and any(not str(name).startswith("language_model.") for name in layers)


def load_adapter(
    network: OpenVla,
    folder: Path,
    *,
    alpha: float | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """Add the updates of an adapter in PEFT's format to a network; those of layers that nothing reads are left out.

    Args:
        dtype: of the updates; that of the weights is not touched.

    Raises:
        PolicyError: no such adapter, or one of another base.
    """
    adapter = adapter_of(folder, alpha)
    path = folder / "adapter_model.safetensors"
    with reading(path, PolicyError):
        if not path.is_file():
            raise PolicyError(f"{folder} is not a complete adapter: {path.name} is missing")
    layers, skipped = lora_layers(network), unused(network.sizes)
    with opened(path) as file:
        names = [name for name in file.keys() if not skipped.match(name.removeprefix(PEFT))]  # noqa: SIM118
        targets = dict(_targets(names, set(layers), path))
        add_lora(network, {layer for layer, _ in targets.values()}, adapter.rank, adapter.scaling, device="meta")
        own = {k: v for k, v in network.state_dict().items() if ".lora_" in k}
        wanted = {f"{layer}.{part}.weight" for layer, _ in targets.values() for part in ("lora_A", "lora_B")}
        require_names(wanted, {f"{layer}.{part}.weight" for layer, part in targets.values()}, str(path))
        for name, (layer, part) in targets.items():
            key = f"{layer}.{part}.weight"
            tensor = file.get_tensor(name)
            if tensor.shape != own[key].shape:
                raise PolicyError(
                    f"{path}: {key} is {list(tensor.shape)}, expected {list(own[key].shape)}: the adapter is of "
                    "another base, or of another rank than its configuration says"
                )
            assign(network, key, tensor, device, dtype)
    return adapter


def _targets(names: list[str], layers: set[str], path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """(name in the file, (layer, "lora_A" or "lora_B")) of an adapter's tensors."""
    strange = []
    for name in names:
        found = re.fullmatch(rf"{re.escape(PEFT)}(.+)\.(lora_[AB])(?:\.default)?\.weight", name)
        if found and found[1] in layers:
            yield name, (found[1], found[2])
        else:
            strange.append(name)
    if strange or not names:
        what = listed(strange) if strange else "nothing"
        raise PolicyError(f"{path} is no adapter of an OpenVLA-OFT policy: it holds {what}")
