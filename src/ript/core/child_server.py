"""The process that workers are forked from: what runs in it, and in them. See `children`."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing import util
from multiprocessing.connection import Connection
from typing import Any

from ript.core import streams

ORPHAN_SECONDS = 1.0
"""Workers that are still there so long after the caller has gone are killed by the server."""

NUMBER = struct.Struct("q")
"""How a process is spoken of: its id or minus an error number, and later its exit code."""


def serve(fileno: int) -> None:
    """Fork workers as asked, and say how each has ended; until the caller has gone. Does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the caller may block any, SIGCHLD too, and so would workers
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
        os.write(reply, NUMBER.pack(pid))
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
                os.write(reply, NUMBER.pack(os.waitstatus_to_exitcode(status)))
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


def unpack(data: bytes) -> Any:
    """What was packed. For messages of our own processes; never for a file."""
    return pickle.loads(data)
