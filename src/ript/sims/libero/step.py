"""One instance's physics: stock LIBERO's steps without what nobody looks at.

Stock calls `mj_forward` twice before each `mj_step`, which is a forward itself. What depends on positions and
velocities comes out the same three times and is computed once; the constraint solver starts each time from where the
last one ended, so it runs three times. The tests hold the result to stock's, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ript.core.errors import DependencyMissing
from ript.sims.libero.controller import ARM, POSITION_SCALE, ROTATION_SCALE, Arm, rotation
from ript.sims.libero.tasks import INSTALL

GRIP_SPEED = 0.01
ACTION_DIM = 7


PARTS = {
    "joint_states": 7,
    "gripper_states": 2,
    "ee_pos": 3,
    "ee_ori": 3,
    "ee_states": 6,
    "eef_pos": 3,
    "eef_axis_angle": 3,
    "gripper_qpos": 2,
}
"""Parts of the proprioception vector -> their sizes: the arm's joints (rad), the fingers (m), the gripper's position
(m) and orientation (axis times angle, rad). Recordings, QueST and OpenVLA call the same by different names."""


@cache
def kernel() -> ModuleType:
    """The module of what is compiled: half a minute where it was not before.

    Raises:
        DependencyMissing: numba is not installed, or broken.
    """
    try:
        from ript.sims.libero import kernel as module
    except Exception as error:  # loads LLVM
        raise DependencyMissing(f"numba cannot be imported ({error}): {INSTALL}") from error
    return module


class Seen:
    """What stock observes after a control step: not what is, but what was two substeps before.

    Attributes:
        qpos: positions that its pictures show, `[nq]`.
        joints: of arm and fingers, one substep later, `[9]`.
        position, quaternion: of the gripper, `[3]` m and `[4]`, w first.
        before: positions when the control step began, `[nq]`: burners glow by them.
    """

    def __init__(self, data: Any, arm: Arm):
        self._data, self._arm = data, arm
        self.observed = np.concatenate([arm.qpos_at, arm.finger_qpos])
        self.qpos, self.before, self.joints = data.qpos.copy(), data.qpos.copy(), np.zeros(ARM + 2)
        self.position, self.quaternion = np.zeros(3), np.zeros(4)

    def begin(self) -> None:
        self.before[:] = self._data.qpos

    def show(self) -> None:
        self.qpos[:] = self._data.qpos

    def read(self) -> None:
        data, arm = self._data, self._arm
        self.joints[:] = data.qpos[self.observed]
        self.position[:], self.quaternion[:] = data.site_xpos[arm.site], data.xquat[arm.hand]

    def vector(self, parts: Sequence[str]) -> np.ndarray:
        """Parts of the proprioception, one behind the other: float64."""
        return np.concatenate([self._part(name) for name in parts])

    def _part(self, name: str) -> np.ndarray:
        if name == "joint_states":
            return self.joints[:ARM]
        if name in ("gripper_states", "gripper_qpos"):
            return self.joints[ARM:]
        if name in ("ee_pos", "eef_pos"):
            return self.position
        turned = axis_angle(self.quaternion)
        return np.concatenate([self.position, turned]) if name == "ee_states" else turned


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """A quaternion, w first, of either sign -> axis times angle `[3]`, rad; the angle is up to 2 pi, as robosuite's."""
    w = min(max(float(quaternion[0]), -1.0), 1.0)
    length = math.sqrt(1.0 - w * w)
    if math.isclose(length, 0.0):
        return np.zeros(3)
    return quaternion[1:] * 2.0 * math.acos(w) / length


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that a `Physics` needs to go on from where it was.

    Attributes:
        state: MuJoCo's integration state: time, positions, velocities, controls, warm start.
        arrays: copies of what is seen, and of the controller's memory.
        fresh: whether the controller still knows the home pose alone.
    """

    state: np.ndarray
    arrays: tuple[np.ndarray, ...]
    fresh: bool


class Physics:
    """An `MjData` with a controller.

    Args:
        mujoco: the module.
        model: its fixtures' poses must be this instance's whenever it is stepped.
        arm: of the model.
        exact: with all three solves of a substep, or with one.

    Attributes:
        data: the `MjData`.
        seen: what stock observes.
    """

    def __init__(self, mujoco: Any, model: Any, arm: Arm, exact: bool = True):
        self._mujoco, self._model, self._arm = mujoco, model, arm
        self.data = mujoco.MjData(model)
        self.seen = Seen(self.data, arm)
        self._kernel = kernel()
        data = self.data
        self._qpos, self._qvel = data.qpos, data.qvel
        self._jacobian = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._now = (
            *(*self._jacobian, data.qvel, data.qpos),
            *(data.site_xpos[arm.site], data.site_xmat[arm.site], data.qM),
        )
        self._goal, self._goal_matrix = np.zeros(3), np.zeros((3, 3))
        self._grip = np.zeros(2)
        seen = self.seen
        self._memory = (
            *(seen.qpos, seen.before, seen.joints, seen.position, seen.quaternion),
            *(self._goal, self._goal_matrix, self._grip),
        )
        self._integration = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._addresses = model._address, data._address, exact
        self._targets = (data.qfrc_bias, self._goal, self._goal_matrix, arm.joints, arm.places, arm.inertia_at)
        self._fingers = (self._grip, arm.fingers, data.ctrl)
        self._shown = (data.xquat[arm.hand], seen.observed, (seen.qpos, seen.joints, seen.position, seen.quaternion))
        self._fresh = True

    def reset(self, time: float, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Set the state; the controller is that of a newly built environment."""
        mujoco, model, data, arm = self._mujoco, self._model, self.data, self._arm
        mujoco.mj_resetData(model, data)
        data.time, self._qpos[:], self._qvel[:] = time, qpos, qvel
        mujoco.mj_forward(model, data)
        self._grip[:] = 0.0
        self._goal[:], self._goal_matrix[:] = arm.home_position, arm.home_orientation.reshape(3, 3)
        self._fresh = True
        self.seen.begin()
        self.seen.show()
        self.seen.read()

    def snapshot(self) -> Snapshot:
        """All that the future and what is seen now depend on."""
        state = np.empty(self._mujoco.mj_stateSize(self._model, self._integration))
        self._mujoco.mj_getState(self._model, self.data, state, self._integration)
        return Snapshot(state, tuple(array.copy() for array in self._memory), self._fresh)

    def restore(self, snapshot: Snapshot) -> None:
        """Be what a snapshot was taken of. Poses are those of the positions, and no longer a substep older."""
        self._mujoco.mj_setState(self._model, self.data, snapshot.state, self._integration)
        self._mujoco.mj_kinematics(self._model, self.data)
        for array, kept in zip(self._memory, snapshot.arrays, strict=True):
            array[:] = kept
        self._fresh = snapshot.fresh

    def step(self, action: np.ndarray) -> None:
        """One control step of 25 physics steps: float64 `[7]`, which is clipped to [-1, 1]."""
        arm, first = self._arm, self._arm.at_home if self._fresh else self._now
        self.seen.begin()
        self._kernel.begin(*self._addresses, self._fresh, *self._jacobian, arm.site)
        self._fresh = False
        self._set_goal(np.clip(action[:6], -1.0, 1.0), first[4], first[5])
        closing = GRIP_SPEED * float(np.sign(action[6]))
        self._kernel.finish(
            *(*self._addresses, arm.site, first, self._now),
            *(*self._targets, closing, *self._fingers, *self._shown),
        )

    def _set_goal(self, action: np.ndarray, position: np.ndarray, orientation: np.ndarray) -> None:
        moved = action[:3] * POSITION_SCALE + 0.0
        turned = action[3:] * ROTATION_SCALE + 0.0
        if turned.any():
            self._goal_matrix[:] = np.dot(rotation(turned), orientation.reshape(3, 3))
        self._goal[:] = position + moved
