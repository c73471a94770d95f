"""Gaussian policies as a kind of policy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ript.core.errors import DataError
from ript.core.plugins import PolicyKind
from ript.core.supervised import DemoSource, Stage
from ript.core.types import SimulatorSpec
from ript.policies.gaussian.options import GaussianOptions, GaussianTraining
from ript.policies.one_stage import one_stage

if TYPE_CHECKING:
    from ript.policies.gaussian.policy import GaussianPolicy


def make(options: GaussianOptions, spec: SimulatorSpec, seed: int, privileged_dim: int | None) -> GaussianPolicy:
    """A new policy with weights drawn from the seed."""
    import torch

    from ript.policies.gaussian.policy import GaussianPolicy

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GaussianPolicy(options, spec)


def load(folder: str | Path) -> GaussianPolicy:
    """The policy in a folder."""
    from ript.policies.gaussian.policy import GaussianPolicy

    return GaussianPolicy.from_pretrained(folder)


def check(options: GaussianOptions) -> None:
    """Embed a sentence, where it reads: whether the model for that is here.

    Raises:
        DependencyMissing, DataError: it is not, or it is damaged.
    """
    if options.language != "none":
        from ript.policies import language

        language.embed(["a sentence"], options.language)


def begin(policy: GaussianPolicy, options: GaussianOptions, windows: DemoSource) -> None:
    """Normalise proprioception by these demonstrations."""
    policy.set_statistics(windows.statistics())


def stages(
    policy: GaussianPolicy, training: GaussianTraining, windows: DemoSource, targets: Sequence[str], fresh: bool
) -> list[Stage]:
    """One stage: the error of the means, and of where objects are.

    Raises:
        DataError: the demonstrations do not say where objects are.
    """
    from ript.policies.parameters import parameter_groups

    if training.privileged:
        if windows.privileged is None:
            raise DataError(
                "sft.privileged: the demonstrations carry no object positions (obs/privileged); collect them with "
                "--sim.privileged, or leave it 0"
            )
        policy.look_for(windows.statistics())
    loss = partial(policy.loss, shift=training.shift, privileged=training.privileged)
    groups = parameter_groups([policy])
    return one_stage(policy, training, windows, targets, fresh, loss=loss, groups=groups, judged="action_mse")


def card(policy: GaussianPolicy, windows: DemoSource, fresh: bool) -> dict[str, str]:
    """Whether the policy has learned from what acting policies do not see."""
    from ript.policies.gaussian.policy import OBJECTS

    told = any(name == OBJECTS for name, _ in policy.named_children())
    return {"auxiliary loss on object positions from the simulator": "yes" if told else "no"}


KIND = PolicyKind(
    kind="gaussian",
    summary="a normal distribution over the next actions, from pictures and proprioception",
    options=GaussianOptions,
    make=make,
    load=load,
    check=check,
    language=lambda options: options.language,
    training=GaussianTraining,
    window=lambda policy: policy.options.chunk,
    begin=begin,
    stages=stages,
    card=card,
)
