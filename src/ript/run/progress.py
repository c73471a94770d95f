"""What a run is doing, on stderr: bars on a terminal, now and then a plain line otherwise. Never a byte on stdout.

It is only extra: where it cannot be shown it is lost, and the work goes on (see `streams`).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TextIO, TypeVar, cast

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

from ript.core import streams

T = TypeVar("T")

PLAIN_EVERY_SECONDS = 10.0
QUIET_SECONDS = 2.0


def status(line: str) -> None:
    """Say what is going on, as one line on stderr (above the bars, when there are any)."""
    if not _display.say(line):
        streams.say(line)


class Said(logging.Handler):
    """A handler of log records that shows each as a line of status."""

    def emit(self, record: logging.LogRecord) -> None:
        status(f"  {record.getMessage()}")


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
        if self._bar is None or not _display.update(self._bar, self._done):
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
    """All bars of the process share one rich display: rich refuses a second live display inside a first.

    When rich fails, there are no bars any more in this process, and progress is told in plain lines.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._bars = 0
        self._failed = False
        self._stderr: TextIO | None = None
        self._lock = threading.RLock()

    def add(self, what: str, total: int | None) -> TaskID | None:
        """A new bar, or None where there can be none."""
        added: list[TaskID] = []
        with self._lock:
            self._try(lambda bars: added.append(bars.add_task(what, total=total, note="")), start=True)
            self._bars += len(added)
        return added[0] if added else None

    def update(self, bar: TaskID, done: int, note: str | None = None) -> bool:
        """Whether there are bars."""
        fields: dict[str, Any] = {} if note is None else {"note": note}
        return self._try(lambda bars: bars.update(bar, completed=done, **fields))

    def say(self, line: str) -> bool:
        """Print a line above the bars; whether there are any."""
        return self._try(lambda bars: bars.console.print(line, markup=False, highlight=False, soft_wrap=True))

    def remove(self, bar: TaskID) -> None:
        with self._lock:
            self._bars -= 1
            self._try(lambda bars: bars.remove_task(bar))
            if not self._bars:
                self._stop()

    def _try(self, action: Callable[[Progress], object], start: bool = False) -> bool:
        """Whether `action` was done."""
        with self._lock:
            try:
                if start and self._progress is None and not self._failed:
                    self._start()
                if self._progress is not None and not self._failed:
                    action(self._progress)
                    return True
            except Exception:  # the bars are extra, whatever went wrong
                self._failed = True
            if self._failed:
                self._stop()
            return False

    def _start(self) -> None:
        self._stderr = sys.stderr
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            # rich ends the process where its file raises BrokenPipeError
            console=Console(file=cast(TextIO, streams.Forgiving(sys.stderr))),
            redirect_stdout=False,  # it would move what others print to stdout over to stderr
            transient=True,
        )
        refresh = self._progress.live.refresh

        def refresh_or_fail() -> None:
            try:
                refresh()
            except Exception:  # in rich's own thread: the next call from here sees it
                self._failed = True

        self._progress.live.refresh = refresh_or_fail  # type: ignore[method-assign]
        self._progress.start()
        sys.stderr = cast(TextIO, streams.Forgiving(sys.stderr))  # what rich has put there until it is stopped

    def _stop(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None:
            with suppress(Exception):
                progress.stop()
            if self._failed and self._stderr is not None:
                sys.stderr = self._stderr  # rich had put itself there


_display = _Display()


def _is_terminal() -> bool:
    return streams.Forgiving(sys.stderr).isatty() and os.environ.get("TERM", "") != "dumb"


def _length(items: Iterable[object]) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
