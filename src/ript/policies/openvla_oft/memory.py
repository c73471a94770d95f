"""What memory an OpenVLA-OFT policy takes on a device, computed from its sizes before anything is loaded.

What activations take was counted on small networks of these classes (a test counts again): for a gradient, a layer of
the language model keeps 8 D + 4 M + 7 r numbers a token, where D is its width, M that of its MLP and r the adapter's
rank, and in bfloat16 one copy of its input in float32 besides. With `recompute` it keeps its input alone, and all of
the one layer that is worked on. Acting is taken to need as much as one such layer. Vision towers and projector keep
something where they have adapters that are trained: 8 D + 2 M + 4 r numbers a token and block, whatever `recompute`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ript.core.device_memory import GIB, Demands, Needs, listed, require_room, total
from ript.policies.openvla_oft.config import Trains
from ript.policies.openvla_oft.sizes import LlamaSizes, OpenVlaSizes

CARDS = (24, 48, 80)
"""GB of memory of usual data-centre devices."""
SET_ASIDE = GIB
"""For the device's own context, for what libraries work in, and for holes."""
SCALE_WINDOWS = 4096
"""Windows whose hidden states are kept for the scale head, at most."""
WORDS = 40
"""Tokens of a prompt; LIBERO's have 22 to 40."""
MASTER, GRADIENT, MOMENTS = 4, 4, 8
"""Bytes of a number that is trained: float32, with AdamW."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a policy is used.

    Attributes:
        dtype_bytes: of a number of the base.
        rank: of the adapter; 0: none.
        everywhere: the adapter is in vision towers and projector, too; supervised training alone trains it there.
        trains: what is trained.
        recompute: see `Llama.forward`.
        act_batch: decisions in one batch of acting; 0: none.
        micro_batch: decisions in one pass of training; 0: none.
        supervised: the projector of proprioception is trained too, and then the scale head, on hidden states that are
            kept.
        copies: of the weights.
    """

    dtype_bytes: int = 2
    rank: int = 32
    everywhere: bool = False
    trains: Trains = "adapter+head"
    recompute: bool = False
    act_batch: int = 0
    micro_batch: int = 0
    supervised: bool = False
    copies: int = 1


@functools.lru_cache(maxsize=8)
def counted(sizes: OpenVlaSizes) -> dict[str, int]:
    """Parameters of the network: of its "backbone", "action_head", "scale_head", "proprio_projector", and those of an
    adapter of rank 1 of the language model ("adapter"), and of all layers that may have one ("adapter everywhere")."""
    import torch

    from ript.policies.openvla_oft.heads import ScaleHead
    from ript.policies.openvla_oft.lora import add_lora, lora_layers, lora_weights
    from ript.policies.openvla_oft.model import OpenVla

    with torch.device("meta"):
        network = OpenVla(sizes)
        network.scale_head = ScaleHead(sizes)
    heads = {
        name: sum(p.numel() for p in network.get_submodule(name).parameters())
        for name in ("action_head", "scale_head", "proprio_projector")
    }
    backbone = sum(p.numel() for p in network.parameters()) - sum(heads.values())
    add_lora(network, lora_layers(network), 1, 1.0)
    updates = {name: parameter.numel() for name, parameter in lora_weights(network).items()}
    adapter = sum(n for name, n in updates.items() if name.startswith("language_model."))
    return heads | {"backbone": backbone, "adapter": adapter, "adapter everywhere": sum(updates.values())}


def kept_by_a_layer(sizes: LlamaSizes, rank: int, dtype_bytes: int) -> int:
    """Bytes a token that a layer of the language model keeps for its gradient."""
    wide = 4 if dtype_bytes < 4 else 0
    return dtype_bytes * (8 * sizes.width + 4 * sizes.hidden + 7 * rank) + wide * sizes.width + 24


def kept_by_the_towers(sizes: OpenVlaSizes, rank: int, dtype_bytes: int) -> int:
    """Bytes a decision that vision towers and projector keep for gradients of adapters in all their layers."""
    numbers = 0
    for tower in (sizes.dino, sizes.siglip):
        block = 8 * tower.width + 2 * tower.hidden + 4 * rank
        numbers += (sizes.patches + tower.prefix) * (tower.blocks - 1) * block  # the last one is not there
    inputs = sizes.dino.width + sizes.siglip.width
    numbers += sizes.patches * (9 * inputs + 2 * sizes.llama.width + 3 * rank)
    return sizes.pictures * dtype_bytes * numbers


def kept_by_the_head(sizes: OpenVlaSizes, dtype_bytes: int) -> int:
    """Bytes a decision in an update of the L1 head alone: hidden states, and what the head keeps of them."""
    width = sizes.llama.width
    return sizes.slots * width * (dtype_bytes + 2 * MASTER) + sizes.chunk * width * 8 * MASTER


def needs(sizes: OpenVlaSizes, use: Use) -> Needs:
    """What it is for -> bytes."""
    n, e = counted(sizes), use.dtype_bytes
    tokens = sizes.seen + WORDS + sizes.slots + 1
    layer = tokens * kept_by_a_layer(sizes.llama, use.rank, e)
    pictures = sizes.pictures * sizes.patches
    towers = pictures * e * (12 * (sizes.dino.width + sizes.siglip.width) + 2 * sizes.siglip.hidden)
    pixels = sizes.pictures * 6 * sizes.image**2 * (4 + e)
    parts = use.trains.split("+")
    wide = use.rank * n["adapter everywhere" if use.everywhere else "adapter"]
    if use.supervised:
        trained = wide + n["action_head"] + n["proprio_projector"]
    else:
        trained = use.rank * n["adapter"] * ("adapter" in parts) + n["action_head"] * ("head" in parts)
    found = {
        "weights": use.copies * n["backbone"] * e,
        "heads and adapter": MASTER * (n["action_head"] + n["scale_head"] + n["proprio_projector"] + wide),
    }
    at_work = {f"acting on {use.act_batch} decisions": use.act_batch * (layer + towers + pixels)}
    if use.supervised:
        found["hidden states for the scale head"] = SCALE_WINDOWS * sizes.slots * sizes.llama.width * e
    if use.micro_batch:
        found["AdamW's moments"] = MOMENTS * trained
        inputs = tokens * sizes.llama.width * e
        kept = inputs * sizes.llama.layers + layer if use.recompute else layer * sizes.llama.layers
        whole = "adapter" in parts or use.supervised
        if use.everywhere and use.supervised:
            towers = kept_by_the_towers(sizes, use.rank, e)
        passed = use.micro_batch * (kept + towers + pixels if whole else kept_by_the_head(sizes, e))
        at_work[f"gradients and a pass over {use.micro_batch} decisions"] = GRADIENT * trained + passed
    largest = max(at_work, key=lambda what: at_work[what])  # one after the other
    return found | {largest: at_work[largest], "set aside": SET_ASIDE}


def ways(sizes: OpenVlaSizes, use: Use) -> Iterator[tuple[str, Use]]:
    """Settings that take less and less, in words and as a use: those first that change no result."""
    batch = "sft.micro_batch" if use.supervised else "learn.micro_batch"
    words: dict[str, str] = {}
    while True:
        acting = any(what.startswith("acting") for what in needs(sizes, use))
        if acting and use.act_batch > 1:
            use = replace(use, act_batch=use.act_batch // 2)
            words["act"] = f"at most {use.act_batch} decisions at once (rollout.slots, rollout.workers)"
        elif not acting and not use.recompute and (use.trains != "head" or use.supervised):
            use, words["recompute"] = replace(use, recompute=True), "policy.recompute=true"
        elif not acting and use.micro_batch > 1:
            use = replace(use, micro_batch=use.micro_batch // 2)
            words["batch"] = f"{batch}={use.micro_batch}"
        elif use.micro_batch and use.trains == "adapter+head" and not use.supervised:
            use, words["trains"] = replace(use, trains="adapter"), "policy.rl_trains=adapter"
        else:
            return
        yield ", ".join(words.values()), use


def require(sizes: OpenVlaSizes, use: Use, demands: Demands) -> None:
    """Raise `DeviceTooSmall` unless a policy of these sizes can do what is demanded of it."""
    d = demands
    use = replace(use, act_batch=d.act_batch, micro_batch=d.micro_batch, supervised=d.supervised, copies=d.copies)
    require_room(
        f"an OpenVLA-OFT policy of {counted(sizes)['backbone'] / 1e9:.2f} billion parameters",
        needs(sizes, use),
        demands.device_bytes,
        [(words, needs(sizes, other)) for words, other in ways(sizes, use)],
    )


def plan(sizes: OpenVlaSizes, use: Use) -> list[str]:
    """For a person: what it takes as asked, and with what it fits on each of `CARDS`."""
    asked = needs(sizes, use)
    lines = [f"memory: {total(asked) / GIB:.1f} GiB ({listed(asked)})"]
    for card in CARDS:
        room = int(card * 1e9)
        tried = [("as asked", use), *ways(sizes, use)]
        fitting = [(words, needs(sizes, other)) for words, other in tried if total(needs(sizes, other)) <= room]
        words = f"{fitting[0][0]}: {total(fitting[0][1]) / GIB:.1f} GiB" if fitting else "too small"
        lines.append(f"  a device of {card} GB ({room / GIB:.1f} GiB): {words}")
    return lines
