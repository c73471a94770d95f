"""Is a cluster ready? Every node is looked at as `ript doctor` looks at a machine, and compared with this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ript.build import simulators_memory
from ript.cli.doctor import Check, doctor
from ript.config.sections import RolloutConfig, sim_options
from ript.core import capacity, interpreter
from ript.core.device_memory import GIB
from ript.core.registry import suites
from ript.rollout.cluster.connection import Connection, Place
from ript.rollout.cluster.versions import ALWAYS, differing, installed

SECONDS = 300.0
"""Seconds that a node may take: it imports everything, and renders."""
WORKER = 2**29
"""Bytes of a worker process with a small policy and a few unfinished rollouts, besides what its suite says that
simulators need."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a node says of itself."""

    checks: Sequence[Check]
    versions: Mapping[str, str]
    memory: int


def look(suite: str, packages: Sequence[str], path: Sequence[str], environ: Mapping[str, str]) -> Seen:
    """What runs on a node."""
    sys.path += [folder for folder in path if folder not in sys.path and os.path.isdir(folder)]
    os.environ.update(environ)
    return Seen(checks=doctor(suite=suite), versions=installed(packages), memory=capacity.memory().total)


def doctor_cluster(address: str, suite: str, on_check: Callable[[Check], None] | None = None) -> list[Check]:
    """Check a cluster, a check a node; takes as long as the slowest node.

    Args:
        address: see `Connection`.
        suite: of simulators that must be on every node.
        on_check: called with each result as it is known.

    Raises:
        ConfigError, DependencyMissing: there is no such cluster.
    """
    connection = Connection(address)
    try:
        ray, checks = connection.ray, []
        packages, each = (*ALWAYS, *suites.get(suite).packages), worker_memory(suite)
        environ = {name: os.environ[name] for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM") if name in os.environ}
        asked = {}
        for place in connection.places():
            here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place.id, soft=False)
            task = ray.remote(look).options(num_cpus=0, scheduling_strategy=here, max_retries=0)
            asked[place] = task.remote(suite, packages, interpreter.module_path(), environ)
        if not asked:
            checks.append(
                Check(name="nodes", ok=False, detail="none has a core to give", remedy="ray start --num-cpus")
            )
        for place, ref in asked.items():
            try:
                check = node_check(place, ray.get(ref, timeout=SECONDS), installed(packages), each)
            except ray.exceptions.RayError as error:
                said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
                remedy = "see `ray status`, and install the same ript and Python there as here"
                check = Check(name=f"node {place.name}", ok=False, detail=f"did not answer: {said[0]}", remedy=remedy)
            checks.append(check)
            if on_check is not None:
                on_check(check)
        return checks
    finally:
        connection.close()


def worker_memory(suite: str) -> int:
    """Bytes of a worker process with simulators of as many of the suite's tasks as it holds at a time, as they come."""
    keys = [task.key for task in suites.get(suite).tasks()]
    return WORKER + simulators_memory(sim_options(suite), keys, RolloutConfig().loaded_tasks)


def node_check(place: Place, seen: Seen, ours: Mapping[str, str], each: int) -> Check:
    """One line for a node, with all that is wrong with it.

    Args:
        place, seen: the node, and what it says of itself.
        ours: distribution -> version here.
        each: bytes of a worker process.
    """
    workers = min(place.cores, seen.memory // each)
    found = [f"{place.cores} cores, {place.gpus} GPUs, {seen.memory / GIB:.0f} GiB"]
    found.append(f"object store {place.store / GIB:.1f} GiB")
    found.append(f"room for {workers} workers of a small policy (of {each / GIB:.1f} GiB)")
    found += [f"renders with {check.detail}" for check in seen.checks if check.name == "renderer" and check.ok]
    wrong = [
        (f"{check.name}: {check.detail}", check.remedy) for check in seen.checks if check.required and not check.ok
    ]
    if differ := differing(ours, seen.versions):
        wrong.append((f"other versions than here: {differ}", "install the same (pip install -c constraints.txt ...)"))
    return Check(
        name=f"node {place.name}",
        ok=not wrong,
        detail="; ".join([*(what for what, _ in wrong), *found]),
        remedy="; ".join(dict.fromkeys(remedy for _, remedy in wrong if remedy)),
    )
