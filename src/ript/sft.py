"""Supervised training: runs a policy's stages on demonstrations.

Resumable: a stage's data order, dropout and augmentation continue exactly where the last checkpoint left them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ript.build import computing, learning_nodes, make_policy, own_code, require_room, task_keys
from ript.config.sections import Config
from ript.core import arguments, children, hooks, policy_calls
from ript.core.errors import ConfigError, DataError, PolicyError, RiptError, RunError
from ript.core.files import absolute
from ript.core.interfaces import PostTrainable
from ript.core.interpreter import as_typed, load_torch_where_it_can_be
from ript.core.memory import enough_memory
from ript.core.options import SimOptions, TrainingOptions, replace
from ript.core.plugins import PolicyKind
from ript.core.registry import kinds
from ript.core.supervised import DemoSource, Stage
from ript.demos.demo_set import DemoSet, open_demos
from ript.demos.windows import Windows
from ript.learn.spread_stages import SpreadStages
from ript.learn.stages import StageSettings, require_trainable, run_stages
from ript.policies.loading import Origin, load_policy, origin_of
from ript.run.cards import add_supervised, horizon_in
from ript.run.checkpoint import Checkpoint
from ript.run.folder import RunFolder
from ript.run.progress import progress, status
from ript.run.reading import read_config
from ript.run.resuming import refuse_changes, refuse_other_code, refuse_other_content, without_cluster
from ript.run.settings import (
    Leaves,
    another_horizon,
    asked_for,
    leaves,
    measured,
    nested,
    recorded,
    refuse_not_given,
    refuse_unused_stages,
    refuse_without_base,
    settled,
    shown,
    stage_is_missing,
    within,
)
from ript.run.trackers import require_trackers
from ript.sims.registry import find_task
from ript.sims.seen import sim_options_of_spec


def train_sft(
    config: Config,
    demos: str | Path | Sequence[str | Path] | DemoSet,
    out: str | Path,
    *,
    base: str | Path | Origin | None = None,
    resume: bool = False,
    asked: Iterable[str] = (),
) -> PostTrainable:
    """Train a policy on demonstrations, or fine-tune a base policy toward the target tasks.

    Without `base`: all supervised stages of the policy's kind, those toward the target tasks when there are any. With
    `base`: these alone.

    Args:
        config: recipe; `tasks` are the targets.
        demos: a file or several, or an opened set.
        out: run folder; the policy is written to `out/policy`.
        base: policy folder, or name on the hub (see `load_policy`), to start from.
        resume: go on with an interrupted run in `out`.
        asked: settings that somebody gave, by their dotted names, besides those that differ from the recipe's: they are
            refused where demonstrations or base have decided otherwise, and all others are taken from those.

    Raises:
        ConfigError: a base, but no task to fine-tune it toward; a setting that can have no effect; or a kind of policy
            without supervised stages.
        DataError: the files are unusable or lack a target task.
        DependencyMissing: a tracker's package.
        OutOfMemory: names what to lower, and the checkpoint that is kept.
        NotFiniteError: loss, gradient or weights became NaN or infinite; the last checkpoint is kept.
        RunError: `out` is in use or holds another run.
    """
    load_torch_where_it_can_be()
    arguments.instance("config", config, Config, "ript.recipe(name) gives one")
    out, resume, asked = arguments.place("out", out), arguments.truth("resume", resume), arguments.words("asked", asked)
    if not isinstance(base, Origin | None):
        arguments.place("base", base)
    demo_set = demos if isinstance(demos, DemoSet) else open_demos(demos)
    targets = _targets(config, demo_set)
    if not resume:
        require_trackers(config.trackers)
    if base is not None and not targets:
        raise ConfigError("a base policy is fine-tuned toward target tasks, and none is given: give --tasks")
    asked = set(asked)
    # A run that goes on has its horizon, whatever its base was measured with.
    wanted = {"sim.horizon"} if resume else asked_for(config, asked)
    there = {"base": base is not None, "targets": bool(targets), "others": len(demo_set.tasks) > len(targets)}
    refuse_unused_stages(config, asked, **there)
    if base is None:
        refuse_without_base(config, asked)
    demonstrated = _without_own_horizon(config, demo_set)
    config = within(shown(config, _simulator_of(demo_set), wanted), demonstrated)
    with computing(config.device, torch.get_num_threads()) as device:
        origin = base if isinstance(base, Origin | None) else origin_of(base)
        work = _prepare(config, origin, demo_set, targets, wanted, asked, device)
        known = [steps for of_task in demonstrated.values() for steps in of_task]
        _say(another_horizon(work.config.sim.horizon, known, "the demonstrations were collected with"))
        document, changed = _record(work, demo_set, there, origin, out if resume else None)
        with (
            _trainer(work) as trainer,  # what cannot start leaves no folder
            RunFolder.open(out) if resume else RunFolder.create(out, document, "sft") as run,
        ):
            run.change_settings(changed)
            run.track(work.config.trackers)
            if origin and not (run.path / "start").exists():
                policy_calls.save(work.policy, run.path / "start")
            _learn(run, work, trainer, demonstrations=len(demo_set), fresh=origin is None)
        return work.policy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is trained, and on what.

    Attributes:
        config: with what demonstrations and base have decided.
        policy: new, or what the base begins with.
        module: the same, as the torch module that the stages train.
        kind: of the policy.
        windows: of the demonstrations.
        stages: in order, at least one.
        lesson: what ranks make the same from; None: this process learns alone.
    """

    config: Config
    policy: PostTrainable
    module: torch.nn.Module
    kind: PolicyKind
    windows: Windows
    stages: Sequence[Stage]
    lesson: Lesson | None


def _record(
    work: _Work, demos: DemoSet, there: Mapping[str, bool], base: Origin | None, held_in: Path | None
) -> tuple[dict[str, Any], Leaves]:
    """What config.json says of a new run, and the settings that are others in one that goes on, in `held_in`.

    Raises:
        RunError: demonstrations or code are others than it began with.
        ConfigError: a setting that may not change.
    """
    settings = recorded("sft", work.config, work.policy)
    used = {name: value for name, value in settings.items() if not stage_is_missing(work.config, name, **there)}
    content, code = work.windows.fingerprint(), own_code(work.config.sim, (), work.policy)
    held = read_config(held_in)["config"] if held_in else {}
    refuse_other_content(held, {"demos_content": content})
    refuse_other_code(held, code)
    changed = refuse_changes("sft", held.get("recipe_config", {}), settings) if held_in else {}
    files = [str(absolute(file.path)) for file in demos.files]
    where = base.record("base") if base and not held_in else {"base": None}
    document = {"recipe_config": nested(used), "demos": files, "demos_content": content, "code": code, **where}
    return document, changed


def _learn(run: RunFolder, work: _Work, trainer: SpreadStages | None, *, demonstrations: int, fresh: bool) -> None:
    """All stages, up to the policy in its folder."""
    config, policy = work.config, work.policy
    with run.saying_what_is_kept(), _batches_that_fit(config), computing("cpu", config.sft.threads):
        run_stages(_Journal(run), work.module, work.stages, stage_settings(config), trainer)
    work.module.eval()
    add_supervised(
        policy.card,
        config,
        demonstrations=demonstrations,
        tasks=", ".join(t.name for t in work.windows.tasks),
        further=work.kind.card(policy, work.windows, fresh),
    )
    with run.replace(run.policy) as folder:
        policy_calls.save(policy, folder)
    run.finish("all stages done")


def _prepare(
    config: Config,
    base: Origin | None,
    demos: DemoSet,
    targets: Sequence[str],
    wanted: set[str],
    given: set[str],
    device: str,
) -> _Work:
    """The policy and its stages, before anything is trained or written.

    Args:
        config: settings of the run.
        base: where the policy is that is trained further; None: a new one is made.
        demos: to learn from.
        targets: keys of the target tasks.
        wanted: dotted names of settings that somebody asked for.
        given: those of them that were given besides the recipe's.
        device: "cpu" or "cuda".
    """
    require_room(config, base.place if base else None, supervised=True)
    policy = load_policy(base.place, device) if base else new_policy(config, demos)
    if base:
        policy = kinds.get(str(hooks.kind_of(policy))).further(policy, config.policy)
    kind, make_stages, module = trained_by_stages(policy)
    with enough_memory("reading the demonstrations", "their number or the size of their pictures"):
        windows = Windows(demos, kind.window(policy), hooks.observation_steps_of(policy))
    if base:
        config = measured(config, policy, wanted)
        _say(another_horizon(config.sim.horizon, [horizon_in(policy.card)], "the base was measured with"))
        config = settled(config, policy, wanted, "the base", ("policy", "sft"))
        refuse_not_given(config, policy, given)
    else:
        kind.begin(policy, config.policy, windows)
    policy_calls.check_simulator(policy_calls.to(policy, device), windows.spec)
    hooks.read(policy, [task.instruction for task in windows.tasks])
    lesson = Lesson(children.pack(policy), config.sft, windows, targets, base is None) if config.by_ranks else None
    stages = make_stages(policy, config.sft, windows, targets, base is None)
    if not stages:
        raise ConfigError(f"{kind.kind} policies have no stage for this: nothing would be trained")
    require_trainable(stages)
    return _Work(config=config, policy=policy, module=module, kind=kind, windows=windows, stages=stages, lesson=lesson)


@contextmanager
def _trainer(work: _Work) -> Iterator[SpreadStages | None]:
    """Ranks on the nodes of a cluster that train the stages; None where this process does."""
    with learning_nodes(work.config) as nodes:
        if nodes is None or work.lesson is None:
            yield None
            return
        ranks = 0 if work.config.learn.ranks == "auto" else work.config.learn.ranks
        yield SpreadStages(nodes, ranks, work.lesson, work.module, work.stages, stage_settings(work.config))


def _targets(config: Config, demos: DemoSet) -> tuple[str, ...]:
    """Keys of the target tasks, all of which are demonstrated.

    Raises:
        DataError: one is not, or the demonstrations are of another suite.
    """
    if demos.spec.suite != config.sim.suite:
        raise DataError(
            f"the demonstrations are of the simulator suite {demos.spec.suite!r}, "
            f"the recipe is for {config.sim.suite!r}: add --sim.suite={demos.spec.suite}, or take a recipe for it"
        )
    have, targets = {task.key for task in demos.tasks}, task_keys(config.sim, config.tasks)
    if missing := sorted(set(targets) - have):
        raise DataError(
            f"no demonstration of target task {', '.join(missing)} in the files; there are {', '.join(sorted(have))}"
        )
    return targets


def _batches_that_fit(config: Config) -> AbstractContextManager[None]:
    """Memory that runs out within names the kind's own batches."""
    batches = [f"sft.{name}" for name in reversed(type(config.sft).model_fields) if name.endswith("_batch")]
    return enough_memory("in training", f"{', '.join(batches)} or sft.threads")


def _simulator_of(demos: DemoSet) -> dict[str, Any]:
    """Field of the simulator settings -> what the demonstrations were made with, if the section has a word for it."""
    try:
        sim = sim_options_of_spec(demos.spec)
    except PolicyError:  # the suite's simulators do not show that
        return {}
    return {name: value for name, value in sim.values().items() if name not in SimOptions.model_fields}


def _without_own_horizon(config: Config, demos: DemoSet) -> dict[str, set[int]]:
    """Key of a demonstrated task for which its suite has no horizon -> those that demonstrations were collected with.

    Nothing of a task that cannot be found here, of which nothing else is known either.
    """
    sim, found = config.sim.replaced(horizon=0), dict[str, set[int]]()
    for key in {task.key: None for task in demos.tasks}:
        with suppress(RiptError):
            if not sim.horizon_of(find_task(key)):
                found[key] = {entry.task.horizon for entry in demos.entries if entry.task.key == key}
    return found


def _say(line: str) -> None:
    if line:
        status(f"  {line}")


def resume_sft(out: str | Path, changes: Mapping[str, Any] | None = None) -> PostTrainable:
    """Go on with an interrupted run, with its own configuration and demonstrations.

    Args:
        out: run folder.
        changes: dotted name -> another value, of settings that results do not depend on.

    Raises:
        ConfigError: another setting is to change.
        RunError: `out` is in use, is not a run of supervised training, or is of another version; or what it began with
            has been replaced.
        DataError: its demonstrations are gone.
    """
    out = arguments.place("out", out)
    document = read_config(out, to_resume=True)
    if document["kind"] != "sft":
        raise RunError(
            f"{out} is not a run of supervised training: go on with `{as_typed(document['kind'], '--resume', out)}`"
        )
    asked, changes = document["config"], dict(changes or {})
    refuse_changes("sft", asked["recipe_config"], changes, changes)
    config = Config.from_record(nested(leaves(asked["recipe_config"]) | changes))
    if without_cluster(config, changes, asked["recipe_config"]).get("learn.ranks") == 0:
        config = replace(config, learn=replace(config.learn, ranks=0))
    base = None if asked["base"] is None else Origin(asked["base"], asked.get("base_revision"))
    if base and (out / "start").exists():
        base = Origin(str(out / "start"))
    elif base and base.revision is None:
        refuse_other_content(asked, {"base_content": base.content})
    return train_sft(config, asked["demos"], out, base=base, resume=True)


def trained_by_stages(
    policy: PostTrainable,
) -> tuple[PolicyKind, Callable[..., Sequence[Stage]], torch.nn.Module]:
    """A policy's kind, the function that makes its stages, and the policy as the torch module that they train.

    Raises:
        ConfigError: the kind has no supervised training.
    """
    kind = kinds.get(str(hooks.kind_of(policy)))
    if kind.stages is None or not isinstance(policy, torch.nn.Module):
        raise ConfigError(f"{kind.kind} policies have no supervised stages: `ript sft` cannot train them")
    return kind, kind.stages, policy


@dataclass(frozen=True)
class Lesson:
    """What ranks learn from; see `learn.spread_stages.Lesson`.

    Attributes:
        policy: packed, as it is before its stages are made.
        training, windows, targets, fresh: what they are made with.
    """

    policy: bytes
    training: TrainingOptions
    windows: DemoSource
    targets: Sequence[str]
    fresh: bool
    name: str = field(default_factory=lambda: os.urandom(8).hex())

    def make(self, device: str) -> tuple[torch.nn.Module, Sequence[Stage]]:
        policy = policy_calls.to(children.unpack(self.policy), device)
        _, make_stages, module = trained_by_stages(policy)
        return module, make_stages(policy, self.training, self.windows, self.targets, self.fresh)


def new_policy(config: Config, demos: DemoSet) -> PostTrainable:
    """A policy for what these demonstrations show, with weights drawn from the seed.

    Raises:
        DataError: it is to learn from what they do not have.
    """
    privileged = next(demos.demos()).privileged
    return make_policy(config, demos.spec, 0 if privileged is None else privileged.shape[1])


def stage_settings(config: Config) -> StageSettings:
    """What all stages of this configuration have in common."""
    s = config.sft
    return StageSettings(
        seed=config.seed,
        threads=s.threads,
        weight_decay=s.weight_decay,
        max_grad_norm=s.max_grad_norm,
        warmup=s.warmup,
        checkpoint_every=s.checkpoint_every,
        micro_batch=s.micro_batch,
    )


class _Journal:
    """A run folder and the screen, for the stages. See `learn.stages.Journal`."""

    def __init__(self, run: RunFolder):
        self.run = run

    def load_checkpoint(self) -> Checkpoint | None:
        return self.run.load_checkpoint()

    def save_checkpoint(self, iteration: int, state: Mapping[str, Any]) -> None:
        self.run.save_checkpoint(iteration, state)

    def log(self, iteration: int, row: Mapping[str, float]) -> None:
        self.run.log(iteration, row)

    def progress(self, total: int, what: str) -> AbstractContextManager[progress[None]]:
        return progress(total, what)

    def say(self, line: str) -> None:
        status(line)
