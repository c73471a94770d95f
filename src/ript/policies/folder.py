"""A policy on disk: a folder in the layout that model hubs use. Nothing is ever unpickled.

config.json         kind, format version, configuration, simulator and render settings
model.safetensors   weights and statistics
README.md           model card: how it was trained, what it measured
NAME.safetensors    further tensors, such as instruction embeddings that were given
NAME.json           further documents, such as a tokenizer
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ript.core.disk import cannot_read, cannot_write, number_in, reading, refused, writing
from ript.core.documents import json_value
from ript.core.errors import ConfigError, NotFiniteError, PolicyError
from ript.core.files import atomic_folder, encoded, is_leftover, read_text, require_content, utf8_name
from ript.core.types import SimulatorSpec
from ript.core.version import VERSION

FORMAT = 2
"""What is written: since 2 the simulator's proprioception is described part by part."""
READABLE = (1, FORMAT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedPolicy:
    folder: Path
    config: dict
    simulator: SimulatorSpec
    card: dict
    weights: dict[str, torch.Tensor]

    def further(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of `NAME.safetensors`; none when there is no such file."""
        path = self.folder / f"{name}.safetensors"
        return read_tensors(path) if path.exists() else {}


def save(
    folder: Path,
    kind: str,
    config: Mapping,
    simulator: SimulatorSpec,
    weights: Mapping[str, torch.Tensor],
    card: Mapping,
    documents: Mapping[str, Mapping] | None = None,
    notes: Sequence[str] = (),
    **further: Mapping[str, torch.Tensor],
) -> None:
    """Write a policy folder, whole or not at all: an existing one is replaced only when the new one is complete.

    `further` tensors, when there are any, go into files of their own, named after the argument; so do `documents`, as
    NAME.json. `notes` are whole sentences for readers of the model card.

    Raises:
        PolicyError: the disk is full, read-only or forbidden, or the folder holds anything but a policy; what was there
            is left as it was.
        NotFiniteError: a weight is NaN or infinite: nothing could load it.
    """
    files = {"model": weights} | {k: v for k, v in further.items() if v}
    names = [*(f"{name}.safetensors" for name in files), *(f"{name}.json" for name in documents or {})]
    document = {
        "format": FORMAT,
        "kind": kind,
        "config": dict(config),
        "simulator": simulator.to_json(),
        "card": dict(card),
        "files": sorted([*names, *_ALWAYS]),
    }
    refuse_to_replace(folder)
    if bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
        raise NotFiniteError(
            f"the policy is not saved in {folder}: {bad[0]} holds NaN or infinity (and {len(bad) - 1} more of "
            f"{len(weights)} tensors); go back to weights that are finite, and train with a lower learning rate"
        )
    try:
        with atomic_folder(folder, PolicyError) as temporary:
            _write(temporary, document, files, notes)
            for name, content in (documents or {}).items():
                (temporary / f"{name}.json").write_bytes(encoded(json.dumps(content, indent=2) + "\n"))
    except SafetensorError as error:  # the library reports a full disk as its own error
        raise cannot_write(folder, OSError(number_in(error) or 0, str(error)), PolicyError) from error


_ALWAYS = ("config.json", "README.md")


def refuse_to_replace(folder: Path) -> None:
    """Raise unless the folder is new, empty, or holds a policy and nothing else.

    Raises:
        PolicyError: saving a policy there would delete something else.
    """
    with writing(folder, PolicyError):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise PolicyError(f"{folder} is a file: a policy is saved as a folder, choose another name")
        names = {path.name for path in folder.iterdir() if not is_leftover(path.name)}
    strange = {name for name in names if name not in _ALWAYS and not name.endswith((".json", ".safetensors"))}
    if names and not strange:
        own = _configuration(folder, "format", "kind", "simulator").get("files")  # another library's is none of ours
        strange = names - set(own or [*_ALWAYS, *(name for name in names if name.endswith(".safetensors"))])
    if strange:
        listed = ", ".join(sorted(strange)[:3]) + (", ..." if len(strange) > 3 else "")
        raise PolicyError(f"{folder} holds more than a policy ({listed}): choose another folder, nothing was written")


def _write(
    folder: Path, document: Mapping, files: Mapping[str, Mapping[str, torch.Tensor]], notes: Sequence[str]
) -> None:
    (folder / "config.json").write_bytes(encoded(json.dumps(document, indent=2) + "\n"))
    (folder / "README.md").write_bytes(encoded(model_card(document, notes)))
    for file, tensors in files.items():
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, folder / f"{file}.safetensors")


def load(folder: Path, kind: str | None = None) -> SavedPolicy:
    """Read a policy folder.

    Raises:
        PolicyError: missing, partial, corrupt, of another kind or format, or the system does not let it be read.
    """
    _require(folder)
    try:
        document = json_value(read_text(folder / "config.json", PolicyError))
        if document["format"] not in READABLE:
            read = " and ".join(map(str, READABLE))
            raise PolicyError(
                f"{folder} has policy format {document['format']}; this version of ript ({VERSION}) reads {read}: "
                "use the version that wrote it"
            )
        if kind is not None and document["kind"] != kind:
            raise PolicyError(f"{folder} holds a {document['kind']!r} policy, expected {kind!r}")
        simulator = SimulatorSpec.from_json(document["simulator"])
        config, card = document["config"], document["card"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ConfigError) as error:
        raise PolicyError(f"{folder / 'config.json'} is corrupt: {type(error).__name__}: {error}") from error
    weights = read_tensors(folder / "model.safetensors")
    return SavedPolicy(folder=folder, config=config, simulator=simulator, card=card, weights=weights)


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        PolicyError: missing, corrupt or truncated, or the system does not let it be read.
    """
    with reading(path, PolicyError):
        if not Path(path).is_file():
            raise PolicyError(f"there is no file {path}")
        require_content(path, PolicyError)
        try:
            with utf8_name(path) as name:
                return load_file(name)
        except (SafetensorError, ValueError) as error:
            if refused(error):
                raise cannot_read(path, error, PolicyError) from error
            raise PolicyError(f"{path} is corrupt or truncated: {error}") from error


def fill(module: nn.Module, saved: SavedPolicy) -> None:
    """Load the weights, all of them and no others, naming what does not fit."""
    own = module.state_dict()
    problems = [f"{k}: missing in the file" for k in own.keys() - saved.weights.keys()]
    problems += [f"{k}: not part of this policy" for k in saved.weights.keys() - own.keys()]
    problems += [
        f"{k}: expected {list(own[k].shape)} {own[k].dtype}, got {list(v.shape)} {v.dtype}"
        for k, v in saved.weights.items()
        if k in own and (own[k].shape != v.shape or own[k].dtype != v.dtype)
    ]
    problems += [f"{k}: holds NaN or infinity" for k, v in saved.weights.items() if not torch.isfinite(v).all()]
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise PolicyError(
            f"the weights in {saved.folder} do not fit: {'; '.join(sorted(problems)[:5])}{more}; the folder is "
            "damaged, or of a version of ript that built such policies otherwise: use that version, or train it again "
            "(`ript sft`)"
        )
    module.load_state_dict(saved.weights)


def fingerprint(folder: Path) -> str:
    """A hash of all files of a policy folder but its card, 16 hex digits.

    Raises:
        PolicyError: the system does not let one be read.
    """
    digest = hashlib.sha256()
    with reading(folder, PolicyError):
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name != "README.md" and not is_leftover(path.name):
                with path.open("rb") as file:
                    digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def kind(folder: Path) -> str:
    """Which kind of policy a folder holds ("quest", ...)."""
    return str(_configuration(folder, "kind")["kind"])


def suite(folder: Path) -> str:
    """The simulator suite that the policy in a folder was made for; empty where none is recorded, or no word."""
    found = _configuration(folder).get("simulator")
    named = found.get("suite") if isinstance(found, dict) else None
    return named if isinstance(named, str) else ""


def card(folder: Path) -> Mapping[str, Any]:
    """The model card of the policy in a folder; empty where its kind keeps none. Its weights are not read."""
    found = _configuration(folder).get("card")
    return found if isinstance(found, dict) else {}


def _configuration(folder: Path, *has: str) -> dict[str, Any]:
    """The document of a policy folder. Raises `PolicyError` unless it is one, which has these entries."""
    _require(folder)
    try:
        found = json_value(read_text(folder / "config.json", PolicyError))
        if missing := [name for name in has if name not in found]:
            raise KeyError(missing[0])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"{folder / 'config.json'} is not a policy's configuration: {error}") from error
    return dict(found)


def foreign(folder: Path) -> dict | None:
    """The config.json of a folder that another program wrote; None for a policy folder of ours, or no folder."""
    try:
        config = json_value(read_text(folder / "config.json", PolicyError))
    except (OSError, ValueError, PolicyError):
        return None
    return config if isinstance(config, dict) and "kind" not in config else None


def _require(folder: Path) -> None:
    """Raise unless the folder has the files of a policy."""
    with reading(folder, PolicyError):
        if not folder.is_dir():
            raise PolicyError(f"no policy folder at {folder}: give the folder that `ript sft` or `ript rl` wrote")
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                hint = f"; did you mean {folder / 'policy'}?" if (folder / "policy" / name).is_file() else ""
                raise PolicyError(f"{folder} is not a complete policy folder: {name} is missing{hint}")


def model_card(document: Mapping, notes: Sequence[str] = ()) -> str:
    """A model card with hub metadata. What was not measured is not claimed, nor a licence: that is its owner's to give.

    It does not name the folder: that is renamed while it is written, and by its owner later.
    """
    simulator, card = document["simulator"], document["card"]
    lines = [
        "---",
        "library_name: ript",
        "pipeline_tag: robotics",
        f"tags: [robotics, {document['kind']}, {simulator['suite']}]",
        "---",
        "",
        f"# {document['kind']} policy for {simulator['suite']}",
        "",
        f"A `{document['kind']}` policy for the simulator suite `{simulator['suite']}`, "
        f"cameras {', '.join(simulator['cameras'])}, action size {simulator['action_dim']}.",
        "",
        "```python",
        "import ript",
        'policy = ript.load_policy("path/to/this/folder")',
        "```",
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),
    ]
    for title, value in card.items():
        lines += [f"## {title[:1].upper()}{title[1:].replace('_', ' ')}", ""]
        if isinstance(value, Mapping):
            lines += ["| | |", "|---|---|"] + [f"| {k} | {v} |" for k, v in value.items()]
        elif isinstance(value, list | tuple):
            lines += [f"- {item}" for item in value]
        else:
            lines.append(str(value))
        lines.append("")
    return "\n".join(lines)
