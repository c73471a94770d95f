"""How far a post-training run has come, and whether it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ript.config.sections import Config, LearnConfig
from ript.core.errors import NoSignalError
from ript.core.metrics import values
from ript.core.types import Group
from ript.learn.advantage import leave_one_out
from ript.learn.rate import AdaptiveRate
from ript.learn.update import UpdateResult
from ript.rollout.reasons import in_a_line, reasons
from ript.rollout.sampling import Collection
from ript.run.folder import RunFolder
from ript.run.progress import status

PATIENCE, TRIED = 3, 16
"""Iterations in a row in which no group has a signal, after which a run stops, and how many groups these must have had.
A run that is solved takes as many groups: a few states may fail or succeed by chance."""
UNMOVED = 0.25
"""What the learning rate is multiplied with after an update whose first step already went too far."""


@dataclass(kw_only=True)
class Progress:
    """What a run has come to so far; goes into every checkpoint."""

    iteration: int = 0
    position: int = 0
    rollouts: int = 0
    env_steps: int = 0
    seconds: float = 0.0
    before_seconds: float = 0.0
    silent: int = 0
    """Iterations in a row in which no group had a signal."""
    tried: int = 0
    """Groups of those iterations."""
    silent_of_task: dict[str, int] = field(default_factory=dict)
    """Task name -> iterations in a row in which none of its groups had a signal."""
    reached: int = 0
    """Groups of the last iterations in a row whose success reached `stop_at`."""
    learned: int = 0
    """Iterations that changed the policy."""
    rate_scale: float = 1.0
    best_success: float = -1.0
    best_iteration: int = 0
    kept_of_task: dict[str, float] = field(default_factory=dict)
    """Task name -> validation success of the best policy."""
    best_of_task: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Task name -> its highest validation success, and at which iteration."""
    ended: str = ""
    """Why the run ends before its last iteration."""
    horizons: dict[str, int] = field(default_factory=dict)
    """Task key -> practice horizon."""

    def count(self, collection: Collection, seconds: float) -> None:
        """Another iteration is done, and `seconds` have been spent on all of them."""
        spent = values(collection.metrics)
        self.iteration += 1
        self.position += collection.position
        self.rollouts += int(spent["rollouts"])
        self.env_steps += int(spent["env_steps"])
        self.seconds = seconds

    def totals(self) -> dict[str, float]:
        """What the run has spent, for its log."""
        return {
            "total/rollouts": self.rollouts,
            "total/env_steps": self.env_steps,
            "total/seconds": self.seconds,
        }

    def judge(self, collection: Collection, config: Config, run: RunFolder) -> bool:
        """Whether an iteration has something to learn from; sets `ended` when the run ends with it. An iteration of
        errors alone says nothing of the policy.

        Raises:
            NoSignalError: `PATIENCE` iterations in a row had no signal, and none before them changed the policy.
        """
        least = config.learn.min_abs_advantage
        told = [group for group in collection.groups if has_signal(group, least)]
        success, tried = values(collection.metrics)["success"], len(collection.attempted)
        if not math.isnan(success):
            self.silent, self.tried = (0, 0) if told else (self.silent + 1, self.tried + tried)
            self.reached = self.reached + tried if success >= config.stop_at else 0
            self._name_silent_tasks(collection, least)
        if self.reached >= TRIED:
            self.ended = f"solved: at least {config.stop_at:.0%} of an iteration's rollouts succeeded"
        elif self.silent >= PATIENCE and self.tried >= TRIED and success < config.stop_at:
            solved = sum(group.success == 1 for group in collection.attempted)
            what = f"every rollout failed in {self.silent} iterations in a row"
            if success > 0:
                what = f"no initial state was both solved and failed in {self.silent} iterations in a row ({solved} of "
                what += f"the last {tried} were solved in every rollout)"
            if least and any(group.has_signal for group in collection.groups):
                what = f"no rollout had an advantage of learn.min_abs_advantage = {least:g} in {self.silent} iterations"
            if not self.learned:
                raise NoSignalError(
                    f"{what}: there is nothing to learn from. Look at the videos in {run.path / 'videos'}; more "
                    f"demonstrations, sampling that varies more, more rollouts from a state (sampling.group_size) or "
                    f"a longer sampling.horizon may help. The checkpoints in {run.path / 'checkpoints'} are kept"
                )
            self.ended = f"stopped: {what}"
        return bool(told)

    def _name_silent_tasks(self, collection: Collection, least: float) -> None:
        """Say once which of several tasks have had nothing to learn from for a while."""
        signals: dict[str, bool] = {}
        for group in collection.attempted:
            name = group.initial_state.task.name
            signals[name] = signals.get(name, False) or has_signal(group, least)
        for name, told in signals.items():
            self.silent_of_task[name] = 0 if told else self.silent_of_task.get(name, 0) + 1
            if len(signals) > 1 and self.silent_of_task[name] == PATIENCE:
                status(f"  {name}: no group with a signal in {PATIENCE} iterations in a row; nothing is learned for it")

    def adapt(self, result: UpdateResult, learn: LearnConfig) -> None:
        """The learning rate of the next update; after one that kept no step it goes down, whatever the settings."""
        if values(result.metrics)["optimiser_steps"]:
            self.learned += 1
            if learn.target_kl and result.kl_max > learn.target_kl:
                status(f"  the update ended early, its last step taken back: {result.stop_reason}")
            if learn.adapt_kl:
                rate = AdaptiveRate(target_kl=learn.adapt_kl, scale=self.rate_scale, low=min(0.1, self.rate_scale))
                self.rate_scale = rate.after(result.kl_end).scale
            return
        self.rate_scale *= UNMOVED
        status(
            f"  no step was kept: after the first the KL was {result.kl_max:.3g}, above learn.target_kl = "
            f"{learn.target_kl:g}; the learning rate goes down to {learn.learning_rate * self.rate_scale:.2g}"
        )

    def reason(self, iterations: int) -> str:
        """Why a run is at its end."""
        unchanged = "" if self.learned or not iterations else ", and none changed the policy"
        done = "1 iteration done" if iterations == 1 else f"all {iterations} iterations done"
        return self.ended or f"{done}{unchanged}"


def has_signal(group: Group, least: float = 0.0) -> bool:
    """Whether rollouts of a group differ, and one has an advantage of `least` (`learn.min_abs_advantage`)."""
    return group.has_signal and bool(np.nanmax(np.abs(leave_one_out(group.rewards))) >= least)


def tell_errors(run: RunFolder, iteration: int, collection: Collection) -> None:
    """Keep why rollouts of an iteration ended in ERROR, and say it; nothing when none did."""
    rollouts = [rollout for group in collection.attempted for rollout in group.rollouts]
    run.log_errors(iteration, reasons(rollouts))
    if said := in_a_line(rollouts):
        status(f"  iteration {iteration}: {said}")


def iteration_line(iteration: int, row: Mapping[str, float]) -> str:
    """What the screen says of an iteration."""
    kl, clipped = (row.get(f"update/{k}", math.nan) for k in ("kl_last", "clip_fraction"))
    entropy = f"entropy {row['update/entropy']:.2f}, " if "update/entropy" in row else ""  # a density may have none
    attempted = row["rollout/attempted"]
    # Without dynamic sampling `accepted` holds groups without a signal, too.
    told = row["rollout/signal_share"] * attempted if attempted else 0
    return (
        f"  iteration {iteration:2d}: success {row['rollout/success']:.2f}, "
        f"{told:.0f}/{attempted:.0f} groups with signal, "
        f"kl {kl:.3f}, clipped {clipped:.2f}, {entropy}"
        f"{row['time/rollout']:.1f} s rollouts + {row['time/update']:.1f} s update"
    )
