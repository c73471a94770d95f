"""Files and folders are whole or not there, on file systems as they are."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import chdir
from pathlib import Path

import pytest
from disks import as_ordinary_user, modes, mounted, open_to_all, umask

from ript.core import files
from ript.core.disk import cannot_read
from ript.core.errors import DataError, PolicyError, RunError


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


def test_a_really_full_disk_leaves_no_half_file(tmp_path):
    with mounted(tmp_path / "disk", "64k") as disk:
        files.write_text(disk / "small", "old")
        with pytest.raises(RunError, match="the disk is full"):
            files.write_bytes(disk / "small", b"0" * 200_000)
        assert (disk / "small").read_text() == "old"
        assert [path.name for path in disk.iterdir()] == ["small"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="runs"):
        files.make_folder(tmp_path / "runs" / "a")


def save(path: Path, **parts: str) -> None:
    """A folder with these files."""
    with files.atomic_folder(path) as new:
        for name, text in parts.items():
            (new / name).write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# ------------------------------------------------------------------ links


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path):
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    (home / "best").symlink_to(scratch / "best")  # the folder is not there yet
    (home / "page").symlink_to("../scratch/page")
    for text in ("one", "two", "three"):
        save(home / "best", weights=text)
        files.write_text(home / "page", text)
        assert (home / "best").is_symlink() and (home / "page").is_symlink()
        assert texts(scratch / "best") == {"weights": text} and (scratch / "page").read_text() == text
    assert sorted(os.listdir(home)) == sorted(os.listdir(scratch)) == ["best", "page"]


def test_what_was_set_aside_behind_a_link_comes_back(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to(tmp_path / "real")
    save(tmp_path / ".real.0123abcd.old", weights="old")
    (tmp_path / ".other.0123abcd.tmp").mkdir()  # of somebody else
    files.clean_leftovers(tmp_path / "run")
    assert texts(tmp_path / "run" / "best") == {"weights": "old"} and (tmp_path / ".other.0123abcd.tmp").is_dir()


def test_links_in_a_circle_are_an_error_that_names_them(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(RunError, match=f"cannot write {tmp_path}/a: its symbolic links lead in a circle"):
        files.write_text(tmp_path / "a", "text")


# ------------------------------------------------------------------ what cannot be renamed or removed


def test_what_was_set_aside_and_cannot_be_removed_at_once_does_not_stop_the_next_one(tmp_path):
    save(tmp_path / "best", weights="one")
    with mounted(tmp_path / "best" / "open"):  # as what a network file system keeps for a process that has it open
        for text in ("two", "three"):
            save(tmp_path / "best", weights=text)
            assert texts(tmp_path / "best") == {"weights": text}
        (kept,) = (path for path in tmp_path.iterdir() if path.name != "best")
        assert files.is_leftover(kept.name)
        files.clean_leftovers(tmp_path)  # nor does it stop this
        assert texts(tmp_path / "best") == {"weights": "three"}


def test_a_folder_where_a_disk_is_mounted_gets_the_new_files_and_loses_the_old_ones(tmp_path):
    with mounted(tmp_path / "policy") as policy:
        save(policy, config="old", weights="old", stale="old")
        save(policy, config="new", weights="new")
        assert texts(policy) == {"config": "new", "weights": "new"}
    assert os.listdir(tmp_path) == ["policy"]


def test_a_folder_that_the_file_system_cannot_rename_gets_the_new_files(tmp_path, monkeypatch):
    save(tmp_path / "policy", weights="old", stale="old")
    replace = os.replace

    def overlay(source: Path, target: Path) -> None:
        if source == tmp_path / "policy":  # as in a lower layer of an overlay
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        replace(source, target)

    monkeypatch.setattr(os, "replace", overlay)
    save(tmp_path / "policy", weights="new")
    assert texts(tmp_path / "policy") == {"weights": "new"} and os.listdir(tmp_path) == ["policy"]


def test_the_current_folder_is_replaced_without_being_lost(tmp_path):
    save(tmp_path / "policy", weights="old", stale="old")
    with chdir(tmp_path / "policy"):
        save(Path("."), weights="new")
        assert Path.cwd() == tmp_path / "policy" and Path("weights").read_text() == "new"
    assert texts(tmp_path / "policy") == {"weights": "new"} and os.listdir(tmp_path) == ["policy"]


def test_a_folder_whose_parent_may_not_be_written_to_is_replaced_in_place(tmp_path):
    open_to_all(tmp_path)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy").chmod(0o777)
    with as_ordinary_user():
        save(tmp_path / "policy", weights="old")
        save(tmp_path / "policy", weights="new")
    assert texts(tmp_path / "policy") == {"weights": "new"} and os.listdir(tmp_path) == ["policy"]


def test_a_file_in_the_place_of_a_folder_stays(tmp_path):
    (tmp_path / "best").write_text("mine")
    with pytest.raises(RunError, match="best: it is a file"):
        save(tmp_path / "best", weights="new")
    assert texts(tmp_path) == {"best": "mine"}


def test_two_that_save_to_one_place_at_once_both_end_and_leave_nothing_else(tmp_path):
    place = tmp_path / "best"
    for number in range(3):
        with files.atomic_folder(place) as slow:
            (slow / "weights").write_text(f"slow {number}")
            save(place, weights=f"fast {number}")
        assert texts(place) == {"weights": f"slow {number}"}
    with files.atomic_file(tmp_path / "page") as slow:
        files.write_text(tmp_path / "page", "fast")
        slow.write_text("slow")
    assert (tmp_path / "page").read_text() == "slow" and sorted(os.listdir(tmp_path)) == ["best", "page"]


def test_another_process_that_takes_the_place_between_two_renames_is_replaced(tmp_path, monkeypatch):
    save(tmp_path / "best", weights="old")
    replace, times = os.replace, []

    def slow(source: Path, target: Path) -> None:
        replace(source, target)
        if target.name.endswith(".old") and not times:
            times.append(1)
            save(tmp_path / "best", weights="of another process")

    monkeypatch.setattr(os, "replace", slow)
    save(tmp_path / "best", weights="new")
    assert texts(tmp_path / "best") == {"weights": "new"} and os.listdir(tmp_path) == ["best"]


def test_of_what_several_killed_processes_set_aside_the_newest_comes_back(tmp_path):
    for number, name in enumerate((".best.00000002.old", ".best.00000001.old")):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "weights").write_text(str(number))
        (tmp_path / "new").rename(tmp_path / name)
    files.clean_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["best"] and texts(tmp_path / "best") == {"weights": "1"}


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path):
    name = "ä" * 127
    files.write_text(tmp_path / name, "one")
    save(tmp_path / f"{name}b", weights="two")
    save(tmp_path / f"{name}b", weights="three")
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}b"]
    with pytest.raises(RunError, match="the name is too long: choose a shorter one"):
        files.write_text(tmp_path / ("x" * 256), "text")


# ------------------------------------------------------------------ modes


@pytest.mark.parametrize("refused", [False, True], ids=["chmod", "no chmod"])
@pytest.mark.parametrize("mask, file, folder", [(0o002, 0o664, 0o775), (0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_everything_gets_the_umasks_modes_whoever_makes_the_file(tmp_path, monkeypatch, mask, file, folder, refused):
    def chmod(*args: object, **settings: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if refused:
        monkeypatch.setattr(os, "chmod", chmod)
    with umask(mask):
        with files.atomic_folder(tmp_path / "policy") as new:
            (new / "config").write_text("plain")
            os.close(os.open(new / "weights", os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries do
        with files.atomic_file(tmp_path / "page") as new:
            new.unlink()
            os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
    assert modes(tmp_path / "policy") == {".": folder, "config": file, "weights": file}
    assert (tmp_path / "page").stat().st_mode & 0o777 == file


def test_a_folder_keeps_the_group_that_its_parent_hands_on(tmp_path):
    tmp_path.chmod(0o2775)
    save(tmp_path / "policy", weights="one")
    assert (tmp_path / "policy").stat().st_mode & stat.S_ISGID


# ------------------------------------------------------------------ what a file system refuses


REFUSALS = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS]


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_a_file_system_that_cannot_flush_or_change_modes_is_written_to_all_the_same(tmp_path, monkeypatch, number):
    def refuse(*args: object, **settings: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    save(tmp_path / "best", weights="text")
    files.write_text(tmp_path / "page", "text")
    assert texts(tmp_path / "best") == {"weights": "text"} and (tmp_path / "page").read_text() == "text"


def test_a_folder_that_cannot_be_flushed_for_whatever_reason_is_written_to_all_the_same(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    save(tmp_path / "best", weights="text")
    files.write_text(tmp_path / "page", "text")
    assert texts(tmp_path / "best") == {"weights": "text"} and (tmp_path / "page").read_text() == "text"


def test_every_error_of_the_system_keeps_its_path_and_has_a_remedy(tmp_path, monkeypatch):
    for number in errno.errorcode:

        def refuse(source: Path, target: Path, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
            patch.setattr(os, "replace", refuse)
            files.write_text(tmp_path / "page", "text")
        where, _, remedy = str(caught.value).partition("page: ")
        assert where == f"cannot write {tmp_path}/" and (": " in remedy or "moved or deleted" in remedy)
        assert str(cannot_read("weights", OSError(number, "why"))).startswith("weights cannot be read: ")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------ reading


def test_what_may_not_be_read_is_said_to_be_that(tmp_path):
    open_to_all(tmp_path)
    (tmp_path / "text").write_text("text")
    (tmp_path / "text").chmod(0)
    with as_ordinary_user():
        with pytest.raises(DataError, match=f"{tmp_path}/text cannot be read: permission denied: let this user"):
            files.read_text(tmp_path / "text")
        with pytest.raises(PolicyError, match="cannot be read"):
            files.require_content(tmp_path / "text", PolicyError)


def test_a_pointer_of_git_lfs_is_called_that(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1234\n"
    (tmp_path / "weights").write_text(pointer)
    for read in (files.require_content, files.read_text):
        with pytest.raises(DataError, match=r"weights is a pointer of Git LFS.*git lfs pull"):
            read(tmp_path / "weights")


# ------------------------------------------------------------------ names


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.expanded("~/runs") == files.absolute(Path("~/runs")) == tmp_path / "runs"
    assert files.expanded("a/~/b") == Path("a/~/b")
    files.write_text("~/page", "text")
    assert (tmp_path / "page").read_text() == "text"


def test_a_current_folder_that_was_deleted_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    with chdir(gone):
        gone.rmdir()
        with pytest.raises(RunError, match="runs is relative to the current folder, which does not exist any more"):
            files.absolute("runs")
        with pytest.raises(RunError, match="change to one that does"):
            files.write_text("page", "text")
        os.chdir(tmp_path)
