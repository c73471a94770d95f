"""Files that hold something else than they should: pipes, pointers of Git LFS, nothing, what readers trip over."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import lively_policy, toy_config

from ript.config.overrides import load_recipe
from ript.core.documents import json_value, toml_value
from ript.core.errors import DataError, RiptError, RunError
from ript.core.files import read_text
from ript.demos.formats.hdf5 import open_file
from ript.policies.folder import read_tensors
from ript.policies.loading import load_policy
from ript.policies.pth import load_pth
from ript.run.checkpoint import read_checkpoint, write_checkpoint
from ript.run.files import read_json, read_lines
from ript.run.folder import RunFolder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 99\n"
READERS: dict[str, Callable[[Path], Any]] = {
    "a.hdf5": open_file,
    "a.toml": lambda path: load_recipe(str(path)),
    "a.jsonl": read_lines,
    "a.json": read_json,
    "a.txt": read_text,
    "a.safetensors": read_tensors,
    "a.pth": load_pth,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    said: list[str] = []

    def read() -> None:
        try:
            READERS[name](tmp_path / name)
        except RiptError as error:
            said.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(5)
    if reader.is_alive():  # let it go
        os.close(os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK))
    assert len(said) == 1 and name in said[0]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", READERS)
def test_a_pointer_of_git_lfs_is_called_that_behind_a_byte_order_mark_too(tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(mark + POINTER, encoding="utf-8")
    with pytest.raises(DataError, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_of_pointers_is_not_skipped_and_not_removed(tmp_path: Path, name: str) -> None:
    with RunFolder.create(tmp_path / "run", {}) as run:
        for iteration in (0, 1):
            run.save_checkpoint(iteration, {"w": torch.ones(3)})
        pointer = run.path / "checkpoints" / "000001" / name
        pointer.write_text(POINTER)
        with pytest.raises(RunError, match=f"{name} is a pointer of Git LFS"):
            run.load_checkpoint()
        assert pointer.read_text() == POINTER


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_with_a_pipe_in_it_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, 1, {"w": torch.ones(3)})
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(RunError, match=f"{name} is no regular file"):
        read_checkpoint(folder)


DEEP, LONG = "[" * 100_000, "1" + "0" * 5000
"""A reader's recursion limit; more digits than Python makes a number of."""


@pytest.mark.parametrize("value", [DEEP, "[" * 500 + "]" * 500, LONG, LONG[:400]], ids=["deep", "500", "long", "400"])
def test_nonsense_that_readers_trip_over_is_a_mistake_in_the_file(tmp_path: Path, value: str) -> None:
    for read in (json_value, lambda text: toml_value(f"a = {text}")):
        with pytest.raises(ValueError, match=r"nested too deeply|digits"):
            read(value)
    policy = tmp_path / "policy"
    lively_policy(toy_config()).save_pretrained(policy)
    made: dict[Path, Callable[[Path], Any]] = {
        policy / "config.json": lambda path: load_policy(path.parent),
        tmp_path / "a.json": read_json,
        tmp_path / "a.jsonl": read_lines,
        tmp_path / "a.toml": lambda path: load_recipe(str(path)),
    }
    for path, read_file in made.items():
        path.write_text(f"seed = {value}\n" if path.suffix == ".toml" else f'{{"format": {value}}}\n')
        with pytest.raises(DataError, match=path.name):
            read_file(path)


def test_documents_as_deep_and_numbers_as_long_as_any_that_are_needed_are_read() -> None:
    assert json_value("[" * 100 + "]" * 100) is not None
    assert json_value('{"a": [1e-300, ' + "9" * 300 + "]}")["a"][1] == 10**300 - 1


def test_an_empty_file_is_no_recipe(tmp_path: Path) -> None:
    for text in ("", "\n# nothing\n"):
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(DataError, match=r"a\.toml is empty"):
            load_recipe(str(tmp_path / "a.toml"))


def test_a_last_line_that_no_run_began_is_no_torn_one(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"a": 1}\n' + bytes(10))  # after a power cut
    assert read_lines(log) == [{"a": 1}]
    log.write_text("junk")
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1: not a JSON object"):
        read_lines(log)
