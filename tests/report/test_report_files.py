"""Files are whole or not there, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ript.errors import DataError, RunError
from ript.report import files


@pytest.fixture
def failing_disk(monkeypatch):
    """Make every flush to disk fail with an errno of choice."""

    def arrange(number: int) -> None:
        def fsync(handle: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    return arrange


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")]
)
def test_a_failed_write_keeps_the_old_file_and_says_what_to_do(tmp_path, failing_disk, number, remedy):
    target = tmp_path / "report.html"
    files.write_text(target, "old")
    failing_disk(number)
    with pytest.raises(RunError, match=remedy) as caught:
        files.write_text(target, "new")
    assert str(target) in str(caught.value)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_error_in_the_middle_of_writing_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), files.atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_a_failed_folder_keeps_the_old_folder(tmp_path, failing_disk):
    with files.atomic_folder(tmp_path / "best") as temporary:
        (temporary / "weights").write_text("old")
    failing_disk(errno.ENOSPC)
    with pytest.raises(RunError, match="best: the disk is full"), files.atomic_folder(tmp_path / "best") as temporary:
        (temporary / "weights").write_text("new")
    assert (tmp_path / "best" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_new_folder_takes_the_place_of_the_old_one_whole(tmp_path):
    for name in ("a", "b"):
        with files.atomic_folder(tmp_path / "best") as temporary:
            (temporary / name).write_text(name)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_a_kill_between_the_two_renames_set_aside_comes_back(tmp_path):
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "weights").write_text("old")
    (tmp_path / ".best.12ab34cd.tmp").mkdir()
    (tmp_path / ".config.json.12ab34cd.tmp").write_text("half")
    files.clean_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (tmp_path / "best" / "weights").read_text() == "old"


def test_a_line_that_could_not_be_flushed_is_cut_off_again(tmp_path, failing_disk):
    log = tmp_path / "metrics.jsonl"
    files.append_line(log, '{"a": 1}')
    failing_disk(errno.ENOSPC)
    with pytest.raises(RunError, match="the disk is full"):
        files.append_line(log, '{"a": 2}')
    assert log.read_text() == '{"a": 1}\n'


def test_a_really_full_disk_leaves_no_half_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    try:
        files.write_text(disk / "small", "old")
        with pytest.raises(RunError, match="the disk is full"):
            files.write_bytes(disk / "small", b"0" * 200_000)
        assert (disk / "small").read_text() == "old"
        assert [path.name for path in disk.iterdir()] == ["small"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="runs"):
        files.make_folder(tmp_path / "runs" / "a")


def test_what_json_lacks_is_written_as_null_and_numpy_as_plain_numbers():
    value = {
        "a": float("nan"),
        "b": [np.float32(0.5), np.inf],
        "c": np.arange(2),
        3: (True, Path("x")),
        "d": np.int64(7),
    }
    text = files.dumps(value)
    assert json.loads(text) == {"a": None, "b": [0.5, None], "c": [0, 1], "3": [True, "x"], "d": 7}
    with pytest.raises(TypeError, match="set"):
        files.dumps({"a": {1}})


def test_a_torn_last_line_is_left_out_and_a_damaged_one_before_it_is_named(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert files.read_lines(log) == []
    log.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert files.read_lines(log) == [{"a": 1}, {"a": 2}]
    log.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        files.read_lines(log)


def test_a_document_that_is_no_json_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not a readable JSON document"):
        files.read_json(tmp_path / "config.json")
    with pytest.raises(DataError, match=r"result\.json does not exist"):
        files.read_json(tmp_path / "result.json")
