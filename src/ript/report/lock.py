"""The lock of a folder that one process at a time may write into."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ript.errors import DataError, RunError
from ript.report.files import now, read_json, translate_write_errors, write_json
from ript.report.progress import status


@contextmanager
def locked(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock, which the system drops when this process dies, however it dies.

    Args:
        wait: for another process that holds it, instead of raising.

    Raises:
        RunError: another process holds it; says which.
    """
    lock = acquire(Path(path), wait=wait)
    try:
        yield
    finally:
        release(Path(path), lock)


def require_unlocked(path: Path) -> None:
    """Raise `RunError` when another process holds the folder's lock."""
    if path.is_dir():
        release(path, acquire(path))


def acquire(path: Path, *, wait: bool = False) -> FileLock:
    """Take the folder's lock: at once or not at all, unless told to `wait`.

    Raises:
        RunError: another process holds it; says which.
    """
    lock = FileLock(path / ".lock", timeout=0)
    with translate_write_errors(path):
        try:
            lock.acquire()
        except Timeout:
            if not wait:
                raise RunError(
                    f"{path} is in use{_holder(path)}: wait for it or stop it, or choose another --out"
                ) from None
            status(f"waiting for {path}, which is in use{_holder(path)}")
            lock.acquire(timeout=-1, poll_interval=0.5)
        write_json(path / ".owner.json", {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
    return lock


def _holder(path: Path) -> str:
    with suppress(DataError, KeyError, TypeError):
        owner = read_json(path / ".owner.json")
        return f" by process {owner['pid']} on {owner['host']} since {owner['since']}"
    return " by another process"


def release(path: Path, lock: FileLock) -> None:
    """Give a lock back; one that was given back is fine."""
    if lock.is_locked:
        with suppress(OSError):
            (path / ".owner.json").unlink(missing_ok=True)
        lock.release()
