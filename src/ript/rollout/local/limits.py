"""What the operating system lets a pool have: memory that two processes share, and open files.

A pool asks before it starts, so that what is missing is one message and not a broken run; `ript doctor` asks as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ript.core import capacity
from ript.core.errors import WorkerError

FILES_PER_WORKER = 3
"""Open files of the parent for each worker: a pipe, how it ended, and shared memory."""
SPARE_FILES = 32
"""Open files for all else that a run does: logs, checkpoints, videos, libraries."""
SHARED_FOLDER = Path("/dev/shm")
PROBE = 64 * 2**20
"""Bytes of shared memory that a pool with central inference should find: 16 workers with 32 slots and two pictures."""

ALWAYS = 2**16
"""Bytes that are asked for without looking first: a container full of cached files has as many."""

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Limit:
    """What was found, and what to do; `remedy` is empty when nothing need be done."""

    detail: str
    remedy: str = ""


def open_files(workers: int) -> Limit:
    """Whether a process may open as many files as a run with so many workers needs."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    need = _open_now() + workers * FILES_PER_WORKER + SPARE_FILES
    if allowed == resource.RLIM_INFINITY or need <= allowed:
        return Limit(f"{'unlimited' if allowed == resource.RLIM_INFINITY else f'{allowed:,}'} allowed")
    return Limit(
        f"{allowed} allowed, about {need} needed with {workers} workers",
        "raise the limit (`ulimit -n 4096` before the command), or use fewer --workers",
    )


def shared_memory(size: int = PROBE) -> Limit:
    """Whether so many bytes of shared memory can be had; they are really reserved, and given back."""
    try:
        fileno = open_memory(size)
    except (WorkerError, OSError) as error:
        return Limit(str(error), "use --rollout.inference=local, or --workers 0")
    os.close(fileno)
    where = "not limited by /dev/shm" if hasattr(os, "memfd_create") else f"in {_folder()}"
    return Limit(f"{size / 2**20:.0f} MiB can be reserved, {where}")


def open_memory(size: int) -> int:
    """A file descriptor of `size` reserved bytes that have no name: they are gone when no process has them open.

    Writing to memory that was not reserved is no error but kills the process (SIGBUS).

    Raises:
        WorkerError: there is not so much.
        OSError: no file can be opened.
    """
    problems = []
    for make in (_memory_file, lambda: _temporary_file(str(SHARED_FOLDER)), lambda: _temporary_file(None)):
        fileno = None
        try:
            fileno = make()
            if fileno is not None:
                _reserve(fileno, size)
                return fileno
        except OSError as error:
            if fileno is not None:
                os.close(fileno)
            if error.errno in TOO_MANY_FILES:
                raise
            problems.append(str(error))
    raise _no_room(size, problems)


def make_room(fileno: int, size: int) -> None:
    """Let memory that is open have `size` reserved bytes, at least.

    Raises:
        WorkerError: there is not so much.
    """
    if os.fstat(fileno).st_size < size:
        try:
            _reserve(fileno, size)
        except OSError as error:
            raise _no_room(size, [str(error)]) from error


def _no_room(size: int, problems: Sequence[str]) -> WorkerError:
    return WorkerError(
        f"no shared memory for a worker ({size / 2**20:.1f} MiB): {'; '.join(dict.fromkeys(problems))}. Give the "
        f"container more (docker run --shm-size=1g), lower --rollout.slots or --workers, or keep "
        f"--rollout.inference=local"
    )


def _reserve(fileno: int, size: int) -> None:
    available = capacity.memory().available
    if size > max(available, ALWAYS):  # nothing else limits the kernel's own: it would end processes to make room
        raise OSError(errno.ENOMEM, f"{available / 2**20:.0f} MiB of memory are available")
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fileno, 0, size)
    else:
        for start in range(0, size, 2**20):
            os.pwrite(fileno, bytes(min(2**20, size - start)), start)


def _memory_file() -> int | None:
    """Memory of the kernel's own, which no size of /dev/shm limits (Linux)."""
    return os.memfd_create("ript") if hasattr(os, "memfd_create") else None


def _temporary_file(folder: str | None) -> int:
    with tempfile.TemporaryFile(prefix="ript-", dir=folder) as file:
        return os.dup(file.fileno())


def _folder() -> str:
    return str(SHARED_FOLDER) if os.access(SHARED_FOLDER, os.W_OK | os.X_OK) else tempfile.gettempdir()


def _open_now() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))
    return SPARE_FILES
