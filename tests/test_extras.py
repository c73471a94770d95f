"""Videos and the report are extra: what can be known is looked at first, and what fails then costs no result."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import as_ordinary_user, mounted, open_to_all
from toy_runs import lively_policy, toy_config

from ript.cli import main as cli
from ript.core.errors import DependencyMissing
from ript.rl import train_rl
from ript.run.folder import RunFolder

SMALL = (
    "--recipe",
    "smoke",
    "--iterations",
    1,
    "--eval.trials=2",
    "--eval.every=0",
    "--sampling.group_size=4",
    "--sampling.groups=2",
    "--sampling.max_attempts=4",
)


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("policy") / "policy"
    lively_policy(toy_config()).save_pretrained(folder)
    yield folder


def evaluation(policy: Path, videos: Path) -> tuple[object, ...]:
    return (
        "eval",
        "--policy",
        policy,
        "--tasks",
        "reach-centre",
        "--trials",
        2,
        "--workers",
        0,
        "--videos",
        1,
        "--video-dir",
        videos,
    )


def test_an_evaluation_whose_videos_cannot_be_written_does_not_begin(policy: Path, tmp_path: Path, capsys: Any) -> None:
    closed = open_to_all(tmp_path) / "closed"
    closed.mkdir(mode=0o555)
    open_to_all(policy)
    with as_ordinary_user():
        assert run(*evaluation(policy, closed)) == 1
    assert run(*evaluation(policy, Path("/proc"))) == 1
    with mounted(tmp_path / "full", "4k") as full:
        (full / "all").write_bytes(bytes(4096))
        assert run(*evaluation(policy, full)) == 1
    err = capsys.readouterr().err
    assert [err.count(f"cannot write {place}: ") for place in (closed, "/proc", full)] == [1, 1, 1]
    assert "evaluating" not in err


def test_without_an_encoder_no_evaluation_and_no_run_begins(
    policy: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(*evaluation(policy, tmp_path / "videos")) == 1
    assert "videos need PyAV" in capsys.readouterr().err
    with pytest.raises(DependencyMissing, match="pip install av"):
        train_rl(toy_config(eval={"videos": 1}), policy, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    assert run(*evaluation(policy, tmp_path / "videos")[:-4]) == 0  # none were asked for


def test_a_video_that_fails_is_named_and_the_measurement_is_printed(policy: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(*evaluation(policy, tmp_path), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (video,) = tmp_path.iterdir()
    video.unlink()
    video.mkdir()  # something in the way
    assert run(*evaluation(policy, tmp_path), "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == found
    assert f"{video.name} is missing: cannot write {video}: it is a folder" in printed.err


def test_a_run_goes_on_without_videos_and_without_a_report(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = RunFolder.save_videos

    def without_an_encoder(*args: Any, **kwargs: Any) -> list[Path]:
        with monkeypatch.context() as gone:
            gone.setitem(sys.modules, "av", None)
            return save(*args, **kwargs)

    monkeypatch.setattr(RunFolder, "save_videos", without_an_encoder)
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    assert run("rl", *SMALL, "--out", tmp_path / "run", "--json") == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["report"] is None and Path(document["policy"]).is_dir()
    assert printed.err.count(".mp4 is missing: videos need PyAV") == 2
    assert f"there is no report: {tmp_path / 'run' / 'report.html'} is a folder" in printed.err
