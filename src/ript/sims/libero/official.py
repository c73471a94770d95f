"""The official demonstrations of LIBERO, as a user has downloaded them: with their own pictures, or drawn anew.

A file holds those of one task. Its pictures stand upside down (views "agentview-stock" and "wrist-stock"), and each was
taken after the action that it is stored with; those that are drawn anew show the state before the action.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from ript.core.errors import DataError, UnknownNameError
from ript.core.types import ForeignDemo, InitialState, Observation, Recording, SimulatorSpec, Task
from ript.sims.libero import models
from ript.sims.libero.options import LiberoOptions
from ript.sims.libero.rendering import Moment, resolve_cameras
from ript.sims.libero.spec import libero_spec
from ript.sims.libero.states import SceneParts
from ript.sims.libero.tasks import ALL, HORIZON, info_of, task_of
from ript.sims.mujoco.gl import import_mujoco
from ript.sims.mujoco.rendering import image_shape

PICTURES = {"agentview-stock": "agentview_rgb", "wrist-stock": "eye_in_hand_rgb"}
"""View -> what its pictures are called there."""


class _User:
    """Has a scene open for as long as a demonstration is converted."""


def is_known(demo: ForeignDemo) -> bool:
    """Whether a file says that it is of LIBERO, or has the name of a task."""
    if "bddl_file_name" in demo.attributes:
        return True
    try:
        return bool(_task_name(demo))
    except DataError:
        return False


def convert(demo: ForeignDemo, options: LiberoOptions, rendered: bool) -> tuple[Recording, SimulatorSpec]:
    """A recording with looks, and what it was seen through.

    Args:
        demo: of an official file.
        options: names of the proprioception's parts; of the pictures' cameras, size and look, if they are drawn anew.
        rendered: draw the pictures anew, from the recorded states.

    Raises:
        DataError: it is of no known task, or lacks pictures or other numbers; says which.
    """
    where = f"{demo.path}: key 'data/{demo.name}"
    task = task_of(_task_name(demo), options.horizon or HORIZON)
    if not demo.states.size:
        raise DataError(f"{where}/states' is missing")
    if demo.actions.ndim != 2 or demo.actions.shape[1] != 7:
        raise DataError(f"{where}/actions': expected [T, 7], got {list(demo.actions.shape)}")
    user = _User()
    scene, let_go = models.take(info_of(task.name), user)
    try:
        parts = SceneParts(import_mujoco(), scene.model, scene.facts)
        if demo.states.ndim != 2 or demo.states.shape[1] != parts.layout.physics:
            raise DataError(
                f"{where}/states': expected [T, {parts.layout.physics}] for {task.key}, got {list(demo.states.shape)}"
            )
        poses = _poses(demo, scene.facts)
        proprio = np.concatenate([_numbers(demo, name, where) for name in options.proprio], axis=1)
        if rendered:
            views, size = resolve_cameras(options.cameras), image_shape(options.image_size)
            qpos = demo.states[:, 1 : 1 + parts.layout.qpos]
            moments = [Moment(row, poses[:, :3], poses[:, 3:], parts.colours(row)) for row in qpos]
            drawn = [scene.draw(views, size, options.look, moment) for moment in moments]
            images = {name: np.stack([pictures[name] for pictures in drawn]) for name in views}
            spec = libero_spec(views, size, options.look, options.proprio)
        else:
            images = {view: _pictures(demo, name, where) for view, name in PICTURES.items()}
            height, width = images["agentview-stock"].shape[1:3]
            spec = libero_spec(resolve_cameras(tuple(PICTURES)), (height, width), "faithful", options.proprio)
        state = _state(task, demo, parts, poses)
    finally:
        let_go()
    looks = Observation(images=images, proprio=proprio, instruction=(task.instruction,) * len(proprio))
    return Recording(initial_state=state, actions=demo.actions.astype(np.float32), looks=looks), spec


def _task_name(demo: ForeignDemo) -> str:
    """By the task's description, which the file names, or by the file's own name."""
    described = PurePath(str(demo.attributes.get("bddl_file_name", "")).replace("\\", "/"))
    words, suite = (
        described.stem or demo.path.stem.removesuffix("_demo"),
        described.parent.name or demo.path.parent.name,
    )
    having = [task.name for task in ALL.values() if task.words == words and task.suite == suite]
    having = having or [task.name for task in ALL.values() if task.words == words and not task.perturbation]
    if not having:
        known = [task.words for task in ALL.values()]
        raise DataError(f"{demo.path}: {UnknownNameError('LIBERO task, by bddl_file_name or the file,', words, known)}")
    return having[0]


def _numbers(demo: ForeignDemo, name: str, where: str) -> np.ndarray:
    """A part of the proprioception: float32 `[T, n]`."""
    found = demo.observations.get({"eef_pos": "ee_pos", "gripper_qpos": "gripper_states"}.get(name, name))
    if found is None or found.ndim != 2 or len(found) != len(demo.actions):
        raise DataError(f"{where}/obs/{name}': expected [{len(demo.actions)}, n], {_got(found, demo)}")
    return found.astype(np.float32)


def _pictures(demo: ForeignDemo, name: str, where: str) -> np.ndarray:
    found = demo.observations.get(name)
    if found is None or found.dtype != np.uint8 or found.ndim != 4 or len(found) != len(demo.actions):
        raise DataError(
            f"{where}/obs/{name}': expected uint8 [{len(demo.actions)}, h, w, 3], {_got(found, demo)}: draw the "
            "pictures anew from the states (--pictures rendered)"
        )
    return found


def _got(found: np.ndarray | None, demo: ForeignDemo) -> str:
    if found is not None:
        return f"got {found.dtype} {list(found.shape)}"
    return f"it is missing; there are {', '.join(sorted(demo.observations)) or 'no observations'}"


def _poses(demo: ForeignDemo, facts: Mapping[str, Any]) -> np.ndarray:
    """Where fixtures stood, which the recorded model says: float64 `[F, 7]`."""
    text = demo.attributes.get("model_file", "")
    try:
        bodies = {body.get("name"): body for body in ET.fromstring(str(text)).iter("body")}
        return np.array([_pose(bodies[one["body"]]) for one in facts["fixtures"].values()]).reshape(-1, 7)
    except (ET.ParseError, KeyError, ValueError) as error:
        raise DataError(
            f"{demo.path}: key 'data/{demo.name}', attribute 'model_file' does not say where fixtures stood ({error})"
        ) from error


def _pose(body: ET.Element) -> Sequence[float]:
    pos, quat = body.get("pos", "0 0 0").split(), body.get("quat", "1 0 0 0").split()
    numbers = [float(word) for word in (*pos, *quat)]
    if len(numbers) != 7:
        raise ValueError(f"body {body.get('name')} has {len(numbers)} numbers")
    return numbers


def _state(task: Task, demo: ForeignDemo, parts: SceneParts, poses: np.ndarray) -> InitialState:
    vector = parts.layout.join(np.asarray(demo.states[0], np.float64), poses)
    return InitialState(task=task, state=vector, origin="demo", label=f"official {demo.name}")
