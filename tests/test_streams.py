"""Progress that cannot be written ends nothing; a result that cannot be written is not taken for one that was."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import rich.console
import rich.progress
from toy_runs import lively_policy, toy_config, toy_demos

from ript.cli import main as cli
from ript.core import streams
from ript.run import progress as module
from ript.run.progress import progress, status

QUICK = [
    "--recipe",
    "smoke",
    "--eval.trials=2",
    "--eval.every=0",
    "--eval.videos=0",
    "--sampling.group_size=4",
    "--sampling.groups=4",
    "--sampling.max_attempts=4",
    "--learn.epochs=1",
    "--workers",
    "0",
]


def dead_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def full_device() -> TextIO:
    return open("/dev/full", "w")


def vanished_terminal() -> TextIO:
    terminal, side = os.openpty()
    os.close(terminal)
    return os.fdopen(side, "w")


def closed_stream() -> TextIO:
    stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    stream.close()
    return stream


def closed_descriptor() -> TextIO:
    stream = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    os.close(stream.fileno())
    return stream


def no_stream() -> None:
    return None


GONE: list[Callable[[], TextIO | None]] = [dead_pipe, full_device, vanished_terminal, closed_stream, no_stream]


@pytest.fixture(params=GONE, ids=lambda make: make.__name__)
def gone(request: pytest.FixtureRequest) -> Iterator[TextIO | None]:
    stream = request.param()
    yield stream
    if stream is not None:
        stream.close()  # its buffer is empty: nothing is left to fail here, or when the interpreter ends


def test_what_is_said_where_nothing_can_be_written_is_lost_and_nothing_else_happens(gone, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stderr", gone)
    monkeypatch.setattr(module, "PLAIN_EVERY_SECONDS", 0.0)
    with progress(2, "rollouts") as bar:
        bar.advance()
        bar.note("half")
        bar.advance()
    status("a line")
    with streams.forgiving():
        print("from a library", file=sys.stderr, flush=True)
        sys.stderr.writelines(["a", "b"])
        assert not sys.stderr.isatty()
    assert sys.stderr is gone
    assert capsys.readouterr().out == ""


def test_a_result_that_cannot_be_written_is_told_with_the_cause(gone, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", gone)
    with pytest.raises(streams.NotPrinted) as raised:
        streams.emit("x" * 100_000)
    assert raised.value.reader_gone is isinstance(raised.value.__cause__, BrokenPipeError)
    assert str(raised.value)


def test_a_descriptor_that_was_closed_leads_nowhere_afterwards(monkeypatch) -> None:
    stream = closed_descriptor()
    number = stream.fileno()
    monkeypatch.setattr(sys, "stderr", stream)
    status("a line")
    assert os.path.samestat(os.fstat(number), os.stat(os.devnull))
    status("another")
    stream.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_a_stream_that_is_full_for_a_while_is_written_again_when_it_is_not(monkeypatch, tmp_path) -> None:
    with open(tmp_path / "log", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        status("before")
        kept = os.dup(stream.fileno())
        with full_device() as full:
            os.dup2(full.fileno(), stream.fileno())
            status("lost")
        os.dup2(kept, stream.fileno())
        os.close(kept)
        status("after")
    assert (tmp_path / "log").read_text() == "before\nafter\n"


BUFFERED = pytest.mark.parametrize("buffered", [True, False], ids=["buffered", "as with python -u"])


def on_descriptor(number: int, buffered: bool) -> TextIO:
    if buffered:
        return os.fdopen(number, "w", encoding="utf-8")
    return io.TextIOWrapper(os.fdopen(number, "wb", buffering=0), encoding="utf-8", write_through=True)  # type: ignore[arg-type, unused-ignore]


@BUFFERED
def test_half_a_result_is_not_taken_for_a_result(buffered: bool, monkeypatch, tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with on_descriptor(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT), buffered) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(streams.NotPrinted, match="File too large"):
                streams.emit("x" * 10_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "out").stat().st_size == 4096


@BUFFERED
def test_a_result_waits_for_a_pipe_that_does_not_block_and_what_is_said_on_the_way_does_not(
    buffered: bool, monkeypatch
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text, read = "–" * 200_000, []

    def slowly() -> None:
        with os.fdopen(reader, encoding="utf-8") as file:
            read.append(file.read())

    with on_descriptor(writer, buffered) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        stream.write("from a library\n")
        streams.say("y" * 200_000)  # nobody reads yet: as much as fits
        slow = threading.Timer(0.1, slowly)
        slow.start()
        streams.emit(text)
    slow.join(30)
    assert read[0].startswith("from a library\ny")
    assert read[0].endswith(f"y{text}\n")


def test_what_a_stream_cannot_encode_is_escaped(monkeypatch, tmp_path) -> None:
    with open(tmp_path / "log", "w", encoding="ascii") as stream:
        for name in ("stderr", "stdout"):
            monkeypatch.setattr(sys, name, stream)
        status("naïve")
        streams.emit("–")
    assert (tmp_path / "log").read_text() == "na\\xefve\n\\u2013\n"


# ------------------------------------------------------------------ bars


class Screen:
    """A terminal that keeps what is written to it; `vanish` leaves the program writing to none."""

    def __init__(self) -> None:
        self.terminal, side = os.openpty()
        self.stream = os.fdopen(side, "w")

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stderr", self.stream)
        monkeypatch.setattr(module, "_display", module._Display())
        monkeypatch.setenv("TERM", "xterm")

    def shows(self, text: str) -> bool:
        """Whether `text` appears; what is written to a terminal comes out a little later."""
        shown = ""
        while text not in shown and select.select([self.terminal], [], [], 5.0)[0]:
            shown += os.read(self.terminal, 1 << 16).decode()
        return text in shown

    def vanish(self) -> None:
        os.close(self.terminal)


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.stream.close()


def test_a_terminal_that_vanishes_under_the_bars_ends_nothing(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    screen.take_over(monkeypatch)
    with progress(3, "rollouts") as bar:
        bar.advance()
        screen.vanish()
        bar.advance()
        status("a line")
        with progress(1, "inner") as inner:
            inner.advance()
        print("from a library", file=sys.stderr)
        bar.advance()
    status("a line")
    assert sys.stderr is screen.stream


@pytest.mark.parametrize(
    "owner, method",
    [
        (rich.console.Console, "print"),
        (rich.progress.Progress, "start"),
        (rich.progress.Progress, "update"),
        (rich.progress.Progress, "get_renderable"),
        (rich.progress.Progress, "remove_task"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_where_rich_fails_progress_is_told_in_plain_lines(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, owner: Any, method: str
) -> None:
    screen.take_over(monkeypatch)
    monkeypatch.setattr(module, "PLAIN_EVERY_SECONDS", 0.0)

    def fail(*args: object, **settings: object) -> None:
        raise RuntimeError("rich has a bug")

    with progress(3, "rollouts") as bar:
        bar.advance()
        monkeypatch.setattr(owner, method, fail)
        bar.advance()
        with progress(1, "inner") as inner:
            inner.advance()
        status("a line")
        bar.advance()
    status("the end")
    assert sys.stderr is screen.stream
    assert screen.shows("the end")


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demonstrations `demos.hdf5` and a policy `policy`."""
    folder, config = tmp_path_factory.mktemp("made"), toy_config()
    toy_demos(folder / "demos.hdf5", config, "reach-centre")
    lively_policy(config).save_pretrained(folder / "policy")
    return folder


SMALL_SFT = ["--sft.autoencoder_steps=2", "--sft.policy_steps=2", "--policy.chunk=4"]

WORKING = {
    "demos collect": ["demos", "collect", "--recipe", "smoke", "--tasks", "reach", "--per-task", 1, "--out", "d.hdf5"],
    "sft": ["sft", "--recipe", "smoke", "--demos", "MADE/demos.hdf5", "--tasks=", "--out", "sft", *SMALL_SFT],
    "rl": ["rl", *QUICK, "--iterations", 1, "--out", "rl"],
}


@pytest.mark.parametrize("words", WORKING.values(), ids=list(WORKING))
def test_a_command_whose_work_is_in_files_is_done_whatever_becomes_of_the_streams(
    words: list[object], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with dead_pipe() as out, full_device() as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert cli.main([str(word).replace("MADE", str(made)) for word in words]) == 0
    (written,) = tmp_path.iterdir()
    assert written.name == "d.hdf5" or (written / "policy" / "model.safetensors").exists()


MEASURING = {
    "eval": ["eval", "--policy", "MADE/policy", "--tasks", "reach", "--trials", 2, "--horizon", 8, "--workers", 0],
    "demos verify": ["demos", "verify", "MADE/demos.hdf5"],
}


@pytest.mark.parametrize("words", MEASURING.values(), ids=list(MEASURING))
@pytest.mark.parametrize(("gone", "code"), [(dead_pipe, cli.READER_GONE), (full_device, 1)])
def test_a_result_that_only_printing_would_keep_is_written_to_a_file_and_the_command_fails(
    gone: Callable[[], TextIO], code: int, words: list[object], made: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    with gone() as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main([str(word).replace("MADE", str(made)) for word in words]) == code
    (kept,) = tmp_path.iterdir()
    assert isinstance(json.loads(kept.read_text()), dict)
    assert f"it is kept in {kept}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["recipes"], ["tasks", "--json"], ["--version"], ["rl", "--help"], []], ids=" ".join)
def test_a_list_whose_reader_went_away_ends_in_silence_and_on_a_full_disk_with_an_error(
    words: list[str], monkeypatch, capsys
) -> None:
    with dead_pipe() as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(words) == cli.READER_GONE
    assert capsys.readouterr().err == ""
    with full_device() as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(words) == 1
    assert capsys.readouterr().err == "ript: error: cannot write to standard output: No space left on device\n"


def test_a_broken_pipe_elsewhere_is_an_error_and_never_the_end_of_the_work(monkeypatch, capsys) -> None:
    def broken(args: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("ript.cli.commands.show_tasks", broken)
    assert cli.main(["tasks"]) == 1
    assert capsys.readouterr().err == "ript: error: Broken pipe\n"


@pytest.mark.parametrize("code", [0, 3, None, "in words"])
def test_a_package_that_leaves_has_not_done_the_work(code: object, monkeypatch, capsys) -> None:
    monkeypatch.setattr("ript.cli.commands.show_tasks", lambda args: sys.exit(code))  # type: ignore[arg-type, unused-ignore]
    assert cli.main(["tasks"]) == 1
    assert "a package or simulator ended the command (SystemExit" in capsys.readouterr().err


PRINTING = """
from ript.sims.toy.simulator import ToySimulator


class Printing(ToySimulator):
    def step_chunk(self, actions):
        print("noise", flush=True)
        return super().step_chunk(actions)


def printing(key):
    return Printing(key.partition("/")[2], image_size=8)
"""
SCRIPT = """
import sys

if __name__ == "__main__":
    from printing_simulator import printing
    from ript.demos.collect import collect_demos
    from ript.rollout.pool import make_pool
    from ript.core.types import RolloutRequest, Status
    import test_streams

    made = collect_demos(printing, ["toy/reach"], 1, sys.argv[1] + "/d.hdf5", workers=1)
    policy = test_streams.lively_policy(test_streams.toy_config())
    with printing("toy/reach") as sim:
        states = sim.initial_states(2, 0, "train")
    with make_pool(printing, policy, workers=1) as pool:
        done = list(pool.run(iter([RolloutRequest(initial_state=state, index=0, seed=(0,)) for state in states])))
    with open(sys.argv[1] + "/done", "w") as file:
        file.write(f"{made.demos} {len(done)} {sum(r.status == Status.ERROR for r in done)}")
"""


def test_what_programs_leave_as_an_exit_code_when_their_streams_are_gone(tmp_path: Path, made: Path) -> None:
    """At once: a run whose reader is gone, one without any stream, and workers whose simulator prints."""
    (tmp_path / "printing_simulator.py").write_text(PRINTING)
    (tmp_path / "script.py").write_text(SCRIPT)
    ript = [sys.executable, "-m", "ript", "rl", *QUICK, "--iterations", "1", "--out"]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    with dead_pipe() as gone:
        running = [
            subprocess.Popen([*ript, tmp_path / "dead"], stdout=gone, stderr=gone),
            subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *ript, tmp_path / "closed"]),
            subprocess.Popen([*ript[:3], "recipes"], stdout=gone, stderr=subprocess.DEVNULL),
        ]
        printing = [sys.executable, tmp_path / "script.py", tmp_path]
        running.append(subprocess.Popen(printing, stdout=gone, stderr=gone, env=environment))
        codes = [process.wait(timeout=120) for process in running]
    assert codes == [0, 0, cli.READER_GONE, 0]
    assert (tmp_path / "dead" / "policy").is_dir()
    assert (tmp_path / "closed" / "policy").is_dir()
    assert (tmp_path / "done").read_text() == "1 2 0"
    assert json.loads((tmp_path / "closed" / "config.json").read_text())["kind"] == "rl"
