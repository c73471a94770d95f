"""Operational-space control of the arm: torques from a goal pose, as robosuite's OSC_POSE computes them, bit for bit.

The formulas are Khatib's (1987): M the arm's inertia, J = [J_p; J_r] the Jacobian of the gripper's site,
Lambda = (J M^-1 J^T)^-1,

    torque = J^T [Lambda_p f; Lambda_r t] + gravity + N^T M (10 (q_home - q) - 2 sqrt(10) dq)
    N = 1 - M^-1 J^T Lambda J
    f = 150 (goal - position) - 2 sqrt(150) velocity,   t likewise of the orientation

The last bits depend on which routine multiplies and on how matrices lie in memory. So what robosuite compiles with
numba is compiled with numba here, matrices are Fortran-ordered where its are, and singular values go through `pinv`
although a Cholesky decomposition would do.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ript.core.errors import SimulatorError

ARM = 7
"""Joints."""
SUBSTEPS = 25
"""Physics steps in a control step."""
POSITION_SCALE, ROTATION_SCALE = 0.05, 0.5
"""Metres and radians of an action of 1."""


def rotation(turn: np.ndarray) -> np.ndarray:
    """Axis times angle (rad), not all zero -> rotation matrix `[3, 3]`."""
    angle = np.linalg.norm(turn)
    x, y, z = turn / angle * np.sin(angle / 2.0)
    return matrix(np.array([np.cos(angle / 2.0), x, y, z]))


def matrix(quaternion: np.ndarray) -> np.ndarray:
    """A quaternion, scalar part first -> rotation matrix `[3, 3]`, through single precision as robosuite's."""
    q = quaternion.astype(np.float32)
    q = (q.astype(np.float64) * math.sqrt(2.0 / float(np.dot(q, q)))).astype(np.float32)
    p = np.outer(q, q)
    d = p.astype(np.float64)
    return np.array(
        [
            [1.0 - d[2, 2] - d[3, 3], p[1, 2] - p[3, 0], p[1, 3] + p[2, 0]],
            [p[1, 2] + p[3, 0], 1.0 - d[1, 1] - d[3, 3], p[2, 3] - p[1, 0]],
            [p[1, 3] - p[2, 0], p[2, 3] + p[1, 0], 1.0 - d[1, 1] - d[2, 2]],
        ]
    )


class Arm:
    """Where a model's arm and gripper are, and what the controller knows of the home pose. Shared by all instances.

    Args:
        mujoco: the module.
        model: with an arm "robot0" and a gripper "gripper0".
        home: the arm's joints at home, `[7]` rad.
    """

    def __init__(self, mujoco: Any, model: Any, home: np.ndarray):
        joints = [model.joint(f"robot0_joint{i}") for i in range(1, ARM + 1)]
        fingers = [model.joint(f"gripper0_finger_joint{i}") for i in (1, 2)]
        self.qpos_at = np.array([int(j.qposadr[0]) for j in joints])
        self.dof_at = np.array([int(j.dofadr[0]) for j in joints])
        self.finger_qpos = np.array([int(j.qposadr[0]) for j in fingers])
        self.finger_dof = np.array([int(j.dofadr[0]) for j in fingers])
        self.site = int(model.site("gripper0_grip_site").id)
        self.hand = int(model.body("robot0_right_hand").id)
        self.home = np.array(home, np.float64)
        actuators = np.array([int(model.actuator(f"robot0_torq_j{i}").id) for i in range(1, ARM + 1)])
        self.joints = np.stack([self.home, *model.actuator_ctrlrange[actuators].T])
        self.places = np.stack([self.qpos_at, self.dof_at, actuators])
        self.fingers = np.array([self._finger(model, i, sign) for i, sign in ((1, -1.0), (2, 1.0))])
        self.inertia_at = self._entries(mujoco, model)
        self._at_home(mujoco, model)

    @staticmethod
    def _finger(model: Any, number: int, sign: float) -> tuple[float, float, float, float]:
        """(which way it goes when the gripper closes, its actuator, middle and half of the actuator's range)."""
        actuator = int(model.actuator(f"gripper0_gripper_finger_joint{number}").id)
        low, high = (float(x) for x in model.actuator_ctrlrange[actuator])
        return sign, float(actuator), 0.5 * (high + low), 0.5 * (high - low)

    def _entries(self, mujoco: Any, model: Any) -> np.ndarray:
        """Where the entries of the arm's mass matrix lie in the sparse one."""
        full = np.zeros((model.nv, model.nv))
        mujoco.mj_fullM(model, full, np.arange(1, model.nM + 1, dtype=np.float64))
        entries = full[np.ix_(self.dof_at, self.dof_at)].astype(np.int64) - 1
        if (entries < 0).any():
            raise SimulatorError(
                "LIBERO: the arm's joints are no chain, so its mass matrix cannot be read from the sparse one"
            )
        return entries

    def _at_home(self, mujoco: Any, model: Any) -> None:
        data = mujoco.MjData(model)
        data.qpos[self.qpos_at] = self.home
        mujoco.mj_forward(model, data)
        jacp, jacr = np.zeros((3, model.nv)), np.zeros((3, model.nv))
        mujoco.mj_jacSite(model, data, jacp, jacr, self.site)
        self.home_position, self.home_orientation = data.site_xpos[self.site].copy(), data.site_xmat[self.site].copy()
        self.at_home = (
            *(jacp, jacr, data.qvel.copy(), data.qpos.copy()),
            *(self.home_position, self.home_orientation, data.qM.copy()),
        )
