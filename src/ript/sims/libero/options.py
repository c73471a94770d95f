"""What LIBERO's simulators can be told."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ript.core.options import SimOptions, Size, Words, need


class LiberoOptions(SimOptions):
    ABOUT: ClassVar[str] = "LIBERO: what the policy sees, how episodes begin, and how exactly physics is computed."

    suite: Literal["libero"] = Field("libero", description=SimOptions.meaning("suite"))
    cameras: Words = Field(
        ("agentview", "wrist"),
        description="Names of the cameras that the policy sees; front=agentview calls that view front.",
    )
    image_size: Size = Field(128, description="Height and width of the pictures in pixels; one number when equal.")
    look: Literal["fast", "faithful"] = Field(
        "fast",
        description="fast: without shadows and reflections, with fewer triangles; faithful: the stock pictures, pixel "
        "by pixel, for policies trained elsewhere (30 times slower).",
    )
    proprio: Words = Field(
        ("joint_states", "ee_pos", "gripper_states"),
        description="Parts of the proprioception vector, in order: joint_states (7, rad), gripper_states (2, m), "
        "ee_pos (3, m), ee_ori (3, axis and angle), ee_states (the last two).",
    )
    settle: int = Field(
        5, ge=0, le=1000, description="Steps without movement after a state is set, before an episode begins."
    )
    settle_gripper: Literal["none", "open"] = Field(
        "none", description="What the gripper does meanwhile: nothing (zero actions), or it opens (-1)."
    )
    physics: Literal["exact", "inexact"] = Field(
        "exact",
        description="exact: equal to stock LIBERO bit for bit; inexact: one solve a substep instead of three, faster.",
    )

    @model_validator(mode="after")
    def _names_are_names(self) -> LiberoOptions:
        for name in ("cameras", "proprio"):
            words = getattr(self, name)
            need(len(words) >= 1, f"sim.{name}", "at least one is needed")
            need(len(set(words)) == len(words), f"sim.{name}", f"named twice: {', '.join(words)}")
        return self
