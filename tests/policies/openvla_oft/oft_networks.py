"""The reference network, loaded as a user's would be."""

import torch
from oft_golden import ADAPTER, SCALE_HEAD, TINY

from ript.policies.openvla_oft.adapters import load_adapter
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.pictures import Normalisation
from ript.policies.openvla_oft.prompt import Prompts
from ript.policies.openvla_oft.published import load_heads, load_ript_heads, load_scale_head, read
from ript.policies.openvla_oft.weights import load_backbone


def network(tag: str = "base", alpha: float | None = None, dtype: torch.dtype = torch.float32) -> OpenVla:
    """ "base" with RIPT-VLA's first scale head, or "lora" with its adapter and its heads."""
    found = read(TINY)
    with torch.device("meta"):
        made = OpenVla(found.sizes)
    load_backbone(made, found.shards, dtype=dtype)
    load_heads(made, TINY)
    load_scale_head(made, SCALE_HEAD)
    if tag == "lora":
        load_adapter(made, ADAPTER, alpha=alpha)
        load_ript_heads(made, ADAPTER / "openvla_headers.pt")
    return made


def inputs(golden, *names: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and normalised proprioception of observations."""
    pictures = torch.stack([torch.from_numpy(golden[f"{name}/image_u8"]) for name in names])
    proprio = torch.stack([torch.from_numpy(golden[f"{name}/proprio_normalized"]) for name in names]).float()
    return Normalisation().pixels(pictures), proprio


def prompts(golden, *names: str) -> list[tuple[int, ...]]:
    known = Prompts(None, 2048)
    known.remember({name: golden[f"{name}/input_ids"].tolist() for name in names})
    return known(names)
