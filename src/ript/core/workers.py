"""Worker processes that are spoken to over a pipe and watched: what every pool of them is made of.

`WorkerProcess` is the parent's end: it starts the process (see `children`), sends, receives, says why it must be given
up, and kills. `Link` is the worker's end. What they say to each other is each pool's own.
"""

from __future__ import annotations

import errno
import math
import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from ript.core import children, errors
from ript.core.errors import RiptError, WorkerError
from ript.core.liveness import Cell, Silence, interval

RESTING = -2
"""What a worker leaves in its cell when it waits: for work, an answer, or room in the pipe."""
BROKEN = -1000
"""What it leaves there, less the error's number, when its pipe broke: what can no longer be sent can be read there."""
_GONE = (errno.EPIPE, errno.ECONNRESET)
"""Errors of a pipe whose other end was closed."""


@dataclass(frozen=True, slots=True)
class Crashed:
    """An error on its way from a worker to its parent."""

    kind: str
    message: str
    traceback: str

    @staticmethod
    def of(error: BaseException, where: str) -> Crashed:
        """An error in the form in which it is sent; `where` is the process and what it worked on, for the message."""
        message = str(error) if isinstance(error, RiptError) else f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.errno in children.REMEDIES:
            message += f": {children.REMEDIES[error.errno]}"
        trace = "".join(traceback.format_exception(error))
        return Crashed(type(error).__name__, f"{where}: {message}", trace)

    def rebuild(self) -> RiptError:
        """The same class of `errors` (WorkerError for any other), with the worker's traceback as a note."""
        kind = getattr(errors, self.kind, None)
        if not (isinstance(kind, type) and issubclass(kind, RiptError)):
            kind = WorkerError
        error: RiptError = kind.__new__(kind)
        error.args = (self.message,)
        error.add_note(f"raised in a worker process:\n{self.traceback}")
        return error


# ---------------------------------------------------------------------------------------------- the parent's end


class WorkerProcess:
    """One worker, as its parent sees it.

    Args:
        name: in messages, such as "worker 3".
        target, args: it runs `target(connection, number of the cell's file, *args)`.
        cell: where it leaves signs of life; closed with it.
        preload: modules that are imported once for all workers.
        start_timeout: seconds that may pass until the process is there.
        pipe_timeout: seconds after which a message that stands still means that it hangs; None: for ever.

    Attributes:
        ready: it waits for messages now or soon, so that it ends by itself when its pipe is closed; its pool says when.
    """

    def __init__(
        self,
        name: str,
        target: Callable[..., None],
        *args: object,
        cell: Cell,
        preload: Sequence[str] = (),
        start_timeout: float = 120.0,
        pipe_timeout: float | None = None,
    ):
        self._name, self._cell = name, cell
        self.ready = False
        self._sign: Sequence[float] = cell.view
        self._lost: str | None = None
        self._closed = False
        cell.mark(RESTING)
        try:
            self._child = children.start(
                target, *args, files=[cell.fileno], preload=preload, timeout=start_timeout, send_timeout=pipe_timeout
            )
        except BaseException:
            cell.close()
            raise
        self.connection = self._child.connection
        self._silence = Silence(self._sign)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def name(self) -> str:
        return f"{self._name} (pid {self.pid})"

    @property
    def doing(self) -> int:
        """What it left in its cell last."""
        return int(self._sign[0])

    @property
    def noted(self) -> str:
        """What it noted that it works on."""
        return "" if self._closed else self._cell.noted

    def send(self, message: Any) -> None:
        """Send, or note that the worker is lost."""
        try:
            self.connection.send(message)
            if self.doing == RESTING:  # it has to read that first
                self._silence.broken()
        except BlockingIOError:
            self._lost = "hung: it took no messages"
        except OSError:
            self._lost = "died"
        except BaseException:
            self.kill()  # interrupted within a message: the worker would take the next one for its rest
            raise

    def receive(self) -> list[Any]:
        """All messages that have arrived; the last ones of a dead worker too."""
        messages = []
        try:
            while self.connection.poll():
                messages.append(self.connection.recv())
        except BlockingIOError:
            self._lost = "hung: it stopped in the middle of a message"
        except (EOFError, OSError):
            self._lost = "died"
        except BaseException:
            self.kill()  # likewise
            raise
        if messages:
            self._silence.broken()
        return messages

    def loss(self, *, owes: bool, limit: float, silent: str = "no sign of life for") -> str | None:
        """How this worker was lost, or None. Call it after `receive`, and often.

        Args:
            owes: it was given something to do. One that rests and owes nothing may be silent; what lies unread in its
                pipe is a sign of life.
            limit: seconds that it may be silent (see `Silence`).
            silent: says what it is lost for then, before the seconds.
        """
        hangs = self._silence.look(self._sign, excused=not owes or self._spoke(), limit=limit)
        if self._lost is None and hangs:
            self._lost = f"hung: {silent} {limit:g} s"
        return self._exit() if self._lost == "died" else self._lost

    def _spoke(self) -> bool:
        """Whether something of it lies unread in the pipe."""
        try:
            return bool(self.connection.poll())
        except OSError:  # closed; `receive` says so
            return False

    def _exit(self) -> str:
        self._child.join(1.0)
        code = self._child.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        if self.doing <= BROKEN:
            number = BROKEN - self.doing
            remedy = f": {children.REMEDIES[number]}" if number in children.REMEDIES else ""
            return f"died, for its pipe broke ({os.strerror(number)}){remedy},"
        return f"died with exit code {code}"

    def end(self, deadline: float) -> None:
        """Kill it, if it is ready not before the deadline (monotonic)."""
        if self.ready:
            self._child.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """SIGKILL, and forget what belongs to it."""
        self._child.kill()
        self._child.join(5.0)
        self._lost = self._lost or "died"
        self.connection.close()
        if not self._closed:
            self._closed = True
            self._sign = [RESTING, 0.0]
            self._cell.close()


class Heard(Protocol):
    """A worker, or what a pool keeps beside one."""

    @property
    def connection(self) -> Connection: ...

    def receive(self) -> Sequence[Any]: ...


W = TypeVar("W", bound=Heard)


def receive(workers: Sequence[W], limit: float, most: float = math.inf) -> list[tuple[W, Any]]:
    """Messages of all workers; blocks until there are some, or until it is time to look for lost ones (`loss`).

    Args:
        workers: to listen to.
        limit: seconds that one may be silent.
        most: seconds to block at most.
    """
    patience = min(interval(limit), most)
    arrived = wait([worker.connection for worker in workers if not worker.connection.closed], patience)
    return [(w, message) for w in workers if w.connection in arrived for message in w.receive()]


def close_all(workers: Sequence[WorkerProcess], grace: float) -> None:
    """End workers: closing the pipe tells them; what is not gone after `grace` seconds is killed."""
    for worker in workers:
        if worker.ready:
            worker.connection.close()
    deadline = time.monotonic() + grace
    for worker in workers:
        worker.end(deadline)


# ---------------------------------------------------------------------------------------------- the worker's end


class ParentGone(Exception):
    """The parent closed the pipe or died."""


class PipeBroken(SystemExit):
    """The pipe cannot be used any more though the parent is there. It ends the worker, which has left why in its
    cell."""


class Link:
    """The worker's end of the pipe. A thread reads it, so that the parent's sends never wait for work to end, and so
    that the worker notices at once when the parent is gone.

    Args:
        connection: this end.
        mark: leaves a sign of life.

    Attributes:
        waited: seconds blocked on the pipe while `running`.
    """

    def __init__(self, connection: Connection, mark: Callable[[int], None]):
        self._connection, self._mark = connection, mark
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._deferred: deque[Any] = deque()
        self._gone = threading.Event()
        self.running = False
        self.waited = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self, *, block: bool) -> Any | None:
        """The next message, or None when there is none and `block` is False.

        Raises:
            ParentGone: there will be no more.
        """
        if self._deferred:
            return self._deferred.popleft()
        return self._take(block)

    def expect(self, kind: type, unless: type, otherwise: Callable[[], BaseException]) -> Any:
        """Wait for one kind of message; others are kept for `receive`.

        Args:
            kind: of message.
            unless: one of this kind, which is kept too, ends the waiting.
            otherwise: makes the error that is raised then.
        """
        while True:
            message = self._take(block=True)
            if isinstance(message, kind):
                return message
            self._deferred.append(message)
            if isinstance(message, unless):
                raise otherwise()

    def send(self, message: Any) -> None:
        """Send, and wait while there is no room in the pipe.

        Raises:
            ParentGone: nobody is there to read it.
            PipeBroken: the system did not take it.
        """
        self._mark(RESTING)
        started = time.perf_counter()
        try:
            self._connection.send(message)
        except OSError as error:
            if error.errno in _GONE and self._gone.wait(1.0):
                raise ParentGone from None
            raise self._broken(error) from error
        self.waited += time.perf_counter() - started

    def _broken(self, error: OSError) -> PipeBroken:
        self._mark(BROKEN - (error.errno or errno.EIO))
        return PipeBroken(1)

    def _take(self, block: bool) -> Any | None:
        try:
            message = self._arrived.get_nowait()
        except queue.Empty:
            if not block:
                return None
            self._mark(RESTING)
            started = time.perf_counter()
            message = self._arrived.get()
            if self.running:
                self.waited += time.perf_counter() - started
        if isinstance(message, OSError):
            raise self._broken(message) from message
        if isinstance(message, Exception):
            raise message
        return message

    def _read(self) -> None:
        while True:
            try:
                self._arrived.put(self._connection.recv())
            except (EOFError, OSError) as error:
                gone = getattr(error, "errno", None) in (None, *_GONE)  # None: the end of the file
                if gone:
                    self._gone.set()
                self._arrived.put(ParentGone() if gone else error)
                return
            except Exception as error:  # such as a message that cannot be unpickled here
                self._arrived.put(error)
