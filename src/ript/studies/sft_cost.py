"""What demonstrations and supervised training will take here: a few of both are made beforehand, and timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ript.build import computing, demo_source, simulator_factory, task_keys
from ript.config.sections import Config
from ript.core import hooks
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.windows import Windows
from ript.learn.stages import time_steps
from ript.sft import new_policy, trained_by_stages
from ript.studies.bases import base_folder, sft_fingerprint
from ript.studies.notes import finetunes

TASKS = 5
"""Pre-training tasks that are demonstrated once, to measure how long that takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedSpeed:
    """On this machine.

    Attributes:
        demo_seconds: that one process takes for a demonstration.
        demo_steps, demo_looks: environment steps and looks in one.
        step_seconds: stage -> seconds of an optimiser step.
    """

    demo_seconds: float
    demo_steps: float
    demo_looks: float
    step_seconds: Mapping[str, float]


def measure_supervised(config: Config) -> SupervisedSpeed:
    """Demonstrate up to `TASKS` tasks once and take a step of each stage on that, with a policy of random weights."""
    keys = task_keys(config.sim, config.pretrain_tasks)
    keys = keys[:: -(-len(keys) // TASKS)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "demos.hdf5"
        began = time.perf_counter()
        made = collect_demos(
            simulator_factory(config.sim),
            keys,
            1,
            file,
            source=demo_source(config) or "expert",
            noise=config.demos.noise,
            every=config.demos.every,
        )
        seconds = time.perf_counter() - began
        demos = open_demos([file])
        policy = new_policy(config, demos)
        kind, make_stages, module = trained_by_stages(policy)
        hooks.pretend_to_read(policy, [task.instruction for task in demos.tasks])
        windows = Windows(demos, kind.window(policy), hooks.observation_steps_of(policy))
        stages = make_stages(policy, config.sft, windows, keys[:1], True)
        with computing("cpu", config.sft.threads):
            step_seconds = time_steps(module, stages, config.sft.threads)
        return SupervisedSpeed(
            demo_seconds=seconds / made.demos,
            demo_steps=made.steps / made.demos,
            demo_looks=made.frames / made.demos,
            step_seconds=step_seconds,
        )


def base_hours(configs: Sequence[Config], speed: SupervisedSpeed) -> float:
    """Hours that these runs' bases will take, those that are there not counted; runs that share a base make it once."""
    bases = {base_folder(c): c for c in configs if not (base_folder(c) / "sft" / "policy").exists()}
    demos = {folder: len(task_keys(c.sim, c.pretrain_tasks)) * c.demos.per_task for folder, c in bases.items()}
    return sum(_hours(c, speed, demos[f], c.sft.OF_BASE) for f, c in bases.items())


def tuning_hours(configs: Sequence[Config], speed: SupervisedSpeed) -> float:
    """Hours that these runs' fine-tuning will take; what runs share is made once."""
    tuned = {sft_fingerprint(c): c for c in configs if finetunes(c)}
    return sum(
        _hours(c, speed, len(task_keys(c.sim, c.tasks)) * c.demos.target, c.sft.OF_TARGETS) for c in tuned.values()
    )


def _hours(c: Config, speed: SupervisedSpeed, demos: int, stages: Sequence[str]) -> float:
    """Hours that `demos` demonstrations, and these stages on them, will take."""
    looks = demos * speed.demo_looks
    steps = c.sft.stage_steps(steps=demos * speed.demo_steps, looks=looks, target_looks=looks)
    making = demos * speed.demo_seconds / max(1, c.rollout.workers)
    return (making + sum(steps[stage] * speed.step_seconds[stage] for stage in stages)) / 3600
