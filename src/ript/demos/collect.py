"""Collect demonstrations of many tasks, in this process or over several.

A try is a function of (task, number, settings) alone (`expert.make_demo`), and of each task the first `per_task` tries
that succeed are kept, in order of their numbers. So the file does not depend on how many workers made it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from ript.core import arguments
from ript.core.errors import ConfigError, SimulatorError, UnknownNameError
from ript.core.interfaces import EnvPool, Simulator
from ript.demos.expert import DemoSource, ExpertSettings
from ript.demos.formats.writer import DemoWriter
from ript.demos.records import Demo
from ript.demos.workers import run_errands, run_inline, run_processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a collection is, and at the end what it made."""

    demos: int
    frames: int
    steps: int
    tries: int


def collect_demos(
    make_simulator: Callable[[str], Simulator],
    task_keys: Sequence[str],
    per_task: int,
    out: str | Path,
    *,
    source: DemoSource = "expert",
    seed: int = 0,
    noise: float = 0.2,
    every: int = 2,
    max_tries_factor: float = 10.0,
    workers: int = 0,
    try_seconds: float = 300.0,
    pool: EnvPool | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Let scripted experts make demonstrations, or replay those of people, and write them to an HDF5 file.

    Args:
        make_simulator: task key -> a `Demonstrator`, or a `Recorded` simulator; picklable when `workers` > 0.
        task_keys: tasks, "suite/name".
        per_task: demonstrations of each.
        out: the file to make; replaced if it exists, and only when all is done.
        source, seed, noise, every: see `ExpertSettings`; with "human" there is neither noise nor chance.
        max_tries_factor: give up on a task after `per_task` times this many tries (at least 10).
        workers: processes, one simulator each; 0 works in this process.
        try_seconds: a piece of a try (building the simulator, a reset, a step, a look) that takes longer is taken for a
            worker that hangs; the try itself has no limit.
        pool: of such simulators, whose workers make the tries instead: the nodes of a cluster.
        progress: called after every try.

    Raises:
        ConfigError: an argument that cannot work, or a simulator without an expert.
        SimulatorError: an expert failed too often, or the simulator raised.
        WorkerError: a worker died or hung.
        DataError: the file cannot be written.
    """
    if source not in get_args(DemoSource):
        raise UnknownNameError("source of demonstrations", source, get_args(DemoSource))
    settings = ExpertSettings(
        source=source,
        seed=arguments.seed("seed", seed),
        noise=0.0 if source == "human" else arguments.number("noise", noise, 0),
        every=arguments.whole("every", every, 1),
    )
    arguments.function("make_simulator", make_simulator, "task key -> simulator", 1)
    task_keys, out = arguments.words("task_keys", task_keys), arguments.place("out", out)
    per_task, workers = arguments.whole("per_task", per_task, 1), arguments.whole("workers", workers, 0)
    max_tries_factor = arguments.number("max_tries_factor", max_tries_factor, 0)
    try_seconds = arguments.number("try_seconds", try_seconds, 0.001)
    _check(task_keys)
    plan = Plan(task_keys, per_task, max_tries=max(10, math.ceil(per_task * max_tries_factor)))
    if pool is not None:
        tries = run_errands(pool, settings, plan.take, at_a_time=max(1, pool.saturation))
    elif workers == 0:
        tries = run_inline(make_simulator, settings, plan.take)
    else:
        at_work = min(workers, len(task_keys) * per_task)
        tries = run_processes(make_simulator, settings, plan.take, workers=at_work, try_seconds=try_seconds)
    done = Progress(demos=0, frames=0, steps=0, tries=0)
    with contextlib.closing(tries), DemoWriter(out, {"per_task": per_task, **asdict(settings)}) as writer:
        for key, number, demo, spec in tries:
            ready = plan.finish(key, number, demo)
            for place, kept in ready:
                writer.add(place, kept, spec)
            done = replace(
                done,
                demos=done.demos + len(ready),
                frames=done.frames + sum(len(kept.frame_steps) for _, kept in ready),
                steps=done.steps + sum(len(kept) for _, kept in ready),
                tries=done.tries + 1,
            )
            if progress:
                progress(done)
    return done


class Plan:
    """Which try comes next, and which demonstration goes where in the file.

    A try is handed out only while a task's successes and tries under way are fewer than wanted, so exactly those tries
    are made that one process working in order would make.
    """

    def __init__(self, task_keys: Sequence[str], per_task: int, max_tries: int):
        self._keys, self._per_task, self._max_tries = list(task_keys), per_task, max_tries
        self._launched = dict.fromkeys(task_keys, 0)
        self._running = dict.fromkeys(task_keys, 0)
        self._succeeded = dict.fromkeys(task_keys, 0)
        self._results: dict[str, dict[int, Demo | None]] = {key: {} for key in task_keys}
        self._next = dict.fromkeys(task_keys, (0, 0, 1))  # (number of the next try to be placed, demos placed, tries)

    def take(self, prefer: str | None) -> tuple[str, int] | None:
        """(task key, number) of a try to start now, of task `prefer` if it has one; None when none can start now.

        Raises:
            SimulatorError: a task has used up its tries.
        """
        open_keys = [k for k in self._keys if self._succeeded[k] + self._running[k] < self._per_task]
        if not open_keys:
            return None
        left = {k: self._per_task - self._succeeded[k] - self._running[k] for k in open_keys}
        key = prefer if prefer in left else min(open_keys, key=lambda k: (self._running[k], -left[k]))
        number = self._launched[key]
        if number == self._max_tries:
            raise SimulatorError(
                f"the scripted expert of {key} succeeded in {self._succeeded[key]} of {number - self._running[key]} "
                f"tries; {self._per_task} demonstrations were wanted: lower the noise or leave out the task"
            )
        self._launched[key] += 1
        self._running[key] += 1
        return key, number

    def finish(self, key: str, number: int, demo: Demo | None) -> list[tuple[int, Demo]]:
        """Take in a result; returns [(place in the file, demonstration)] that can be written now."""
        self._running[key] -= 1
        self._succeeded[key] += demo is not None
        results = self._results[key]
        results[number] = demo
        following, placed, tries = self._next[key]
        ready: list[tuple[int, Demo]] = []
        while following in results:
            found = results.pop(following)
            following += 1
            if found is None:
                tries += 1
            else:
                ready.append((self._keys.index(key) * self._per_task + placed, replace(found, tries=tries)))
                placed, tries = placed + 1, 1
        self._next[key] = (following, placed, tries)
        return ready


def _check(task_keys: Sequence[str]) -> None:
    if not task_keys:
        raise ConfigError("no task to collect demonstrations of; name at least one")
    if len(set(task_keys)) != len(task_keys):
        twice = next(key for key in task_keys if list(task_keys).count(key) > 1)
        raise ConfigError(f"task {twice} is named twice; name each task once")
