"""What a post-training run is worth: measured before and after, validated in between, the best policy kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ript.config.sections import Config
from ript.core import hooks, policy_calls
from ript.core.errors import RunError
from ript.core.hooks import temperature_of
from ript.core.interfaces import PostTrainable
from ript.core.intervals import align, pairs, success
from ript.core.types import EvalResult, InitialState, Task
from ript.evaluation import run_evaluation
from ript.policies import folder as policy_folder
from ript.policies.loading import load_policy
from ript.report.tables import change, points
from ript.run import cards
from ript.run.folder import RunFolder
from ript.run.progress import status
from ript.run.rl_progress import Progress
from ript.run.states import InitialStates


class Measurements:
    """The evaluations of a run, on test states before and after and on validation states in between."""

    def __init__(self, config: Config, policy: PostTrainable, states: InitialStates, run: RunFolder):
        e = config.eval
        self.config, self.policy, self.run, self.pool = config, policy, run, states.pool
        self.test = states.measured("test", e.trials, e.seed)
        self.validation = states.measured("validation", e.every_trials, e.seed) if e.every else {}

    def before(self, at: Progress) -> dict[str, EvalResult]:
        """Mode -> success before post-training; of a run that goes on, what its log says.

        Raises:
            RunError: the log of a run that goes on does not have it.
        """
        if at.iteration:
            return self._recorded()
        began = time.perf_counter()
        results = self.test_both_modes("before", at)
        at.before_seconds = time.perf_counter() - began
        return results

    def test_both_modes(self, stage: Literal["before", "after"], at: Progress) -> dict[str, EvalResult]:
        """Mode -> success on the test states, with videos; not part of training."""
        e = self.config.eval
        modes = ("sampled", "greedy") if e.mode == "sampled" else ("greedy", "sampled")
        measured = self.run.path / "start" if stage == "before" else self.run.policy
        results = self._evaluate(self.test, modes, at, measured, e.videos)
        for result in results.values():
            self._log(result, at, "test")
        self.run.save_videos(stage, results[e.mode].videos)
        steps = sorted({task.horizon for task in self.test})
        within = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        line = ", ".join(f"{mode} {r.total.successes}/{r.total.trials}" for mode, r in results.items())
        status(f"  {stage} post-training, on test states, within {within} steps: {line}")
        return results

    def _recorded(self) -> dict[str, EvalResult]:
        """The evaluation from before post-training, of a run that goes on.

        Raises:
            RunError: it is not in the log; before anything is trained that would be compared with it.
        """
        rows = [row for row in self.run.evals() if row["iteration"] == 0 and row["states"] == "test"]
        found = {row["mode"].split()[0]: EvalResult.from_json(row["eval"], row["per_state"]) for row in rows}
        if lost := {"sampled", "greedy"} - found.keys():
            raise RunError(
                f"{self.run.path / 'evals.jsonl'} lacks the evaluation before post-training ({' and '.join(lost)}): "
                "put back the file that the run wrote, or start again with another --out"
            )
        return found

    def validate(self, at: Progress, *, last: bool = False) -> float:
        """Every few iterations, and before the first: success on validation states; the best policy so far is kept, of
        equally good ones the latest. Returns seconds."""
        e = self.config.eval
        if not e.every or not (last or at.iteration % e.every == 0):
            return 0.0
        began = time.perf_counter()
        result = self._evaluate(self.validation, (e.mode,), at, self.run.path)[e.mode]
        self._log(result, at, "validation")
        status(f"  iteration {at.iteration}: validation {result.total.successes}/{result.total.trials}")
        rates = {task: found.rate for task, found in result.tasks.items()}
        for task, rate in rates.items():
            if rate >= at.best_of_task.get(task, (-1.0, 0))[0]:
                at.best_of_task[task] = (rate, at.iteration)
        if self._is_best(result, at):
            at.best_success, at.best_iteration, at.kept_of_task = result.total.rate, at.iteration, rates
            cards.set_validation(self.policy.card, at.iteration, result.total.rate, rates)
            if at.iteration % e.every == 0:  # a run that goes on beyond its end would not have looked at others
                with self.run.replace(self.run.best) as folder:
                    policy_calls.save(self.policy, folder)
        return time.perf_counter() - began

    def _is_best(self, result: EvalResult, at: Progress) -> bool:
        """Compared with the best so far on the states that gave no ERROR in either: errors are nobody's failures."""
        if not result.total.trials:
            return False
        best = [
            row["per_state"]
            for row in self.run.evals()
            if (row["states"], row["mode"], row["iteration"]) == ("validation", result.mode, at.best_iteration)
            and success(align([row["per_state"]])).value == at.best_success  # else it was measured again, elsewhere
        ]
        if not best:
            return result.total.rate >= at.best_success
        counts = pairs(*align([best[0], result.per_state]))
        return counts.gained >= counts.lost

    def remember_best(self, at: Progress) -> None:
        """When a run goes on, take up the best policy that its folder holds. A killed run may have replaced it after
        its last checkpoint; the policy itself says what it is."""
        if self._has_best(at):
            found = cards.validation_in(policy_folder.card(self.run.best))
            if found is not None:  # kinds of policies need not keep their card
                at.best_iteration, at.best_success, at.kept_of_task = found

    def _has_best(self, at: Progress) -> bool:
        """Whether there is a best policy, in its folder; one whose folder is gone is taken from where else it is. One
        that is nowhere is no best policy any more, which the screen tells."""
        if at.best_success < 0 or self.run.best.is_dir():
            return at.best_success >= 0
        for folder, its in ((self.run.policy, None), (self.run.path / "start", 0)):
            if not folder.is_dir():
                continue
            kept = load_policy(folder)
            said = cards.validation_in(kept.card)
            if at.best_iteration == (said[0] if said else its):
                return self._keep_best(kept, at)
        if at.best_iteration == at.iteration:
            return self._keep_best(self.policy, at)
        status(
            f"  {self.run.best} is gone, and with it the best policy so far, of iteration {at.best_iteration} "
            f"({at.best_success:.0%} of validation states): the best of those from here on is chosen"
        )
        at.best_success, at.best_iteration, at.kept_of_task = -1.0, 0, {}
        return False

    def _keep_best(self, policy: PostTrainable, at: Progress) -> bool:
        cards.set_validation(policy.card, at.best_iteration, at.best_success, at.kept_of_task)
        with self.run.replace(self.run.best) as folder:
            policy_calls.save(policy, folder)
        return True

    def choose_best(self, at: Progress) -> None:
        """The policy with the highest validation success, the one from before practice included; the last one without
        validation. Tells which tasks it is not the best policy for."""
        if self._has_best(at) and at.best_iteration != at.iteration:
            policy_calls.load_weights(self.policy, hooks.weights_in(self.policy, self.run.best, load_policy))
            self.policy.card[cards.VALIDATION] = policy_folder.card(self.run.best).get(cards.VALIDATION)
        else:
            at.best_iteration = at.iteration
        if at.best_success >= 0 and at.best_iteration == 0 < at.iteration:
            status("  no iteration was better on validation states than the policy from before: that one is kept")
        trials = {task.name: len(states) for task, states in self.validation.items()}
        for task, (rate, iteration) in at.best_of_task.items():
            kept = at.kept_of_task.get(task, rate)
            if rate - kept >= max(0.25, 3 / trials[task]):  # a split may have fewer states than trials were asked for
                status(
                    f"  {task}: {rate:.0%} of validation states at iteration {iteration}, but {kept:.0%} at iteration "
                    f"{at.best_iteration}, which is the best for all tasks together"
                )

    def lost(self, before: Mapping[str, EvalResult], after: Mapping[str, EvalResult]) -> dict[str, str]:
        """Task name -> what practice cost it on the test states, in the mode that counts; each is told."""
        lost, (was, now) = {}, (results[self.config.eval.mode] for results in (before, after))
        for task in was.tasks:
            changed = change(was, now, [task])
            if changed["lost"] > changed["gained"]:
                lost[task] = points(changed)
                status(f"  practice cost {task}: {lost[task]}")
        return lost

    def write_policy(self, before: Mapping[str, EvalResult], after: Mapping[str, EvalResult], at: Progress) -> None:
        """The run's result, with a model card that says how it was made and what it is worth."""
        until = {row["iteration"]: row for row in self.run.metrics()}.get(at.best_iteration, {})
        self.policy.card[cards.PRACTICE] = {
            "recipe": self.config.recipe,
            "tasks": ", ".join(self.config.tasks),
            "seed": self.config.seed,
            "iteration": at.best_iteration,
            "rollouts until then": until.get("total/rollouts", 0),
            "environment steps until then": until.get("total/env_steps", 0),
            "iterations of the run": at.iteration,
            "rollouts of the run": at.rollouts,
            "environment steps of the run": at.env_steps,
        }
        self.policy.card["success on test initial states, with Wilson 95 % intervals"] = {
            f"{stage}, {mode}": f"{r.total.successes}/{r.total.trials} "
            f"({100 * r.total.interval[0]:.0f}-{100 * r.total.interval[1]:.0f} %)"
            for stage, results in (("before", before), ("after", after))
            for mode, r in results.items()
        }
        lost = self.lost(before, after)
        self.policy.card["tasks that lost by practice"] = lost or "none"
        self.policy.card["after minus before, state by state, with McNemar's exact test"] = {
            mode: points(change(before[mode], r)) for mode, r in after.items()
        }
        with self.run.replace(self.run.policy) as folder:
            policy_calls.save(self.policy, folder)

    def _evaluate(
        self,
        states: Mapping[Task, list[InitialState]],
        modes: tuple[str, ...],
        at: Progress,
        what: Path,
        videos: int = 0,
    ) -> dict[str, EvalResult]:
        self.pool.set_policy(policy_calls.weights(self.policy), at.iteration)
        return run_evaluation(
            self.pool,
            states,
            name=str(what),
            seed=self.config.eval.seed,
            modes=modes,
            temperature=temperature_of(self.policy),
            videos=videos,
        )

    def _log(self, result: EvalResult, at: Progress, states: str) -> None:
        self.run.log_eval(
            at.iteration, result, rollouts=at.rollouts, env_steps=at.env_steps, seconds=at.seconds, states=states
        )
