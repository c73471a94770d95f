"""Every task by its key, "suite/name"."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from ript.core.errors import ConfigError, RiptError, UnknownNameError
from ript.core.interfaces import Simulator
from ript.core.plugins import Suite
from ript.core.registry import suites
from ript.core.types import Task


def list_tasks() -> tuple[Task, ...]:
    """All tasks of all suites that can be imported, with their default horizons."""
    found, _ = listing_suites()
    return tuple(task for suite in found.values() for task in suite.tasks())


def listing_suites() -> tuple[dict[str, Suite], dict[str, RiptError]]:
    """(suite by name, name -> why its tasks cannot be listed) of everything that claims to be a suite."""
    found, broken = suites.all()
    for name, suite in list(found.items()):
        try:
            suite.tasks(), suite.lists()
        except RiptError as error:
            broken[name] = error
            del found[name]
    return found, broken


def keys_elsewhere(name: str, but: str = "") -> list[str]:
    """Keys of what a name without its suite means in suites other than `but`; `PACKAGE:ID` is imported for that."""
    keys = []
    for suite in listing_suites()[0].values():
        if suite.name != but:
            with suppress(RiptError):
                keys.append(suite.task(name).key)
    return keys


def find_task(key: str) -> Task:
    """The task of a key; the suite may be left out where the name is in one suite only.

    Raises:
        UnknownNameError: no such task; the nearest are suggested.
        DependencyMissing: its suite cannot be imported.
    """
    name, slash, _ = key.partition("/")
    if slash and name in suites.names():
        return suites.get(name).task(key)
    tasks = list_tasks()
    for task in tasks:
        if key == task.name:
            return task
    raise UnknownNameError("task", key, keys_elsewhere(key) or [task.key for task in tasks], suite_to_install(key))


def suite_to_install(key: str) -> str:
    """What can be done about the key of a task whose suite is not here, in words; empty for one without a suite."""
    name, slash, _ = key.partition("/")
    return f"install the package that brings a suite {name!r}" if slash and name not in suites.names() else ""


def make_simulator(key: str, **settings: Any) -> Simulator:
    """A new simulator for "metaworld/drawer-open-v3", "toy/reach", ...

    Args:
        key: suite and task.
        settings: fields of the suite's options, such as `horizon` or `image_size`.

    Raises:
        UnknownNameError: no such task or setting.
        ConfigError: a setting at a value that cannot be.
        DependencyMissing: the suite's packages are not installed.
    """
    if not isinstance(key, str):
        raise ConfigError(f"a simulator is named by suite and task, SUITE/NAME (see `ript tasks`); got {key!r}")
    task = find_task(key)
    suite = suites.get(task.suite)
    return suite.make(task.key, suite.options(**settings))
