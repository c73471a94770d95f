"""Sentence embeddings of instructions, by frozen models. Two are known, and a policy's `language_dim` tells which:

384   all-MiniLM-L6-v2 (Wang et al. 2020, Reimers & Gurevych 2019), from its own package (Apache-2.0).
512   the text half of CLIP ViT-B/32 (Radford et al. 2021), as published QueST policies were trained with: the projected
      features, not normalised. From the model hub, or the folder that `RIPT_CLIP` names.

Both run here in a few tensor operations on their files, so that `transformers` is not needed. A model is loaded once,
when the first unknown instruction is met; a policy keeps what was computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ript.core.documents import json_value
from ript.core.errors import DataError
from ript.core.files import read_text, require_content, utf8_name
from ript.policies.language_files import CLIP, clip_files, model_folder
from ript.policies.pth import load_pth

Weights = Mapping[str, torch.Tensor]


DIMS = {"minilm": 384, "clip": 512}
"""Model -> numbers in an embedding."""


@torch.no_grad()
def embed(sentences: Sequence[str], model: str = "minilm") -> torch.Tensor:
    """Embeddings float32 `[len(sentences), DIMS[model]]`.

    Raises:
        DependencyMissing: the model is not there and cannot be fetched.
        DataError: its files are damaged.
    """
    if not sentences:
        return torch.empty(0, DIMS[model])
    if model == "minilm":
        return _minilm(_load(), sentences)
    return _clip(_load_clip(), sentences)


def model_of(dim: int) -> str | None:
    """The model that gives embeddings of that size."""
    return next((model for model, size in DIMS.items() if size == dim), None)


def _linear(w: Weights, x: torch.Tensor, name: str) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _norm(w: Weights, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), w[f"{name}.weight"], w[f"{name}.bias"], eps)


def _attention(w: Weights, x: torch.Tensor, names: Sequence[str], heads: int, **mask: Any) -> torch.Tensor:
    """Self-attention of `[B, T, D]`; `names` of the query, key, value and output layers."""
    q, k, v = (_linear(w, x, name).unflatten(-1, (heads, -1)).transpose(1, 2) for name in names[:3])
    attended = F.scaled_dot_product_attention(q, k, v, **mask)
    return _linear(w, attended.transpose(1, 2).flatten(2), names[3])


# ------------------------------------------------------------------ MiniLM


@functools.lru_cache(maxsize=1)
def _load() -> tuple:
    """Read, and tried on a sentence. Raises `DependencyMissing` when it is not installed, `DataError` when damaged."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = model_folder()
    try:
        require_content(folder / "model.safetensors")
        config = json_value(read_text(folder / "config.json"))
        with utf8_name(folder / "model.safetensors") as name:
            weights = load_file(name)
        tokenizer = Tokenizer.from_str(read_text(folder / "tokenizer.json"))
        tokenizer.enable_padding()  # to the longest of the batch, not to 128
        loaded = config, weights, tokenizer
        tried = _minilm(loaded, ["a sentence"])
        if tried.shape[1] != DIMS["minilm"] or not torch.isfinite(tried).all():
            raise ValueError(f"it gives {tried.shape[1]} numbers, or others than finite ones")
    except Exception as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"cannot use the sentence-embedding model in {folder}: {why}; reinstall the package") from error
    return loaded


def _minilm(loaded: tuple, sentences: Sequence[str]) -> torch.Tensor:
    """Embeddings of unit length: the mean of BERT's last hidden states over the words, normalised."""
    config, w, tokenizer = loaded
    encoded = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool)
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = _norm(w, x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm", eps)
    for i in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{i}"
        parts = [f"{name}.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
        attended = _attention(w, x, parts, heads, attn_mask=mask[:, None, None, :])
        x = _norm(w, x + attended, f"{name}.attention.output.LayerNorm", eps)
        hidden = _linear(w, F.gelu(_linear(w, x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        x = _norm(w, x + hidden, f"{name}.output.LayerNorm", eps)
    words = mask[..., None].float()
    return F.normalize((x * words).sum(1) / words.sum(1), dim=-1)


# ------------------------------------------------------------------ CLIP


@functools.lru_cache(maxsize=1)
def _load_clip() -> tuple:
    """Read, and tried on a sentence: files of another model, or with something missing, are found out here.

    Raises:
        DependencyMissing: not there, and the model hub cannot be reached.
        DataError: damaged, or not a CLIP with `DIMS["clip"]` features.
    """
    from tokenizers import Tokenizer

    files = clip_files()
    try:
        settings = {**_CLIP_SETTINGS, **json_value(read_text(files["config.json"]))["text_config"]}
        weights = _clip_weights(files)
        tokenizer = Tokenizer.from_str(read_text(files["tokenizer.json"]))
        tokenizer.enable_padding()
        tokenizer.enable_truncation(len(weights["text_model.embeddings.position_embedding.weight"]))
        activation = _ACTIVATIONS[settings["hidden_act"]]
        layers, heads = settings["num_hidden_layers"], settings["num_attention_heads"]
        loaded = layers, heads, settings["layer_norm_eps"], activation, weights, tokenizer
        known, words = weights["text_model.embeddings.token_embedding.weight"].shape[0], tokenizer.get_vocab_size()
        if known < words:
            raise ValueError(f"the tokenizer has {words} words, the model {known}")
        if unfit := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]:
            raise ValueError(f"{unfit[0]} holds NaN or infinity")
        if (got := _clip(loaded, ["a sentence"]).shape[1]) != DIMS["clip"]:
            raise ValueError(f"it gives {got} numbers, {CLIP} {DIMS['clip']}")
    except Exception as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise DataError(f"cannot use the CLIP in {files['config.json'].parent}: {why}; fetch {CLIP} again") from error
    return loaded


def _clip_weights(files: Mapping[str, Path]) -> Weights:
    """The text half alone."""

    def text(name: str) -> bool:
        return name.startswith("text_")

    if "model.safetensors" in files:
        from safetensors import safe_open

        require_content(files["model.safetensors"])
        with utf8_name(files["model.safetensors"]) as path, safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys() if text(name)}  # noqa: SIM118
    return {name: tensor.float() for name, tensor in load_pth(files["pytorch_model.bin"]).items() if text(name)}


_CLIP_SETTINGS: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}
"""What a configuration leaves out when it is as in ViT-B/32."""
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
}


def _clip(loaded: tuple, sentences: Sequence[str]) -> torch.Tensor:
    """Projected features of the last word, a causal transformer's end mark."""
    layers, heads, eps, activation, w, tokenizer = loaded
    encoded = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in encoded])
    end = torch.tensor([sum(e.attention_mask) - 1 for e in encoded])
    embeddings = "text_model.embeddings"
    x = w[f"{embeddings}.token_embedding.weight"][ids] + w[f"{embeddings}.position_embedding.weight"][: ids.shape[1]]
    for i in range(layers):
        name = f"text_model.encoder.layers.{i}"
        parts = [f"{name}.self_attn.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj")]
        x = x + _attention(w, _norm(w, x, f"{name}.layer_norm1", eps), parts, heads, is_causal=True)
        hidden = activation(_linear(w, _norm(w, x, f"{name}.layer_norm2", eps), f"{name}.mlp.fc1"))
        x = x + _linear(w, hidden, f"{name}.mlp.fc2")
    x = _norm(w, x, "text_model.final_layer_norm", eps)
    return F.linear(x[torch.arange(len(x)), end], w["text_projection.weight"])
