"""What simulators of Gymnasium environments can be told."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ript.core.options import SimOptions, Size, Words, need
from ript.core.types import Task
from ript.sims.gym.environment import in_one_form
from ript.sims.gym.success import threshold
from ript.sims.gym.tasks import own_horizon


class GymOptions(SimOptions):
    """Gymnasium environments: what is seen, what counts as success, what an initial state is."""

    suite: Literal["gym"] = Field("gym", description=SimOptions.meaning("suite"))
    cameras: Words = Field(
        ("default",),
        description="What the policy sees, as VIEW or NAME=VIEW: a camera of a MuJoCo model, a free view of it "
        "(top=1.3 0.75 1.4 to 1.3 0.7 0.4 fovy 40), a picture of the observation by its key, render (what the "
        "environment draws itself), or default (its own view).",
    )
    image_size: Size = Field(64, description="Height and width of the pictures in pixels; one number when equal.")
    meshes: Literal["boxes", "mesh"] = Field(
        "boxes",
        description="How meshes of a MuJoCo model are drawn: as the boxes around them, or as they are (10 times "
        "slower).",
    )
    proprio: Words = Field(
        (),
        description="Parts of the observation that are proprioception: KEY, KEY[i] or KEY[a:b], where a vector that is "
        "the whole observation is called observation. None: observation, agent_pos or state, or all vectors.",
    )
    privileged: Words = Field(
        (), description="Parts of the observation for an auxiliary loss in supervised training, such as a goal."
    )
    success: str = Field(
        "",
        description="What counts as success: a key of a step's info, terminated, reward>=NUMBER or reward>NUMBER. "
        "Empty: is_success or success of the info.",
    )
    instruction: str = Field("", description="What the policy is told, one sentence; empty: made of the id.")
    repeat: int = Field(
        1,
        ge=1,
        le=1000,
        description="Steps of the environment for each action. Whatever else counts steps counts actions, and the "
        "environment's own limit is divided by it.",
    )
    states: Literal["auto", "physics", "seed"] = Field(
        "auto",
        description="What an initial state is: the whole state of a MuJoCo environment, or the seed of a reset. auto: "
        "the first where it is exact, which is tried when the environment is built.",
    )
    rebuild: bool = Field(
        False,
        description="Build the environment anew for each reset: slow, and exact where a reset leaves something behind.",
    )
    arguments: str = Field("", description='Keyword arguments of the environment, as JSON: {"reward_type": "dense"}.')

    @field_validator("arguments")
    @classmethod
    def _in_one_form(cls, given: str) -> str:
        return in_one_form(given)

    @model_validator(mode="after")
    def _can_be_read(self) -> GymOptions:
        for field in ("cameras", "proprio", "privileged"):
            words = getattr(self, field)
            need(len(set(words)) == len(words), f"sim.{field}", f"named twice: {', '.join(words)}")
        try:
            given = json.loads(self.arguments or "{}")
        except ValueError as error:
            given = str(error)
        need(isinstance(given, dict), "sim.arguments", f"expected a JSON object, got {self.arguments!r}")
        reserved = {"render_mode", "max_episode_steps", "id", "disable_env_checker"} & set(given)
        need(not reserved, "sim.arguments", f"{', '.join(sorted(reserved))} cannot be given here")
        threshold(self.success)
        need(
            not (self.rebuild and self.states == "physics"),
            "sim.states",
            "physics and sim.rebuild contradict each other",
        )
        return self

    def horizon_of(self, task: Task) -> int:
        return self.horizon or own_horizon(task.horizon, self.repeat)

    def arguments_of_simulators(self) -> dict[str, Any]:
        """What `GymSimulator` takes besides the task."""
        return {name: value for name, value in self.values().items() if name != "suite"}
