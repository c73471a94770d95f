"""THE LOOP of interactive post-training (RIPT-VLA, Tan et al. 2025): roll out, score, compare, update.

An iteration: evaluate if due -> collect groups of rollouts from the same initial states (dynamic sampling) ->
leave-one-out advantages -> a few epochs of the clipped objective -> log -> checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ript.build import batch_settings, computing, make_env_pool, make_update, some_task_keys, update_settings
from ript.config.sections import Config
from ript.core import arguments, hooks, policy_calls
from ript.core.interfaces import PostTrainable
from ript.core.memory import enough_memory
from ript.core.metrics import values
from ript.core.types import EvalResult
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser, scale_rate
from ript.policies.loading import require_policy
from ript.report.tables import count
from ript.rollout.sampling import Collection
from ript.run.collecting import Collecting
from ript.run.folder import RunFolder
from ript.run.measure import Measurements
from ript.run.progress import status
from ript.run.rl_progress import Progress, iteration_line, tell_errors
from ript.run.start import amount, beginning, document, learner, plan, practice_steps, ready, to_stay_near
from ript.run.states import InitialStates


@dataclass(frozen=True, kw_only=True)
class RLResult:
    """What a post-training run came to.

    Attributes:
        policy: folder of the best policy by validation success.
        folder: run folder.
        before, after: mode -> evaluation on the same test states.
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


def train_rl(
    config: Config,
    policy: str | Path | PostTrainable | None,
    out: str | Path,
    *,
    resume: bool = False,
    asked: Iterable[str] = (),
) -> RLResult:
    """Post-train a policy by interaction.

    Args:
        config: recipe; `tasks` are practised on.
        policy: folder, name on the hub (see `load_policy`) or policy to start from (one in memory is trained in place);
            None starts from weights drawn from the seed.
        out: run folder; the result is written to `out/policy`.
        resume: go on with the run in `out`, interrupted or at its end, with its own policy and settings. What `config`
            asks for may differ where results do not depend on it (`resuming.FREE`: workers, more iterations, ...).
        asked: settings that somebody gave, by their dotted names, besides those that differ from the recipe's: they are
            refused where the policy has decided otherwise, and all others are taken from it.

    Raises:
        ConfigError, UnknownNameError, PolicyError, DependencyMissing: what was given cannot work.
        OutOfMemory: names what to lower, and the checkpoint that is kept.
        NoSignalError: no group of rollouts had both successes and failures for several iterations in a row.
        RunError: `out` is in use, holds another run, or cannot be resumed.
    """
    arguments.instance("config", config, Config, "ript.recipe(name) gives one")
    if policy is not None:
        require_policy(policy)
    out, resume, asked = arguments.place("out", out), arguments.truth("resume", resume), arguments.words("asked", asked)
    given = plan(config, policy, out, resume, asked)
    config, keys = given.config, some_task_keys(given.config)
    with (  # threads before anything is computed: sums depend on their order; what cannot start leaves no folder
        computing(config.device, config.learn.threads) as device,
        make_env_pool(config.sim, config.rollout, cluster=config.cluster, tasks=keys) as pool,
    ):
        make_update(config.learn, pool)  # are there nodes for all ranks?
        states = InitialStates(pool, keys, config.seed, config.sampling.demos)
        next(states.training(0, config.sampling.states, config.sampling.state_noise))  # can there be any?
        config, policy = beginning(given, states)
        prepare = ready if resume and (out / "start").exists() else learner  # what a run kept is what it began with
        trained = policy_calls.to(prepare(config, policy, states), device)
        record = {} if resume else document(config, trained, given.start, states)
        pool.use(trained)
        with RunFolder.open(out) if resume else RunFolder.create(out, record) as run:
            run.change_settings(given.changed)
            run.track(config.trackers)
            status(
                f"{count(config.iterations, 'iteration')}: {amount(config, hooks.made_with(trained).get('execute'))}"
            )
            if not (run.path / "start").exists():
                policy_calls.save(trained, run.path / "start")
            loop = _Run(config, trained, states, run)
            with loop.collecting:
                return loop.go()


class _Run:
    """The loop and what it holds."""

    def __init__(self, config: Config, policy: PostTrainable, states: InitialStates, run: RunFolder):
        self.config, self.policy, self.states, self.run, self.pool = config, policy, states, run, states.pool
        learn = config.learn
        self.optimiser = make_optimiser(policy, learning_rate=learn.learning_rate, weight_decay=learn.weight_decay)
        self.generator = torch.Generator().manual_seed(config.seed)
        longest = practice_steps(config, states.tasks)
        self.at, self.collecting = Progress(horizons=dict(longest)), Collecting(config, policy, states, longest)
        start = to_stay_near(config, run.path / "start")
        self.settings = update_settings(learn) | {"start": start, "generator": self.generator}
        self.update = make_update(learn, self.pool)
        self.measurements = Measurements(config, policy, states, run)

    def go(self) -> RLResult:
        self.restore()
        measured = self.measurements
        before = measured.before(self.at)
        began = time.perf_counter() - self.at.seconds
        while self.at.iteration < self.config.iterations and not self.at.ended:
            with self.run.saying_what_is_kept(f"iteration {self.at.iteration + 1}"):
                waited = self.collecting.finish()  # with what goes on ahead
                validated, self.clock = measured.validate(self.at), time.perf_counter() - waited
                collection, costs = self.collecting.take(self.at)
                metrics = self.learn(collection) | costs | {"time/eval": validated}
            self.count(collection, time.perf_counter() - began)
            self.log(collection, metrics)
            self.save()
        measured.validate(self.at, last=True)
        measured.choose_best(self.at)
        trained = time.perf_counter()
        after = measured.test_both_modes("after", self.at)
        seconds = {
            "evaluate before": self.at.before_seconds,
            "post-train": trained - began,
            "evaluate after": time.perf_counter() - trained,
        }
        measured.write_policy(before, after, self.at)
        reason = self.at.reason(self.config.iterations)
        self.run.finish(reason, policy_iteration=self.at.best_iteration, seconds=seconds)
        return RLResult(
            policy=self.run.policy,
            folder=self.run.path,
            before=before,
            after=after,
            iterations=self.at.iteration,
            rollouts=self.at.rollouts,
            env_steps=self.at.env_steps,
            seconds=seconds,
            reason=reason,
        )

    # ------------------------------------------------------------------ the steps of an iteration

    def learn(self, collection: Collection) -> dict[str, float]:
        """Advantages and the clipped objective; returns the update's metrics."""
        learn = self.config.learn
        began = time.perf_counter()
        has_signal = self.at.judge(collection, self.config, self.run)
        self.collecting.go_ahead(self.at, collection)
        if not has_signal:
            return {"time/update": 0.0}
        batch = make_batch(collection.groups, generator=self.generator, **batch_settings(learn))
        scale_rate(self.optimiser, self.at.rate_scale)
        with enough_memory("in the update", "learn.micro_batch"):
            result = self.update(self.policy, self.optimiser, batch, version=self.at.iteration, **self.settings)
        self.at.adapt(result, learn)
        metrics = {f"update/{k}": v for k, v in values(result.metrics).items()}
        return metrics | {"time/update": time.perf_counter() - began, "update/decisions": float(len(batch))}

    def count(self, collection: Collection, seconds: float) -> None:
        self.at.count(collection, seconds)
        self.at.horizons = self.collecting.horizons_after(collection, self.at.horizons)

    def log(self, collection: Collection, metrics: dict[str, float]) -> None:
        sampled = {f"rollout/{k}": v for k, v in values(collection.metrics).items()}
        horizons = self.collecting.horizons
        sampled["rollout/horizon"] = sum(horizons.values()) / len(horizons)
        row = sampled | metrics | self.at.totals()
        row["time/total"] = time.perf_counter() - self.clock
        self.run.log(self.at.iteration, row)
        tell_errors(self.run, self.at.iteration, collection)
        status(iteration_line(self.at.iteration, row))

    # ------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        self.run.save_checkpoint(
            self.at.iteration,
            {
                "weights": policy_calls.weights(self.policy),
                "optimiser": self.optimiser.state_dict(),
                "generator": self.generator.get_state(),
                "progress": asdict(self.at),
                **self.collecting.state(),
            },
        )

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = self.run.load_checkpoint()
        if found is None:
            self.save()
            return
        policy_calls.load_weights(self.policy, found.state["weights"])
        self.optimiser.load_state_dict(found.state["optimiser"])
        self.generator.set_state(found.state["generator"])
        self.at = replace(self.at, **found.state["progress"])
        self.collecting.restore(found.state)
        self.measurements.remember_best(self.at)
        status(f"  going on from iteration {self.at.iteration}")
