"""Pre-trained bases: demonstrations of many tasks and the policy made from them, kept between targets and studies.

They lie in a cache: `$RIPT_CACHE`, or `ript` in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ript.build import demo_source, horizons, language_of, own_code, simulator_factory, task_keys
from ript.config.sections import ClusterConfig, Config
from ript.core.disk import refused
from ript.core.errors import DataError, PolicyError, RunError
from ript.core.files import make_folder
from ript.core.interfaces import SimulatorFactory
from ript.core.options import replace
from ript.core.places import CACHE, cache_folder
from ript.core.registry import kinds, suites
from ript.demos import collect as collecting
from ript.policies.language_files import identity
from ript.run.lock import locked
from ript.run.progress import progress
from ript.sft import train_sft

OF_BASE = "It is of a base that ript keeps"
"""What is said of something damaged in the cache."""
BASE_FORMAT = 3
"""Raise it when a change of the code makes cached bases stale."""


def base_folder(config: Config) -> Path:
    """The folder of the base that this configuration starts from; it holds `demos.hdf5` and the run folder `sft`."""
    return cache_folder() / f"base-{base_fingerprint(config)}"


def base_fingerprint(config: Config) -> str:
    """What the base depends on, as 12 hex digits: threads and device too, for sums are rounded in another order."""
    steps = horizons(config.sim, task_keys(config.sim, config.pretrain_tasks))
    parts = {
        "format": BASE_FORMAT,
        "tasks": config.pretrain_tasks,
        "simulator": config.sim.to_json() | {"horizon": sorted(set(steps.values()))},
        "demos": [config.demos.per_task, config.demos.noise, config.demos.every, *_humans(config)],
        "language": identity(language_of(config)),
        "policy": {name: getattr(config.policy, name) for name in ("kind", *config.policy.BUILT)},
        "sft": {
            name: value
            for name, value in config.sft.to_json().items()
            if config.sft.stage_of(name) in (None, *config.sft.OF_BASE)
            and name != "checkpoint_every"
            and (name, value) != ("micro_batch", 0)  # as it was before there was one
        },
        "device": config.device,
        "versions": [_version(package) for package in ("ript", *suites.get(config.sim.suite).packages, "torch")],
        **_own_code(config, config.pretrain_tasks),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _humans(config: Config) -> list[str]:
    """What tells a base of people's demonstrations from one of experts', whose names are as they always were."""
    return ["human"] if demo_source(config) == "human" else []


def _own_code(config: Config, tasks: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Digests of the files of a user's own that simulators of these tasks, and the policy, are made of, if any."""
    code = own_code(config.sim, task_keys(config.sim, tasks), str(config.policy.kind))
    return {"code": code} if code else {}


def _version(package: str) -> str | None:
    """The version of a distribution; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def sft_fingerprint(config: Config) -> str:
    """What a fine-tuned policy depends on, as 12 hex digits."""
    parts = {
        "base": base_fingerprint(config),
        "tasks": config.tasks,
        "target": config.demos.target,
        **({} if (source := config.demos.target_source) == "same" else {"target_source": source}),
        "sft": {
            n: value for n, value in config.sft.to_json().items() if config.sft.stage_of(n) in config.sft.OF_TARGETS
        },
        "seed": config.seed,
        **_own_code(config, config.tasks),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def base_is_made(base: Path) -> bool:
    """Whether nothing will be written there: then the cache may be read-only."""
    return (base / "demos.hdf5").exists() and (base / "sft" / "policy").exists()


def make_base(config: Config, base: Path) -> Path:
    """Demonstrations of the pre-training tasks and the policy made from them, unless they are there.

    Another process that is making them is waited for.
    """
    make_base_demos(config, base)
    if not (base / "sft" / "policy").exists():
        with _naming_the_cache(base), locked(base, wait=True):
            train_unless_done(replace(config, tasks=(), seed=0), [base / "demos.hdf5"], base / "sft")
    return base


def make_base_demos(config: Config, base: Path) -> None:
    """Make the demonstrations of the pre-training tasks, unless they are there."""
    if (base / "demos.hdf5").exists():
        return
    kinds.get(config.policy.kind).check(config.policy)  # before all demonstrations are made
    d, keys = config.demos, task_keys(config.sim, config.pretrain_tasks)
    with _naming_the_cache(base), locked(make_folder(base), wait=True):
        if not (base / "demos.hdf5").exists():
            collect(
                simulator_factory(config.sim),
                keys,
                d.per_task,
                base / "demos.hdf5",
                source=demo_source(config) or "expert",
                seed=0,
                noise=d.noise,
                every=d.every,
                workers=config.rollout.workers,
            )


@contextmanager
def _naming_the_cache(base: Path) -> Iterator[None]:
    """Say what to do when the disk refuses something in the cache, or what lies there is damaged."""
    try:
        yield
    except (DataError, PolicyError, RunError) as error:
        if not base.name.startswith("base-"):
            raise
        if isinstance(error.__cause__, OSError) and refused(error.__cause__):
            raise type(error)(f"{error}; the cache can lie elsewhere: set {CACHE} to a folder") from error.__cause__
        if f"{base}/" not in str(error) or OF_BASE in str(error):
            raise
        raise type(error)(f"{error}. {OF_BASE}: delete {base}, and it is made again") from error


def train_unless_done(config: Config, demos: Sequence[Path], out: Path, base: Path | None = None) -> None:
    """Supervised training in the run folder `out`; one that was interrupted goes on, one that is done stays.

    It is done in this process, whatever cluster there is: what is shared must not depend on the number of ranks.
    """
    config = replace(config, cluster=ClusterConfig())
    if not (out / "policy").exists():
        with _naming_the_cache(base.parents[1] if base else out.parent):
            train_sft(config, demos, out, base=base, resume=(out / "config.json").exists())


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
