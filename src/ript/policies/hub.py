"""Policies on the Hugging Face hub: "hf://owner/name", or "hf://owner/name@revision"."""

from __future__ import annotations

import re
from pathlib import Path

from ript.core.errors import PolicyError

HUB = "hf://"


def on_hub(name: object) -> bool:
    """Whether this names a policy on the hub."""
    return isinstance(name, str) and name.startswith(HUB)


def fetch(name: str) -> Path:
    """The folder of the hub's cache that holds the policy; what is missing there is fetched first.

    Args:
        name: see the module; a revision is a branch, a tag or a commit (by default the branch main).

    Raises:
        PolicyError: not such a name, or neither the hub nor its cache has it.
    """
    repository, at, revision = name.removeprefix(HUB).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")) or (at and not revision):
        raise PolicyError(f"{name}: a policy on the hub is named {HUB}owner/name or {HUB}owner/name@revision")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None))
    except Exception as error:  # of the hub, the network library or the disk
        raise PolicyError(f"cannot fetch {name} from the model hub: {error}") from error


def commit_of(name: str) -> str:
    """The commit that the name stands for now, 40 hex digits.

    Raises:
        PolicyError: see `fetch`.
    """
    return fetch(name).name


def named(folder: str | Path) -> tuple[str, str] | None:
    """(name, commit) of a policy whose folder lies in the hub's cache; None for any other folder."""
    parts = Path(folder).absolute().parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not re.fullmatch("[0-9a-f]{40}", parts[2]):
        return None
    found = re.fullmatch("models--(.+?)--(.+)", parts[0])
    return (f"{HUB}{found[1]}/{found[2]}", parts[2]) if found else None


def at_commit(name: str, commit: str) -> str:
    """The same policy at a commit: what does not change any more when its branch moves on."""
    return f"{name.partition('@')[0]}@{commit}"
