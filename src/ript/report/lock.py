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


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold a folder's lock, which the system drops when this process dies, however it dies.

    Raises:
        RunError: another process holds it; says which.
    """
    lock = acquire(Path(path))
    try:
        yield
    finally:
        release(Path(path), lock)


def acquire(path: Path) -> FileLock:
    """Take the folder's lock at once or not at all.

    Raises:
        RunError: another process holds it; says which.
    """
    lock = FileLock(path / ".lock", timeout=0)
    with translate_write_errors(path):
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"{path} is in use{_holder(path)}: wait for it or stop it, or choose another --out"
            ) from None
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
