"""A Gaussian policy: pictures and proprioception -> a normal distribution over the next actions.

What is drawn is what is scored: the sample is the action before simulators take it into [-1, 1], and the
log-probability is the sample's. To clip is the environment's then. What it costs: where the mean lies at the border,
half of the noise leads outside and changes nothing, so a policy explores inward only there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ript.core.hooks import Decisions
from ript.core.metrics import Mean, Metrics
from ript.core.supervised import Statistics
from ript.core.types import ActionChunk, DemoBatch, Observation, SimulatorSpec
from ript.policies import language, modules
from ript.policies.augment import augment
from ript.policies.fit import require_fit
from ript.policies.gaussian.options import GaussianOptions
from ript.policies.parameters import parameter_groups
from ript.policies.vision import KeyPoints

Tensors = Mapping[str, torch.Tensor]
OBJECTS = "objects"
"""Module of supervised training alone: where objects are."""
HEAD = ("trunk", "mean", "spread")
"""Modules behind the picture encoders."""
FARTHEST = 5.0
"""Standard deviations of the demonstrations at which proprioception is cut: of what practice meets beyond them (a block
that fell off the table), a network that never saw it makes an action of any size, and a small step changes it much."""


class GaussianPolicy(nn.Module):
    """A `PostTrainable` policy whose actions are independent normal variables.

    Args:
        options: its settings.
        simulator: what it was made for; checked before it acts.
        card: how it was trained and measured, plain values; written into the model card.
    """

    KIND = "gaussian"
    proprio_mean: torch.Tensor
    proprio_std: torch.Tensor

    def __init__(self, options: GaussianOptions, simulator: SimulatorSpec, card: Mapping | None = None):
        super().__init__()
        self.options, self.simulator, self.card = options, simulator, dict(card or {})
        self.encoders = nn.ModuleDict({name: KeyPoints(options.points, *hw) for name, hw in simulator.cameras.items()})
        self.register_buffer("proprio_mean", torch.zeros(simulator.proprio_dim))
        self.register_buffer("proprio_std", torch.ones(simulator.proprio_dim))
        words = 0 if options.language == "none" else language.DIMS[options.language]
        step, width = len(self.encoders) * 2 * options.points + simulator.proprio_dim, options.width
        self.seen = options.n_obs_steps * step
        self.trunk = nn.Sequential(nn.Linear(self.seen + words, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.mean = nn.Linear(width, options.chunk * simulator.action_dim)
        self.spread = nn.Linear(width, simulator.action_dim)
        nn.init.zeros_(self.spread.weight)
        nn.init.zeros_(self.spread.bias)
        self._embedded: dict[str, torch.Tensor] = {}
        self.eval()

    # ------------------------------------------------------------------ what it sees

    @property
    def n_obs_steps(self) -> int:
        """Observation steps that it sees at a time; see `core.hooks`."""
        return self.options.n_obs_steps

    @property
    def device(self) -> torch.device:
        return self.mean.weight.device

    def check_simulator(self, spec: SimulatorSpec) -> None:
        """Raise `PolicyError` unless the policy fits the simulator."""
        require_fit(self.simulator, spec)

    def inputs(self, observation: Observation) -> dict[str, torch.Tensor]:
        """An observation as tensors: "image/<camera>", "proprio" and, when it reads, "language"."""
        seen = {f"image/{name}": torch.from_numpy(observation.images[name]) for name in self.encoders}
        seen["proprio"] = torch.from_numpy(np.asarray(observation.proprio, np.float32))
        if self.options.language != "none":
            self.read(observation.instruction)
            seen["language"] = torch.stack([self._embedded[sentence] for sentence in observation.instruction])
        return {name: tensor.to(self.device) for name, tensor in seen.items()}

    def read(self, instructions: Sequence[str]) -> None:
        """Embed instructions once, before the policy is copied into workers."""
        missing = sorted(set(instructions) - self._embedded.keys())
        if missing and self.options.language != "none":
            self._embedded.update(zip(missing, language.embed(missing, self.options.language), strict=True))

    def features(self, inputs: Tensors) -> torch.Tensor:
        """What the trunk sees, but for the instruction: `[B, F]`."""
        proprio = ((inputs["proprio"] - self.proprio_mean) / self.proprio_std).clamp(-FARTHEST, FARTHEST)
        pictures = [(encoder, inputs[f"image/{name}"].flatten(0, -4)) for name, encoder in self.encoders.items()]
        points = [encoder(each).reshape(len(proprio), -1) for encoder, each in pictures]
        return torch.cat([*points, proprio.flatten(1)], 1)

    # ------------------------------------------------------------------ the density

    def density(self, inputs: Tensors) -> torch.distributions.Normal:
        """The density of a chunk, `[B, H, A]`: `act` draws from it, and `log_prob` evaluates it.

        Args:
            inputs: of an observation, or what rollouts keep of them.
        """
        o = self.options
        features = inputs["features"] if "features" in inputs else self.features(inputs)
        hidden = self.trunk(torch.cat([features, inputs["language"]], 1) if "language" in inputs else features)
        mean = self.mean(hidden).unflatten(1, (o.chunk, -1))
        spread = self.spread(hidden if o.std_sees else torch.zeros_like(hidden))  # 0 before post-training
        std = o.min_std + (o.std - o.min_std) * spread.exp()
        return torch.distributions.Normal(mean, std[:, None].expand_as(mean), validate_args=False)

    def terms(self, values: torch.Tensor) -> torch.Tensor:
        """Values of action dimensions `[B, E, A]` -> of scored terms `[B, K]`."""
        return values.sum(-1) if self.options.terms == "step" else values.flatten(1)

    @torch.no_grad()
    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        """See `interfaces.Policy.act`. The likeliest sample is the mean."""
        inputs, o = self.inputs(observation), self.options
        told = {name: inputs.pop(name) for name in ("language",) if name in inputs}
        if o.rl_trains == "head":
            inputs = {"features": self.features(inputs)}
        density = self.density(inputs | told)
        sample = density.mean[:, : o.executed]
        if not greedy:
            noise = np.stack([g.standard_normal(sample.shape[1:], np.float32) for g in generators])
            sample = sample + density.stddev[:, : o.executed] * torch.from_numpy(noise).to(self.device)
        repeated = 1 if o.terms == "step" else self.simulator.action_dim
        return ActionChunk(
            actions=sample.clamp(-1, 1).cpu().numpy(),
            sample=sample.cpu().numpy(),
            log_prob=self.log_prob(inputs | told, sample)[0].cpu().numpy(),
            inputs={name: tensor.cpu().numpy() for name, tensor in inputs.items()},
            rollout_inputs={name: tensor.cpu().numpy() for name, tensor in told.items()},
            term_steps=np.arange(o.executed).repeat(repeated),
        )

    def log_prob(self, inputs: Tensors, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `interfaces.LikelihoodPolicy.log_prob`; `sample` is `[R, E, A]`."""
        chunk = self.density(inputs)
        steps = sample.shape[1]
        executed = torch.distributions.Normal(chunk.loc[:, :steps], chunk.scale[:, :steps], validate_args=False)
        return self.terms(executed.log_prob(sample)), self.terms(executed.entropy())

    # ------------------------------------------------------------------ learning

    def loss(self, batch: DemoBatch, *, shift: int = 0, privileged: float = 0.0) -> tuple[torch.Tensor, Metrics]:
        """Mean squared error of the means, over demonstrated actions. The deviation is what post-training starts with.

        Args:
            batch: of demonstrations.
            shift: pixels by which pictures are moved about at random in training mode, at most.
            privileged: weight of the error of `objects`, after `look_for`.
        """
        inputs = self.inputs(batch.observation)
        if self.training:
            inputs |= {name: augmented(x, shift) for name, x in inputs.items() if name.startswith("image/")}
        target, mask = (torch.from_numpy(array).to(self.device) for array in (batch.actions, batch.mask))
        features = self.features(inputs)
        squared = (self.density(inputs | {"features": features}).mean - target).square().mean(-1)[mask]
        loss = squared.mean()
        metrics: Metrics = {"action_mse": Mean(squared.sum().item(), len(squared))}
        if privileged and batch.privileged is not None:
            apart = self.get_submodule(OBJECTS)(features, torch.from_numpy(batch.privileged).to(self.device))
            loss, metrics["objects_loss"] = loss + privileged * apart, Mean(apart.item() * len(target), len(target))
        return loss, metrics

    def look_for(self, statistics: Statistics) -> None:
        """Have `loss` learn as well where the objects of these demonstrations are."""
        self.add_module(OBJECTS, Objects(self.seen, statistics).to(self.device))

    def set_statistics(self, statistics: Statistics) -> None:
        """Normalise proprioception by these from now on."""
        self.proprio_mean.copy_(torch.as_tensor(statistics.proprio_mean))
        self.proprio_std.copy_(torch.as_tensor(statistics.proprio_std))

    def _trained(self) -> dict[str, nn.Module]:
        """Name -> module of what post-training updates."""
        parts = {name: part for name, part in self.named_children() if name != OBJECTS}
        return parts if self.options.rl_trains == "all" else {name: parts[name] for name in HEAD}

    def rl_parameters(self) -> list[dict]:
        """AdamW groups of what post-training updates."""
        return parameter_groups(list(self._trained().values()))

    def weights(self) -> dict[str, torch.Tensor]:
        return modules.weights(self._trained())

    def load_weights(self, weights: Tensors) -> None:
        modules.load_weights(self, weights)

    def tuned(self, options: GaussianOptions, decisions: Decisions | None) -> tuple[GaussianPolicy, str]:
        """The same policy, sharing its weights, with the options that are not part of them; see `core.hooks`."""
        other = copy.copy(self)
        other.options = options.replaced(**self.options.decided())
        return other, ""

    # ------------------------------------------------------------------ on disk

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a policy folder; see `modules.save`."""
        modules.save(self, folder, without=OBJECTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> GaussianPolicy:
        """Load a folder written by `save_pretrained`; see `modules.load`."""
        return modules.load(cls, GaussianOptions, folder)


class Objects(nn.Module):
    """Standardised object positions by a linear map of features, against the simulator's: a Huber loss.

    Args:
        features: their number.
        statistics: of the demonstrations.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, features: int, statistics: Statistics):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(statistics.privileged_mean))
        self.register_buffer("std", torch.as_tensor(statistics.privileged_std))
        self.map = nn.Linear(features, len(self.mean))
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, features: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`[B, F]` and positions `[B, O]` -> the mean loss."""
        return nn.functional.smooth_l1_loss(self.map(features), (positions - self.mean) / self.std)


def augmented(pictures: torch.Tensor, shift: int) -> torch.Tensor:
    """Pictures changed at random, `[B, h, w, 3]` or `[B, n, h, w, 3]`: those of a row all in the same way, so that what
    moves in them is what moved."""
    if pictures.ndim == 4:
        return augment(pictures, shift)
    rows, steps, h, w, colours = pictures.shape
    changed = augment(pictures.permute(0, 2, 3, 1, 4).reshape(rows, h, w, steps * colours), shift)
    return changed.unflatten(3, (steps, colours)).permute(0, 3, 1, 2, 4)
