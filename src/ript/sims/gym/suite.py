"""Gymnasium environments as a suite: any id is a task."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import util
from typing import Any

from ript.core.errors import PolicyError
from ript.core.interfaces import Simulator
from ript.core.plugins import Suite
from ript.core.types import ForeignDemo, Recording, SimulatorSpec
from ript.sims.gym.environment import modules_of
from ript.sims.gym.options import GymOptions
from ript.sims.gym.success import threshold
from ript.sims.gym.tasks import NAME, find, known_tasks


def make(key: str, options: GymOptions) -> Simulator:
    """A simulator for a key such as "gym/FetchReach-v4" or "gym/my_package:MyTask-v0"."""
    from ript.sims.gym.simulator import GymSimulator

    return GymSimulator(key.removeprefix(f"{NAME}/"), **options.arguments_of_simulators())


def options_of(spec: SimulatorSpec) -> GymOptions:
    """What the simulators were made with that have this spec, but for the horizon.

    Raises:
        PolicyError: it is of no simulator of this suite.
    """
    recorded = {**spec.render, **spec.unseen}
    given: dict[str, Any] = {name: value for name, value in recorded.items() if name in GymOptions.model_fields}
    if missing := sorted(set(GymOptions.model_fields) - {"suite", "horizon", *given}):
        raise PolicyError(f"a simulator of suite {NAME} says what it was made with; {', '.join(missing)} missing")
    height, width = given["image_size"]
    return GymOptions(**given | {"image_size": height if height == width else (height, width)})


def converts(demo: ForeignDemo, options: GymOptions, rendered: bool) -> tuple[Recording, SimulatorSpec]:
    """See `recorded.convert`."""
    from ript.sims.gym.recorded import convert

    return convert(demo, options, rendered)


def wrote(demo: ForeignDemo) -> bool:
    """See `recorded.is_known`."""
    from ript.sims.gym.recorded import is_known

    return is_known(demo)


def available() -> str | None:
    return None if util.find_spec("gymnasium") else 'gymnasium missing: pip install "ript[gym]"'


def caveats(options: GymOptions) -> Sequence[str]:
    """What readers of results should know."""
    found = []
    if threshold(options.success):
        found.append(f"success is a threshold on the reward ({options.success}), not the environment's own word")
    if options.repeat > 1:
        found.append(
            f"each action is repeated {options.repeat} times, so that a step is {options.repeat} of the environment's"
        )
    return found


SUITE = Suite(
    name=NAME,
    summary="any Gymnasium environment with continuous actions: gym/ID, or gym/PACKAGE:ID",
    options=GymOptions,
    tasks=known_tasks,
    make=make,
    options_of=options_of,
    find=find,
    converts=converts,
    wrote=wrote,
    packages=("gymnasium", "gymnasium-robotics", "mujoco"),
    available=available,
    caveats=caveats,
    modules=modules_of,
)
