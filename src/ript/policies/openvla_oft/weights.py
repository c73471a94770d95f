"""Weights of published files, put straight where they are to be."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ript.core import capacity
from ript.core.disk import cannot_read, reading, refused
from ript.core.errors import PolicyError
from ript.core.files import require_content, utf8_name
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.sizes import OpenVlaSizes

HEADS = ("action_head", "proprio_projector")
SHOWN = 4


def unused(sizes: OpenVlaSizes) -> re.Pattern[str]:
    """Names in a published file that nothing here reads: last blocks, norms after them, pooling, the output layer."""
    last = f"featurizer\\.blocks\\.{sizes.dino.blocks - 1}|fused_featurizer\\.blocks\\.{sizes.siglip.blocks - 1}"
    tail = "(?:fused_)?featurizer\\.(?:norm|attn_pool)"
    return re.compile(rf"vision_backbone\.(?:{last}|{tail})\.|language_model\.lm_head\.")


class opened:
    """A safetensors file, mapped into memory: `with opened(path) as file`.

    Raises:
        PolicyError: missing, corrupt or truncated.
    """

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Any:
        path = self._path
        with reading(path, PolicyError):
            require_content(path, PolicyError)
            try:
                with utf8_name(path) as name:
                    self._file = safe_open(name, framework="pt")
                    return self._file.__enter__()
            except (SafetensorError, ValueError) as error:
                if refused(error):
                    raise cannot_read(path, error, PolicyError) from error
                raise PolicyError(f"{path} is corrupt or truncated: {error}; fetch it again") from error

    def __exit__(self, *exc: Any) -> None:
        self._file.__exit__(*exc)


HASHING = 4
"""Tensors that are hashed at a time, at most."""


def load_backbone(
    network: OpenVla,
    shards: Mapping[str, Path],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> str:
    """Give a network that was made on the meta device its weights, heads apart.

    Args:
        shards: tensor name -> file.

    Returns:
        16 hex digits that tell these weights from others: a hash of names, types, shapes and bytes, however they are
        distributed over files.

    Shards are mapped into memory one after another, and each tensor goes straight to its device and type: besides the
    weights themselves, the host holds one shard at most.

    Raises:
        PolicyError: names or shapes do not fit, or a weight is not finite.
    """
    own = {k: v for k, v in network.state_dict().items() if not k.startswith((*HEADS, "scale_head"))}
    skipped = unused(network.sizes)
    names = {name for name in shards if not skipped.match(name)}
    require_names(set(own), names, "the shards")
    by_file: dict[Path, list[str]] = {}
    for name in sorted(names):
        by_file.setdefault(shards[name], []).append(name)
    digests: dict[str, bytes] = {}
    threads = min(HASHING, capacity.cores().usable)
    for path in sorted(by_file):
        with opened(path) as file, ThreadPoolExecutor(threads) as pool:
            absent = sorted(set(by_file[path]) - set(file.keys()))
            if absent:
                raise PolicyError(f"{path} lacks {listed(absent)}, which the index says it holds")
            hashed: dict[str, Future[bytes]] = {}
            for number, name in enumerate(by_file[path]):
                if number >= threads:  # no more tensors at a time
                    hashed[by_file[path][number - threads]].result()
                tensor = checked(file.get_tensor(name), own[name], name, path)
                hashed[name] = pool.submit(digest, tensor)
                assign(network, name, tensor, device, dtype)
            digests |= {name: found.result() for name, found in hashed.items()}
    of_all = hashlib.sha256()
    for name in sorted(digests):
        of_all.update(name.encode() + b"\0" + digests[name])
    return of_all.hexdigest()[:16]


def digest(tensor: torch.Tensor) -> bytes:
    """A hash of a tensor's type, shape and bytes."""
    found = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


def checked(tensor: torch.Tensor, own: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """The tensor, if its shape and type are as expected; raises `PolicyError` if not."""
    if tensor.shape != own.shape:
        raise PolicyError(f"{path}: {name} is {list(tensor.shape)}, expected {list(own.shape)}")
    if (
        not tensor.is_floating_point() or tensor.element_size() < 2
    ):  # eight bits come with scales, which nothing here reads
        raise PolicyError(f"{path}: {name} holds {tensor.dtype}, expected floating-point numbers of 16 bits or more")
    return tensor


def assign(network: nn.Module, name: str, tensor: torch.Tensor, device: str | torch.device, dtype: torch.dtype) -> None:
    """Make a tensor a parameter of a network, on its device and in its type; never a view of a file.

    Raises:
        PolicyError: it is not finite.
    """
    placed = tensor.to(device).to(dtype)
    if placed.data_ptr() == tensor.data_ptr():
        placed = placed.clone()
    if not torch.isfinite(placed).all():
        raise PolicyError(f"the weight {name} holds NaN or infinity: fetch the checkpoint again")
    path, _, last = name.rpartition(".")
    setattr(network.get_submodule(path), last, nn.Parameter(placed, requires_grad=False))


def require_names(expected: set[str], got: set[str], where: str) -> None:
    """Raise `PolicyError` unless the names are the same."""
    missing, extra = sorted(expected - got), sorted(got - expected)
    if missing or extra:
        parts = [f"{len(missing)} tensors are missing ({listed(missing)})"] if missing else []
        parts += [f"{len(extra)} are of no OpenVLA-OFT ({listed(extra)})"] if extra else []
        raise PolicyError(f"the weights in {where} do not fit: {'; '.join(parts)}")


def listed(names: list[str]) -> str:
    """The first few of them, in words."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
