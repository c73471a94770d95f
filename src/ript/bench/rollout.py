"""How fast are rollouts, beside the stock environment and beside what this machine could do at best?

One run measures three things on the same machine, one after the other:

ours    Whole rollouts as in training: pictures at each decision, a policy of size "small" in the loop (random weights,
        sampled mode: what it does matters little for speed), N worker processes, resets included. A first round that
        builds simulators and renderers is left out.
stock   N processes at once with one thread each, as existing systems do it: the suite's own stock environment
        (`gymnasium.make("Meta-World/MT1")`, LIBERO's `OffScreenRenderEnv`), one `step` and its default pictures at the
        same size for each environment step, the same policy on a batch of one when it looks (every chunk), a reset per
        rollout. It is slow, so it runs for fewer steps: the median of each part, spread over a rollout of full length.
limit   Every part of the same rollouts alone, at its best, on one core: the actions of some of them replayed without
        looking (physics and success check), resets without looking, looks, and the policy at the batch size that suits
        it best. Summed for the numbers of steps, resets, looks and decisions that were counted, divided by the number
        of cores in use. No time for handing work around: what a perfect machinery would reach.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from ript.build import computing, horizons, make_env_pool, make_policy, simulator_factory, some_task_keys
from ript.config.sections import Config
from ript.core import capacity, children, hooks
from ript.core.errors import ConfigError, WorkerError
from ript.core.interfaces import Simulator, StockEnvironment
from ript.core.metrics import Metrics, values
from ript.core.options import SimOptions
from ript.core.registry import suites
from ript.core.simulators import close
from ript.core.types import InitialState, Observation, Rollout, RolloutRequest, Status
from ript.policies.quest.options import QuestOptions
from ript.policies.quest.policy import QuestPolicy
from ript.report.tables import count
from ript.run.progress import progress, status
from ript.run.states import InitialStates

REPLAYED = 6
"""Rollouts whose parts are timed alone."""
BATCHES = (16, 32, 64, 128)
REPEATS = 8
RAW = 100


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What the measured rollouts were, and took."""

    rollouts: int
    env_steps: int
    decisions: int
    seconds: float
    split: dict[str, float]
    kept: Sequence[tuple[InitialState, Rollout]]


def bench_rollout(config: Config, *, rollouts: int | None = None, stock_steps: int = 120) -> dict[str, Any]:
    """Measure; see the module's docstring. Takes one to two minutes on two cores.

    Args:
        config: recipe; `tasks`, `sim` and `rollout` count.
        rollouts: to measure; by default four for each slot.
        stock_steps: steps for which each stock environment is measured.

    Returns:
        the documented `ript bench rollout --json` document.

    Raises:
        ConfigError: a suite without a stock environment, or another kind of policy than QueST's.
    """
    _stock_maker(config)
    if not isinstance(config.policy, QuestOptions):
        raise ConfigError(
            f"the limit is known of QueST's parts only, not of {config.policy.kind}'s: give a recipe of QueST's; "
            f"`ript bench policy` measures policies of other kinds"
        )
    keys = some_task_keys(config)
    workers = config.rollout.workers
    with computing("cpu", 1):
        with make_env_pool(config.sim, config.rollout, cluster=config.cluster, tasks=keys) as pool:
            states = InitialStates(pool, keys, config.seed)
            policy = make_policy(config, states.spec)
            assert isinstance(policy, QuestPolicy)
            hooks.read(policy, [states.task(key).instruction for key in keys])
            status("ours: whole rollouts, after a round to warm up")
            ours = measure_ours(config, policy, states, rollouts or 4 * max(1, workers) * config.rollout.slots)
        status("the limit: each part alone on one core")
        limit = measure_limit(config, policy, ours)
    status("stock: one step and one render at a time")
    stock = measure_stock(config, policy, keys, max(1, workers), stock_steps)
    speed = ours.env_steps / ours.seconds
    return {
        "env_steps_per_second": speed,
        "ratio_to_stock": speed / stock["env_steps_per_second"],
        "ratio_to_limit": speed / limit["env_steps_per_second"],
        "split": ours.split,
        "workers": workers,
        "stock": stock,
        "limit": limit,
    }


def _stock_maker(config: Config) -> Callable[[str, Any, int], StockEnvironment]:
    maker = suites.get(config.sim.suite).stock
    if maker is None:
        having = [name for name, suite in suites.all()[0].items() if suite.stock is not None]
        raise ConfigError(
            f"suite {config.sim.suite} has no stock environment to measure beside ({', '.join(having)} have): "
            "use another recipe"
        )
    return maker


# ------------------------------------------------------------------ ours


def measure_ours(config: Config, policy: QuestPolicy, states: InitialStates, rollouts: int) -> Ours:
    """Whole rollouts with the states' pool. `split` is in shares of the workers' time; the rest is bookkeeping."""
    pool, practised = states.pool, list(itertools.islice(states.training(0), rollouts))
    processes = max(1, config.rollout.workers)
    pool.use(policy)
    warm_up = itertools.islice(itertools.cycle(practised), processes * config.rollout.slots)
    for _ in pool.run(_requests(warm_up, config.seed + 1)):
        pass
    pool.timings()
    by_id = {state.id: state for state in practised}
    kept: list[tuple[InitialState, Rollout]] = []
    env_steps = decisions = 0
    began = time.perf_counter()
    with progress[object](rollouts, "rollouts") as bar:
        for rollout in pool.run(_requests(practised, config.seed)):
            if rollout.status is Status.ERROR:
                raise WorkerError(f"a rollout ended in ERROR, so its time does not count:\n{rollout.error}")
            env_steps += rollout.env_steps
            decisions += rollout.decisions
            if len(kept) < REPLAYED:
                kept.append((by_id[rollout.initial_state_id], rollout.whole()))
            bar.advance()
    seconds = time.perf_counter() - began
    split = shares(pool.timings(), processes, seconds)
    return Ours(rollouts=rollouts, env_steps=env_steps, decisions=decisions, seconds=seconds, split=split, kept=kept)


def shares(spent: Metrics, processes: int, seconds: float) -> dict[str, float]:
    """Seconds of all workers -> shares of their time."""
    return {name: values(spent)[name] / (processes * seconds) for name in ("simulate", "render", "infer", "wait")}


def _requests(states: Iterator[InitialState] | Sequence[InitialState], seed: int) -> Iterator[RolloutRequest]:
    return (RolloutRequest(initial_state=state, index=i, seed=(seed,)) for i, state in enumerate(states))


# ------------------------------------------------------------------ the limit


def measure_limit(config: Config, policy: QuestPolicy, ours: Ours) -> dict[str, Any]:
    """Each part alone on one core, and what they sum to for the rollouts of `ours`."""
    factory = simulator_factory(config.sim)
    best = {"step": np.inf, "reset": np.inf, "look": np.inf}
    simulators: dict[str, Simulator] = {}
    looks: list[Observation] = []
    chunks = [(state, decoded(policy, rollout)) for state, rollout in ours.kept]
    for _ in range(REPEATS):
        spent = {"step": 0.0, "reset": 0.0, "look": 0.0}
        counted = {"step": 0, "reset": 0, "look": 0}
        for state, actions in chunks:
            if state.task.key not in simulators:
                simulators[state.task.key] = factory(state.task.key)
            _time_parts(simulators[state.task.key], state, actions, spent, counted, looks)
        best = {name: min(best[name], spent[name] / counted[name]) for name in best}
    decision, batch = best_inference(policy, looks)
    raw = raw_step_seconds(config, next(iter(simulators)))
    for sim in simulators.values():
        close(sim)
    return limit_of(config, ours, best, decision=decision, batch=batch, raw=raw)


def limit_of(
    config: Config, ours: Ours, best: dict[str, float], *, decision: float, batch: int, raw: float
) -> dict[str, Any]:
    """The limit from the seconds of each part: `best` of a "step", "reset" and "look", and of a `decision`."""
    cores = max(1, min(config.rollout.workers, capacity.cores().usable))
    parts = {
        "simulate": ours.env_steps * best["step"] + ours.rollouts * best["reset"],
        "render": ours.decisions * best["look"],
        "infer": ours.decisions * decision,
    }
    return {
        "env_steps_per_second": ours.env_steps * cores / sum(parts.values()),
        "cores": cores,
        "seconds_on_one_core": parts,
        "seconds_per_step": best["step"],
        "seconds_per_raw_step": raw,
        "seconds_per_reset": best["reset"],
        "seconds_per_look": best["look"],
        "seconds_per_decision": decision,
        "batch": batch,
        "rollouts": ours.rollouts,
        "env_steps": ours.env_steps,
        "decisions": ours.decisions,
        "seconds": ours.seconds,
    }


def decoded(policy: QuestPolicy, rollout: Rollout) -> np.ndarray:
    """The actions that the policy sent to the simulator: float32 `[D, H, A]`."""
    assert rollout.sample is not None
    with torch.no_grad():
        actions = policy.autoencoder.decode(torch.from_numpy(rollout.sample))
    return actions[:, : policy.config.execute].clamp(-1, 1).numpy()


def _time_parts(
    sim: Simulator,
    state: InitialState,
    actions: np.ndarray,
    spent: dict[str, float],
    counted: dict[str, int],
    looks: list[Observation],
) -> None:
    """Add the seconds of one replayed rollout, part by part; looks are taken at its start and at its end."""

    def look(times: int = 8) -> None:
        began = time.perf_counter()
        looks.extend(sim.observe() for _ in range(times))
        spent["look"] += time.perf_counter() - began
        counted["look"] += times

    began, rendered = time.perf_counter(), sim.seconds["render"]
    looks.append(sim.reset(state))
    spent["reset"] += time.perf_counter() - began - (sim.seconds["render"] - rendered)
    counted["reset"] += 1
    look()
    began = time.perf_counter()
    counted["step"] += sum(sim.step_chunk(chunk).env_steps for chunk in actions)
    spent["step"] += time.perf_counter() - began
    look()


def best_inference(policy: QuestPolicy, looks: Sequence[Observation]) -> tuple[float, int]:
    """(seconds per decision, batch size) where they are least."""
    found = []
    for size in BATCHES:
        batch = Observation.concatenate(list(itertools.islice(itertools.cycle(looks), size)))
        generators = [np.random.default_rng(i) for i in range(size)]
        seconds = _best_of(REPEATS, lambda batch=batch, generators=generators: policy.act(batch, generators))  # type: ignore[misc]
        found.append((seconds / size, size))
    return min(found)


def raw_step_seconds(config: Config, key: str) -> float:
    """Seconds of the physics alone in an environment step, after a reset without actions: in a process of its own, for
    stock environments end OpenGL for all."""
    child = children.start(raw_worker, _stock_maker(config), key, config.sim, config.seed, preload=("torch",))
    try:
        return _receive(child.connection)
    finally:
        child.connection.close()
        child.join(10)
        child.kill()


def raw_worker(
    pipe: Connection, make: Callable[[str, Any, int], StockEnvironment], key: str, options: SimOptions, seed: int
) -> None:
    """Send the seconds of `raw_step_seconds`."""
    try:
        warnings.simplefilter("ignore")  # gymnasium's checker, of observation bounds
        stock = make(key, options, seed)
        stock.reset()

        def physics() -> None:
            for _ in range(RAW):
                stock.physics()

        pipe.send(_best_of(REPEATS, physics) / RAW)
        stock.close()
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _best_of(repeats: int, work: Callable[[], object]) -> float:
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


# ------------------------------------------------------------------ stock


def measure_stock(
    config: Config, policy: QuestPolicy, keys: Sequence[str], processes: int, steps: int
) -> dict[str, Any]:
    """The stock environment in `processes` processes at once; tasks are dealt out in turn."""
    started: list[children.Child] = []
    try:
        for i in range(processes):
            arguments = (_stock_maker(config), keys[i % len(keys)], config.sim, policy, steps, config.seed + i)
            started.append(children.start(stock_worker, *arguments, preload=("torch",)))
        for child in started:
            _receive(child.connection)  # built and warm
        for child in started:
            child.connection.send("go")
        parts = [_receive(child.connection) for child in started]
    finally:
        for child in started:
            child.connection.close()
            child.join(10)
            child.kill()
    horizon = max(horizons(config.sim, some_task_keys(config)).values())
    looks = -(-horizon // policy.config.execute)
    speeds = [stock_speed(part, horizon, looks) for part in parts]
    mean = {f"seconds_per_{name}": float(np.mean([p[name] for p in parts])) for name in parts[0]}
    return {"env_steps_per_second": sum(speeds), "processes": processes, "steps": processes * steps, **mean}


def stock_speed(parts: dict[str, float], horizon: int, looks: int) -> float:
    """Environment steps per second of one process over a whole rollout."""
    return horizon / (parts["reset"] + horizon * (parts["step"] + parts["render"]) + looks * parts["decision"])


def _receive(pipe: Connection) -> Any:
    try:
        message = pipe.recv()
    except EOFError:
        raise WorkerError("a process with the stock environment died") from None
    if isinstance(message, Exception):
        raise WorkerError(f"the stock environment failed: {type(message).__name__}: {message}") from message
    return message


def stock_worker(
    pipe: Connection,
    make: Callable[[str, Any, int], StockEnvironment],
    key: str,
    options: SimOptions,
    policy: QuestPolicy,
    steps: int,
    seed: int,
) -> None:
    """One process: build, say so, wait for the others, measure, send seconds per part."""
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")  # gymnasium's checker, of observation bounds
        stock = make(key, options, seed)
        run_stock(stock, policy, 8, seed, resets=1)
        pipe.send("ready")
        pipe.recv()
        pipe.send(run_stock(stock, policy, steps, seed))
        stock.close()
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def run_stock(stock: StockEnvironment, policy: QuestPolicy, steps: int, seed: int, resets: int = 3) -> dict[str, float]:
    """Median seconds of "reset" (with its first picture), "step", "render" and "decision" over `steps` steps."""
    spent: dict[str, list[float]] = {"reset": [], "step": [], "render": [], "decision": []}
    generator = np.random.default_rng(seed)

    def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = work(*arguments)
        spent[name].append(time.perf_counter() - began)
        return result

    for _ in range(resets):
        timed("reset", stock.reset)
    chunk: list[np.ndarray] = []
    for _ in range(steps):
        if not chunk:
            chunk = list(timed("decision", policy.act, stock.observation(), [generator]).actions[0])
        over = timed("step", stock.step, chunk.pop(0))
        timed("render", stock.draw)
        if over:
            stock.reset()
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}


def describe_rollout(document: dict[str, Any]) -> str:
    """The numbers of `bench_rollout` for a person."""
    stock, limit = document["stock"], document["limit"]

    def ms(part: dict[str, Any], name: str) -> str:
        return f"{name} {1000 * part[f'seconds_per_{name}']:.3g} ms"

    share = ", ".join(f"{name} {100 * value:.0f} %" for name, value in document["split"].items())
    at_best = ", ".join(ms(limit, name) for name in ("step", "reset", "look", "decision"))
    at_stock = ", ".join(ms(stock, name) for name in ("step", "render", "decision", "reset"))
    counts = f"{limit['rollouts']} rollouts, {limit['env_steps']} steps, {limit['decisions']} decisions"
    counts += f" in {limit['seconds']:.1f} s"
    return f"""\
ours   {document["env_steps_per_second"]:7.0f} env-steps/s, {count(document["workers"], "worker")}: {counts}
       share of the workers' time: {share}
limit  {limit["env_steps_per_second"]:7.0f} env-steps/s on {limit["cores"]} cores: {at_best} (batch {limit["batch"]})
       MuJoCo's own steps alone: {1000 * limit["seconds_per_raw_step"]:.3g} ms
stock  {stock["env_steps_per_second"]:7.1f} env-steps/s, {stock["processes"]} processes: {at_stock}

{document["ratio_to_stock"]:.1f} times the stock environment, {100 * document["ratio_to_limit"]:.0f} % of the limit"""
