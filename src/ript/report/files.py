"""Files that are either whole or not there: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ript.errors import DataError, RunError

_TEMPORARY = ".tmp"
_SET_ASIDE = ".old"

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space, or write to another disk",
    errno.EDQUOT: "the disk quota is used up: free some space, or write to another disk",
    errno.EROFS: "the file system is read-only: write somewhere else",
    errno.EACCES: "permission denied: make it writable for this user, or write somewhere else",
    errno.EPERM: "permission denied: make it writable for this user, or write somewhere else",
    errno.EIO: "the disk reports an input/output error: check it, or write to another disk",
    errno.ENOENT: "the folder is not there: was it moved or deleted meanwhile, or can none be made there?",
    errno.ENOTDIR: "a part of this path is a file, not a folder: write somewhere else",
    errno.EEXIST: "something of that name is in the way: move it, or write somewhere else",
}


def cannot_write(path: str | Path, error: OSError) -> RunError:
    """The error to raise when `path` could not be written: says where, what and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, str(error))
    return RunError(f"cannot write {path}: {remedy} (nothing half-written was left there)")


@contextmanager
def translate_write_errors(path: str | Path) -> Iterator[None]:
    """Turn an error of the disk raised inside into a `RunError` about `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise cannot_write(path, error) from error


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents; one that is already there is fine.

    Raises:
        RunError: it cannot be created.
    """
    path = Path(path)
    with translate_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on a clean exit it replaces `path`, on an exception it is removed.

    A reader sees the old content or the new one, never a mixture, also after a power cut.

    Raises:
        RunError: the disk is full, read-only or forbidden; an old file is left as it was.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise RunError(f"cannot write {path}: it is {'a folder' if path.is_dir() else 'no regular file'}")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    make_folder(path.parent)
    with translate_write_errors(path):
        try:
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on a clean exit it takes the place of `path`.

    A process killed between the two renames leaves the old folder set aside; `clean_leftovers` brings it back.

    Raises:
        RunError: the disk is full, read-only or forbidden; an old folder is left as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    aside = path.with_name(f".{path.name}{_SET_ASIDE}")
    make_folder(path.parent)
    with translate_write_errors(path):
        try:
            temporary.mkdir()
            yield temporary
            for part in sorted(temporary.rglob("*")):
                _flush(part)
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(path, aside)
            os.replace(temporary, path)
            _flush(path.parent)
        except BaseException:
            if aside.exists() and not path.exists():
                os.replace(aside, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)


def clean_leftovers(folder: str | Path) -> None:
    """Remove what a killed process left of `atomic_file` and `atomic_folder`, and bring back what it had set aside.

    Only for a folder that no other process is writing to.
    """
    folder = Path(folder)
    with translate_write_errors(folder):
        for aside in folder.glob(f".*{_SET_ASIDE}"):
            place = folder / aside.name[1 : -len(_SET_ASIDE)]
            if place.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                os.replace(aside, place)
        for temporary in folder.glob(f".*{_TEMPORARY}"):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file atomically. Raises `RunError` when the disk says no."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a whole UTF-8 file atomically. Raises `RunError` when the disk says no."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON document atomically: indented, NaN and infinities as null."""
    write_text(path, dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON document.

    Raises:
        DataError: the file is missing or is not JSON; names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not a readable JSON document: {error}") from error


def dumps(value: object, indent: int | None = None) -> str:
    """JSON text that any JSON reader accepts: NaN and infinities, which JSON lacks, become null.

    NumPy scalars and arrays, tuples, paths and frozen mappings are written as their plain counterparts; anything else
    that JSON does not know is a `TypeError`.
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)


def plain(value: object) -> Any:
    """`value` as null, bool, int, finite float, str, list and dict with string keys only."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item) for item in value]
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: {value!r}")


def append_line(path: str | Path, line: str) -> None:
    """Append one line and flush it to disk; when that fails the file is cut back to its old length.

    Raises:
        RunError: the disk is full, read-only or forbidden.
    """
    path = Path(path)
    with translate_write_errors(path), open(path, "ab") as file:
        length = file.tell()
        try:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(path, length)
            raise


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read JSON lines. A missing file is empty; a last line torn by a kill (it does not end) is left out.

    Raises:
        DataError: a line that ends is not a JSON object; names file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    content = path.read_bytes()
    lines = [line for line in content.split(b"\n") if line.strip()]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {type(row).__name__}")
        except ValueError as error:
            if number == len(lines) and not content.endswith(b"\n"):
                break
            raise DataError(f"{path}, line {number}: not a JSON object ({error})") from error
        rows.append(row)
    return rows


def _flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def now() -> str:
    """The time as it is written into files: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
