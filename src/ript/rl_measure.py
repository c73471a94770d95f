"""What a post-training run is worth: measured before and after, validated in between, the best policy kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ript.build import Contexts, load_policy
from ript.config import Config
from ript.evaluate import run_evaluation
from ript.interfaces import EnvPool, PostTrainable
from ript.report.progress import status
from ript.report.run import RunFolder
from ript.types import EvalResult, InitialState, Task


@dataclass(kw_only=True)
class Progress:
    """What a run has come to so far; goes into every checkpoint."""

    iteration: int = 0
    position: int = 0
    rollouts: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    before_seconds: float = 0.0
    hopeless: int = 0
    rate_scale: float = 1.0
    best_success: float = -1.0
    best_iteration: int = 0
    solved: bool = False
    horizons: dict[str, int] = field(default_factory=dict)
    """Task key -> practice horizon."""


class Measurements:
    """The evaluations of a run, on test states before and after and on validation states in between."""

    def __init__(self, config: Config, policy: PostTrainable, contexts: Contexts, run: RunFolder, pool: EnvPool):
        e = config.eval
        self.config, self.policy, self.run, self.pool = config, policy, run, pool
        self.test = contexts.measured("test", e.trials, e.seed)
        self.validation = contexts.measured("validation", e.every_trials, e.seed) if e.every else {}

    def test_both_modes(self, stage: Literal["before", "after"], at: Progress) -> dict[str, EvalResult]:
        """Mode -> success on the test states, with videos; not part of training."""
        e = self.config.eval
        modes = ("sampled", "greedy") if e.mode == "sampled" else ("greedy", "sampled")
        measured = self.run.path / "start" if stage == "before" else self.run.policy
        results = self._evaluate(self.test, modes, at, measured, e.videos)
        for result in results.values():
            self._log(result, at, "test")
        self.run.save_videos(stage, results[e.mode].videos)
        line = ", ".join(f"{mode} {r.total.successes}/{r.total.trials}" for mode, r in results.items())
        status(f"  {stage} post-training, on test states: {line}")
        return results

    def recorded(self) -> dict[str, EvalResult]:
        """The evaluation from before post-training, of a run that goes on."""
        rows = [row for row in self.run.evals() if row["iteration"] == 0 and row["states"] == "test"]
        return {row["mode"].split()[0]: EvalResult.from_json(row["eval"], row["per_state"]) for row in rows}

    def validate(self, at: Progress, *, last: bool = False) -> float:
        """Every few iterations: success on validation states; the best policy so far is kept. Returns seconds."""
        e = self.config.eval
        if not e.every or not (last or (at.iteration and at.iteration % e.every == 0)):
            return 0.0
        began = time.perf_counter()
        result = self._evaluate(self.validation, (e.mode,), at, self.run.path)[e.mode]
        self._log(result, at, "validation")
        status(f"  iteration {at.iteration}: validation {result.total.successes}/{result.total.trials}")
        if result.total.rate >= at.best_success:
            at.best_success, at.best_iteration = result.total.rate, at.iteration
            with self.run.replace(self.run.best) as folder:
                self.policy.save_pretrained(folder)
        return time.perf_counter() - began

    def choose_best(self, at: Progress) -> None:
        """The policy with the highest validation success; the last one without validation."""
        if at.best_success >= 0 and at.best_iteration != at.iteration:
            self.policy.load_weights(load_policy(self.run.best).weights())
        else:
            at.best_iteration = at.iteration

    def write_policy(self, before: Mapping[str, EvalResult], after: Mapping[str, EvalResult], at: Progress) -> None:
        """The run's result, with a model card that says how it was made and what it is worth."""
        self.policy.card["interactive post-training"] = {
            "recipe": self.config.recipe, "tasks": ", ".join(self.config.tasks), "seed": self.config.seed,
            "iteration": at.best_iteration, "rollouts": at.rollouts, "environment steps": at.env_steps,
        }  # fmt: skip
        self.policy.card["success on test initial states, with Wilson 95 % intervals"] = {
            f"{stage}, {mode}": f"{r.total.successes}/{r.total.trials} "
            f"({100 * r.total.interval[0]:.0f}-{100 * r.total.interval[1]:.0f} %)"
            for stage, results in (("before", before), ("after", after)) for mode, r in results.items()
        }  # fmt: skip
        with self.run.replace(self.run.policy) as folder:
            self.policy.save_pretrained(folder)

    def _evaluate(
        self,
        states: Mapping[Task, list[InitialState]],
        modes: tuple[str, ...],
        at: Progress,
        what: Path,
        videos: int = 0,
    ) -> dict[str, EvalResult]:
        self.pool.set_policy(self.policy.weights(), at.iteration)
        return run_evaluation(
            self.pool, states, name=str(what), seed=self.config.eval.seed, modes=modes,
            temperature=self.policy.temperature, videos=videos,
        )  # fmt: skip

    def _log(self, result: EvalResult, at: Progress, states: str) -> None:
        self.run.log_eval(
            at.iteration, result, rollouts=at.rollouts, env_steps=at.env_steps, seconds=at.seconds, states=states
        )
