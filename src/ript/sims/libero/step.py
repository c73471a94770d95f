"""One instance's physics: stock LIBERO's steps without what nobody looks at.

Stock calls `mj_forward` twice before each `mj_step`, which is a forward itself. What depends on positions and
velocities comes out the same three times and is computed once; the constraint solver starts each time from where the
last one ended, so it runs three times. The tests hold the result to stock's, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ript.sims.libero.controller import ARM, POSITION_SCALE, ROTATION_SCALE, Arm, kernel, rotation

SUBSTEPS = 25
SEEN = 23
"""Stock's pictures and the gripper's pose are of the kinematics after so many substeps, joints of one later."""
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
        self._observed = np.concatenate([arm.qpos_at, arm.finger_qpos])
        self.qpos, self.before, self.joints = data.qpos.copy(), data.qpos.copy(), np.zeros(ARM + 2)
        self.position, self.quaternion = np.zeros(3), np.zeros(4)

    def begin(self) -> None:
        self.before[:] = self._data.qpos

    def show(self) -> None:
        self.qpos[:] = self._data.qpos

    def read(self) -> None:
        data, arm = self._data, self._arm
        self.joints[:] = data.qpos[self._observed]
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
        self._torques = kernel()
        self._jacp, self._jacr = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        self._position, self._orientation = self.data.site_xpos[arm.site], self.data.site_xmat[arm.site]
        self._qpos, self._qvel, self._inertia = self.data.qpos, self.data.qvel, self.data.qM
        self._bias, self._ctrl = self.data.qfrc_bias, self.data.ctrl
        self._goal, self._goal_matrix = np.zeros(3), np.zeros((3, 3))
        self._grip = np.zeros(2)
        seen = self.seen
        self._memory = (
            *(seen.qpos, seen.before, seen.joints, seen.position, seen.quaternion),
            *(self._goal, self._goal_matrix, self._grip),
        )
        self._integration = int(mujoco.mjtState.mjSTATE_INTEGRATION)
        self._substep = self._exact if exact else self._inexact
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
        """One control step of `SUBSTEPS` physics steps: float64 `[7]`, which is clipped to [-1, 1]."""
        self.seen.begin()
        closing = GRIP_SPEED * float(np.sign(action[6]))
        arm: np.ndarray | None = np.clip(action[:6], -1.0, 1.0)
        for k in range(SUBSTEPS):
            if k == SEEN:
                self.seen.show()
            elif k == SEEN + 1:
                self.seen.read()
            self._substep(arm, closing)
            arm = None

    def _set_goal(self, action: np.ndarray, position: np.ndarray, orientation: np.ndarray) -> None:
        moved = action[:3] * POSITION_SCALE + 0.0
        turned = action[3:] * ROTATION_SCALE + 0.0
        if turned.any():
            self._goal_matrix[:] = np.dot(rotation(turned), orientation.reshape(3, 3))
        self._goal[:] = position + moved

    def _exact(self, action: np.ndarray | None, closing: float) -> None:
        mujoco, model, data = self._mujoco, self._model, self.data
        mujoco.mj_fwdPosition(model, data)
        mujoco.mj_fwdVelocity(model, data)
        mujoco.mj_fwdActuation(model, data)
        mujoco.mj_fwdAcceleration(model, data)
        mujoco.mj_fwdConstraint(model, data)
        if not self._fresh:
            mujoco.mj_fwdConstraint(model, data)
        self._control(action, closing)
        mujoco.mj_fwdActuation(model, data)
        mujoco.mj_fwdAcceleration(model, data)
        mujoco.mj_fwdConstraint(model, data)
        mujoco.mj_Euler(model, data)

    def _inexact(self, action: np.ndarray | None, closing: float) -> None:
        mujoco, model, data = self._mujoco, self._model, self.data
        mujoco.mj_step1(model, data)
        self._control(action, closing)
        mujoco.mj_step2(model, data)

    def _control(self, action: np.ndarray | None, closing: float) -> None:
        arm = self._arm
        if self._fresh:  # stock still has what it knew when it was built
            jacp, jacr, qvel, qpos = arm.home_jacp, arm.home_jacr, arm.home_qvel, arm.home_qpos
            position, orientation, inertia = arm.home_position, arm.home_orientation, arm.home_inertia
            self._fresh = False
        else:
            jacp, jacr, qvel, qpos = self._jacp, self._jacr, self._qvel, self._qpos
            self._mujoco.mj_jacSite(self._model, self.data, jacp, jacr, arm.site)
            position, orientation, inertia = self._position, self._orientation, self._inertia
        if action is not None:
            self._set_goal(action, position, orientation)
        self._torques(
            *(jacp, jacr, qvel, qpos, position, orientation, inertia, self._bias),
            *(self._goal, self._goal_matrix, arm.joints, arm.places, arm.inertia_at),
            *(closing, self._grip, arm.fingers, self._ctrl),
        )
