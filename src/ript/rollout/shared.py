"""Observations and actions in memory that a worker and the parent share."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from ript.errors import ConfigError
from ript.types import Observation, SimulatorSpec

MAX_CHUNK = 128
"""Actions a decision that the shared memory has room for (2 kB a slot)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a block is, and what stands in it."""

    name: str
    slots: int
    cameras: tuple[tuple[str, tuple[int, int]], ...]
    proprio_dim: int
    action_dim: int

    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """name -> (shape, dtype), in order; the images' names carry a prefix."""
        images: dict[str, tuple[tuple[int, ...], type]] = {
            f"image/{camera}": ((self.slots, h, w, 3), np.uint8) for camera, (h, w) in self.cameras
        }
        return {
            "proprio": ((self.slots, self.proprio_dim), np.float32),
            "actions": ((self.slots, MAX_CHUNK, self.action_dim), np.float32),
            **images,
        }


class Block:
    """One worker's block: images uint8 `[slots, h, w, 3]`, proprio `[slots, P]`, actions `[slots, MAX_CHUNK, A]`.

    The parent creates it and unlinks its name as soon as the worker has attached: from then on the memory belongs to
    the two processes and is gone when both are, however they end.
    """

    def __init__(self, memory: SharedMemory, layout: Layout):
        self.layout = layout
        self._memory = memory
        self._linked = True
        self._arrays: dict[str, np.ndarray] = {}
        start = 0
        for name, (shape, dtype) in layout.fields().items():
            self._arrays[name] = np.ndarray(shape, dtype, memory.buf, start)
            start += _size(shape, dtype)

    @staticmethod
    def create(spec: SimulatorSpec, slots: int) -> Block:
        layout = Layout("", slots, tuple(spec.cameras.items()), spec.proprio_dim, spec.action_dim)
        size = sum(_size(*field) for field in layout.fields().values())
        memory = SharedMemory(f"ript-{os.getpid()}-{secrets.token_hex(4)}", create=True, size=size)
        return Block(memory, Layout(memory.name, *(getattr(layout, name) for name in layout.__slots__[1:])))

    @staticmethod
    def attach(layout: Layout) -> Block:
        return Block(SharedMemory(layout.name), layout)

    @property
    def actions(self) -> np.ndarray:
        return self._arrays["actions"]

    def write(self, observation: Observation) -> None:
        """Put B <= slots rows into the first B rows."""
        rows = len(observation)
        self._arrays["proprio"][:rows] = observation.proprio
        for camera, image in observation.images.items():
            self._arrays[f"image/{camera}"][:rows] = image

    def read(self, instruction: tuple[str, ...]) -> Observation:
        """A copy of the first `len(instruction)` rows."""
        rows = len(instruction)
        return Observation(
            images={camera: self._arrays[f"image/{camera}"][:rows].copy() for camera, _ in self.layout.cameras},
            proprio=self._arrays["proprio"][:rows].copy(),
            instruction=instruction,
        )

    def put_actions(self, actions: np.ndarray) -> None:
        """Put actions `[B, H, A]` into the first B rows.

        Raises:
            ConfigError: they do not fit.
        """
        rows, steps, dim = actions.shape
        if steps > MAX_CHUNK or dim != self.layout.action_dim:
            raise ConfigError(
                f"the policy returned chunks of {steps} actions of {dim} numbers; the pool takes at most {MAX_CHUNK} "
                f"actions and the simulator {self.layout.action_dim} numbers: use a shorter chunk or another policy"
            )
        self.actions[:rows, :steps] = actions

    def unlink(self) -> None:
        """Free the name; both sides keep the memory."""
        if self._linked:
            self._linked = False
            with contextlib.suppress(FileNotFoundError):
                self._memory.unlink()

    def close(self) -> None:
        self._arrays.clear()  # SharedMemory refuses to close while arrays look into it
        self._memory.close()


def _size(shape: tuple[int, ...], dtype: type) -> int:
    """Bytes, rounded up to a multiple of 64 so that every array starts aligned."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return (size + 63) // 64 * 64
