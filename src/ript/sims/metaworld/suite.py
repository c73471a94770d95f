"""Meta-World as a suite: 50 tasks of a robot arm on a table, with scripted experts."""

from __future__ import annotations

from importlib import util

from ript.core.interfaces import Simulator, StockEnvironment
from ript.core.plugins import Suite
from ript.core.types import SimulatorSpec, Task
from ript.sims.metaworld.options import MetaworldOptions
from ript.sims.metaworld.tasks import (
    CAMERAS,
    HORIZON,
    LISTS,
    NAME,
    metaworld_spec,
    metaworld_tasks,
    resolve_cameras,
)
from ript.sims.mujoco.rendering import image_shape
from ript.sims.mujoco.views import view_options


def make(key: str, options: MetaworldOptions) -> Simulator:
    """A simulator for a key such as "metaworld/drawer-open-v3"."""
    from ript.sims.metaworld.simulator import MetaworldSimulator

    return MetaworldSimulator(
        key.removeprefix(f"{NAME}/"),
        horizon=options.horizon or HORIZON,
        cameras=options.cameras,
        image_size=options.image_size,
        arm=options.arm,
    )


def spec(options: MetaworldOptions) -> SimulatorSpec:
    """What simulators with these options show and take.

    Raises:
        UnknownNameError: no such camera.
    """
    return metaworld_spec(resolve_cameras(options.cameras), image_shape(options.image_size), options.arm)


def options_of(spec: SimulatorSpec) -> MetaworldOptions:
    """The inverse of `spec`.

    Raises:
        PolicyError: cameras of different sizes, which these simulators do not have.
    """
    options = MetaworldOptions(**view_options(spec, CAMERAS, "Meta-World"))
    return options.replaced(arm=spec.render["arm"]) if "arm" in spec.render else options


def find(name: str) -> Task | None:
    """A task without its version: "drawer-open"."""
    return next((task for task in metaworld_tasks() if task.name == f"{name}-v3"), None)


def timed(key: str, options: MetaworldOptions, seed: int) -> StockEnvironment:
    """Stock Meta-World, for benchmarks."""
    from ript.sims.metaworld.timed import TimedMetaworld

    return TimedMetaworld(key, options, seed)


def caveats(options: MetaworldOptions) -> tuple[str, ...]:
    return ("The robot's arm is not drawn.",) if options.arm == "hidden" else ()


def available() -> str | None:
    missing = [package for package in ("metaworld", "mujoco") if util.find_spec(package) is None]
    return f'{" and ".join(missing)} missing: pip install "ript[metaworld]"' if missing else None


PUBLISHED = MetaworldOptions(cameras=("corner2",), image_size=128, arm="mesh", horizon=HORIZON)
"""The options with which papers show Meta-World."""

SUITE = Suite(
    name=NAME,
    summary="50 tasks of a robot arm on a table (MuJoCo), with scripted experts",
    options=MetaworldOptions,
    tasks=metaworld_tasks,
    make=make,
    spec=spec,
    options_of=options_of,
    find=find,
    lists=lambda: LISTS,
    protocols={"published": PUBLISHED},
    demonstrations=("expert",),
    packages=("metaworld", "mujoco"),
    draws=True,
    available=available,
    stock=timed,
    caveats=caveats,
)
