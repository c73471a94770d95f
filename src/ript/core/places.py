"""Where a result may be written, and where the cache lies."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable
from pathlib import Path

from ript.core.disk import cannot_read, cannot_write, writing
from ript.core.errors import RunError
from ript.core.files import make_folder

CACHE = "RIPT_CACHE"
"""Environment variable: the folder in which pre-trained bases are kept."""


def require_replaceable(path: str | Path, kind: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse to write a file where that would replace anything but an older one of its kind.

    Args:
        path: the file to write.
        kind: what it is, with its article, such as "a report of ript".
        is_ours: whether a file's content is of that kind; what it raises says that it is not.

    Raises:
        RunError: a folder, a device, a file of another kind, or one that cannot be looked at; nothing was touched.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise RunError(f"{path} is a folder: name a file in it")
        if not path.exists():
            return
        if not path.is_file():
            raise RunError(f"{path} is no regular file: name another one")
    except OSError:  # its folder may not even be looked at: who writes there finds out, and says so
        return
    elsewhere = "name another file, or move it"
    try:
        with path.open("rb") as file:
            if not file.read(1):
                return
    except OSError as error:  # it could be replaced all the same
        unknown = f"it is there already, and may not be {kind}: {elsewhere}"
        raise RunError(f"{cannot_read(path, error)}; {unknown}") from error
    try:
        ours = is_ours(path)
    except Exception:  # whatever a reader trips over
        ours = False
    if not ours:
        raise RunError(f"{path} is there already, and is not {kind}: {elsewhere}")


def require_writable_folder(path: str | Path) -> None:
    """Make a folder and see that files can be written into it, before the work whose result is to go there.

    Raises:
        RunError: they cannot.
    """
    with writing(make_folder(path)):
        _write_something(Path(path))


def _write_something(folder: Path) -> None:
    """Into a file without a name, so that nothing is left behind."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")
        file.flush()


def cache_folder() -> Path:
    """Where bases are kept between runs: `$RIPT_CACHE`, or `ript` in the user's cache folder. It need not exist.

    Variables that are empty count as not set, and so does a relative XDG_CACHE_HOME, as its specification says.

    Raises:
        RunError: there is no home folder, or a `~` that names none; names RIPT_CACHE.
    """
    if chosen := os.environ.get(CACHE):
        if (folder := os.path.expanduser(chosen)).startswith("~"):
            raise RunError(f"{CACHE}={chosen}: {folder.partition('/')[0]} is no home folder: set it to another folder")
        return Path(os.path.abspath(folder))
    if os.path.isabs(shared := os.path.expanduser(os.environ.get("XDG_CACHE_HOME", ""))):
        return Path(shared) / "ript"
    home = os.environ.get("HOME") or _home_of_user()
    if not os.path.isabs(home):
        why = f"HOME={home} is relative" if home else f"HOME is not set, and user {os.getuid()} has none"
        raise RunError(f"there is no home folder to keep the cache in ({why}): set {CACHE} to a folder")
    return Path(home) / ".cache" / "ript"


def _home_of_user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def _is_there(place: Path) -> bool:
    """Raises `OSError` when nothing could be: a name too long, say."""
    try:
        place.lstat()
    except FileNotFoundError:
        return False
    return True


def cache_trouble() -> str:
    """Why nothing can be kept in the cache, and what to do; empty when all is well. Leaves nothing behind."""
    try:
        folder = cache_folder()
    except RunError as error:
        return str(error)
    try:
        _write_something(next(place for place in (folder, *folder.parents) if _is_there(place)))
    except OSError as error:
        return f"{cannot_write(folder, error)}; another place for the cache: set {CACHE} to a folder"
    return ""
