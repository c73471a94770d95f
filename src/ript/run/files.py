"""JSON documents and logs of JSON lines: written whole or not at all, and read with what is wrong named."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ript.core.disk import writing
from ript.core.documents import json_value
from ript.core.errors import DataError, RiptError
from ript.core.files import encoded, read_bytes, read_text, sync, write_text

_SURROGATE = re.compile("[\ud800-\udfff]")


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON document atomically: indented, NaN and infinities as null."""
    write_text(path, dumps(value, indent=2) + "\n")


def read_json(path: str | Path, unreadable: type[RiptError] = DataError) -> Any:
    """Read a JSON document.

    Args:
        path: the file.
        unreadable: class of the error when it is there but cannot be read, or is a pointer of Git LFS: it may be whole.

    Raises:
        DataError: the file is missing or is not JSON; names it.
    """
    try:
        return json_value(read_text(path, unreadable))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except ValueError as error:
        raise DataError(f"{path} is not a readable JSON document: {error}") from error


def dumps(value: object, indent: int | None = None) -> str:
    """JSON text that any JSON reader accepts: NaN and infinities, which JSON lacks, become null.

    NumPy scalars and arrays, tuples, paths and frozen mappings are written as their plain counterparts; anything else
    that JSON does not know is a `TypeError`. The text can always be encoded: bytes of a file name that are not UTF-8
    are escaped, and come back when it is read.
    """
    text = json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


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
    with writing(path), open(path, "ab") as file:
        length = file.tell()
        try:
            file.write(encoded(line) + b"\n")
            file.flush()
            sync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.truncate(path, length)
            raise


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read JSON lines. A missing file is empty; a last line torn by a kill (it does not end) is left out.

    Raises:
        DataError: it cannot be read, or a line is not a JSON object; names file and line.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return []
    lines = [line for line in content.split(b"\n") if line.strip()]
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json_value(line)
            if not isinstance(row, dict):
                raise ValueError(f"expected an object, got {type(row).__name__}")
        except ValueError as error:
            torn = line.startswith(b"{") or not line.strip(b"\0")  # a power cut may leave zeros
            if number == len(lines) and torn and not content.endswith(b"\n"):
                break
            raise DataError(f"{path}, line {number}: not a JSON object ({error})") from error
        rows.append(row)
    return rows


def now() -> str:
    """The time as it is written into files: UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
