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
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from ript.core import child_server, interpreter
from ript.core.child_server import NUMBER, ORPHAN_SECONDS
from ript.core.errors import ConfigError, WorkerError

__all__ = ["Child", "cannot_start", "pack", "running", "start", "unpack"]

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Busy processes with more threads than cores spin in barriers: 7 to 30 times slower (measured)."""

REMEDIES = {
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
    setup = {
        "path": interpreter.module_path(),
        "argv": interpreter.arguments(),
        "environ": {**os.environ, **THREADS},
        "folder": interpreter.folder() or os.sep,
    }
    try:
        with contextlib.suppress(OSError):  # it has died: whoever reads from it will know
            child.connection.send_bytes(pickle.dumps(setup))
            child.connection.send_bytes(work)
    except BaseException:
        child.kill()
        child.connection.close()
        raise
    return child


def unpack(data: bytes) -> Any:
    """What was packed, in this process or another one of ours.

    Raises:
        WorkerError: to make it anew raised what is no `Exception`; what is one comes as it is.
    """
    with interpreter.ending(
        lambda stop: WorkerError(f"what was sent cannot be made anew: {interpreter.said_by(stop)}")
    ):
        return child_server.unpack(data)


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
            try:
                self.process = subprocess.Popen(
                    interpreter.command(f"from ript.core.child_server import serve; serve({number})"),
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **THREADS},
                    cwd=interpreter.folder_to_start_in(),
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
    remedy = REMEDIES.get(error.errno or 0, "look with `ript doctor`, or use --workers 0")
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
    while len(data) < NUMBER.size:
        more = os.read(fileno, NUMBER.size - len(data))
        if not more:
            return None
        data += more
    number: int = NUMBER.unpack(data)[0]
    return number
