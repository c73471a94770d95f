"""Replay demonstrations in the simulator: do they still succeed, and does the simulator still look the same?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ript.core.errors import DataError
from ript.core.interfaces import Simulator
from ript.core.simulators import opened
from ript.demos.demo_set import open_demos
from ript.demos.records import Demo


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What replaying one demonstration gave.

    Attributes:
        demo: its name in the file.
        task_key: its task.
        state_id: its initial state.
        recorded_steps: steps to success in the file.
        replayed_steps: steps to success now, or None when it did not succeed.
        pixel_difference: largest difference of any pixel of the first look, 0..255.
        proprio_difference: largest difference of the first look's proprioception.
    """

    demo: str
    task_key: str
    state_id: str
    recorded_steps: int
    replayed_steps: int | None
    pixel_difference: int
    proprio_difference: float

    @property
    def succeeded(self) -> bool:
        return self.replayed_steps is not None

    @property
    def exact(self) -> bool:
        """Success at the recorded step, and the first look equal to the last bit."""
        same_look = self.pixel_difference == 0 and self.proprio_difference == 0
        return self.replayed_steps == self.recorded_steps and same_look


def verify(path: str | Path, make_simulator: Callable[[str], Simulator]) -> Iterator[Verification]:
    """Replay every demonstration of a file from its exact initial state, with the actions that were executed.

    Args:
        path: a demonstration file.
        make_simulator: task key -> simulator, built with the file's render settings.

    Raises:
        DataError: the file cannot be read, or the simulator renders with other settings than the file's.
    """
    demos = open_demos(path)
    for task in demos.tasks:
        with opened(make_simulator(task.key)) as sim:
            if sim.spec != demos.spec:
                raise DataError(
                    f"{path} was made with {demos.spec}; the simulator of {task.key} is {sim.spec}: "
                    "build it with the settings of the file"
                )
            for entry, demo in zip(demos.select([task.key]).entries, demos.demos(task.key), strict=True):
                yield _replay(sim, entry.name, demo)


def _replay(sim: Simulator, name: str, demo: Demo) -> Verification:
    look = sim.reset(demo.initial_state)
    pixels = [np.abs(look.images[c][0].astype(int) - demo.images[c][0]).max() for c in demo.images]
    proprio = np.abs(look.proprio[0] - demo.proprio[0]).max(initial=0.0)
    replayed = None
    for step, action in enumerate(demo.executed_actions):
        if sim.step_chunk(action[None]).success:
            replayed = step + 1
            break
    return Verification(
        demo=name,
        task_key=demo.task.key,
        state_id=demo.initial_state.id,
        recorded_steps=len(demo),
        replayed_steps=replayed,
        pixel_difference=int(max(pixels, default=0)),
        proprio_difference=float(proprio),
    )
