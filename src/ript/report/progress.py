"""What a run is doing, on stderr: bars on a terminal, now and then a plain line otherwise. Never a byte on stdout."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

PLAIN_EVERY_SECONDS = 10.0
QUIET_SECONDS = 2.0


def status(line: str) -> None:
    """Say what is going on, as one line on stderr (above the bars, when there are any)."""
    display = _display.progress
    if display is not None:
        display.console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


class progress(Generic[T]):
    """Show how far something has come.

    Iterate over it, or use it as a context manager and call `advance`:

        for demo in progress(demos, "replaying demonstrations"): ...

        with progress(640, "rollouts") as bar:
            bar.advance(); bar.note("63 % success")

    Args:
        iterable_or_total: what to iterate over, a number of steps, or None when the number is not known.
        what: what is counted, in a few words.
    """

    def __init__(self, iterable_or_total: Iterable[T] | int | None, what: str):
        self._items: Iterable[T] | None = None
        self._total: int | None = None
        if isinstance(iterable_or_total, int):
            self._total = iterable_or_total
        elif iterable_or_total is not None:
            self._items = iterable_or_total
            self._total = _length(iterable_or_total)
        self._what = what
        self._note = ""
        self._done = 0
        self._bar: TaskID | None = None
        self._started = self._last_line = 0.0
        self._spoke = False

    def __iter__(self) -> Iterator[T]:
        if self._items is None:
            raise TypeError("progress over a number is a context manager: `with progress(10, 'steps') as bar:`")
        with self:
            for item in self._items:
                yield item
                self.advance()

    def __enter__(self) -> progress[T]:
        self._started = self._last_line = time.monotonic()
        if _is_terminal():
            self._bar = _display.add(self._what, self._total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            _display.remove(self._bar)
            self._bar = None
        elapsed = time.monotonic() - self._started
        if self._spoke or elapsed >= QUIET_SECONDS:
            status(self._line(elapsed))

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more."""
        self._done += steps
        if self._bar is not None:
            _display.update(self._bar, self._done)
        else:
            now = time.monotonic()
            if now - self._last_line >= PLAIN_EVERY_SECONDS:
                self._last_line, self._spoke = now, True
                status(self._line(now - self._started))

    def note(self, text: str) -> None:
        """Add a few words behind the bar, such as the present success rate."""
        self._note = text
        if self._bar is not None:
            _display.update(self._bar, self._done, text)

    def _line(self, elapsed: float) -> str:
        if self._total:
            count = f"{self._done}/{self._total} ({100 * self._done // self._total} %)"
        else:
            count = str(self._done)
        return f"{self._what}: {count}, {elapsed:.0f} s" + (f", {self._note}" if self._note else "")


class _Display:
    """All bars of the process share one rich display: rich refuses a second live display inside a first."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self._bars = 0
        self._lock = threading.RLock()

    def add(self, what: str, total: int | None) -> TaskID:
        with self._lock:
            if self.progress is None:
                # redirect_stdout would move what others print to stdout over to stderr.
                self.progress = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[note]}"),
                    console=Console(stderr=True),
                    redirect_stdout=False,
                    transient=True,
                )
                self.progress.start()
            self._bars += 1
            return self.progress.add_task(what, total=total, note="")

    def update(self, bar: TaskID, done: int, note: str | None = None) -> None:
        if self.progress is None:
            return
        self.progress.update(bar, completed=done)
        if note is not None:
            self.progress.update(bar, note=note)

    def remove(self, bar: TaskID) -> None:
        with self._lock:
            if self.progress is None:
                return
            self.progress.remove_task(bar)
            self._bars -= 1
            if not self._bars:
                self.progress.stop()
                self.progress = None


_display = _Display()


def _is_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def _length(items: Iterable[object]) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
