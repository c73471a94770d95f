"""Supervised stages: actions by their mean absolute error, then the scale head by likelihood with the rest frozen.

Nobody has published how a scale head is trained. Here its loss is the negative log-likelihood of demonstrated actions
under the Laplace density, per dimension, with the policy's own means; hidden states do not change meanwhile and are
computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from ript.core.errors import ConfigError
from ript.core.metrics import Metrics
from ript.core.supervised import DemoSource, Stage
from ript.policies.openvla_oft.lora import lora_layers
from ript.policies.openvla_oft.memory import SCALE_WINDOWS
from ript.policies.openvla_oft.policy import OpenVlaPolicy
from ript.policies.parameters import parameter_groups


def make_stages(
    policy: OpenVlaPolicy, training: Any, windows: DemoSource, targets: Sequence[str], *, fresh: bool
) -> list[Stage]:
    """The stages on these windows: all of a fresh policy, or fine-tuning and the scale head; fine-tuning only with
    targets."""
    s = training
    share = 1.0 if {task.key for task in windows.tasks} <= set(targets) else s.finetune_share
    length = s.stage_steps(
        steps=float("nan"), looks=len(windows), target_looks=windows.windows_of(targets) if targets else 0
    )

    def draws(weights: dict[str, float] | None) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
        return lambda rng: windows.draws(s.policy_batch, rng, task_weights=weights)

    def action_loss(rows: np.ndarray, batch: np.ndarray) -> tuple[torch.Tensor, Metrics]:
        return policy.loss(windows.batch(rows), actions=windows.executed(batch))

    actor = [trained_module(policy, fresh)]
    stages = []
    if fresh:
        stages.append(
            Stage(
                name="policy",
                steps=length["policy"],
                learning_rate=s.policy_learning_rate,
                modules=actor,
                groups=parameter_groups(actor),
                draws=draws(None),
                loss=action_loss,
                judged="action_l1",
            )
        )
    tuned = windows.target_weights(targets, share) if targets else None
    if targets:
        stages.append(
            Stage(
                name="finetune",
                steps=length["finetune"],
                learning_rate=s.finetune_learning_rate,
                modules=actor,
                groups=parameter_groups(actor),
                draws=draws(tuned),
                loss=action_loss,
                judged="action_l1",
            )
        )
    if length["scale"]:
        stages.append(_scale_stage(policy, s, windows, tuned, length["scale"]))
    return stages


def trained_module(policy: OpenVlaPolicy, fresh: bool) -> nn.Module:
    """What learns to act: everything but the scale head of a policy made here; of another the adapter, the L1 head and
    the projector of proprioception. Gradients are switched on for it, and off for the rest."""
    network = policy.network
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    parts: dict[str, nn.Module]
    if policy.config.base is None:
        parts = {name: part for name, part in network.named_children() if name != "scale_head"}
    else:
        parts = {
            "action_head": network.action_head,
            "proprio_projector": network.proprio_projector,
        }
        parts |= {
            f"{name}.{which}".replace(".", "/"): getattr(layer, which)
            for name, layer in lora_layers(network).items()
            for which in ("lora_A", "lora_B")
            if layer.lora_A is not None
        }
    module = nn.ModuleDict(parts)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    return module


def _scale_stage(
    policy: OpenVlaPolicy, s: Any, windows: DemoSource, weights: dict[str, float] | None, steps: int
) -> Stage:
    head = policy.network.scale_head
    if head is None:
        raise ConfigError("the policy has no scale head to train")
    known: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    endless = windows.draws(s.scale_batch, np.random.default_rng(0), task_weights=weights)
    pool = np.concatenate(list(islice(endless, -(-min(SCALE_WINDOWS, len(windows)) // s.scale_batch))))

    def look(row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states and means of a window, always in a batch of one: no rounding depends on when it is asked."""
        if row not in known:
            with torch.no_grad():
                hidden = policy.hidden(policy.inputs(windows.batch(np.array([row])).observation))
                known[row] = hidden, policy.network.action_head(hidden).float()
        return known[row]

    def draws(rng: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            yield rng.choice(pool, s.scale_batch)

    def loss(rows: np.ndarray, batch: np.ndarray) -> tuple[torch.Tensor, Metrics]:
        looks = [look(int(row)) for row in rows]
        hidden, mean = (torch.cat(parts) for parts in zip(*looks, strict=True))
        return policy.scale_loss(hidden, mean, windows.batch(rows), actions=windows.executed(batch))

    for parameter in head.parameters():
        parameter.requires_grad_(True)
    return Stage(
        name="scale",
        steps=steps,
        learning_rate=s.scale_learning_rate,
        modules=[head],
        groups=parameter_groups([head]),
        draws=draws,
        loss=loss,
        judged="action_nll",
    )
