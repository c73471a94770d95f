"""OpenVLA-OFT policies on disk: published folders read as they are, and our own, which hold what was trained.

A folder of ours has, beside config.json and a model card:

model.safetensors             heads; of a policy without a base, the whole network but its adapter
adapter_model.safetensors     the adapter, with adapter_config.json, in PEFT's format
tokenizer.json                of a policy without a base

and config.json says whose weights the rest are: name, revision and hash of the index. Nothing is written into a base.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ript.core.device_memory import Demands, free_on
from ript.core.errors import ConfigError, PolicyError
from ript.core.files import absolute, expanded, read_bytes
from ript.core.types import SimulatorSpec
from ript.policies import folder as policy_folder
from ript.policies import hub
from ript.policies.openvla_oft import memory
from ript.policies.openvla_oft.adapters import adapts_more_than_language, load_adapter
from ript.policies.openvla_oft.config import Base, OftConfig
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.numbers import SUFFIX
from ript.policies.openvla_oft.policy import DTYPES, PUBLISHED_CAMERAS, OpenVlaPolicy
from ript.policies.openvla_oft.prompt import FILE, Prompts, tokenizer_of
from ript.policies.openvla_oft.published import (
    Heads,
    add_scale_head,
    document,
    load_heads,
    load_ript_heads,
    load_scale_head,
    new_heads,
    read,
    shards_of,
    sizes_of,
)
from ript.policies.openvla_oft.saving import HELD
from ript.policies.openvla_oft.selftest import require_sound
from ript.policies.openvla_oft.sizes import OpenVlaSizes
from ript.policies.openvla_oft.weights import assign, checked, load_backbone, require_names

PUBLISHED_SUITE = "libero"
PUBLISHED_PROPRIO = {"eef_pos": 3, "eef_axis_angle": 3, "gripper_qpos": 2}
PUBLISHED_FRAME = 256
RIPT_HEADS = "openvla_headers.pt"


def load(
    folder: str | Path,
    *,
    suite: str | None = None,
    adapter: str | Path | None = None,
    alpha: float | None = None,
    scale_head: str | Path | None = None,
    heads: Heads = "published",
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    self_test: bool = True,
) -> OpenVlaPolicy:
    """The policy in a folder, published or ours.

    Args:
        folder: its path, or "hf://owner/name@revision".
        suite: whose statistics a published folder is used with; needed where it holds several.
        adapter: folder of an adapter in PEFT's format to put on a published policy; RIPT-VLA's brings both heads, and
            one of ours its heads, statistics and settings.
        alpha: of that adapter, instead of what its file says: its updates are scaled by alpha / rank.
        scale_head: RIPT-VLA's file of a scale head for a published policy.
        heads: "new" gives a published base without an L1 head new heads, which `ript sft` then trains.
        device: where weights go, straight from their files.
        dtype: of the base's weights; None: see `usual_type`. What can be trained is float32.
        self_test: see `selftest.require_sound`.

    Raises:
        PolicyError: a folder that cannot be used; says why.
        DeviceTooSmall: the device has no room for it, found before anything is loaded.
    """
    if (free := free_on(device)) is not None:
        sizes, rank, everywhere = sizes_in(folder)
        memory.require(sizes, memory.Use(rank=rank, everywhere=everywhere), Demands(device_bytes=free, act_batch=1))
    place = hub.fetch(str(folder)) if hub.on_hub(folder) else expanded(folder)
    if "kind" in document(place, "config.json"):
        if suite or adapter or scale_head or alpha is not None or heads != "published":
            raise ConfigError(f"{folder} is a policy of ript's with its own statistics, adapter and heads: give none")
        policy = _load_own(place, device, dtype)
    elif adapter is not None and _is_ours(expanded(adapter)):
        policy = _own_on(place, expanded(adapter), suite, alpha, scale_head, device, dtype)
    else:
        if heads == "new" and (suite or adapter or scale_head):
            raise ConfigError(f"{folder}: new heads are trained with statistics and an adapter of their own: give none")
        if alpha is not None and adapter is None:
            raise ConfigError(f"alpha = {alpha:g} is of an adapter, and none is given: leave it out")
        if scale_head and adapter is not None and (expanded(adapter) / RIPT_HEADS).is_file():
            raise ConfigError(f"{adapter} brings its scale head in {RIPT_HEADS}: leave scale_head out")
        policy = _load_published(place, suite, heads, device, dtype or usual_type(device, None))
        if scale_head is not None:
            load_scale_head(policy.network, expanded(scale_head), device=device)
        if adapter is not None:
            put_on(policy, expanded(adapter), alpha, device)
    if self_test:
        require_sound(policy.network, str(folder), policy.config.last)
    return policy


def usual_type(device: str, own: OftConfig | None) -> torch.dtype:
    """The number type of the network before the heads: what one of ours without a base says (`OftConfig.precision`),
    for it may be trained whole; else bfloat16 on a GPU, and on the CPU float32, or what one of ours says."""
    if torch.device(device).type == "cuda" and (own is None or own.base is not None):
        return torch.bfloat16
    return DTYPES[own.precision if own else "float32"]


def sizes_in(folder: str | Path) -> tuple[OpenVlaSizes, int, bool]:
    """Sizes of the policy in a folder, published or ours, the rank of its adapter (0: none), and whether that is in
    more than the language model; no weights are read.

    Raises:
        PolicyError: a folder that cannot be used.
    """
    place = hub.fetch(str(folder)) if hub.on_hub(folder) else expanded(folder)
    content = document(place, "config.json")
    if "kind" not in content:
        return sizes_of(content, place / "config.json"), 0, False
    config = _config_of(content.get("config"), place)
    return config.sizes, config.rank, bool(config.rank) and adapts_more_than_language(place)


def put_on(policy: OpenVlaPolicy, folder: Path, alpha: float | None, device: str) -> None:
    """Put an adapter on a policy, and the heads that lie beside it, if any."""
    found = load_adapter(policy.network, folder, alpha=alpha, device=device)
    policy.config = replace(policy.config, rank=found.rank, scaling=found.scaling)
    if (folder / RIPT_HEADS).is_file():
        load_ript_heads(policy.network, folder / RIPT_HEADS, device=device)


def _load_published(folder: Path, suite: str | None, heads: Heads, device: str, dtype: torch.dtype) -> OpenVlaPolicy:
    found = read(folder, suite, heads)
    network = empty(found.sizes)
    if heads == "new":
        new_heads(network, folder, device=device)
    else:
        load_heads(network, folder, device=device)  # first: a wrong head is found before the long part
    weights = load_backbone(network, found.shards, device=device, dtype=dtype)
    config = OftConfig(
        sizes=found.sizes,
        statistics=found.statistics,
        normalisation=found.normalisation,
        cameras=PUBLISHED_CAMERAS,
        base=base_of(folder, weights),
    )
    prompts = Prompts(tokenizer_of(folder), config.room, config.last, str(folder))
    return OpenVlaPolicy(config, network.eval(), prompts, published_simulator(found.sizes))


def published_simulator(sizes: OpenVlaSizes) -> SimulatorSpec:
    """What published policies were trained on."""
    return SimulatorSpec(
        suite=PUBLISHED_SUITE,
        cameras=dict.fromkeys(PUBLISHED_CAMERAS, (PUBLISHED_FRAME, PUBLISHED_FRAME)),
        proprio=PUBLISHED_PROPRIO,
        action_dim=sizes.action,
        render={},
    )


def empty(sizes: OpenVlaSizes) -> OpenVla:
    """A network without memory, to be given its weights."""
    with torch.device("meta"):
        return OpenVla(sizes)


def base_of(folder: Path, weights: str) -> Base:
    """A reference to a base with weights of this hash: a folder by its whole path, one that came from the hub by its
    name and commit."""
    name, revision = hub.named(folder) or (str(absolute(folder)), None)
    return Base(name=name, revision=revision, index=index_of(folder), weights=weights, tokenizer=tokenizer_hash(folder))


def tokenizer_hash(folder: Path) -> str | None:
    """16 hex digits of a folder's tokenizer.json; None where there is none."""
    path = folder / FILE
    return hashlib.sha256(read_bytes(path, PolicyError)).hexdigest()[:16] if path.is_file() else None


def index_of(folder: Path) -> str:
    """16 hex digits that tell one base from another: a hash of the index of its weights, or of its only file."""
    index = folder / "model.safetensors.index.json"
    content = read_bytes(index if index.is_file() else folder / "model.safetensors", PolicyError)
    return hashlib.sha256(content).hexdigest()[:16]


# ------------------------------------------------------------------ our folders


def _is_ours(folder: Path) -> bool:
    return (folder / "config.json").is_file() and "kind" in document(folder, "config.json")


def _own_on(
    base: Path,
    folder: Path,
    suite: str | None,
    alpha: float | None,
    scale_head: str | Path | None,
    device: str,
    dtype: torch.dtype | None,
) -> OpenVlaPolicy:
    """One of ours on its base, which lies in a folder that it may not know of."""
    key = _config_of(document(folder, "config.json").get("config"), folder).statistics.key
    if suite is not None and suite not in (key, key.removesuffix(SUFFIX)):
        raise ConfigError(f"{folder} was trained with statistics of {key}, which it brings, not of {suite!r}")
    if scale_head is not None:
        raise ConfigError(f"{folder} is a policy of ript's and brings its heads: leave scale_head out")
    return _load_own(folder, device, dtype, base, alpha)


def _load_own(
    folder: Path,
    device: str,
    dtype: torch.dtype | None,
    lies: Path | None = None,
    alpha: float | None = None,
) -> OpenVlaPolicy:
    """One of ours; `lies`: where its base is, when not where it says."""
    saved = policy_folder.load(folder, OpenVlaPolicy.KIND)
    config = _config_of(saved.config, folder)
    dtype = dtype or usual_type(device, config)
    if lies is not None:
        if config.base is None:
            raise PolicyError(f"{folder} holds a whole policy, not an adapter: load it as it is, without a base")
        require_index(config.base, lies)
    network = empty(config.sizes)
    if any(name.startswith("scale_head.") for name in saved.weights):
        add_scale_head(network)
    base = lies or (base_folder(config.base) if config.base else folder)
    own = network.state_dict()
    held = {name for name in own if config.base is None or name.partition(".")[0] in HELD}
    require_names(held, set(saved.weights), str(folder))
    for name, tensor in saved.weights.items():
        checked(tensor, own[name], name, folder / "model.safetensors")
        assign(network, name, tensor, device, torch.float32 if name.partition(".")[0] in HELD else dtype)
    if config.base:
        weights = load_backbone(network, backbone_shards(base), device=device, dtype=dtype)
        require_same(config.base, base, weights)
        config = config if lies is None else replace(config, base=base_of(base, weights))
    if config.rank:
        found = load_adapter(network, folder, alpha=alpha, device=device)
        config = config if alpha is None else replace(config, scaling=found.scaling)
    prompts = Prompts(tokenizer_of(base), config.room, config.last, str(base))
    return OpenVlaPolicy(config, network.eval(), prompts, saved.simulator, saved.card)


def _config_of(data: Any, folder: Path) -> OftConfig:
    try:
        return OftConfig.from_json(data)
    except (ConfigError, PolicyError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PolicyError(f"{folder / 'config.json'} describes no policy that can be built: {error}") from error


def backbone_shards(base: Path) -> dict[str, Path]:
    """Tensor name -> file of a base, heads of one of ours left out."""
    return {name: path for name, path in shards_of(base).items() if name.partition(".")[0] not in HELD}


def base_folder(base: Base) -> Path:
    """Where a base lies.

    Raises:
        PolicyError: it is not there, or not the one that was meant.
    """
    if hub.on_hub(base.name):
        folder = hub.fetch(hub.at_commit(base.name, base.revision) if base.revision else base.name)
    else:
        folder = expanded(base.name)
    if not folder.is_dir():
        raise PolicyError(
            f"the policy's base is not there: {base.name}; put it there, or say where it lies in config.json"
        )
    require_index(base, folder)
    return folder


def require_index(base: Base, folder: Path) -> None:
    """Raise `PolicyError` unless a folder has a base's index, which can be told before anything is loaded."""
    if (got := index_of(folder)) != base.index:
        raise PolicyError(
            f"{folder} is not the base that this policy was trained on: the hash of its index is {got}, expected "
            f"{base.index}"
        )


def require_same(base: Base, folder: Path, weights: str) -> None:
    """Raise `PolicyError` unless a folder, whose weights have this hash, has a base's weights and tokenizer."""
    for what, expected, got in (
        ("weights", base.weights, weights),
        ("tokenizer", base.tokenizer, tokenizer_hash(folder) if base.tokenizer else None),
    ):
        if expected is not None and got != expected:
            raise PolicyError(
                f"{folder} is not as it was when this policy was made on it: the hash of its {what} is {got}, expected "
                f"{expected}; it is damaged, or another of the same layout: fetch the base again, or say in "
                "config.json where it lies"
            )
