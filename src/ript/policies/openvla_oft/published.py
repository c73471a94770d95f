"""Published OpenVLA-OFT folders, read as they are, and nothing of theirs is run or written.

A folder holds config.json, shards of weights with an index, tokenizer files, dataset_statistics.json, and two files of
torch: `action_head--STEP_checkpoint.pt` and `proprio_projector--STEP_checkpoint.pt`. What else lies there (remote code,
adapters that are merged already, backups of the configuration) is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ript.core.disk import reading
from ript.core.documents import json_value
from ript.core.errors import ConfigError, PolicyError
from ript.core.files import read_text
from ript.policies.openvla_oft.heads import ActionHead, ProprioProjector, ScaleHead
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.numbers import UNTRAINED, Statistics, statistics_of
from ript.policies.openvla_oft.pictures import Normalisation
from ript.policies.openvla_oft.sizes import LlamaSizes, OpenVlaSizes, TowerSizes
from ript.policies.openvla_oft.weights import HEADS, assign, checked, listed, opened, require_names
from ript.policies.pth import load_pth

Weights = Mapping[str, torch.Tensor]

TOWERS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
"""The two that are read, in this order."""
WRAPPED = "module."
"""Prefix of names in the two files of torch: they were saved from a distributed wrapper."""
HIDDEN_SHARE = {TOWERS[0]: 4.0, TOWERS[1]: 3.7362}
"""Width inside a block's MLP, in widths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What a folder says, weights apart.

    Attributes:
        folder: where it lies.
        sizes: of its network.
        statistics: of the suite that was asked for.
        normalisation: of pixels.
        shards: tensor name -> file.
    """

    folder: Path
    sizes: OpenVlaSizes
    statistics: Statistics
    normalisation: Normalisation
    shards: Mapping[str, Path]


Heads = Literal["published", "new"]
"""Where the L1 head and the projector of proprioception come from: the folder's files, or drawn, for a base without
them."""


def read(folder: Path, suite: str | None = None, heads: Heads = "published") -> Published:
    """Read what a folder says, and check that its files are there.

    Args:
        folder: in the published layout.
        suite: whose statistics; None takes the only ones.
        heads: with new ones, the policy normalises nothing until it has seen demonstrations.

    Raises:
        PolicyError: not such a folder, or one that lacks something; says what.
    """
    config = document(folder, "config.json")
    if config.get("model_type") != "openvla":
        raise PolicyError(f"{folder} holds a model of type {config.get('model_type')!r}, expected 'openvla'")
    sizes = sizes_of(config, folder / "config.json")
    path = folder / "dataset_statistics.json"
    if heads == "new":
        statistics = Statistics.plain(UNTRAINED, sizes.action, sizes.proprio)
    else:
        statistics = statistics_of(document(folder, path.name), suite, str(path))
    for what, expected, row in (
        ("an action", sizes.action, statistics.action_low),
        ("proprioception", sizes.proprio, statistics.proprio_low),
    ):
        if len(row) != expected:
            raise PolicyError(f"{path}: {what} of {statistics.key} has {len(row)} numbers, expected {expected}")
    return Published(
        folder=folder,
        sizes=sizes,
        statistics=statistics,
        normalisation=normalisation_of(folder),
        shards=shards_of(folder),
    )


def document(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a folder.

    Raises:
        PolicyError: it is not there, or no table.
    """
    with reading(folder, PolicyError):
        if not folder.is_dir():
            raise PolicyError(f"no policy folder at {folder}")
        if not (folder / name).is_file():
            raise PolicyError(f"{folder} is not a complete OpenVLA-OFT folder: {name} is missing")
    try:
        content = json_value(read_text(folder / name, PolicyError))
    except ValueError as error:
        raise PolicyError(f"{folder / name} is corrupt: {error}") from error
    if not isinstance(content, dict):
        raise PolicyError(f"{folder / name} is corrupt: expected a table, got {type(content).__name__}")
    return content


def sizes_of(config: Mapping[str, Any], path: Path) -> OpenVlaSizes:
    """What config.json says about sizes; what it leaves out of the language model is Llama's usual.

    Raises:
        PolicyError: a value that is none, or a model of another make.
    """
    fixed = {
        "use_fused_vision_backbone": (True,),
        "timm_model_ids": (list(TOWERS),),
        "timm_override_act_layers": ([None, None], None),
        "image_sizes": ([224, 224],),
    }
    for name, allowed in fixed.items():
        if (value := config.get(name, allowed[0])) not in allowed:
            raise PolicyError(f"{path}: {name} = {value!r}; only {allowed[0]!r} is supported")
    try:
        text, towers = dict(config.get("text_config") or {}), config.get("tiny_vision_overrides", {})
        llama = LlamaSizes(
            width=_whole(text, "hidden_size", 4096),
            hidden=_whole(text, "intermediate_size", 11008),
            layers=_whole(text, "num_hidden_layers", 32),
            heads=_whole(text, "num_attention_heads", 32),
            vocabulary=_whole(text, "vocab_size", 32000),
            positions=_whole(text, "max_position_embeddings", 2048),
            norm_eps=float(text.get("rms_norm_eps", 1e-6)),
            theta=float(text.get("rope_theta", 10000.0)),
        )
        same = {
            "model_type": ("llama",),
            "num_key_value_heads": (llama.heads,),
            "hidden_act": ("silu",),
            "attention_bias": (False,),
            "mlp_bias": (False,),
            "rope_scaling": (None,),
        }
        for name, allowed in same.items():
            if (value := text.get(name, allowed[0])) not in allowed:
                raise ConfigError(f"text_config.{name} = {value!r}; only {allowed[0]!r} is supported")
        usual = OpenVlaSizes()
        dino, siglip = (_tower(dict(towers.get(name, {})), name, usual) for name in TOWERS)
        sizes = OpenVlaSizes(llama=llama, dino=dino, siglip=siglip)
        if (room := llama.positions - sizes.seen - sizes.slots - 1) < 2:
            raise ConfigError(f"max_position_embeddings = {llama.positions} leaves no room for an instruction ({room})")
        return sizes
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise PolicyError(f"{path}: {error}") from error


def _tower(given: dict[str, Any], name: str, usual: OpenVlaSizes) -> TowerSizes:
    base = usual.dino if name == TOWERS[0] else usual.siglip
    width = _whole(given, "embed_dim", base.width)
    return TowerSizes(
        width=width,
        blocks=_whole(given, "depth", base.blocks),
        heads=_whole(given, "num_heads", base.heads),
        hidden=int(width * HIDDEN_SHARE[name]),
        prefix=base.prefix,
        layer_scale=base.layer_scale,
    )


def _whole(table: Mapping[str, Any], name: str, usual: int) -> int:
    value = table.get(name, usual)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: expected a whole number above 0, got {value!r}")
    return value


def normalisation_of(folder: Path) -> Normalisation:
    """What preprocessor_config.json has stored for its normalising step, which is what published policies use; the
    rounded usual numbers where there is none."""
    if not (folder / "preprocessor_config.json").is_file():
        return Normalisation()
    steps = document(folder, "preprocessor_config.json").get("tvf_normalize_params")
    if steps is None:
        return Normalisation()
    try:
        rows = [tuple(float(value) for value in step[name]) for step in steps for name in ("mean", "std")]
        dino_mean, dino_std, siglip_mean, siglip_std = rows
        if any(len(row) != 3 for row in rows) or not all(value > 0 for row in rows for value in row):
            raise ValueError("expected three numbers above 0 each")
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"{folder / 'preprocessor_config.json'}: tvf_normalize_params: {error}") from error
    return Normalisation(dino_mean=dino_mean, dino_std=dino_std, siglip_mean=siglip_mean, siglip_std=siglip_std)


def shards_of(folder: Path) -> dict[str, Path]:
    """Tensor name -> file that holds it, of model.safetensors or of the files that an index names.

    Raises:
        PolicyError: files are missing, or the index is none.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.is_file():
        if not single.is_file():
            raise PolicyError(f"{folder} is not a complete OpenVLA-OFT folder: {index.name} is missing")
        with opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    table = document(folder, index.name).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise PolicyError(f"{index} is corrupt: expected a table weight_map of tensor names and files")
    if outside := sorted({file for file in table.values() if Path(file).name != file}):
        raise PolicyError(f"{index} names a file outside its folder: {outside[0]}")
    missing = sorted({file for file in table.values() if not (folder / file).is_file()})
    if missing:
        raise PolicyError(f"{folder} lacks {len(missing)} of its files of weights: {listed(missing)}; fetch them again")
    return {name: folder / file for name, file in table.items()}


# ------------------------------------------------------------------ heads


def load_heads(
    network: OpenVla, folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Give a network the L1 head and the projector of proprioception that lie in a folder.

    Raises:
        PolicyError: there is none, more than one, or one of another kind; says which.
    """
    _require_no_other_kind(folder)
    paths = {name: the_one(folder, name) for name in HEADS}
    steps = {path.name.partition("--")[2] for path in paths.values()}
    if len(steps) > 1 and "" not in steps:
        names = " and ".join(path.name for path in paths.values())
        raise PolicyError(f"{folder}: {names} are of different steps of training: fetch those of one")
    for name, path in paths.items():
        weights = state_of(path)
        if name == "action_head":
            require_l1(weights, path, network.sizes)
        load_head(network, name, weights, path, device=device, dtype=dtype)


def new_heads(network: OpenVla, folder: Path, *, device: str | torch.device = "cpu") -> None:
    """Give a network an L1 head and a projector of proprioception for a base that has neither, drawn from seed 0.

    Raises:
        PolicyError: the folder has heads of its own, or is of another kind.
    """
    _require_no_other_kind(folder)
    if own := _files_of(folder, HEADS[0]):
        raise PolicyError(f"{folder} has an L1 head ({own[0].name}): read it as it is, without heads=new")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.action_head = ActionHead(network.sizes).to(device)
        network.proprio_projector = ProprioProjector(network.sizes).to(device)


def _require_no_other_kind(folder: Path) -> None:
    if other := sorted(path.name for path in folder.glob("*checkpoint*.pt") if path.name.startswith("noisy_action_p")):
        raise PolicyError(f"{folder} holds a diffusion head ({other[0]}): only the L1 head is supported")
    if film := sorted(path.name for path in folder.glob("vision_backbone--*checkpoint*.pt")):
        raise PolicyError(f"{folder} holds a policy with FiLM ({film[0]}), which is not supported")


def the_one(folder: Path, name: str) -> Path:
    """The file of a folder whose name holds `name` and "checkpoint".

    Raises:
        PolicyError: none or several.
    """
    found = _files_of(folder, name)
    if len(found) > 1:
        listed = ", ".join(p.name for p in found)
        raise PolicyError(f"{folder} holds {len(found)} files of {name}: {listed}; leave the one to be used")
    if not found:
        about = "a base, or a policy that gives actions as tokens" if name == "action_head" else "one without it"
        raise PolicyError(
            f"{folder} has no {name} (a file {name}--STEP_checkpoint.pt): this is {about}; an OpenVLA-OFT policy with "
            "an L1 head and proprioception is expected. To train new heads on demonstrations, read it with "
            "`ript import openvla --heads new`"
        )
    return found[0]


def _files_of(folder: Path, name: str) -> list[Path]:
    return sorted(p for p in folder.iterdir() if name in p.name and "checkpoint" in p.name and p.is_file())


def state_of(path: Path) -> Weights:
    """The tensors of a state dict in a file of torch, without the wrapper's prefix.

    Raises:
        PolicyError: it holds anything else, or cannot be read.
    """
    return _state(load_pth(path), path)


def _state(content: object, path: Path) -> Weights:
    if not isinstance(content, Mapping) or not content:
        raise PolicyError(f"{path} holds no state dict where one is expected")
    if odd := [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]:
        raise PolicyError(f"{path} holds more than tensors ({listed(odd)}): expected a state dict")
    return {str(name).removeprefix(WRAPPED): tensor for name, tensor in content.items()}


def _two_states(path: Path, names: tuple[str, str], what: str) -> tuple[Weights, Weights]:
    """The two state dicts of a file that holds these and no more."""
    content = load_pth(path)
    if not isinstance(content, Mapping) or set(content) != set(names):
        raise PolicyError(f"{path} holds no {what}: expected two state dicts, {' and '.join(names)}")
    first, second = (_state(content[name], path) for name in names)
    return first, second


def require_l1(weights: Weights, where: Path | str, sizes: OpenVlaSizes) -> None:
    """Raise `PolicyError`, saying what it is, unless these are weights of an L1 head for such actions."""
    names = " ".join(weights)
    if "noise_predictor" in names or "time_encoder" in names:
        raise PolicyError(f"{where} is a diffusion head: only the L1 head is supported")
    if "log_b_head" in names:
        raise PolicyError(f"{where} is a scale head, where the L1 head is expected")
    last = weights.get("model.fc2.weight")
    if last is None or last.ndim != 2:
        raise PolicyError(f"{where} is not an L1 head: it holds {listed(sorted(weights))}")
    if len(last) != sizes.action:
        raise PolicyError(
            f"{where} gives actions of {len(last)} numbers, expected {sizes.action}: it was trained for another robot"
        )


def load_head(
    network: OpenVla,
    name: str,
    weights: Weights,
    where: Path | str,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
) -> None:
    """Give one head its weights, rounded to bfloat16: published policies act with heads of that type.

    Raises:
        PolicyError: names or shapes do not fit.
    """
    head = network.get_submodule(name)
    own = head.state_dict()
    require_names(set(own), set(weights), str(where))
    for key, tensor in weights.items():
        checked(tensor, own[key], key, Path(where))
        assign(head, key, tensor.to(torch.bfloat16), device, dtype)


def load_scale_head(
    network: OpenVla, path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Give a network RIPT-VLA's scale head: a file with two state dicts, `scale_trunk` and `log_b_head`.

    Raises:
        PolicyError: not such a file, or of other sizes.
    """
    trunk, last = _two_states(path, ("scale_trunk", "log_b_head"), "scale head")
    weights = {f"trunk.{k}": v for k, v in trunk.items()} | {f"log_b_head.{k}": v for k, v in last.items()}
    add_scale_head(network)
    load_head(network, "scale_head", weights, path, device=device, dtype=dtype)


def add_scale_head(network: OpenVla) -> None:
    """Make room for a scale head, on the meta device."""
    with torch.device("meta"):
        network.scale_head = ScaleHead(network.sizes)


def load_ript_heads(
    network: OpenVla, path: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Give a network both heads of RIPT-VLA's `openvla_headers.pt`; they replace what it has.

    Raises:
        PolicyError: not such a file, or of other sizes.
    """
    action, scale = _two_states(path, ("action_header", "scale_header"), "pair of heads")
    require_l1(action, path, network.sizes)
    load_head(network, "action_head", action, path, device=device, dtype=dtype)
    add_scale_head(network)
    load_head(network, "scale_head", scale, path, device=device, dtype=dtype)
