"""OpenVLA-OFT as a kind of policy: chunks of continuous actions by a vision-language model with an L1 head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ript.core.device_memory import Demands
from ript.core.options import Settings
from ript.core.plugins import CheckpointFormat, PolicyKind
from ript.core.specimens import Specimens
from ript.core.supervised import DemoSource, Stage
from ript.core.types import SimulatorSpec
from ript.policies.openvla_oft.options import OftOptions, OftTraining

MODEL_TYPE = "openvla"
"""What config.json of a published folder says."""

if TYPE_CHECKING:
    from ript.policies.openvla_oft.policy import OpenVlaPolicy


def make(options: OftOptions, spec: SimulatorSpec, seed: int, privileged_dim: int | None) -> OpenVlaPolicy:
    """A new policy with weights drawn from the seed; of object positions it learns nothing.

    Raises:
        ConfigError: pictures that it cannot take.
    """
    from ript.policies.openvla_oft.fresh import new_policy

    return new_policy(options.size, spec, seed, chunk=options.chunk, execute=options.execute)


def load(folder: str | Path) -> OpenVlaPolicy:
    """The policy in a folder, published or ours."""
    from ript.policies.openvla_oft.checkpoint import load as load_folder

    return load_folder(folder)


def load_on(folder: str | Path, device: str) -> OpenVlaPolicy:
    """The policy in a folder, its weights straight on a device."""
    from ript.policies.openvla_oft.checkpoint import load as load_folder

    return load_folder(folder, device=device)


def require_room(folder: str | Path | None, options: OftOptions, demands: Demands) -> None:
    """Raise `DeviceTooSmall` where a device has no room for the policy in a folder, at work."""
    from ript.policies.openvla_oft import memory
    from ript.policies.openvla_oft.checkpoint import sizes_in

    if folder is not None:  # new ones are small
        sizes, rank, everywhere = sizes_in(folder)
        if not rank:  # `further` gives it one, or `OpenVlaPolicy.tuned`
            rank, everywhere = options.rank, demands.supervised and options.adapts == "everything"
        use = memory.Use(rank=rank, everywhere=everywhere, trains=options.rl_trains, recompute=options.recompute)
        memory.require(sizes, use, demands)


def check(options: OftOptions) -> None:
    """Raise `DependencyMissing` where published pictures could not be prepared."""
    from ript.policies.openvla_oft.pictures import require_decoder

    require_decoder()


def prepare_untrained(policy: OpenVlaPolicy, seed: int) -> None:
    """Let it try wide movements: a new scale head's are those of a policy that knows what to do."""
    import torch

    if policy.network.scale_head is not None:
        with torch.no_grad():
            policy.network.scale_head.log_b_head.bias.zero_()


def begin(policy: OpenVlaPolicy, options: OftOptions, windows: DemoSource) -> None:
    """Normalise by these demonstrations, and learn the words of their instructions."""
    from ript.policies.openvla_oft.fresh import take_statistics

    take_statistics(policy, windows)


def further(policy: OpenVlaPolicy, options: OftOptions) -> OpenVlaPolicy:
    """Give one whose base lies elsewhere an adapter to learn by, and any a scale head; it acts as before. One that
    holds all its weights learns with all of them, in float32 (`OpenVlaPolicy.at_precision`)."""
    policy = policy.configured(recompute=options.recompute)
    if policy.config.base is None:
        policy = policy.at_precision("float32")
    if policy.network.scale_head is None:
        policy = policy.with_scale_head()
    if policy.config.base is not None and not policy.config.rank:
        everywhere = options.adapts == "everything"
        policy = policy.with_adapter(options.rank, options.alpha / options.rank, everywhere=everywhere)
    return policy


def stages(
    policy: OpenVlaPolicy, training: OftTraining, windows: DemoSource, targets: Sequence[str], fresh: bool
) -> list[Stage]:
    """Actions of a new policy, fine-tuning with targets, and the scale head."""
    from dataclasses import replace

    from ript.policies.openvla_oft.fresh import statistics_of
    from ript.policies.openvla_oft.numbers import UNTRAINED
    from ript.policies.openvla_oft.stages import make_stages

    if not fresh and policy.config.statistics.key == UNTRAINED:
        policy.config = replace(policy.config, statistics=statistics_of(windows))

    return make_stages(policy, training, windows, targets, fresh=fresh)


def in_words(options: OftOptions, training: OftTraining, finetunes: bool) -> Mapping[str, Mapping[str, str]]:
    """See `PolicyKind.in_words`."""
    s = training
    supervised = {
        "policy": f"{s.policy_steps} steps at {s.policy_learning_rate:g}",
        "scale head": f"{s.scale_steps} steps at {s.scale_learning_rate:g}" if s.scale_steps else "as it is",
    }
    if finetunes:
        supervised |= {
            "fine-tuning": f"{s.finetune_steps} steps at {s.finetune_learning_rate:g}",
            "target demonstrations in a batch of it": f"{s.finetune_share:.0%}",
        }
    decided = options.decided()
    return {
        "policy": {"size": options.size, "actions executed": f"{decided['execute']} of {decided['chunk']}"},
        "supervised training": supervised,
        "practice": {
            "density": options.sampling,
            "temperature": f"{options.temperature:g}",
            "a ratio": f"an {options.terms}" if options.terms == "action" else "a dimension of an action",
        },
        "update": {"trained": options.rl_trains.replace("+", " and "), "forward": options.forward.replace("_", " ")},
    }


class OftFolder(Settings):
    ABOUT: ClassVar[str] = "How a published folder is read."

    statistics: str = Field(
        "", description="Data whose statistics it is used with, by its name there, where it holds those of several."
    )
    adapter: str = Field(
        "", description="Folder of an adapter in PEFT's format; RIPT-VLA's bring both heads, ours all they have."
    )
    scale_head: str = Field("", description="RIPT-VLA's file of a scale head.")
    heads: Literal["published", "new"] = Field(
        "published",
        description='"new": give a base without an L1 head new heads, and statistics of the demonstrations that `ript '
        "sft` then trains them on.",
    )


def read(folder: str | Path, options: OftFolder) -> tuple[OpenVlaPolicy, list[str]]:
    """The policy in a published folder; all of it that acts is read."""
    from ript.policies.openvla_oft.checkpoint import load as load_folder

    return load_folder(
        folder,
        suite=options.statistics or None,
        adapter=options.adapter or None,
        scale_head=options.scale_head or None,
        heads=options.heads,
    ), []


PUBLISHED = CheckpointFormat(
    name="openvla",
    summary="a published OpenVLA-OFT folder",
    suffix="",
    options=OftFolder,
    read=read,
    examples=(
        "  ript import openvla openvla-7b-oft-finetuned-libero-spatial --out policies/oft-spatial\n"
        "  ript import openvla BASE --adapter openvla_lora_step_000010 --out policies/ript-spatial",
        "",
    ),
)


def specimens() -> Specimens:
    """Random policies: the small sizes, and the published one, which is made on the device."""
    from ript.policies.openvla_oft import specimens as made

    return Specimens(
        sizes=("tiny", "small", made.PUBLISHED),
        usual="small",
        make=made.random_policy,
        look=made.random_look,
        decisions=made.decisions,
        comparisons=made.comparisons,
        batches=(1, 8, 32),
        rows=32,
        micro_batch=8,
        options=False,
        require_room=made.require_room,
        plan=made.plan,
    )


KIND = PolicyKind(
    kind="openvla_oft",
    summary="chunks of continuous actions by a vision-language model: published 7 B policies, and small ones",
    options=OftOptions,
    training=OftTraining,
    make=make,
    load=load,
    load_on=load_on,
    require_room=require_room,
    reads=lambda config: config.get("model_type") == MODEL_TYPE,
    check=check,
    prepare_untrained=prepare_untrained,
    begin=begin,
    further=further,
    stages=stages,
    in_words=in_words,
    formats=(PUBLISHED,),
    specimens=specimens,
)
