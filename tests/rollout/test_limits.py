"""What the operating system refuses is told before it hurts, with a remedy."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ript.core.capacity import Memory
from ript.core.errors import WorkerError
from ript.rollout.local.limits import Limit, open_files, open_memory, shared_memory


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    """Within it this process may have no more than `most`."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def test_files_that_workers_will_need_are_counted_before_they_are_opened():
    with limited(resource.RLIMIT_NOFILE, 128):
        assert open_files(2).remedy == ""
        found = open_files(200)
    assert "128 allowed" in found.detail
    assert "200 workers" in found.detail
    assert "ulimit -n" in found.remedy


def test_memory_is_reserved_when_it_is_made_and_has_no_name():
    fileno = open_memory(100_000)
    try:
        status = os.fstat(fileno)
        assert status.st_size == 100_000
        assert status.st_blocks * 512 >= 100_000, "not there yet: the first write may be one too many"
        assert status.st_nlink == 0
    finally:
        os.close(fileno)


def test_memory_that_is_not_there_is_an_error_with_a_remedy_and_leaves_no_file_open():
    before = os.listdir("/proc/self/fd")
    with limited(resource.RLIMIT_FSIZE, 50_000):
        with pytest.raises(WorkerError, match=r"no shared memory .*--shm-size.*--rollout.inference=local"):
            open_memory(100_000)
        found = shared_memory(100_000)
    assert os.listdir("/proc/self/fd") == before
    assert "no shared memory" in found.detail
    assert "--workers 0" in found.remedy
    assert isinstance(shared_memory(100_000), Limit)
    assert shared_memory(100_000).remedy == ""


def test_more_shared_memory_than_there_is_of_any_is_an_error_before_the_kernel_ends_processes_for_it(monkeypatch):
    monkeypatch.setattr("ript.core.capacity.memory", lambda: Memory(total=80_000, available=50_000))
    with pytest.raises(WorkerError, match=r"0.1 MiB.*0 MiB of memory are available.*--rollout.slots"):
        open_memory(100_000)
    os.close(open_memory(40_000))
    monkeypatch.setattr("ript.core.capacity.memory", lambda: Memory(total=80_000, available=0))
    os.close(open_memory(4096))
