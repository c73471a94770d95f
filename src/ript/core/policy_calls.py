"""A policy's methods, asked with care: what raises, or answers something else than was asked, is named.

`act` is asked in `rollout.recorder`, for many rollouts at once.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ript.core.errors import PolicyError
from ript.core.memory import translated
from ript.core.types import SimulatorSpec

if TYPE_CHECKING:
    import torch

    from ript.core.interfaces import LikelihoodPolicy, Policy, PostTrainable

P = TypeVar("P", bound="PostTrainable")


def asking(policy: object, method: str) -> AbstractContextManager[None]:
    """Within, what a policy, or its class, raises is a `PolicyError` that names the method and the place.

    Errors of this package and memory that runs out come as they are.
    """

    def ours(error: BaseException) -> PolicyError:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return PolicyError(f"{named(policy)}: {method} raised {what}{_place(policy, error)}")

    return translated(ours)


def named(policy: object) -> str:
    """The policy, or its class, in messages: its kind, or else its class."""
    cls = policy if inspect.isclass(policy) else type(policy)
    return f"policy {getattr(policy, 'KIND', None) or cls.__name__}"


def _place(policy: object, error: BaseException) -> str:
    """Where the policy's own code was when something was raised; else where that was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    cls = policy if inspect.isclass(policy) else type(policy)
    try:
        own = inspect.getsourcefile(cls)
    except TypeError:  # its class is of no file
        own = None
    inner = [frame for frame in frames if frame.filename == own] or frames[1:] or frames
    return f" ({inner[-1].filename}, line {inner[-1].lineno})" if inner else ""


def answer(policy: object, method: str, expected: str, got: object) -> PolicyError:
    """The error to raise where a method returned something else than was asked for."""
    return PolicyError(f"{named(policy)}: {method} returned {_described(got)}; expected {expected}")


def _described(value: object) -> str:
    """Such as "a tuple of (a tensor [3, 4], None)"."""
    if value is None:
        return "None"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{'a tensor' if type(value).__name__ == 'Tensor' else type(value).__name__} {[*value.shape]}"
    if isinstance(value, tuple | list) and 0 < len(value) <= 4:
        return f"a {type(value).__name__} of ({', '.join(map(_described, value))})"
    if isinstance(value, bool | int | float | str):
        return repr(value)
    empty = hasattr(value, "__len__") and not len(value)
    return f"an empty {type(value).__name__}" if empty else f"a {type(value).__name__}"


def log_prob(
    policy: LikelihoodPolicy, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor, terms: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """See `LikelihoodPolicy.log_prob`; K = `terms`, as `act` gave.

    Raises:
        PolicyError: it raised, or returned something else.
    """
    import torch

    shape = (len(sample), terms)
    with asking(policy, "log_prob"):
        found: Any = policy.log_prob(inputs, sample)
    each = list(found) if isinstance(found, tuple | list) else [found]
    good = len(each) == 2 and isinstance(each[0], torch.Tensor) and tuple(each[0].shape) == shape
    if good and each[1] is not None:
        good = isinstance(each[1], torch.Tensor) and tuple(each[1].shape) == shape
    if not good:
        k = f"[R, K] = [{shape[0]}, {shape[1]}]"
        raise answer(policy, "log_prob", f"(log-probabilities {k}, the terms' entropies {k} or None)", found)
    return each[0], each[1]


def rl_parameters(policy: LikelihoodPolicy) -> list[dict]:
    """See `LikelihoodPolicy.rl_parameters`.

    Raises:
        PolicyError: it raised, or named no parameter.
    """
    with asking(policy, "rl_parameters"):
        groups: Any = policy.rl_parameters()
    fits = isinstance(groups, list | tuple) and all(isinstance(g, dict) and "params" in g for g in groups)
    groups = [group | {"params": _listed(group["params"])} for group in groups] if fits else groups
    if not fits or not any(group["params"] for group in groups):
        raise answer(policy, "rl_parameters", 'a list of groups such as {"params": [...]} with parameters', groups)
    return groups


def _listed(parameters: Any) -> list:
    return list(parameters) if hasattr(parameters, "__iter__") and not hasattr(parameters, "shape") else [parameters]


def weights(policy: LikelihoodPolicy) -> dict[str, torch.Tensor]:
    """See `LikelihoodPolicy.weights`.

    Raises:
        PolicyError: it raised, or gave none.
    """
    import torch

    with asking(policy, "weights"):
        found: Any = policy.weights()
    if not (isinstance(found, Mapping) and found and all(isinstance(x, torch.Tensor) for x in found.values())):
        raise answer(policy, "weights", "tensors by name, of everything that changes in post-training", found)
    return dict(found)


def load_weights(policy: LikelihoodPolicy, given: Mapping[str, torch.Tensor]) -> None:
    """See `LikelihoodPolicy.load_weights`. Raises `PolicyError` when it raised."""
    with asking(policy, "load_weights"):
        policy.load_weights(given)


def check_simulator(policy: Policy, spec: SimulatorSpec) -> None:
    """Raise `PolicyError` unless the policy fits the simulator."""
    with asking(policy, "check_simulator"):
        policy.check_simulator(spec)


def to(policy: P, device: str) -> P:
    """See `PostTrainable.to`.

    Raises:
        PolicyError: it raised, or returned no policy.
    """
    with asking(policy, "to"):
        moved: Any = policy.to(device)
    if not hasattr(moved, "act"):
        raise answer(policy, "to", "the policy itself", moved)
    return moved


def save(policy: Policy, folder: str | Path) -> None:
    """Let a policy be saved, and see that there is one then.

    Raises:
        PolicyError: it raised, or what it wrote is no policy folder.
    """
    with asking(policy, "save_pretrained"):
        policy.save_pretrained(folder)
    there = Path(folder)
    if not there.is_dir() or not any(there.iterdir()):
        raise PolicyError(f"{named(policy)}: save_pretrained wrote nothing into {folder}")
    if getattr(policy, "KIND", None) and not (there / "config.json").is_file():
        raise PolicyError(
            f"{named(policy)}: save_pretrained wrote no config.json, without which the folder cannot be loaded; "
            "ript.policies.modules.save writes a whole one"
        )


def loss(policy: object, found: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """What a policy's `loss` returned: one number with a gradient, and what to log.

    Raises:
        PolicyError: it is something else.
    """
    import torch

    each = list(found) if isinstance(found, tuple | list) else [found]
    if (
        len(each) != 2
        or not isinstance(each[0], torch.Tensor)
        or each[0].numel() != 1
        or not (each[0].requires_grad or not torch.is_grad_enabled())
        or not isinstance(each[1], Mapping)
    ):
        raise answer(policy, "loss", "(the mean loss as a tensor [] with a gradient, what to log by name)", found)
    return each[0].reshape(()), each[1]


def require_made(policy: Any) -> Any:
    """The policy that a kind made or loaded.

    Raises:
        PolicyError: it lacks what every policy says of itself.
    """
    for name, kind, what in (
        ("simulator", SimulatorSpec, "the `SimulatorSpec` that it was made with"),
        ("card", dict, "a dict: the one that it was made with, or a new one"),
    ):
        if not isinstance(value := getattr(policy, name, None), kind):
            raise PolicyError(f"{named(policy)}: {name} is {_described(value)}; expected {what}")
    return policy
