"""Cores and memory are what a container, a job or a mask leaves of the machine's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ript.core.capacity import MIB, Cores, cores, memory

V1 = {
    "proc/self/cgroup": "4:memory:/outside/box\n2:cpu,cpuacct:/outside/box\n1:name=systemd:/\n0::/\n",
    "proc/self/mountinfo": (
        "30 20 0:1 /outside/box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "31 20 0:2 /outside/box /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
        "32 20 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "broken line\n"
    ),
}
V2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "proc/self/mountinfo": "30 20 0:1 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n",
}
NONE = {"SLURM_CPUS_ON_NODE": "1", "SLURM_MEM_PER_NODE": "1"}
"""Variables of a shell that is in no job any more."""


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 cores, of which the mask leaves 8."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_without_control_groups_the_mask_decides(tmp_path: Path) -> None:
    assert cores(NONE, tmp_path) == Cores(8, 16, "processor mask")
    there = memory(NONE, tmp_path)
    assert 0 < there.available <= there.total
    assert there.limit == ""


@pytest.mark.parametrize(
    ("quota", "usable"), [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9000000 100000", 8)]
)
def test_a_quota_of_version_2_counts_whole_cores_and_at_least_one(quota: str, usable: int, tmp_path: Path) -> None:
    root = machine(tmp_path, {**V2, "sys/fs/cgroup/job/step/cpu.max": quota})
    assert cores(NONE, root).usable == usable


def test_a_limit_of_a_group_above_holds_too_and_is_named(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/job/step/cpu.max": "600000 100000",
        "sys/fs/cgroup/job/cpu.max": "300000 100000",
        "sys/fs/cgroup/job/memory.max": str(100 * MIB),
        "sys/fs/cgroup/job/memory.current": str(60 * MIB),
        "sys/fs/cgroup/job/memory.stat": f"anon 1\ninactive_file {20 * MIB}\n",
        "sys/fs/cgroup/job/step/memory.max": "max",
        "sys/fs/cgroup/job/step/memory.current": "5",
    }
    root = machine(tmp_path, {**V2, **files})
    group = f"control group {root / 'sys/fs/cgroup/job'}"
    assert cores(NONE, root) == Cores(3, 16, group)
    there = memory(NONE, root)
    assert (there.total, there.available, there.limit) == (100 * MIB, 60 * MIB, group)


def test_limits_of_version_1_are_found_where_a_container_mounts_its_own_group(tmp_path: Path) -> None:
    box = "sys/fs/cgroup"
    files = {
        f"{box}/cpu,cpuacct/cpu.cfs_quota_us": "400000",
        f"{box}/cpu,cpuacct/cpu.cfs_period_us": "100000",
        f"{box}/memory/memory.limit_in_bytes": str(50 * MIB),
        f"{box}/memory/memory.usage_in_bytes": str(10 * MIB),
        f"{box}/memory/memory.stat": "total_inactive_file 0\n",
    }
    root = machine(tmp_path, {**V1, **files})
    assert cores(NONE, root).usable == 4
    there = memory(NONE, root)
    assert (there.total, there.available) == (50 * MIB, 40 * MIB)


def test_no_limit_of_version_1_is_none(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
    }
    root = machine(tmp_path, {**V1, **files})
    assert cores(NONE, root).usable == 8
    assert memory(NONE, root).limit == ""


@pytest.mark.parametrize(
    ("variables", "usable", "mib"),
    [
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "6", "SLURM_MEM_PER_NODE": "300"}, 4, 300),
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_MEM_PER_CPU": "50"}, 6, 300),
        ({"SLURM_CPUS_ON_NODE": "32", "SLURM_MEM_PER_CPU": "50"}, 8, 1600),
    ],
)
def test_a_job_of_slurm_has_what_it_was_given(variables: dict, usable: int, mib: int, tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "7", **variables}
    assert cores(job, tmp_path).usable == usable
    there = memory(job, tmp_path)
    assert (there.total, there.available, there.limit) == (mib * MIB, mib * MIB, "SLURM job 7")


def test_a_job_of_slurm_with_all_memory_of_its_node_has_what_there_is(tmp_path: Path) -> None:
    assert memory({"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "0"}, tmp_path).limit == ""
