"""Trackers are optional and extra: they get each line once, and whatever becomes of one, the run goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
from toy_runs import Stopped, lively_policy, stop_in, toy_config, toy_demos

from ript.core.errors import DependencyMissing, UnknownNameError
from ript.core.types import EvalResult, TaskResult
from ript.rl import train_rl
from ript.run import trackers
from ript.run.folder import RunFolder
from ript.run.trackers import require_trackers
from ript.sft import train_sft


class Recording:
    """A tracker that keeps what it is sent, and fails where it is told to."""

    fails_in = ""
    with_: ClassVar[type[BaseException]] = ConnectionResetError
    made: ClassVar[list[Recording]]

    def __init__(self, folder: Path, config: dict, run_id: str):
        self.id, self.rows, self.closed = run_id, [], None
        self.made.append(self)
        self.do("start")

    def do(self, what: str) -> None:
        if self.fails_in == what:
            raise self.with_(f"no service for {what}\nand more lines")

    def log(self, iteration: int, numbers: dict[str, float]) -> None:
        self.do("log")
        self.rows.append((iteration, numbers))

    def close(self, failed: bool) -> None:
        self.closed = failed
        self.do("close")


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    """In place of TensorBoard."""

    class Mine(Recording):
        made: ClassVar[list[Recording]] = []

        @staticmethod
        def package() -> None: ...

    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Mine)
    return Mine


def measured(rate: float = 0.5) -> EvalResult:
    result = TaskResult(successes=int(4 * rate), trials=4, errors=0, interval=(0.1, 0.9))
    return EvalResult(
        policy="p",
        seed=0,
        mode="sampled (temperature 0.6)",
        tasks={"a": result, "b": result},
        total=result,
        per_state={"a": [], "b": []},
        videos=[],
        env_steps=8,
        seconds=1.0,
    )


def test_no_tracker_needs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        run.track([])
        run.log(1, {"update/kl": 0.5})
    assert not (tmp_path / trackers.RECORD).exists()


def test_one_whose_package_leaves_when_it_is_imported_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wandb.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(DependencyMissing, match=r"cannot be imported \(SystemExit: 0\)"):
        require_trackers(["wandb"])


def test_an_unknown_tracker_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean tensorboard"):
        require_trackers(["tensorbord"])


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")], ids=["tensorboard", "wandb"]
)
def test_a_tracker_that_is_not_installed_names_its_extra(monkeypatch, name, module) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyMissing, match=rf"pip install 'ript\[{name}\]'"):
        require_trackers([name])


def test_all_that_is_logged_is_sent_with_evaluations_under_their_states_mode_and_task(tmp_path, recording) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        run.track(["tensorboard"])
        run.log_eval(0, measured(), states="test")
        run.log(1, {"update/kl": 0.5, "update/entropy": float("nan")})
    (tracker,) = recording.made
    rates = {"eval/test/sampled": 0.5, "eval/test/sampled/a": 0.5, "eval/test/sampled/b": 0.5}
    assert tracker.rows == [(0, rates), (1, {"update/kl": 0.5})]
    assert tracker.closed is False


@pytest.mark.parametrize("fails_in", ["start", "log", "close"])
def test_one_that_fails_in_any_way_is_dropped_with_one_line_and_the_run_goes_on(
    fails_in: str, tmp_path: Path, recording: type[Recording], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    recording.fails_in = fails_in
    config = toy_config(iterations=2, tracker="tensorboard", eval={"every": 0})
    for error in (ConnectionResetError, SystemExit, KeyboardInterrupt, GeneratorExit):
        recording.with_ = error
        if error is ConnectionResetError:
            result = train_rl(config, lively_policy(config), tmp_path / "run")
            assert result.reason == "all 2 iterations done"
            assert (tmp_path / "run" / "policy").is_dir()
        else:
            with RunFolder.create(tmp_path / error.__name__, {}) as run:
                run.track(["tensorboard"])
                run.log(1, {"update/kl": 0.5})
        said = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        why = f"{error.__name__}: no service for {fails_in}"
        line = f"  tracker tensorboard is dropped ({why}); the run goes on, its logs are complete"
        assert [line for line in said if "tracker" in line or "Trace" in line] == [line]


def test_a_signal_while_a_tracker_works_is_the_users(tmp_path: Path, recording: type[Recording], monkeypatch) -> None:
    done = threading.Event()

    def interrupted(self: Recording, iteration: int, numbers: dict[str, float]) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as a terminal does
        done.wait(30)

    monkeypatch.setattr(recording, "log", interrupted)
    with RunFolder.create(tmp_path, {}) as run:
        run.track(["tensorboard"])
        with pytest.raises(KeyboardInterrupt):
            run.log(1, {"update/kl": 0.5})
        done.set()


def test_one_that_does_not_end_is_left_behind(tmp_path, recording, monkeypatch, capsys) -> None:
    monkeypatch.setattr(trackers, "CALL_SECONDS", 0.05)
    done = threading.Event()
    monkeypatch.setattr(recording, "close", lambda self, failed: done.wait(30))
    with RunFolder.create(tmp_path, {}) as run:
        run.track(["tensorboard"])
        run.log(1, {"update/kl": 0.5})
    done.set()
    assert "tracker tensorboard is dropped (no answer within 0 s: it is left behind" in capsys.readouterr().err
    RunFolder.open(tmp_path).close()  # the lock is free


@pytest.mark.parametrize(
    ("method", "when"),
    [("log", 2), ("save_checkpoint", 2), ("log_eval", lambda call, *rest: call == 4), ("finish", lambda *rest: True)],
    ids=["before a line", "between line and checkpoint", "in a validation", "at the end"],
)
def test_a_run_that_is_stopped_again_and_again_sends_each_line_once(
    method: str, when, tmp_path: Path, recording: type[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tracker="tensorboard", iterations=3)
    policy, out = lively_policy(config), tmp_path / "run"
    policy.save_pretrained(tmp_path / "policy")
    for attempt in range(2):
        with monkeypatch.context() as patch:
            stop_in(patch, method, when)
            with pytest.raises(Stopped):
                train_rl(config, tmp_path / "policy", out, resume=attempt > 0)
        assert recording.made[-1].closed is True
    train_rl(config, tmp_path / "policy", out, resume=True)
    assert recording.made[-1].closed is False
    sent = Counter((i, key) for tracker in recording.made for i, numbers in tracker.rows for key in numbers)
    assert set(sent.values()) == {1}
    with RunFolder.open(out) as run:
        logged = {(row["iteration"], "rollout/success") for row in run.metrics()}
        logged |= {(row["iteration"], f"eval/{row['states']}/{row['mode'].split()[0]}") for row in run.evals()}
    assert logged == {(i, key) for i, key in sent if key.startswith("eval/") or key == "rollout/success"}
    assert len({tracker.id for tracker in recording.made}) == 1


def test_one_that_was_dropped_is_sent_what_it_lacks_when_the_run_goes_on(tmp_path, recording, monkeypatch) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        run.track(["tensorboard"])
        run.log(1, {"update/kl": 0.5})
        recording.fails_in = "log"
        run.log(2, {"update/kl": 0.25})
        run.log_eval(2, measured(), states="validation")
        run.log(3, {"update/kl": 0.125})
        run.save_checkpoint(3, {})
    recording.fails_in = ""
    with RunFolder.open(tmp_path) as run:
        run.track(["tensorboard"])
        run.load_checkpoint()
        run.log(4, {"update/kl": 0.0})
    assert [iteration for iteration, _ in recording.made[0].rows] == [1]
    assert [iteration for iteration, _ in recording.made[1].rows] == [2, 3, 2, 4]


def test_supervised_training_is_tracked_too_and_a_missing_package_is_told_before_it_begins(
    tmp_path: Path, recording: type[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tracker="tensorboard", tasks=())
    demos = [toy_demos(tmp_path / "demos.hdf5", config, "reach-centre")]
    train_sft(config, demos, tmp_path / "run")
    (tracker,) = recording.made
    assert [iteration for iteration, _ in tracker.rows] == [10, 20, 30, 40]
    assert "policy/token_loss" in tracker.rows[-1][1]
    assert tracker.closed is False

    def missing() -> None:
        raise DependencyMissing("not here")

    monkeypatch.setattr(recording, "package", staticmethod(missing))
    with pytest.raises(DependencyMissing):
        train_sft(config, demos, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------ the real ones, where they are installed


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_each_step_of_a_resumed_run_once(tmp_path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with contextlib.suppress(Stopped), RunFolder.create(tmp_path, {}) as run:
        run.track(["tensorboard"])
        for iteration in (1, 2):
            run.log(iteration, {"update/kl": 0.5 / iteration, "update/entropy": float("nan")})
            if iteration == 1:
                run.save_checkpoint(1, {})
        raise Stopped
    with RunFolder.open(tmp_path) as run:
        run.track(["tensorboard"])
        run.load_checkpoint()
        run.log(2, {"update/kl": 0.25})
        run.log_eval(2, measured(), states="test")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"][0] == "update/kl"
    assert [(event.step, event.value) for event in events.Scalars("update/kl")] == [(1, 0.5), (2, 0.25)]
    assert [(event.step, event.value) for event in events.Scalars("eval/test/sampled")] == [(2, 0.5)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_gets_the_same_keys_and_a_resumed_run_the_same_id(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for iteration in (1, 2):
        with RunFolder.open(tmp_path) if ids else RunFolder.create(tmp_path, {}) as run:
            run.track(["wandb"])
            if ids:
                run.load_checkpoint()
            run.log(iteration, {"update/kl": 0.5})
            run.save_checkpoint(iteration, {})
            tracker = run._tracking()._running["wandb"]
            ids.append(tracker._run.id)
            assert tracker._run.summary["update/kl"] == 0.5
            assert tracker._run.summary["iteration"] == iteration
            assert tracker._run.step == 1
    assert ids[0] == ids[1]


WANDB_SCRIPT = """
import os, signal, subprocess, sys, time
from ript.run.folder import RunFolder
with RunFolder.create(sys.argv[1], {}) as run:
    run.track(["wandb"])
    run.log(1, {"update/kl": 0.5})
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        if "wandb-core" in line and f"--pid {os.getpid()} " in f"{line} ":
            os.kill(int(line.split()[0]), signal.SIGKILL)
    time.sleep(0.5)
    for iteration in range(2, 6):
        run.log(iteration, {"update/kl": 0.5})
"""


@pytest.mark.parametrize(("mode", "told"), [("offline", "Broken pipe"), ("online", "api_key not configured")])
def test_wandb_whose_service_is_killed_or_that_has_no_key_ends_nothing(tmp_path, mode: str, told: str) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    environment = {
        **os.environ,
        "WANDB_MODE": mode,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "HOME": str(tmp_path),
    }
    environment.pop("WANDB_API_KEY", None)
    done = subprocess.run(
        [sys.executable, "-c", WANDB_SCRIPT, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "tracker wandb is dropped" in done.stderr
    assert told in done.stderr
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize("content", ["", "{}", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_record_that_cannot_be_read_is_kept_and_nothing_is_sent_twice(
    tmp_path: Path, recording: type[Recording], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        (tmp_path / trackers.RECORD).write_text(content)
        run.track(["tensorboard"])
        run.log(1, {"update/kl": 0.5})
    assert recording.made == [] and (tmp_path / trackers.RECORD).read_text() == content
    assert f"tracker tensorboard is dropped ({tmp_path / trackers.RECORD} " in capsys.readouterr().err
