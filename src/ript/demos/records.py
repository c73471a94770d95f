"""One demonstration, whole and in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ript.core.types import InitialState, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One successful demonstration of T steps, looked at N times; the last step brought success.

    Attributes:
        initial_state: where it starts; replaying `executed_actions` from there gives the same trajectory.
        actions: float32 `[T, A]` in [-1, 1], the expert's clean answer to the state before step t: the training label.
        executed_actions: float32 `[T, A]` in [-1, 1], what the simulator was really given (noise included).
        frame_steps: int64 `[N]`, increasing; look n was taken before step `frame_steps[n]`.
        images: camera -> uint8 `[N, h, w, 3]`.
        proprio: float32 `[N, P]`, simulator units.
        privileged: float32 `[N, O]`, object state, metres; or None.
        tries: attempts spent on it: the failed ones since the demonstration before it, and itself.
    """

    initial_state: InitialState
    actions: np.ndarray
    executed_actions: np.ndarray
    frame_steps: np.ndarray
    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    privileged: np.ndarray | None
    tries: int

    @property
    def task(self) -> Task:
        return self.initial_state.task

    def __len__(self) -> int:
        """The number of steps, T."""
        return len(self.actions)
