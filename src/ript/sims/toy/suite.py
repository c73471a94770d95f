"""The toy as a suite: the smallest that there can be."""

from __future__ import annotations

from ript.core.errors import PolicyError
from ript.core.plugins import Suite
from ript.core.types import SimulatorSpec
from ript.sims.toy.options import ToyOptions
from ript.sims.toy.simulator import CAMERA, NAME, ToySimulator, toy_spec, toy_tasks


def make(key: str, options: ToyOptions) -> ToySimulator:
    """A simulator for a key such as "toy/reach"."""
    horizon = {"horizon": options.horizon} if options.horizon else {}
    return ToySimulator(key.removeprefix(f"{NAME}/"), image_size=options.image_size, **horizon)


def spec(options: ToyOptions) -> SimulatorSpec:
    """What simulators with these options show and take."""
    return toy_spec(options.image_size)


def options_of(spec: SimulatorSpec) -> ToyOptions:
    """The inverse of `spec`.

    Raises:
        PolicyError: other cameras, or an oblong picture.
    """
    height, width = spec.cameras.get(CAMERA, (0, 1))
    if len(spec.cameras) != 1 or height != width:
        raise PolicyError(f"the toy shows one square picture, {CAMERA!r}, not {dict(spec.cameras)}")
    return ToyOptions(image_size=height)


SUITE = Suite(
    name=NAME,
    summary="a dot and a goal in a picture; for tests and first tries",
    options=ToyOptions,
    tasks=toy_tasks,
    make=make,
    spec=spec,
    options_of=options_of,
    demonstrations=("expert",),
)
