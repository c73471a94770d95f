"""Names of the published QueST checkpoints against ours, and the configuration file that describes one.

The published state dict has 338 entries at the LIBERO size. Every parameter maps to exactly one of ours; the rest are
constants (coordinate grids, encoding frequencies) that are recomputed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ript.core.errors import ConfigError
from ript.policies.quest.config import QuestConfig
from ript.policies.quest.layers import frequencies
from ript.policies.vision import ImageEncoder

_RULES: tuple[tuple[str, str], ...] = (
    (r"image_encoders\.([^.]+)\.resnet18_base\.([01])\.", r"encoder.images.\1.features.\2."),
    (r"image_encoders\.([^.]+)\.block_([1-4])\.", r"encoder.images.\1.features.<\2>."),
    (
        r"image_encoders\.([^.]+)\.projection_layer\.spatial_softmax\._spatial_conv\.",
        r"encoder.images.\1.keypoints.conv.",
    ),
    (r"image_encoders\.([^.]+)\.projection_layer\.projection\.", r"encoder.images.\1.projection."),
    (r"lowdim_encoders\.([^.]+)\.projection\.0\.", r"encoder.proprio.\1."),
    (r"obs_proj\.", "encoder.observation."),
    (r"task_encoder\.", "encoder.task."),
    (r"autoencoder\.vq\.", "autoencoder.fsq."),
    (r"autoencoder\.action_proj\.", "autoencoder.action_in."),
    (r"autoencoder\.action_head\.", "autoencoder.action_out."),
    (r"autoencoder\.conv_block\.blocks\.(\d+)\.block\.0\.conv\.", r"autoencoder.convs.\1.conv."),
    (r"autoencoder\.conv_block\.blocks\.(\d+)\.block\.2\.", r"autoencoder.convs.\1.norm."),
    (r"autoencoder\.(encoder|decoder)\.layers\.", r"autoencoder.\1."),
    (r"policy_prior\.tok_emb\.", "prior.embedding."),
    (r"policy_prior\.decoder\.layers\.", "prior.blocks."),
    (r"policy_prior\.head\.", "prior.head."),
    (r"policy_prior\.lnf\.", "prior.norm."),
)
_INSIDE_BLOCK = (("self_attn.", "attention."), ("multihead_attn.", "cross_attention."))
_CONSTANTS = re.compile(r"(pos_x|pos_y|inv_freq)$")


def our_name(key: str) -> str | None:
    """Our name of a published key, or None for a constant.

    Raises:
        KeyError: not a key of a published QueST policy.
    """
    if _CONSTANTS.search(key):
        return None
    for pattern, replacement in _RULES:
        name, found = re.subn("^" + pattern, replacement, key)
        if found:
            break
    else:
        raise KeyError(key)
    name = re.sub(r"<(\d)>", lambda m: str(int(m[1]) + 3), name)  # after conv, norm, ReLU and pooling
    for theirs, ours in _INSIDE_BLOCK:
        name = name.replace(theirs, ours)
    if key.startswith("autoencoder.decoder."):  # norm2 is before the cross-attention there
        name = name.replace(".norm2.", ".norm_cross.").replace(".norm3.", ".norm2.")
    return name


_FIXED: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("autoencoder", "vq_type"): ("fsq",),
    ("autoencoder", "use_causal_encoder"): (True,),
    ("autoencoder", "use_causal_decoder"): (True,),
    ("image_encoder_factory", "remove_layer_num"): (4,),
    ("image_encoder_factory", "no_stride"): (False,),
    ("image_encoder_factory", "language_fusion"): ("none", None),
    ("lowdim_encoder_factory", "num_layers"): (1,),
    ("obs_reduction",): ("cat",),
    ("shape_meta", "task", "type"): ("vector",),
}
"""What a published configuration may say about parts that come in one form here."""
_MISSING = object()
_MOST = 65_536
BEAM = 5
"""Tokens that the published code draws from."""


def config_from_published(hyperparameters: Mapping) -> QuestConfig:
    """The published configuration file (key "hyperparameters") as a `QuestConfig`.

    Raises:
        KeyError, TypeError: something is missing.
        ConfigError: a value that is none, or that the policy here does not implement.
    """
    h = hyperparameters
    for path, allowed in _FIXED.items():
        if (value := _get(h, *path)) is not _MISSING and value not in allowed:
            raise ConfigError(f"hyperparameters.{'.'.join(path)} = {value!r}: only {allowed[0]!r} is supported")
    config = QuestConfig(
        action_dim=_whole(h, "autoencoder", "action_dim"),
        chunk=_whole(h, "autoencoder", "skill_block_size"),
        execute=_whole(h, "action_horizon"),
        downsample=_whole(h, "autoencoder", "downsample_factor"),
        autoencoder_width=_whole(h, "autoencoder", "encoder_dim"),
        encoder_layers=_whole(h, "autoencoder", "encoder_layers"),
        decoder_layers=_whole(h, "autoencoder", "decoder_layers"),
        encoder_heads=_whole(h, "autoencoder", "encoder_heads"),
        decoder_heads=_whole(h, "autoencoder", "decoder_heads"),
        fsq_levels=_levels(h),
        width=_whole(h, "policy_prior", "n_embd"),
        layers=_whole(h, "policy_prior", "n_layer"),
        heads=_whole(h, "policy_prior", "n_head"),
        dropout=_number(h, "policy_prior", "attn_pdrop", below=1),
        autoencoder_dropout=_number(h, "autoencoder", "attn_pdrop", below=1),
        cameras={name: _picture(h, name) for name in h["shape_meta"]["observation"]["rgb"]},
        vision="resnet18",
        image_dim=_whole(h, "image_encoder_factory", "output_size"),
        proprio={
            name: _whole(h, "shape_meta", "observation", "lowdim", name)
            for name in h["shape_meta"]["observation"]["lowdim"]
        },
        proprio_dim=_whole(h, "lowdim_encoder_factory", "output_size"),
        language_dim=_whole(h, "shape_meta", "task", "dim"),
        temperature=_number(h, "policy_prior", "temperature"),
    )
    implied = {
        ("policy_prior", "action_dim"): config.action_dim,
        ("shape_meta", "action_dim"): config.action_dim,
        ("embed_dim",): config.width,
        ("policy_prior", "embd_pdrop"): config.dropout,
        ("policy_prior", "beam_size"): BEAM,
        ("autoencoder", "decoder_dim"): config.autoencoder_width,
        ("policy_prior", "start_token"): config.codebook,
        ("policy_prior", "vocab_size"): config.codebook,
        ("policy_prior", "block_size"): config.tokens,
    }
    for path, expected in implied.items():
        if (value := _get(h, *path)) not in (_MISSING, expected):
            raise ConfigError(f"hyperparameters.{'.'.join(path)} = {value!r}: the other values say {expected}")
    return config


def _get(mapping: Any, *path: str) -> Any:
    """The value at a path of keys, or `_MISSING`."""
    for name in path:
        if not isinstance(mapping, Mapping) or name not in mapping:
            return _MISSING
        mapping = mapping[name]
    return mapping


def _there(h: Mapping, *path: str) -> Any:
    value = _get(h, *path)
    if value is _MISSING:
        raise KeyError(".".join(path))
    return value


def _whole(h: Mapping, *path: str) -> int:
    value = _there(h, *path)
    if not _is_whole(value) or value > _MOST:
        raise ConfigError(f"hyperparameters.{'.'.join(path)}: expected a whole number from 1 to {_MOST}, got {value!r}")
    return value


def _is_whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(h: Mapping, *path: str, below: float = math.inf) -> float:
    value = _there(h, *path)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < below:
        raise ConfigError(
            f"hyperparameters.{'.'.join(path)}: expected a number from 0 and below {below:g}, got {value!r}"
        )
    return float(value)


def _picture(h: Mapping, camera: str) -> tuple[int, int]:
    """Height and width."""
    shape = _there(h, "shape_meta", "observation", "rgb", camera)
    if not isinstance(shape, list | tuple) or len(shape) != 3 or shape[0] != 3 or not all(map(_is_whole, shape)):
        raise ConfigError(
            f"hyperparameters.shape_meta.observation.rgb.{camera}: expected [3, height, width], got {shape!r}"
        )
    return shape[1], shape[2]


def _levels(h: Mapping) -> tuple[int, ...]:
    """FSQ levels, which may stand in two places."""
    places = [("autoencoder", "fsq_level"), ("fsq_levels",)]
    given = {".".join(path): value for path in places if (value := _get(h, *path)) not in (_MISSING, None)}
    for name, value in given.items():
        if not isinstance(value, list | tuple) or not value or not all(_is_whole(level, 2) for level in value):
            raise ConfigError(f"hyperparameters.{name}: expected whole numbers above 1, got {value!r}")
    found = {tuple(value) for value in given.values()}
    if len(found) > 1:
        raise ConfigError(f"hyperparameters: {' and '.join(f'{k} = {v!r}' for k, v in given.items())} disagree")
    return found.pop() if found else QuestConfig().fsq_levels


Source = str | torch.Tensor
"""Our name of a published entry, or the constant itself."""
Entry = tuple[str, tuple[int, ...], torch.dtype, Source]
"""(key, shape, dtype, source) of an entry of a published state dict."""


def published_keys(config: QuestConfig) -> Iterator[Entry]:
    """Every entry of a published state dict, in its order."""
    for name, (height, width) in config.cameras.items():
        rows, columns = (-(-side // 8) for side in ImageEncoder.size_seen(height, width))
        yield from _image_encoder(config, f"image_encoders.{name}.", rows, columns)
    for name, size in config.proprio.items():
        yield from _layer(f"lowdim_encoders.{name}.projection.0.", (config.proprio_dim, size))
    features = config.image_dim * len(config.cameras) + config.proprio_dim * len(config.proprio)
    yield from _layer("obs_proj.", (config.width, features))
    yield from _layer("task_encoder.", (config.width, config.language_dim))
    yield from _autoencoder(config)
    yield _own("policy_prior.tok_emb.weight", (config.codebook + 1, config.width))
    yield _constant("policy_prior.add_positional_emb.penc.inv_freq", frequencies(config.width).float())
    for i in range(config.layers):
        yield from _block(f"policy_prior.decoder.layers.{i}.", config.width)
    yield from _layer("policy_prior.head.", (config.codebook, config.width))
    yield from _layer("policy_prior.lnf.", (config.width,))


def _own(key: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Entry:
    source = our_name(key)
    assert source is not None
    return key, shape, dtype, source


def _constant(key: str, value: torch.Tensor) -> Entry:
    return key, tuple(value.shape), torch.float32, value


def _layer(prefix: str, weight: tuple[int, ...]) -> Iterator[Entry]:
    yield _own(f"{prefix}weight", weight)
    yield _own(f"{prefix}bias", weight[:1])


def _batch_norm(prefix: str, channels: int) -> Iterator[Entry]:
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield _own(f"{prefix}{name}", (channels,))
    yield _own(f"{prefix}num_batches_tracked", (), torch.int64)


def _image_encoder(config: QuestConfig, prefix: str, height: int, width: int) -> Iterator[Entry]:
    yield _own(f"{prefix}resnet18_base.0.weight", (64, 3, 7, 7))
    yield from _batch_norm(f"{prefix}resnet18_base.1.", 64)
    for block, (inputs, outputs) in enumerate(((64, 64), (64, 64), (64, 128), (128, 128)), 1):
        yield _own(f"{prefix}block_{block}.conv1.weight", (outputs, inputs, 3, 3))
        yield from _batch_norm(f"{prefix}block_{block}.bn1.", outputs)
        yield _own(f"{prefix}block_{block}.conv2.weight", (outputs, outputs, 3, 3))
        yield from _batch_norm(f"{prefix}block_{block}.bn2.", outputs)
        if inputs != outputs:
            yield _own(f"{prefix}block_{block}.downsample.0.weight", (outputs, inputs, 1, 1))
            yield from _batch_norm(f"{prefix}block_{block}.downsample.1.", outputs)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    yield _constant(
        f"{prefix}projection_layer.spatial_softmax.pos_x", rows.reshape(1, -1)
    )  # rows, in spite of its name
    yield _constant(f"{prefix}projection_layer.spatial_softmax.pos_y", columns.reshape(1, -1))
    yield from _layer(f"{prefix}projection_layer.spatial_softmax._spatial_conv.", (config.image_dim // 2, 128, 1, 1))
    yield from _layer(f"{prefix}projection_layer.projection.", (config.image_dim, config.image_dim))


def _autoencoder(config: QuestConfig) -> Iterator[Entry]:
    width, levels = config.autoencoder_width, len(config.fsq_levels)
    yield from _layer("autoencoder.vq.project_in.", (levels, width))
    yield from _layer("autoencoder.vq.project_out.", (width, levels))
    yield from _layer("autoencoder.action_proj.", (width, config.action_dim))
    yield from _layer("autoencoder.action_head.", (config.action_dim, width))
    for i in range(config.downsample.bit_length()):
        yield from _layer(f"autoencoder.conv_block.blocks.{i}.block.0.conv.", (width, width, 3 if i else 5))
        yield from _layer(f"autoencoder.conv_block.blocks.{i}.block.2.", (width,))
    for i in range(config.encoder_layers):
        yield from _block(f"autoencoder.encoder.layers.{i}.", width)
    for i in range(config.decoder_layers):
        yield from _block(f"autoencoder.decoder.layers.{i}.", width, cross=True)
    yield _constant("autoencoder.add_positional_emb.penc.inv_freq", frequencies(width).float())
    yield _constant("autoencoder.fixed_positional_emb.inv_freq", frequencies(width).float())


def _block(prefix: str, width: int, cross: bool = False) -> Iterator[Entry]:
    for attention in ("self_attn", "multihead_attn")[: 1 + cross]:
        yield _own(f"{prefix}{attention}.in_proj_weight", (3 * width, width))
        yield _own(f"{prefix}{attention}.in_proj_bias", (3 * width,))
        yield from _layer(f"{prefix}{attention}.out_proj.", (width, width))
    yield from _layer(f"{prefix}linear1.", (4 * width, width))
    yield from _layer(f"{prefix}linear2.", (width, 4 * width))
    for i in range(1, 3 + cross):
        yield from _layer(f"{prefix}norm{i}.", (width,))


def sizes_in(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of `QuestConfig` that the names and shapes of a published state dict tell.

    Not in them: heads, chunk length, FSQ levels, actions executed, and whether a picture larger than 128 pixels is
    scaled down to that.

    Raises:
        KeyError, ValueError: not a published QueST state dict.
    """

    def shape(key: str) -> torch.Size:
        return weights[key].shape

    def names(prefix: str) -> list[str]:
        return list(dict.fromkeys(key.split(".")[1] for key in weights if key.startswith(prefix)))

    def count(prefix: str) -> int:
        found = len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})
        if not found:
            raise KeyError(prefix + "*")
        return found

    for prefix in ("image_encoders.", "lowdim_encoders."):
        count(prefix)
    for key in ("task_encoder.weight", "obs_proj.weight", "autoencoder.action_head.weight"):
        if weights[key].ndim != 2:
            raise ValueError(f"a matrix {key}")
    cameras = names("image_encoders.")
    places = {c: shape(f"image_encoders.{c}.projection_layer.spatial_softmax.pos_x")[1] for c in cameras}
    for camera, n in places.items():
        if math.isqrt(n) ** 2 != n:
            raise ValueError(f"a square grid of {camera}'s features (give a configuration file)")
    proprio = names("lowdim_encoders.")
    return {
        "action_dim": shape("autoencoder.action_head.weight")[0],
        "downsample": 2 ** (count("autoencoder.conv_block.blocks.") - 1),
        "autoencoder_width": shape("autoencoder.action_head.weight")[1],
        "encoder_layers": count("autoencoder.encoder.layers."),
        "decoder_layers": count("autoencoder.decoder.layers."),
        "width": shape("obs_proj.weight")[0],
        "layers": count("policy_prior.decoder.layers."),
        "cameras": {c: (8 * math.isqrt(n), 8 * math.isqrt(n)) for c, n in places.items()},
        "image_dim": shape(f"image_encoders.{cameras[0]}.projection_layer.projection.weight")[0],
        "proprio": {p: shape(f"lowdim_encoders.{p}.projection.0.weight")[1] for p in proprio},
        "proprio_dim": shape(f"lowdim_encoders.{proprio[0]}.projection.0.weight")[0],
        "language_dim": shape("task_encoder.weight")[1],
    }
