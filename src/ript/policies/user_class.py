"""A policy of a user's own as a kind: one class in one file, named as "my_file:MyPolicy", or by an entry point.

The class is a torch module that is made as `cls(options, simulator, card)`, with

    KIND                the name that it goes by: "my_file:MyPolicy", or that of the entry point
    Options             class of its settings, a subclass of `PolicyOptions`; without one there are none. Of a class
                        without `tuned` (see `core.hooks`) all of them are decided when a policy is made
    chunk               H, actions in the windows that it learns from; where it has a loss
    n_obs_steps         observation steps that it sees at a time; 1 where it says nothing
    set_statistics      (Statistics) -> nothing; takes what it normalises with from demonstrations; where it has that
    from_pretrained     folder -> a policy; by default as `modules.save` wrote it

and the methods of `LikelihoodPolicy`. `loss(batch)` is the mean over the demonstrated actions of a batch.
"""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from ript.core.errors import ConfigError
from ript.core.options import PolicyOptions
from ript.core.plugins import PolicyKind
from ript.core.policy_calls import asking
from ript.core.supervised import DemoSource
from ript.core.types import SimulatorSpec
from ript.policies.one_stage import OneStage, one_stage

NEEDED = ("act", "log_prob", "rl_parameters", "weights", "load_weights", "check_simulator", "save_pretrained")


def kind_of_class(cls: type, name: str) -> PolicyKind:
    """A kind of policy whose policies are of this class.

    Args:
        cls: see above.
        name: that it was asked for by.

    Raises:
        ConfigError: it is not what such a class is: it lacks methods, or says another name.
    """
    if missing := [method for method in NEEDED if not callable(getattr(cls, method, None))]:
        raise ConfigError(
            f"kind of policy {name!r}: {cls.__name__} has no {', '.join(missing)}; see docs/adding_a_policy.md"
        )
    if not callable(loss := getattr(cls, "loss", len)):
        raise ConfigError(
            f"kind of policy {name!r}: {cls.__name__}.loss is {loss!r}; expected a method, or none where there is "
            "nothing to learn from demonstrations; see docs/adding_a_policy.md"
        )
    if getattr(cls, "KIND", None) != name:
        raise ConfigError(
            f"kind of policy {name!r}: {cls.__name__}.KIND is {getattr(cls, 'KIND', None)!r}; its folders are found by "
            f"that name, so write KIND = {name!r}"
        )
    options = getattr(cls, "Options", PolicyOptions)
    if not (inspect.isclass(options) and issubclass(options, PolicyOptions)):
        raise ConfigError(f"kind of policy {name!r}: {cls.__name__}.Options is {options!r}; expected a `PolicyOptions`")
    if not hasattr(cls, "tuned") and options is not PolicyOptions:  # else one could be given and would do nothing
        options.BUILT = options.BUILT or tuple(name for name in options.model_fields if name != "kind")
    learns = hasattr(cls, "loss")
    return PolicyKind(
        kind=name,
        summary=inspect.cleandoc(cls.__doc__ or cls.__name__).partition("\n")[0],
        options=options,
        make=partial(_make, cls),
        load=partial(_load, cls, options),
        training=OneStage if learns else None,
        window=_window,
        begin=_begin,
        stages=one_stage if learns else None,
    )


def _make(cls: type, options: Any, spec: SimulatorSpec, seed: int, privileged_dim: int | None) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with asking(cls, "__init__"):
            return _ready(cls(options, spec, {}))


def _window(policy: Any) -> int:
    """H, actions in the windows that it learns from.

    Raises:
        ConfigError: it says none.
    """
    if not isinstance(found := getattr(policy, "chunk", None), int) or isinstance(found, bool) or found < 1:
        name = type(policy).__name__
        raise ConfigError(
            f"{name}.chunk is {found!r}: a policy with a loss says there how many actions the windows have that it "
            "learns from, such as 8; see docs/adding_a_policy.md"
        )
    return found


def _load(cls: Any, options: type[PolicyOptions], folder: str | Path) -> Any:
    from ript.policies import modules

    if not hasattr(cls, "from_pretrained"):
        return _ready(modules.load(cls, options, folder))
    with asking(cls, "from_pretrained"):
        return _ready(cls.from_pretrained(folder))


def _ready(policy: Any) -> Any:
    """The policy, ready to act: a torch module is made in training mode."""
    import torch

    return policy.eval() if isinstance(policy, torch.nn.Module) else policy


def _begin(policy: Any, options: Any, windows: DemoSource) -> None:
    if hasattr(policy, "set_statistics"):
        with asking(policy, "set_statistics"):
            policy.set_statistics(windows.statistics())
