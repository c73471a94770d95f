"""Memory that a worker and the parent share: what the worker is doing, and observations and actions."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import numpy as np

from ript.core.errors import ConfigError
from ript.core.liveness import Cell
from ript.core.types import Observation, SimulatorSpec
from ript.rollout.local.limits import make_room, open_memory

MAX_CHUNK = 128
"""Actions a decision that the shared memory has room for (2 kB a slot)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What stands in a block."""

    slots: int
    cameras: tuple[tuple[str, tuple[int, int]], ...]
    proprio_dim: int
    action_dim: int
    observation_steps: int = 1

    @staticmethod
    def of(spec: SimulatorSpec, slots: int, observation_steps: int) -> Layout:
        return Layout(slots, tuple(spec.cameras.items()), spec.proprio_dim, spec.action_dim, observation_steps)

    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """name -> (shape, dtype), in order; the images' names carry a prefix."""
        rows = (self.slots,) if self.observation_steps == 1 else (self.slots, self.observation_steps)
        images: dict[str, tuple[tuple[int, ...], type]] = {
            f"image/{camera}": ((*rows, h, w, 3), np.uint8) for camera, (h, w) in self.cameras
        }
        return {
            "proprio": ((*rows, self.proprio_dim), np.float32),
            "actions": ((self.slots, MAX_CHUNK, self.action_dim), np.float32),
            **images,
        }

    def size(self) -> int:
        """Bytes of a block."""
        return sum(_size(*field) for field in self.fields().values())


class Memory:
    """A file without a name that both processes have open; gone when both are, however they end.

    It begins with the worker's cell, which tells what it does (see `engine.Watch`). A `Block` may follow.
    """

    def __init__(self, fileno: int):
        self.fileno = fileno
        self.cell = Cell(fileno)

    @staticmethod
    def create(layout: Layout | None) -> Memory:
        """Memory for the cell and, with a layout, a block; all of it is reserved.

        Raises:
            WorkerError: there is not so much.
            OSError: too many files are open.
        """
        fileno = open_memory(Cell.SIZE + (layout.size() if layout else 0))
        try:
            return Memory(fileno)
        except BaseException:
            os.close(fileno)
            raise

    def block(self, layout: Layout) -> Block:
        """The block, for which there is room."""
        return Block(mmap.mmap(self.fileno, layout.size(), offset=Cell.SIZE), layout)

    def make_room(self, layout: Layout) -> None:
        """Reserve memory for this block, unless that is done.

        Raises:
            WorkerError: there is not so much.
        """
        make_room(self.fileno, Cell.SIZE + layout.size())


class Block:
    """One worker's block: images uint8 `[slots, h, w, 3]`, proprio `[slots, P]`, actions `[slots, MAX_CHUNK, A]`; of
    n > 1 observation steps the first two are `[slots, n, ...]`."""

    def __init__(self, memory: mmap.mmap, layout: Layout):
        self.layout = layout
        self._memory = memory
        self._arrays: dict[str, np.ndarray] = {}
        start = 0
        for name, (shape, dtype) in layout.fields().items():
            self._arrays[name] = np.ndarray(shape, dtype, memory, start)
            start += _size(shape, dtype)

    @property
    def actions(self) -> np.ndarray:
        return self._arrays["actions"]

    def write(self, observation: Observation, first: int) -> None:
        """Put B rows into rows first..first+B-1."""
        rows = slice(first, first + len(observation))
        self._arrays["proprio"][rows] = observation.proprio
        for camera, image in observation.images.items():
            self._arrays[f"image/{camera}"][rows] = image

    def read(self, instruction: tuple[str, ...], first: int) -> Observation:
        """A copy of rows first..first+len(instruction)-1."""
        rows = slice(first, first + len(instruction))
        return Observation(
            images={camera: self._arrays[f"image/{camera}"][rows].copy() for camera, _ in self.layout.cameras},
            proprio=self._arrays["proprio"][rows].copy(),
            instruction=instruction,
        )

    def put_actions(self, actions: np.ndarray, first: int) -> None:
        """Put actions `[B, H, A]` into rows first..first+B-1.

        Raises:
            ConfigError: they do not fit.
        """
        rows, steps, dim = actions.shape
        if steps > MAX_CHUNK or dim != self.layout.action_dim:
            raise ConfigError(
                f"the policy returned chunks of {steps} actions of {dim} numbers; the pool takes at most {MAX_CHUNK} "
                f"actions and the simulator {self.layout.action_dim} numbers: use a shorter chunk or another policy"
            )
        self.actions[first : first + rows, :steps] = actions

    def close(self) -> None:
        self._arrays.clear()  # a map refuses to close while arrays look into it
        self._memory.close()


def _size(shape: tuple[int, ...], dtype: type) -> int:
    """Bytes, rounded up to a multiple of 64 so that every array starts aligned."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return (size + 63) // 64 * 64
