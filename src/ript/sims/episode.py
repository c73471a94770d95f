"""What every simulator looks at before it does what it is asked: is there an episode, is the state its own, can these
be actions."""

from __future__ import annotations

import numpy as np

from ript.core.errors import SimulatorError
from ript.core.types import InitialState, Task


def address(task: Task, state: InitialState | None, step: int) -> str:
    """Where in an episode something happened, for messages: task, initial state and steps executed."""
    return f"{task.key}, initial state {state.id if state else None}, step {step}"


def require_own(task: Task, state: InitialState) -> None:
    """Raise `SimulatorError` unless the initial state is of this task."""
    if state.task.key != task.key:
        raise SimulatorError(f"{task.key}: initial state {state.id} is of {state.task.key}")


def require_fit(task: Task, state: InitialState, problem: str) -> None:
    """Raise `SimulatorError` if there is a problem with the numbers of an initial state, in words."""
    if problem:
        raise SimulatorError(f"{task.key}: initial state {state.id} does not fit: {problem}")


def require_begun(task: Task, state: InitialState | None) -> None:
    """Raise `SimulatorError` unless there was a reset, to this state."""
    if state is None:
        raise SimulatorError(f"{task.key}: looked at before reset")


def checked_actions(actions: np.ndarray, size: int, where: str, *, begun: bool, over: bool) -> np.ndarray:
    """Actions of a chunk, if they can be executed now.

    Args:
        actions: `[H, A]`.
        size: A, numbers of an action.
        where: address of the moment.
        begun: whether there was a reset.
        over: whether the episode is over, or there is none.

    Returns:
        the actions.

    Raises:
        SimulatorError: no episode is going on, or they have another shape, or are not finite.
    """
    if over:
        raise SimulatorError(f"{where}: stepped {'after the episode was over' if begun else 'before reset'}")
    if actions.ndim != 2 or actions.shape[1] != size or len(actions) == 0:
        raise SimulatorError(f"{where}: expected actions [H, {size}], got {list(actions.shape)}")
    if not np.isfinite(actions).all():
        raise SimulatorError(f"{where}: actions are not finite: {actions.tolist()}")
    return actions
