"""Every task by its key, "suite/name"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ript.core.errors import ConfigError, UnknownNameError
from ript.core.interfaces import Simulator
from ript.core.types import Task
from ript.sims.metaworld.simulator import make_metaworld, metaworld_tasks
from ript.sims.toy import make_toy, toy_tasks

Maker = Callable[..., Simulator]
SUITES: dict[str, tuple[Maker, Callable[[], tuple[Task, ...]]]] = {
    "metaworld": (make_metaworld, metaworld_tasks),
    "toy": (make_toy, toy_tasks),
}


def list_tasks() -> tuple[Task, ...]:
    """All tasks of all suites, with their default horizons."""
    return tuple(task for _, tasks in SUITES.values() for task in tasks())


def find_task(key: str) -> Task:
    """The task of a key; the suite may be left out where the name is in one suite only.

    Raises:
        UnknownNameError: no such task; the nearest are suggested.
    """
    tasks = list_tasks()
    for task in tasks:
        if key in (task.key, task.name):
            return task
    raise UnknownNameError("task", key, [task.key for task in tasks])


def make_simulator(key: str, **settings: Any) -> Simulator:
    """A new simulator for "metaworld/drawer-open-v3", "toy/reach", ...

    Args:
        key: suite and task.
        settings: of the suite's simulator, such as `horizon` or `image_size`.

    Raises:
        UnknownNameError: no such task.
        ConfigError: no such setting.
        DependencyMissing: the suite's packages are not installed.
    """
    if not isinstance(key, str):
        raise ConfigError(f'a simulator is named by suite and task, such as "toy/reach"; got {key!r}')
    task = find_task(key)
    try:
        return SUITES[task.suite][0](task.key, **settings)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(f"simulators of suite {task.suite} have no such setting: {error}") from error
