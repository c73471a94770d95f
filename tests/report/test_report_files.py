"""JSON documents and logs that are whole, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ript.core.errors import DataError, RunError
from ript.run import files


def test_a_line_that_could_not_be_flushed_is_cut_off_again(tmp_path, monkeypatch):
    def fsync(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = tmp_path / "metrics.jsonl"
    files.append_line(log, '{"a": 1}')
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match="the disk is full"):
        files.append_line(log, '{"a": 2}')
    assert log.read_text() == '{"a": 1}\n'


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
