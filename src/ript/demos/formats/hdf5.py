"""Demonstration files: HDF5 in the layout of robomimic.

    data                      attrs: format, format_version, versions, spec, settings, total, num_demos
    data/demo_i               attrs: task_*, state_id, state_label, tries, num_samples,
                                 num_looks
        actions               float32 [T, A]    the expert's clean answers: training labels
        executed_actions      float32 [T, A]    what the simulator was given: replay these
        states                float64 [1, S]    the initial state
        obs/<camera>_rgb      uint8   [N, h, w, 3]
        obs/proprio           float32 [N, P]
        obs/privileged        float32 [N, O]    optional
        obs/frame_steps       int64   [N]       look n was taken before step frame_steps[n]

`versions`, `spec` and `settings` are JSON. Images are compressed and every dataset carries checksums. A file appears
under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import h5py
import numpy as np

from ript.core.disk import cannot_read, reading, refused
from ript.core.documents import json_value
from ript.core.errors import ConfigError, DataError
from ript.core.files import expanded, require_content
from ript.core.types import InitialState, SimulatorSpec, Task
from ript.demos.records import Demo

FORMAT = "ript-demos"
FORMAT_VERSION = 2
"""What is written: since 2 the spec has the parts of the proprioception by name."""
READABLE = (1, FORMAT_VERSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoEntry:
    """What is known of a demonstration without reading its arrays.

    Attributes:
        path: the file.
        name: its group, "demo_3".
        task: the task.
        state_id: id of its initial state.
        steps: T.
        looks: N.
        tries: attempts spent on it.
    """

    path: Path
    name: str
    task: Task
    state_id: str
    steps: int
    looks: int
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFile:
    """One open-on-demand demonstration file; `entries` in the order of their numbers."""

    path: Path
    spec: SimulatorSpec
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    entries: tuple[DemoEntry, ...]

    def load(self, entries: Sequence[DemoEntry] | None = None) -> Iterator[Demo]:
        """Read demonstrations (default: all), one at a time, opening the file once.

        Raises:
            DataError: a dataset is missing, damaged, of another shape or type, or holds NaN; names file and key.
        """
        with open_hdf5(self.path) as file:
            for entry in self.entries if entries is None else entries:
                with uninterrupted():
                    demo = _read_demo(file, entry, self.spec)
                yield demo

    def initial_states(self, entries: Sequence[DemoEntry] | None = None) -> Iterator[InitialState]:
        """Read the initial states alone. Raises as `load` does."""
        with open_hdf5(self.path) as file:
            for entry in self.entries if entries is None else entries:
                yield _read_initial_state(file, entry)


def open_file(path: str | Path) -> DemoFile:
    """Read the index of a demonstration file.

    Raises:
        DataError: missing, truncated, not HDF5, or not a demonstration file that this version reads.
    """
    path = expanded(path)
    with open_hdf5(path) as file:
        data = there(path, file, "data")
        if not isinstance(data, h5py.Group):
            raise DataError(f"{path}: no group 'data'; expected a demonstration file as `ript demos collect` writes it")
        form, version = (there(path, data.attrs, name) for name in ("format", "format_version"))
        if form != FORMAT:
            raise DataError(
                f"{path}: key 'data' has attribute format {form!r}; expected {FORMAT!r}. "
                "Files of other makers are read by `ript demos convert`"
            )
        if not np.isscalar(version) or version not in READABLE:
            read = " and ".join(map(str, READABLE))
            raise DataError(f"{path}: format_version {version}; this version of ript reads {read}")
        names = [name for name in data if name.startswith("demo_")]
        if odd := [name for name in names if not name.removeprefix("demo_").isdecimal()]:
            raise DataError(f"{path}: key 'data/{odd[0]}': expected a number after demo_")
        names.sort(key=lambda name: int(name.removeprefix("demo_")))
        expected = _whole(path, data, "num_demos")
        if expected < 1:
            raise DataError(f"{path}: key 'data' holds no demonstration")
        if len(names) != expected:
            raise DataError(f"{path}: key 'data' holds {len(names)} demonstrations; expected {expected}")
        return DemoFile(
            path=path,
            spec=_spec(path, _table(path, data, "spec")),
            settings=_table(path, data, "settings"),
            versions=_table(path, data, "versions"),
            entries=tuple(_read_entry(path, _group(path, data, name)) for name in names),
        )


def is_demo_file(path: Path) -> bool:
    """Whether it is one of any version. Raises what HDF5 does when it is not HDF5."""
    with h5py.File(path, "r", locking=False) as file:
        return bool(file["data"].attrs["format"] == FORMAT)


def _read_entry(path: Path, group: h5py.Group) -> DemoEntry:
    def text(name: str) -> str:
        return str(_attr(path, group, name))

    def whole(name: str) -> int:
        return _whole(path, group, name)

    return DemoEntry(
        path=path,
        name=group.name.rsplit("/", 1)[-1],
        task=Task(
            suite=text("task_suite"),
            name=text("task_name"),
            instruction=text("task_instruction"),
            index=whole("task_index"),
            horizon=whole("task_horizon"),
        ),
        state_id=text("state_id"),
        steps=whole("num_samples"),
        looks=whole("num_looks"),
        tries=whole("tries"),
    )


def _read_demo(file: h5py.File, entry: DemoEntry, spec: SimulatorSpec) -> Demo:
    base = f"data/{entry.name}"
    read = _Reader(file, entry.path)
    steps, looks = entry.steps, entry.looks
    actions = read.floats(f"{base}/actions", (steps, spec.action_dim))
    executed = read.floats(f"{base}/executed_actions", (steps, spec.action_dim))
    frame_steps = read(f"{base}/obs/frame_steps", "int64", (entry.looks,))
    if not looks or (np.diff(frame_steps) <= 0).any() or frame_steps[0] < 0 or frame_steps[-1] >= steps:
        raise DataError(f"{entry.path}: key '{base}/obs/frame_steps': expected increasing steps in 0..{steps - 1}")
    images = {name: read(f"{base}/obs/{name}_rgb", "uint8", (looks, *size, 3)) for name, size in spec.cameras.items()}
    private = f"{base}/obs/privileged"
    has_private = there(entry.path, file, private) is not None
    return Demo(
        initial_state=_read_initial_state(file, entry),
        actions=actions,
        executed_actions=executed,
        frame_steps=frame_steps,
        images=images,
        proprio=read.floats(f"{base}/obs/proprio", (looks, spec.proprio_dim)),
        privileged=read.floats(private, (looks, None)) if has_private else None,
        tries=entry.tries,
    )


def _read_initial_state(file: h5py.File, entry: DemoEntry) -> InitialState:
    key = f"data/{entry.name}/states"
    states = _Reader(file, entry.path).floats(key, (1, None), "float64")
    label = str(there(entry.path, file[f"data/{entry.name}"].attrs, "state_label") or "")
    state = InitialState(task=entry.task, state=states[0], origin="demo", label=label)
    if state.id != entry.state_id:
        raise DataError(f"{entry.path}: key '{key}': expected the initial state {entry.state_id}, got {state.id}")
    return state


class _Reader:
    """Reads whole datasets and says which one is wrong."""

    def __init__(self, file: h5py.File, path: Path):
        self._file, self._path = file, path

    def __call__(self, key: str, dtype: str, shape: tuple[int | None, ...]) -> np.ndarray:
        data = there(self._path, self._file, key)
        if not isinstance(data, h5py.Dataset):
            raise DataError(f"{self._path}: key '{key}' is missing")
        fits = len(data.shape) == len(shape) and all(w in (None, g) for w, g in zip(shape, data.shape, strict=True))
        if data.dtype != dtype or not fits:
            want = tuple("any" if s is None else s for s in shape)
            raise DataError(f"{self._path}: key '{key}': expected {dtype} {want}, got {data.dtype} {data.shape}")
        try:
            return data[()]
        except (OSError, RuntimeError) as error:
            if refused(error):
                raise cannot_read(self._path, error) from error
            raise DataError(f"{self._path}: key '{key}' is damaged ({error}); collect the file again") from error

    def floats(self, key: str, shape: tuple[int | None, ...], dtype: str = "float32") -> np.ndarray:
        array = self(key, dtype, shape)
        if not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise DataError(f"{self._path}: key '{key}' holds {array[where]} at {where}; expected finite numbers")
        return array


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done; for short blocks.

    h5py runs Python code where exceptions cannot be raised (freeing objects): a KeyboardInterrupt there is lost.
    """
    if threading.current_thread() is not threading.main_thread():  # Ctrl-C never comes here
        yield
        return
    pressed: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed and callable(before):
            before(*pressed[0])


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    with reading(path):
        if not path.exists():
            raise DataError(f"there is no demonstration file {path}; make one with `ript demos collect`")
        if path.is_dir():
            raise DataError(f"{path} is a folder: give a demonstration file, as `ript demos collect --out` names it")
    require_content(path)
    try:
        file = h5py.File(path, "r", locking=False)  # nobody writes into a file that has its name
    except (OSError, RuntimeError) as error:
        if refused(error):
            raise cannot_read(path, error) from error
        raise DataError(
            f"{path} is not a readable HDF5 file ({error}); it may be truncated: collect it again"
        ) from error
    with file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            if refused(error):
                raise cannot_read(path, error) from error
            raise DataError(f"{path} is damaged ({error}); collect it again") from error


def there(path: Path, group: Mapping[str, Any], key: str) -> Any:
    """What a key of a group, or of its attributes, names; None where there is nothing.

    (h5py's `get` and `in` take a disk that cannot be read for that, too.)

    Raises:
        DataError: the system does not let it be read.
    """
    try:
        return group[key]
    except (KeyError, OSError, RuntimeError) as error:
        if refused(error):
            raise cannot_read(path, error) from error
        return None


def _attr(path: Path, group: h5py.Group, name: str) -> Any:
    if name not in group.attrs:
        raise DataError(f"{path}: key '{group.name.lstrip('/')}' lacks the attribute {name!r}")
    return group.attrs[name]


def _group(path: Path, data: h5py.Group, name: str) -> h5py.Group:
    try:
        found = data[name]
    except (KeyError, OSError, RuntimeError) as error:  # a link to another file, damage
        if refused(error):
            raise cannot_read(path, error) from error
        raise DataError(f"{path}: key 'data/{name}' cannot be read ({error})") from error
    if not isinstance(found, h5py.Group):
        raise DataError(f"{path}: key 'data/{name}': expected a group")
    return found


def _whole(path: Path, group: h5py.Group, name: str) -> int:
    value = _attr(path, group, name)
    if not isinstance(value, int | np.integer) or value < 0:
        key = group.name.lstrip("/")
        raise DataError(f"{path}: key '{key}', attribute {name!r}: expected a whole number, got {value!r}")
    return int(value)


def _table(path: Path, group: h5py.Group, name: str) -> dict[str, Any]:
    """An attribute that is a JSON object."""
    text = _attr(path, group, name)
    try:
        found = json_value(text)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: key 'data', attribute {name!r} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: key 'data', attribute {name!r}: expected a JSON object, got {text!r}")
    return found


def _spec(path: Path, fields: Mapping[str, Any]) -> SimulatorSpec:
    try:
        return SimulatorSpec.from_json(fields)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, ConfigError) as error:
        raise DataError(f"{path}: key 'data', attribute 'spec' describes no simulator ({error!r})") from error
