"""The whole configuration of a run: frozen settings, validated when they are made. It stops at `build.py`.

A recipe (see `recipes.py`) is a function that returns a complete `Config`. Any field can be changed from the command
line: `--learn.learning_rate=3e-5`. Contradictions raise `ConfigError` at once, naming the field, the value and the
remedy. Settings of the simulator are those of the suite that `sim.suite` names, settings of the policy and of its
supervised training those of the kind that `policy.kind` names; each brings its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, model_validator

from ript.config import defaults, earlier
from ript.core.errors import ConfigError
from ript.core.options import MOST_SEEDS, PolicyOptions, Settings, SimOptions, TrainingOptions, Words, need
from ript.core.registry import kinds, suites


class DemoConfig(Settings):
    ABOUT: ClassVar[str] = "Demonstrations: made by scripted experts, or replayed as people recorded them."
    SECTION: ClassVar[str] = "demos"

    per_task: int = Field(20, ge=1, description="Demonstrations for each pre-training task.")
    target: int = Field(1, ge=1, description="Demonstrations for each target task.")
    noise: float = Field(
        0.2, ge=0, description="Standard deviation of the Gaussian noise on executed actions (labels stay clean)."
    )
    every: int = Field(2, ge=1, description="Environment steps between two observations.")
    expert: str = Field(
        "",
        description="Who demonstrates, MODULE:FUNCTION of your own, such as my_file:reach; empty: the suite's expert.",
    )
    source: Literal["suite", "expert", "human"] = Field(
        "suite",
        description="Who demonstrates: a scripted expert, people whose recorded actions are replayed, or whichever of "
        "the two the suite has first.",
    )
    target_source: Literal["same", "suite", "expert", "human"] = Field(
        "same", description="Who demonstrates the target tasks, as in source; same: whoever does the others."
    )

    def idle(self) -> dict[str, str]:
        if self.source != "human":
            return {}
        why = " with demos.source = human, whose actions are replayed as they were recorded: leave it out"
        return dict.fromkeys(("noise", "expert"), why)


class RolloutConfig(Settings):
    ABOUT: ClassVar[str] = "How rollouts are run."
    SECTION: ClassVar[str] = "rollout"

    workers: int = Field(2, ge=0, le=1024, description="Worker processes; 0 runs the simulators in this process.")
    slots: int = Field(48, ge=1, description="Simulator instances per worker; their observations make one batch.")
    inference: Literal["local", "central"] = Field(
        "local",
        description='"local": a copy of the policy in each worker. "central": one batched server for a large '
        "policy or a GPU.",
    )
    loaded_tasks: int = Field(
        16,
        ge=1,
        description="Tasks whose models and renderers a worker holds at a time; with more tasks, the least recently "
        "used makes room, and workers are preferably given tasks that they hold.",
    )
    gather: float = Field(
        0.005,
        ge=0,
        description="With central inference, seconds for which a question waits for those of other workers, to be "
        "decided in one batch.",
    )
    lag: int = Field(
        0,
        ge=0,
        le=1,
        description="1: a share of the next iteration's rollouts, `ahead`, is made while the update learns, by the "
        "weights from before it; 0: one after the other. Gains time where simulators and learner do not share cores.",
    )
    ahead: float = Field(
        0.4,
        gt=0,
        le=1,
        description="With `lag` = 1, the share of an iteration's groups that is made ahead; the others wait for the "
        "new weights. An update's share of the time of a collection is enough: more only makes rollouts older.",
    )
    fixed_batch: int = Field(
        0,
        ge=0,
        le=4096,
        description="Observations of each call of the policy, filled up where there are fewer; 0: as many as there "
        "are. With a fixed number, rollouts are the same to the last bit for all workers, slots and nodes.",
    )
    request_timeout: float = Field(
        120.0, ge=0.001, description="Seconds without a sign of life after which a worker is killed and replaced."
    )
    max_retries: int = Field(2, ge=0, description="How often a rollout is run again when its worker died.")
    max_error_rate: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of the last 100 rollouts (or of all, from 20 on) that may end in ERROR before the "
        "run stops; errors of one initial state alone do not stop it while others work.",
    )


class ClusterConfig(Settings):
    ABOUT: ClassVar[str] = "Many machines: rollouts on the nodes of a Ray cluster (docs/clusters.md)."
    SECTION: ClassVar[str] = "cluster"

    address: str = Field(
        "",
        description='"local" starts Ray in this process, "auto" takes the cluster that `ray start` made on this '
        "machine, HOST:PORT is that of a head elsewhere; empty or none: this machine alone, without Ray.",
    )
    nodes: int = Field(
        0,
        ge=0,
        le=4096,
        description="Nodes to use, one a machine; 0: all, and those that join later. On a local cluster so many share "
        "this machine.",
    )
    workers_per_node: int = Field(
        0, ge=0, le=1024, description="Worker processes of each node, instead of rollout.workers; 0: one a core."
    )
    silence: float = Field(
        60.0,
        ge=1,
        description="Seconds without a sign of life after which a node counts as lost; its rollouts are run elsewhere.",
    )
    start_timeout: float = Field(
        180.0, ge=1, description="Seconds that nodes may take to start, or to come back when all are lost."
    )
    gpus_per_node: float = Field(
        0,
        ge=0,
        le=1,
        description="GPUs of each node: 1: a machine has as many nodes as GPUs, and each computes on one, where "
        "ranks learn, the policy acts with rollout.inference = central, and simulators render; 0.5: two nodes share a "
        "GPU; 0: nodes compute on CPUs.",
    )
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto",
        description="How ranks sum what they learned: nccl from GPU to GPU, gloo through the CPUs; auto: nccl where "
        "each node has a GPU to itself.",
    )

    @model_validator(mode="after")
    def _gpus_can_sum(self) -> ClusterConfig:
        need(
            self.backend != "nccl" or self.gpus_per_node == 1,
            "cluster.backend",
            "nccl sums over GPUs that each rank has to itself, and cluster.gpus_per_node = "
            f"{self.gpus_per_node:g}: give --cluster.gpus_per_node=1, or --cluster.backend=gloo",
        )
        return self

    @property
    def device(self) -> str:
        """Where nodes compute: "cpu" or "cuda"."""
        return "cuda" if self.gpus_per_node else "cpu"

    @property
    def sums_over(self) -> str:
        """What ranks sum over: "gloo" or "nccl"."""
        if self.backend == "auto":
            return "nccl" if self.gpus_per_node == 1 else "gloo"
        return self.backend

    @property
    def used(self) -> bool:
        """Whether there is a cluster at all."""
        return self.address not in ("", "none")

    def idle(self) -> dict[str, str]:
        if self.used:
            return {}
        without = dict.fromkeys(type(self).model_fields, " without a cluster: give --cluster, or leave it out")
        return {name: why for name, why in without.items() if name != "address" or not self.address}


class SamplingConfig(Settings):
    ABOUT: ClassVar[str] = "Which initial states are practised on, and dynamic rollout sampling."
    SECTION: ClassVar[str] = "sampling"

    group_size: int = Field(16, description="K, rollouts from the same initial state, at least 2.")
    groups: int = Field(16, ge=1, description="Quota of accepted groups per iteration.")
    max_attempts: int = Field(32, ge=1, description="Groups launched per iteration at most, with dynamic sampling.")
    dynamic: bool = Field(True, description="Reject groups whose rewards are all equal and draw others.")
    equal_tasks: bool = Field(
        False,
        description="Give each task an equal share of the groups, and of the attempts; further states of a "
        "task that has it are passed over. Otherwise tasks whose groups rarely have a signal lose "
        "the update to the others.",
    )
    horizon: int = Field(
        0,
        ge=0,
        description="Environment steps after which a practice rollout counts as a failure; 0: sim.horizon, "
        "which evaluation uses.",
    )
    horizon_margin: float = Field(
        0.0,
        ge=0,
        description="Set a task's practice horizon to this times the 90th percentile of the lengths of its "
        "successes in groups with a signal in the iteration before, e.g. 1.25, but no shorter "
        "than a quarter of the longest; 0: keep it.",
    )
    demos: Words = Field(
        (),
        description="Demonstration files whose initial states are practised on; none: states drawn by the simulator.",
    )
    states: int = Field(
        0,
        ge=0,
        description="Initial states of each task in the fixed set to practise on; 0: fresh ones in every "
        "iteration, or all those of `demos`.",
    )
    state_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Standard deviation of Gaussian noise on the object's position in the states to practise "
        "on, metres.",
    )

    @model_validator(mode="after")
    def _quota_can_be_met(self) -> SamplingConfig:
        need(
            self.group_size >= 2,
            "sampling.group_size",
            f"leave-one-out needs at least 2 rollouts from a state, got K = {self.group_size}",
        )
        need(
            self.groups <= self.max_attempts or not self.dynamic,
            "sampling.max_attempts",
            f"the quota of {self.groups} groups can never be met with {self.max_attempts} attempts: raise "
            f"sampling.max_attempts or lower sampling.groups",
        )
        need(
            self.horizon_margin == 0 or self.horizon_margin > 1,
            "sampling.horizon_margin",
            f"must be above 1 (or 0 for none), got {self.horizon_margin}",
        )
        return self


class LearnConfig(Settings):
    ABOUT: ClassVar[str] = "The update: PPO's clipped objective on leave-one-out advantages."
    SECTION: ClassVar[str] = "learn"
    OVERRULED: ClassVar[Mapping[str, str]] = {"minibatch": "minibatch_trajectories"}

    learning_rate: float = Field(0.0001, gt=0, description="AdamW's learning rate at the start; `adapt_kl` changes it.")
    epochs: int = Field(3, ge=1, description="Passes over an iteration's decisions, at most.")
    minibatch: int = Field(512, ge=1, description="Decisions per minibatch.")
    minibatch_trajectories: int = Field(
        0, ge=0, description="Whole trajectories per minibatch instead; 0: `minibatch` decisions."
    )
    micro_batch: int = Field(
        512, ge=1, description="Decisions per forward pass at most; changes no result beyond rounding."
    )
    clip_low: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Probability ratios below 1 minus this have no gradient when the advantage is negative.",
    )
    clip_high: float = Field(
        0.2, gt=0, description="Probability ratios above 1 plus this have no gradient when the advantage is positive."
    )
    reduction: Literal["token", "trajectory"] = Field(
        "trajectory", description="Mean over all tokens, or over trajectories of their token means."
    )
    target_kl: float = Field(
        0.48,
        ge=0,
        description="Stop the update, and take its last step back, when a minibatch's KL passes this; 0: "
        "never. KL in nats a decision: all variables that are drawn for it together.",
    )
    adapt_kl: float = Field(
        0.2,
        ge=0,
        description="Adapt the learning rate (x1.2, x0.67) toward this KL at the end of each update; 0: keep "
        "it. Nats a decision.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Norm above which a step's gradient is scaled down to it.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's weight decay in the update.")
    entropy_bonus: float = Field(
        0.0,
        description="Weight of the mean entropy in nats, which is added to the objective; negative: entropy "
        "is held down.",
    )
    kl_to_start: float = Field(
        0.0,
        ge=0,
        description="Weight in the loss of the KL to the policy that the run started from, nats a decision, "
        "over the decisions that an iteration learns from; 0: none, as published.",
    )
    recompute_log_prob: bool = Field(
        False,
        description="Take ratios to log-probabilities that the update computes before its first step, instead of "
        "those recorded when the policy acted: for one that acts in another precision, or on another device, than it "
        "learns in. One more pass.",
    )
    normalise_std: bool = Field(
        False, description="Divide advantages by their standard deviation (an ablation; LOOP reports that it hurts)."
    )
    max_decisions: int = Field(
        0,
        ge=0,
        description="Learn from at most this many random decisions of a rollout; 0: all. Unbiased with "
        'reduction "trajectory".',
    )
    min_abs_advantage: float = Field(0.0, ge=0, le=1, description="Drop rollouts whose advantage is smaller than this.")
    ranks: Literal["auto"] | Annotated[int, Field(ge=0, le=4096)] = Field(
        0,
        description="Nodes of the cluster that learn together, each from the rollouts that it made, or in supervised "
        "training from a part of each batch; auto: all; 0: this process alone. Changes no result beyond rounding.",
    )
    threads: int = Field(
        2,
        ge=1,
        le=256,
        description="Threads of the update (workers are idle then): so many parts of a minibatch are worked "
        "on side by side. A policy that acts in this process has as many; what a run starts from "
        "does not depend on it.",
    )


MOST_TRIALS = 100_000
"""Initial states of a task in an evaluation, at most."""


class EvalConfig(Settings):
    ABOUT: ClassVar[str] = (
        "Evaluation: success is reported on the split `test`, the best policy is chosen on `validation`."
    )
    SECTION: ClassVar[str] = "eval"

    trials: int = Field(
        100, ge=1, le=MOST_TRIALS, description="Test initial states per task for the evaluations before and after."
    )
    seed: int = Field(
        0,
        ge=0,
        le=MOST_SEEDS,
        description="Seed of the test and validation states and of sampling in evaluations; does not follow "
        "the run's `seed`.",
    )
    every: int = Field(
        5, ge=0, description="Iterations between evaluations that choose the best policy; 0: only before and after."
    )
    every_trials: int = Field(40, ge=1, le=MOST_TRIALS, description="Validation initial states per task for these.")
    mode: Literal["sampled", "greedy"] = Field("sampled", description="The mode that counts.")
    videos: int = Field(3, ge=0, description="Videos per task before and after.")


class Config(Settings):
    ABOUT: ClassVar[str] = "All settings of a run. What it starts from, a policy or demonstrations, is given beside it."
    SECTION: ClassVar[str] = ""

    recipe: str = Field("custom", description="Name of the recipe that it came from.")
    tasks: Words = Field((), description="Target tasks: what post-training practises on.")
    pretrain_tasks: Words = Field((), description="Tasks whose demonstrations the base policy learns from.")
    seed: int = Field(
        0,
        ge=0,
        le=MOST_SEEDS,
        description="Seed of weights, target demonstrations, batches, practice states and sampling; "
        "evaluations have `eval.seed`, and bases that quickstart and studies share are those of "
        "seed 0.",
    )
    iterations: int = Field(
        15, ge=0, description="Iterations of post-training, at most; 0: the policy is only measured."
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu",
        description="Where training computes. Workers act on the CPU all the same, unless rollout.inference "
        'is "central". To resume is exact on the CPU.',
    )
    stop_at: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Stop early when the success over an iteration's attempted groups reaches this; 1.0: only "
        "when all succeed.",
    )
    sim: SerializeAsAny[SimOptions] = Field(
        default_factory=lambda: sim_options(defaults.SUITE),
        description="The simulator and what it shows: settings of the suite that `sim.suite` names.",
    )
    policy: SerializeAsAny[PolicyOptions] = Field(
        default_factory=lambda: policy_options(defaults.KIND),
        description="The policy: settings of the kind that `policy.kind` names.",
    )
    demos: DemoConfig = Field(default_factory=DemoConfig, description=DemoConfig.ABOUT)
    sft: SerializeAsAny[TrainingOptions] = Field(
        default_factory=lambda given: training_options(given["policy"].kind),
        description="Supervised training: settings of the kind that `policy.kind` names.",
    )
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description=RolloutConfig.ABOUT)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description=ClusterConfig.ABOUT)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description=SamplingConfig.ABOUT)
    learn: LearnConfig = Field(default_factory=LearnConfig, description=LearnConfig.ABOUT)
    eval: EvalConfig = Field(default_factory=EvalConfig, description=EvalConfig.ABOUT)
    tracker: Literal["none", "tensorboard", "wandb"] = Field(
        "none",
        description="Where to send what a run logs, besides its folder; one that fails is dropped, and the "
        "run goes on.",
    )

    @property
    def by_ranks(self) -> bool:
        """Whether nodes of a cluster learn together."""
        return self.cluster.used and bool(self.learn.ranks)

    @property
    def trackers(self) -> tuple[str, ...]:
        return () if self.tracker == "none" else (self.tracker,)

    @model_validator(mode="before")
    @classmethod
    def _settings_of_whom(cls, given: Any) -> Any:
        """Fields of `sim`, `policy` and `sft` become the settings of the suite and of the kind that they name."""
        if not isinstance(given, Mapping):
            return given
        given = dict(given)
        for section, name, otherwise, made in (
            ("sim", "suite", defaults.SUITE, sim_options),
            ("policy", "kind", defaults.KIND, policy_options),
        ):
            if isinstance(fields := given.get(section), Mapping):
                others = {field: value for field, value in fields.items() if field != name}
                given[section] = made(_word(fields.get(name, otherwise), f"{section}.{name}"), **others)
        if isinstance(fields := given.get("sft"), Mapping):
            policy = given.get("policy")
            kind = policy.kind if isinstance(policy, PolicyOptions) else defaults.KIND
            given["sft"] = training_options(kind, **fields)
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        for name in ("tasks", "pretrain_tasks"):
            tasks = getattr(self, name)
            bare = {task.removeprefix(f"{self.sim.suite}/") for task in tasks}
            need(len(bare) == len(tasks), name, f"named twice: {', '.join(tasks)}")
        wanted = type(training_options(self.policy.kind))
        need(
            isinstance(self.sft, wanted),
            "sft",
            f"expected the training settings of {self.policy.kind} ({wanted.__name__}), got {type(self.sft).__name__}",
        )
        return self

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Config:
        """The configuration that `to_json` gave, or a part of one: the rest has its defaults.

        Raises:
            UnknownNameError: a field, suite or kind that there is not.
            ConfigError: a value that cannot be.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"config: expected fields, got {data!r}")
        return cls(**earlier.by_present_names(data))

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> Config:
        """What a run recorded, one of ript 0.1.0 included, which had cameras and an arm for every suite.

        Raises:
            ConfigError: as `from_json`.
        """
        sim = data.get("sim")
        if isinstance(sim, Mapping):
            known = suites.get(str(sim.get("suite", defaults.SUITE))).options.model_fields
            kept = {name: value for name, value in sim.items() if name in known or name not in earlier.OF_EVERY_SUITE}
            data = {**data, "sim": kept}
        return cls.from_json(data)


def sim_options(suite: str, **settings: Any) -> SimOptions:
    """The settings of a suite's simulators.

    Raises:
        UnknownNameError: no such suite, or it has no such setting.
        ConfigError: a value that cannot be.
    """
    return suites.get(suite).options(suite=suite, **settings)


def policy_options(kind: str, **settings: Any) -> PolicyOptions:
    """The settings of a kind of policy.

    Raises:
        UnknownNameError: no such kind, or it has no such setting.
        ConfigError: a value that cannot be.
    """
    return kinds.get(kind).options(kind=kind, **settings)


def training_options(kind: str, **settings: Any) -> TrainingOptions:
    """The settings of the supervised stages of a kind of policy; none where it has no such training.

    Raises:
        UnknownNameError: no such kind, or it has no such setting.
        ConfigError: a value that cannot be.
    """
    return (kinds.get(kind).training or TrainingOptions)(**settings)


def _word(value: Any, where: str) -> str:
    need(isinstance(value, str), where, f"expected one word, got {value!r}")
    return value
