"""The OpenVLA-OFT policy: a network, its density and its numbers as one thing that acts, learns and is saved."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ript.core.errors import ConfigError, PolicyError
from ript.core.metrics import Mean, Metrics
from ript.core.types import ActionChunk, DemoBatch, Observation, SimulatorSpec
from ript.policies.fit import require_fit
from ript.policies.openvla_oft.config import OftConfig, Precision
from ript.policies.openvla_oft.density import Density
from ript.policies.openvla_oft.heads import ScaleHead
from ript.policies.openvla_oft.lora import add_lora, lora_layers, lora_weights
from ript.policies.openvla_oft.model import OpenVla
from ript.policies.openvla_oft.numbers import UNTRAINED, protocol_of
from ript.policies.openvla_oft.pictures import encoded, packed, prepared, prepared_jpeg, require_picture, unpacked
from ript.policies.openvla_oft.presets import PRESETS
from ript.policies.openvla_oft.prompt import Prompts
from ript.policies.openvla_oft.saving import HELD, KIND, save, saved_weights
from ript.policies.parameters import parameter_groups

T = TypeVar("T")
R = TypeVar("R")

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PADDING = -1
"""Fills up rows of token ids."""
PUBLISHED_CAMERAS = ("primary", "wrist")
"""The cameras of published policies, in their order."""
LEARNED = Density(terms="dimension", clip=(-7.0, 3.0))
"""What the scale head is trained by: its scales are hardly bounded, for beyond a bound there is no gradient."""
NO_DENSITY = (
    "the policy has no scale head, so there is no density to draw from: train one (`ript sft`) or load RIPT-VLA's "
    "(`ript import openvla --scale_head`)"
)
WRIST = ("wrist", "hand")
"""One of these is in the name of a camera that the robot carries."""


class OpenVlaPolicy(nn.Module):
    """A `PostTrainable` policy over chunks of continuous actions.

    Args:
        config: everything but weights.
        network: with weights; a policy without a scale head acts greedily only.
        prompts: reads instructions.
        simulator: what it acts in; checked before it acts.
        card: how it was trained and measured, plain values.
    """

    KIND = KIND

    def __init__(
        self,
        config: OftConfig,
        network: OpenVla,
        prompts: Prompts,
        simulator: SimulatorSpec,
        card: Mapping | None = None,
    ):
        super().__init__()
        self.config, self.network, self.prompts = config, network, prompts
        self.simulator, self.card = simulator, dict(card or {})
        self.eval()

    # ------------------------------------------------------------------ what it sees

    @property
    def device(self) -> torch.device:
        return self.network.llama.norm.weight.device

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        """A frame uint8 `[h, w, 3]` as the towers see it, uint8 `[size, size, 3]`, before pixels are normalised.

        A frame of the towers' size counts as turned and resized already; see `pictures.prepared`.

        Raises:
            PolicyError: not such a picture, or, for a policy that takes frames as they are, not of its size.
        """
        self._require_frames([image])
        if self.config.pictures == "published":
            return prepared(image, self.config.sizes.image, turn=self.config.upside_down)
        return image

    def _require_frames(self, frames: Sequence[np.ndarray]) -> bool:
        """Whether these frames of one batch have the towers' size.

        Raises:
            PolicyError: one is no picture, or of a size that the policy does not take; or only some have that size.
        """
        size = self.config.sizes.image
        known = {(size, size)}
        if self.config.pictures == "published":
            known |= set(self.simulator.cameras.values())
        for frame in frames:
            require_picture(frame)
        found = sorted({frame.shape[:2] for frame in frames})
        if strange := [each for each in found if each not in known]:
            takes = " or ".join(by(each) for each in sorted(known - {(size, size)}))
            ready = f"frames of {takes}, or of {by((size, size))} that are turned and resized already"
            raise PolicyError(f"a picture of {by(strange[0])}: the policy takes {ready if takes else by((size, size))}")
        if (size, size) in found and len(found) > 1:
            raise PolicyError(
                f"pictures of {' and '.join(map(by, found))} together: those of {by((size, size))} count as "
                "turned and resized already; give all as the simulator shows them, or all ready"
            )
        return (size, size) in found

    def cameras_among(self, names: Sequence[str]) -> list[str]:
        """Which of a simulator's cameras are the policy's, in its order: those of its names, or, where a published
        policy meets a simulator with other names, the one camera of the wrist and the one that is not.

        Raises:
            PolicyError: it cannot be told.
        """
        own = self.config.cameras
        if all(name in names for name in own):
            return list(own)
        if own == PUBLISHED_CAMERAS and len(names) == len(own):
            wrist = [name for name in names if any(word in name.lower() for word in WRIST)]
            if len(wrist) == 1:
                return [name for name in names if name not in wrist] + wrist
        missing = ", ".join(name for name in own if name not in names)
        raise PolicyError(f"the policy looks through {', '.join(own)}: no {missing} among {', '.join(names)}")

    def read(self, instructions: Sequence[str]) -> None:
        """Prepare instructions once; see `core.hooks`. Raises `PolicyError` for one that cannot be read."""
        self.prompts(instructions)

    def remember(self, given: Mapping[str, Sequence[int]]) -> None:
        """Use these token ids of instructions; see `Prompts.remember`."""
        self.prompts.remember(given)

    def inputs(self, observation: Observation) -> dict[str, np.ndarray]:
        """What a decision depends on: "frames" uint8 `[B, ROOM]`, packed JPEGs of frames that are to be resized, or
        "pictures" uint8 `[B, pictures, size, size, 3]` otherwise; "proprio" float32 `[B, P]`, normalised; "prompt"
        int32 `[B, room]` filled up with `PADDING` on the right, as wide whatever the batch.

        Raises:
            PolicyError: cameras, pictures, proprioception or an instruction that the policy cannot take.
        """
        config = self.config
        cameras = self.cameras_among(list(observation.images))
        proprio = np.asarray(observation.proprio)
        if proprio.ndim != 2 or proprio.shape[1] != config.sizes.proprio:
            raise PolicyError(f"expected proprioception [B, {config.sizes.proprio}], got {list(proprio.shape)}")
        rows = range(len(observation))
        if not rows:
            raise PolicyError("an observation without rows: there is nothing to decide")
        frames = [[observation.images[name][row] for name in cameras] for row in rows]
        prompts = self.prompts(observation.instruction)
        ids = np.full((len(rows), config.room), PADDING, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        return {
            **self._kept(frames),
            "proprio": config.statistics.proprio(proprio).astype(np.float32),
            "prompt": ids,
        }

    def _kept(self, frames: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
        """What is kept of the frames of B decisions."""
        ready = self._require_frames([frame for row in frames for frame in row])
        if self.config.pictures == "published" and not ready:
            jpegs = in_threads(lambda row: [encoded(f, turn=self.config.upside_down) for f in row], frames)
            return {"frames": np.stack([packed(row) for row in jpegs])}
        return {"pictures": np.stack(in_threads(lambda row: np.stack([self.preprocess(f) for f in row]), frames))}

    def pictures(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """uint8 `[B, pictures, size, size, 3]` of `inputs`."""
        if "pictures" in inputs:
            return torch.as_tensor(inputs["pictures"])
        sizes, rows = self.config.sizes, torch.as_tensor(inputs["frames"]).cpu().numpy()
        prepared = in_threads(
            lambda row: np.stack([prepared_jpeg(j, sizes.image) for j in unpacked(row, sizes.pictures)]), list(rows)
        )
        return torch.from_numpy(np.stack(prepared))

    def hidden(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Hidden states of the chunk `[B, chunk * A, D]`, with gradient; `inputs` are arrays or tensors. Where inputs
        hold hidden states (`_hidden_kept`), those."""
        if "hidden" in inputs:
            kept = torch.as_tensor(inputs["hidden"]).to(self.device)
            return kept.view(torch.bfloat16) if kept.dtype == torch.int16 else kept
        pictures = self.pictures(inputs)
        proprio, ids = (torch.as_tensor(inputs[name]) for name in ("proprio", "prompt"))
        prompts = [[i for i in row if i != PADDING] for row in ids.tolist()]
        pixels = self.config.normalisation.pixels(pictures.to(self.device))
        seen = self.network.seen(pixels, proprio.to(self.device))
        if self.config.forward == "two_pass":
            return self.network.hidden_two_pass(seen, prompts, recompute=self.config.recompute)
        return self.network.hidden(seen, prompts, recompute=self.config.recompute)

    def _hidden_kept(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What takes the place of `inputs` in records where the heads alone are trained: "hidden", hidden states of
        the executed actions `[B, execute * A, D]`, to the bit: float32, or bfloat16 as int16, which numpy knows."""
        hidden = self.hidden(inputs)[:, : self.config.execute * self.config.sizes.action].cpu()
        return {"hidden": (hidden.view(torch.int16) if hidden.dtype == torch.bfloat16 else hidden).numpy()}

    def heads(self, inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(means, log-scales or None without a scale head), float32 `[B, chunk, A]` of normalised actions, with
        gradient. Log-scales are the head's own: not clipped, and without the temperature."""
        hidden = self.hidden(inputs)
        scale = self.network.scale_head
        return self.network.action_head(hidden).float(), None if scale is None else scale(hidden).float()

    # ------------------------------------------------------------------ acting

    @torch.no_grad()
    def predict(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`heads` of an observation with the simulator's frames, on the CPU."""
        mean, log_scale = self.heads(self.inputs(observation))
        return mean.cpu(), None if log_scale is None else log_scale.cpu()

    @torch.no_grad()
    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        """See `interfaces.Policy.act`. Rows may have different instructions.

        The sample is float32 `[B, execute, A]` in normalised actions. Greedy decisions of a policy without a scale head
        have a log-probability of 0.
        """
        inputs = self.inputs(observation)
        if self.config.rl_trains == "head":
            inputs = self._hidden_kept(inputs)
        mean, log_b = self.heads(inputs)
        mean, log_b = mean[:, : self.config.execute], None if log_b is None else log_b[:, : self.config.execute]
        if greedy:
            sample = mean
        else:
            if len(generators) != len(observation):
                raise ConfigError(
                    f"act: {len(observation)} observations need as many generators, got {len(generators)}"
                )
            uniforms = torch.from_numpy(np.stack([g.random(mean.shape[1:]) for g in generators]))
            sample = self.config.density.drawn(mean, self._scales(log_b), uniforms.to(mean.device))
        if log_b is None:
            log_prob = self.config.density.terms_of(torch.where(mean.isfinite(), 0.0, torch.nan))
        else:
            log_prob, _ = self.config.density.log_prob(mean, log_b, sample)
        return ActionChunk(
            actions=self.config.statistics.commanded(sample.cpu().numpy()),
            sample=sample.cpu().numpy(),
            log_prob=log_prob.cpu().numpy(),
            inputs={name: array for name, array in inputs.items() if name != "prompt"},
            rollout_inputs={name: array for name, array in inputs.items() if name == "prompt"},
            term_steps=np.arange(log_prob.shape[1]) * sample.shape[1] // log_prob.shape[1],
        )

    def _scales(self, log_b: torch.Tensor | None) -> torch.Tensor:
        if log_b is None:
            raise PolicyError(f"{NO_DENSITY}; greedy decisions need none")
        return log_b

    # ------------------------------------------------------------------ learning

    @property
    def chunk(self) -> int:
        """Actions in a decision."""
        return self.config.sizes.chunk

    def loss(self, batch: DemoBatch, *, actions: int | None = None) -> tuple[torch.Tensor, Metrics]:
        """Mean absolute error of normalised actions, over those that were executed.

        Args:
            batch: of demonstrations.
            actions: executed actions that the mean is over: those of the whole batch when this is a part of it, so
                that losses and gradients of parts add up. None: those of `batch`.
        """
        mean = self.network.action_head(self.hidden(self.inputs(batch.observation))).float()
        target, mask = self._targets(batch)
        error, own = ((mean - target).abs() * mask[..., None]).sum(), int(mask.sum())
        size = mean.shape[-1]
        return error / ((own if actions is None else actions) * size), {"action_l1": Mean(error.item(), own * size)}

    def scale_loss(
        self, hidden: torch.Tensor, mean: torch.Tensor, batch: DemoBatch, *, actions: int | None = None
    ) -> tuple[torch.Tensor, Metrics]:
        """Mean negative log-likelihood of normalised actions in each dimension; its gradient reaches the scale head
        alone.

        Args:
            hidden, mean: of the batch's decisions, without gradient.
            batch, actions: see `loss`.
        """
        target, mask = self._targets(batch)
        scale = self.network.scale_head
        log_b = self._scales(None if scale is None else scale(hidden).float())
        each = LEARNED.log_prob(mean, log_b, target)[0].unflatten(1, mean.shape[1:]) * mask[..., None]
        own, size = int(mask.sum()), mean.shape[-1]
        return -each.sum() / ((own if actions is None else actions) * size), {
            "action_nll": Mean(-each.sum().item(), own * size),
            "log_scale": Mean((log_b.detach() * mask[..., None]).sum().item(), own * size),
        }

    def _targets(self, batch: DemoBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised actions float32 `[B, chunk, A]`, and which of them were executed, bool `[B, chunk]`."""
        normalised = self.config.statistics.normalised(batch.actions)
        return torch.from_numpy(normalised).to(self.device), torch.from_numpy(batch.mask).to(self.device)

    def log_prob(self, inputs: Mapping[str, torch.Tensor], sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `interfaces.LikelihoodPolicy.log_prob`; K is the number of executed actions, or of their dimensions."""
        mean, log_b = self.heads(inputs)
        given = sample.to(mean.device)
        steps = slice(given.shape[1])
        return self.config.density.log_prob(mean[:, steps], self._scales(log_b)[:, steps], given)

    def _trained(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of what post-training updates."""
        parts = self.config.rl_trains.split("+")
        trained: dict[str, nn.Parameter] = {}
        if "adapter" in parts:
            trained |= {k: p for k, p in lora_weights(self.network).items() if k.startswith("language_model.")}
        if "head" in parts:
            trained |= {f"action_head.{k}": p for k, p in self.network.action_head.named_parameters()}
        return trained

    def rl_parameters(self) -> list[dict]:
        """AdamW groups of what post-training updates; nothing else gets a gradient from now on."""
        trained = self._trained()
        if not trained:
            raise ConfigError("the policy has no adapter, and nothing else is to be trained: give it one")
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        heads = {"lr": self.config.head_rate} if self.config.head_rate else {}
        groups = parameter_groups([self.network.language_model])
        groups += [group | heads for group in parameter_groups([self.network.action_head])]
        return [group for group in groups if group["params"]]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach() for name, parameter in self._trained().items()}

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        own = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def weights_in(self, folder: Path) -> dict[str, torch.Tensor]:
        """See `core.hooks`."""
        own = dict(self.network.named_parameters())
        found = saved_weights(folder)
        return {name: found[name].to(own[name].dtype) for name in self._trained()}

    # ------------------------------------------------------------------ as others see it

    @property
    def temperature(self) -> float:
        return self.config.temperature

    @property
    def ratio_tolerance(self) -> float | None:
        """See `core.hooks`. In bfloat16 a decision in a large batch and in a small one differ by more than any bound
        that would tell anything: old log-probabilities are computed again by the update, unless it begins at hidden
        states, which are kept to the bit."""
        return 1e-3 if self.network.dtype == torch.float32 or self.config.rl_trains == "head" else None

    def at_temperature(self, temperature: float) -> OpenVlaPolicy:
        """The same policy, sharing its weights, at another temperature."""
        return self.configured(temperature=temperature)

    def configured(self, **changes: Any) -> OpenVlaPolicy:
        """The same policy, sharing its weights, with other settings that do not change sizes."""
        other = object.__new__(OpenVlaPolicy)
        other.__dict__ = dict(self.__dict__)
        other.config = dataclasses.replace(self.config, **changes)
        return other

    def tuned(self, options: Any, decisions: Any) -> tuple[OpenVlaPolicy, str]:
        """See `core.hooks`. Post-training that updates an adapter gives one to a policy that has none: it acts exactly
        as before."""
        names = ("temperature", "sampling", "terms", "scale_clip", "forward", "rl_trains", "head_rate", "recompute")
        if self.network.scale_head is None:
            raise PolicyError(NO_DENSITY)
        policy = self.configured(**{name: getattr(options, name) for name in names})
        if "adapter" in options.rl_trains and not policy.config.rank:
            policy = policy.with_adapter(options.rank, options.alpha / options.rank)
        if options.precision != policy.config.precision and (self.config.base is None or self.device.type == "cpu"):
            policy = policy.at_precision(options.precision)
        return policy, ""

    def at_precision(self, precision: Precision) -> OpenVlaPolicy:
        """The same policy, sharing heads and adapter, with its own copy of the rest, which computes in that type; or
        this one, which does."""
        if precision == self.config.precision and self.network.dtype == DTYPES[precision]:
            return self
        names = dict(self.network.named_parameters())
        shared = {name for name in names if name.partition(".")[0] in HELD or ".lora_" in name}
        network = copy.deepcopy(self.network, {id(names[name]): names[name] for name in shared})
        for name, parameter in network.named_parameters():
            if name not in shared:
                parameter.data = parameter.data.to(DTYPES[precision])
        other = self.configured(precision=precision)
        other._modules = {**self._modules, "network": network}
        return other

    def with_adapter(self, rank: int, scaling: float, *, everywhere: bool = False) -> OpenVlaPolicy:
        """The same policy, sharing its weights, with updates (zero yet) of the language model's layers, or of all."""
        with self._grown(rank=rank, scaling=scaling) as other:
            layers = [name for name in lora_layers(other.network) if everywhere or name.startswith("language_model.")]
            add_lora(other.network, layers, rank, scaling)
        return other

    def with_scale_head(self) -> OpenVlaPolicy:
        """The same policy, sharing its weights, with a new scale head."""
        with self._grown() as other:
            other.network.scale_head = ScaleHead(self.config.sizes).to(self.device)
        return other

    @contextlib.contextmanager
    def _grown(self, **changes: Any) -> Iterator[OpenVlaPolicy]:
        """The same policy, sharing its weights, whose network may be given parts, drawn from seed 0."""
        other = self.configured(**changes)
        network = copy.deepcopy(self.network, {id(part): part for part in self.network.parameters()})
        other._modules = {**self._modules, "network": network}
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            yield other

    def made_with(self) -> dict[str, Any]:
        """See `core.hooks`."""
        sizes = self.config.sizes
        same = [
            name
            for name, preset in PRESETS.items()
            if (preset.dino, preset.siglip, preset.llama) == (sizes.dino, sizes.siglip, sizes.llama)
        ]
        rank, alpha = self.config.rank, round(self.config.scaling * self.config.rank, 6)
        wide = any(not name.startswith("language_model.") for name in lora_weights(self.network))
        adapter: dict[str, Any] = {"rank": None, "alpha": None, "adapts": None}
        if rank:
            adapter = {"rank": rank, "alpha": alpha, "adapts": "everything" if wide else "language"}
        return {"size": same[0] if same else None, "chunk": sizes.chunk, "execute": self.config.execute} | adapter

    @property
    def protocol(self) -> str:
        """See `core.hooks`: a published policy's is that of the data it was trained on."""
        return protocol_of(self.config.statistics.key)

    @property
    def caveats(self) -> tuple[str, ...]:
        notes = []
        if self.config.statistics.key == UNTRAINED:
            notes.append("New heads: it acts at random until `ript sft` has trained them on demonstrations.")
        if self.config.sampling == "published":
            notes.append("Published sampling: draws with another scale than it scores with (a known mismatch).")
        if self.config.forward == "two_pass":
            notes.append("Two-pass forward: not the function that published checkpoints were trained for.")
        return tuple(notes)

    def settings(self) -> dict[str, Any]:
        return self.config.to_json()

    def check_simulator(self, spec: SimulatorSpec) -> None:
        """Raise `PolicyError` unless the policy fits the simulator."""
        size, got = self.config.sizes.image, self._as_own(spec)
        made_for = self._as_own(self.simulator)
        if not self.simulator.render:  # of one that was loaded beside all suites; see `policies.published`
            made_for = dataclasses.replace(made_for, render=got.render)
        require_fit(made_for, got)
        if self.config.pictures == "published" and self.config.upside_down and (size, size) in got.cameras.values():
            raise PolicyError(
                f"frames of {by((size, size))} count as turned and resized already, and {spec.suite} shows its own "
                "upside down: let simulators show frames of another size"
            )

    def _as_own(self, spec: SimulatorSpec) -> SimulatorSpec:
        """What a simulator shows the policy: through its cameras, by its own names."""
        own = self.config.cameras
        found = renamed(spec, dict(zip(self.cameras_among(list(spec.cameras)), own, strict=True)))
        return dataclasses.replace(found, cameras={name: found.cameras[name] for name in own})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapter and heads with a reference to the base, or, of a policy without one, everything."""
        save(Path(folder), self.config, self.network, self.prompts, self.simulator, self.card, self.caveats)

    def __eq__(self, other: object) -> bool:
        """Same configuration, simulator and weights, to the bit."""
        if not isinstance(other, OpenVlaPolicy):
            return NotImplemented
        mine, theirs = self.network.state_dict(), other.network.state_dict()
        return (
            self.config == other.config
            and self.simulator == other.simulator
            and mine.keys() == theirs.keys()
            and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
        )

    __hash__ = nn.Module.__hash__


def by(size: Sequence[int]) -> str:
    """Height and width in words."""
    return " x ".join(map(str, size))


def renamed(spec: SimulatorSpec, own: Mapping[str, str]) -> SimulatorSpec:
    """What a simulator shows, its cameras called otherwise: name there -> own name."""

    def called(cameras: Mapping[str, R]) -> dict[str, R]:
        return {own.get(name, name): about for name, about in cameras.items()}

    views = spec.render.get("cameras")
    render = dict(spec.render) | ({"cameras": called(views)} if isinstance(views, Mapping) else {})
    return dataclasses.replace(spec, cameras=called(spec.cameras), render=render)


def in_threads(work: Callable[[T], R], rows: Sequence[T]) -> list[R]:
    """`work` of every row, several at a time where torch may use several threads: what it calls lets others run."""
    threads = min(len(rows), torch.get_num_threads())
    if threads < 2:
        return [work(row) for row in rows]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, rows))
