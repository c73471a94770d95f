"""What a policy's model card says of how it came about, and what of that is the base's when it is trained further."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ript.config.sections import Config

SUPERVISED, PRACTICE = "supervised training", "interactive post-training"
PROTOCOL, VALIDATION = "evaluation", "choice on validation states"
BASE = "base: "
"""Before the titles of what is said of the policy that this one was made from."""


def of_base(card: dict[str, Any]) -> None:
    """All that the card says is of the base from now on: how it was trained, and what it was measured to be worth."""
    for title in list(card):
        if title != PROTOCOL:
            card[BASE + title] = card.pop(title)


def horizon_in(card: Mapping[str, Any]) -> int:
    """Environment steps after which a rollout of this policy is a failure; 0: the card leaves that to the task."""
    said = card.get(PROTOCOL)
    horizon = said.get("horizon") if isinstance(said, Mapping) else None
    return horizon if isinstance(horizon, int) and horizon > 0 else 0


def set_horizon(card: dict[str, Any], horizon: int) -> None:
    """Say how the policy is to be measured; 0: with each task's own horizon."""
    card[PROTOCOL] = {"horizon": horizon or "each task's own"}


def is_trained(card: Mapping[str, Any]) -> bool:
    """Whether the policy, or one that it was made from, was trained by `ript`."""
    return any(title.removeprefix(BASE) in (SUPERVISED, PRACTICE, VALIDATION) for title in card)


def begin_practice(card: dict[str, Any]) -> None:
    """Post-training begins: what an earlier one has made and measured is the base's."""
    if PRACTICE in card or VALIDATION in card:
        of_base(card)


def set_validation(card: dict[str, Any], iteration: int, rate: float, rates: Mapping[str, float]) -> None:
    """Say which iteration of practice a policy is, and its success on validation states, in all and of each task."""
    card[VALIDATION] = {"iteration": iteration, "success": rate} | {f"success, {t}": r for t, r in rates.items()}


def validation_in(card: Mapping[str, Any]) -> tuple[int, float, dict[str, float]] | None:
    """What `set_validation` said: iteration, success in all and of each task; None when nothing was."""
    said = card.get(VALIDATION)
    if not isinstance(said, Mapping):
        return None
    rates = {name.removeprefix("success, "): r for name, r in said.items() if name.startswith("success, ")}
    return said["iteration"], said["success"], {task: math.nan if r is None else r for task, r in rates.items()}


def add_supervised(
    card: dict[str, Any], config: Config, *, demonstrations: int, tasks: str, further: Mapping[str, str]
) -> None:
    """Add supervised training; what the card says already is of the base.

    Args:
        card: of the policy, changed in place.
        config: of the training.
        demonstrations: how many.
        tasks: that they are of.
        further: what else the policy's kind says of it.
    """
    of_base(card)
    set_horizon(card, config.sim.horizon)
    card[SUPERVISED] = {
        "recipe": config.recipe,
        "demonstrations": demonstrations,
        "tasks": tasks,
        "target tasks": ", ".join(config.tasks) or "none",
        "seed": config.seed,
        **further,
    }
