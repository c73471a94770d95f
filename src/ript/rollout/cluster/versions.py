"""Which versions of packages are installed here: the same on every node, or rollouts would not be the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata

ALWAYS = ("ript", "torch", "numpy", "ray")


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Package -> version, "none" of one that is not there; and Python's."""
    found = {"Python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """What differs, in words; empty when nothing does."""
    found = [f"{name} {theirs.get(name, 'none')} (here {version})" for name, version in ours.items()]
    return ", ".join(said for said, name in zip(found, ours, strict=True) if theirs.get(name) != ours[name])
