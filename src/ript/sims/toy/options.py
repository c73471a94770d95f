"""What the toy's simulators can be told."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ript.core.options import Pixels, SimOptions


class ToyOptions(SimOptions):
    ABOUT: ClassVar[str] = "The toy: how large its one picture is."

    suite: Literal["toy"] = Field("toy", description=SimOptions.meaning("suite"))
    image_size: Pixels = Field(16, description="Height and width of the picture in pixels.")
