"""What a policy that is one torch module does like any other: which weights it trains, how it lies on disk.

For a policy with the attributes `KIND` (its kind's name), `options` (settings), `simulator` and `card`, whose class is
made as `cls(options, simulator, card)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ript.core import hooks
from ript.core.errors import PolicyError
from ript.core.files import expanded
from ript.core.options import Settings
from ript.policies import folder as policy_folder

P = TypeVar("P", bound=nn.Module)


def save(policy: Any, folder: str | Path, without: str = "") -> None:
    """Write `config.json`, `model.safetensors` and the model card `README.md`, whole or not at all.

    Args:
        policy: what is saved.
        folder: where.
        without: name of a module of it that is left out.

    Raises:
        PolicyError, NotFiniteError: see `folder.save`.
    """
    tensors = {n: x for n, x in policy.state_dict().items() if not without or not n.startswith(f"{without}.")}
    notes, options = hooks.caveats_of(policy), policy.options.to_json()
    policy_folder.save(expanded(folder), policy.KIND, options, policy.simulator, tensors, policy.card, notes=notes)


def load(cls: type[P], options: type[Settings], folder: str | Path) -> P:
    """The policy of a class in a folder that `save` wrote.

    Args:
        cls: its class.
        options: class of its settings.
        folder: where it lies.

    Raises:
        PolicyError: missing, partial, of another kind or version, or with settings or weights that do not fit.
    """
    saved = policy_folder.load(expanded(folder), cls.KIND)  # type: ignore[attr-defined]
    try:
        policy = cls(options(**saved.config), saved.simulator, saved.card)
    except Exception as error:  # whatever constructors raise when they are given a foreign or damaged configuration
        where = saved.folder / "config.json"
        raise PolicyError(f"{where} describes no policy that can be built: {error}") from error
    policy_folder.fill(policy, saved)
    return policy


def weights(modules: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """Everything in these modules, by name."""
    return {f"{name}.{key}": x.detach() for name, module in modules.items() for key, x in module.state_dict().items()}


@torch.no_grad()
def load_weights(policy: nn.Module, given: Mapping[str, torch.Tensor]) -> None:
    """Put weights in the place of a policy's own, as far as there are any."""
    own = policy.state_dict()
    for name, tensor in given.items():
        own[name].copy_(tensor)
