"""THE LOOP of interactive post-training (RIPT-VLA, Tan et al. 2025): roll out, score, compare, update.

An iteration: evaluate if due -> collect groups of rollouts from the same initial states (dynamic sampling) ->
leave-one-out advantages -> a few epochs of the clipped objective -> log -> checkpoint.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ript.build import Contexts, for_post_training, load_policy, make_env_pool, make_policy, task_keys
from ript.config import Config
from ript.errors import ConfigError, NoSignalError, RunError
from ript.evaluate import choose_temperature, run_evaluation
from ript.interfaces import EnvPool
from ript.learn.batch import make_batch
from ript.learn.update import AdaptiveRate, make_optimiser, update
from ript.metrics import values
from ript.policies.quest.policy import QuestPolicy
from ript.report.progress import status
from ript.report.run import RunFolder, read_config
from ript.report.trackers import make_trackers
from ript.rollout.sampling import Collection, collect_groups
from ript.train_sft import babble
from ript.types import EvalResult, InitialState, Task

CALIBRATION = 24
"""Training states whose rollouts choose the sampling temperature."""

PATIENCE = 3
"""Iterations in a row in which every rollout failed, after which a run gives up."""
IN_MEMORY = "a policy in memory"
"""What a run folder records as its start when that was not a folder."""


@dataclass(frozen=True, kw_only=True)
class RLResult:
    """What a post-training run came to.

    Attributes:
        policy: folder of the best policy by validation success.
        folder: run folder.
        before, after: mode -> evaluation on the same held-out states.
        iterations: done.
        rollouts, env_steps: spent on training.
        seconds: stage -> wall clock.
        reason: why it ended.
    """

    policy: Path
    folder: Path
    before: Mapping[str, EvalResult]
    after: Mapping[str, EvalResult]
    iterations: int
    rollouts: int
    env_steps: int
    seconds: Mapping[str, float]
    reason: str


@dataclass(kw_only=True)
class Progress:
    """What a run has come to so far; goes into every checkpoint."""

    iteration: int = 0
    position: int = 0
    rollouts: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    hopeless: int = 0
    rate_scale: float = 1.0
    best_success: float = -1.0
    best_iteration: int = 0
    solved: bool = False


def train_rl(
    config: Config, policy: str | Path | QuestPolicy | None, out: str | Path, *, resume: bool = False
) -> RLResult:
    """Post-train a policy by interaction.

    Args:
        config: recipe; `tasks` are practised on.
        policy: folder or policy to start from (one in memory is trained in place); None starts from weights drawn from
            the seed.
        out: run folder; the result is written to `out/policy`.
        resume: go on with an interrupted run in `out` (its own config and policy are used).

    Raises:
        ConfigError, UnknownNameError, PolicyError: what was given cannot work.
        NoSignalError: every rollout failed for several iterations in a row.
        RunError: `out` is in use, holds another run, or cannot be resumed.
    """
    if resume:
        document = read_config(out)
        if document["kind"] != "rl":
            raise RunError(f"{out} is a run of supervised training: go on with `ript sft --resume {out}`")
        config = Config.from_json(document["config"]["recipe_config"])
        policy = _recorded_start(Path(out), document["config"])
    keys = task_keys(config.sim, config.tasks)
    if not keys:
        raise ConfigError("no task to practise on: give --tasks")
    with Contexts(config.sim, keys, config.seed) as contexts:
        start = _start(config, policy, contexts, keys[0])
        learner = for_post_training(start, config.policy)
        learner.check_simulator(contexts.simulator(keys[0]).spec)
        learner.embed([contexts.simulator(key).task.instruction for key in keys])  # once here, not in each worker
        if config.policy.entropy:
            kept = resume and (Path(out) / "start").exists()  # as chosen then
            temperature = start.config.temperature if kept else _temperature(config, learner, contexts)
            learner = learner.configured(temperature=temperature)
        with RunFolder.open(out) if resume else RunFolder.create(out, _document(config, learner, policy)) as run:
            if not (run.path / "start").exists():
                learner.save_pretrained(run.path / "start")
            pool = make_env_pool(config.sim, config.rollout, learner)
            try:
                return _Run(config, learner, contexts, run, pool).go()
            finally:
                pool.close()


class _Run:
    """The loop and what it holds."""

    def __init__(self, config: Config, policy: QuestPolicy, contexts: Contexts, run: RunFolder, pool: EnvPool):
        self.config, self.policy, self.contexts, self.run, self.pool = config, policy, contexts, run, pool
        learn = config.learn
        self.optimiser = make_optimiser(policy, learning_rate=learn.learning_rate, weight_decay=learn.weight_decay)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.at = Progress()
        names = [] if config.tracker == "none" else [config.tracker]
        self.trackers = make_trackers(names, run.path, config.to_json())
        self.seconds = {"evaluate before": 0.0, "post-train": 0.0, "evaluate after": 0.0}
        e = config.eval
        self.test = contexts.held_out(e.trials, seed=e.seed)  # measured before and after
        self.validation = contexts.held_out(e.every_trials, e.trials, e.seed) if e.every else {}  # chooses the best

    def go(self) -> RLResult:
        torch.set_num_threads(self.config.learn.threads)
        self.restore()
        before = self.recorded() if self.at.iteration else self.measure("before")
        began = time.perf_counter() - self.at.seconds
        reason = f"all {self.config.iterations} iterations done"
        while self.at.iteration < self.config.iterations and not self.at.solved:
            self.validate()
            collection = self.collect()
            metrics = self.learn(collection)
            self.count(collection, time.perf_counter() - began)
            self.log(collection, metrics)
            self.save()
        if self.at.solved:
            reason = f"solved: {self.config.stop_at:.0%} of an iteration's rollouts succeeded"
        self.validate(last=True)
        self.choose_best()
        self.seconds["post-train"] = time.perf_counter() - began
        after = self.measure("after")
        self.write_policy(before, after)
        self.run.finish(reason, policy_iteration=self.at.best_iteration, seconds=self.seconds)
        for tracker in self.trackers:
            tracker.close()
        return RLResult(
            policy=self.run.policy, folder=self.run.path, before=before, after=after, iterations=self.at.iteration,
            rollouts=self.at.rollouts, env_steps=self.at.env_steps, seconds=self.seconds, reason=reason,
        )  # fmt: skip

    # ------------------------------------------------------------------ the steps of an iteration

    def collect(self) -> Collection:
        """Rollouts from the same initial states, K at a time, until enough groups have a signal."""
        s = self.config.sampling
        self.pool.set_policy(self.policy.weights(), self.at.iteration)
        self.pool.timings()  # from here on
        self.clock = time.perf_counter()
        return collect_groups(
            self.pool,
            self.contexts.training(self.at.position, s.contexts),
            group_size=s.group_size,
            quota=s.groups,
            max_attempts=s.max_attempts,
            seed=(self.config.seed, self.at.iteration),
            dynamic=s.dynamic,
            horizon=s.horizon or None,
        )

    def learn(self, collection: Collection) -> dict[str, float]:
        """Advantages and the clipped objective; returns the update's metrics and where the time went."""
        learn = self.config.learn
        collected = time.perf_counter()
        spent = values(self.pool.timings())
        times = {f"time/{k}": spent[k] for k in ("simulate", "render", "infer", "wait")}  # summed over workers
        times |= {"time/rollout": collected - self.clock, "rollout/worker_restarts": spent["worker_restarts"]}
        success = values(collection.metrics)["success"]
        self.at.hopeless = self.at.hopeless + 1 if success == 0 else 0
        self.at.solved = success >= self.config.stop_at
        if self.at.hopeless >= PATIENCE:
            raise NoSignalError(
                f"every rollout failed in {PATIENCE} iterations in a row: there is nothing to learn from. Look at the "
                f"videos in {self.run.path / 'videos'}; more demonstrations or a higher policy.temperature may help"
            )
        if not any(group.has_signal for group in collection.groups):
            return times | {"time/update": 0.0}
        batch = make_batch(
            collection.groups, min_abs_advantage=learn.min_abs_advantage, normalise_std=learn.normalise_std,
            max_decisions=learn.max_decisions, generator=self.generator,
        )  # fmt: skip
        rate = AdaptiveRate(target_kl=learn.adapt_kl or 1.0, scale=self.at.rate_scale)
        rate.apply(self.optimiser)
        result = update(
            self.policy,
            self.optimiser,
            batch,
            epochs=learn.epochs,
            generator=self.generator,
            minibatch_decisions=learn.minibatch,
            micro_batch=learn.micro_batch,
            clip_low=learn.clip_low,
            clip_high=learn.clip_high,
            reduction=learn.reduction,
            max_grad_norm=learn.max_grad_norm,
            target_kl=learn.target_kl or None,
            entropy_bonus=learn.entropy_bonus,
        )
        if learn.adapt_kl:
            self.at.rate_scale = rate.after(result.kl_last).scale
        metrics = {f"update/{k}": v for k, v in values(result.metrics).items()}
        return metrics | times | {"time/update": time.perf_counter() - collected, "update/decisions": float(len(batch))}

    def count(self, collection: Collection, seconds: float) -> None:
        spent = values(collection.metrics)
        self.at.iteration += 1
        self.at.position += collection.position
        self.at.rollouts += int(spent["rollouts"])
        self.at.env_steps += int(spent["env_steps"])
        self.at.seconds = seconds

    def log(self, collection: Collection, metrics: dict[str, float]) -> None:
        sampled = {f"rollout/{k}": v for k, v in values(collection.metrics).items()}
        totals = {
            "total/rollouts": self.at.rollouts,
            "total/env_steps": self.at.env_steps,
            "total/seconds": self.at.seconds,
        }
        row: dict[str, float] = sampled | metrics | totals
        row["time/total"] = time.perf_counter() - self.clock
        self.run.log(self.at.iteration, row)
        for tracker in self.trackers:
            tracker.log(self.at.iteration, row)
        kl, clipped, entropy = (row.get(f"update/{k}", math.nan) for k in ("kl_last", "clip_fraction", "entropy"))
        status(
            f"  iteration {self.at.iteration:2d}: success {row['rollout/success']:.2f}, "
            f"{row['rollout/accepted']:.0f}/{row['rollout/attempted']:.0f} groups with signal, "
            f"kl {kl:.3f}, clipped {clipped:.2f}, entropy {entropy:.2f}, "
            f"{row['time/rollout']:.1f} s rollouts + {row['time/update']:.1f} s update"
        )

    # ------------------------------------------------------------------ evaluation, choice and record

    def measure(self, stage: str) -> dict[str, EvalResult]:
        """Both modes on the test states, with videos; not part of training."""
        began = time.perf_counter()
        e = self.config.eval
        iteration = 0 if stage == "before" else self.at.iteration
        results = self._evaluate(
            self.test, ("sampled", "greedy") if e.mode == "sampled" else ("greedy", "sampled"), e.videos
        )
        for result in results.values():
            self._log_eval(iteration, result, "held-out")
        self.run.save_videos("before" if stage == "before" else "after", results[e.mode].videos)
        self.seconds[f"evaluate {stage}"] = time.perf_counter() - began
        line = ", ".join(f"{mode} {r.total.successes}/{r.total.trials}" for mode, r in results.items())
        status(f"  {stage} post-training, on held-out states: {line}")
        return results

    def recorded(self) -> dict[str, EvalResult]:
        """The evaluation from before post-training, of a run that goes on."""
        rows = [row for row in self.run.evals() if row["iteration"] == 0 and row["states"] == "held-out"]
        return {row["mode"].split()[0]: EvalResult.from_json(row["eval"], row["per_state"]) for row in rows}

    def validate(self, last: bool = False) -> None:
        """Every few iterations: success on validation states; the best policy so far is kept."""
        every = self.config.eval.every
        if not every or (self.at.iteration % every and not last) or (self.at.iteration == 0 and not last):
            return
        result = self._evaluate(self.validation, (self.config.eval.mode,))[self.config.eval.mode]
        self._log_eval(self.at.iteration, result, "validation")
        status(f"  iteration {self.at.iteration}: validation {result.total.successes}/{result.total.trials}")
        if result.total.rate >= self.at.best_success:
            self.at.best_success, self.at.best_iteration = result.total.rate, self.at.iteration
            with self.run.replace(self.run.best) as folder:
                self.policy.save_pretrained(folder)

    def choose_best(self) -> None:
        """The policy with the highest validation success; the last one without validation."""
        if self.at.best_success >= 0 and self.at.best_iteration != self.at.iteration:
            self.policy.load_weights(load_policy(self.run.best).weights())
        else:
            self.at.best_iteration = self.at.iteration

    def write_policy(self, before: Mapping[str, EvalResult], after: Mapping[str, EvalResult]) -> None:
        measured = {
            f"{stage}, {mode}": f"{r.total.successes}/{r.total.trials} "
            f"({100 * r.total.interval[0]:.0f}-{100 * r.total.interval[1]:.0f} %)"
            for stage, results in (("before", before), ("after", after)) for mode, r in results.items()
        }  # fmt: skip
        self.policy.card["interactive post-training"] = {
            "recipe": self.config.recipe, "tasks": ", ".join(self.config.tasks), "seed": self.config.seed,
            "iteration": self.at.best_iteration, "rollouts": self.at.rollouts, "environment steps": self.at.env_steps,
        }  # fmt: skip
        self.policy.card["success on held-out initial states, with Wilson 95 % intervals"] = measured
        with self.run.replace(self.run.policy) as folder:
            self.policy.save_pretrained(folder)

    def _evaluate(
        self, states: Mapping[Task, list[InitialState]], modes: tuple[str, ...], videos: int = 0
    ) -> dict[str, EvalResult]:
        self.pool.set_policy(self.policy.weights(), self.at.iteration)
        return run_evaluation(
            self.pool, states, name=str(self.run.path), seed=self.config.eval.seed, modes=modes,
            temperature=self.policy.config.temperature, videos=videos,
        )  # fmt: skip

    def _log_eval(self, iteration: int, result: EvalResult, states: str) -> None:
        at = self.at
        self.run.log_eval(
            iteration, result, rollouts=at.rollouts, env_steps=at.env_steps, seconds=at.seconds, states=states
        )

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        self.run.save_checkpoint(
            self.at.iteration,
            {
                "weights": self.policy.weights(),
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                "progress": asdict(self.at),
            },
        )

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = self.run.load_checkpoint()
        if found is None:
            self.save()
            return
        self.policy.load_weights(found.state["weights"])
        self.optimiser.load_state_dict(found.state["optimiser"])
        self.generator.set_state(found.state["generator"])
        self.at = replace(self.at, **found.state["progress"])
        status(f"  going on from iteration {self.at.iteration}")


def _start(config: Config, policy: str | Path | QuestPolicy | None, contexts: Contexts, key: str) -> QuestPolicy:
    if policy is None:
        fresh = make_policy(config, contexts.simulator(key).spec, 0)
        babble(fresh, config.seed)
        return fresh
    return policy if isinstance(policy, QuestPolicy) else load_policy(policy)


def _temperature(config: Config, policy: QuestPolicy, contexts: Contexts) -> float:
    states = list(itertools.islice(contexts.training(0, config.sampling.contexts), CALIBRATION))
    horizon, entropy = config.sampling.horizon or None, config.policy.entropy
    temperature = choose_temperature(policy, config.sim, states, entropy=entropy, horizon=horizon, seed=config.seed)
    status(f"  temperature {temperature:g}, for an entropy of {entropy:g} nats a token")
    return temperature


def _recorded_start(out: Path, config: Mapping[str, Any]) -> QuestPolicy | str | None:
    """What an interrupted run started from; one killed before it had kept a copy starts from the original again."""
    if (out / "start").exists():
        return load_policy(out / "start")
    if config["start"] == IN_MEMORY:
        raise RunError(f"{out} was stopped before it kept the policy that it was given: start again with another --out")
    return config["start"]


def _document(config: Config, policy: QuestPolicy, start: str | Path | QuestPolicy | None) -> dict[str, Any]:
    """What the run folder records as its configuration."""
    notes = []
    if policy.config.privileged_dim:
        notes.append(
            "Pre-training used an auxiliary loss on object positions from the simulator; acting never sees them."
        )
    if policy.config.sampling == "published":
        notes.append("Published sampling: draws from the top k, optimises the full softmax (a known mismatch).")
    if config.sim.arm == "hidden":
        notes.append("The robot's arm is not drawn.")
    origin = IN_MEMORY if isinstance(start, QuestPolicy) else None if start is None else str(Path(start).absolute())
    return {"recipe_config": config.to_json(), "policy": policy.config.to_json(), "start": origin, "notes": notes}
