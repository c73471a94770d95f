"""Demonstrations from files of other programs into one of ours, as a suite reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ript.core import arguments
from ript.core.errors import DataError
from ript.core.types import ForeignDemo, Recording, SimulatorSpec
from ript.demos.formats.robomimic import read_foreign
from ript.demos.formats.writer import DemoWriter
from ript.demos.records import Demo


def convert_demos(
    files: str | Path | Sequence[str | Path],
    out: str | Path,
    read: Callable[[ForeignDemo], tuple[Recording, SimulatorSpec]],
    *,
    every: int = 1,
    progress: Callable[[Demo], None] | None = None,
) -> int:
    """Write demonstrations of other files, whole, in the order of the files and of their numbers.

    Args:
        files: in the layout of robomimic; one that is named several times counts once.
        out: the file to make; replaced if it exists, and only when all is done.
        read: what a suite makes of a demonstration; with looks.
        every: of the looks, every so many-th is kept.
        progress: called after every demonstration.

    Returns:
        how many there were.

    Raises:
        DataError: a file is missing, damaged, of another layout, or its demonstrations are not seen alike.
    """
    every, written = arguments.whole("every", every, 1), 0
    with DemoWriter(out, {"source": "converted", "every": every}) as writer:
        once: dict[Path, Path] = {}
        for file in arguments.places("files", files):
            once.setdefault(file.expanduser().resolve(), file)
        for file in once.values():
            for foreign in read_foreign(file):
                recording, spec = read(foreign)
                demo = _demo(foreign, recording, every)
                writer.add(written, demo, spec)
                written += 1
                if progress:
                    progress(demo)
    return written


def _demo(foreign: ForeignDemo, recording: Recording, every: int) -> Demo:
    looks, actions = recording.looks, np.clip(recording.actions, -1, 1)
    if looks is None or len(looks) != len(actions):
        raise DataError(f"{foreign.path}: key 'data/{foreign.name}': {len(actions)} actions, and not a look for each")
    return Demo(
        initial_state=recording.initial_state,
        actions=actions,
        executed_actions=actions,
        frame_steps=np.arange(0, len(actions), every, dtype=np.int64),
        images={name: frames[::every] for name, frames in looks.images.items()},
        proprio=looks.proprio[::every],
        privileged=None,
        tries=1,
    )
