"""What a study will take here, by speeds that are measured before it begins."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ript.build import computing, make_env_pool, make_policy, some_task_keys, update_settings
from ript.config.sections import Config
from ript.core import hooks
from ript.core.options import replace
from ript.core.types import Group, Rollout, RolloutRequest, Status
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser
from ript.learn.update import update
from ript.report.tables import count
from ript.run.start import amount, learner
from ript.run.states import InitialStates
from ript.studies.catalogue import Study, with_simulator
from ript.studies.sft_cost import base_hours, measure_supervised, tuning_hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """How fast an untrained policy practises on this machine.

    Attributes:
        env_steps: a second, of all workers together.
        decisions: a second, of an update.
        execute: actions from one decision to the next, or a few less: as the rollouts had them on average.
    """

    env_steps: float
    decisions: float
    execute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a study will take, at most: every group attempted, every rollout to the horizon.

    Attributes:
        cells: cells times seeds.
        rollouts, env_steps: of practice and evaluation.
        decisions: that updates work on, each as often as there are epochs.
        base_hours: of pre-training, demonstrations included, of bases that are not there; before the runs.
        tuning_hours: of fine-tuning and its demonstrations.
        speed: measured.
    """

    cells: int
    rollouts: int
    env_steps: int
    decisions: int
    base_hours: float
    tuning_hours: float
    speed: Speed

    @property
    def rollout_hours(self) -> float:
        return self.env_steps / self.speed.env_steps / 3600

    @property
    def update_hours(self) -> float:
        return self.decisions / self.speed.decisions / 3600

    @property
    def hours(self) -> float:
        return self.base_hours + self.tuning_hours + self.rollout_hours + self.update_hours

    @property
    def fewest_hours(self) -> float:
        """With a machine like this one for each run: the base first, then the runs side by side."""
        return self.base_hours + (self.hours - self.base_hours) / max(1, self.cells)

    @property
    def machines_for_a_day(self) -> int | None:
        """Machines like this one that it takes to be done within 24 hours; None when none would be enough."""
        if self.fewest_hours > 24:
            return None
        return max(1, math.ceil((self.hours - self.base_hours) / (24 - self.base_hours)))

    def to_json(self) -> dict[str, float | None]:
        return {
            "cells": self.cells,
            "rollouts": self.rollouts,
            "env_steps": self.env_steps,
            "decisions": self.decisions,
            "env_steps_per_second": self.speed.env_steps,
            "decisions_per_second": self.speed.decisions,
            "base_hours": self.base_hours,
            "tuning_hours": self.tuning_hours,
            "rollout_hours": self.rollout_hours,
            "update_hours": self.update_hours,
            "hours": self.hours,
            "fewest_hours": self.fewest_hours,
            "machines_for_a_day": self.machines_for_a_day,
        }

    def text(self, study: Study) -> str:
        lines = [f"{study.name}: {study.question}", *(f"  shrunk: {what}" for what in study.shrunk)]
        lines += [f"  differs: {what}" for what in study.differs]
        lines += [*(f"  changed: {what}" for what in study.changed), *(f"  {cell.name}" for cell in study.cells)]
        machines = self.machines_for_a_day
        day = f"a day on {count(machines or 0, 'machine')} like this"
        if machines is None:
            first = "the base first, then a run on each" if self.base_hours else "a run on each"
            day = f"{self.fewest_hours:,.0f} hours on {count(self.cells, 'machine')} like this, {first}"
        speed = self.speed
        lines.append(
            f"{count(self.cells, 'run')}: at most {self.rollouts:,} rollouts, {self.env_steps:,} env-steps; about "
            f"{self.hours:,.1f} hours here ({self.base_hours:,.1f} of the base, {self.tuning_hours:,.1f} of "
            f"fine-tuning, {self.rollout_hours:,.1f} of rollouts at {speed.env_steps:,.0f} env-steps/s, "
            f"{self.update_hours:,.1f} of updates at {speed.decisions:,.0f} decisions/s), or {day}"
        )
        return "\n".join(lines)


def cost(study: Study, seeds: Sequence[int], done: Collection[tuple[str, int]] = ()) -> Cost:
    """What a study has still to do will cost, estimated from the speed of an untrained policy here.

    Args:
        study: its cells.
        seeds: of each.
        done: (name of a cell, seed) of those that are finished.

    Raises:
        DependencyMissing: its simulator is not there.
    """
    runs = [
        replace(cell.config, seed=seed)
        for cell in with_simulator(study).cells
        for seed in seeds
        if (cell.name, seed) not in done
    ]
    speed, supervised = measure_speed(study.cells[0].config), measure_supervised(study.cells[0].config)
    rollouts = env_steps = decisions = 0
    for c in runs:
        found = amount(c, speed.execute)
        rollouts += found.rollouts
        env_steps += found.env_steps
        decisions += found.decisions
    return Cost(
        cells=len(runs),
        rollouts=rollouts,
        env_steps=env_steps,
        decisions=decisions,
        base_hours=base_hours(runs, supervised),
        tuning_hours=tuning_hours(runs, supervised),
        speed=speed,
    )


def measure_speed(config: Config, steps: int = 64) -> Speed:
    """Rollouts with an untrained policy in the loop, then one epoch of an update on them."""
    key = some_task_keys(config)[0]
    slots = max(2, config.rollout.workers * config.rollout.slots)
    with make_env_pool(config.sim, config.rollout, cluster=config.cluster) as pool:
        states = InitialStates(pool, (key,), 0)
        fresh = make_policy(config, states.spec)
        hooks.pretend_to_read(fresh, [states.task(key).instruction])
        policy = learner(config, fresh, states, calibrate=False)
        drawn = states.states(key, slots, "train")
        pool.use(policy)
        for horizon in (1, steps):  # the first time is for starting up
            began = time.perf_counter()
            asked = (RolloutRequest(initial_state=s, index=0, seed=(0,), horizon=horizon) for s in drawn)
            done = list(pool.run(asked))
            rollout_seconds = time.perf_counter() - began
        done = [rollout.whole() for rollout in done]
    batch = make_batch([Group(initial_state=drawn[0], rollouts=_half_successful(done))])
    settings = update_settings(config.learn) | {"epochs": 1, "target_kl": None, "start": policy}
    with computing("cpu", config.learn.threads):
        optimiser = make_optimiser(policy, learning_rate=0.0)
        for _ in range(2):  # the first time is for starting up
            began = time.perf_counter()
            update(policy, optimiser, batch, generator=torch.Generator(), **settings)
            update_seconds = time.perf_counter() - began
    steps_done = sum(rollout.env_steps for rollout in done)
    execute = max(math.ceil(rollout.env_steps / max(1, rollout.decisions)) for rollout in done)
    return Speed(env_steps=steps_done / rollout_seconds, decisions=len(batch) / update_seconds, execute=execute)


def _half_successful(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """The same rollouts, every other one a success: an update needs a signal, whatever it learns."""
    return tuple(replace(r, status=Status.SUCCESS if i % 2 else Status.FAILURE) for i, r in enumerate(rollouts))
