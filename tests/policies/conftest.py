"""One thread: the suite shares its cores. And a folder from which policies of a user's own are imported."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ript.core.registry import kinds

torch.set_num_threads(1)


@pytest.fixture
def imported_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, an empty one; what is imported from there is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(kinds, "_loaded", {})
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
