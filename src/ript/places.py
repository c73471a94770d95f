"""Where a result may be written."""

from __future__ import annotations

from pathlib import Path

from ript.errors import RunError


def require_replaceable(path: str | Path, kind: str, beginnings: tuple[bytes, ...]) -> None:
    """Refuse to write a file where that would replace anything but an older one of its kind.

    Args:
        path: the file to write.
        kind: what it is, with its article, such as "an HTML page".
        beginnings: one of them begins every file of that kind, after white space, in lower case.

    Raises:
        RunError: a folder, a device, or a file of another kind; nothing was touched.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise RunError(f"{path} is a folder: name a file in it")
        if not path.exists():
            return
        if not path.is_file():
            raise RunError(f"{path} is no regular file: name another one")
        with path.open("rb") as file:
            begins = file.read(64).lstrip().lower()
    except OSError:  # it may not even be looked at: who writes there finds out, and says so
        return
    if begins and not begins.startswith(beginnings):
        raise RunError(f"{path} is there already, and is not {kind}: name another file with --out, or move it")
