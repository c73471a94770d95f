"""A control step as one call of machine code: physics by MuJoCo's C functions, torques of the arm between them.

Nothing else is in this file: when it changes, it is compiled again (half a minute, once). Importing it needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
import mujoco
import numba
import numpy as np
from numba import types

from ript.core.errors import RunError
from ript.core.places import cache_folder
from ript.sims.libero.controller import SUBSTEPS

SEEN = 23
"""Stock's pictures and the gripper's pose are of the kinematics after so many substeps, joints of one later."""


def compiled(function: Callable[..., None]) -> Any:
    """A function for numba, read from the cache where it was compiled before."""
    try:
        folder = str(cache_folder() / "libero" / "numba")
    except RunError:  # no home folder: compiled in each process
        return numba.njit(function)
    # numba would keep what it compiled beside this file, or in the user's home; it looks where when it decorates.
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, folder
    try:
        return numba.njit(function, cache=True)
    except (RuntimeError, OSError):  # nowhere to write
        return numba.njit(function)
    finally:
        config.CACHE_DIR = before


def _of_mujoco(name: str, *more: types.Type) -> Any:
    """A C function that takes model, data and more, and gives nothing."""
    return types.ExternalFunction(name, types.void(types.intp, types.intp, *more))


for _library in Path(mujoco.__file__).parent.iterdir():
    if _library.name.startswith(("libmujoco.", "mujoco.dll")):
        llvmlite.binding.load_library_permanently(str(_library))

mj_fwdPosition = _of_mujoco("mj_fwdPosition")
mj_fwdVelocity = _of_mujoco("mj_fwdVelocity")
mj_fwdActuation = _of_mujoco("mj_fwdActuation")
mj_fwdAcceleration = _of_mujoco("mj_fwdAcceleration")
mj_fwdConstraint = _of_mujoco("mj_fwdConstraint")
mj_Euler = _of_mujoco("mj_Euler")
mj_step1 = _of_mujoco("mj_step1")
mj_step2 = _of_mujoco("mj_step2")
mj_jacSite = _of_mujoco("mj_jacSite", types.intp, types.intp, types.intc)


@compiled
def torques(
    jacp: np.ndarray,
    jacr: np.ndarray,
    qvel: np.ndarray,
    qpos: np.ndarray,
    position: np.ndarray,
    orientation: np.ndarray,
    inertia: np.ndarray,
    bias: np.ndarray,
    goal: np.ndarray,
    goal_matrix: np.ndarray,
    joints: np.ndarray,
    places: np.ndarray,
    inertia_at: np.ndarray,
    closing: float,
    grip: np.ndarray,
    fingers: np.ndarray,
    ctrl: np.ndarray,
) -> None:
    """Write the arm's torques (Nm) and where the fingers are pulled into `ctrl`.

    Args:
        jacp, jacr: Jacobian of the site, `[3, nv]` each.
        qvel, qpos: of the whole model.
        position, orientation: of the site: `[3]` m, and a matrix, row by row, `[9]`.
        inertia: sparse mass matrix of the model, as MuJoCo has it.
        bias: forces to compensate, `[nv]`.
        goal, goal_matrix: `[3]` m, `[3, 3]`.
        joints: where the null space is pulled to (rad), lowest and highest torque, `[3, 7]`.
        places: of the arm's joints in positions, in velocities, and of their actuators, `[3, 7]`.
        inertia_at: where the entries of the arm's mass matrix are, `[7, 7]`.
        closing: how much the gripper closes in a substep, of its whole way.
        grip: how far its fingers have been told to go, `[2]`, -1 to 1; brought up to date.
        fingers: which way each goes, its actuator, middle and half of the actuator's range, `[2, 4]`.
    """
    n = 7
    j_position, j_rotation, j_full = np.empty((n, 3)).T, np.empty((n, 3)).T, np.empty((n, 6)).T
    mass = np.empty((n, n)).T
    q, dq = np.empty(n), np.empty(n)
    for j in range(n):
        dof = places[1, j]
        q[j], dq[j] = qpos[places[0, j]], qvel[dof]
        for i in range(3):
            j_position[i, j] = j_full[i, j] = jacp[i, dof]
            j_rotation[i, j] = j_full[i + 3, j] = jacr[i, dof]
        for i in range(n):
            mass[i, j] = inertia[inertia_at[i, j]]
    velocity, turning = np.dot(jacp, qvel), np.dot(jacr, qvel)

    error = np.zeros(3)
    for k in range(3):
        a0, a1, a2 = orientation[k], orientation[3 + k], orientation[6 + k]
        b0, b1, b2 = goal_matrix[0, k], goal_matrix[1, k], goal_matrix[2, k]
        error[0] += a1 * b2 - a2 * b1
        error[1] += a2 * b0 - a0 * b2
        error[2] += a0 * b1 - a1 * b0
    error = 0.5 * error
    kd = 2 * np.sqrt(150.0) * 1
    force = (goal - position) * 150.0 + (-velocity) * kd
    torque = error * 150.0 + (-turning) * kd

    mass_inv = np.linalg.inv(mass)
    full_inv = np.dot(np.dot(j_full, mass_inv), j_full.transpose())
    position_inv = np.dot(np.dot(j_position, mass_inv), j_position.transpose())
    rotation_inv = np.dot(np.dot(j_rotation, mass_inv), j_rotation.transpose())
    full = np.linalg.pinv(full_inv)
    wrench = np.empty(6)
    wrench[:3] = np.dot(np.linalg.pinv(position_inv), force)
    wrench[3:] = np.dot(np.linalg.pinv(rotation_inv), torque)
    jbar = np.dot(mass_inv, j_full.transpose()).dot(full)
    nullspace = np.eye(n, n) - np.dot(jbar, j_full)

    total = np.dot(j_full.T, wrench)
    posture = np.dot(mass, (10 * (joints[0] - q) - np.sqrt(10) * 2 * dq))
    pulled = np.dot(nullspace.transpose(), posture)
    for j in range(n):
        ctrl[places[2, j]] = min(max((total[j] + bias[places[1, j]]) + pulled[j], joints[1, j]), joints[2, j])
    for i in range(2):
        grip[i] = min(max(grip[i] + fingers[i, 0] * closing, -1.0), 1.0)
        ctrl[int(fingers[i, 1])] = fingers[i, 2] + fingers[i, 3] * grip[i]


@compiled
def begin(model: int, data: int, exact: bool, fresh: bool, jacp: np.ndarray, jacr: np.ndarray, site: int) -> None:
    """The first half of a substep: up to where the controller looks.

    Args:
        model, data: addresses.
        exact: with stock's solves, or with one a substep.
        fresh: it is the first substep after a reset, in which the controller still knows the home pose alone.
        jacp, jacr: where the Jacobian of the gripper's site is written, `[3, nv]` each; left as they are when fresh.
        site: its number.
    """
    if exact:
        mj_fwdPosition(model, data)
        mj_fwdVelocity(model, data)
        mj_fwdActuation(model, data)
        mj_fwdAcceleration(model, data)
        mj_fwdConstraint(model, data)
        if not fresh:
            mj_fwdConstraint(model, data)
    else:
        mj_step1(model, data)
    if not fresh:
        mj_jacSite(model, data, jacp.ctypes.data, jacr.ctypes.data, site)


@compiled
def finish(
    model: int,
    data: int,
    exact: bool,
    site: int,
    first: tuple,
    now: tuple,
    bias: np.ndarray,
    goal: np.ndarray,
    goal_matrix: np.ndarray,
    joints: np.ndarray,
    places: np.ndarray,
    inertia_at: np.ndarray,
    closing: float,
    grip: np.ndarray,
    fingers: np.ndarray,
    ctrl: np.ndarray,
    hand: np.ndarray,
    observed: np.ndarray,
    seen: tuple,
) -> None:
    """The rest of a control step, after `begin` and with the goal set: the first substep's second half, and 24 more.

    Args:
        model, data, exact, site: see `begin`.
        first, now: what the controller knows in the first substep, and in the others: the first seven arguments of
            `torques`.
        bias, goal, goal_matrix, joints, places, inertia_at, closing, grip, fingers, ctrl: see `torques`.
        hand: orientation of the gripper's body, `[4]`.
        observed: places in the positions of arm and fingers, `[9]`.
        seen: what stock observes, written: positions `[nq]`, joints `[9]`, position `[3]` and orientation `[4]` of the
            gripper.
    """
    for k in range(SUBSTEPS):
        if k == SEEN:
            seen[0][:] = now[3]
        elif k == SEEN + 1:
            for i in range(len(observed)):
                seen[1][i] = now[3][observed[i]]
            seen[2][:] = now[4]
            seen[3][:] = hand
        jacp, jacr, qvel, qpos, position, orientation, inertia = first
        if k > 0:
            jacp, jacr, qvel, qpos, position, orientation, inertia = now
            begin(model, data, exact, False, jacp, jacr, site)
        torques(
            jacp,
            jacr,
            qvel,
            qpos,
            position,
            orientation,
            inertia,
            bias,
            goal,
            goal_matrix,
            joints,
            places,
            inertia_at,
            closing,
            grip,
            fingers,
            ctrl,
        )
        if exact:
            mj_fwdActuation(model, data)
            mj_fwdAcceleration(model, data)
            mj_fwdConstraint(model, data)
            mj_Euler(model, data)
        else:
            mj_step2(model, data)
