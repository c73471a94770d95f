"""What can be chosen of an OpenVLA-OFT policy and of its supervised training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ript.core.options import PolicyOptions, TrainingOptions, need
from ript.policies.openvla_oft.presets import PRESETS

Clip = Annotated[tuple[float, float], Field(strict=False)]


class OftOptions(PolicyOptions):
    ABOUT: ClassVar[str] = "An OpenVLA-OFT policy. What a published folder says of it is not changed by any of these."
    BUILT: ClassVar[tuple[str, ...]] = ("size", "chunk", "execute")
    FURTHER: ClassVar[tuple[str, ...]] = ("rank", "alpha", "adapts", "recompute")
    FURTHER_ALONE: ClassVar[tuple[str, ...]] = ("adapts",)

    kind: Literal["openvla_oft"] = Field("openvla_oft", description=PolicyOptions.meaning("kind"))
    size: Literal["tiny", "small"] = Field(
        "small", description="Named size of a new policy; the published one comes from its folder."
    )
    chunk: int = Field(0, ge=0, le=1000, description="Actions of a decision; 0: as the size says.")
    execute: int = Field(0, ge=0, le=1000, description="Actions executed before the next look; 0: all.")
    temperature: float = Field(
        1.0, ge=0.001, le=1000.0, description="Factor on the scale of actions, in what is drawn and in what scores it."
    )
    sampling: Literal["exact", "published"] = Field(
        "exact",
        description='"published" draws with a scale that is not clipped, times the temperature, and scores with one '
        "that is clipped, without it: RIPT-VLA's mismatch, for comparison only.",
    )
    terms: Literal["action", "dimension"] = Field(
        "action", description="What has a probability ratio of its own: an action, or each of its dimensions."
    )
    scale_clip: Clip = Field((-2.0, 0.5), description="Least and largest log-scale of normalised actions.")
    forward: Literal["official", "two_pass"] = Field(
        "official",
        description='"two_pass" computes what comes before the last word without gradient, and unaware of what comes '
        "after it: cheaper to train, and not the function that published checkpoints were trained for.",
    )
    rl_trains: Literal["adapter+head", "adapter", "head"] = Field(
        "adapter+head",
        description="What post-training updates: low-rank updates (LoRA) of the language model's layers, the L1 head, "
        "or both. The scale head stays. With the head alone rollouts keep hidden states instead of pictures, and an "
        "update computes nothing before it.",
    )
    head_rate: float = Field(
        0.0, ge=0, le=1, description="Learning rate of the L1 head in post-training; 0: that of the adapter."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="In what the network before the heads computes while practice trains the head alone, and "
        "afterwards, until supervised training (where the policy refers to a base, on the CPU alone): bfloat16 takes "
        "half the time on a processor with matrix units for it (AMX), longer on others. Heads compute in float32.",
    )
    recompute: bool = Field(
        False,
        description="Keep no activations within layers of the language model for the gradient, but compute them again "
        "(gradient checkpointing): a fraction of the memory, a third more work, same results.",
    )
    rank: int = Field(32, ge=1, le=1024, description="Of the adapter that post-training begins with.")
    adapts: Literal["language", "everything"] = Field(
        "language",
        description="Where supervised training from a published base puts its adapter: into the language model, or "
        "also into vision towers and projector, as OpenVLA-OFT was trained; post-training updates the former's alone.",
    )
    alpha: float = Field(16.0, gt=0, le=10000, description="The adapter's updates are scaled by alpha / rank.")

    @model_validator(mode="after")
    def _can_be(self) -> OftOptions:
        low, high = self.scale_clip
        need(
            not self.head_rate or self.rl_trains == "adapter+head",
            "policy.head_rate",
            f"is of the head beside an adapter, and policy.rl_trains is {self.rl_trains}: give learn.learning_rate",
        )
        need(
            self.precision == "float32" or self.rl_trains == "head",
            "policy.precision",
            f"is of a network that does not change, and policy.rl_trains is {self.rl_trains}: give "
            "policy.rl_trains=head, or leave it out",
        )
        need(
            low < high, "policy.scale_clip", f"the least log-scale must be below the largest, got {low:g} and {high:g}"
        )
        need(
            not self.chunk or self.execute <= self.chunk,
            "policy.execute",
            f"must be at most policy.chunk ({self.chunk}), got {self.execute}",
        )
        return self

    def idle(self) -> dict[str, str]:
        """See `Settings.idle`."""
        if self.rl_trains != "head":
            return super().idle()
        why = " while policy.rl_trains = head, for which there is no adapter: leave it out"
        kept = " while policy.rl_trains = head, whose updates begin at hidden states: leave it out"
        return super().idle() | {"rank": why, "alpha": why, "recompute": kept}

    def decided(self) -> dict[str, Any]:
        """See `PolicyOptions.decided`."""
        chunk = self.chunk or PRESETS[self.size].chunk
        return super().decided() | {"chunk": chunk, "execute": self.execute or chunk}


class OftTraining(TrainingOptions):
    ABOUT: ClassVar[str] = (
        "Supervised stages: actions on all tasks, fine-tuning toward the target tasks, then the scale of actions with "
        "everything else frozen."
    )
    OF_BASE: ClassVar[tuple[str, ...]] = ("policy", "scale")
    OF_TARGETS: ClassVar[tuple[str, ...]] = ("finetune", "scale")
    SHARED: ClassVar[tuple[str, ...]] = ("policy_batch",)
    BESIDE_OTHERS: ClassVar[tuple[str, ...]] = ("finetune_share",)

    policy_steps: int = Field(2000, ge=0, description="Optimiser steps on actions of all tasks.")
    policy_batch: int = Field(32, ge=1, description="Looks in a batch, in fine-tuning too.")
    policy_learning_rate: float = Field(5e-4, gt=0, description="Highest learning rate on all tasks.")
    finetune_steps: int = Field(400, ge=0, description="Optimiser steps of fine-tuning.")
    finetune_learning_rate: float = Field(2e-4, gt=0, description="Highest learning rate of fine-tuning.")
    finetune_share: float = Field(
        0.5, gt=0, le=1, description="Share of each fine-tuning batch that comes from the target tasks."
    )
    scale_steps: int = Field(500, ge=0, description="Optimiser steps of the scale head; 0: it stays.")
    scale_batch: int = Field(64, ge=1, description="Looks in a batch of the scale head.")
    scale_learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate of the scale head.")

    @property
    def largest_pass(self) -> int:
        """The scale head learns from what was computed before."""
        return self.micro_batch or self.policy_batch
