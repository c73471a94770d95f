"""Where the time of one post-training iteration goes: rollouts, update, and everything else.

One iteration as `train_rl` does it, with the recipe's numbers. Given a trained policy it is a real one. Without, the
policy has random weights, which never succeed: then every rollout runs to the horizon (the most expensive case, of
rollouts and update alike), a coin decides which of them count as successes, and all epochs are done (no stop at a KL).
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ript.build import batch_settings, computing, make_env_pool, make_policy, some_task_keys, update_settings
from ript.config.sections import Config
from ript.core import policy_calls
from ript.core.errors import ConfigError
from ript.core.interfaces import EnvPool, PostTrainable
from ript.core.metrics import values
from ript.core.types import Group, InitialState, Status
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser
from ript.learn.update import update
from ript.report.tables import count
from ript.rollout.sampling import Collection, collect_groups
from ript.run.checkpoint import write_checkpoint
from ript.run.progress import status
from ript.run.settings import asked_for, settled
from ript.run.start import learner as make_learner
from ript.run.start import practice_steps, protocol, to_stay_near
from ript.run.states import InitialStates

_OF_A_POLICY = ("sampling.dynamic", "sampling.max_attempts", "sampling.equal_tasks", "learn.target_kl")
"""Settings that have no effect on random weights: the first groups are taken, and all epochs are done."""


def bench_update(config: Config, policy: PostTrainable | None = None, asked: Iterable[str] = ()) -> dict[str, Any]:
    """Time one iteration.

    Args:
        config: recipe.
        policy: a trained policy; None: random weights, see the module's docstring.
        asked: settings that somebody gave, see `train_rl`.

    Returns:
        {"seconds": {"set_policy", "rollouts", "batch", "update", "checkpoint", "total"}, "update_share", "rollouts",
        "env_steps", "decisions", "optimiser_steps", "seconds_per_512_decisions", "workers", "nodes", "policy"};
        `update_share` is that of "batch" and "update" in "total". "workers" are those of all "nodes" of a cluster, of
        which there are 0 on this machine alone.

    Raises:
        ConfigError: a trained policy that gives no group with a signal; or a setting that would change nothing.
        DataError: of `sampling.demos`.
    """
    asked = list(asked)
    if policy is None and (given := [name for name in _OF_A_POLICY if name in asked]):
        raise ConfigError(f"{', '.join(given)}: no effect on random weights; leave it out, or give --policy DIR")
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - began

    wanted = asked_for(config, asked)
    config, keys = protocol(config, policy, wanted), some_task_keys(config)
    with (
        computing("cpu", config.learn.threads),
        make_env_pool(config.sim, config.rollout, cluster=config.cluster) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):
        states = InitialStates(pool, keys, config.seed, config.sampling.demos)
        _practised(config, states)  # can there be any?
        real = policy is not None
        start = policy or make_policy(config, states.spec)
        config = settled(config, start, wanted)
        learn = config.learn
        learner = make_learner(config, start, states, calibrate=True)
        optimiser = make_optimiser(learner, learning_rate=learn.learning_rate, weight_decay=learn.weight_decay)
        pool.use(learner)
        workers, nodes = _size(pool, config)
        status("a round of rollouts to warm up, then one iteration")
        k = config.sampling.group_size
        _collect(config, states, -(-max(1, workers) * config.rollout.slots // k), dynamic=False)
        with stage("set_policy"):
            pool.set_policy(policy_calls.weights(learner), 1)
        with stage("rollouts"):
            collection = _collect(config, states, config.sampling.groups, dynamic=real and config.sampling.dynamic)
        groups = _with_signal(collection.groups if real else _drawn_rewards(collection.groups, config.seed), config)
        with stage("batch"):
            batch = make_batch(groups, generator=torch.Generator().manual_seed(0), **batch_settings(learn))
        policy_calls.save(learner, f"{folder}/start")
        settings = update_settings(learn) | {"start": to_stay_near(config, Path(folder) / "start")}
        settings |= {} if real else {"target_kl": None}
        with stage("update"):
            result = update(learner, optimiser, batch, generator=torch.Generator().manual_seed(0), **settings)
        with stage("checkpoint"):
            write_checkpoint(folder, 1, {"weights": policy_calls.weights(learner), "optimiser": optimiser.state_dict()})
    seconds["total"] = sum(seconds.values())
    did, rollouts = values(result.metrics), values(collection.metrics)
    return {
        "seconds": seconds,
        "update_share": (seconds["batch"] + seconds["update"]) / seconds["total"],
        "rollouts": int(rollouts["rollouts"]),
        "env_steps": int(rollouts["env_steps"]),
        "decisions": len(batch),
        "optimiser_steps": int(did["optimiser_steps"]),
        "seconds_per_512_decisions": 512 * seconds["update"] / max(1.0, len(batch) * did["epochs_done"]),
        "workers": workers,
        "nodes": nodes,
        "policy": "trained" if real else "random weights, drawn rewards",
    }


def _size(pool: EnvPool, config: Config) -> tuple[int, int]:
    """Worker processes, and the nodes that they are on, which a cluster's pool knows."""
    return getattr(pool, "workers", config.rollout.workers), len(getattr(pool, "nodes", ()))


def _collect(config: Config, states: InitialStates, groups: int, dynamic: bool) -> Collection:
    s = config.sampling
    return collect_groups(
        states.pool,
        _practised(config, states),
        group_size=s.group_size,
        quota=groups,
        max_attempts=s.max_attempts,
        seed=(config.seed, 0),
        dynamic=dynamic,
        equal_tasks=len(states.tasks) if s.equal_tasks else 0,
        horizon=practice_steps(config, states.tasks),
    )


def _practised(config: Config, states: InitialStates) -> Iterator[InitialState]:
    """The states of a run's first iteration."""
    s = config.sampling
    first = states.training(0, s.states, s.state_noise)
    return itertools.chain([next(first)], first)


def _with_signal(groups: Sequence[Group], config: Config) -> Sequence[Group]:
    """The groups, of which at least one has a signal; else `ConfigError`."""
    if not any(group.has_signal for group in groups):
        raise ConfigError(
            f"this policy gives no group with a signal on {', '.join(config.tasks)}: nothing to update on"
        )
    return groups


def _drawn_rewards(groups: Sequence[Group], seed: int) -> list[Group]:
    """The same rollouts, each a success or a failure by the toss of a coin, but not all of a group the same."""
    found = []
    for group in groups:
        tosses = np.random.default_rng([seed, int(group.initial_state.id, 16)]).random(len(group.rollouts)) < 0.5
        tosses[0] = not tosses[1]
        outcomes = [Status.SUCCESS if toss else Status.FAILURE for toss in tosses]
        judged = tuple(replace(r, status=s) for r, s in zip(group.rollouts, outcomes, strict=True))
        found.append(replace(group, rollouts=judged))
    return found


def describe_update(document: dict[str, Any]) -> str:
    """The numbers of `bench_update` for a person."""
    total, nodes = document["seconds"]["total"], document["nodes"]
    workers = count(document["workers"], "worker") + (f" on {count(nodes, 'node')}" if nodes else "")
    lines = [
        f"{name:<10} {seconds:7.2f} s  {100 * seconds / total:3.0f} %" for name, seconds in document["seconds"].items()
    ]
    return "\n".join(
        [
            f"one iteration with {document['policy']}, {workers}: {document['rollouts']} rollouts, "
            f"{document['env_steps']} steps, {document['decisions']} decisions, {document['optimiser_steps']} updates",
            *lines,
            f"update: {100 * document['update_share']:.0f} % of the iteration; "
            f"{1000 * document['seconds_per_512_decisions']:.0f} ms for 512 decisions",
        ]
    )
