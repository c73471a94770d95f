"""A kind of policy as a stranger would write it: no word of QueST's, and of what is optional only what it was made
with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ript.core.errors import PolicyError
from ript.core.metrics import Mean, Metrics
from ript.core.options import PolicyOptions, TrainingOptions
from ript.core.plugins import PolicyKind
from ript.core.supervised import DemoSource, Stage
from ript.core.types import ActionChunk, DemoBatch, Observation, SimulatorSpec
from ript.policies import folder as policy_folder

BINS = (-1.0, 0.0, 1.0)


class PlainPolicy(nn.Module):
    """Proprioception -> one categorical distribution over `BINS` for each action dimension, held for `chunk` steps."""

    KIND = "plain"

    def __init__(self, simulator: SimulatorSpec, chunk: int, card: Mapping | None = None):
        super().__init__()
        self.simulator, self.chunk, self.card = simulator, chunk, dict(card or {})
        self.layer = nn.Linear(simulator.proprio_dim, simulator.action_dim * len(BINS))

    def check_simulator(self, spec: SimulatorSpec) -> None:
        if spec.suite != self.simulator.suite or spec.action_dim != self.simulator.action_dim:
            raise PolicyError(f"the policy does not fit {spec.suite!r}")

    def density(self, proprio: torch.Tensor) -> torch.Tensor:
        return self.layer(proprio).unflatten(1, (-1, len(BINS))).log_softmax(-1)

    @torch.no_grad()
    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        proprio = torch.from_numpy(np.asarray(observation.proprio, np.float32))
        density = self.density(proprio)
        sample = density.argmax(-1)
        if not greedy:
            draws = torch.from_numpy(np.stack([g.random(self.simulator.action_dim) for g in generators]))
            cumulative = density.double().exp().cumsum(-1)
            sample = (cumulative <= draws[..., None] * cumulative[..., -1:]).sum(-1)
        return ActionChunk(
            actions=torch.tensor(BINS)[sample][:, None].expand(-1, self.chunk, -1).numpy(),
            sample=sample.numpy(),
            log_prob=density.gather(-1, sample[..., None])[..., 0].numpy(),
            inputs={"proprio": proprio.numpy()},
        )

    def log_prob(self, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        density = self.density(inputs["proprio"])
        return density.gather(-1, sample[..., None])[..., 0], -(density.exp() * density).sum(-1)

    def loss(self, batch: DemoBatch, *, actions: int | None = None) -> tuple[torch.Tensor, Metrics]:
        """Cross entropy of the bins nearest to the demonstrated actions."""
        density = self.density(torch.from_numpy(np.asarray(batch.observation.proprio, np.float32)))
        nearest = (torch.from_numpy(batch.actions)[..., None] - torch.tensor(BINS)).abs().argmin(-1)  # [B, H, A]
        scored = -density[:, None].expand(-1, self.chunk, -1, -1).gather(-1, nearest[..., None])[..., 0].mean(-1)
        total = scored[torch.from_numpy(batch.mask)].sum()
        own = int(batch.mask.sum())
        return total / (actions or own), {"bin_loss": Mean(total.item(), own)}

    def rl_parameters(self) -> list[dict]:
        return [{"params": list(self.parameters())}]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.load_state_dict(dict(weights))

    def made_with(self) -> dict[str, int]:
        return {"chunk": self.chunk}

    def save_pretrained(self, folder: str | Path) -> None:
        policy_folder.save(
            Path(folder), self.KIND, {"chunk": self.chunk}, self.simulator, self.state_dict(), card=self.card
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PlainPolicy:
        saved = policy_folder.load(Path(folder), cls.KIND)
        policy = cls(saved.simulator, saved.config["chunk"], saved.card)
        policy_folder.fill(policy, saved)
        return policy


class PlainOptions(PolicyOptions):
    ABOUT: ClassVar[str] = "A plain policy."
    BUILT: ClassVar[tuple[str, ...]] = ("chunk",)

    kind: Literal["plain"] = Field("plain", description=PolicyOptions.meaning("kind"))
    chunk: int = Field(4, ge=1, description="Steps for which an action is held.")


class PlainTraining(TrainingOptions):
    ABOUT: ClassVar[str] = "One stage."
    OF_BASE: ClassVar[tuple[str, ...]] = ("imitation",)
    OF_TARGETS: ClassVar[tuple[str, ...]] = ("imitation",)

    imitation_steps: int = Field(20, ge=0, description="Optimiser steps.")
    imitation_learning_rate: float = Field(1e-2, gt=0, description="Highest learning rate.")


def make(options: PlainOptions, spec: SimulatorSpec, seed: int, privileged_dim: int | None) -> PlainPolicy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlainPolicy(spec, options.chunk)


def stages(
    policy: PlainPolicy, training: PlainTraining, windows: DemoSource, targets: Sequence[str], fresh: bool
) -> list[Stage]:
    def draws(rng: np.random.Generator) -> Iterator[np.ndarray]:
        return windows.draws(16, rng)

    return [
        Stage(
            name="imitation",
            steps=training.imitation_steps,
            learning_rate=training.imitation_learning_rate,
            modules=[policy],
            draws=draws,
            loss=lambda rows, batch: policy.loss(windows.batch(rows), actions=windows.executed(batch)),
            judged="bin_loss",
        )
    ]


PLAIN = PolicyKind(
    kind="plain",
    summary="proprioception alone",
    options=PlainOptions,
    make=make,
    load=PlainPolicy.from_pretrained,
    training=PlainTraining,
    stages=stages,
)
