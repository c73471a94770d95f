"""How many cores and how much memory this process may use: the machine's, or less in a container or a job.

Limits are those of control groups (version 1 and 2, of the own group and of all above it), of the processor mask, and
of a SLURM job, which may be killed for what no control group holds back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
RENDER_GPU = "RIPT_RENDER_GPU"
"""Variable that says which GPU simulators of this process are to render on, by CUDA's number."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Whole cores that may be used, at least 1, of those that the machine has; `limit` says what holds it to fewer."""

    usable: int
    machine: int
    limit: str = ""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that may be used in all, and that are available now; `limit` says what holds it to less than there is."""

    total: int
    available: int
    limit: str = ""


def cores(environment: Mapping[str, str] | None = None, root: Path = Path("/")) -> Cores:
    """Cores for this process.

    Args:
        environment: variables, those of this process by default.
        root: where /proc and /sys are found.
    """
    variables = os.environ if environment is None else environment
    there = os.cpu_count() or 1
    masked = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    found = [(float(there), ""), (float(masked), "processor mask")]
    for group in _groups("cpu", root):
        quota, period = [*_words(group / "cpu.max"), "", ""][:2]
        quota = quota or " ".join(_words(group / "cpu.cfs_quota_us"))
        period = period or " ".join(_words(group / "cpu.cfs_period_us"))
        if quota.isdigit() and period.isdigit() and int(period):  # else "max", or version 1's -1
            found.append((int(quota) / int(period), f"control group {group}"))
    given = [_slurm(variables, name) for name in ("CPUS_PER_TASK", "CPUS_ON_NODE")]
    found += [(float(number), _job(variables)) for number in given if number]
    least, limit = min(found, key=lambda one: one[0])
    return Cores(max(1, int(least)), there, limit)


def memory(environment: Mapping[str, str] | None = None, root: Path = Path("/")) -> Memory:
    """Memory for this process.

    Args:
        environment: variables, those of this process by default.
        root: where /proc and /sys are found.
    """
    variables = os.environ if environment is None else environment
    total, available = _physical()
    found = [(total, available, "")]
    for group in _groups("memory", root):
        most = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if most and most[0].isdigit() and int(most[0]) < total:  # else "max", or version 1's huge number
            taken = max(0, int(used[0]) - _reclaimable(group)) if used else 0
            found.append((int(most[0]), max(0, int(most[0]) - taken), f"control group {group}"))
    given = _slurm(variables, "MEM_PER_NODE") or (
        _slurm(variables, "MEM_PER_CPU") * (_slurm(variables, "CPUS_ON_NODE") or 1)
    )
    if given:
        found.append((given * MIB, given * MIB, _job(variables)))
    least = min(found, key=lambda one: one[1])
    return Memory(min(one[0] for one in found), least[1], least[2])


def _physical() -> tuple[int, int]:
    """(total, available), bytes."""
    try:
        import psutil

        found = psutil.virtual_memory()
        return int(found.total), int(found.available)
    except Exception:  # `ript doctor` says that the package is broken
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return total, total


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, its own first and then those above it."""
    own: dict[str, str] = {}  # controller -> path of the own group; "" is version 2
    for line in _lines(root / "proc/self/cgroup"):
        _, names, path = [*line.split(":", 2), "", ""][:3]
        own |= dict.fromkeys(names.split(","), path)
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, behind = line.partition(" - ")
        mounted, at, kind = before.split()[3:4], before.split()[4:5], behind.split()
        if not (mounted and at and kind):
            continue
        name = "" if kind[0] == "cgroup2" else controller
        if kind[0] not in ("cgroup", "cgroup2") or name not in own or (name and name not in kind[-1].split(",")):
            continue
        # A container sees its own group as the root of the mount, and may be told the path outside.
        top = root / at[0].lstrip("/")
        group = own[name].removeprefix(mounted[0]) if mounted[0] != "/" else own[name]
        folder = top / group.lstrip("/")
        while True:
            if folder.is_dir():
                yield folder
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent


def _reclaimable(group: Path) -> int:
    """Bytes of files that the kernel keeps only as long as there is room."""
    counted = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat") if " " in line)
    found = counted.get("total_inactive_file", counted.get("inactive_file", "0"))
    return int(found) if found.isdigit() else 0


def _slurm(variables: Mapping[str, str], name: str) -> int:
    """A number that SLURM has set; 0 outside a job, and where it has set none (0 MiB are all that there are)."""
    value = variables.get(f"SLURM_{name}", "")
    return int(value) if "SLURM_JOB_ID" in variables and value.isdigit() else 0


def _job(variables: Mapping[str, str]) -> str:
    return f"SLURM job {variables['SLURM_JOB_ID']}"


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    """Lines of a file; none where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
