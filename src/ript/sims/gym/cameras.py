"""What a policy of a Gymnasium environment looks through: words for cameras, and what they mean there.

A word is NAME=VIEW, or VIEW alone, which then is the name too. A view is one of

    default                       the environment's own: see `resolve`
    head_camera                   a camera of a MuJoCo model, by name
    1.9 0.75 0.9 to 1.3 0.75 0.4  a free view of a MuJoCo model: place and point looked at, metres; `fovy 30` after it
    render                        the picture of the environment's own render(), uint8 [h, w, 3]
    pixels                        a key of the observation that is a picture
    front                         a view of `tasks.VIEWS`
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ript.core.errors import ConfigError, UnknownNameError
from ript.sims.mujoco.rendering import CameraView

DEFAULT, RENDER = "default", "render"
FOVY = 45.0
"""Degrees, of a free view that names none."""
_NUMBER = r"(-?\d+(?:\.\d*)?)"
_FREE = re.compile(rf"{_NUMBER} {_NUMBER} {_NUMBER} to {_NUMBER} {_NUMBER} {_NUMBER}(?: fovy {_NUMBER})?")


def named_views(words: Collection[str], known: Mapping[str, str]) -> dict[str, str]:
    """Camera name -> view.

    Args:
        words: as they are written.
        known: the task's own views by name -> as they would be written.

    Raises:
        ConfigError: none, or one name for two.
    """
    views: dict[str, str] = {}
    for word in words:
        name, _, view = (part.strip() for part in word.partition("="))
        if name in views:
            raise ConfigError(f"sim.cameras: {name} is named twice")
        if not name or (_FREE.fullmatch(name) and not view):
            raise ConfigError(f"sim.cameras: {word!r} has no name: write NAME={word}")
        views[name] = known.get(view or name, view or name)
    if not views:
        raise ConfigError("sim.cameras: a policy needs at least one camera")
    return views


def resolve(view: str, env: Any, model: Any, pictures: Collection[str], own: Collection[str] = ()) -> CameraView | str:
    """What a view is in an environment: a view of its model, "render", or a key of its observation.

    "default" of a MuJoCo environment is the camera that it was made with, or its camera "track", or else the free view
    that its own renderer starts from; of others the first picture in the observation, or else what they render.

    Args:
        view: as written.
        env: the innermost environment.
        model: its MuJoCo model, or None.
        pictures: keys of its observation that are pictures.
        own: names of the task's own views, which `named_views` has put in their place; for the message.

    Raises:
        UnknownNameError: no such view.
    """
    if view in pictures or view == RENDER:
        return view
    if model is None:
        if view == DEFAULT:
            return next(iter(pictures), RENDER)
        raise UnknownNameError("camera (the environment is not a MuJoCo one)", view, [*pictures, DEFAULT, RENDER])
    free = _FREE.fullmatch(view)
    if free:
        x, y, z, a, b, c = map(float, free.groups()[:6])
        if (x, y, z) == (a, b, c):
            raise ConfigError(f"sim.cameras: {view!r} looks at where it stands")
        return CameraView(position=(x, y, z), target=(a, b, c), fovy=float(free[7] or FOVY))
    cameras = [model.cam(i).name for i in range(model.ncam)]
    if view == DEFAULT:
        chosen = _chosen(env, cameras) or ("track" if "track" in cameras else "")
        return CameraView(base=chosen) if chosen else _start_view(env, model)
    if view in cameras:
        return CameraView(base=view)
    known = [*own, *cameras, *pictures, DEFAULT, RENDER, "X Y Z to X Y Z fovy DEGREES"]
    raise UnknownNameError("camera", view, known)


def _chosen(env: Any, cameras: list[str]) -> str:
    """The camera that an environment was told to look through, by number or by name; "" where it was not."""
    renderer = getattr(env, "mujoco_renderer", None)
    number = next((n for n in (getattr(held, "camera_id", None) for held in (renderer, env)) if n is not None), -1)
    name = getattr(env, "camera_name", None)
    if isinstance(name, str) and name in cameras:
        return name
    return cameras[number] if isinstance(number, int) and 0 <= number < len(cameras) else ""


def _start_view(env: Any, model: Any) -> CameraView:
    """The free view that Gymnasium's renderer starts from: its configuration, or MuJoCo's defaults."""
    given: Mapping[str, Any] = getattr(getattr(env, "mujoco_renderer", None), "default_cam_config", None) or {}
    body = int(given.get("trackbodyid", -1))
    centre = env.data.xpos[body] if 0 <= body < model.nbody else model.stat.center
    target = np.array(given.get("lookat", centre), float)
    distance = float(given.get("distance", 1.5 * model.stat.extent))
    azimuth, elevation = (math.radians(given.get(k, d)) for k, d in (("azimuth", 90.0), ("elevation", -45.0)))
    forward = np.array(
        [math.cos(elevation) * math.cos(azimuth), math.cos(elevation) * math.sin(azimuth), math.sin(elevation)]
    )
    x, y, z = (target - distance * forward).tolist()
    a, b, c = target.tolist()
    return CameraView(position=(x, y, z), target=(a, b, c), fovy=float(model.vis.global_.fovy))
