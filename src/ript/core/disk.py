"""Errors of the system about files, as errors of `ript`: which path, what, and what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ript.core.errors import DataError, RiptError, RunError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, or write to another disk",
    errno.EDQUOT: "the disk quota is used up: free some space, or write to another disk",
    errno.EFBIG: "the file would be larger than is allowed: raise the limit (ulimit -f), or use another disk",
    errno.EROFS: "the file system is read-only: write somewhere else",
    errno.EACCES: "permission denied: make it writable for this user, or write somewhere else",
    errno.EPERM: "permission denied: make it writable for this user, or write somewhere else",
    errno.EIO: "the disk reports an input/output error: check it, or write to another disk",
    errno.ESTALE: "the network file system lost it (stale file handle): mount it again, or write to another disk",
    errno.ENOENT: "the folder is not there: was it moved or deleted meanwhile, or can none be made there?",
    errno.ENOTDIR: "a part of this path is a file, not a folder: write somewhere else",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.EEXIST: "something of that name is in the way: move it, or write somewhere else",
    errno.ENOTEMPTY: "something of that name is in the way: move it, or write somewhere else",
    errno.EBUSY: "the system uses it (a mount point?): write somewhere else",
    errno.EXDEV: "the file system cannot rename there: write to another disk",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle: remove them, or write somewhere else",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or use fewer --workers",
    errno.ENFILE: "too many files are open on this machine: close programs",
}
_READ_REMEDIES = {
    errno.EACCES: "permission denied: let this user read it (chmod, chown), or copy it",
    errno.EPERM: "permission denied: let this user read it (chmod, chown), or copy it",
    errno.EIO: "the disk reports an input/output error: check it, and try again",
    errno.ESTALE: "the network file system lost it (stale file handle): mount it again, and try again",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENOENT: "it is not there",
    errno.ENOLCK: "the file system has no locks: copy it to another disk",
    **{number: _REMEDIES[number] for number in (errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP)},
}


def number_in(error: BaseException) -> int | None:
    """The system's error number, which HDF5 and safetensors only have in their message."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"\b(?:os error|errno =|Errno) (\d+)", str(error))
    return int(found[1]) if found else None


def refused(error: BaseException) -> bool:
    """Whether the system did not let a file be read; else its content was what a library could not make sense of."""
    return number_in(error) not in (None, 0, errno.EINVAL, errno.EOVERFLOW)


def cannot_write(path: str | Path, error: OSError, raises: type[RiptError] = RunError) -> RiptError:
    """The error to raise when `path` could not be written: says where, what and what to do."""
    what = _REMEDIES.get(number := number_in(error) or 0)
    if what is None:
        what = f"{os.strerror(number) if number else error.strerror or error}: write somewhere else"
    return raises(f"cannot write {path}: {what} (nothing half-written was left there)")


def cannot_read(path: str | Path, error: BaseException, raises: type[RiptError] = DataError) -> RiptError:
    """The error to raise when the system does not let `path` be read; its content may well be whole."""
    what = _READ_REMEDIES.get(number := number_in(error) or 0)
    if what is None:
        what = f"{os.strerror(number) if number else error}: try again, or copy it to another disk"
    return raises(f"{path} cannot be read: {what}")


def unexpected(error: OSError) -> str:
    """An error of the system that nobody has translated, with its path, as far as it has one, and a remedy."""
    if error.filename is not None:
        where = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
        what = (_REMEDIES | _READ_REMEDIES).get(error.errno or 0, f"{error.strerror}: use another place")
        return f"{where} cannot be used: {what}"
    if isinstance(error, FileNotFoundError) and not os.path.exists(os.curdir):
        return "the current folder was deleted: change to one that exists (cd)"
    return error.strerror or str(error)


@contextmanager
def writing(path: str | Path, raises: type[RiptError] = RunError) -> Iterator[None]:
    """Turn an error of the disk raised inside into one about `path`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error, raises) from error


@contextmanager
def reading(path: str | Path, raises: type[RiptError] = DataError) -> Iterator[None]:
    """Turn an error of the disk raised inside into one about `path`; a file that is not there stays that."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise cannot_read(path, error, raises) from error
