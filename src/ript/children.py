"""Worker processes: forked from a server that has imported what they need and never runs the caller's script.

The standard library's safe ways to start a process import the main module again in the child. That runs a script
without a `__main__` guard a second time, and is not possible for a notebook or for standard input; a daemonic process
may not start any; and a fork server of theirs listens on a socket whose path can be too long. Here the server is
reached through an inherited socket, and what a worker shall do is sent to it by value where it is defined in the main
module. A plain fork of the caller would copy torch's threads and OpenGL contexts in an undefined state; a new
interpreter for each worker would import torch anew (0.5 s on two cores), while a fork of the server takes 15 ms.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import importlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe, util
from multiprocessing.connection import Connection, wait
from multiprocessing.spawn import get_executable
from typing import Any

from ript import streams
from ript.errors import ConfigError, WorkerError

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Busy processes with more threads than cores spin in barriers: 7 to 30 times slower (measured)."""
ORPHAN_SECONDS = 1.0
"""Workers that are still there so long after the caller has gone are killed by the server."""

_NUMBER = struct.Struct("q")
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (`ulimit -n 4096` before the command), or use fewer --workers",
    errno.ENFILE: "the whole machine has too many open files: use fewer --workers",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`, or the container's), or use fewer --workers",
    errno.ENOMEM: "there is too little memory: use fewer --workers",
}


class Child:
    """A worker process, as its parent sees it.

    Attributes:
        pid: of the process.
        connection: this end of a pipe to it; the other end is the first argument of what it runs.
    """

    def __init__(self, pid: int, connection: Connection, status: int):
        self.pid, self.connection = pid, connection
        self._status: int | None = status
        self._exitcode: int | None = None
        _children.add(self)

    @property
    def exitcode(self) -> int | None:
        """None while it runs; minus the signal that ended it; 255 when that is not known."""
        self.join(0.0)
        return self._exitcode

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most `timeout` seconds."""
        if self._status is not None and wait([self._status], timeout):
            self._exitcode = _read_number(self._status)
            self._exitcode = 255 if self._exitcode is None else self._exitcode
            self._forget()

    def kill(self) -> None:
        """Kill it, unless it has ended; `join` then returns soon."""
        if self.exitcode is None and self._status is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _forget(self) -> None:
        _children.discard(self)
        if self._status is not None:
            os.close(self._status)
            self._status = None


def start(
    target: Callable[..., None],
    *args: object,
    files: Sequence[int] = (),
    preload: Sequence[str] = (),
    timeout: float = 120.0,
    send_timeout: float | None = None,
) -> Child:
    """Start a process that runs `target(connection, *files, *args)`.

    It has the caller's environment (with one thread for each library), module path and current folder, ignores Ctrl-C
    (the parent decides what that means), and has a main module of its own.

    Args:
        target, args: sent with `pack`.
        files: file descriptors, passed on under numbers of the child's.
        preload: modules that the server imports first, so that no child has to.
        timeout: seconds that the server may take.
        send_timeout: seconds after which a send or receive on `connection` that stands still raises BlockingIOError.

    Raises:
        ConfigError: the target or an argument cannot be sent to a process.
        WorkerError: no process can be started; says what to do.
    """
    work = pack((target, args))
    try:
        with _starting, _interrupts_held():
            child = _ask(preload, files, timeout)
    except OSError as error:
        raise cannot_start(error) from error
    if send_timeout is not None:
        _limit_blocking(child.connection.fileno(), send_timeout)
    setup = {"path": _module_path(), "argv": sys.argv, "environ": {**os.environ, **THREADS}, "folder": _folder()}
    try:
        with contextlib.suppress(OSError):  # it has died: whoever reads from it will know
            child.connection.send_bytes(pickle.dumps(setup))
            child.connection.send_bytes(work)
    except BaseException:
        child.kill()
        child.connection.close()
        raise
    return child


def pack(thing: object) -> bytes:
    """Pickle for a worker: what is defined in the main module goes by value, all else by name.

    Unlike the standard library's way to send to a process, this copies tensors, instead of sharing their memory with a
    parent that goes on to train them.

    Raises:
        ConfigError: it cannot be pickled.
    """
    import cloudpickle

    if "__mp_main__" in sys.modules:  # the main module of a process that the standard library has started
        cloudpickle.register_pickle_by_value(sys.modules["__mp_main__"])
    try:
        data: bytes = cloudpickle.dumps(thing, protocol=5)
    except Exception as error:
        raise ConfigError(
            f"what a worker process needs cannot be sent to it ({type(error).__name__}: {error}): let simulators and "
            "policies hold no open files, locks or windows before they are used, or use workers=0"
        ) from error
    return data


def unpack(data: bytes) -> Any:
    """What was packed. For messages of our own processes; never for a file."""
    return pickle.loads(data)


def running() -> list[Child]:
    """The worker processes that have not ended."""
    return [child for child in list(_children) if child.exitcode is None]


# ---------------------------------------------------------------------------------------------- the caller's side


class _Server:
    """The process that workers are forked from."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        try:
            with theirs:  # not under the number of a standard stream that is closed here
                number = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
            code = f"import sys; sys.path[:] = {_module_path()!a}; from ript.children import _serve; _serve({number})"
            flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
            try:
                self.process = subprocess.Popen(
                    # -P: a file in the current folder must not take the place of a package
                    [os.fsdecode(get_executable() or ""), *flags, "-P", "-c", code],
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **THREADS},
                    pass_fds=[number],
                )
            finally:
                os.close(number)
        except BaseException:
            self.socket.close()
            raise

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, seconds: float = 2 * ORPHAN_SECONDS) -> None:
        """Closing the socket tells it to end what it has started and itself."""
        self.socket.close()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_server: _Server | None = None
_starting = threading.RLock()
_children: set[Child] = set()


def _ask(preload: Sequence[str], files: Sequence[int], timeout: float) -> Child:
    """Let the server start a process."""
    server = _running_server()
    ours, theirs = Pipe()
    status, reply = os.pipe()
    try:
        passed = [theirs.fileno(), reply, *files]
        request = json.dumps({"preload": list(preload), "files": len(passed)}).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has just ended
            socket.send_fds(server.socket, [request], passed)
        os.close(reply)
        reply = -1
        number = _read_number(status) if wait([status], timeout) else None
        if number is None:
            raise WorkerError(_no_answer(server, timeout))
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return Child(number, ours, status)
    except BaseException as error:
        ours.close()
        os.close(status)
        if not isinstance(error, OSError):  # its next answer would be taken for one to another question
            _drop_server()
        raise
    finally:
        theirs.close()
        if reply != -1:
            os.close(reply)


def _running_server() -> _Server:
    global _server
    if _server is not None and not _server.alive():
        _drop_server()
    if _server is None:
        _server = _Server()
        _once()
    return _server


def _drop_server() -> None:
    global _server
    server, _server = _server, None
    if server is not None:
        server.stop()


def _no_answer(server: _Server, timeout: float) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(1.0)
    if server.process.returncode is None:
        return (
            f"the process that starts workers gave no answer within {timeout:g} s: the machine is overloaded or stuck"
        )
    return (
        f"the process that starts workers ended with exit code {server.process.returncode}; what it printed says why. "
        "Look with `ript doctor`, or use --workers 0"
    )


def cannot_start(error: OSError) -> WorkerError:
    """What the operating system refused, with a remedy."""
    remedy = _REMEDIES.get(error.errno or 0, "look with `ript doctor`, or use --workers 0")
    return WorkerError(f"no worker process can be started: {error.strerror or error}: {remedy}")


_registered = False


def _once() -> None:
    """At the end of this process, end the server; in a fork of it, leave server and workers to the parent."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_drop_server)
        os.register_at_fork(after_in_child=_leave_to_parent)


def _leave_to_parent() -> None:
    global _server, _starting
    _starting = threading.RLock()
    if _server is not None:
        _server.socket.close()  # not the last one: the server sees the end when the parent ends
        _server.process.returncode = 0  # not our child
        _server = None
    for child in list(_children):
        child._forget()
        child.connection.close()


def _module_path() -> list[str]:
    """`sys.path`, with the current folder by its name. Import looks at nothing but strings."""
    named = [path or _folder() for path in sys.path if isinstance(path, str)]
    return [path for path in named if path]


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # deleted
        return ""


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A Ctrl-C must not meet a new process before it ignores the signal; what is blocked stays so in a child."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _limit_blocking(fileno: int, seconds: float) -> None:
    """A process that stops within a message, or with a full pipe, must not block the other one for ever."""
    seconds = min(seconds, 1e6)
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fileno)) as pipe:
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            pipe.setsockopt(socket.SOL_SOCKET, option, limit)


def _read_number(fileno: int) -> int | None:
    """What the server says of a process; None when it says no more."""
    data = b""
    while len(data) < _NUMBER.size:
        more = os.read(fileno, _NUMBER.size - len(data))
        if not more:
            return None
        data += more
    number: int = _NUMBER.unpack(data)[0]
    return number


# ---------------------------------------------------------------------------------------------- the server's side


def _serve(fileno: int) -> None:
    """Fork workers as asked, and say how each has ended; until the caller has gone. Does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    wake, waker = socket.socketpair()
    wake.setblocking(False)
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    requests = socket.socket(fileno=fileno)
    started: dict[int, int] = {}  # pid -> where the caller waits for its exit code
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        ready = {number for number, _ in poll.poll()}
        if wake.fileno() in ready:
            with contextlib.suppress(BlockingIOError):
                wake.recv(4096)
            _reap(started)
        if requests.fileno() in ready and not _answer(requests, started):
            break
    _end(started)
    os._exit(0)


def _answer(requests: socket.socket, started: dict[int, int]) -> bool:
    """Start one process. False: the caller has gone."""
    request, files, _, _ = socket.recv_fds(requests, 65536, 64)
    if not request:
        return False
    while not request.endswith(b"\n"):
        more = requests.recv(65536)
        if not more:
            return False
        request += more
    wanted = json.loads(request)
    if len(files) != wanted["files"]:  # this process may not open so many: the caller sees the end of its pipe
        for number in files:
            os.close(number)
        return True
    connection, reply, *others = files
    for name in wanted["preload"]:
        with contextlib.suppress(Exception):  # the worker will meet it too, and can say so
            importlib.import_module(name)
    try:
        pid = os.fork()
    except OSError as error:
        pid = -(error.errno or errno.EAGAIN)
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        requests.close()
        for number in started.values():
            os.close(number)
        _work(connection, others)
    with contextlib.suppress(OSError):
        os.write(reply, _NUMBER.pack(pid))
    for number in (connection, *others):
        os.close(number)
    if pid > 0:
        started[pid] = reply
    else:
        os.close(reply)
    return True


def _reap(started: dict[int, int]) -> None:
    while started:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if (reply := started.pop(pid, None)) is not None:
            with contextlib.suppress(OSError):  # the caller has gone
                os.write(reply, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
            os.close(reply)


def _end(started: dict[int, int]) -> None:
    """Give the workers a moment to see that the caller has gone; then kill them, whatever they hang in."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while started and time.monotonic() < deadline:
        time.sleep(0.01)
        _reap(started)
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _work(fileno: int, files: Sequence[int]) -> None:
    """In a new process: do what the caller sends. Does not return."""
    code = 1
    try:
        streams.forgive()
        connection = Connection(fileno)
        setup = unpack(connection.recv_bytes())
        sys.path[:], sys.argv = setup["path"], setup["argv"]
        os.environ.clear()
        os.environ.update(setup["environ"])
        with contextlib.suppress(OSError):
            os.chdir(setup["folder"])
        target, args = unpack(connection.recv_bytes())
        target(connection, *files, *args)
        code = 0
    except (EOFError, ConnectionError):
        pass  # the caller has gone, or thought better of it
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        with contextlib.suppress(Exception):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            util._exit_function()  # type: ignore[attr-defined] # ends what a simulator has started
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)
