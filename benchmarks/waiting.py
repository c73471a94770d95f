"""Simulators that wait, for measurements and faults that need rollouts to take their time."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ript.core.interfaces import Simulator
from ript.core.types import ChunkResult


class Waiting:
    """A simulator factory whose simulators take so many seconds more for each chunk."""

    def __init__(self, make: Callable[[str], Simulator], seconds: float):
        self.make, self.seconds = make, seconds

    def __call__(self, key: str) -> Simulator:
        simulator = self.make(key)
        step = simulator.step_chunk

        def step_chunk(actions: np.ndarray) -> ChunkResult:
            time.sleep(self.seconds)
            return step(actions)

        simulator.step_chunk = step_chunk  # type: ignore[method-assign]
        return simulator
