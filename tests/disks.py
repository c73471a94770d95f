"""Users and file systems that say no."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may read and write anything: give that up for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def open_to_all(path: Path) -> Path:
    """Let every user into a test's folder, whose parents pytest makes for its owner alone."""
    for folder in (path, *path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    return path


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def mounted(path: Path, size: str = "1m") -> Iterator[Path]:
    """A small file system of its own at `path`, which is created; it is found again if a folder above it is renamed."""
    path.mkdir()
    name = f"test-{secrets.token_hex(8)}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", name, path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk: {os.fsdecode(done.stderr).strip()}")
    try:
        yield path
    finally:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        (place,) = (line.split()[1] for line in mounts if line.startswith(f"{name} "))
        subprocess.run(["umount", place], check=True)


def modes(folder: Path) -> dict[str, int]:
    """Name -> permission bits of everything in a folder, and of itself."""
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
