"""What a cluster costs: its nodes beside a pool of as many workers on this machine, in turn, in one process."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Sequence
from typing import Any

from ript.build import computing, make_env_pool, make_policy, some_task_keys
from ript.config.sections import ClusterConfig, Config
from ript.core import hooks
from ript.core.errors import ConfigError, WorkerError
from ript.core.interfaces import EnvPool
from ript.core.metrics import values
from ript.core.options import replace
from ript.core.types import InitialState, Rollout, RolloutRequest, Status
from ript.report.tables import count
from ript.run.progress import status
from ript.run.states import InitialStates

ROUNDS = 4
"""Times that each of the two is measured, one after the other: other programs disturb both."""


def bench_cluster(config: Config, *, rollouts: int | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure whole rollouts, with random weights, on the cluster and on this machine.

    Args:
        config: recipe; `tasks`, `sim`, `policy`, `rollout` and `cluster` count.
        rollouts: of a round; by default two for each slot.
        rounds: of each of the two.

    Returns:
        the documented `ript bench rollout --cluster WHERE --json` document.
    """
    keys = some_task_keys(config)
    with computing("cpu", 1), make_env_pool(config.sim, config.rollout, cluster=config.cluster) as cluster:
        workers, nodes = int(getattr(cluster, "workers", 0)), len(getattr(cluster, "nodes", ()))
        if not workers:
            raise ConfigError("bench rollout --cluster: give --cluster local, auto or HOST:PORT")
        rollout = replace(config.rollout, workers=workers)
        with make_env_pool(config.sim, rollout, cluster=ClusterConfig()) as here:
            states = InitialStates(here, keys, config.seed)
            policy, _ = hooks.tuned(make_policy(config, states.spec), config.policy, None)  # records what is trained
            hooks.pretend_to_read(policy, [states.task(key).instruction for key in keys])
            each = rollouts or 2 * workers * rollout.slots
            practised = list(itertools.islice(states.training(0), each))
            seconds: dict[str, list[float]] = {"cluster": [], "local": []}
            steps = dict.fromkeys(seconds, 0)
            driver, done = 0.0, []
            for number in range(rounds + 1):  # the first is for starting up
                for name, pool in (("cluster", cluster), ("local", here))[:: 1 if number % 2 else -1]:
                    if not number:
                        pool.use(policy)
                    pool.set_policy(policy.weights(), number)
                    began, spent = time.perf_counter(), time.process_time()
                    done = _rollouts(pool, practised, number)
                    if number:
                        seconds[name].append(time.perf_counter() - began)
                        driver += (time.process_time() - spent) * (name == "cluster")
                        steps[name] += sum(r.env_steps for r in done)
                    if name == "cluster":
                        sample = done
                status(f"  round {number} of {rounds}")
            split = {k: v for k, v in values(cluster.timings()).items() if k in ("simulate", "render", "infer", "wait")}
            record = sample[0].whole()
    speed = {name: steps[name] / sum(found) for name, found in seconds.items()}
    request = RolloutRequest(initial_state=practised[0], index=0, seed=(0, 0))
    return {
        "env_steps_per_second": speed["cluster"],
        "local_env_steps_per_second": speed["local"],
        "ratio_to_local": speed["cluster"] / speed["local"],
        "nodes": nodes,
        "workers": workers,
        "rollouts": each,
        "rounds": rounds,
        "round_seconds": seconds,
        "driver_ms_per_rollout": 1e3 * driver / (rounds * each),
        "bytes": {
            "request": len(pickle.dumps(request)),
            "outcome": len(pickle.dumps(record.outcome())),
            "record": _size(record),
            "weights": sum(t.numel() * t.element_size() for t in policy.weights().values()),
        },
        "split": split,
    }


def _rollouts(pool: EnvPool, states: Sequence[InitialState], number: int) -> list[Rollout]:
    requests = (RolloutRequest(initial_state=state, index=i, seed=(number,)) for i, state in enumerate(states))
    done = list(pool.run(requests))
    if failed := [rollout for rollout in done if rollout.status is Status.ERROR]:
        raise WorkerError(f"a rollout ended in ERROR, so its time does not count:\n{failed[0].error}")
    return done


def _size(rollout: Rollout) -> int:
    """Bytes of its arrays."""
    arrays = [rollout.sample, rollout.log_prob, rollout.mask, *(rollout.inputs or {}).values()]
    return sum(array.nbytes for array in (*arrays, *(rollout.rollout_inputs or {}).values()) if array is not None)


def describe_cluster(found: dict[str, Any]) -> str:
    """In words."""
    size = {name: f"{number / 1e3:,.1f} kB" for name, number in found["bytes"].items()}
    return "\n".join(
        [
            f"cluster    {found['env_steps_per_second']:,.0f} env-steps a second, {count(found['workers'], 'worker')}",
            f"local      {found['local_env_steps_per_second']:,.0f} with as many workers in one pool",
            f"ratio      {found['ratio_to_local']:.2f} ({found['rounds']} rounds of {found['rollouts']} rollouts each)",
            f"driver     {found['driver_ms_per_rollout']:.2f} ms of processor a rollout",
            f"bytes      request {size['request']}, outcome {size['outcome']}; stays on the node: record "
            f"{size['record']}; once an iteration to each node: weights {size['weights']}",
        ]
    )
