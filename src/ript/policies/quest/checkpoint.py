"""Published QueST checkpoints (`.pth`): read into a `QuestPolicy`, and written back key for key.

A file holds one dictionary, {"model": state dict}, whose keys start with "module." when a distributed wrapper was
saved. What training keeps beside the model (optimisers, schedulers, counters, its configuration) is not read. The
policy's configuration comes from a file of its own, or from a preset whose sizes are read off the shapes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from ript.core import arguments
from ript.core.disk import cannot_write, number_in, reading
from ript.core.documents import json_value
from ript.core.errors import ConfigError, PolicyError, UnknownNameError
from ript.core.files import absolute, atomic_file, expanded, read_text
from ript.core.places import require_replaceable
from ript.core.registry import suites
from ript.core.types import SimulatorSpec
from ript.policies.pth import load_pth
from ript.policies.quest.config import QuestConfig, Sampling
from ript.policies.quest.options import PUBLISHED_SUITE
from ript.policies.quest.policy import QuestPolicy
from ript.policies.quest.published import BEAM, config_from_published, our_name, published_keys, sizes_in

SUITES = (PUBLISHED_SUITE,)
"""Suites that published files are for, besides those that are here. Their sizes are read off a file's shapes."""
EXECUTE = 8
"""Actions executed before the next look by policies in published files of such suites, which shapes do not tell."""
_WIDTHS = ("width", "autoencoder_width")

PREFIX = "module."
LEFT_OUT = "not read from it"
"""What the model card calls the entries beside the model."""
SHOWN = 6


def import_quest(
    path: str | Path,
    config: str | Path | Mapping[str, Any] = PUBLISHED_SUITE,
    *,
    simulator: SimulatorSpec | None = None,
    sampling: Sampling = "exact",
) -> QuestPolicy:
    """Read a published checkpoint.

    Args:
        path: `.pth` file of any stage, with bare keys or with the prefix "module.". Loaded with `weights_only=True`.
        config: the name of a suite (the sizes are then read off the file), a JSON file with the key "hyperparameters"
            (the format of the published code's dump), or its content.
        simulator: what the policy will act in; by default the suite that is named, with the configuration's cameras
            and sizes, and no render settings.
        sampling: "exact" draws from the density that is optimised; "published" draws from the top 5 and optimises the
            full softmax, as the published code does.

    Raises:
        PolicyError: not such a file, a model that holds more than tensors, or one that does not fit the configuration;
            says which keys are missing, extra or of another shape, and which sizes the file implies.
        ConfigError: a configuration that cannot be read.
    """
    if sampling not in get_args(Sampling):
        raise UnknownNameError("sampling", sampling, get_args(Sampling))
    path = arguments.place("path", path)
    weights, left_out = read_training_file(path)
    found = _quest_config(config, weights, path)
    _check_names(found)
    _check(weights, found, path)
    suite = config if isinstance(config, str) and config in _suites() else "imported"
    spec = simulator or SimulatorSpec(
        suite=suite,
        cameras=found.cameras,
        proprio=found.proprio,
        action_dim=found.action_dim,
        render={},
    )
    origin = _told("file", path) | _of_config(config) | ({LEFT_OUT: ", ".join(left_out)} if left_out else {})
    policy = QuestPolicy(found, spec, card={"imported from": origin})
    own = policy.state_dict()
    for key, tensor in weights.items():
        if (name := our_name(key)) is not None:
            own[name].copy_(tensor)
    return policy if sampling == "exact" else policy.configured(sampling=sampling, top_k=BEAM)


def _told(what: str, path: str | Path) -> dict[str, str]:
    """Which file it was, in the model card: where it lay, and the SHA-256 of its content."""
    path = absolute(path)
    with reading(path, PolicyError), path.open("rb") as file:
        return {what: str(path), f"SHA-256 of the {what}": hashlib.file_digest(file, "sha256").hexdigest()}


def _of_config(config: str | Path | Mapping[str, Any]) -> dict[str, str]:
    if isinstance(config, Mapping):
        return {"configuration": "a document that was given"}
    return {"configuration": config} if config in _suites() else _told("configuration", config)


def not_held(policy: QuestPolicy) -> list[str]:
    """What a published file of this policy does not hold, in sentences: what lies beside the weights, and settings that
    reading it with the name of a suite would take otherwise."""
    config = policy.config
    told = sizes_in({key: torch.empty(shape, device="meta") for key, shape, *_ in published_keys(config)})
    published = (
        {f.name: getattr(QuestConfig(), f.name) for f in dataclasses.fields(config)} | {"execute": EXECUTE} | told
    )
    others = [
        f"{name} = {getattr(config, name)} (published: {value})"
        for name, value in published.items()
        if getattr(config, name) != value and name != "rl_trains"
    ]
    beside = [f"the embeddings that were given ({len(policy.remembered)})"] if policy.remembered else []
    found = [f"the file does not hold {', '.join([*beside, 'the model card'])}, nor what the policy's simulator shows"]
    return [*found, *([f"what its shapes do not tell is not as published: {'; '.join(others)}"] if others else [])]


def export_quest(policy: QuestPolicy, path: str | Path) -> None:
    """Write a policy as a published checkpoint: same keys, order, shapes and dtypes, so that strict loading accepts it.

    Raises:
        PolicyError: the policy has parts that the published model has not, or the file cannot be written.
        RunError: it would replace something else than a .pth file.
    """
    arguments.instance("policy", policy, QuestPolicy, "ript.load_policy(folder) gives one")
    path = arguments.place("path", path)
    require_replaceable(path, "a .pth file of QueST", _is_quests)
    config = policy.config
    if config.vision != "resnet18" or config.adapter or config.privileged_dim:
        what = "a small CNN" if config.vision != "resnet18" else "an adapter" if config.adapter else "an auxiliary head"
        raise PolicyError(f"the policy has {what}, which published QueST checkpoints cannot hold")
    own = policy.state_dict() | _with_statistics(policy)
    state = {
        key: (own[source] if isinstance(source, str) else source).detach().cpu().clone().to(dtype)
        for key, _, dtype, source in published_keys(config)
    }
    try:
        with atomic_file(path, PolicyError) as temporary:
            torch.save({"model": state}, temporary)
    except RuntimeError as error:  # of torch's own writer, also when the disk is full
        raise cannot_write(path, OSError(number_in(error) or 0, str(error)), PolicyError) from error


def _is_quests(path: Path) -> bool:
    for key in read_pth(path):
        our_name(key)  # raises for another's
    return True


def _with_statistics(policy: QuestPolicy) -> dict[str, torch.Tensor]:
    """The proprioception layers as they act on values that nobody has normalised, as the published model does."""
    encoder = policy.encoder
    folded: dict[str, torch.Tensor] = {}
    parts = zip(*(t.split(encoder.sizes) for t in (encoder.proprio_mean, encoder.proprio_std)), strict=True)
    for (name, layer), (mean, std) in zip(encoder.proprio.items(), parts, strict=True):
        assert isinstance(layer, torch.nn.Linear)
        folded[f"encoder.proprio.{name}.weight"] = layer.weight / std
        folded[f"encoder.proprio.{name}.bias"] = layer.bias - layer.weight @ (mean / std)
    return folded


def read_pth(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict of a `.pth` file, without the prefix. Raises as `read_training_file`."""
    return read_training_file(path)[0]


def read_training_file(path: str | Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The state dict of a `.pth` file, without the prefix, and the names of what lies beside it and is not read.

    Never unpickles anything but tensors and plain values.

    Raises:
        PolicyError: missing, corrupt, no state dict, or one that holds other things than tensors.
    """
    path = expanded(path)
    content = load_pth(path)
    state, left_out = content, list[str]()
    if isinstance(content, Mapping) and not isinstance(content.get("model", content), torch.Tensor):
        state = content.get("model", content)
        left_out = [str(name) for name in content if name != "model"] if state is not content else []
    if not isinstance(state, Mapping) or not state:
        raise PolicyError(f'{path} holds no state dict: expected {{"model": name -> tensor}}')
    if odd := [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        listed = ", ".join(odd[:SHOWN]) + (", ..." if len(odd) > SHOWN else "")
        raise PolicyError(f'{path} holds more than tensors ({listed}): expected {{"model": name -> tensor}}')
    bare = {str(key).removeprefix(PREFIX): tensor for key, tensor in state.items()}
    if len(bare) < len(state):
        twice = next(key for key in bare if key in state and PREFIX + key in state)
        raise PolicyError(f"{path} holds {twice} twice, with and without the prefix {PREFIX!r}: which one is meant?")
    return bare, left_out


def _suites() -> tuple[str, ...]:
    return tuple(dict.fromkeys((*SUITES, *suites.names())))


def _quest_config(
    config: str | Path | Mapping[str, Any], weights: Mapping[str, torch.Tensor], path: Path
) -> QuestConfig:
    if isinstance(config, str) and config in _suites():
        try:
            found = QuestConfig(**sizes_in(weights) | {"execute": EXECUTE})
        except (KeyError, ValueError, IndexError) as error:
            raise PolicyError(f"{path} is not a checkpoint of the published QueST: {error} is missing in it") from error
        paper = QuestConfig()
        odd = [f"{name} = {getattr(found, name)}" for name in _WIDTHS if getattr(found, name) != getattr(paper, name)]
        if odd:
            raise PolicyError(
                f"{path} is not of the published size ({', '.join(odd)}), and shapes do not tell the number of heads: "
                f"give its configuration file instead of the suite {config!r}"
            )
        return found
    document: Any = config
    if not isinstance(config, str | Path | Mapping):
        raise ConfigError(f"config: expected the name of a suite, a file or its content, got {config!r}")
    if not isinstance(config, Mapping):
        try:
            document = json_value(read_text(expanded(config), ConfigError))
        except FileNotFoundError as error:
            known = ", ".join(_suites())
            raise ConfigError(f"{config} is neither a suite ({known}) nor a file that exists") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{config} is not a readable JSON file: {error}") from error
    try:
        return config_from_published(document["hyperparameters"])
    except ConfigError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
        raise ConfigError(
            f"the QueST configuration {what}: expected the key hyperparameters with autoencoder, policy_prior, "
            "image_encoder_factory, lowdim_encoder_factory, shape_meta and action_horizon (docs/quest_checkpoints.md)"
        ) from error


def _check_values(tensor: torch.Tensor, dtype: torch.dtype, source: str | torch.Tensor, where: str) -> None:
    if tensor.dtype != dtype:
        raise PolicyError(f"{where}: expected {dtype}, got {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise PolicyError(f"{where}: expected a dense tensor with values")
    if not torch.isfinite(tensor).all():
        raise PolicyError(f"{where} holds NaN or infinity")
    if where.endswith("running_var") and (tensor < 0).any():
        raise PolicyError(f"{where} holds a negative variance")
    if not isinstance(source, str) and not torch.allclose(tensor, source, rtol=1e-4, atol=1e-6):
        raise PolicyError(f"{where} is a constant of the published model, and holds other values here")


def _check_names(config: QuestConfig) -> None:
    """Cameras and vectors name parts of the policy."""
    taken = torch.nn.ModuleDict()
    for name in (*config.cameras, *config.proprio):
        if not name or "." in name or hasattr(taken, name):
            raise ConfigError(f"a camera or vector of the configuration is called {name!r}, which cannot be: rename it")


def _check(weights: Mapping[str, torch.Tensor], config: QuestConfig, path: Path) -> None:
    entries = {key: (shape, dtype, source) for key, shape, dtype, source in published_keys(config)}
    expected = {key: shape for key, (shape, _, _) in entries.items()}
    missing, extra = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    wrong = {k for k in expected.keys() & weights.keys() if tuple(weights[k].shape) != expected[k]}
    for prefix, named in (("image_encoders.", config.cameras), ("lowdim_encoders.", config.proprio)):
        there = list(dict.fromkeys(key.split(".")[1] for key in weights if key.startswith(prefix)))
        if sorted(there) == sorted(named) and there != list(named):
            raise PolicyError(
                f"{path} has {prefix}* in the order {there}, the configuration {list(named)}: they are "
                "concatenated in that order, so name them as the file does"
            )
    if not (missing or extra or wrong):
        for key, tensor in weights.items():
            _check_values(tensor, *entries[key][1:], f"{path}: {key}")
        return
    lines = [f"missing {k}" for k in sorted(missing)] + [f"extra {k}" for k in sorted(extra)]
    lines += [f"{k}: expected {list(expected[k])}, got {list(weights[k].shape)}" for k in sorted(wrong)]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    try:
        implied = {k: v for k, v in sizes_in(weights).items() if v != getattr(config, k)}
    except (KeyError, ValueError, IndexError):
        implied = {}
    hint = f". The file implies {', '.join(f'{k} = {v}' for k, v in implied.items())}" if implied else ""
    raise PolicyError(f"{path} does not fit the configuration: {'; '.join(lines[:SHOWN])}{more}{hint}")
