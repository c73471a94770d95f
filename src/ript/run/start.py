"""What a post-training run starts from: the policy, ready to be trained, and the record of it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ript.build import computing, horizons, make_policy, own_code, require_room, some_task_keys
from ript.config.sections import Config
from ript.core import hooks, policy_calls
from ript.core.errors import ConfigError, PolicyError, RunError
from ript.core.files import absolute
from ript.core.interfaces import PostTrainable
from ript.core.interpreter import as_typed
from ript.core.options import replace
from ript.core.registry import kinds, suites
from ript.core.types import Errand, InitialState
from ript.evaluation import own_decisions
from ript.learn.update import COMPUTED_AGAIN
from ript.policies.loading import Origin, load_policy, origin_of
from ript.rollout import state_errands
from ript.run.cards import begin_practice, horizon_in, set_horizon
from ript.run.checkpoint import list_checkpoints
from ript.run.files import read_json
from ript.run.folder import RunFolder, another_run_from
from ript.run.progress import status
from ript.run.reading import read_config
from ript.run.resuming import refuse_changes, refuse_other_code, refuse_other_content, without_cluster
from ript.run.settings import Leaves, another_horizon, asked_for, leaves, measured, nested, recorded, settled
from ript.run.states import LOOKED, InitialStates
from ript.run.trackers import require_trackers
from ript.run.video import require_encoder
from ript.sims.seen import as_seen_by

CALIBRATION = 24
"""Training states of each task whose rollouts a policy may choose something by before practice."""
IN_MEMORY = "a policy in memory"
"""What a run folder records as its start when that was not a folder."""

Start = Origin | PostTrainable | None
"""Where a policy is, a policy, or None for weights drawn from the seed."""


def interrupted(out: Path, config: Config, asked: Iterable[str]) -> tuple[Config, Start, Leaves]:
    """The configuration and start of a run that goes on, and what changes in it. A run that was killed before it kept a
    copy of the policy starts from the original again.

    Args:
        out: run folder.
        config: what is asked for; what is as in its recipe is the run's own.
        asked: further settings that are asked for; see `settings.asked_for`.

    Raises:
        RunError: not a post-training run, or what it started from is lost.
        ConfigError: another setting is asked for than the run has, of those that results depend on.
    """
    document = read_config(out, to_resume=True)
    if document["kind"] != "rl":
        raise RunError(f"{out} is a run of supervised training: go on with `{as_typed('sft', '--resume', out)}`")
    missing = [name for name in ("recipe_config", "start") if name not in document["config"]]
    if missing:
        raise RunError(f"{out / 'config.json'} is incomplete: {' and '.join(missing)} missing")
    held, start = document["config"]["recipe_config"], document["config"]["start"]
    if not isinstance(start, str | None):
        raise RunError(f"{out / 'config.json'} is damaged: start = {start!r}, expected a policy folder")
    RunFolder.require_unended(out)
    wanted = leaves(_with_absolute_paths(config).to_json())
    asked = set(asked)
    changed = refuse_changes("rl", held, {name: wanted[name] for name in sorted(asked_for(config, asked))}, asked)
    done = [int(path.name) for path in list_checkpoints(out / "checkpoints")]
    if done and changed.get("iterations", done[-1]) < done[-1]:
        raise ConfigError(f"iterations = {changed['iterations']}, but {out} has done {done[-1]} already: give more")
    if done and "iterations" in changed and (out / "result.json").exists() and done[-1] < held["iterations"]:
        raise ConfigError(
            f"iterations = {changed['iterations']}, but {out} ended by itself after {done[-1]} "
            f"({read_json(out / 'result.json').get('reason')}): it would do no more. To practise on, "
            f"{another_run_from(out)}"
        )
    config = Config.from_record(nested(leaves(held) | changed))
    if more := without_cluster(config, changed, held):
        changed |= more
        config = Config.from_record(nested(leaves(held) | changed))
    if (out / "start").exists():
        return config, load_policy(out / "start", config.device), changed
    if start == IN_MEMORY:
        raise RunError(f"{out} was stopped before it kept the policy that it was given: start again with another --out")
    origin = None if start is None else Origin(start, document["config"].get("start_revision"))
    if origin:
        refuse_other_content(document["config"], {"start_content": origin.content} if origin.revision is None else {})
    return config, origin, changed


def _with_absolute_paths(config: Config) -> Config:
    demos = tuple(str(absolute(file)) for file in config.sampling.demos)
    return replace(config, sampling=replace(config.sampling, demos=demos))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run begins or goes on with.

    Attributes:
        config: complete; see `beginning` for what the policy decides.
        start: where it comes from, for the record.
        policy: what the run is given; None: it makes its own.
        asked: settings that somebody wants; none of a run that goes on.
        changed: settings that are others than when the run began.
    """

    config: Config
    start: Start
    policy: PostTrainable | None
    asked: Collection[str] = ()
    changed: Mapping[str, Any] = field(default_factory=dict)
    held: Mapping[str, Any] = field(default_factory=dict)
    """What the record of a run that goes on says that it began with."""


def plan(
    config: Config, policy: str | Path | PostTrainable | None, out: Path, resume: bool, asked: Iterable[str]
) -> Plan:
    """See `train_rl` for the arguments. Nothing is written.

    Raises:
        RunError: a new run where there is one, or one that cannot go on.
        ConfigError, PolicyError, DependencyMissing: what was given cannot work.
    """
    if resume:
        config, start, changed = interrupted(out, config, asked)
        held = read_config(out)["config"]
        return Plan(config=config, start=start, policy=_opened(start, config), changed=changed, held=held)
    RunFolder.require_free(out)
    require_trackers(config.trackers)
    if config.eval.videos:
        require_encoder()
    start, wanted = origin_of(policy) if isinstance(policy, str | Path) else policy, asked_for(config, asked)
    given = _opened(start, config)
    return Plan(config=protocol(config, given, wanted), start=start, policy=given, asked=wanted)


def _opened(start: Start, config: Config) -> PostTrainable | None:
    """The policy there, on the run's device, which must have room for it."""
    if isinstance(start, Origin):
        require_room(config, start.place)
        return load_policy(start.place, config.device)
    return start


def protocol(config: Config, policy: PostTrainable | None, asked: Collection[str]) -> Config:
    """The configuration with the horizons that episodes will have.

    Raises:
        ConfigError: a horizon of practice was asked for beyond that of the simulators.
    """
    if policy is not None:
        config = measured(_seen(config, policy, asked), policy, asked)
        if line := another_horizon(config.sim.horizon, [horizon_in(policy.card)], "the policy was measured with"):
            status(f"  {line}")
    return within_episodes(config, asked)


def within_episodes(config: Config, asked: Collection[str]) -> Config:
    """The configuration with a horizon of practice that episodes can reach; one beyond that, which nobody asked for, is
    that of the simulators.

    Raises:
        ConfigError: it was asked for.
    """
    longest = max(horizons(config.sim, some_task_keys(config)).values())
    if config.sampling.horizon <= longest:
        return config
    if "sampling.horizon" in asked:
        raise ConfigError(
            f"sampling.horizon = {config.sampling.horizon} has no effect: episodes end after {longest} steps "
            "(sim.horizon); lower the one or raise the other"
        )
    return replace(config, sampling=replace(config.sampling, horizon=0))


def _seen(config: Config, policy: PostTrainable, asked: Collection[str]) -> Config:
    """The configuration with the simulator settings that the policy was trained with, but for those asked for."""
    if policy.simulator.suite != config.sim.suite:
        return config  # which the policy does not fit, and says so
    try:
        kept = {name.removeprefix("sim.") for name in asked if name.startswith("sim.")}
        return replace(config, sim=as_seen_by(policy, config.sim, kept))
    except PolicyError:  # the suite's simulators do not show that
        return config


def beginning(plan: Plan, states: InitialStates) -> tuple[Config, PostTrainable]:
    """The policy that a run begins with, drawn from the seed when it is given none; and the configuration with what is
    decided by it.

    Raises:
        ConfigError: a setting was asked for that the policy cannot follow.
        RunError: a run that goes on has other initial states to practise on than it began with.
    """
    refuse_other_content(plan.held, {"states_content": states.fingerprint()})
    config, policy = plan.config, plan.policy
    whose = "the policy"
    if policy is None:
        whose = "one without demonstrations"
        with computing("cpu", 1):  # rounding grows with every step of fitting, and learn.threads is of the update alone
            policy = make_policy(config, states.spec)
            kinds.get(config.policy.kind).prepare_untrained(policy, config.seed)
    refuse_other_code(plan.held, own_code(config.sim, states.tasks, policy))
    begin_practice(policy.card)
    set_horizon(policy.card, config.sim.horizon)
    if policy.simulator.unseen != states.spec.unseen:  # such as what counts as success: it is practised for this now
        policy.simulator = replace(policy.simulator, unseen=states.spec.unseen)
    return settled(config, policy, plan.asked, whose), policy


def practice_steps(config: Config, keys: Sequence[str]) -> dict[str, int]:
    """Task key -> environment steps after which a rollout in practice is a failure, at most."""
    return {key: min(config.sampling.horizon or steps, steps) for key, steps in horizons(config.sim, keys).items()}


def ready(config: Config, policy: PostTrainable, states: InitialStates) -> PostTrainable:
    """The policy, which fits the simulators of these tasks and has read their instructions.

    Raises:
        PolicyError: it does not fit.
    """
    with computing(config.device, 1):
        policy_calls.check_simulator(policy, states.spec)
        hooks.read(policy, [states.task(task).instruction for task in states.tasks])
    return policy


def learner(config: Config, start: PostTrainable, states: InitialStates, *, calibrate: bool = True) -> PostTrainable:
    """The policy that a run trains, ready to be copied into workers.

    Args:
        config: settled for the policy that it begins with; see `beginning`.
        calibrate: let it choose what its options leave to its own rollouts.

    Raises:
        PolicyError: it does not fit the simulator.
        ConfigError: with `rollout.lag`, one whose log-probabilities are computed again.
    """

    def decisions(policy: PostTrainable) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        s = config.sampling
        n = CALIBRATION * len(config.tasks)
        practised = list(itertools.islice(states.training(0, s.states, s.state_noise), n))
        return own_decisions(states.pool, policy, practised, horizon=s.horizon or None, seed=config.seed)

    ready(config, start, states)
    with computing(config.device, 1):  # what is chosen and fitted here does not depend on learn.threads
        policy, told = hooks.tuned(start, config.policy, decisions if calibrate else None)
    if config.rollout.lag and (config.learn.recompute_log_prob or hooks.ratio_tolerance_of(policy) is None):
        raise ConfigError(f"{COMPUTED_AGAIN}: give --rollout.lag=0")
    if told:
        status(f"  {told}")
    return policy


IDLE_STEPS = 10
"""Steps of zero actions from the training states that are looked at."""


def first_of_training(config: Config, states: InitialStates) -> dict[str, list[InitialState]]:
    """Task key -> the first states to practise on, each once."""
    s = config.sampling
    stream = states.training(0, s.states, s.state_noise)
    looked = {state.id: state for state in itertools.islice(stream, LOOKED * len(states.tasks))}
    return {task: [state for state in looked.values() if state.task.key == task] for task in states.tasks}


def tested_as_practised(config: Config, states: InitialStates) -> list[str]:
    """A sentence for each task some of whose test states look like practised ones; it is told on the screen too.

    Success on them is no success on what was never seen.
    """
    found, e = [], config.eval
    for task, practised in first_of_training(config, states).items():
        tested = states.states(task, min(e.trials, LOOKED), "test", seed=e.seed)
        seen = set(states.looks(practised).values()) - {""}
        same = sum(look in seen for look in states.looks(tested).values())
        if same:
            of = f"{same} of the first {len(tested)} test states look like one of the first {len(practised)} that are"
            found.append(f"{task}: {of} practised on: success on them says nothing of states that were never seen.")
            status(f"  {found[-1]}")
    return found


def solved_by_nothing(config: Config, states: InitialStates) -> dict[str, list[str]]:
    """Task key -> ids of those among its first training states from which actions of zero succeed at once.

    Every rollout from such a state succeeds, so that it teaches nothing and its success is not the policy's. Each is
    named on the screen.
    """
    of_task = first_of_training(config, states)
    wanted = [
        Errand(task, functools.partial(state_errands.solved_by_nothing, states=several, steps=IDLE_STEPS))
        for task, several in of_task.items()
    ]
    solved = dict(zip(of_task, states.pool.ask(wanted), strict=True))
    found: dict[str, list[str]] = {task: ids for task, ids in solved.items() if ids}
    for task, ids in found.items():
        status(
            f"  {task}: {len(ids)} of the first {LOOKED} training states are solved by doing nothing for "
            f"{IDLE_STEPS} steps ({', '.join(ids)}): nothing is learned from them, and success counts them"
        )
    return found


def to_stay_near(config: Config, start: Path) -> PostTrainable | None:
    """The policy in `start`, where the run began, when the update is to stay near it."""
    return load_policy(start, config.device) if config.learn.kl_to_start else None


def calibration_rollouts(config: Config) -> int:
    """Rollouts before the first iteration, at most; see `CALIBRATION`."""
    return CALIBRATION * len(config.tasks) if config.policy.calibrates else 0


@dataclass(frozen=True, slots=True)
class Amount:
    """What a run does at most: every group attempted, every rollout to the horizon.

    Attributes:
        rollouts, env_steps: of practice and evaluation.
        decisions: that updates work on, each as often as there are epochs.
    """

    rollouts: int
    env_steps: int
    decisions: int

    def __str__(self) -> str:
        decisions = f", {self.decisions:,} decisions in updates" if self.decisions else ""
        return f"at most {self.rollouts:,} rollouts, {self.env_steps:,} env-steps{decisions}"


def amount(config: Config, execute: int | None) -> Amount:
    """How much a run with this configuration does at most, when its policy looks again after `execute` actions; None:
    that is not known, and decisions are not counted."""
    s, e = config.sampling, config.eval
    steps = max(horizons(config.sim, some_task_keys(config)).values())
    horizon = min(s.horizon or steps, steps)
    attempts = s.max_attempts if s.dynamic else s.groups
    practice = config.iterations * attempts * s.group_size + calibration_rollouts(config)
    # Before the first iteration, every few, and after the last.
    validations = 1 + math.ceil(config.iterations / e.every) if e.every else 0
    tests = len(some_task_keys(config)) * (4 * e.trials + validations * e.every_trials)
    each = math.ceil(horizon / execute) if execute else 0
    kept = min(each, config.learn.max_decisions or each)
    return Amount(
        rollouts=practice + tests,
        env_steps=practice * horizon + tests * steps,
        decisions=config.iterations * s.groups * s.group_size * kept * config.learn.epochs,
    )


def document(config: Config, policy: PostTrainable, start: Start, states: InitialStates) -> dict[str, Any]:
    """What the run folder of a new run records as its configuration."""
    idle = solved_by_nothing(config, states)
    notes = list(hooks.caveats_of(policy))
    notes += [f"{task}: solved by doing nothing from initial states {', '.join(ids)}." for task, ids in idle.items()]
    notes += tested_as_practised(config, states)
    notes += suites.get(config.sim.suite).caveats(config.sim)
    given = {"start": None if start is None else IN_MEMORY}
    where = start.record("start") if isinstance(start, Origin) else given
    settings = nested(recorded("rl", _with_absolute_paths(config), policy))
    content: dict[str, Any] = {"states_content": states.fingerprint()} if config.sampling.demos else {}
    content |= {"code": own_code(config.sim, states.tasks, policy)}
    return {"recipe_config": settings, "policy": hooks.settings_of(policy), **where, **content, "notes": notes}
