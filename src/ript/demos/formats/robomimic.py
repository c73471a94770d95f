"""Demonstrations in files of other programs, in the layout of robomimic.

data                      attrs: what the file's makers say of all
data/demo_i               attrs: what they say of this one
    actions               [T, A]
    states                [T, S], where there are any
    obs/NAME              [T, ...]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ript.core.disk import cannot_read, refused
from ript.core.errors import DataError
from ript.core.files import expanded
from ript.core.types import ForeignDemo
from ript.demos.formats.hdf5 import FORMAT, open_hdf5, there, uninterrupted


def read_foreign(path: str | Path) -> Iterator[ForeignDemo]:
    """The demonstrations of a file, one at a time, by their numbers: demo_2 comes before demo_10.

    Raises:
        DataError: missing, damaged, or of another layout; names file and key.
    """
    path = expanded(path)
    with open_hdf5(path) as file:
        data = there(path, file, "data")
        if isinstance(data, h5py.Group) and there(path, data.attrs, "format") == FORMAT:
            raise DataError(f"{path} is a demonstration file of ript already: use it as it is")
        names = [name for name in data if name.startswith("demo")] if isinstance(data, h5py.Group) else []
        if not names:
            raise DataError(f"{path}: no group 'data' with groups 'demo_0', 'demo_1', ...")
        if odd := [name for name in names if not name.removeprefix("demo_").isdecimal()]:
            raise DataError(f"{path}: key 'data/{odd[0]}': expected a number after demo_")
        for name in sorted(names, key=lambda name: int(name.removeprefix("demo_"))):
            with uninterrupted():
                demo = _read(path, data, name)
            yield demo


def _read(path: Path, data: h5py.Group, name: str) -> ForeignDemo:
    group = data[name]
    seen = there(path, group, "obs") or {}
    arrays: dict[str, np.ndarray] = {}
    for key, source in {"actions": group, "states": group, **dict.fromkeys(seen, seen)}.items():
        where = f"data/{name}/{key}" if source is group else f"data/{name}/obs/{key}"
        found = there(path, source, key)
        if not isinstance(found, h5py.Dataset):
            if key == "actions":
                raise DataError(f"{path}: key '{where}' is missing")
            continue
        try:
            arrays[where] = found[()]
        except (OSError, RuntimeError) as error:
            if refused(error):
                raise cannot_read(path, error) from error
            raise DataError(f"{path}: key '{where}' is damaged ({error}); fetch the file again") from error
        if arrays[where].dtype.kind == "f" and not np.isfinite(arrays[where]).all():
            raise DataError(f"{path}: key '{where}' holds numbers that are not finite")
    actions = np.asarray(arrays.pop(f"data/{name}/actions"), np.float64)
    states = np.asarray(arrays.pop(f"data/{name}/states", np.zeros((len(actions), 0))), np.float64)
    if len(actions) != len(states) or not len(actions):
        raise DataError(f"{path}: key 'data/{name}': {len(actions)} actions and {len(states)} states; expected as many")
    return ForeignDemo(
        path=path,
        name=name,
        attributes={**_attributes(data), **_attributes(group)},
        actions=actions,
        states=states,
        observations={key.rpartition("/")[2]: array for key, array in arrays.items()},
    )


def _attributes(group: h5py.Group) -> dict[str, Any]:
    return {key: value.decode() if isinstance(value, bytes) else value for key, value in group.attrs.items()}
