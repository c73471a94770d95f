"""Initial states of demonstrations, for post-training to practise on."""

from __future__ import annotations

from collections.abc import Sequence

from ript.core.types import InitialState
from ript.demos.demo_set import DemoSet


def demo_initial_states(demos: DemoSet, task_keys: Sequence[str] | None = None) -> list[InitialState]:
    """Distinct initial states (origin "demo") of the demonstrations of these tasks (default: all), in order.

    Reads no picture.

    Raises:
        DataError: a task has no demonstration, or a file is damaged.
    """
    chosen = demos if task_keys is None else demos.select(task_keys)
    states = [
        state
        for file in chosen.files
        for state in file.initial_states([entry for entry in chosen.entries if entry.path == file.path])
    ]
    return list({state.id: state for state in states}.values())
