"""Supervised stages: the skill autoencoder, the policy on all tasks, and fine-tuning toward a few target tasks.

Resumable: a stage's data order, dropout and augmentation continue exactly where the last checkpoint left them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ript.build import (
    Origin,
    computing,
    load_quest,
    make_policy,
    origin_of,
    sim_config_of_spec,
    simulator_factory,
    task_keys,
)
from ript.config.sections import Config, SFTConfig
from ript.core.errors import ConfigError, DataError, PolicyError, RunError
from ript.core.files import absolute
from ript.core.interfaces import Demonstrator
from ript.core.interpreter import load_torch_where_it_can_be
from ript.core.metrics import Mean, Metrics
from ript.core.types import InitialState
from ript.demos.demo_set import DemoSet, open_demos
from ript.demos.statistics import Statistics
from ript.demos.windows import Windows
from ript.policies.quest.policy import QuestPolicy
from ript.policies.quest.stages import Stage, run_stages
from ript.run.cards import add_supervised
from ript.run.folder import RunFolder, read_config
from ript.run.settings import (
    asked_for,
    leaves,
    measured,
    nested,
    recorded,
    refuse_changes,
    refuse_unused_stages,
    settled,
    shown,
    stage_is_missing,
)
from ript.run.trackers import require_trackers


def train_sft(
    config: Config,
    demos: Sequence[str | Path] | DemoSet,
    out: str | Path,
    *,
    base: str | Path | Origin | None = None,
    resume: bool = False,
    asked: Iterable[str] = (),
) -> QuestPolicy:
    """Train a policy on demonstrations, or fine-tune a base policy toward the target tasks.

    Without `base`: autoencoder, then policy on every task in the files; then fine-tuning when some of them are target
    tasks. With `base`: fine-tuning alone; its autoencoder is kept.

    Args:
        config: recipe; `tasks` are the targets.
        demos: files, or an opened set.
        out: run folder; the policy is written to `out/policy`.
        base: policy folder, or name on the hub (see `load_policy`), to start from.
        resume: go on with an interrupted run in `out`.
        asked: settings that somebody gave, by their dotted names, besides those that differ from the recipe's: they are
            refused where demonstrations or base have decided otherwise, and all others are taken from those.

    Raises:
        ConfigError: a base, but no task to fine-tune it toward; or a setting that can have no effect.
        DataError: the files are unusable or lack a target task.
        DependencyMissing: a tracker's package.
        NotFiniteError: loss, gradient or weights became NaN or infinite; the last checkpoint is kept.
        RunError: `out` is in use or holds another run.
    """
    load_torch_where_it_can_be()
    demo_set = demos if isinstance(demos, DemoSet) else open_demos(list(demos))
    if demo_set.spec.suite != config.sim.suite:
        raise DataError(
            f"the demonstrations are of the simulator suite {demo_set.spec.suite!r}, "
            f"the recipe is for {config.sim.suite!r}"
        )
    if not resume:
        require_trackers(config.trackers)
    have = {task.key for task in demo_set.tasks}
    targets = tuple(k for k in task_keys(config.sim, config.tasks) if k in have)
    missing = sorted(set(task_keys(config.sim, config.tasks)) - have)
    if missing:
        raise DataError(
            f"no demonstration of target task {', '.join(missing)} in the files; there are {', '.join(sorted(have))}"
        )
    if base is not None and not targets:
        raise ConfigError("a base policy is fine-tuned toward target tasks, and none is given: give --tasks")
    asked = set(asked)
    wanted = set() if resume else asked_for(config, asked)
    there = {"base": base is not None, "targets": bool(targets), "others": have > set(targets)}
    refuse_unused_stages(asked, **there)
    config = shown(config, _simulator_of(demo_set), wanted)
    with computing(config.device, torch.get_num_threads()) as device:
        origin = base if isinstance(base, Origin | None) else origin_of(base)
        policy = load_quest(origin.place) if origin else new_policy(config, demo_set)
        windows = Windows(demo_set, policy.config.chunk)
        if origin:
            config = settled(measured(config, policy, wanted), policy, wanted, "the base")
        else:
            _set_statistics(policy, Statistics.of(windows), config.policy.standardise)
        policy.to(device).check_simulator(windows.spec)
        policy.embed([task.instruction for task in windows.tasks])
        stages = make_stages(config, policy, windows, targets, fresh=origin is None)
        settings = recorded("sft", config, policy)
        document = {
            "recipe_config": nested(
                {name: value for name, value in settings.items() if not stage_is_missing(name, **there)}
            ),
            "demos": [str(absolute(file.path)) for file in demo_set.files],
            **(origin.record("base") if origin else {"base": None}),
        }
        held = read_config(out)["config"]["recipe_config"] if resume else {}
        changed = refuse_changes("sft", held, settings)
        with RunFolder.open(out) if resume else RunFolder.create(out, document, "sft") as run:
            run.change_settings(changed)
            run.track(config.trackers)
            run_stages(run, config, policy, stages)
            policy.eval()
            add_supervised(
                policy.card,
                config,
                demonstrations=len(demo_set),
                tasks=", ".join(t.name for t in windows.tasks),
                auxiliary=policy.encoder.privileged is not None and windows.privileged is not None,
                base_auxiliary=origin is not None and policy.config.privileged_dim > 0,
            )
            with run.replace(run.policy) as folder:
                policy.save_pretrained(folder)
            run.finish("all stages done")
        return policy


def _simulator_of(demos: DemoSet) -> dict[str, Any]:
    """Field of the simulator settings -> what the demonstrations were made with, if the section has a word for it."""
    try:
        sim = dataclasses.asdict(sim_config_of_spec(demos.spec))
    except PolicyError:  # pictures of several sizes
        return {}
    return {name: sim[name] for name in ("cameras", "image_size", "arm")}


def resume_sft(out: str | Path, changes: Mapping[str, Any] | None = None) -> QuestPolicy:
    """Go on with an interrupted run, with its own configuration and demonstrations.

    Args:
        out: run folder.
        changes: dotted name -> another value, of settings that results do not depend on.

    Raises:
        ConfigError: another setting is to change.
        RunError: `out` is in use, is not a run of supervised training, or is of another version.
        DataError: its demonstrations are gone.
    """
    document = read_config(out, to_resume=True)
    if document["kind"] != "sft":
        raise RunError(
            f"{out} is not a run of supervised training: go on with `ript {document['kind']} --resume {out}`"
        )
    asked = document["config"]
    config = Config.from_json(nested(leaves(asked["recipe_config"]) | dict(changes or {})))
    base = None if asked["base"] is None else Origin(asked["base"], asked.get("base_revision"))
    return train_sft(config, asked["demos"], out, base=base, resume=True)


def new_policy(config: Config, demos: DemoSet) -> QuestPolicy:
    """A policy for what these demonstrations show, with weights drawn from the seed.

    Raises:
        DataError: the auxiliary loss is asked for, and they have no object positions.
    """
    first = next(demos.demos())
    privileged = first.privileged
    if config.policy.privileged and privileged is None:
        raise DataError(
            "policy.privileged asks for object positions, and the demonstrations have none (obs/privileged)"
        )
    return make_policy(config, demos.spec, 0 if privileged is None else privileged.shape[1])


def _set_statistics(policy: QuestPolicy, statistics: Statistics, standardise: bool) -> None:
    encoder = policy.encoder
    if standardise:
        encoder.proprio_mean.copy_(torch.as_tensor(statistics.proprio_mean))
        encoder.proprio_std.copy_(torch.as_tensor(statistics.proprio_std))
    if encoder.privileged is not None:
        if statistics.privileged_mean is None or statistics.privileged_std is None:
            raise PolicyError(
                "the demonstrations carry no object positions (obs/privileged), which the policy's loss needs"
            )
        encoder.privileged_mean.copy_(torch.as_tensor(statistics.privileged_mean))
        encoder.privileged_std.copy_(torch.as_tensor(statistics.privileged_std))


def stage_steps(s: SFTConfig, *, steps: float, looks: float, target_looks: float) -> dict[str, int]:
    """Optimiser steps of each stage, for demonstrations of so many environment steps and looks in all."""

    def passes(epochs: float, otherwise: int, windows: float, batch: float) -> int:
        return math.ceil(epochs * windows / batch) if epochs else otherwise

    return {
        "autoencoder": passes(s.autoencoder_epochs, s.autoencoder_steps, steps, s.autoencoder_batch),
        "policy": passes(s.policy_epochs, s.policy_steps, looks, s.policy_batch),
        "finetune": passes(s.finetune_epochs, s.finetune_steps, target_looks, s.policy_batch * s.finetune_share),
    }


def make_stages(
    config: Config, policy: QuestPolicy, windows: Windows, targets: Sequence[str], fresh: bool
) -> list[Stage]:
    """The stages on these windows: all three of a fresh policy, or fine-tuning alone; that only with targets."""
    s = config.sft
    if {task.key for task in windows.tasks} <= set(targets):  # which take every batch then
        s = dataclasses.replace(s, finetune_share=1.0)
    chunks, mask = windows.action_chunks()
    own = sum(windows.tasks[i].key in targets for i in windows.task_index)
    steps = stage_steps(s, steps=len(chunks), looks=len(windows), target_looks=own)

    def chunk_draws(rng: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            yield rng.integers(len(chunks), size=s.autoencoder_batch)

    def chunk_loss(rows: np.ndarray, batch: np.ndarray) -> tuple[torch.Tensor, Metrics]:
        executed = int(mask[batch].sum())
        return policy.autoencoder_loss(torch.from_numpy(chunks[rows]), torch.from_numpy(mask[rows]), count=executed)

    def window_draws(weights: dict[str, float] | None) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
        return lambda rng: windows.draws(s.policy_batch, rng, task_weights=weights)

    def window_loss(rows: np.ndarray, batch: np.ndarray, decoder_scale: float = 0.0) -> tuple[torch.Tensor, Metrics]:
        return policy.loss(
            windows.batch(rows),
            decoder_scale=decoder_scale,
            colour_jitter=s.colour_jitter,
            noisy_targets=s.noisy_targets,
            windows=len(batch),
            actions=windows.executed(batch),
        )

    actor = [policy.encoder, policy.prior]
    noisy = [policy.autoencoder] if s.noisy_targets else []
    stages = []
    if fresh:
        stages += [
            Stage(
                name="autoencoder",
                steps=steps["autoencoder"],
                learning_rate=s.autoencoder_learning_rate,
                modules=[policy.autoencoder],
                draws=chunk_draws,
                loss=chunk_loss,
                judged="reconstruction_l1",
            ),
            Stage(
                name="policy",
                steps=steps["policy"],
                learning_rate=s.policy_learning_rate,
                modules=actor,
                draws=window_draws(None),
                loss=window_loss,
                noisy=noisy,
            ),
        ]
    if targets:
        stages.append(
            Stage(
                name="finetune",
                steps=steps["finetune"],
                learning_rate=s.finetune_learning_rate,
                modules=[*actor, policy.autoencoder.decoder] if s.finetune_decoder else actor,
                draws=window_draws(windows.target_weights(targets, s.finetune_share)),
                loss=partial(window_loss, decoder_scale=s.finetune_decoder),
                noisy=noisy,
            )
        )
    return stages


def babble(policy: QuestPolicy, seed: int, steps: int = 200, batch: int = 32) -> None:
    """Give a policy without demonstrations skills to choose from: fit its autoencoder to random straight movements."""
    rng = np.random.default_rng([seed, 0xBABB1E])
    shape = (batch, 1, policy.config.action_dim)
    optimiser = torch.optim.AdamW(policy.autoencoder.parameters(), lr=3e-3, fused=True)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=steps)
    mask = torch.ones(batch, policy.config.chunk, dtype=torch.bool)
    policy.autoencoder.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for _ in range(steps):
            chunks = torch.from_numpy(rng.uniform(-1, 1, shape)).float().expand(-1, policy.config.chunk, -1)
            loss, _ = policy.autoencoder_loss(chunks, mask)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
    policy.eval()


def replay_autoencoded(policy: QuestPolicy, config: Config, task: str, states: int = 10, seed: int = 0) -> Mean:
    """Success of the scripted expert when each of its chunks passes through the skill autoencoder first.

    What the policy could do with these skills if it saw everything and chose the best ones: a bound on perception-free
    control. The expert looks again after each chunk; a second simulator, brought to the same place by the same actions,
    is where it plans.

    Returns:
        successes over `states` training states, or as many as there are.
    """
    (key,) = task_keys(config.sim, (task,))
    factory, execute = simulator_factory(config.sim), policy.config.execute
    with factory(key) as sim, factory(key) as ahead:
        if not isinstance(ahead, Demonstrator):
            raise ConfigError(f"{key} has no scripted expert, whose actions would pass through the autoencoder")
        results = []
        for state in {state.id: state for state in sim.initial_states(states, seed, "train")}.values():
            sim.reset(state)
            executed: list[np.ndarray] = []
            result = None
            while result is None or not result.done:
                chunk = _plan(ahead, state, executed, policy.config.chunk)
                with torch.no_grad():
                    tokens = policy.autoencoder.encode(torch.from_numpy(chunk)[None])
                    decoded = policy.autoencoder.decode(tokens)[0, :execute].clamp(-1, 1).numpy()
                result = sim.step_chunk(decoded)
                executed.append(decoded[: result.env_steps])
            results.append(result.success)
    return Mean(sum(results), len(results))


def _plan(sim: Demonstrator, state: InitialState, executed: Sequence[np.ndarray], chunk: int) -> np.ndarray:
    """The expert's next `chunk` clean actions `[H, A]` after `executed`; the last repeated once it has succeeded."""
    sim.reset(state)
    for actions in executed:
        sim.step_chunk(actions)
    planned: list[np.ndarray] = []
    while len(planned) < chunk:
        planned.append(sim.expert_action())
        if sim.step_chunk(planned[-1][None]).done:
            break
    return np.stack(planned + [planned[-1]] * (chunk - len(planned)))
