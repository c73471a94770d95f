"""The QueST policy: skill autoencoder, skill GPT and encoders as one thing that acts, learns and is saved."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ript.core.errors import ConfigError, PolicyError
from ript.core.files import expanded
from ript.core.hooks import Decisions
from ript.core.metrics import Distinct, Mean, Metrics
from ript.core.noise import uniform
from ript.core.types import ActionChunk, DemoBatch, Observation, SimulatorSpec
from ript.policies import folder as policy_folder
from ript.policies import language
from ript.policies.augment import augment
from ript.policies.fit import require_fit
from ript.policies.parameters import parameter_groups
from ript.policies.quest.autoencoder import SkillAutoencoder
from ript.policies.quest.config import SIZED, SIZES, QuestConfig
from ript.policies.quest.encoders import Adapter, PrefixEncoder
from ript.policies.quest.graphs import Graphs
from ript.policies.quest.layers import without_dropout
from ript.policies.quest.prior import SkillPrior
from ript.policies.temperature import choose_temperature

ADAPTER = 32
"""Rank of an adapter, at most."""


class QuestPolicy(nn.Module):
    """A `PostTrainable` policy over skill tokens.

    Args:
        config: sizes and numerics.
        simulator: what it was made for; checked before it acts.
        card: how it was trained and measured, plain values; written into the model card.
    """

    KIND = "quest"

    def __init__(self, config: QuestConfig, simulator: SimulatorSpec, card: Mapping | None = None):
        super().__init__()
        self.config, self.simulator, self.card = config, simulator, dict(card or {})
        self.autoencoder = SkillAutoencoder(config)
        self.encoder = PrefixEncoder(config)
        self.prior = SkillPrior(config)
        self._language: dict[str, torch.Tensor] = {}
        self._remembered: dict[str, torch.Tensor] = {}
        self._graphs = Graphs()
        self.check_simulator(simulator)
        self.eval()

    # ------------------------------------------------------------------ what it sees

    @property
    def device(self) -> torch.device:
        return self.prior.head.weight.device

    @property
    def temperature(self) -> float:
        return self.config.temperature

    @property
    def caveats(self) -> list[str]:
        notes = []
        if self.config.privileged_dim:
            notes.append(
                "Pre-training used an auxiliary loss on object positions from the simulator; acting never sees them."
            )
        if self.config.sampling == "published":
            notes.append("Published sampling: draws from the top k, optimises the full softmax (a known mismatch).")
        return notes

    def settings(self) -> dict[str, Any]:
        return self.config.to_json()

    def made_with(self) -> dict[str, Any]:
        """See `core.hooks`. One that samples as published keeps its density, too."""
        c, mean, std = self.config, self.encoder.proprio_mean, self.encoder.proprio_std
        sizes = {name: QuestConfig(**size) for name, size in SIZES.items()}
        same = [name for name, size in sizes.items() if all(getattr(c, k) == getattr(size, k) for k in SIZED)]
        own: dict[str, Any] = {
            "size": same[0] if same else None,
            "chunk": c.chunk,
            "execute": c.execute,
            "privileged": c.privileged_dim > 0,
            "standardise": bool((mean != 0).any() or (std != 1).any()),
            "language": language.model_of(c.language_dim),
        }
        if c.sampling == "published":
            own |= {"sampling": c.sampling, "top_k": c.top_k, "temperature": c.temperature, "entropy": 0.0}
        return own

    def check_simulator(self, spec: SimulatorSpec) -> None:
        """Raise `PolicyError` unless the policy fits the simulator."""
        c = self.config
        made_for = dataclasses.replace(
            self.simulator, cameras=dict(c.cameras), proprio=dict(c.proprio), action_dim=c.action_dim
        )
        require_fit(made_for, spec)

    def read(self, instructions: Sequence[str]) -> None:
        """Embed instructions once, before the policy is copied into workers."""
        self.embed(instructions)

    def pretend_to_read(self, instructions: Sequence[str]) -> None:
        """Take them for sentences with an embedding of zeros; see `core.hooks`."""
        for sentence in instructions:
            self._language.setdefault(sentence, torch.zeros(self.config.language_dim))

    def embed(self, instructions: Sequence[str]) -> torch.Tensor:
        """Instruction embeddings `[B, language_dim]`; each distinct sentence is computed once."""
        missing = sorted(set(instructions) - self._language.keys())
        if missing:
            model = language.model_of(self.config.language_dim)
            if model is None:
                raise PolicyError(
                    f"the policy takes instruction embeddings of size {self.config.language_dim}, the sentence models "
                    f"here give {language.DIMS}: add its own with `policy.remember(sentence, vector)`"
                )
            self._language.update(zip(missing, language.embed(missing, model), strict=True))
        return torch.stack([self._language[s] for s in instructions]).to(self.device)

    def remember(self, instruction: str, vector: torch.Tensor) -> None:
        """Use `vector` `[language_dim]` as the embedding of `instruction`; it is saved with the policy."""
        if vector.shape != (self.config.language_dim,):
            raise PolicyError(f"expected an embedding [{self.config.language_dim}], got {list(vector.shape)}")
        if not torch.isfinite(vector).all():
            raise PolicyError(f"the embedding of {instruction!r} holds NaN or infinity")
        self._language[instruction] = self._remembered[instruction] = vector.detach().float().cpu()

    @property
    def remembered(self) -> tuple[str, ...]:
        """The instructions whose embeddings were given."""
        return tuple(self._remembered)

    def inputs(self, observation: Observation) -> dict[str, torch.Tensor]:
        """An observation as tensors: "image/<camera>", "proprio", "language"."""
        tensors = {f"image/{name}": torch.from_numpy(observation.images[name]) for name in self.config.cameras}
        tensors["proprio"] = torch.from_numpy(np.asarray(observation.proprio, np.float32))
        return {k: v.to(self.device) for k, v in tensors.items()} | {"language": self.embed(observation.instruction)}

    def prefix(self, observation: Observation | Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the skill GPT continues, `[B, 2, width]`: a task token and an observation token.

        Takes an observation, its `inputs`, or what rollouts keep of them (see `act`): the part that training cannot
        change is computed once.
        """
        x = self.inputs(observation) if isinstance(observation, Observation) else observation
        if "observation_token" in x:
            return torch.stack([x["task_token"], x["observation_token"]], 1)
        features = x["features"] if "features" in x else self.features(x)
        return self.encoder.tokens(features, x["language"])

    def features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the encoders make of `inputs`, before the projections."""
        images = {name: inputs[f"image/{name}"] for name in self.config.cameras}
        return self.encoder.features(images, inputs["proprio"])

    # ------------------------------------------------------------------ acting

    def _density(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `[..., codebook]` after temperature and top-k."""
        logits = logits / self.config.temperature
        if self.config.top_k:
            best = logits.topk(self.config.top_k, dim=-1).indices
            logits = torch.full_like(logits, -torch.inf).scatter(-1, best, logits.gather(-1, best))
        return logits.log_softmax(-1)

    def _density_of(self, logits: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probability of `sample`, entropy), both `[...]`, in the density that `act` draws from.

        The sampled token counts as among the top k whatever its rank: drawn from the behaviour policy's top k, it may
        leave them during an update, and its ratio must then stay finite and change smoothly.
        """
        if self.config.sampling == "published":
            kept, place = logits, sample[..., None]
        elif self.config.top_k:  # among k logits instead of the whole codebook: 15 % of an update is saved
            ranked = logits.detach().scatter(-1, sample[..., None], torch.inf)  # so that it comes first
            kept = logits.gather(-1, ranked.topk(self.config.top_k, dim=-1).indices) / self.config.temperature
            place = torch.zeros_like(sample[..., None])
        else:
            kept, place = logits / self.config.temperature, sample[..., None]
        density = kept.log_softmax(-1)
        return density.gather(-1, place)[..., 0], -(density.exp() * density).sum(-1)

    def _kept(self, observation: Observation) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What post-training cannot change of an observation, computed: of each decision, and of its whole rollout."""
        inputs = self.inputs(observation)
        once = {"language": inputs.pop("language")}
        if self.config.rl_trains == "prior+encoders":
            return inputs, once
        features = self.features(inputs)
        if self.config.rl_trains == "prior+adapter":
            return {"features": features}, once
        return {"observation_token": self.encoder.observation_token(features)}, {"task_token": self._task(observation)}

    def _task(self, observation: Observation) -> torch.Tensor:
        """Task tokens `[B, width]`. Sentence by sentence: the last digits of a product depend on its batch, and a
        rollout has one token."""
        tokens = {s: self.encoder.task(self.embed([s]))[0] for s in dict.fromkeys(observation.instruction)}
        return torch.stack([tokens[s] for s in observation.instruction])

    @torch.no_grad()
    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        """See `interfaces.Policy.act`. Rows may be of different tasks."""
        inputs, once = self._kept(observation)
        prefix = self.prefix(inputs | once)
        uniforms = None
        if not greedy:
            if len(generators) != len(observation):
                raise ConfigError(
                    f"act: {len(observation)} observations need as many generators, got {len(generators)}"
                )
            draws = np.stack([g.random(self.config.tokens) for g in generators])
            uniforms = torch.from_numpy(draws).to(self.device)
        tokens, logits = self.generate(prefix, uniforms)
        density = logits.log_softmax(-1) if self.config.sampling == "published" else self._density(logits)
        log_prob = density.gather(-1, tokens[..., None])[..., 0]
        decoded = self.autoencoder.decode(tokens)[:, : self.config.execute]
        actions = torch.where(decoded.isinf(), torch.nan, decoded.clamp(-1, 1))  # clamped, infinity would look well
        return ActionChunk(
            actions=actions.cpu().numpy(),
            sample=tokens.cpu().numpy(),
            log_prob=log_prob.cpu().numpy(),
            inputs={name: tensor.cpu().numpy() for name, tensor in inputs.items()},
            rollout_inputs={name: tensor.cpu().numpy() for name, tensor in once.items()},
        )

    @torch.no_grad()
    def generate(
        self, prefix: torch.Tensor, uniforms: torch.Tensor | None = None, *, graphs: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `[B, K]` and their logits `[B, K, codebook]`.

        Args:
            prefix: `[B, 2, width]`.
            uniforms: float64 `[B, K]` in [0, 1), one a token to draw; None takes the likeliest.
            graphs: on a GPU, replay a CUDA graph: the same computation with one launch.
        """

        def work(prefix: torch.Tensor, *uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            def choose(logits: torch.Tensor, step: int) -> torch.Tensor:
                if not uniforms:
                    return logits.argmax(-1)
                # Inverse of the cumulative distribution, in float64: exact to the density, and one draw a token.
                cumulative = self._density(logits).double().exp().cumsum(-1)
                return (cumulative <= uniforms[0][:, step : step + 1] * cumulative[:, -1:]).sum(-1)

            return self.prior.generate(prefix, choose)

        inputs = (prefix,) if uniforms is None else (prefix, uniforms)
        if not (graphs and prefix.is_cuda):
            return work(*inputs)
        key = (len(inputs), self.config.temperature, self.config.top_k, self.prior.head.weight.data_ptr())
        tokens, logits = self._graphs.run(key, work, *inputs)
        return tokens, logits

    # ------------------------------------------------------------------ learning

    def prior_logits(self, prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, K, codebook]`; row i predicts token i from the prefix and the tokens before it."""
        return self.prior(prefix, tokens)

    def log_prob(self, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `interfaces.LikelihoodPolicy.log_prob`."""
        return self._density_of(self.prior(self.prefix(inputs), sample), sample)

    def autoencoder_loss(
        self, actions: torch.Tensor, mask: torch.Tensor, *, count: int | None = None
    ) -> tuple[torch.Tensor, Metrics]:
        """Mean absolute error of the reconstruction over executed actions.

        Args:
            actions: `[B, H, A]`.
            mask: bool `[B, H]`, True for executed actions.
            count: executed actions that the mean is over; those of the whole batch when this is a part of it, so that
                losses and gradients of parts add up. None: those of `mask`.
        """
        actions, mask = actions.to(self.device), mask.to(self.device)
        reconstruction, tokens = self.autoencoder(actions)
        total, own = ((reconstruction - actions).abs() * mask[..., None]).sum(), int(mask.sum())
        return total / ((own if count is None else count) * actions.shape[-1]), {
            "reconstruction_l1": Mean(total.item(), own * actions.shape[-1]),
            "codes_used": Distinct(frozenset(tokens.unique().tolist())),
        }

    def loss(
        self,
        batch: DemoBatch,
        *,
        decoder_scale: float = 0.0,
        colour_jitter: float = 0.0,
        noisy_targets: bool = False,
        windows: int | None = None,
        actions: int | None = None,
    ) -> tuple[torch.Tensor, Metrics]:
        """Cross entropy of the demonstrated tokens, plus the auxiliary loss on object positions when it is configured.

        Augments pictures when in training mode.

        Args:
            batch: of demonstrations.
            colour_jitter: see `augment`.
            noisy_targets: the autoencoder's dropout, when it is in training mode, acts on the tokens to be predicted
                too (the published code's way).
            decoder_scale: weight of the mean absolute error of actions decoded from tokens drawn from the prior. Its
                gradient reaches the autoencoder's decoder alone (the paper's few-shot stage).
            windows, actions: windows and executed actions that the means are over: those of the whole batch when this
                is a part of it, so that losses and gradients of parts add up. None: those of `batch`.
        """
        inputs = self.inputs(batch.observation)
        if self.training:
            inputs |= {k: augment(v, colour_jitter=colour_jitter) for k, v in inputs.items() if k.startswith("image/")}
        chunks = torch.from_numpy(batch.actions).to(self.device)
        with torch.no_grad(), nullcontext() if noisy_targets else without_dropout():
            targets = self.autoencoder.encode(chunks)
        features = self.features(inputs)
        logits = self.prior(self.encoder.tokens(features, inputs["language"]), targets)
        share = 1.0 if windows is None else len(targets) / windows  # every window has as many tokens
        tokens = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss, n = tokens * share, targets.numel()
        metrics: Metrics = {
            "token_loss": Mean(tokens.item() * n, n),
            "token_accuracy": Mean(float((logits.argmax(-1) == targets).sum()), n),
        }
        if self.encoder.privileged is not None and batch.privileged is not None:
            target = torch.from_numpy(batch.privileged).to(self.device)
            target = (target - self.encoder.privileged_mean) / self.encoder.privileged_std
            auxiliary = F.smooth_l1_loss(self.encoder.privileged(features), target)
            metrics["privileged_loss"] = Mean(auxiliary.item() * len(target), len(target))
            loss = loss + auxiliary * share
        if decoder_scale:
            cumulative = logits.detach().double().softmax(-1).cumsum(-1)
            drawn = (cumulative <= uniform(*targets.shape, 1).to(self.device) * cumulative[..., -1:]).sum(-1)
            mask = torch.from_numpy(batch.mask).to(self.device)
            error = ((self.autoencoder.decode(drawn) - chunks).abs() * mask[..., None]).sum()
            own = int(mask.sum())
            metrics["decoder_l1"] = Mean(error.item(), own * chunks.shape[-1])
            loss = loss + decoder_scale * error / ((own if actions is None else actions) * chunks.shape[-1])
        return loss, metrics

    def rl_parameters(self) -> list[dict]:
        """AdamW groups of what post-training updates: matrices are decayed; biases, norms and embeddings are not."""
        return parameter_groups(list(self._trained().values()))

    def weights(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": tensor.detach()
            for name, module in self._trained().items()
            for key, tensor in module.state_dict().items()
        }

    def _trained(self) -> dict[str, nn.Module]:
        """Name -> module of what post-training updates."""
        trained: dict[str, nn.Module] = {"prior": self.prior}
        if self.config.rl_trains == "prior+encoders":
            trained["encoder"] = self.encoder
        elif self.encoder.adapter is not None and self.config.rl_trains == "prior+adapter":
            trained["encoder.adapter"] = self.encoder.adapter
        return trained

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        own = self.state_dict()
        for name, tensor in weights.items():
            own[name].copy_(tensor)

    def configured(self, **changes: object) -> QuestPolicy:
        """The same policy (sharing its weights) with other settings that do not change sizes, such as `temperature`."""
        other = object.__new__(QuestPolicy)
        other.__dict__ = dict(self.__dict__)
        other.config = dataclasses.replace(self.config, **changes)  # type: ignore[arg-type]
        return other

    def at_temperature(self, temperature: float) -> QuestPolicy:
        """The same policy, sharing its weights, with another softmax temperature."""
        return self.configured(temperature=temperature)

    def tuned(self, options: Any, decisions: Decisions | None) -> tuple[QuestPolicy, str]:
        """See `core.hooks`. A policy that was imported with published sampling keeps that, its temperature too."""
        published = self.config.sampling == "published"
        density = {"temperature": options.temperature, "top_k": options.top_k, "sampling": options.sampling}
        policy = self.configured(rl_trains=options.rl_trains, **({} if published else density))
        wanted = 0.0 if published else options.entropy
        if decisions is None or not (wanted or options.rl_trains == "prior+adapter"):
            return policy, ""
        inputs, sample = decisions(policy.at_temperature(1.0))
        policy = policy.with_adapter(inputs)
        if not wanted:
            return policy, ""
        temperature, entropy = choose_temperature(lambda t: policy.mean_entropy(inputs, sample, t), wanted)
        told = f"temperature {temperature:g}: entropy {entropy:.2f} nats a variable, asked for {wanted:g}"
        return policy.at_temperature(temperature), told

    @torch.no_grad()
    def mean_entropy(self, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor, temperature: float) -> float:
        """The mean entropy of a token's distribution at a temperature, over these decisions, in nats."""
        sampled = self.configured(temperature=temperature, sampling="exact")  # "published" reports another density
        return float(sampled.log_prob(inputs, sample)[1].mean())

    def with_adapter(self, inputs: Mapping[str, torch.Tensor]) -> QuestPolicy:
        """The same policy with an adapter for what varies in these inputs, when `rl_trains` asks for one.

        Acts exactly as before. Shares all other weights. A policy that has an adapter keeps it.

        Args:
            inputs: of decisions in the policy's own rollouts, as `act` gives it.
        """
        if self.config.rl_trains != "prior+adapter" or self.config.adapter:
            return self
        features, task = inputs["features"], torch.unique(inputs["language"], dim=0, return_inverse=True)[1]
        rank = max(1, min(ADAPTER, features.shape[1], len(features) // 4))
        adapter = Adapter(features.shape[1], rank, self.config.width)
        adapter.fit(features.cpu(), task.cpu())
        other, encoder = self.configured(adapter=rank), copy.copy(self.encoder)
        other._modules, encoder._modules = dict(self._modules), dict(encoder._modules)  # those of `self` stay
        encoder.adapter = adapter.to(self.device)
        other.encoder = encoder
        return other

    # ------------------------------------------------------------------ on disk

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the model card `README.md`, whole or not at all."""
        policy_folder.save(
            expanded(folder),
            self.KIND,
            self.config.to_json(),
            self.simulator,
            self.state_dict(),
            self.card,
            notes=self.caveats,
            instructions=self._remembered,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> QuestPolicy:
        """Load a folder written by `save_pretrained`.

        Raises:
            PolicyError: missing, partial, of another kind or version, or with weights that do not fit.
        """
        folder = expanded(folder)
        saved = policy_folder.load(folder, cls.KIND)
        try:
            policy = cls(QuestConfig.from_json(saved.config), saved.simulator, saved.card)
        except Exception as error:  # whatever constructors raise when they are given a foreign or damaged configuration
            config = folder / "config.json"
            raise PolicyError(f"{config} describes no policy that can be built: {error}") from error
        policy_folder.fill(policy, saved)
        for sentence, vector in saved.further("instructions").items():
            policy.remember(sentence, vector)
        return policy

    def __eq__(self, other: object) -> bool:
        """Same configuration, simulator and weights, to the bit."""
        if not isinstance(other, QuestPolicy):
            return NotImplemented
        mine, theirs = self.state_dict(), other.state_dict()
        return (
            self.config == other.config
            and self.simulator == other.simulator
            and mine.keys() == theirs.keys()
            and all(torch.equal(mine[k], theirs[k]) for k in mine)
        )

    __hash__ = nn.Module.__hash__
