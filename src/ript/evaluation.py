"""Success rates on fixed initial states, with intervals; errors are not failures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ript.build import make_env_pool, task_keys
from ript.config.sections import MOST_TRIALS, ClusterConfig, RolloutConfig
from ript.core import arguments, hooks
from ript.core.errors import ConfigError, SimulatorError
from ript.core.interfaces import EnvPool, PostTrainable
from ript.core.intervals import wilson
from ript.core.options import replace
from ript.core.types import EvalResult, InitialState, Rollout, RolloutRequest, Status, Task, TaskResult
from ript.learn.batch import UpdateBatch
from ript.policies.loading import load_policy, origin_of, require_policy, require_suite
from ript.rollout.reasons import in_a_line, reasons
from ript.run.cards import horizon_in
from ript.run.progress import progress, status
from ript.run.settings import another_horizon
from ript.run.states import InitialStates
from ript.sims.seen import by_protocol, sim_options_of

SEED_TAG = 0x6576616C
"""Keeps the generators of evaluation apart from those of training."""
IN_A_ROW = 8
"""States of a task that are measured before the next task's: workers need not load another task's model for each, and
a task that gives errors alone is not all that the pool sees."""


def tally(statuses: Sequence[Status]) -> TaskResult:
    """Successes over valid trials; errors apart."""
    successes, errors = statuses.count(Status.SUCCESS), statuses.count(Status.ERROR)
    trials = len(statuses) - errors
    return TaskResult(successes=successes, trials=trials, errors=errors, interval=wilson(successes, trials))


def run_evaluation(
    pool: EnvPool,
    states: Mapping[Task, Sequence[InitialState]],
    *,
    name: str,
    seed: int,
    modes: Sequence[str] = ("sampled",),
    temperature: float | None = None,
    videos: int = 0,
) -> dict[str, EvalResult]:
    """Measure the pool's present policy, one rollout from each state and mode, all in one stream.

    Args:
        pool: holds the policy.
        states: initial states of each task. One that is there several times is one trial.
        name: of the policy, for the record.
        seed: of sampling.
        modes: "sampled", "greedy" or both.
        temperature: of sampled mode, for the record; None for a policy that has none.
        videos: how many of each task's first states become videos, in the first mode.

    Returns:
        mode -> result.
    """
    began = time.perf_counter()
    states = {task: list({state.id: state for state in group}.values()) for task, group in states.items()}
    # The rollout's index tells the modes apart: 0 for the first, 1 for the second.
    requests = [
        RolloutRequest(
            initial_state=state,
            index=m,
            seed=(seed, SEED_TAG),
            greedy=mode == "greedy",
            record=False,
            video=m == 0 and i < videos,
        )
        for start in range(0, max(map(len, states.values()), default=0), IN_A_ROW)
        for group in states.values()
        for i, state in enumerate(group[start : start + IN_A_ROW], start)
        for m, mode in enumerate(modes)
    ]
    done: dict[tuple[str, int], Rollout] = {}
    bar: progress[None]
    with progress(len(requests), f"evaluating ({' and '.join(modes)})") as bar:
        for rollout in pool.run(iter(requests)):
            done[rollout.initial_state_id, rollout.index] = rollout
            bar.advance()
    seconds = time.perf_counter() - began
    results = {}
    for m, mode in enumerate(modes):
        rollouts = {task: [done[s.id, m] for s in group] for task, group in states.items()}
        everything = [rollout for rs in rollouts.values() for rollout in rs]
        results[mode] = EvalResult(
            policy=name,
            seed=seed,
            mode=mode if mode == "greedy" or temperature is None else f"sampled (temperature {temperature:g})",
            tasks={task.name: tally([r.status for r in rs]) for task, rs in rollouts.items()},
            total=tally([r.status for r in everything]),
            per_state={t.name: [(r.initial_state_id, r.status.value) for r in rs] for t, rs in rollouts.items()},
            horizon={task.name: task.horizon for task in rollouts},
            videos=[
                (t.name, r.initial_state_id, r.status.value, r.frames)
                for t, rs in rollouts.items()
                for r in rs
                if r.frames is not None
            ],
            reasons=reasons(everything),
            env_steps=sum(r.env_steps for r in everything),
            seconds=seconds,
        )
        say_errors(f"evaluating ({mode})", everything)
    return results


def say_errors(during: str, rollouts: Sequence[Rollout]) -> None:
    """Say on the screen how many of these rollouts ended in ERROR, and why; nothing when none did."""
    if said := in_a_line(rollouts):
        status(f"  {during}: {said}")


def own_decisions(
    pool: EnvPool, policy: PostTrainable, states: Sequence[InitialState], *, horizon: int | None, seed: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(inputs, sample), `[N, ...]` both, of decisions in one rollout from each state by this policy, which the pool
    then has.

    From a state that is there several times there are as many different rollouts.
    """
    times: Counter[str] = Counter()
    requests = []
    for state in states:
        requests.append(
            RolloutRequest(initial_state=state, index=times[state.id], seed=(seed, SEED_TAG), horizon=horizon)
        )
        times[state.id] += 1
    pool.use(policy)
    done = sorted(pool.run(iter(requests)), key=lambda r: (r.initial_state_id, r.index))
    kept = [rollout for rollout in done if rollout.recorded]
    say_errors("preparing", done)
    if not kept:
        raise SimulatorError(f"no rollout to prepare post-training from: {done[0].error}")
    batch = UpdateBatch.of([rollout.whole() for rollout in kept])
    rows = batch.take(torch.arange(len(batch)))
    return dict(rows.inputs), rows.sample


def named_policy(policy: str | Path | PostTrainable) -> tuple[str, PostTrainable]:
    """The policy, and what its results are said to be of: one on the hub by its commit."""
    require_policy(policy)
    if not isinstance(policy, str | Path):
        return "policy", policy
    origin = origin_of(policy)
    require_suite(origin.place)
    return origin.place, load_policy(origin.place)


def evaluate(
    policy: str | Path | PostTrainable,
    tasks: Sequence[str] | str,
    *,
    trials: int = 100,
    seed: int = 0,
    greedy: bool = False,
    temperature: float | None = None,
    videos: int = 0,
    horizon: int | None = None,
    state_noise: float = 0.0,
    protocol: str = "",
    rollout: RolloutConfig | None = None,
    cluster: ClusterConfig | None = None,
) -> EvalResult:
    """Success rate of a policy on test initial states: no policy was trained on them or chosen by them.

    Args:
        policy: a policy folder, a name on the hub (see `load_policy`), or a policy.
        tasks: names such as "drawer-open-v3"; or one of them.
        trials: states per task, the first of the test split of `seed`; fewer where it has no more, which is told.
        seed: of states and sampling.
        greedy: take the most likely sample.
        temperature: of sampling; the policy's own by default.
        videos: how many rollouts per task are kept as frames.
        horizon: environment steps until a rollout counts as a failure; by default that which the policy was trained or
            measured with (its card says it), or else the task's own.
        state_noise: standard deviation of Gaussian noise on where the states' objects stand, metres. The same states
            for every policy.
        protocol: of the suite, by name: its horizon, and how it begins episodes.
        rollout: workers and slots.
        cluster: whose nodes it is done on; None: this machine.

    Raises:
        ConfigError, UnknownNameError, PolicyError: what was given cannot work.
        SimulatorError: objects cannot be moved that far.
    """
    trials, videos = arguments.whole("trials", trials, 1, MOST_TRIALS), arguments.whole("videos", videos, 0)
    seed, names = arguments.seed("seed", seed), arguments.words("tasks", tasks)
    temperature = None if temperature is None else arguments.number("temperature", temperature)
    horizon = None if horizon is None else arguments.whole("horizon", horizon, 1)
    state_noise = arguments.number("state_noise", state_noise, 0, 1)
    arguments.instance("protocol", protocol, str, "the name of one of the suite's")
    if rollout is not None:
        arguments.instance("rollout", rollout, RolloutConfig, "settings of a pool")
    if cluster is not None:
        arguments.instance("cluster", cluster, ClusterConfig, "settings of a cluster")
    if not names:
        raise ConfigError("no task to evaluate on: name at least one")
    if arguments.truth("greedy", greedy) and temperature is not None:
        raise ConfigError(f"temperature = {temperature:g} has no effect in greedy mode: leave one of them out")
    name, loaded = named_policy(policy)
    if temperature is not None:
        loaded = hooks.at_temperature(loaded, temperature)
    sim = sim_options_of(loaded, horizon or horizon_in(loaded.card))
    if protocol:
        if horizon is not None:
            raise ConfigError(f"protocol {protocol} says the horizon: leave one of them out")
        sim = by_protocol(sim, protocol)
    if line := another_horizon(sim.horizon, [horizon_in(loaded.card)], "the policy was trained or measured with"):
        status(line)
    keys = task_keys(sim, names)
    with make_env_pool(sim, rollout or RolloutConfig(), cluster=cluster, tasks=keys) as pool:
        states = InitialStates(pool, keys, seed).measured("test", trials, seed, state_noise)
        hooks.read(loaded, [task.instruction for task in states])  # once here, not once in each worker
        pool.use(loaded)
        mode = "greedy" if greedy else "sampled"
        results = run_evaluation(
            pool,
            states,
            name=name,
            seed=seed,
            modes=(mode,),
            temperature=hooks.temperature_of(loaded),
            videos=videos,
        )
    return replace(results[mode], state_noise=state_noise)
