"""Configuration -> objects: policies, simulators and pools for the loop, evaluation and studies, which name none."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ript.config.sections import ClusterConfig, Config, LearnConfig, RolloutConfig
from ript.core import capacity, policy_calls, streams, user_code
from ript.core.device_memory import GIB, Demands, free_on
from ript.core.errors import ConfigError, UnknownNameError
from ript.core.interfaces import EnvPool, LikelihoodPolicy, PostTrainable, SimulatorFactory
from ript.core.options import SimOptions
from ript.core.registry import kinds, suites
from ript.core.types import SimulatorSpec
from ript.demos.expert import DemoSource
from ript.demos.scripted import with_expert
from ript.learn.spread import Machines, Spread
from ript.learn.update import UpdateResult, update
from ript.policies.loading import placed
from ript.rollout.pool import make_pool
from ript.sims.registry import find_task, keys_elsewhere, suite_to_install

RENDERS = "ript.sims.mujoco.gl:require_renderer"
"""What machines of simulators that draw must be able to do."""


def simulator_factory(sim: SimOptions) -> SimulatorFactory:
    """Task key -> simulator; picklable, and whole: a worker process need not know a suite that was registered here.

    Raises:
        UnknownNameError: no such suite or camera.
    """
    suite = suites.get(sim.suite)
    if suite.spec is not None:
        suite.spec(sim)  # here already, not once in each worker: it names an unknown camera
    return functools.partial(suite.make, options=sim)


def demonstrator_factory(config: Config) -> SimulatorFactory:
    """Task key -> a simulator with the expert that `demos.expert` names, or as it is.

    Raises:
        ConfigError, UnknownNameError: there is no such expert, suite or camera, or nobody who demonstrates.
    """
    factory, expert = simulator_factory(config.sim), config.demos.expert
    if not demo_source(config):
        raise ConfigError(
            f"suite {config.sim.suite} has no scripted experts: name one of your own (--demos.expert MODULE:FUNCTION), "
            "or train on files of demonstrations"
        )
    return with_expert(factory, expert) if expert else factory


def demo_source(config: Config, *, target: bool = False) -> DemoSource | None:
    """Who demonstrates, by what is configured and what the suite has; None: nobody.

    Args:
        config: with `demos`.
        target: who demonstrates the target tasks, not those for pre-training.

    Raises:
        ConfigError: the suite does not have what `demos.source` or `demos.target_source` asks for.
    """
    own = target and config.demos.target_source != "same"
    asked = config.demos.target_source if own else config.demos.source
    has = suites.get(config.sim.suite).demonstrations
    if config.demos.expert:
        return "expert"
    if asked == "suite":
        return has[0] if has else None
    if asked not in has:
        there = f"it has {' and '.join(has)} demonstrations" if has else "it has no demonstrations"
        field = f"demos.{'target_source' if own else 'source'}"
        raise ConfigError(f"{field} = {asked}: suite {config.sim.suite} has none; {there}")
    return asked


def task_keys(sim: SimOptions, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names or keys of tasks, and named lists of them -> keys, each once.

    Raises:
        UnknownNameError: the suite has no such task; those that others have are suggested.
        ConfigError: a key of another suite's task.
    """
    try:
        return tuple(task.key for task in suites.get(sim.suite).expanded(names))
    except UnknownNameError as error:
        elsewhere = keys_elsewhere(error.name, but=sim.suite)
        if error.name in elsewhere:
            of = error.name.partition("/")[0]
            raise ConfigError(f"{error.name} is of suite {of}; expected tasks of suite {sim.suite}") from error
        if elsewhere:
            raise UnknownNameError(error.kind, error.name, elsewhere) from error
        if remedy := suite_to_install(error.name):
            raise UnknownNameError(error.kind, error.name, error.known, remedy) from error
        raise


def own_code(sim: SimOptions, keys: Sequence[str], policy: object) -> dict[str, str]:
    """Module -> digest of the code of a user's own that simulators of these tasks, and a policy, are made of.

    Args:
        sim: whose suite is meant.
        keys: of the tasks.
        policy: or the name of its kind, of one that is to be made.
    """
    suite = suites.get(sim.suite)
    tasks = [module for key in keys for module in suite.modules(key.removeprefix(f"{suite.name}/"))]
    of_policy = _modules_of(kinds.get(policy).make) if isinstance(policy, str) else [type(policy).__module__]
    return user_code.fingerprints([*of_policy, *_modules_of(suite.make), *tasks])


def _modules_of(maker: Any) -> list[str]:
    """Modules of a function, and, where classes are bound to it, of these."""
    bound = [part for part in getattr(maker, "args", ()) if isinstance(part, type)]
    return [getattr(part, "__module__", "") for part in (getattr(maker, "func", maker), *bound)]


def horizons(sim: SimOptions, keys: Sequence[str]) -> dict[str, int]:
    """Task key -> environment steps after which a rollout without success is a failure."""
    return {key: sim.horizon_of(find_task(key)) for key in keys}


def some_task_keys(config: Config) -> tuple[str, ...]:
    """Keys of the tasks that the configuration practises on.

    Raises:
        ConfigError: none.
        UnknownNameError: one that there is not.
    """
    keys = task_keys(config.sim, config.tasks)
    if not keys:
        raise ConfigError("no task to practise on: give --tasks")
    return keys


def make_policy(
    config: Config, spec: SimulatorSpec, privileged_dim: int | None = None, seed: int | None = None
) -> PostTrainable:
    """A new policy of the configuration's kind, with weights drawn from the seed.

    Args:
        config: whose `policy` and `seed` count.
        spec: what it will see, and how large its actions are.
        privileged_dim: numbers of privileged information in the demonstrations; None: there are no demonstrations.
        seed: another one.
    """
    make = kinds.get(config.policy.kind).make
    return policy_calls.require_made(make(config.policy, spec, config.seed if seed is None else seed, privileged_dim))


def language_of(config: Config) -> str:
    """The frozen model that the configuration's policies read instructions with; "none": they need none."""
    return kinds.get(config.policy.kind).language(config.policy)


def require_room(config: Config, folder: str | Path | None, *, supervised: bool = False) -> None:
    """Raise `DeviceTooSmall` unless the policy in a folder, or a new one, can be trained as configured on the GPU that
    the configuration wants; on a CPU nothing is required. It is not loaded for that."""
    free = free_on(config.device)
    if free is None:
        return
    if folder is None:
        place, kind = None, kinds.get(config.policy.kind)
    else:
        place, kind = placed(folder)
    central = config.rollout.inference == "central" or not config.rollout.workers
    demands = Demands(
        device_bytes=free,
        act_batch=0 if supervised or not central else max(1, config.rollout.workers) * config.rollout.slots,
        micro_batch=config.sft.largest_pass if supervised else config.learn.micro_batch,
        supervised=supervised,
        copies=2 if config.learn.kl_to_start and not supervised else 1,
    )
    kind.require_room(place, config.policy, demands)


@contextmanager
def computing(device: str, threads: int) -> Iterator[str]:
    """Within, torch computes with so many threads, and in full float32 on a GPU, so that act and log_prob agree.

    Torch's own settings are afterwards what they were before, however this ends.

    Args:
        device: "cpu" or "cuda".
        threads: of torch; sums depend on it.

    Returns:
        the device's name.

    Raises:
        ConfigError: neither "cpu" nor "cuda", or torch sees no GPU.
    """
    import torch

    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device: {device!r} is neither cpu nor cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: torch sees no CUDA device here (see `ript doctor`); use --device cpu")
    before, rounded = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield device
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.allow_tf32 = rounded


def make_env_pool(
    sim: SimOptions,
    rollout: RolloutConfig,
    policy: LikelihoodPolicy | None = None,
    cluster: ClusterConfig | None = None,
    factory: SimulatorFactory | None = None,
    tasks: Sequence[str] = (),
    learners: bool = False,
) -> EnvPool:
    """A pool of simulators with the policy in the loop, or, until it is given one to `use`, of simulators alone: here,
    or on the nodes of a cluster.

    Args:
        sim, rollout, cluster: settings.
        policy: see `make_pool`.
        factory: makes the simulators; by default those of `sim`.
        tasks: keys of those that there will be rollouts of, where they are known: workers that will not fit into
            memory with them are said beforehand.
        learners: there will be no rollouts, so that nodes need no workers.
    """
    make_simulator = factory or simulator_factory(sim)
    settings: dict[str, Any] = {
        "slots": rollout.slots,
        "inference": rollout.inference,
        "request_timeout": rollout.request_timeout,
        "max_retries": rollout.max_retries,
        "max_error_rate": rollout.max_error_rate,
        "loaded_tasks": rollout.loaded_tasks,
        "gather": rollout.gather,
        "fixed_batch": rollout.fixed_batch,
    }
    if cluster is None or not cluster.used:
        if warning := too_large(sim, tasks, rollout, capacity.memory().available):
            streams.say(warning)
        return make_pool(make_simulator, policy, workers=rollout.workers, **settings)
    from ript.rollout.cluster.node import Learner, Node  # needs Ray
    from ript.rollout.cluster.pool import make_cluster_pool
    from ript.rollout.cluster.starter import Size

    suite = suites.get(sim.suite)

    return make_cluster_pool(
        make_simulator,
        policy,
        address=cluster.address,
        size=Size(
            nodes=cluster.nodes,
            workers_per_node=cluster.workers_per_node,
            silence=cluster.silence,
            start=cluster.start_timeout,
            gpus_per_node=cluster.gpus_per_node,
            device=cluster.device,
            backend=cluster.sums_over,
        ),
        settings=settings,
        packages=() if learners else suite.packages,
        node=Learner if learners else Node,
        check=RENDERS if suite.draws and not learners else "",
    )


def make_update(learn: LearnConfig, pool: EnvPool) -> Callable[..., UpdateResult]:
    """What improves a policy: `learn.update.update`, in this process or by ranks on the nodes of the pool.

    Raises:
        ConfigError: more ranks than nodes, or a pool that has none.
    """
    if not learn.ranks:
        return update
    if not hasattr(pool, "work"):
        raise ConfigError("learn.ranks has no effect without a cluster, whose nodes are the ranks: give --cluster")
    made_with = {"learning_rate": learn.learning_rate, "weight_decay": learn.weight_decay}
    return Spread(cast(Machines, pool), 0 if learn.ranks == "auto" else learn.ranks, made_with)


def simulators_memory(sim: SimOptions, tasks: Sequence[str], loaded: int) -> int:
    """Bytes that a process needs for simulators of these tasks (keys), so many of which are loaded at a time; 0 where
    their suite does not say."""
    suite = suites.get(sim.suite)
    if suite.memory is None or not tasks:
        return 0
    return suite.memory(sim, [key.removeprefix(f"{suite.name}/") for key in tasks], loaded)


def too_large(sim: SimOptions, tasks: Sequence[str], rollout: RolloutConfig, available: int) -> str:
    """What to say where simulators of these tasks will not fit into so many bytes; empty where they should, as far as
    their suite can tell."""
    each, processes = simulators_memory(sim, tasks, rollout.loaded_tasks), max(1, rollout.workers)
    if processes * each <= available:
        return ""
    instead = f"--workers {fit}, or " if 0 < (fit := available // each) < rollout.workers else ""
    return (
        f"simulators of these tasks need about {each / GIB:.1f} GiB in each of {processes} processes, and "
        f"{available / GIB:.1f} GiB are available, so workers may be lost: give {instead}"
        "a smaller --rollout.loaded_tasks"
    )


@contextmanager
def learning_nodes(config: Config) -> Iterator[Machines | None]:
    """The nodes of a cluster for supervised training by ranks; None where this process learns alone."""
    if not config.by_ranks:
        yield None
        return
    with make_env_pool(config.sim, config.rollout, cluster=config.cluster, learners=True) as pool:
        yield cast(Machines, pool)


@contextmanager
def demonstrating(config: Config) -> Iterator[EnvPool | None]:
    """The nodes of a cluster with simulators that have experts; None where there is no cluster."""
    if not config.cluster.used:
        yield None
        return
    rollout = config.rollout.replaced(slots=1)
    factory = demonstrator_factory(config)
    with make_env_pool(config.sim, rollout, cluster=config.cluster, factory=factory) as pool:
        yield pool


def batch_settings(learn: LearnConfig) -> dict[str, Any]:
    """Keyword arguments of `learn.batch.make_batch` for this configuration."""
    return {
        "min_abs_advantage": learn.min_abs_advantage,
        "normalise_std": learn.normalise_std,
        "max_decisions": learn.max_decisions,
    }


def update_settings(learn: LearnConfig) -> dict[str, Any]:
    """Keyword arguments of `learn.update.update` for this configuration."""
    return {
        "epochs": learn.epochs,
        "minibatch_decisions": None if learn.minibatch_trajectories else learn.minibatch,
        "minibatch_trajectories": learn.minibatch_trajectories or None,
        "micro_batch": learn.micro_batch,
        "clip_low": learn.clip_low,
        "clip_high": learn.clip_high,
        "reduction": learn.reduction,
        "max_grad_norm": learn.max_grad_norm,
        "target_kl": learn.target_kl or None,
        "entropy_bonus": learn.entropy_bonus,
        "kl_to_start": learn.kl_to_start,
        "recompute": learn.recompute_log_prob,
        "threads": learn.threads,
    }
