"""The cache lies where the environment says, or an error says what to set."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from disks import as_ordinary_user, open_to_all
from toy_runs import toy_config

from ript.core.disk import cannot_write
from ript.core.errors import RunError
from ript.core.places import cache_folder, cache_trouble
from ript.run.folder import RunFolder
from ript.studies.bases import base_folder, make_base
from ript.studies.quickstart import quickstart


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RIPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "cache, shared, home, found",
    [
        ("/a/b", "/c", "/d", "/a/b"),
        ("~/b", "/c", "/d", "/d/b"),
        ("", "/c", "/d", "/c/ript"),
        (None, "~/c", "/d", "/d/c/ript"),
        (None, "", "/d", "/d/.cache/ript"),
        (None, "relative", "/d", "/d/.cache/ript"),
    ],
)
def test_the_first_place_that_the_environment_names_counts(bare, cache, shared, home, found):
    for name, value in (("RIPT_CACHE", cache), ("XDG_CACHE_HOME", shared), ("HOME", home)):
        if value is not None:
            bare.setenv(name, value)
    assert str(cache_folder()) == found


def test_a_relative_cache_is_that_of_now_wherever_the_process_goes(bare, tmp_path):
    bare.setenv("RIPT_CACHE", "cache")
    bare.chdir(tmp_path)
    assert cache_folder() == tmp_path / "cache"


NOWHERE = """
import os
from ript.core.errors import RunError
from ript.core.places import cache_folder, cache_trouble
from ript.studies.quickstart import quickstart
os.setuid(54321)
try:
    print(cache_folder())
except RunError as error:
    assert cache_trouble() == str(error)
    print(error)
"""


def test_a_user_without_a_home_is_told_to_set_the_variable():
    if os.geteuid():
        pytest.skip("needs the right to run as another user")
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    for extra in ({}, {"HOME": ""}):
        done = subprocess.run([sys.executable, "-c", NOWHERE], env=path | extra, capture_output=True, text=True)
        assert "user 54321 has none): set RIPT_CACHE to a folder" in done.stdout, done.stderr


def test_a_cache_that_cannot_be_written_names_the_variable_before_anything_is_made(bare, tmp_path):
    open_to_all(tmp_path)
    config = toy_config(pretrain_tasks=("reach-left",))
    bare.setenv("HOME", str(tmp_path))
    assert cache_trouble() == "" and os.listdir(tmp_path) == []
    with as_ordinary_user():
        assert f"cannot write {tmp_path}/.cache/ript: permission denied" in cache_trouble()
        assert "set RIPT_CACHE to a folder" in cache_trouble()
        with pytest.raises(RunError, match=r"permission denied.*set RIPT_CACHE to a folder"):
            make_base(config, base_folder(config))
    bare.setenv("RIPT_CACHE", str(tmp_path / "file" / "cache"))
    Path(tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"is a file.*set RIPT_CACHE to a folder"):
        make_base(config, base_folder(config))
    assert "set RIPT_CACHE" in cache_trouble()


def test_a_quickstart_without_a_place_for_its_cache_takes_no_folder(bare, tmp_path):
    bare.setenv("HOME", "relative")
    with pytest.raises(RunError, match="set RIPT_CACHE to a folder"):
        quickstart(config=toy_config(pretrain_tasks=("reach",)), out=tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_home_that_is_relative_and_a_tilde_that_names_no_home_are_told_apart(bare):
    bare.setenv("HOME", "relative")
    with pytest.raises(RunError, match=r"HOME=relative is relative.*set RIPT_CACHE to a folder"):
        cache_folder()
    bare.setenv("RIPT_CACHE", "~nosuchuser/x")
    with pytest.raises(RunError, match="RIPT_CACHE=~nosuchuser/x: ~nosuchuser is no home folder"):
        cache_folder()


def test_a_cache_whose_name_is_too_long_is_found_out_beforehand(bare, tmp_path):
    bare.setenv("RIPT_CACHE", str(tmp_path / ("x" * 300) / "cache"))
    assert "the name is too long" in cache_trouble()


def test_what_a_link_to_nothing_points_to_is_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "run")
    RunFolder.require_free(tmp_path / "link")
    with RunFolder.create(tmp_path / "link", {}):
        assert (tmp_path / "elsewhere" / "run" / "config.json").is_file()


def test_a_file_that_is_larger_than_the_process_may_write_names_the_limit():
    assert "ulimit -f" in str(cannot_write("a", OSError(errno.EFBIG, "File too large")))
