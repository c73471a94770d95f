"""What Meta-World's simulators can be told."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ript.core.options import SimOptions, Size, Words, need


class MetaworldOptions(SimOptions):
    ABOUT: ClassVar[str] = "Meta-World: which cameras the policy sees, how large, and how the arm is drawn."

    suite: Literal["metaworld"] = Field("metaworld", description=SimOptions.meaning("suite"))
    cameras: Words = Field(
        ("side",), description="Names of the cameras that the policy sees; front=corner2 calls that view front."
    )
    image_size: Size = Field(64, description="Height and width of the pictures in pixels; one number when equal.")
    arm: Literal["boxes", "mesh", "hidden"] = Field(
        "boxes",
        description="How the robot's arm is drawn: as boxes, as the stock meshes (3 times slower), or not at all.",
    )

    @model_validator(mode="after")
    def _names_are_names(self) -> MetaworldOptions:
        need(len(self.cameras) >= 1, "sim.cameras", "at least one camera is needed")
        need(len(set(self.cameras)) == len(self.cameras), "sim.cameras", f"named twice: {', '.join(self.cameras)}")
        return self
