"""Files and folders that are either whole or not there, and errors of the disk that say where and what to do.

What is written goes under another name beside its place, is flushed to the disk, and is renamed. All of `ript` writes
and reads through here. What a file system may refuse without harm (to flush a folder, to change a mode, to remove what
is not needed any more) is tried and never ends work.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ript.core.disk import cannot_read, reading, writing
from ript.core.errors import DataError, RiptError, RunError

_TEMPORARY = ".tmp"
_SET_ASIDE = ".old"
_LEFTOVER = re.compile(r"\..*\.[0-9a-f]{8}(\.tmp|\.old)")
_ASIDE = re.compile(r"\.(?P<name>.+?)(\.[0-9a-f]{8})?\.old")
_LONGEST_NAME = 255 - len("..01234567.tmp")
"""Bytes of a file's name, so that its temporary one fits into what file systems allow."""
_ATTEMPTS = 100

_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY}
"""What file systems answer that cannot flush; none of them is about data that was lost."""
_LFS = b"version https://git-lfs.github.com/spec/"


# ------------------------------------------------------------------ names


def expanded(path: str | Path) -> Path:
    """The path with a leading `~` as the home folder. The shell does not expand it in `--out=~/x`."""
    return Path(os.path.expanduser(path))


def absolute(path: str | Path) -> Path:
    """The path from the root, a leading `~` expanded and symbolic links kept.

    Raises:
        RunError: it is relative, and the current folder was deleted.
    """
    path = expanded(path)
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise RunError(
            f"{path} is relative to the current folder, which does not exist any more: change to one that does (cd)"
        ) from error


def _real(path: str | Path) -> Path:
    """Where a path leads: what a symbolic link points to is replaced, the link stays."""
    real = Path(os.path.realpath(absolute(path)))
    if real.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return real


def _beside(path: Path, suffix: str) -> Path:
    name = path.name
    while len(os.fsencode(name)) > _LONGEST_NAME:
        name = name[:-1]
    return path.with_name(f".{name}.{secrets.token_hex(4)}{suffix}")


def is_leftover(name: str) -> bool:
    """Whether a file or folder of that name is what a killed process left here."""
    return _LEFTOVER.fullmatch(name) is not None


# ------------------------------------------------------------------ writing


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents; one that is already there is fine. Of a symbolic link, what it points to.

    Raises:
        RunError: it cannot be created.
    """
    path = Path(path)
    with writing(path):
        _real(path).mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def atomic_file(path: str | Path, raises: type[RiptError] = RunError) -> Iterator[Path]:
    """Yield an empty temporary file in the same folder; on a clean exit it replaces `path`, else it is removed.

    A reader sees the old content or the new one, never a mixture, also after a power cut. Of a symbolic link the file
    that it points to is replaced. The file gets the mode that any new file gets (the umask), whoever fills it.

    Args:
        path: the file.
        raises: class of the error.

    Raises:
        RiptError: the disk is full, read-only or forbidden, or no regular file is there; an old file is left as it was.
    """
    with writing(path, raises):
        real = _real(path)
        if real.exists() and not real.is_file():
            raise raises(f"cannot write {path}: it is {'a folder' if real.is_dir() else 'no regular file'}")
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real, _TEMPORARY)
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            mode = temporary.stat().st_mode
            yield temporary
            _widen(temporary, mode)
            _flush(temporary)
            os.replace(temporary, real)
            _flush(real.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, raises: type[RiptError] = RunError) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; on a clean exit it takes the place of `path`.

    A process killed between the two renames leaves the old folder set aside; `clean_leftovers` brings it back. Of a
    symbolic link the folder that it points to is replaced. A folder that cannot be renamed or must not be (a mount
    point, the current folder) gets the new files one after another instead, each of them whole.

    Args:
        path: the folder.
        raises: class of the error.

    Raises:
        RiptError: the disk is full, read-only or forbidden; an old folder is left as it was.
    """
    with writing(path, raises):
        real = _real(path)
        if os.path.lexists(real) and not real.is_dir():
            raise raises(f"cannot write {path}: it is a file, and a folder is to be there")
        stays = _stays(real)
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(real / real.name if stays else real, _TEMPORARY)
        try:
            temporary.mkdir()
            yield temporary
            for part in sorted(temporary.rglob("*")):
                if part.is_file():
                    _widen(part, temporary.stat().st_mode)
                _flush(part)
            if stays or not _swap(temporary, real):
                _fill(real, temporary)
            _flush(real.parent)
        finally:
            remove(temporary)


def _stays(folder: Path) -> bool:
    """Whether a folder has to be the same one afterwards: others are in it, or it has no place beside it."""
    if not folder.is_dir():
        return False
    with suppress(OSError):
        here = Path.cwd()
        if here == folder or folder in here.parents:
            return True
    effective = os.access in os.supports_effective_ids
    return folder.is_mount() or not os.access(folder.parent, os.W_OK | os.X_OK, effective_ids=effective)


def _swap(new: Path, folder: Path) -> bool:
    """Move `new` to `folder`; what was there is set aside first, and comes back when the move fails.

    Returns:
        False when the file system cannot rename what is there (a mount point, a lower layer of an overlay).
    """
    for attempt in range(_ATTEMPTS):
        aside: Path | None = _beside(folder, _SET_ASIDE)
        assert aside is not None
        try:
            os.replace(folder, aside)
        except FileNotFoundError:
            aside = None
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EBUSY):
                return False
            raise
        try:
            os.replace(new, folder)
        except BaseException as error:
            if aside is not None and not folder.exists():
                os.replace(aside, folder)
            in_the_way = isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST)
            if in_the_way and attempt < _ATTEMPTS - 1:  # another process was faster: its folder is the old one now
                if aside is not None:
                    remove(aside)
                continue
            raise
        if aside is not None:
            remove(aside)
        return True
    return False


def _fill(folder: Path, new: Path) -> None:
    """Move the files of `new` into `folder` one by one, and remove what was there besides."""
    names = {part.name for part in new.iterdir()}
    for part in sorted(new.iterdir()):
        if part.is_dir():
            remove(folder / part.name)
        os.replace(part, folder / part.name)
    _flush(folder)
    for old in folder.iterdir():
        if old.name not in names and old != new:
            remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder that is not needed any more, as far as that is possible now.

    A folder gets a leftover's name first: should a part of it stay (a network file system keeps what is open
    somewhere), nobody takes that for the folder.
    """
    with suppress(OSError):
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
            return
        if not path.name.endswith(_TEMPORARY):
            rest = _beside(path, _TEMPORARY)
            with suppress(OSError):
                os.replace(path, rest)
                path = rest
        shutil.rmtree(path, ignore_errors=True)


def clean_leftovers(folder: str | Path) -> None:
    """Remove what a killed process left of `atomic_file` and `atomic_folder`, and bring back what it had set aside.

    Only for a folder that no other process is writing to. Leftovers beside what a symbolic link in it points to are
    cleaned too.

    Raises:
        RunError: what was set aside cannot be brought back.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    with writing(folder):
        entries = list(folder.iterdir())
        _clean(entries)
        for link in entries:
            if link.is_symlink():
                target = Path(os.path.realpath(link))
                with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                    _clean([part for part in target.parent.iterdir() if _belongs(part.name, target.name)])


def _belongs(leftover: str, name: str) -> bool:
    return is_leftover(leftover) and leftover.rpartition(".")[0].rpartition(".")[0] == f".{name}"


def _clean(entries: list[Path]) -> None:
    asides = [(found["name"], path) for path in entries if (found := _ASIDE.fullmatch(path.name))]
    for name, aside in sorted(asides, key=lambda pair: pair[1].lstat().st_ctime_ns, reverse=True):  # the newest first
        place = aside.with_name(name)
        if place.exists():
            remove(aside)
        else:
            os.replace(aside, place)
    for path in entries:
        if path.name.startswith(".") and path.name.endswith(_TEMPORARY):
            remove(path)


def write_bytes(path: str | Path, data: bytes, raises: type[RiptError] = RunError) -> None:
    """Write a whole file atomically. Raises `RunError` when the disk says no."""
    with atomic_file(path, raises) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str, raises: type[RiptError] = RunError) -> None:
    """Write a whole UTF-8 file atomically. Raises `RunError` when the disk says no."""
    write_bytes(path, encoded(text), raises)


def encoded(text: str) -> bytes:
    r"""UTF-8. A file name that is not UTF-8 has bytes that Python holds as surrogates: they become \udcXX."""
    return text.encode("utf-8", "backslashreplace")


def sync(handle: int) -> None:
    """Force an open file to the disk, where the file system can do that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _flush(path: Path) -> None:
    """Force a file to the disk; a folder only where that is possible."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a umask may take the right to read what one has written
        return
    with suppress(OSError) if path.is_dir() else nullcontext():
        sync(handle)
    os.close(handle)


def _widen(path: Path, mode: int) -> None:
    """Give a file what `mode` lets others do with files: some libraries make theirs for the owner alone."""
    has = stat.S_IMODE(path.stat().st_mode)
    wanted = has | (mode & 0o666)
    if wanted == has:
        return
    try:
        path.chmod(wanted)
    except OSError:  # no modes can be changed there: but a new file gets the right one
        copy = _beside(path, _TEMPORARY)
        try:
            shutil.copyfile(path, copy)
            os.replace(copy, path)
        finally:
            remove(copy)


# ------------------------------------------------------------------ reading


def require_content(path: str | Path, raises: type[RiptError] = DataError) -> None:
    """Refuse what is no regular file, cannot be opened, or holds a pointer of Git LFS instead of the content.

    Raises:
        RiptError: of the class `raises`; says what and what to do.
    """
    try:
        _content(path, raises, len(codecs.BOM_UTF8 + _LFS))
    except OSError as error:
        raise cannot_read(path, error, raises) from error


def _content(path: str | Path, raises: type[RiptError], most: int = -1) -> bytes:
    """A regular file, or the `most` bytes that it begins with. Of a pipe or a device the end may never come."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise raises(f"{path} is no regular file but a pipe or a device: name a file")
        data = file.read(most)
    if data.removeprefix(codecs.BOM_UTF8).startswith(_LFS):
        raise raises(
            f"{path} is a pointer of Git LFS, not the file itself: fetch it in its repository with `git lfs pull`"
        )
    return data


@contextmanager
def utf8_name(path: str | Path) -> Iterator[str]:
    """A name of an existing file that is UTF-8, within the block: some libraries take no other."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield name


def read_bytes(path: str | Path, raises: type[RiptError] = DataError) -> bytes:
    """A file, without the byte-order mark of UTF-8 that it may begin with.

    Raises:
        FileNotFoundError: it is not there.
        RiptError: it cannot be read, is no regular file, or is a pointer of Git LFS.
    """
    with reading(path, raises):
        return _content(path, raises).removeprefix(codecs.BOM_UTF8)


def read_text(path: str | Path, raises: type[RiptError] = DataError) -> str:
    """A UTF-8 file. Raises as `read_bytes` does, and `UnicodeDecodeError` when it is not UTF-8."""
    return read_bytes(path, raises).decode("utf-8")
