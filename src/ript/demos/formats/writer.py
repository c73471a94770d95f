"""Writes demonstration files; `hdf5` describes the layout and reads them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py

from ript.core.disk import cannot_write
from ript.core.errors import DataError
from ript.core.files import atomic_file, expanded
from ript.core.places import require_replaceable
from ript.core.registry import simulator_versions
from ript.core.types import SimulatorSpec
from ript.demos.formats.hdf5 import FORMAT, FORMAT_VERSION, is_demo_file, uninterrupted
from ript.demos.records import Demo

_CHUNK_BYTES = 1 << 18
_VERSIONED = ("ript", "numpy", "h5py")


class DemoWriter:
    """Writes demonstrations one by one beside the target, and moves the file to its name when all are in.

    A context manager: leaving it by an exception (Ctrl-C too) removes what was written and leaves an older file of the
    same name as it was.

    Args:
        path: the file to make.
        settings: how the demonstrations were made (seed, noise, ...), plain values.

    Raises:
        DataError: the file cannot be written: no permission, disk full.
        RunError: it would replace something else than a demonstration file.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, object]):
        self.path = expanded(path)
        require_replaceable(self.path, "a demonstration file of ript", is_demo_file)
        self._open = contextlib.ExitStack()
        self._settings = settings
        self._spec: SimulatorSpec | None = None
        self._samples = 0
        self._count = 0

    def __enter__(self) -> DemoWriter:
        with contextlib.ExitStack() as opening:
            with uninterrupted():
                temporary = opening.enter_context(atomic_file(self.path, DataError))
                self._disk = opening.enter_context(_Disk(temporary, "w+b"))
                self._file = opening.enter_context(h5py.File(self._disk, "w", libver="latest"))
                self._file.create_group("data")
            self._open = opening.pop_all()
        return self

    def add(self, index: int, demo: Demo, spec: SimulatorSpec) -> None:
        """Append `demo` as `data/demo_<index>`; `spec` is of the simulator it was made in, the same for all."""
        if self._spec is None:
            self._spec = spec
        elif spec != self._spec:
            raise DataError(
                f"{self.path}: demonstrations of one file must be rendered alike, but {demo.task.key} comes with "
                f"{spec.to_json()}; expected {self._spec.to_json()}"
            )
        with uninterrupted():
            _write_demo(self._file.create_group(f"data/demo_{index}"), demo)
        self._check()
        self._samples += len(demo)
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with uninterrupted():
            if kind is not None:
                self._open.__exit__(kind, error, trace)
                return
            with self._open:
                self._finish()

    def _finish(self) -> None:
        if self._spec is None:
            raise DataError(f"{self.path}: no demonstration to write")
        self._file["data"].attrs.update(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            versions=json.dumps(_versions() | simulator_versions(self._spec.suite)),
            spec=json.dumps(self._spec.to_json()),
            settings=json.dumps(dict(self._settings)),
            total=self._samples,
            num_demos=self._count,
        )
        self._file.close()
        self._check()

    def _check(self) -> None:
        if self._disk.error:
            raise cannot_write(self.path, self._disk.error, DataError) from self._disk.error


class _Disk(io.FileIO):
    """A file that keeps its first write error instead of raising it.

    HDF5 2.0 writes again and again, and crashes the process, when a write fails while a file is being closed. So it is
    told that all is well; the writer looks at `error` and gives up.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and not self.error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


def _write_demo(group: h5py.Group, demo: Demo) -> None:
    task, state = demo.task, demo.initial_state
    group.attrs.update(
        task_suite=task.suite,
        task_name=task.name,
        task_instruction=task.instruction,
        task_index=task.index,
        task_horizon=task.horizon,
        state_id=state.id,
        state_label=state.label,
        tries=demo.tries,
        num_samples=len(demo),
        num_looks=len(demo.frame_steps),
    )
    small = {"actions": demo.actions, "executed_actions": demo.executed_actions, "states": state.state[None]}
    small |= {"obs/proprio": demo.proprio, "obs/frame_steps": demo.frame_steps}
    if demo.privileged is not None:
        small["obs/privileged"] = demo.privileged
    for key, array in small.items():
        checked = {"chunks": array.shape, "fletcher32": True} if array.size else {}
        group.create_dataset(key, data=array, track_times=False, **checked)
    for camera, frames in demo.images.items():
        rows = max(1, min(len(frames), _CHUNK_BYTES // frames[0].nbytes))
        group.create_dataset(
            f"obs/{camera}_rgb",
            data=frames,
            chunks=(rows, *frames.shape[1:]),
            compression="gzip",
            compression_opts=1,  # carries its own checksum
            track_times=False,
        )


def _versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
