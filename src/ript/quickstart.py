"""From nothing to a post-trained policy: what `make quickstart` runs.

Demonstrations and the pre-trained base do not depend on the target (unless it is one of the base's tasks, which is then
left out), so they are kept in a cache between targets: `$RIPT_CACHE`, or `ript` in the user's cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from ript.build import load_quest, simulator_factory, task_keys
from ript.config import Config
from ript.demos import collect as collecting
from ript.errors import ConfigError, RiptError, RunError
from ript.interfaces import SimulatorFactory
from ript.recipes import quickstart as recipe
from ript.recipes import with_tasks
from ript.report.files import make_folder
from ript.report.page import write_report
from ript.report.progress import progress, status
from ript.train_rl import RLResult, train_rl
from ript.train_sft import replay_autoencoded, train_sft

BASE_FORMAT = 1
"""Raise it when a change of the code makes cached bases stale."""


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """`to_json` is the documented `ript quickstart --json` document."""

    target: str
    mode: str
    rl: RLResult
    seconds: dict[str, float]
    report: Path

    def to_json(self) -> dict:
        return {
            "target": self.target,
            "sft": self.rl.before[self.mode].to_json(),
            "rl": self.rl.after[self.mode].to_json(),
            "iterations": self.rl.iterations,
            "rollouts": self.rl.rollouts,
            "env_steps": self.rl.env_steps,
            "seconds": self.seconds,
            "policy": str(self.rl.policy),
            "report": str(self.report),
        }


def cache_folder() -> Path:
    """Where bases are kept between runs."""
    if "RIPT_CACHE" in os.environ:
        return Path(os.environ["RIPT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ript"


def quickstart(
    target: str | None = None,
    *,
    seed: int = 0,
    fresh: bool = False,
    out: str | Path | None = None,
    config: Config | None = None,
) -> QuickstartResult:
    """Demonstrations, supervised training, measurement, post-training, measurement, report.

    Args:
        target: Meta-World task; the recipe's by default. It gets one demonstration.
        seed: of everything but the base, which is shared by all seeds.
        fresh: make the base in the output folder instead of using the cache.
        out: output folder; by default a new one under `runs/`.
        config: another recipe than `quickstart`.

    Raises:
        ConfigError, UnknownNameError: no target, or none that exists.
        RunError: the output folder is not empty, or the base is being made by another process.
    """
    config = config or recipe()
    targets = (target,) if target else config.tasks
    if len(targets) != 1:
        raise ConfigError(f"quickstart takes one target task, got {', '.join(targets) or 'none'}: give --target")
    (key,) = task_keys(config.sim, targets)
    name = key.partition("/")[2]
    config = replace(with_tasks(config, (name,)), seed=seed)
    folder = output_folder(out, name, seed)
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(what: str) -> Iterator[None]:
        status(f"{what}")
        began = time.perf_counter()
        yield
        seconds[what] = round(time.perf_counter() - began, 2)

    base = folder / "base" if fresh else cache_folder() / f"base-{base_fingerprint(config)}"
    base_config = replace(config, tasks=(), seed=0)
    factory = simulator_factory(config.sim)
    d, workers = config.demos, config.rollout.workers
    with stage("demonstrations"):
        if not (base / "demos.hdf5").exists():
            keys = task_keys(config.sim, config.pretrain_tasks)
            make_folder(base)
            collect(
                factory, keys, d.per_task, base / "demos.hdf5", seed=0, noise=d.noise, every=d.every, workers=workers
            )
        make_folder(folder)
        collect(factory, [key], d.target, folder / "target.hdf5", seed=seed, noise=d.noise, every=d.every)
    with stage("pre-training"):
        finished = (base / "sft" / "policy").exists()
        if not finished:
            train_sft(base_config, [base / "demos.hdf5"], base / "sft", resume=(base / "sft" / "config.json").exists())
    with stage("fine-tuning"):
        train_sft(config, [base / "demos.hdf5", folder / "target.hdf5"], folder / "sft", base=base / "sft" / "policy")
        upper = replay_autoencoded(load_quest(folder / "sft" / "policy"), config, name)
        status(
            f"  expert's actions through the skill autoencoder succeed in {upper.total:.0f} of {upper.count:.0f} states"
        )
    status("post-training")
    result = train_rl(config, folder / "sft" / "policy", folder / "rl")
    seconds |= {k: round(v, 2) for k, v in result.seconds.items()}
    with stage("report"):
        write_report([result.folder], folder / "report.html")
    return QuickstartResult(
        target=name, mode=config.eval.mode, rl=result, seconds=seconds, report=folder / "report.html"
    )


def collect(
    factory: SimulatorFactory, keys: Sequence[str], per_task: int, out: str | Path, **settings: Any
) -> collecting.Progress:
    """`collect_demos` with a progress bar."""
    demos = 0

    def show(done: collecting.Progress) -> None:
        nonlocal demos
        bar.advance(done.demos - demos)
        bar.note(f"{done.tries} tries")
        demos = done.demos

    with progress[object](len(keys) * per_task, "demonstrations") as bar:
        return collecting.collect_demos(factory, keys, per_task, out, progress=show, **settings)


def base_fingerprint(config: Config) -> str:
    """What the base depends on, as 12 hex digits."""
    parts = {
        "format": BASE_FORMAT,
        "tasks": config.pretrain_tasks,
        "simulator": dataclasses.asdict(config.sim),
        "demos": [config.demos.per_task, config.demos.noise, config.demos.every],
        "policy": [config.policy.size, config.policy.chunk, config.policy.execute, config.policy.privileged],
        "sft": [
            v
            for k, v in dataclasses.asdict(config.sft).items()
            if not k.startswith(("finetune", "checkpoint", "threads"))
        ],
        "versions": [metadata.version(package) for package in ("ript", "metaworld", "mujoco", "torch")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def output_folder(out: str | Path | None, target: str, seed: int) -> Path:
    """`out`, which must be empty or not there, or a new folder under `runs/`."""
    name = f"quickstart-{target}-seed{seed}"
    if out is not None:
        folder = Path(out)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            what = "not empty" if folder.is_dir() else "a file"
            raise RunError(f"{folder} is {what}: choose another --out, or remove it")
        return folder
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
    raise RiptError(f"there are 9,999 folders like runs/{name}: remove some")
