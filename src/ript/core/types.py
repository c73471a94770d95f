"""Every record that crosses a package border. All are frozen; one that exists is complete.

Legend of shapes, used everywhere:
    B batch                          G rollouts in a group          D decisions in a rollout
    K scored terms of a decision (a Gaussian: action dimensions; QueST: skill tokens; a flow: denoising steps)
    H actions in a chunk
    A action dimensions              P proprioception               S simulator state
    O privileged object state        h, w image height and width    n observation steps
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ript.core.errors import ConfigError, SimulatorError

Split = Literal["train", "test", "validation", "demo"]
"""What initial states are for: to practise on, to report success on, to choose a policy by, to demonstrate from. The
order is part of the random streams (`sims.sequences`): append, never insert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task of a simulator suite.

    Attributes:
        suite: "metaworld", "toy", ...
        name: name within the suite, such as "drawer-open-v3".
        instruction: one plain sentence.
        index: position in the suite's own list.
        horizon: environment steps after which a rollout without success is a failure.
    """

    suite: str
    name: str
    instruction: str
    index: int
    horizon: int

    @property
    def key(self) -> str:
        """ "suite/name", as `make_simulator` takes it."""
        return f"{self.suite}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialState:
    """An exact start of an episode: the same state and the same actions give the same trajectory.

    Attributes:
        task: the task.
        state: float64 `[S]`; its layout belongs to the simulator.
        origin: where it comes from.
        label: human-readable source, such as "train seed 0 #3"; not part of the identity.
        id: 16 hex digits, a hash of task and state.
    """

    task: Task
    state: np.ndarray
    origin: Literal["demo", "benchmark", "sampled"]
    label: str = ""
    id: str = field(init=False)

    def __post_init__(self) -> None:
        state = np.ascontiguousarray(self.state)
        if state.dtype != np.float64 or state.ndim != 1:
            raise ConfigError(
                f"initial state of {self.task.key}: expected float64 [S], got {state.dtype} {state.shape}"
            )
        state.setflags(write=False)
        object.__setattr__(self, "state", state)
        digest = hashlib.sha256(self.task.key.encode() + b"\0" + state.tobytes()).hexdigest()[:16]
        object.__setattr__(self, "id", digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a policy sees: one environment step, or, for a policy that asks for it, the last n of them.

    Attributes:
        images: camera name -> uint8 `[B, h, w, 3]`; of n > 1 steps `[B, n, h, w, 3]`, the latest last.
        proprio: float32 `[B, P]` or `[B, n, P]`, in simulator units; its parts in the order of `SimulatorSpec.proprio`.
        instruction: B sentences.
    """

    images: Mapping[str, np.ndarray]
    proprio: np.ndarray
    instruction: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.instruction)

    @staticmethod
    def concatenate(parts: Sequence[Observation]) -> Observation:
        """Join along B. All parts must have the same cameras and sizes."""
        if len(parts) == 1:
            return parts[0]
        return Observation(
            images={name: np.concatenate([p.images[name] for p in parts]) for name in parts[0].images},
            proprio=np.concatenate([p.proprio for p in parts]),
            instruction=tuple(s for p in parts for s in p.instruction),
        )

    @staticmethod
    def stacked(steps: Sequence[Observation]) -> Observation:
        """Observations of the same B rows at consecutive steps, the latest last -> one with n; of a single step, as it
        is."""
        if len(steps) == 1:
            return steps[0]
        return Observation(
            images={name: np.stack([s.images[name] for s in steps], 1) for name in steps[0].images},
            proprio=np.stack([s.proprio for s in steps], 1),
            instruction=steps[-1].instruction,
        )


UNNAMED_PROPRIO = "proprio"
"""What a proprioception vector is called whose parts have no names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSpec:
    """What a simulator shows and takes: a policy is checked against it before it acts.

    Attributes:
        suite: suite name.
        cameras: camera name -> (h, w).
        proprio: part of the proprioception vector -> its size, such as {"joint_states": 7, "gripper": 2}; the vector
            is these parts one behind the other, so their order counts, in comparisons too. {"proprio": P} where they
            have no names.
        action_dim: A; actions lie in [-1, 1].
        render: settings that change what is shown, or what an action does, as plain values; recorded with
            demonstrations and policies, which fit a simulator with the same ones alone.
        unseen: settings that change neither, such as what counts as success; recorded, and they may be others where a
            policy is practised or measured.
    """

    suite: str
    cameras: Mapping[str, tuple[int, int]]
    proprio: Mapping[str, int]
    action_dim: int
    render: Mapping[str, object]
    unseen: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.proprio, Mapping):
            raise ConfigError(
                f"simulator {self.suite!r}: proprio = {self.proprio!r}; expected the sizes of its parts by name, "
                f'in order, such as {{"joint_states": 7, "gripper": 2}}, or {{"{UNNAMED_PROPRIO}": P}}'
            )
        object.__setattr__(self, "proprio", OrderedDict(self.proprio))  # equal only in the same order
        for name in ("render", "unseen"):
            object.__setattr__(self, name, json.loads(json.dumps(dict(getattr(self, name)))))  # as files give it back

    @property
    def proprio_dim(self) -> int:
        """P, the size of the whole vector."""
        return sum(self.proprio.values())

    def to_json(self) -> dict:
        """Plain values."""
        cameras = {name: list(size) for name, size in self.cameras.items()}
        fields = {"suite": self.suite, "cameras": cameras, "proprio": dict(self.proprio)}
        unseen = {"unseen": dict(self.unseen)} if self.unseen else {}
        return fields | {"action_dim": self.action_dim, "render": dict(self.render)} | unseen

    @classmethod
    def from_json(cls, data: Mapping) -> SimulatorSpec:
        """The inverse of `to_json`; `proprio_dim` = P of earlier versions is {"proprio": P}.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it describes no simulator.
        """
        fields = dict(data)
        if "proprio_dim" in fields:
            fields["proprio"] = {UNNAMED_PROPRIO: fields.pop("proprio_dim")}
        fields["cameras"] = {str(name): (size[0], size[1]) for name, size in fields["cameras"].items()}
        if not isinstance(fields["suite"], str):
            raise TypeError("suite must be a word")
        if not all(isinstance(fields.get(name, {}), dict) for name in ("render", "unseen")):
            raise TypeError("render and unseen must be objects")
        sizes = (*fields["proprio"].values(), fields["action_dim"], *sum(fields["cameras"].values(), ()))
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise TypeError("sizes must be whole numbers above 0")
        return cls(**fields)


def differing(expected: Mapping[str, object], got: Mapping[str, object], prefix: str = "") -> str:
    """The settings in which two records differ, as "name = x, got y; ..."; empty when they are equal."""
    names = [name for name in sorted({*expected, *got}) if expected.get(name) != got.get(name)]
    return "; ".join(f"{prefix}{name} = {expected.get(name)}, got {got.get(name)}" for name in names)


def same_proprio(one: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether two proprioception vectors have the same parts in the same order, or, where one has no names for its
    parts, the same size."""
    if UNNAMED_PROPRIO in (*one, *other) and min(len(one), len(other)) == 1:
        return sum(one.values()) == sum(other.values())
    return list(one.items()) == list(other.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What somebody did in a simulator, to be replayed there.

    Attributes:
        initial_state: where it began.
        actions: float32 `[T, A]` in [-1, 1]; the task is solved at the last of them, or before.
        looks: what was seen at each action, T rows, where that was recorded; or None.
    """

    initial_state: InitialState
    actions: np.ndarray
    looks: Observation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignDemo:
    """A demonstration in a file of another program, in the layout of robomimic; a suite knows what it means.

    Attributes:
        path: the file.
        name: of its group, "demo_3".
        attributes: of the file's group `data`, and of its own group.
        actions: float64 `[T, A]`.
        states: float64 `[T, S]`; S is 0 where the file has none.
        observations: name -> `[T, ...]`.
    """

    path: Path
    name: str
    attributes: Mapping[str, Any]
    actions: np.ndarray
    states: np.ndarray
    observations: Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """Outcome of executing a chunk of actions.

    Attributes:
        success: the task succeeded within this chunk (execution stopped at that step).
        env_steps: steps executed, 1..H.
        done: success, or the horizon was reached.

    Raises:
        SimulatorError: a field is none of that. NaN is true where it is only looked at.
    """

    success: bool
    env_steps: int
    done: bool

    def __post_init__(self) -> None:
        for name in ("success", "done"):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise SimulatorError(f"a chunk's {name} = {value!r}; expected True or False")
        if not isinstance(self.env_steps, int | np.integer) or self.env_steps < 1:
            raise SimulatorError(f"a chunk's env_steps = {self.env_steps!r}; expected a whole number of at least 1")
        if self.success and not self.done:
            raise SimulatorError("a success that is not done: the episode ends with it")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionChunk:
    """A policy's decision for B observations.

    Attributes:
        actions: float32 `[B, H, A]`, simulator units; H is what will be executed before the next look.
        sample: `[B, ...]`, what was drawn: numbers of any type and shape, opaque outside the policy. What the draw is
            conditioned on, such as the denoising step that it was made at, belongs to the inputs.
        log_prob: float32 `[B, K]`, of the sample's K terms, under the density that was drawn from; in greedy mode too,
            where nothing learns from it: scores that are not finite show in it, while actions decoded from them look
            well. Each term has a ratio of its own in the update, so K does not depend on the sample's shape: one for
            each action dimension, for each step of a chunk, or for a whole chunk.
        inputs: name -> `[B, ...]`; what `log_prob` needs to recompute it; opaque outside the policy.
        rollout_inputs: the same, of what cannot change during a rollout, such as an embedded instruction: it is kept
            once a rollout, and every decision of it is given it again.
        term_steps: int `[K]` or `[B, K]`, for each term the first step of the chunk (from 0) whose action it shaped.
            A term counts when that step was executed: not after a success within the chunk, nor when the step lies
            beyond what is executed (H: never). Some term of a row shapes step 0. None: all shaped the first action
            already, as tokens do that are decoded together.
    """

    actions: np.ndarray
    sample: np.ndarray
    log_prob: np.ndarray
    inputs: Mapping[str, np.ndarray]
    rollout_inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    term_steps: np.ndarray | None = None


class Status(enum.Enum):
    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Errand:
    """Something to be found out from a simulator of a task, by whichever process has one.

    Attributes:
        task: key of the task.
        work: simulator -> answer. It leaves nothing behind, so that it may be run again elsewhere; picklable, and so is
            its answer. The simulator may be a stand-in for one: ask what it has (`hasattr`), not what it is.
    """

    task: str
    work: Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """One rollout to be made.

    Attributes:
        initial_state: where it starts.
        index: which of the group's rollouts, 0..G-1.
        seed: integers that, with the initial state's id and `index`, seed this rollout's generator: (run seed, step).
        greedy: take the most likely sample instead of drawing.
        record: keep what the update needs (sample, log_prob, mask, inputs, rollout_inputs).
        video: keep frames for a video.
        horizon: end as a failure after this many environment steps, if that is before the simulator's horizon.
    """

    initial_state: InitialState
    index: int
    seed: tuple[int, ...]
    greedy: bool = False
    record: bool = True
    video: bool = False
    horizon: int | None = None

    def generator(self) -> np.random.Generator:
        """This rollout's own generator: independent of worker, order and batch."""
        key = int(self.initial_state.id, 16)
        return np.random.Generator(
            np.random.Philox(np.random.SeedSequence([*self.seed, key >> 32, key & 0xFFFFFFFF, self.index]))
        )


Heed = Callable[[], None]
"""See `EnvPool.run`."""


class Held(Protocol):
    """The record of a rollout, where it was made."""

    def fetch(self) -> Rollout:
        """The rollout with its record.

        Raises:
            WorkerError: the record is lost and cannot be made again.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One finished rollout.

    Attributes:
        initial_state_id: id of its initial state.
        index: which of the group's rollouts.
        status: SUCCESS, FAILURE or ERROR.
        sample: `[D, ...]`, or None when not recorded (always None for ERROR), as what follows.
        log_prob: float32 `[D, K]`.
        mask: bool `[D, K]`, True for terms that shaped an action that was executed (`ActionChunk.term_steps`).
        inputs: name -> `[D, ...]`.
        rollout_inputs: name -> `[...]`, the same for all its decisions.
        decisions: D.
        env_steps: environment steps spent, also when it ended in ERROR.
        policy_version: version of the policy that acted.
        frames: uint8 `[T, h, w, 3]` for a video, or None.
        error: what went wrong and where, for ERROR.
        held: where its record lies, when that stayed where it was made; then only `mask` is here as well.
    """

    initial_state_id: str
    index: int
    status: Status
    decisions: int
    env_steps: int
    policy_version: int
    sample: np.ndarray | None = None
    log_prob: np.ndarray | None = None
    mask: np.ndarray | None = None
    inputs: Mapping[str, np.ndarray] | None = None
    rollout_inputs: Mapping[str, np.ndarray] | None = None
    frames: np.ndarray | None = None
    error: str | None = None
    held: Held | None = field(default=None, compare=False)

    def outcome(self) -> Rollout:
        """The rollout without what only an update needs."""
        return replace(self, sample=None, log_prob=None, mask=None, inputs=None, rollout_inputs=None, held=None)

    @property
    def recorded(self) -> bool:
        """Whether there is a record, here or where it was made."""
        return self.sample is not None or self.held is not None

    def whole(self) -> Rollout:
        """The rollout with its record here.

        Raises:
            WorkerError: the record is lost.
        """
        if self.held is None:
            return self
        made = self.held.fetch()
        kept = {name: getattr(made, name) for name in ("sample", "log_prob", "inputs", "rollout_inputs")}
        return replace(self, **kept, held=None)

    @property
    def reward(self) -> float | None:
        """1.0, 0.0, or None exactly when ERROR: a failure of the machinery is not a failure of the policy."""
        return {Status.SUCCESS: 1.0, Status.FAILURE: 0.0, Status.ERROR: None}[self.status]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rollouts from one initial state, ordered by index."""

    initial_state: InitialState
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> np.ndarray:
        """float64 `[G]`, NaN where a rollout ended in ERROR."""
        return np.array([np.nan if r.reward is None else r.reward for r in self.rollouts])

    @property
    def success(self) -> float:
        """Mean reward over valid rollouts, NaN when there is none."""
        valid = self.rewards[~np.isnan(self.rewards)]
        return float(valid.mean()) if len(valid) else float("nan")

    @property
    def has_signal(self) -> bool:
        """At least two valid rollouts, and not all of the same reward."""
        valid = self.rewards[~np.isnan(self.rewards)]
        return len(valid) >= 2 and bool(valid.min() != valid.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoBatch:
    """A batch of demonstration windows.

    Attributes:
        observation: at the window's first step, with those before it of a policy that asks for them.
        actions: float32 `[B, H, A]`.
        mask: bool `[B, H]`, False where the window runs past the end of its demonstration.
        privileged: float32 `[B, O]`, object state from the simulator for an auxiliary loss, or None. An acting policy
            never sees it.
    """

    observation: Observation
    actions: np.ndarray
    mask: np.ndarray
    privileged: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Successes over valid trials of one task (or of all), with errors apart and a Wilson 95 % interval over states."""

    successes: int
    trials: int
    errors: int
    interval: tuple[float, float]

    @property
    def rate(self) -> float:
        return self.successes / self.trials if self.trials else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why rollouts ended in ERROR.

    Attributes:
        message: class and first line of what was raised, "ValueError: injected fault".
        count: rollouts that ended so.
        example: one of them in full: what was raised, at which task, initial state and rollout, and where in the code.
    """

    message: str
    count: int
    example: str

    def to_json(self) -> dict:
        return {"message": self.message, "count": self.count, "example": self.example}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """A policy measured on fixed initial states.

    Attributes:
        policy: folder or name.
        seed: of the initial states and of sampling.
        mode: "greedy" or "sampled (temperature T)".
        tasks: task name -> result.
        total: over all tasks.
        per_state: task name -> [(initial state id, status value)], in order.
        horizon: task name -> environment steps after which a rollout without success was a failure.
        state_noise: standard deviation of what objects were moved by in the initial states, metres.
        videos: [(task name, initial state id, status value, uint8 frames `[T, h, w, 3]`)].
        reasons: why rollouts ended in ERROR, the commonest first.
        env_steps: environment steps spent.
        seconds: wall clock.
    """

    policy: str
    seed: int
    mode: str
    tasks: Mapping[str, TaskResult]
    total: TaskResult
    per_state: Mapping[str, Sequence[tuple[str, str]]]
    horizon: Mapping[str, int] = field(default_factory=dict)
    state_noise: float = 0.0
    videos: Sequence[tuple[str, str, str, np.ndarray]] = ()
    reasons: Sequence[Reason] = ()
    env_steps: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict:
        """The documented `ript eval --json` document."""

        def row(r: TaskResult) -> dict:
            return {"successes": r.successes, "trials": r.trials, "errors": r.errors, "interval": list(r.interval)}

        return {
            "policy": self.policy,
            "seed": self.seed,
            "mode": self.mode,
            "horizon": dict(self.horizon),
            "state_noise": self.state_noise,
            "tasks": {name: row(r) for name, r in self.tasks.items()},
            "total": row(self.total),
            "reasons": [reason.to_json() for reason in self.reasons],
        }

    @classmethod
    def from_json(cls, data: Mapping, per_state: Mapping[str, Sequence[Sequence[str]]]) -> EvalResult:
        """The inverse of `to_json`, without videos and costs."""

        def result(r: Mapping) -> TaskResult:
            low, high = r["interval"]
            return TaskResult(successes=r["successes"], trials=r["trials"], errors=r["errors"], interval=(low, high))

        return cls(
            policy=data["policy"],
            seed=data["seed"],
            mode=data["mode"],
            tasks={name: result(r) for name, r in data["tasks"].items()},
            total=result(data["total"]),
            per_state={name: [(state, status) for state, status in rows] for name, rows in per_state.items()},
            horizon=data.get("horizon", {}),
            state_noise=data.get("state_noise", 0.0),
            reasons=[Reason(**reason) for reason in data.get("reasons", ())],
        )
