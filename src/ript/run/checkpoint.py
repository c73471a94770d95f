"""Checkpoints: nested state as safetensors plus JSON, exact to the bit, and never unpickled.

A checkpoint is a folder:

    tensors.safetensors     every torch tensor and numpy array of the state
    state.json              everything else, with a tag where a tensor or array belongs
    manifest.json           format, iteration, and the size and SHA-256 of the two

It is written under another name and renamed, so a folder that has its final name was finished; the checksums catch what
the disk did to it later.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ript.core.disk import cannot_read, number_in, reading
from ript.core.errors import DataError, RunError
from ript.core.files import atomic_folder, require_content, utf8_name
from ript.run.files import read_json

FORMAT = 1
_NAME = re.compile(r"\d{6,}")
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state read back.

    Attributes:
        iteration: finished iterations at the time.
        state: equal to what was saved: types, dtypes, dictionary keys and every bit. Tensors are on the CPU.
    """

    iteration: int
    state: dict[str, Any]


def write_checkpoint(folder: str | Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Write `folder/NNNNNN` atomically.

    Args:
        folder: where checkpoints live.
        iteration: finished iterations.
        state: nested dicts (string, int, float, bool keys), lists and tuples of torch tensors (any dtype), numpy arrays
            and scalars (any plain dtype), bytes, strings, numbers, booleans and None.

    Raises:
        RunError: the disk says no, or a value of another kind is in the state; names its place.
    """
    tensors: dict[str, torch.Tensor] = {}
    document = _encode(dict(state), "state", tensors)
    path = Path(folder) / f"{iteration:06d}"
    with atomic_folder(path) as temporary:
        try:
            save_file(tensors, temporary / _TENSORS)
        except SafetensorError as error:
            # The library reports a full disk as its own error, with the system's words and number inside.
            raise OSError(number_in(error) or 0, str(error)) from error
        (temporary / _STATE).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        files = {name: _fingerprint(temporary / name) for name in (_TENSORS, _STATE)}
        manifest = {"format": FORMAT, "iteration": iteration, "files": files}
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return path


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify one checkpoint folder.

    Raises:
        DataError: a file is missing or its content is not what was written; names it.
        RunError: the checkpoint is of another format version, or it may be whole but is not to be had: the system does
            not let it be read, or Git LFS left pointers in its place.
    """
    path = Path(path)
    manifest = read_json(path / _MANIFEST, RunError)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise DataError(f"{path / _MANIFEST} is not the manifest of a checkpoint")
    if manifest["format"] != FORMAT:
        raise RunError(f"{path} has checkpoint format {manifest['format']}; this version of ript reads format {FORMAT}")
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != {_TENSORS, _STATE} or manifest.get("iteration") != int(path.name):
        raise DataError(f"{path / _MANIFEST} is damaged: it does not describe checkpoint {path.name}")
    for name, expected in files.items():
        with reading(path / name, RunError):
            if not (path / name).exists():
                raise DataError(f"{path / name} is missing")
            require_content(path / name, RunError)
            found = _fingerprint(path / name)
        if found != expected:
            raise DataError(f"{path / name} is damaged: expected {expected}, got {found}")
    with reading(path / _TENSORS, RunError), utf8_name(path / _TENSORS) as file:
        try:
            tensors = load_file(file)
        except SafetensorError as error:  # not its content, which is what was written
            raise cannot_read(path / _TENSORS, error, RunError) from error
    return Checkpoint(iteration=manifest["iteration"], state=_decode(read_json(path / _STATE, RunError), tensors))


def list_checkpoints(folder: str | Path) -> list[Path]:
    """Finished checkpoint folders, oldest first. Not verified."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name))


def _fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def _encode(value: Any, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain JSON for `value`; tensors and arrays go to `tensors`. A dict with one "$..." key is a tag."""
    if value is None or isinstance(value, bool) or type(value) in (int, str):
        return value
    if type(value) is float:
        # repr of a finite float is exact in JSON; the others have no JSON.
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, torch.Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = _own_storage(value, where)
        return {"$tensor": name}
    if isinstance(value, np.ndarray | np.generic):
        return _encode_array(value, where, tensors)
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if type(value) is tuple:
        return {"$tuple": [_encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]}
    if type(value) is list:
        return [_encode(item, f"{where}[{i}]", tensors) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{where}[{key!r}]", tensors) for key, item in value.items()}
        pairs = [
            [_encode(key, f"{where}, key {key!r}", tensors), _encode(item, f"{where}[{key!r}]", tensors)]
            for key, item in value.items()
        ]
        return {"$dict": pairs}
    raise RunError(
        f"cannot save {where} in a checkpoint: it is a {type(value).__module__}.{type(value).__qualname__}; expected "
        f"tensors, arrays, numbers, strings, bytes, booleans, None, or dicts, lists and tuples of them"
    )


def _encode_array(value: np.ndarray | np.generic, where: str, tensors: dict[str, torch.Tensor]) -> Any:
    array = np.asarray(value)
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise RunError(f"cannot save {where} in a checkpoint: expected an array of plain numbers, got {array.dtype}")
    # As bytes, so that every dtype and byte order comes back, also those that safetensors lacks.
    name = f"{len(tensors):06d}"
    tensors[name] = torch.from_numpy(np.frombuffer(array.tobytes(), dtype=np.uint8).copy())
    tag = "$array" if isinstance(value, np.ndarray) else "$scalar"
    return {tag: {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}}


def _own_storage(tensor: torch.Tensor, where: str) -> torch.Tensor:
    """A contiguous CPU copy: safetensors refuses tensors that share memory, and training goes on meanwhile."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise RunError(f"cannot save {where} in a checkpoint: expected a dense tensor, got {tensor.layout}")
    return tensor.detach().to("cpu", copy=True).resolve_conj().resolve_neg().contiguous()


def _decode(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((tag, content),) = value.items()
        match tag:
            case "$tensor":
                return tensors[content]
            case "$array" | "$scalar":
                flat = np.frombuffer(tensors[content["name"]].numpy().tobytes(), dtype=np.dtype(content["dtype"]))
                array = flat.reshape(content["shape"]).copy()
                return array if tag == "$array" else array[()]
            case "$float":
                return float(content)
            case "$bytes":
                return base64.b64decode(content)
            case "$tuple":
                return tuple(_decode(item, tensors) for item in content)
            case "$dict":
                return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
    return {key: _decode(item, tensors) for key, item in value.items()}
