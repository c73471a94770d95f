"""The stock LIBERO environment: built once for a model to be compiled, and what a simulator is compared with."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from ript.core.errors import DependencyMissing
from ript.core.interpreter import importing
from ript.sims.libero.states import Parts
from ript.sims.libero.step import axis_angle
from ript.sims.libero.tasks import INSTALL, LiberoTask
from ript.sims.mujoco.gl import import_mujoco

FACTS = 1
"""Raise it when `describe` says something else: what was stored of compiled models is then made anew."""
_CONFIG = "LIBERO_CONFIG_PATH"
_IMPORTING = threading.Lock()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """LIBERO reads a file of paths from the user's home, asks for one in some versions, and robosuite complains of
    files that it misses. Here they find an empty folder, and nobody is asked or told."""
    before = os.environ.get(_CONFIG)
    with tempfile.TemporaryDirectory(prefix="ript-libero-") as folder, importing():
        os.environ[_CONFIG] = folder
        logging.disable(logging.WARNING)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(logging.NOTSET)
            if before is None:
                os.environ.pop(_CONFIG, None)
            else:
                os.environ[_CONFIG] = before


def import_libero() -> Any:
    """Module `libero.libero.envs.env_wrapper`, with MuJoCo's backend chosen first.

    Raises:
        DependencyMissing: LIBERO, robosuite or MuJoCo is not installed, or broken.
    """
    import_mujoco(INSTALL)
    try:
        with _IMPORTING, _undisturbed():
            from libero.libero.envs import env_wrapper
    except Exception as error:  # of any of the packages that it imports, which load libraries and start processes
        remedy = INSTALL if isinstance(error, ModuleNotFoundError) else "look with `ript doctor`"
        raise DependencyMissing(f"LIBERO cannot be imported ({type(error).__name__}: {error}): {remedy}") from error
    return env_wrapper


def new_environment(info: LiberoTask, seed: int | None = 0, **settings: Any) -> Any:
    """A stock environment after the reset that follows `np.random.seed(seed)`, without a renderer.

    Args:
        info: the task.
        seed: of the reset, which draws where fixtures and objects are. The caller's random state is kept. None: it is
            not reset, which takes as long as to build it, but looks as if it had been.
        settings: more arguments of the stock environment.
    """
    wrapper = import_libero()
    own = {"has_offscreen_renderer": False, "use_camera_obs": False, "ignore_done": True, **settings}
    with _undisturbed(), drawing_from(0):
        env = wrapper.ControlEnv(bddl_file_name=str(info.bddl), **own)
    if seed is None:
        env.env.visualize(vis_settings=dict.fromkeys(env.env._visualizations, False))
    else:
        reset(env, seed)
    return env


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """LIBERO draws from NumPy's global generator: here it is seeded, and put back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def reset(env: Any, seed: int) -> None:
    """`env.reset()` with a seed."""
    with _undisturbed(), drawing_from(seed):
        env.reset()


def describe(env: Any) -> dict[str, Any]:
    """What of a scene only robosuite knows, as plain values: see `scene.Facts`."""
    inner = env.env
    return {
        "version": FACTS,
        "home": [float(x) for x in inner.robots[0].init_qpos],
        "objects": {name: _object(one) for name, one in inner.objects_dict.items()},
        "fixtures": {name: _object(one) for name, one in inner.fixtures_dict.items()},
        "sites": {
            name: {
                "parent": getattr(site, "parent_name", None),
                "joints": list(getattr(site, "joints", None) or ()),
                "size": [float(x) for x in site.size],
                "under": hasattr(site, "under"),
            }
            for name, site in inner.object_sites_dict.items()
        },
        "workspace": {
            "name": inner.workspace_name,
            "offset": [float(x) for x in inner.workspace_offset],
            "fixture_height": float(inner.z_offset),
        },
    }


def _object(one: Any) -> dict[str, Any]:
    rotation = one.rotation
    if isinstance(rotation, dict):
        turns = [[axis, [float(x) for x in angles]] for axis, angles in rotation.items()]
    else:
        turns = [[one.rotation_axis, [float(x) for x in np.atleast_1d(rotation)]]]
    return {
        "kind": one.category_name,
        "body": one.root_body,
        "joints": list(one.joints),
        "geoms": list(one.contact_geoms),
        "radius": float(one.horizontal_radius),
        "top": float(one.top_offset[-1]),
        "bottom": float(one.bottom_offset[-1]),
        "rotation": turns,
        "several_turns": isinstance(rotation, dict),
        "burner": [name for name, _ in one.object_properties.get("vis_site_names", {}).values()],
        **_articulation(one),
    }


_FAR = 1e9


def _articulation(one: Any) -> dict[str, Any]:
    """Thresholds of joints: predicate -> ("<", ">" or ">=", number), and the ranges that resets draw from."""
    ranges = one.object_properties.get("articulation", {})
    found: dict[str, Any] = {"tests": {}, "ranges": {}}
    for name, method, key in (
        ("open", "is_open", "default_open_ranges"),
        ("close", "is_close", "default_close_ranges"),
        ("turnon", "turn_on", "default_turnon_ranges"),
        ("turnoff", "turn_off", "default_turnoff_ranges"),
    ):
        if not ranges.get(key) or not hasattr(one, method):
            continue
        test, edges = getattr(one, method), [float(x) for x in ranges[key]]
        below = bool(test(-_FAR))
        edge = max(edges) if below else min(edges)
        found["tests"][name] = ["<" if below else ">=" if bool(test(edge)) else ">", edge]
        found["ranges"][name] = edges
    return found


OBSERVED = ("joint_states", "gripper_states", "eef_pos", "eef_axis_angle")
"""Parts of an observation that are of the robot, in what is compared with stock."""


class StockLibero:
    """The unmodified environment in one initial state: what a simulator must equal step for step.

    Args:
        info: the task.
        start: parts of its initial state's vector.
        settle: steps before the first observation.
        waiting: their action, `[7]`.
        env: one that was built for the task before; None builds one.

    Attributes:
        env: the environment.
        observation: its last observation.
        first: time, positions, velocities, and `OBSERVED`, after settling.
    """

    def __init__(
        self,
        info: LiberoTask,
        start: Parts,
        settle: int,
        waiting: np.ndarray,
        env: Any = None,
    ):
        self.env = new_environment(info) if env is None else env
        if env is not None:
            _renew(env)
        inner, mujoco = self.env.env, import_mujoco()
        sim = inner.sim
        mujoco.mj_resetData(sim.model._model, sim.data._data)  # stock's own warm start depends on what it drew
        for k, fixture in enumerate(inner.fixtures_dict.values()):
            body = sim.model.body_name2id(fixture.root_body)
            sim.model.body_pos[body], sim.model.body_quat[body] = start.fixture_pos[k], start.fixture_quat[k]
        vector = np.concatenate([[start.time], start.qpos, start.qvel])
        self.observation: dict[str, Any] = self.env.set_init_state(vector)
        for _ in range(settle):
            self.observation = self.env.step(waiting)[0]
        self.first: np.ndarray = self.vector()

    def vector(self) -> np.ndarray:
        """What is compared."""
        data, seen = self.env.env.sim.data, self.observation
        x, y, z, w = seen["robot0_eef_quat"]
        turned = axis_angle(np.array([w, x, y, z]))
        observed = [seen["robot0_joint_pos"], seen["robot0_gripper_qpos"], seen["robot0_eef_pos"], turned]
        return np.concatenate([[data.time], data.qpos, data.qvel, *observed])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """(vector, reward, success)."""
        self.observation, reward, done, _ = self.env.step(np.asarray(action, np.float64))
        return self.vector(), float(reward), bool(done)


def _renew(env: Any) -> None:
    """Make a used environment as good as new without compiling its model again, which takes seconds."""
    inner = env.env
    before, inner.hard_reset = inner.hard_reset, False
    try:
        reset(env, 0)
    finally:
        inner.hard_reset = before
    inner.robots[0].gripper.current_action[:] = 0.0
