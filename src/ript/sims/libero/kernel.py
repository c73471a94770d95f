"""Torques of the arm, for numba. Nothing else is in this file: when it changes, they are compiled again."""

from __future__ import annotations

import numpy as np


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
    """Write the arm's torques (Nm) and where the fingers are pulled into `ctrl`. For numba.

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
