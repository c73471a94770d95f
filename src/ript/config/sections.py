"""The whole configuration of a run: frozen dataclasses, validated at construction. It stops at `build.py`.

A recipe (see `recipes.py`) is a function that returns a complete `Config`. Any field can be changed from the command
line: `--learn.learning_rate=3e-5`. Contradictions raise `ConfigError` at once, naming the field, the value and the
remedy.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import math
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ript.core.errors import ConfigError, UnknownNameError


def _need(ok: bool, where: str, what: str) -> None:
    if not ok:
        raise ConfigError(f"{where}: {what}")


def _ranges(config: Any, section: str, **bounds: tuple[float, float]) -> None:
    """Raise `ConfigError` unless the section's numbers are finite and the named ones within (low, high), included."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, float):
            _need(math.isfinite(value), f"{section}.{f.name}", f"must be a finite number, got {value}")
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        within = f"at least {low:g}" if high == math.inf else f"in {low:g}..{high:g}"
        _need(low <= value <= high, f"{section}.{name}", f"must be {within}, got {value}")


_TINY, _MANY, _THREADS = 1e-12, math.inf, 256
"""Least positive number of a learning rate and the like; no bound; most threads that are sensible anywhere."""


def need_seed(seed: int, where: str) -> None:
    """Raise `ConfigError` unless random generators take the seed."""
    _need(0 <= seed < 2**63, where, f"must be in 0..2^63 - 1, got {seed}")


@dataclass(frozen=True, kw_only=True)
class SimConfig:
    """The simulator and what it shows."""

    suite: str = "metaworld"
    """Simulator suite: "metaworld" or "toy"."""
    cameras: tuple[str, ...] = ("side",)
    """Names of the cameras that the policy sees."""
    image_size: int = 64
    """Height and width of the pictures in pixels."""
    horizon: int = 0
    """Environment steps after which a rollout without success is a failure; 0: as the policy was measured before, or
    else as the suite says of the task (Meta-World: 500)."""
    arm: Literal["boxes", "mesh", "hidden"] = "boxes"
    """How the robot's arm is drawn (Meta-World): as boxes, as the stock meshes (3 times slower), or not at all."""

    def __post_init__(self) -> None:
        _need(0 <= self.horizon <= 10**6, "sim.horizon", f"must be in 0..1000000, got {self.horizon}")
        _need(8 <= self.image_size <= 1024, "sim.image_size", f"must be in 8..1024, got {self.image_size}")
        _need(len(self.cameras) >= 1, "sim.cameras", "at least one camera is needed")
        _need(len(set(self.cameras)) == len(self.cameras), "sim.cameras", f"named twice: {', '.join(self.cameras)}")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The policy. Sizes come from `size`; 0 keeps what the size says."""

    size: Literal["tiny", "small", "paper"] = "small"
    """Named size of the QueST policy."""
    chunk: int = 0
    """Actions per chunk (a multiple of 4); 0: as the size says."""
    execute: int = 0
    """Actions executed before the next look; 0: as the size says."""
    privileged: bool = False
    """Auxiliary loss on object positions from the simulator, in SFT only."""
    standardise: bool = True
    """Proprioception in units of its mean and deviation in the demonstrations; false: as the simulator gives it."""
    language: Literal["minilm", "clip"] = "minilm"
    """Frozen model that instructions are embedded with: MiniLM (384 numbers, comes with the installation) or CLIP
    ViT-B/32's (512, as published; fetched from the model hub, or from the folder that RIPT_CLIP names)."""
    temperature: float = 1.0
    """Softmax temperature of both the sampled and the optimised density, in post-training."""
    entropy: float = 0.0
    """Choose the temperature so that the entropy of a sampled variable (a token) is this many nats at the start, within
    what temperatures of 0.3 to 1.5 give; 0: as given. Of continuous variables it may be negative."""
    top_k: int = 0
    """Sample among the k most likely tokens, in both densities; 0: all."""
    sampling: Literal["exact", "published"] = "exact"
    """"published" samples from the top k but optimises the full softmax: a known mismatch, for comparison only."""
    rl_trains: Literal["prior", "prior+adapter", "prior+encoders"] = "prior"
    """What post-training updates: the skill GPT; also a linear layer from whitened features to its input; or also the
    encoders."""

    def __post_init__(self) -> None:
        _ranges(
            self,
            "policy",
            chunk=(0, _MANY),
            execute=(0, _MANY),
            temperature=(1e-3, 1e3),
            entropy=(-20, 6.5),
            top_k=(0, _MANY),
        )
        drawn = self.sampling == "exact" or self.top_k > 0
        _need(drawn, "policy.sampling", "published sampling draws from policy.top_k tokens: give it (published: 5)")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Demonstrations made by scripted experts."""

    per_task: int = 20
    """Demonstrations for each pre-training task."""
    target: int = 1
    """Demonstrations for each target task."""
    noise: float = 0.2
    """Standard deviation of the Gaussian noise on executed actions (labels stay clean)."""
    every: int = 2
    """Environment steps between looks."""

    def __post_init__(self) -> None:
        _need(self.per_task >= 1 and self.target >= 1, "demos", "per_task and target must be at least 1")
        _ranges(self, "demos", noise=(0, _MANY), every=(1, _MANY))


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised stages: skill autoencoder, policy on all tasks, then fine-tuning toward the target tasks."""

    autoencoder_steps: int = 1500
    """Optimiser steps of the skill autoencoder."""
    autoencoder_epochs: float = 0.0
    """Passes over the windows instead, one for each demonstrated environment step; 0: `autoencoder_steps`."""
    autoencoder_batch: int = 256
    """Windows of actions in a batch of the autoencoder."""
    autoencoder_learning_rate: float = 1e-3
    """Highest learning rate of the autoencoder, reached after the warm-up."""
    policy_steps: int = 1300
    """Optimiser steps of the policy on all tasks."""
    policy_epochs: float = 0.0
    """Passes over all demonstrated looks instead; 0: `policy_steps`."""
    policy_batch: int = 128
    """Looks in a batch of the policy, in fine-tuning too."""
    policy_learning_rate: float = 5e-4
    """Highest learning rate of the policy on all tasks."""
    finetune_steps: int = 400
    """Optimiser steps of fine-tuning."""
    finetune_epochs: float = 0.0
    """Passes over the target tasks' looks instead; 0: `finetune_steps`."""
    finetune_learning_rate: float = 2e-4
    """Highest learning rate of fine-tuning."""
    finetune_share: float = 0.5
    """Share of each fine-tuning batch that comes from the target tasks."""
    finetune_decoder: float = 0.0
    """Weight of a loss that trains the action decoder too, on actions decoded from drawn tokens; 0: it stays."""
    weight_decay: float = 1e-4
    """AdamW's weight decay in all stages; biases and norms have none."""
    max_grad_norm: float = 10.0
    """Norm above which a gradient is scaled down to it, in all stages."""
    warmup: float = 0.05
    """Share of a stage's steps over which its learning rate rises, before a cosine takes it down to a tenth."""
    colour_jitter: float = 0.0
    """Nine in ten pictures change in brightness, contrast, saturation and hue by up to this; 0: all, by 0.1, in
    brightness alone."""
    noisy_targets: bool = False
    """Let the autoencoder's dropout act on the tokens that the policy learns to predict, as the published code does."""
    threads: int = 2
    """Parts of a batch worked on side by side on a CPU; torch's threads where a batch must stay whole (batch norms)."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        _need(0 < self.finetune_share <= 1, "sft.finetune_share", f"must be in (0, 1], got {self.finetune_share}")
        _ranges(
            self,
            "sft",
            autoencoder_steps=(0, _MANY),
            policy_steps=(0, _MANY),
            finetune_steps=(0, _MANY),
            autoencoder_epochs=(0, _MANY),
            policy_epochs=(0, _MANY),
            finetune_epochs=(0, _MANY),
            autoencoder_batch=(1, _MANY),
            policy_batch=(1, _MANY),
            autoencoder_learning_rate=(_TINY, _MANY),
            policy_learning_rate=(_TINY, _MANY),
            finetune_learning_rate=(_TINY, _MANY),
            weight_decay=(0, 1),
            finetune_decoder=(0, _MANY),
            max_grad_norm=(_TINY, _MANY),
            warmup=(0, 1),
            colour_jitter=(0, 0.5),
            threads=(1, _THREADS),
            checkpoint_every=(1, _MANY),
        )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How rollouts are run."""

    workers: int = 2
    """Worker processes; 0 runs the simulators in this process."""
    slots: int = 48
    """Simulator instances per worker; their observations make one batch."""
    inference: Literal["local", "central"] = "local"
    """"local": a copy of the policy in each worker. "central": one batched server for a large policy or a GPU."""
    loaded_tasks: int = 16
    """Tasks whose models and renderers a worker holds at a time (65 MiB each in Meta-World); with more tasks, the least
    recently used makes room, and workers are preferably given tasks that they hold."""
    request_timeout: float = 120.0
    """Seconds without a sign of life after which a worker is killed and replaced."""
    max_retries: int = 2
    """How often a rollout is run again when its worker died."""
    max_error_rate: float = 0.2
    """Share of the last 100 rollouts (or of all, from 20 on) that may end in ERROR before the run stops; errors of one
    initial state alone do not stop it while others work."""

    def __post_init__(self) -> None:
        _ranges(
            self,
            "rollout",
            workers=(0, 1024),
            slots=(1, _MANY),
            loaded_tasks=(1, _MANY),
            request_timeout=(0.001, _MANY),
            max_retries=(0, _MANY),
            max_error_rate=(0, 1),
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Contexts and dynamic rollout sampling."""

    group_size: int = 16
    """K, rollouts from the same initial state."""
    groups: int = 16
    """Quota of accepted groups per iteration."""
    max_attempts: int = 32
    """Groups launched per iteration at most, with dynamic sampling."""
    dynamic: bool = True
    """Reject groups whose rewards are all equal and draw others."""
    equal_tasks: bool = False
    """Give each task an equal share of the groups, and of the attempts; further states of a task that has it are passed
    over. Otherwise tasks whose groups rarely have a signal lose the update to the others."""
    horizon: int = 0
    """Environment steps after which a practice rollout counts as a failure; 0: sim.horizon, which evaluation uses."""
    horizon_margin: float = 0.0
    """Set a task's practice horizon to this times the 90th percentile of the lengths of its successes in groups with a
    signal in the iteration before, e.g. 1.25, but no shorter than a quarter of the longest; 0: keep it."""
    demos: tuple[str, ...] = ()
    """Demonstration files whose initial states are practised on; none: states drawn by the simulator."""
    contexts: int = 0
    """Initial states of each task in the fixed set to practise on; 0: fresh ones in every iteration, or all those of
    `demos`."""
    context_noise: float = 0.0
    """Standard deviation of Gaussian noise on the object's position in the states to practise on, metres."""

    def __post_init__(self) -> None:
        _need(
            self.group_size >= 2,
            "sampling.group_size",
            f"leave-one-out needs at least 2 rollouts from a state, got K = {self.group_size}",
        )
        _need(self.groups >= 1, "sampling.groups", f"must be at least 1, got {self.groups}")
        _need(
            self.groups <= self.max_attempts or not self.dynamic,
            "sampling.max_attempts",
            f"the quota of {self.groups} groups can never be met with {self.max_attempts} attempts: raise "
            f"sampling.max_attempts or lower sampling.groups",
        )
        _need(
            self.horizon_margin == 0 or self.horizon_margin > 1,
            "sampling.horizon_margin",
            f"must be above 1 (or 0 for none), got {self.horizon_margin}",
        )
        _ranges(
            self, "sampling", horizon=(0, _MANY), horizon_margin=(0, _MANY), context_noise=(0, 1), contexts=(0, _MANY)
        )


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """The update: PPO's clipped objective on leave-one-out advantages."""

    learning_rate: float = 1e-4
    """AdamW's learning rate at the start; `adapt_kl` changes it."""
    epochs: int = 3
    """Passes over an iteration's decisions, at most."""
    minibatch: int = 512
    """Decisions per minibatch."""
    minibatch_trajectories: int = 0
    """Whole trajectories per minibatch instead; 0: `minibatch` decisions."""
    micro_batch: int = 512
    """Decisions per forward pass at most; changes no result beyond rounding."""
    clip_low: float = 0.2
    """Probability ratios below 1 minus this have no gradient when the advantage is negative."""
    clip_high: float = 0.2
    """Probability ratios above 1 plus this have no gradient when the advantage is positive."""
    reduction: Literal["token", "trajectory"] = "trajectory"
    """Mean over all tokens, or over trajectories of their token means."""
    target_kl: float = 0.48
    """Stop the update, and take its last step back, when a minibatch's KL passes this; 0: never. KL in nats a decision:
    a chunk's variables (QueST: its tokens, chunk / 4) together."""
    adapt_kl: float = 0.2
    """Adapt the learning rate (x1.2, x0.67) toward this KL at the end of each update; 0: keep it. Nats a decision."""
    max_grad_norm: float = 1.0
    """Norm above which a step's gradient is scaled down to it."""
    weight_decay: float = 0.0
    """AdamW's weight decay in the update."""
    entropy_bonus: float = 0.0
    """Weight of the mean entropy in nats, which is added to the objective; negative: entropy is held down."""
    kl_to_start: float = 0.0
    """Weight in the loss of the KL to the policy that the run started from, nats a decision, over the decisions that an
    iteration learns from; 0: none, as published."""
    normalise_std: bool = False
    """Divide advantages by their standard deviation (an ablation; LOOP reports that it hurts)."""
    max_decisions: int = 0
    """Learn from at most this many random decisions of a rollout; 0: all. Unbiased with reduction "trajectory"."""
    min_abs_advantage: float = 0.0
    """Drop rollouts whose advantage is smaller than this."""
    threads: int = 2
    """Threads of the update (workers are idle then): so many parts of a minibatch are worked on side by side. A policy
    that acts in this process has as many; what a run starts from does not depend on it."""

    def __post_init__(self) -> None:
        _ranges(
            self,
            "learn",
            learning_rate=(_TINY, _MANY),
            epochs=(1, _MANY),
            minibatch=(1, _MANY),
            minibatch_trajectories=(0, _MANY),
            micro_batch=(1, _MANY),
            clip_low=(_TINY, 1 - _TINY),
            clip_high=(_TINY, _MANY),
            target_kl=(0, _MANY),
            adapt_kl=(0, _MANY),
            max_grad_norm=(_TINY, _MANY),
            kl_to_start=(0, _MANY),
            weight_decay=(0, 1),
            max_decisions=(0, _MANY),
            min_abs_advantage=(0, 1),
            threads=(1, _THREADS),
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation: success is reported on the split `test`, the best policy is chosen on `validation`."""

    trials: int = 100
    """Test initial states per task for the evaluations before and after."""
    seed: int = 0
    """Seed of the test and validation states and of sampling in evaluations; does not follow the run's `seed`."""
    every: int = 5
    """Iterations between evaluations that choose the best policy; 0: only before and after."""
    every_trials: int = 40
    """Validation initial states per task for these."""
    mode: Literal["sampled", "greedy"] = "sampled"
    """The mode that counts."""
    videos: int = 3
    """Videos per task before and after."""

    def __post_init__(self) -> None:
        need_seed(self.seed, "eval.seed")
        for name in ("trials", "every_trials"):
            _need(getattr(self, name) >= 1, f"eval.{name}", f"at least one trial is needed, got {getattr(self, name)}")
        _ranges(self, "eval", trials=(1, 100_000), every_trials=(1, 100_000), every=(0, _MANY), videos=(0, _MANY))


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of a run. What it starts from, a policy or demonstrations, is given beside it."""

    recipe: str = "custom"
    """Name of the recipe that it came from."""
    tasks: tuple[str, ...] = ()
    """Target tasks: what post-training practises on."""
    pretrain_tasks: tuple[str, ...] = ()
    """Tasks whose demonstrations the base policy learns from."""
    seed: int = 0
    """Seed of weights, target demonstrations, batches, practice states and sampling; evaluations have `eval.seed`, and
    bases that quickstart and studies share are those of seed 0."""
    iterations: int = 15
    """Iterations of post-training, at most; 0: the policy is only measured."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where training computes. Workers act on the CPU all the same, unless rollout.inference is "central". To resume is
    exact on the CPU."""
    stop_at: float = 1.0
    """Stop early when the success over an iteration's attempted groups reaches this; 1.0: only when all succeed."""
    sim: SimConfig = field(default_factory=SimConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    demos: DemoConfig = field(default_factory=DemoConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Where to send what a run logs, besides its folder; one that fails is dropped, and the run goes on."""

    @property
    def trackers(self) -> tuple[str, ...]:
        return () if self.tracker == "none" else (self.tracker,)

    def __post_init__(self) -> None:
        need_seed(self.seed, "seed")
        _need(self.iterations >= 0, "iterations", f"must not be negative, got {self.iterations}")
        _need(0 < self.stop_at <= 1, "stop_at", f"must be in (0, 1], got {self.stop_at}")
        _need(len(set(self.tasks)) == len(self.tasks), "tasks", f"named twice: {', '.join(self.tasks)}")

    def to_json(self) -> dict:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Config:
        """Raises `UnknownNameError` for a field that does not exist, `ConfigError` for a value that cannot be."""
        return _build(cls, data, "config")


def _build(kind: type, data: Mapping[str, Any], where: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected fields, got {data!r}")
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    values = {}
    for name, value in data.items():
        if name not in known:
            raise UnknownNameError(f"field of {where}", name, known)
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _build(typing.cast(type, hint), value, name)
        elif typing.get_origin(hint) is tuple:
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"{where}.{name}: expected a list of words, got {value!r}")
            value = tuple(value)
        elif typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            raise ConfigError(f"{where}.{name}: {value!r} is not one of {', '.join(map(repr, typing.get_args(hint)))}")
        elif hint is float and type(value) is int:
            value = float(value)
        elif isinstance(hint, type) and type(value) is not hint:
            raise ConfigError(f"{where}.{name}: expected {hint.__name__}, got {value!r}")
        values[name] = value
    return kind(**values)


def describe(config: Config) -> str:
    """The complete configuration as TOML: a table for each section, with what the section and its fields mean."""
    plain = [f for f in dataclasses.fields(config) if not dataclasses.is_dataclass(getattr(config, f.name))]
    lines = _describe_fields(config, [f.name for f in plain])
    for section in dataclasses.fields(config):
        value = getattr(config, section.name)
        if dataclasses.is_dataclass(value):
            lines.append(f"\n[{section.name}]  # {first_line(type(value))}")
            lines += _describe_fields(value, [f.name for f in dataclasses.fields(value)])
    return "\n".join(lines)


def _describe_fields(record: Any, names: Sequence[str]) -> list[str]:
    meanings = field_meanings(type(record))
    lines = []
    for name in names:
        meaning = f"  # {meanings[name]}" if name in meanings else ""
        lines.append(f"{name} = {json.dumps(getattr(record, name), ensure_ascii=False)}{meaning}")
    return lines


def first_line(thing: type | Callable) -> str:
    """Of its docstring, from the source: `python -OO` has none in memory."""
    return (ast.get_docstring(_source(thing)) or "").partition("\n")[0]


def _source(thing: type | Callable) -> ast.ClassDef | ast.FunctionDef:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    return typing.cast(ast.ClassDef | ast.FunctionDef, body)


def field_meanings(kind: type) -> dict[str, str]:
    """Field -> the string under it in the source, on one line."""
    body = _source(kind).body
    return {
        field.target.id: " ".join(below.value.value.split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
