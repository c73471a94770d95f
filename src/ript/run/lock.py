"""The lock of a folder that one process at a time may write into."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ript.core.disk import writing
from ript.core.errors import DataError, RunError
from ript.run.files import now, read_json, write_json
from ript.run.progress import status

POLL = 0.5
"""Seconds between looks at a lock that is waited for."""


class InUse(RunError):
    """Another process holds the lock."""


class Lock:
    """A lock that is held until `release`, or until this process dies, however it dies."""

    def __init__(self, handle: int | None):
        self._handle = handle
        self.held = True

    def drop(self) -> None:
        self.held = False
        if self._handle is not None:
            os.close(self._handle)


@dataclass(frozen=True, slots=True)
class _Held:
    """Why a lock cannot be had, and what to do other than to wait."""

    how: str
    remedy: str = ""


@contextmanager
def locked(path: str | Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder's lock, which the system drops when this process dies, however it dies.

    Args:
        path: the folder.
        wait: for another process that holds it, instead of raising.

    Raises:
        InUse: another process holds it; says which.
    """
    lock = acquire(Path(path), wait=wait)
    try:
        yield
    finally:
        release(Path(path), lock)


def acquire(path: Path, *, wait: bool = False) -> Lock:
    """Take the folder's lock: at once or not at all, unless told to `wait`.

    On a file system that refuses locks, as some network ones do, `.owner.json` is all that there is: a process that it
    names counts as the holder.

    Raises:
        InUse: another process holds it; says which.
    """
    lock = _try(path)
    if isinstance(lock, _Held):
        if not wait:
            raise InUse(f"{path} {lock.how}: {lock.remedy or 'wait for it or stop it, or choose another --out'}")
        status(f"waiting for {path}, which {lock.how}{lock.remedy and f': {lock.remedy}'}")
        while isinstance(lock, _Held):
            time.sleep(POLL)
            lock = _try(path)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now(), "process": _identity(os.getpid())}
        write_json(path / ".owner.json", owner)
    except BaseException:
        lock.drop()
        raise
    return lock


def _try(path: Path) -> Lock | _Held:
    """The lock, or that another process holds it."""
    with writing(path):
        handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno == errno.EWOULDBLOCK:
                return _Held(f"is in use{_holder(path)}")
            return _without_locks(path, error)
        except BaseException:
            os.close(handle)
            raise
    return Lock(handle)


def _without_locks(path: Path, error: OSError) -> Lock | _Held:
    """What stands in for a lock where the file system has none: `.owner.json`, which only one process can create.

    It may be of a process that has died: one of this machine is known to have, and its file is removed. Of one on
    another machine, or in another container of this one, that cannot be known.
    """
    owner = path / ".owner.json"
    unknown, remedy = f", and the file system has no locks ({error.strerror})", f"once that has ended, remove {owner}"
    with suppress(DataError, KeyError, TypeError, ValueError, AttributeError):
        held = read_json(owner)
        ended = _has_ended(held)
        if ended is None:
            return _Held(f"was in use{_holder(path)}{unknown}", remedy)
        if not ended:
            return _Held(f"is in use{_holder(path)}")
        owner.unlink(missing_ok=True)
    try:
        os.close(os.open(owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except FileExistsError:
        return _Held(f"is in use{_holder(path)}{unknown}", remedy)
    status(f"{path} cannot be locked ({error.strerror}): see to it that no second process writes there")
    return Lock(None)


def _has_ended(held: Mapping[str, Any]) -> bool | None:
    """Whether the process that took a lock has ended; None where that cannot be known from here."""
    pid, theirs, mine = int(held["pid"]), held.get("process") or {}, _identity(os.getpid())

    def differs(name: str) -> bool:
        return None not in (theirs.get(name), mine[name]) and theirs[name] != mine[name]

    if held["host"] != socket.gethostname():
        return None
    if differs("boot"):
        return True
    if differs("namespace"):
        return None
    if not theirs and pid == os.getpid():  # this one says what it is
        return True
    found = _identity(pid)["started"]
    if found is None:
        return not _answers(pid)
    return found == ENDED or theirs.get("started", found) != found


ENDED = "ended"


def _identity(pid: int) -> dict[str, str | None]:
    """What tells a process from others that have or had its number; None where the system does not say it.

    Returns:
        {"boot": of this start of the machine, "namespace": in which numbers are unique, "started": in clock ticks since
        the machine was, or `ENDED` of one of which only the outcome is left}
    """
    found: dict[str, str | None] = dict.fromkeys(("boot", "namespace", "started"))
    with suppress(OSError):
        found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    with suppress(OSError):
        found["namespace"] = os.readlink("/proc/self/ns/pid")
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # a name may hold anything
        found["started"] = ENDED if fields[0] in (b"Z", b"X") else fields[19].decode()
    return found


def _answers(pid: int) -> bool:
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
