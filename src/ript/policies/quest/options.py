"""What can be chosen of a QueST policy and of its supervised training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ript.core.options import PolicyOptions, TrainingOptions, need
from ript.policies.quest.config import chunk_and_execute

PUBLISHED_SUITE = "libero"
"""Suite that published files are for."""


class QuestOptions(PolicyOptions):
    ABOUT: ClassVar[str] = "A QueST policy. Sizes come from `size`; 0 keeps what the size says."
    BUILT: ClassVar[tuple[str, ...]] = ("size", "chunk", "execute", "privileged", "standardise", "language")
    DEMONSTRATED: ClassVar[tuple[str, ...]] = ("privileged", "standardise")
    OVERRULED: ClassVar[Mapping[str, str]] = {"temperature": "entropy"}

    kind: Literal["quest"] = Field("quest", description=PolicyOptions.meaning("kind"))
    size: Literal["tiny", "small", "paper"] = Field("small", description="Named size of the QueST policy.")
    chunk: int = Field(0, ge=0, description="Actions per chunk (a multiple of 4); 0: as the size says.")
    execute: int = Field(0, ge=0, description="Actions executed before the next look; 0: as the size says.")
    privileged: bool = Field(False, description="Auxiliary loss on object positions from the simulator, in SFT only.")
    standardise: bool = Field(
        True,
        description="Proprioception in units of its mean and deviation in the demonstrations; false: as the "
        "simulator gives it.",
    )
    language: Literal["minilm", "clip"] = Field(
        "minilm",
        description="Frozen model that instructions are embedded with: MiniLM (384 numbers, comes with the "
        "installation) or CLIP ViT-B/32's (512, as published; fetched from the model hub, or from "
        "the folder that RIPT_CLIP names).",
    )
    temperature: float = Field(
        1.0,
        ge=0.001,
        le=1000.0,
        description="Softmax temperature of both the sampled and the optimised density, in post-training.",
    )
    entropy: float = Field(
        0.0,
        ge=-20,
        le=6.5,
        description="Choose the temperature so that the entropy of a sampled variable (a token) is this many "
        "nats at the start, within what temperatures of 0.3 to 1.5 give; 0: as given. Of "
        "continuous variables it may be negative.",
    )
    top_k: int = Field(0, ge=0, description="Sample among the k most likely tokens, in both densities; 0: all.")
    sampling: Literal["exact", "published"] = Field(
        "exact",
        description='"published" samples from the top k but optimises the full softmax: a known mismatch, for '
        "comparison only.",
    )
    rl_trains: Literal["prior", "prior+adapter", "prior+encoders"] = Field(
        "prior",
        description="What post-training updates: the skill GPT; also a linear layer from whitened features to "
        "its input; or also the encoders.",
    )

    @model_validator(mode="after")
    def _draws_from_some(self) -> QuestOptions:
        drawn = self.sampling == "exact" or self.top_k > 0
        need(drawn, "policy.sampling", "published sampling draws from policy.top_k tokens: give it (published: 5)")
        return self

    def decided(self) -> dict[str, Any]:
        """See `PolicyOptions.decided`."""
        chunk, execute = chunk_and_execute(self)
        return super().decided() | {"chunk": chunk, "execute": execute}

    @property
    def calibrates(self) -> bool:
        """Whether the temperature is chosen, or an adapter fitted, by rollouts."""
        return bool(self.entropy) or self.rl_trains == "prior+adapter"


class QuestTraining(TrainingOptions):
    ABOUT: ClassVar[str] = (
        "Supervised stages: skill autoencoder, policy on all tasks, then fine-tuning toward the target tasks."
    )
    OF_BASE: ClassVar[tuple[str, ...]] = ("autoencoder", "policy")
    OF_TARGETS: ClassVar[tuple[str, ...]] = ("finetune",)
    SHARED: ClassVar[tuple[str, ...]] = ("policy_batch",)
    BESIDE_OTHERS: ClassVar[tuple[str, ...]] = ("finetune_share",)
    OVERRULED: ClassVar[Mapping[str, str]] = {
        "autoencoder_steps": "autoencoder_epochs",
        "policy_steps": "policy_epochs",
        "finetune_steps": "finetune_epochs",
    }

    autoencoder_steps: int = Field(1500, ge=0, description="Optimiser steps of the skill autoencoder.")
    autoencoder_epochs: float = Field(
        0.0,
        ge=0,
        description="Passes over the windows instead, one for each demonstrated environment step; 0: "
        "`autoencoder_steps`.",
    )
    autoencoder_batch: int = Field(256, ge=1, description="Windows of actions in a batch of the autoencoder.")
    autoencoder_learning_rate: float = Field(
        0.001, gt=0, description="Highest learning rate of the autoencoder, reached after the warm-up."
    )
    policy_steps: int = Field(1300, ge=0, description="Optimiser steps of the policy on all tasks.")
    policy_epochs: float = Field(
        0.0, ge=0, description="Passes over all demonstrated looks instead; 0: `policy_steps`."
    )
    policy_batch: int = Field(128, ge=1, description="Looks in a batch of the policy, in fine-tuning too.")
    policy_learning_rate: float = Field(0.0005, gt=0, description="Highest learning rate of the policy on all tasks.")
    finetune_steps: int = Field(400, ge=0, description="Optimiser steps of fine-tuning.")
    finetune_epochs: float = Field(
        0.0, ge=0, description="Passes over the target tasks' looks instead; 0: `finetune_steps`."
    )
    finetune_learning_rate: float = Field(0.0002, gt=0, description="Highest learning rate of fine-tuning.")
    finetune_share: float = Field(
        0.5, gt=0, le=1, description="Share of each fine-tuning batch that comes from the target tasks."
    )
    finetune_decoder: float = Field(
        0.0,
        ge=0,
        description="Weight of a loss that trains the action decoder too, on actions decoded from drawn "
        "tokens; 0: it stays.",
    )
    colour_jitter: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Nine in ten pictures change in brightness, contrast, saturation and hue by up to this; "
        "0: all, by 0.1, in brightness alone.",
    )
    noisy_targets: bool = Field(
        False,
        description="Let the autoencoder's dropout act on the tokens that the policy learns to predict, as "
        "the published code does.",
    )

    def stage_steps(self, *, steps: float, looks: float, target_looks: float) -> dict[str, int]:
        """See `TrainingOptions.stage_steps`."""

        def passes(epochs: float, otherwise: int, windows: float, batch: float) -> int:
            return math.ceil(epochs * windows / batch) if epochs else otherwise

        tuned = self.policy_batch * self.finetune_share
        return {
            "autoencoder": passes(self.autoencoder_epochs, self.autoencoder_steps, steps, self.autoencoder_batch),
            "policy": passes(self.policy_epochs, self.policy_steps, looks, self.policy_batch),
            "finetune": passes(self.finetune_epochs, self.finetune_steps, target_looks, tuned),
        }
