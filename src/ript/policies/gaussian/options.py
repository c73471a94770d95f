"""What can be chosen of a Gaussian policy and of its supervised training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ript.core.options import PolicyOptions, need
from ript.policies.one_stage import OneStage


class GaussianOptions(PolicyOptions):
    ABOUT: ClassVar[str] = "A normal distribution over the next actions."
    BUILT: ClassVar[tuple[str, ...]] = ("chunk", "execute", "n_obs_steps", "points", "width", "language", "std_sees")

    kind: Literal["gaussian"] = Field("gaussian", description=PolicyOptions.meaning("kind"))
    chunk: int = Field(4, ge=1, le=1000, description="H, actions that are decided on together.")
    execute: int = Field(0, ge=0, description="How many of these actions are executed before the next look; 0: all.")
    n_obs_steps: int = Field(
        1,
        ge=1,
        le=16,
        description="Observations that it sees at a time, of the present environment step and those before it: what "
        "moves, and how fast. More than 1 need demonstrations with --demos.every=1.",
    )
    points: int = Field(32, ge=1, le=1024, description="Key points that are sought in each picture.")
    width: int = Field(256, ge=1, le=65536, description="Units of each of the two hidden layers.")
    language: Literal["none", "minilm", "clip"] = Field(
        "none",
        description="Frozen model that instructions are embedded with, for a policy of several tasks: MiniLM or CLIP "
        "ViT-B/32's; none: it reads no instruction.",
    )
    std: float = Field(
        0.6,
        gt=0,
        le=10,
        description="Standard deviation of each action dimension, which lies in [-1, 1], when post-training starts.",
    )
    min_std: float = Field(
        0.1,
        ge=1e-3,
        le=10,
        description="What post-training cannot take it below: rollouts that are all alike teach nothing.",
    )
    std_sees: bool = Field(
        False, description="Whether the deviation depends on what is seen, besides the action dimension."
    )
    terms: Literal["step", "dimension"] = Field(
        "step", description="What has a probability ratio of its own: an action, or each of its dimensions."
    )
    rl_trains: Literal["all", "head"] = Field(
        "all",
        description="What post-training updates: all of it, or what follows the picture encoders; pictures need not be "
        "kept then.",
    )

    @model_validator(mode="after")
    def _can_be(self) -> GaussianOptions:
        need(
            self.execute <= self.chunk,
            "policy.execute",
            f"must be at most policy.chunk ({self.chunk}), got {self.execute}",
        )
        need(
            self.min_std < self.std,
            "policy.min_std",
            f"must be below policy.std ({self.std:g}), got {self.min_std:g}",
        )
        return self

    @property
    def executed(self) -> int:
        """E, actions before the next look."""
        return self.execute or self.chunk


class GaussianTraining(OneStage):
    ABOUT: ClassVar[str] = "Supervised training of a Gaussian policy: one stage, the error of its means."

    privileged: float = Field(
        0.0,
        ge=0,
        description="Weight of an auxiliary loss: what only the simulator knows (sim.privileged), object positions, by "
        "a linear map of key points and proprioception. The map is not kept.",
    )
    shift: int = Field(2, ge=0, le=64, description="Pixels by which pictures are moved about at random, at most.")
