"""Names of the published QueST checkpoints against ours, and the configuration file that describes one.

The published state dict has 338 entries at the LIBERO size. Every parameter maps to exactly one of ours; the rest are
constants (coordinate grids, encoding frequencies) that are recomputed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ript.policies.quest.config import QuestConfig

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


def config_from_published(hyperparameters: Mapping) -> QuestConfig:
    """The published configuration file (key "hyperparameters") as a `QuestConfig`."""
    h = hyperparameters
    auto, prior, shapes = h["autoencoder"], h["policy_prior"], h["shape_meta"]
    return QuestConfig(
        action_dim=auto["action_dim"],
        chunk=auto["skill_block_size"],
        execute=h["action_horizon"],
        downsample=auto["downsample_factor"],
        autoencoder_width=auto["encoder_dim"],
        encoder_layers=auto["encoder_layers"],
        decoder_layers=auto["decoder_layers"],
        encoder_heads=auto["encoder_heads"],
        decoder_heads=auto["decoder_heads"],
        width=prior["n_embd"],
        layers=prior["n_layer"],
        heads=prior["n_head"],
        dropout=prior["attn_pdrop"],
        autoencoder_dropout=auto["attn_pdrop"],
        cameras={name: (s[1], s[2]) for name, s in shapes["observation"]["rgb"].items()},
        vision="resnet18",
        image_dim=h["image_encoder_factory"]["output_size"],
        proprio=shapes["observation"]["lowdim"],
        proprio_dim=h["lowdim_encoder_factory"]["output_size"],
        language_dim=shapes["task"]["dim"],
        temperature=prior["temperature"],
    )
