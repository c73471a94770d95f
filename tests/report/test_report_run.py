"""A run folder survives kills and says who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import numpy as np
import psutil
import pytest
import torch
from disks import as_ordinary_user, modes, open_to_all, umask
from safetensors.torch import save_file
from synthetic_run import evaluation, moving_square

from ript.core.errors import DataError, RunError
from ript.report.read import read_run
from ript.run import folder as run_module
from ript.run.folder import RunFolder
from ript.run.lock import Lock
from ript.run.reading import read_config

torch.set_num_threads(1)


def state(iteration: int) -> dict:
    return {"w": torch.full((50,), float(iteration)), "iteration": iteration}


def make(path, iterations: int = 4) -> RunFolder:
    run = RunFolder.create(path, {"seed": 1})
    for iteration in range(1, iterations + 1):
        run.log(iteration, {"rollout/success": iteration / 10})
        run.save_checkpoint(iteration, state(iteration))
    return run


def start_process(code: str, *arguments: str) -> subprocess.Popen:
    """Run Python code in another process until it says "ready"."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


HOLD = """
    import sys, time
    from ript.run.folder import RunFolder
    run = RunFolder.create(sys.argv[1], {})
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_new_run_records_what_is_needed_to_repeat_it(tmp_path):
    with RunFolder.create(tmp_path / "run", {"learn": {"lr": 0.1}, "tasks": ("a", "b")}, kind="sft"):
        pass
    document = read_config(tmp_path / "run")
    assert document["config"] == {"learn": {"lr": 0.1}, "tasks": ["a", "b"]}
    assert document["kind"] == "sft"
    assert document["packages"]["torch"] == torch.__version__
    assert document["command"]
    assert {"ript", "python", "platform", "created", "format"} <= set(document)


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path):
    make(tmp_path / "run").close()
    with pytest.raises(
        RunError, match=r"already holds a run: go on with it \(ript rl --resume .*run\) or choose another --out"
    ):
        RunFolder.create(tmp_path / "run", {})
    assert read_config(tmp_path / "run")["config"] == {"seed": 1}


@pytest.mark.parametrize(
    "content, says",
    [
        (
            '{"format": 2, "kind": "quest", "simulator": {}}',
            "holds a 'quest' policy, which a run would replace: choose",
        ),
        ('{"model_type": "bert"}', "holds config.json, which a run would replace: choose another --out"),
        ("junk", "holds config.json, which a run would replace: choose another --out"),
        ('{"format": 2, "kind": "sft", "config": {}}', r"already holds a run: go on with it \(ript sft --resume "),
    ],
)
def test_a_new_run_says_what_lies_where_it_is_to_be(tmp_path, content, says):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=says):
        RunFolder.create(tmp_path, {})
    assert (tmp_path / "config.json").read_text() == content


@pytest.mark.parametrize("name", ["checkpoints", "start", "best", "policy", "videos", "metrics.jsonl", "result.json"])
def test_a_new_run_neither_replaces_nor_goes_on_with_what_is_there(tmp_path, name):
    """A policy to start from, or an old run whose config.json is gone: its checkpoints are not this run's."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=f"holds {name}, which a run would replace: choose another --out"):
        make(tmp_path)
    assert (tmp_path / name / "thesis.txt").read_text() == "mine" and not (tmp_path / "config.json").exists()
    (tmp_path / name).rename(tmp_path / "other")
    make(tmp_path).close()  # what a run does not write is no hindrance


@pytest.mark.parametrize(
    "file, row, what",
    [
        ("metrics.jsonl", {}, "iteration"),
        ("metrics.jsonl", {"iteration": "1"}, "iteration is no whole number"),
        ("metrics.jsonl", {"iteration": 1, "loss": "low"}, "loss: no number"),
        ("evals.jsonl", {"iteration": 1}, "mode"),
        ("evals.jsonl", {"iteration": 1, "mode": 3, "states": "test"}, "mode and states must be words"),
        ("evals.jsonl", {"iteration": 1, "mode": "greedy", "states": "test", "eval": [], "per_state": {}}, ""),
    ],
)
def test_a_line_of_a_log_that_nothing_here_writes_is_named(tmp_path, file, row, what):
    make(tmp_path / "run").close()
    (tmp_path / "run" / file).write_text(json.dumps(row) + "\n")
    with RunFolder.open(tmp_path / "run") as run, pytest.raises(DataError, match=rf"{file}, line 1 is damaged.*{what}"):
        run.log(1, {"loss": 0.5}) if file == "metrics.jsonl" else run.evals()


@pytest.mark.parametrize("damage", [{"config": {"notes": 3}}, {"packages": ["torch"]}])
def test_a_configuration_with_other_types_than_written_is_named(tmp_path, damage):
    make(tmp_path / "run").close()
    document = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(document | damage))
    with pytest.raises(RunError, match="notes must be a list, packages a table"):
        read_config(tmp_path / "run")


def test_a_folder_in_use_by_another_process_names_that_process(tmp_path):
    holder = start_process(HOLD, str(tmp_path / "run"))
    try:
        for attempt in (RunFolder.open, lambda path: RunFolder.create(path, {})):
            with pytest.raises(RunError, match=f"in use by process {holder.pid} on "):
                attempt(tmp_path / "run")
    finally:
        holder.kill()
        holder.communicate()
    RunFolder.open(tmp_path / "run").close()  # the dead process holds nothing any more


def test_closing_lets_the_next_one_in(tmp_path):
    run = make(tmp_path / "run")
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        RunFolder.open(tmp_path / "run")
    run.close()
    run.close()
    with RunFolder.open(tmp_path / "run") as again:
        assert again.config == {"seed": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"format": 99, "ript": "9.9", "kind": "rl", "config": {}}',
            "run format 99 .written by ript 9.9.*reads format 2",
        ),
        ('{"config": {}}', "no format version"),
        ('{"format": 2, "kind": "rl"}', "config missing"),
        ("[]", "no format version"),
    ],
)
def test_a_run_of_another_version_is_refused_before_anything_is_touched(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=message):
        RunFolder.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_of_the_first_release_can_be_read_but_not_gone_on_with(tmp_path):
    with make(tmp_path / "run", 1) as run:
        log = run.path / "evals.jsonl"
    config = run.path / "config.json"
    config.write_text(config.read_text().replace('"format": 2', '"format": 1'))
    row = {"iteration": 0, "mode": "greedy", "states": "held-out", "per_state": {}}
    total = {"successes": 0, "trials": 0, "errors": 0, "interval": [0, 1]}
    row["eval"] = {"policy": "p", "seed": 0, "mode": "greedy", "tasks": {}, "total": total}
    log.write_text(json.dumps(row) + "\n")
    assert [found["states"] for found in read_run(run.path).evals] == ["test"]
    with pytest.raises(
        RunError, match=r"run format 1 .*; runs of format 2 can go on: .* another --out, from its policy .*policy\)"
    ):
        RunFolder.open(run.path)


def test_what_is_no_run_says_so_and_a_parent_names_the_runs_in_it(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        RunFolder.open(tmp_path / "nowhere")
    make(tmp_path / "quick" / "rl").close()
    with pytest.raises(RunError, match=r"not a run folder.*it contains .*quick/rl"):
        RunFolder.open(tmp_path / "quick")


def test_only_the_newest_two_checkpoints_are_kept(tmp_path):
    with make(tmp_path / "run", 5):
        names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["000004", "000005"]


def test_a_run_without_a_checkpoint_starts_from_nothing_with_empty_logs(tmp_path):
    with RunFolder.create(tmp_path, {}) as run:
        run.log(1, {"a": 1.0})
        run.log_eval(0, evaluation({"t": 0.5}, "greedy", np.random.default_rng(0)))
    with RunFolder.open(tmp_path) as run:
        assert run.load_checkpoint() is None
        assert run.metrics() == run.evals() == []


def test_loading_cuts_the_logs_back_to_the_checkpoint_so_that_no_line_is_doubled(tmp_path):
    rng = np.random.default_rng(0)
    with make(tmp_path, 3) as run:
        run.log_eval(2, evaluation({"t": 0.5}, "greedy", rng))
        run.log_eval(3, evaluation({"t": 0.5}, "greedy", rng))  # measured again if it is due
        run.log(4, {"rollout/success": 0.4})
        run.log_eval(4, evaluation({"t": 0.5}, "greedy", rng))
        run.finish("done")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 5, "rollout/suc')
    with RunFolder.open(tmp_path) as run:
        found = run.load_checkpoint()
        assert found.iteration == 3
        assert torch.equal(found.state["w"], state(3)["w"])
        assert [row["iteration"] for row in run.evals()] == [2]
        run.log(4, {"rollout/success": 0.45})
        assert [(row["iteration"], row["rollout/success"]) for row in run.metrics()] == [
            (1, 0.1),
            (2, 0.2),
            (3, 0.3),
            (4, 0.45),
        ]
        assert not (tmp_path / "result.json").exists()


def test_logging_an_iteration_or_an_evaluation_again_replaces_it(tmp_path):
    rng = np.random.default_rng(0)
    with RunFolder.create(tmp_path, {}) as run:
        for value in (1.0, 2.0):
            run.log(1, {"a": value})
            run.log_eval(1, evaluation({"t": 0.5}, "greedy", rng), rollouts=int(value))
        run.log_eval(1, evaluation({"t": 0.5}, "sampled (temperature 1)", rng))
        run.log_eval(1, evaluation({"t": 0.5}, "greedy", rng), states="training")
        assert run.metrics() == [{"iteration": 1, "a": 2.0}]
        assert [(row["mode"], row["states"], row["rollouts"]) for row in run.evals()] == [
            ("greedy", "test", 2),
            ("sampled (temperature 1)", "test", 0),
            ("greedy", "training", 0),
        ]


def test_a_log_is_read_once_and_a_torn_line_is_dropped_by_the_next(tmp_path, monkeypatch):
    reads = []
    original = run_module.read_rows
    monkeypatch.setattr(run_module, "read_rows", lambda path: reads.append(path.name) or original(path))
    with make(tmp_path / "run") as run:
        assert reads == ["metrics.jsonl"]

        def torn(path, line):
            with open(path, "a") as file:
                file.write(line[:9])
            raise RunError("the disk is full")

        with monkeypatch.context() as full, pytest.raises(RunError):
            full.setattr(run_module, "append_line", torn)
            run.log(5, {"rollout/success": 0.5})
        run.log(6, {"rollout/success": 0.7})
        run.log(4, {"rollout/success": 0.8})  # an earlier one
        run.log(7, {"rollout/success": 0.9})
        shown = [(row["iteration"], row["rollout/success"]) for row in run.metrics()]
    assert shown == [(1, 0.1), (2, 0.2), (3, 0.3), (6, 0.7), (4, 0.8), (7, 0.9)]
    assert reads == ["metrics.jsonl"] * 4


def test_an_evaluation_line_holds_the_documented_fields(tmp_path):
    result = evaluation({"t": 0.5}, "greedy", np.random.default_rng(0), trials=3)
    with RunFolder.create(tmp_path, {}) as run:
        run.log_eval(2, result, rollouts=5, env_steps=70, seconds=1.5)
    (row,) = [json.loads(line) for line in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert {key: row[key] for key in ("iteration", "rollouts", "env_steps", "seconds", "mode")} == {
        "iteration": 2,
        "rollouts": 5,
        "env_steps": 70,
        "seconds": 1.5,
        "mode": "greedy",
    }
    assert row["eval"] == result.to_json()
    assert row["per_state"] == {"t": [list(pair) for pair in result.per_state["t"]]}


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, capsys, name):
    make(tmp_path).close()
    damaged = tmp_path / "checkpoints" / "000004" / name
    damaged.write_bytes(damaged.read_bytes()[:20])
    with RunFolder.open(tmp_path) as run:
        found = run.load_checkpoint()
        assert found.iteration == 3
        assert found.state["iteration"] == 3
        said = capsys.readouterr().err
        assert "checkpoint skipped" in said and name in said
        assert [row["iteration"] for row in run.metrics()] == [1, 2, 3]
        run.save_checkpoint(4, state(4))
        assert run.load_checkpoint().iteration == 4


def test_when_no_checkpoint_can_be_read_the_run_stops_and_keeps_them(tmp_path):
    make(tmp_path).close()
    for path in (tmp_path / "checkpoints").iterdir():
        (path / "state.json").write_text("{")
    with RunFolder.open(tmp_path) as run, pytest.raises(RunError, match=r"no checkpoint of .* can be read"):
        run.load_checkpoint()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_that_may_not_be_read_is_neither_skipped_nor_removed(tmp_path, name):
    open_to_all(tmp_path)
    make(tmp_path / "run").close()
    newest = tmp_path / "run" / "checkpoints" / "000004"
    (newest / name).chmod(0)
    with as_ordinary_user(), pytest.raises(RunError, match=f"{newest / name} cannot be read: permission denied"):
        RunFolder(tmp_path / "run", Lock(None), "rl", {}, 2).load_checkpoint()
    assert len(list(newest.iterdir())) == 3


def test_a_run_writes_everything_with_the_modes_of_the_umask(tmp_path):
    with umask(0o002), make(tmp_path / "run") as run:
        run.log_eval(1, evaluation({"t": 0.5}, "greedy", np.random.default_rng(0)))
        run.save_videos("after", [("t", "aa", "failure", moving_square(4))])
        with run.replace(run.best) as folder:
            save_file({"w": torch.zeros(2)}, folder / "weights")
        run.finish("done")
        found = modes(run.path)
    assert {mode for name, mode in found.items() if (run.path / name).is_file()} == {0o664}
    assert {mode for name, mode in found.items() if (run.path / name).is_dir()} == {0o775}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EPERM, errno.EIO], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_used_with_a_warning_and_still_knows_its_own_processes(
    tmp_path, monkeypatch, capsys, number
):
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with make(tmp_path) as run:
        assert f"{tmp_path} cannot be locked ({os.strerror(number)}): see to it" in capsys.readouterr().err
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
            RunFolder.open(tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    owner = {"pid": gone.pid, "host": socket.gethostname(), "since": "yesterday"}
    (tmp_path / ".owner.json").write_text(json.dumps(owner))
    RunFolder.open(tmp_path).close()  # that process has ended
    (tmp_path / ".owner.json").write_text(json.dumps(owner | {"host": "elsewhere"}))
    with pytest.raises(RunError, match=r"in use by process .* on elsewhere .*remove .*\.owner\.json"):
        RunFolder.open(tmp_path)
    (tmp_path / ".owner.json").write_text("")  # another process has just come first
    with pytest.raises(RunError, match=r"by another process, and the file system has no locks.*remove .*owner"):
        RunFolder.open(tmp_path)
    assert run.path == tmp_path


def without_locks(monkeypatch):
    def flock(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_a_process_that_was_given_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    with make(tmp_path):
        owner = json.loads((tmp_path / ".owner.json").read_text())
    for other in (
        {"process": owner["process"] | {"started": "1"}},  # killed, and its number is this process's now
        {"process": owner["process"] | {"boot": "before"}},  # and the machine was started again
        {"process": None},  # of an earlier version
        {"process": owner["process"] | {"started": "1"}, "pid": os.getppid()},
    ):
        (tmp_path / ".owner.json").write_text(json.dumps(owner | other))
        RunFolder.open(tmp_path).close()
    parent = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / ".owner.json").write_text(json.dumps(owner | {"process": None, "pid": parent.pid}))
        with pytest.raises(RunError, match=f"in use by process {parent.pid}"):
            RunFolder.open(tmp_path)
        parent.kill()  # and nobody has asked how it ended
        RunFolder.open(tmp_path).close() if gone(parent.pid) else pytest.fail("still there")
    finally:
        parent.kill()
        parent.wait()


def gone(pid: int) -> bool:
    """Whether a process has come to its end, within five seconds."""
    for _ in range(50):
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_without_locks_a_process_of_another_namespace_may_well_be_at_work(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    with make(tmp_path):
        owner = json.loads((tmp_path / ".owner.json").read_text())
    elsewhere = owner | {"process": owner["process"] | {"namespace": "pid:[1]"}}
    (tmp_path / ".owner.json").write_text(json.dumps(elsewhere))
    with pytest.raises(RunError, match=r"in use by process .*once that has ended, remove .*\.owner\.json"):
        RunFolder.open(tmp_path)


def test_a_checkpoint_that_does_not_fit_on_the_disk_keeps_the_last_good_one(tmp_path, monkeypatch):
    with make(tmp_path, 2) as run:

        def fsync(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(RunError, match="checkpoints/000003: the disk is full"):
            run.save_checkpoint(3, state(3))
        monkeypatch.undo()
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000001", "000002"]
        assert run.load_checkpoint().iteration == 2


TRAIN = """
    import sys, torch
    from ript.run.folder import RunFolder
    run = RunFolder.create(sys.argv[1], {})
    print("ready", flush=True)
    for iteration in range(1, 100_000):
        run.log(iteration, {"x": iteration})
        run.save_checkpoint(iteration, {"w": torch.full((200_000,), float(iteration))})
        with run.replace(run.best) as folder:
            (folder / "weights").write_text(str(iteration) * 1000)
"""


@pytest.mark.parametrize("wait", [0.05, 0.11, 0.23])
def test_a_run_killed_at_any_moment_can_go_on(tmp_path, wait):
    process = start_process(TRAIN, str(tmp_path / "run"))
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with RunFolder.open(tmp_path / "run") as run:
        found = run.load_checkpoint()
        last = found.iteration if found else 0
        if found:
            assert torch.equal(found.state["w"], torch.full((200_000,), float(last)))
        assert [row["iteration"] for row in run.metrics()] == list(range(1, last + 1))
        if last > 1:
            weights = (run.best / "weights").read_text()
            assert weights in {str(i) * 1000 for i in (last - 1, last)}
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.name.endswith((".tmp", ".old"))]


def test_videos_are_named_after_task_state_and_outcome_and_replace_earlier_ones(tmp_path):
    with RunFolder.create(tmp_path, {}) as run:
        run.save_videos("after", [("t", "aa", "failure", moving_square(4))])
        written = run.save_videos("after", [("t", "aa", "success", moving_square(4))])
    assert written == [tmp_path / "videos" / "after" / "t__aa__success.mp4"]
    assert list((tmp_path / "videos" / "after").iterdir()) == written
