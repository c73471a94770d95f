"""The lock of a folder that one process at a time may write into."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ript.disk import writing
from ript.errors import DataError, RunError
from ript.report.files import now, read_json, write_json
from ript.report.progress import status


class Lock:
    """A lock that is held until `release`, or until this process dies, however it dies."""

    def __init__(self, handle: int | None):
        self._handle = handle
        self.held = True

    def drop(self) -> None:
        self.held = False
        if self._handle is not None:
            os.close(self._handle)


@contextmanager
def locked(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock, which the system drops when this process dies, however it dies.

    Args:
        path: the folder.
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


def acquire(path: Path, *, wait: bool = False) -> Lock:
    """Take the folder's lock: at once or not at all, unless told to `wait`.

    On a file system that refuses locks, as some network ones do, `.owner.json` is all that there is: a process that it
    names counts as the holder.

    Raises:
        RunError: another process holds it; says which.
    """
    lock = _try(path)
    if lock is None:
        if not wait:
            raise RunError(f"{path} is in use{_holder(path)}: wait for it or stop it, or choose another --out")
        status(f"waiting for {path}, which is in use{_holder(path)}")
        while lock is None:
            time.sleep(0.5)
            lock = _try(path)
    try:
        write_json(path / ".owner.json", {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
    except BaseException:
        lock.drop()
        raise
    return lock


def _try(path: Path) -> Lock | None:
    """The lock, or None when another process holds it."""
    with writing(path):
        handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            return None if error.errno == errno.EWOULDBLOCK else _without_locks(path, error)
        except BaseException:
            os.close(handle)
            raise
    return Lock(handle)


def _without_locks(path: Path, error: OSError) -> Lock | None:
    """What stands in for a lock where the file system has none: the process that `.owner.json` names still lives.

    Raises:
        RunError: that is a process of another machine, of which nothing is known here.
    """
    with suppress(DataError, KeyError, TypeError, ValueError):
        owner = read_json(path / ".owner.json")
        if owner["host"] != socket.gethostname():
            raise RunError(
                f"{path} was in use{_holder(path)}, and the file system has no locks ({error.strerror}): when that "
                f"process has ended, remove {path / '.owner.json'}"
            )
        if _alive(int(owner["pid"])):
            return None
    status(f"{path} cannot be locked ({error.strerror}): see to it that no second process writes there")
    return Lock(None)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _holder(path: Path) -> str:
    with suppress(DataError, KeyError, TypeError):
        owner = read_json(path / ".owner.json")
        return f" by process {owner['pid']} on {owner['host']} since {owner['since']}"
    return " by another process"


def release(path: Path, lock: Lock) -> None:
    """Give a lock back; one that was given back is fine."""
    if lock.held:
        with suppress(OSError):
            (path / ".owner.json").unlink(missing_ok=True)
        lock.drop()
