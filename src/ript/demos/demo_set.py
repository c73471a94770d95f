"""Demonstrations of one or several files as one set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ript.core import arguments
from ript.core.errors import DataError, UnknownNameError
from ript.core.types import SimulatorSpec, Task, differing
from ript.demos.formats.hdf5 import DemoEntry, DemoFile, open_file
from ript.demos.records import Demo


@dataclass(frozen=True, slots=True)
class DemoSet:
    """Demonstrations that were all rendered alike; nothing but the index is in memory.

    Attributes:
        files: where they lie.
        entries: all demonstrations, file by file.
    """

    files: tuple[DemoFile, ...]
    entries: tuple[DemoEntry, ...]

    @property
    def spec(self) -> SimulatorSpec:
        """What the simulator showed and took, the same for all."""
        return self.files[0].spec

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Distinct tasks, in order of first appearance."""
        return tuple({entry.task.key: entry.task for entry in self.entries}.values())

    def __len__(self) -> int:
        return len(self.entries)

    def select(self, task_keys: Sequence[str], per_task: int | None = None) -> DemoSet:
        """Only these tasks, and of each the first `per_task` demonstrations (default: all).

        Raises:
            UnknownNameError: a task has no demonstration here.
            DataError: a task has fewer than `per_task`.
        """
        chosen: list[DemoEntry] = []
        for key in arguments.words("task_keys", task_keys):
            of_task = [entry for entry in self.entries if entry.task.key == key]
            if not of_task:
                raise _no_demonstration(self, key)
            if per_task is not None and len(of_task) < per_task:
                raise DataError(
                    f"{_names(self.files)}: {len(of_task)} demonstrations of {key}; expected at least {per_task}: "
                    "collect more with `ript demos collect --per-task`"
                )
            chosen += of_task[:per_task]
        return DemoSet(self.files, tuple(chosen))

    def demos(self, task_key: str | None = None) -> Iterator[Demo]:
        """Read the demonstrations (of one task), one at a time, in order.

        Raises:
            DataError: no demonstration of that task, or a damaged file.
        """
        entries = self.entries if task_key is None else self.select([task_key]).entries
        for file in self.files:
            yield from file.load([entry for entry in entries if entry.path == file.path])

    def info(self) -> dict[str, Any]:
        """A JSON document: per file how it was made, per task how many, how long and how many tries."""
        return {
            "files": [
                {
                    "path": str(file.path),
                    "bytes": file.path.stat().st_size,
                    "demos": len(file.entries),
                    "settings": dict(file.settings),
                    "versions": dict(file.versions),
                }
                for file in self.files
            ],
            "cameras": {name: list(size) for name, size in self.spec.cameras.items()},
            "render": dict(self.spec.render),
            "tasks": {task.key: _summary(e for e in self.entries if e.task.key == task.key) for task in self.tasks},
        }


def open_demos(paths: str | Path | Sequence[str | Path]) -> DemoSet:
    """Open one or several demonstration files.

    Raises:
        DataError: a file is missing, damaged or foreign, or two files were rendered differently.
    """
    given = arguments.places("demos", paths)
    if not given:
        raise DataError("no demonstration file was given; make one with `ript demos collect`")
    once: dict[Path, Path] = {}
    for path in given:
        once.setdefault(path.expanduser().resolve(), path)
    files = tuple(open_file(path) for path in once.values())
    for file in files[1:]:
        if file.spec != files[0].spec:
            raise DataError(
                f"{file.path} was rendered differently from {files[0].path}: expected "
                f"{_difference(files[0].spec, file.spec)}; collect one of them again with the settings of the other"
            )
    return DemoSet(files, tuple(entry for file in files for entry in file.entries))


def _summary(entries: Iterable[DemoEntry]) -> dict[str, Any]:
    entries = list(entries)
    lengths = [entry.steps for entry in entries]
    return {
        "instruction": entries[0].task.instruction,
        "demos": len(entries),
        "steps": {"total": sum(lengths), "min": min(lengths), "max": max(lengths)},
        "looks": sum(entry.looks for entry in entries),
        "tries": sum(entry.tries for entry in entries),
    }


def _no_demonstration(demos: DemoSet, key: str) -> DataError:
    hint = UnknownNameError("task", key, [task.key for task in demos.tasks])
    there = ", ".join(task.key for task in demos.tasks)
    return DataError(f"{_names(demos.files)}: no demonstration of {key}; there are {there} ({hint})")


def _names(files: Sequence[DemoFile]) -> str:
    return ", ".join(str(file.path) for file in files)


def _difference(expected: SimulatorSpec, got: SimulatorSpec) -> str:
    """The settings in which two specs differ, as "name = x, got y"."""
    parts = []
    for name in ("suite", "cameras", "action_dim"):
        if (want := getattr(expected, name)) != (have := getattr(got, name)):
            parts.append(f"{name} = {want}, got {have}")
    if expected.proprio != got.proprio:
        parts.append(f"proprio = {dict(expected.proprio)}, got {dict(got.proprio)}")
    parts.append(differing(expected.render, got.render, "render."))
    parts.append(differing(expected.unseen, got.unseen, "unseen."))
    return "; ".join(filter(None, parts))
