"""Which parameters of modules weight decay acts on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def parameter_groups(modules: Sequence[nn.Module]) -> list[dict]:
    """Two AdamW groups: weights of linear, convolution and attention layers; and, without weight decay, vectors
    (biases, norms, log-deviations) and embeddings."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules:
        for part in module.modules():
            for parameter in part.parameters(recurse=False):
                if parameter.requires_grad:
                    vector = parameter.ndim < 2 or isinstance(part, nn.Embedding)
                    (plain if vector else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
