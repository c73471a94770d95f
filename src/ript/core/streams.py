"""The standard streams, which may be full, closed, gone with their reader or terminal, or None (without a console).

What is said on the way is extra: where it cannot be written it is lost, and the work goes on (`say`, `Forgiving`). A
result that was asked for on stdout is not: where that cannot be written, the caller is told (`emit`).
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class NotPrinted(Exception):
    """Standard output did not take what was printed.

    Attributes:
        reader_gone: it is a pipe whose reader has ended, as in `ript recipes | head`.
    """

    def __init__(self, error: Exception):
        super().__init__(getattr(error, "strerror", None) or str(error))
        self.reader_gone = isinstance(error, BrokenPipeError)


def say(line: str) -> None:
    """One line on stderr, or nowhere. Never raises, and never writes to stdout instead."""
    with suppress(Exception):  # not only OSError: a stream that a program has put there raises what it likes
        _write(sys.stderr, line + "\n")


def emit(text: str) -> None:
    """Text and a line end on stdout.

    Raises:
        NotPrinted: the disk is full, the reader has gone, or there is no stdout.
    """
    try:
        _write(sys.stdout, text + "\n", wait=True)
    except Exception as error:
        raise NotPrinted(error) from error


class Forgiving:
    """A text stream that takes everything; what `stream` cannot take, or no stream, is lost."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream._stream if isinstance(stream, Forgiving) else stream

    def write(self, text: str) -> int:
        with suppress(Exception):
            _write(self._stream, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.write("")

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except Exception:  # closed
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive() -> None:
    """From here on, nothing that this process or a library in it prints raises."""
    sys.stdout, sys.stderr = cast(TextIO, Forgiving(sys.stdout)), cast(TextIO, Forgiving(sys.stderr))


@contextmanager
def forgiving() -> Iterator[None]:
    """Within, nothing that this process or a library in it prints raises."""
    before = sys.stdout, sys.stderr
    forgive()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def speak_utf8() -> None:
    """What goes into a file or a pipe is UTF-8 whatever the locale; a terminal has an encoding of its own."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # None, closed, or what a program has put there
            if not stream.isatty():
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


def open_closed_descriptors() -> None:
    """Put the null device where descriptor 0, 1 or 2 is closed.

    The next file to be opened would take that number, and what anything prints would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # also where it is that number already: children inherit it then
            if null != number:
                os.close(null)


def _write(stream: TextIO | None, text: str, wait: bool = False) -> None:
    """Write and flush. On an error nothing of it is left in a buffer.

    A stream on a descriptor is written to there, until all is taken: an unbuffered one (PYTHONUNBUFFERED) would lose
    without an error what does not fit, and a buffered one what a pipe that does not block has no room for.

    Args:
        wait: for room, where a pipe or terminal is set not to block; else BlockingIOError.
    """
    if stream is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    raw = _raw(stream)
    try:
        if raw is None:
            _in_its_encoding(stream, text, stream.write)
            stream.flush()
        else:
            stream.flush()  # what others have printed comes first
            _in_its_encoding(stream, text, lambda fitting: _write_all(raw, stream, fitting, wait))
    except Exception:
        with suppress(Exception):
            _discard(stream)
        raise


def _raw(stream: TextIO) -> io.RawIOBase | None:
    """What a stream writes to the descriptor with; None for a stream that has none or encodes in ways of its own."""
    buffer = getattr(stream, "buffer", None) if isinstance(stream, io.TextIOWrapper) else None
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, io.RawIOBase) else None


def _in_its_encoding(stream: TextIO, text: str, write: Callable[[str], object]) -> None:
    """`write(text)`, with escapes in the place of what cannot be encoded."""
    try:
        write(text)
    except UnicodeEncodeError as error:
        write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))


def _write_all(raw: io.RawIOBase, stream: TextIO, text: str, wait: bool) -> None:
    data = memoryview(text.encode(stream.encoding, stream.errors or "strict"))
    while data:
        written = raw.write(data)
        if written is not None:
            data = data[written:]
        elif wait:
            poll = select.poll()
            poll.register(raw.fileno(), select.POLLOUT)
            poll.poll()
        else:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _discard(stream: TextIO) -> None:
    """Empty a stream's buffers into the null device.

    Otherwise the next write fails too, and so does the interpreter's own flush at its end, with exit code 120.
    """
    number = stream.fileno()
    inheritable = True
    saved = None
    with suppress(OSError):  # closed behind the stream's back: then the null device stays there
        inheritable = os.get_inheritable(number)
        saved = os.dup(number)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, number, inheritable)
        stream.flush()
    finally:
        if saved is not None:
            os.dup2(saved, number, inheritable)
            os.close(saved)
        if null != number:
            os.close(null)
