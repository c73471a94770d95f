"""Worker processes start wherever the caller stands, and never run its script."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ript.core import child_server, children
from ript.core.errors import ConfigError, DependencyMissing, WorkerError

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def open_files_limited(most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answer(work: Callable[..., None], *args: object, **settings: object) -> object:
    """What a worker sends that runs `work(connection, ...)`."""
    child = children.start(work, *args, **settings)  # type: ignore[arg-type]
    try:
        return child.connection.recv()
    finally:
        child.connection.close()
        child.join(10)
        assert child.exitcode == 0
        assert child not in children.running()


def test_a_worker_has_the_folder_module_path_and_environment_that_the_caller_has_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RIPT_TEST_COLOUR", "green")
    monkeypatch.setattr(sys, "path", [*sys.path, "", tmp_path, str(tmp_path / "later")])
    children._drop_server()  # the next one starts from there

    def tell(connection, number):
        names = ("RIPT_TEST_COLOUR", "OMP_NUM_THREADS")
        connection.send((number, os.getcwd(), sys.path, [os.environ.get(name) for name in names]))

    number, folder, path, environment = answer(tell, 7)  # type: ignore[misc]
    assert (number, folder, environment) == (7, str(tmp_path), ["green", "1"])
    assert path[-2:] == [str(tmp_path), str(tmp_path / "later")]


def test_a_worker_starts_where_python_is_embedded_and_whatever_the_caller_has_put_into_sys(tmp_path, monkeypatch):
    class Path(str):
        """A string that does not print as one."""

        __slots__ = ()

        def __repr__(self) -> str:
            return f"Path({str(self)!r})"

    monkeypatch.setattr(sys, "path", [*map(Path, sys.path), tmp_path, b"bytes", Path(tmp_path)])
    monkeypatch.delattr(sys, "argv")
    for name in ("sys.executable", "multiprocessing.spawn._python_exe"):
        monkeypatch.setattr(name, None)
    children._drop_server()
    path, words = answer(lambda connection: connection.send((sys.path, sys.argv)))  # type: ignore[misc]
    assert (path[-1], words) == (str(tmp_path), [""])
    children._drop_server()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(DependencyMissing, match=r"multiprocessing.set_executable\(path\), or use workers=0"):
        children.start(lambda connection: None)


def test_signals_that_the_caller_blocks_are_not_blocked_in_workers_and_their_end_is_seen_at_once():
    children._drop_server()
    signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        child = children.start(lambda connection: connection.send(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        assert child.connection.recv() == set()
        child.connection.close()
        child.join(5)
        assert child.exitcode == 0
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        children._drop_server()


def test_how_a_worker_ended_is_known():
    def leave(connection, how):
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(how)

    for how, code in ((0, 0), (7, 7), (None, 0), ("in words", 1), ("killed", -signal.SIGKILL)):
        child = children.start(leave, how)
        child.join(10)
        assert child.exitcode == code
        child.kill()  # nothing is left to kill
        child.connection.close()
    child = children.start(lambda connection: time.sleep(3600))
    assert child.exitcode is None
    assert child in children.running()
    child.kill()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL
    child.connection.close()


def test_what_cannot_be_sent_to_a_process_is_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"cannot pickle '_thread.lock' object.*use workers=0"):
        children.start(lambda connection, lock: None, threading.Lock())


def test_too_many_open_files_are_one_message_and_nothing_stays_open():
    children.start(lambda connection: None).connection.close()  # the server runs
    before, held = sorted(os.listdir("/proc/self/fd"), key=int), []
    try:
        with open_files_limited(len(before) + 12):
            with pytest.raises(WorkerError, match=r"Too many open files: .*`ulimit -n 4096`.*fewer --workers"):
                while len(held) < 20:
                    held.append(children.start(lambda connection: connection.recv()))
            assert 1 < len(held) < 20, "some fit"
            assert [child.exitcode for child in held] == [None] * len(held), "those that run are not harmed"
    finally:
        for child in held:
            child.connection.close()
            child.join(10)
    assert sorted(os.listdir("/proc/self/fd"), key=int) == before


def test_a_limit_of_processes_is_one_message(monkeypatch):
    """The server says why it could not fork. (A real limit does not hold for root.)"""

    def refused() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refused)
    ours, theirs = socket.socketpair()
    status, reply = os.pipe()
    with ours, theirs, open(status, "rb") as answers, open(os.devnull) as null:
        request = json.dumps({"preload": [], "files": 2}).encode() + b"\n"
        socket.send_fds(ours, [request], [null.fileno(), reply])
        os.close(reply)
        assert child_server._answer(theirs, {})
        (number,) = child_server.NUMBER.unpack(answers.read())
    assert number == -errno.EAGAIN
    error = children.cannot_start(OSError(-number, os.strerror(-number)))
    assert "Resource temporarily unavailable: raise the limit of processes (`ulimit -u`" in str(error)


def test_a_server_that_was_killed_is_replaced_and_its_workers_go_on():
    child = children.start(lambda connection: connection.send(connection.recv()))
    server = psutil.Process(child.pid).parent()
    assert server is not None
    assert server.ppid() == os.getpid()
    server.kill()
    while server.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert answer(lambda connection: connection.send("new")) == "new"
    child.connection.send("old")
    assert child.connection.recv() == "old"
    child.connection.close()
    child.join(10)
    assert child.exitcode == 255, "nobody has waited for it"


def test_a_fork_of_the_caller_leaves_its_workers_alone_and_starts_its_own():
    child = children.start(lambda connection: connection.send(connection.recv()))
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            child.kill()
            os._exit(0 if answer(lambda connection: connection.send("mine")) == "mine" else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    child.connection.send("still here")
    assert child.connection.recv() == "still here"
    child.connection.close()
    child.join(10)


ORPHAN = """
    import ctypes
    from ript.core import child_server, children

    def hang(connection, hold):
        connection.send("started")
        (ctypes.PyDLL if hold else ctypes.CDLL)(None).sleep(3600)

    workers = [children.start(hang, hold) for hold in (False, True)]
    for worker in workers:
        worker.connection.recv()
    print(*(worker.pid for worker in workers), flush=True)
    ctypes.CDLL(None).sleep(3600)
"""


def test_workers_that_hang_in_a_library_end_when_their_parent_was_killed():
    command = [sys.executable, "-c", textwrap.dedent(ORPHAN)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in program.stdout.readline().split()]
        program.kill()
    assert len(workers) == 2
    alive = psutil.wait_procs(workers, timeout=10)[1]
    assert [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE] == []


SCRIPT = f"""
    import multiprocessing, os, sys
    print("body", flush=True)
    sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "demos")!r}]
    from point import Point
    from tests.fakes import FakePolicy, FakeSimulator, fake_state, fake_task
    from ript.demos.collect import collect_demos
    from ript.rollout.pool import make_pool
    from ript.core.types import RolloutRequest

    BIAS = 0.25

    class Mine(FakePolicy):
        def __init__(self):
            super().__init__(bias=BIAS)

    class Near(Point):
        pass

    def make(key):
        return FakeSimulator(fake_task())

    def use(where, out):
        for inference in ("local", "central"):
            with make_pool(make, Mine(), workers=2, slots=2, inference=inference) as pool:
                wanted = [RolloutRequest(initial_state=fake_state(i), index=0, seed=(0,)) for i in range(5)]
                print(where, inference, len(list(pool.run(wanted))), flush=True)
        print(where, "demos", collect_demos(Near, ["point/red"], 2, out, workers=2).demos, flush=True)
"""
DONE = ["local 5", "central 5", "demos 2"]


def run(*command: str, **settings: object) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=100,
        **settings,  # type: ignore[call-overload]
    )
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def test_a_script_without_a_main_guard_that_defines_everything_itself_runs_once_in_a_daemonic_process_too(tmp_path):
    """In a folder whose files have the names of modules, and with a TMPDIR too long for a socket."""
    body = """
        use("main", sys.argv[1])
        daemon = multiprocessing.get_context("fork").Process(target=use, args=("daemon", sys.argv[1]), daemon=True)
        daemon.start()
        daemon.join()
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT) + textwrap.dedent(body))
    folder, long = tmp_path / "folder", tmp_path / ("x" * 120)
    folder.mkdir()
    long.mkdir()
    for module in ("queue", "torch", "select"):
        (folder / f"{module}.py").write_text("raise SystemExit('this is not the module that was meant')")
    env = {**os.environ, "TMPDIR": str(long)}
    printed = run(str(tmp_path / "script.py"), str(tmp_path / "d.hdf5"), cwd=folder, env=env)
    assert printed.splitlines() == ["body", *(f"{where} {what}" for where in ("main", "daemon") for what in DONE)]


def test_a_program_from_standard_input_can_use_workers(tmp_path):
    body = f"use('stdin', {str(tmp_path / 'd.hdf5')!r})\n"
    printed = run("-", input=textwrap.dedent(SCRIPT) + body, cwd=tmp_path)
    assert printed.splitlines() == ["body", *(f"stdin {what}" for what in DONE)]


def test_a_process_that_the_standard_library_has_spawned_can_use_workers(tmp_path):
    body = """
        if __name__ == "__main__":
            spawn = multiprocessing.get_context("spawn")
            spawned = spawn.Process(target=use, args=("spawned", sys.argv[1]), daemon=True)
            spawned.start()
            spawned.join()
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT) + textwrap.dedent(body))
    printed = run(str(tmp_path / "script.py"), str(tmp_path / "d.hdf5"))
    assert printed.splitlines() == ["body", "body", *(f"spawned {what}" for what in DONE)]
