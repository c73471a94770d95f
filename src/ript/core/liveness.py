"""Signs of life of worker processes: how a worker gives them, and how its parent judges silence."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Sequence

PATIENT_LOOKS = 4
"""Looks at a silent worker that its parent takes at least before it counts as hung."""


class Silence:
    """How long a worker has been silent, as its parent sees it.

    A worker gives a sign of life when it begins a unit of work or sends something. Its parent may itself have been
    away, deciding, writing or stopped (Ctrl-Z stops all of them; a machine may sleep), and says nothing of the worker
    by that: however long it was, the time between two looks counts as a quarter of the limit at most.
    """

    def __init__(self, sign: Sequence[float]):
        self._looked = time.monotonic()
        self._sign = tuple(sign)
        self._seconds = 0.0

    def broken(self) -> None:
        """Something of the worker has arrived."""
        self._seconds = 0.0

    def look(self, sign: Sequence[float], *, excused: bool, limit: float) -> bool:
        """Whether it has been silent for longer than `limit` seconds. Call it often.

        Args:
            sign: what the worker does, and since when; another one than at the last look is a sign of life.
            excused: it owes nothing, or what it has sent was not read yet.
            limit: seconds.
        """
        passed, self._looked = time.monotonic() - self._looked, time.monotonic()
        if excused or tuple(sign) != self._sign:
            self._seconds, self._sign = 0.0, tuple(sign)
        else:
            self._seconds += min(passed, limit / PATIENT_LOOKS)
        return self._seconds > limit


def interval(limit: float) -> float:
    """Seconds after which a parent that waits for its workers should look at them."""
    return min(1.0, limit / PATIENT_LOOKS)


class Cell:
    """Where a worker leaves signs of life: two float64 that its parent sees, what it does and since when (monotonic),
    and a note on what it works on.

    Leaving one is a write to memory, no system call. It is the beginning of a file without a name, closed with it.
    """

    SIZE = mmap.ALLOCATIONGRANULARITY
    """Bytes; what follows in the file begins here."""
    NOTE = 16
    """Where the note begins: its length, 1 byte, and UTF-8."""

    def __init__(self, fileno: int):
        self.fileno = fileno
        self._map = mmap.mmap(fileno, self.SIZE)
        self.view = memoryview(self._map).cast("d")

    @staticmethod
    def create() -> Cell:
        """Raises OSError: no file can be opened, or there is no memory."""
        if hasattr(os, "memfd_create"):
            fileno = os.memfd_create("ript")
        else:
            with tempfile.TemporaryFile(prefix="ript-") as file:
                fileno = os.dup(file.fileno())
        try:
            os.write(fileno, bytes(Cell.SIZE))  # memory that is not there yet could be refused later, with SIGBUS
            return Cell(fileno)
        except BaseException:
            os.close(fileno)
            raise

    def mark(self, what: float = 0.0) -> None:
        """A unit of work begins."""
        self.view[1] = time.monotonic()
        self.view[0] = what

    def note(self, text: str) -> None:
        """Say what is worked on, in 255 bytes at most; it is there when this process is not any more."""
        data = text.encode()[:255]
        self._map[self.NOTE : self.NOTE + 1 + len(data)] = bytes([len(data)]) + data

    @property
    def noted(self) -> str:
        """The last note."""
        begin = self.NOTE + 1
        return bytes(self._map[begin : begin + self._map[self.NOTE]]).decode(errors="ignore")

    def close(self) -> None:
        self.view.release()
        self._map.close()
        os.close(self.fileno)
