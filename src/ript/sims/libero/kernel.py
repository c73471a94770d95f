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
    home: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    qpos_at: np.ndarray,
    dof_at: np.ndarray,
    inertia_at: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write the arm's torques (Nm) into `out[:7]`. For numba.

    Args:
        jacp, jacr: Jacobian of the site, `[3, nv]` each.
        qvel, qpos: of the whole model.
        position, orientation: of the site: `[3]` m, and a matrix, row by row, `[9]`.
        inertia: sparse mass matrix of the model, as MuJoCo has it.
        bias: forces to compensate, `[nv]`.
        goal, goal_matrix: `[3]` m, `[3, 3]`.
        home: joints that the null space is pulled to, `[7]` rad.
        low, high: of torques, `[7]`.
        qpos_at, dof_at: where the arm's joints are, `[7]`.
        inertia_at: where the entries of the arm's mass matrix are, `[7, 7]`.
    """
    n = 7
    j_position, j_rotation, j_full = np.empty((n, 3)).T, np.empty((n, 3)).T, np.empty((n, 6)).T
    mass = np.empty((n, n)).T
    q, dq = np.empty(n), np.empty(n)
    for j in range(n):
        dof = dof_at[j]
        q[j], dq[j] = qpos[qpos_at[j]], qvel[dof]
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
    posture = np.dot(mass, (10 * (home - q) - np.sqrt(10) * 2 * dq))
    pulled = np.dot(nullspace.transpose(), posture)
    for j in range(n):
        out[j] = min(max((total[j] + bias[dof_at[j]]) + pulled[j], low[j]), high[j])
