"""Views of a suite by name: what a user types, what simulators draw, and back from what a policy was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ript.core.errors import PolicyError, UnknownNameError
from ript.core.types import SimulatorSpec
from ript.sims.mujoco.rendering import CameraView, describe


def resolve_views(
    cameras: Mapping[str, CameraView] | Sequence[str], known: Mapping[str, CameraView]
) -> dict[str, CameraView]:
    """Views from a mapping, or from names of `known`; "front=corner2" is a camera named front with corner2's view.

    Raises:
        UnknownNameError: a view that is not in `known`.
    """
    if isinstance(cameras, Mapping):
        return dict(cameras)
    views = {}
    for word in (cameras,) if isinstance(cameras, str) else cameras:
        name, _, view = word.partition("=")
        if (view or name) not in known:
            raise UnknownNameError("camera", view or name, known)
        views[name] = known[view or name]
    return views


def view_options(spec: SimulatorSpec, known: Mapping[str, CameraView], suite: str) -> dict[str, Any]:
    """The options `cameras` and `image_size` of simulators that show what `spec` says, the inverse of `resolve_views`.

    Args:
        spec: of a simulator.
        known: the suite's views.
        suite: its title, for the error.

    Raises:
        PolicyError: cameras of different sizes, which these simulators do not have.
    """
    sizes = set(spec.cameras.values())
    if len(sizes) != 1:
        raise PolicyError(f"{suite} shows pictures of one size, not {dict(spec.cameras)}")
    height, width = sizes.pop()
    described = spec.render.get("cameras")
    cameras = _words(described, known) if isinstance(described, Mapping) else tuple(spec.cameras)
    return {"cameras": cameras, "image_size": height if height == width else (height, width)}


def _words(described: Mapping[str, object], known: Mapping[str, CameraView]) -> tuple[str, ...]:
    """What `resolve_views` takes for cameras that `spec.render` describes."""
    words = []
    for name, view in described.items():
        same = [other for other, seen in known.items() if describe(seen) == view]
        words.append(name if name in same or not same else f"{name}={same[0]}")
    return tuple(words)
