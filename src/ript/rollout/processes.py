"""Worker processes as the parent sees them: start, talk, watch, kill.

Start method: forkserver. A plain fork would copy torch threads and OpenGL contexts in an undefined state; spawn
imports torch anew for each worker (0.5 s each on two cores); a fork server imports it once (1 s) and then starts a
worker in 15 ms, which is also what replacing a dead one costs.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from ript.errors import ConfigError, WorkerError
from ript.interfaces import Policy, SimulatorFactory
from ript.rollout.engine import DECIDING, RESTING, address
from ript.rollout.shared import Block
from ript.rollout.stream import Flight
from ript.rollout.worker import Settings, main

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Busy processes with more threads than cores spin in barriers: 7 to 30 times slower (measured)."""


def make_payload(make_simulator: SimulatorFactory, policy: Policy | None) -> bytes:
    """What a worker starts from.

    Plain pickle on purpose: multiprocessing's own would move the policy's tensors to shared memory, and workers would
    see the trainer's updates in the middle of a rollout. Workers act on the CPU, wherever training computes.
    """
    if isinstance(policy, nn.Module) and any(p.device.type != "cpu" for p in policy.parameters()):
        policy = copy.deepcopy(policy).to("cpu")
    try:
        return pickle.dumps((make_simulator, policy), protocol=5)
    except Exception as error:
        raise ConfigError(
            f"the simulator factory or the policy cannot be sent to a worker process ({error}): "
            "define them in a module instead of inside a function, or use workers=0"
        ) from error


class WorkerProcess:
    """One worker.

    Attributes:
        ready: it has started and may get work.
        stopping: number of a run that it was told to stop, until it has confirmed.
        flights: what it was given and has not returned, by ticket.
        block: shared memory (central inference), once it has asked for it.
    """

    def __init__(self, settings: Settings, payload: bytes, pipe_timeout: float):
        self.settings = settings
        self.ready = False
        self.stopping: int | None = None
        self.flights: dict[int, Flight] = {}
        self.block: Block | None = None
        self._lost: str | None = None
        self._needs_main = b"__main__" in payload
        context = _context()
        self.connection, theirs = context.Pipe()
        _limit_blocking(self.connection.fileno(), pipe_timeout)
        self._cell = context.RawArray("d", [RESTING, time.monotonic()])
        self._looked = time.monotonic()
        self._quiet = 0.0
        self._sign = tuple(self._cell)
        arguments = (theirs, self._cell, settings, payload, {**os.environ, **THREADS})
        self.process = context.Process(target=main, args=arguments, daemon=True)
        with _clean_start(hide_main=not self._needs_main):
            self.process.start()
        theirs.close()

    @property
    def name(self) -> str:
        return f"worker {self.settings.index} (pid {self.process.pid})"

    def send(self, message: Any) -> None:
        """Send, or note that the worker is lost."""
        try:
            self.connection.send(message)
            if int(self._cell[0]) == RESTING:  # it has to read that first
                self._quiet = 0.0
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
            self._quiet = 0.0
        return messages

    def loss(self, request_timeout: float, start_timeout: float) -> str | None:
        """Why this worker must be replaced, or None. Call it after `receive`, and often.

        A worker is hung when it owes something and gave no sign of life within the limit: it began no unit of work and
        sent nothing. What lies unread in its pipe is a sign of life; the parent may have been deciding, or stopped. Nor
        does the parent judge by one look after a long absence of its own, which counts as half the limit at most.
        """
        limit = request_timeout if self.ready else start_timeout
        passed, self._looked = time.monotonic() - self._looked, time.monotonic()
        sign = tuple(self._cell)
        owes = not self.ready or int(sign[0]) != RESTING or self.flights or self.stopping is not None
        if not owes or sign != self._sign or self._spoke():
            self._quiet, self._sign = 0.0, sign
        else:
            self._quiet += min(passed, limit / 2)
        if self._lost is None and self._quiet > limit:
            what = "no sign of life for" if self.ready else "it did not start within"
            self._lost = f"hung: {what} {limit:g} s"
        if self._lost is None:
            return None
        if self._lost == "died":
            return f"{self.name} {self._exit()} {self.doing()}"
        return f"{self.name} {self._lost} {self.doing()}"

    def _spoke(self) -> bool:
        """Whether something of it lies unread in the pipe."""
        try:
            return bool(self.connection.poll())
        except OSError:  # closed; `receive` says so
            return False

    def blamed(self) -> Flight | None:
        """The rollout whose simulator it works on, as far as that is known."""
        return self.flights.get(int(self._cell[0]))

    def doing(self) -> str:
        if not self.ready:
            hint = "; scripts need `if __name__ == '__main__':` around what they do" if self._needs_main else ""
            return f"while starting{hint}"
        flight = self.blamed()
        if flight is not None:
            return f"while working on {address(flight.request)}"
        return "while the policy decided" if int(self._cell[0]) == DECIDING else "between two units of work"

    def kill(self) -> None:
        """SIGKILL, and forget what belongs to it."""
        self.process.kill()
        self.process.join(5.0)
        self._lost = self._lost or "died"
        self.connection.close()
        if self.block is not None:
            self.block.unlink()
            self.block.close()
            self.block = None

    def _exit(self) -> str:
        self.process.join(1.0)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"died with exit code {code}"


def close_all(workers: list[WorkerProcess], grace: float) -> None:
    """End workers: closing the pipe tells them; what is not gone after `grace` seconds is killed."""
    for worker in workers:
        if worker.ready:
            worker.connection.close()
    deadline = time.monotonic() + grace
    for worker in workers:
        if worker.ready:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        worker.kill()


def refuse_in_child() -> None:
    """Raise when a child process runs the main script again and reaches the creation of a pool."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise WorkerError(
            "a pool was created while a worker process was importing the main script: "
            "put what the script does under `if __name__ == '__main__':`"
        )


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "ript.rollout.worker"])
    return context


def _limit_blocking(fileno: int, seconds: float) -> None:
    """A worker that stops within a message, or with a full pipe, must not block the parent for ever."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fileno)) as pipe:
        limit = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            pipe.setsockopt(socket.SOL_SOCKET, option, limit)


_starting = threading.Lock()


@contextlib.contextmanager
def _clean_start(hide_main: bool) -> Iterator[None]:
    """Around the start of a process.

    One thread for its libraries, no Ctrl-C before it can ignore it, and no second run of the main script unless
    something in it is needed (so that a script without a `__main__` guard works).
    """
    with _starting:
        saved = {name: os.environ.get(name) for name in THREADS}
        main_module = sys.modules["__main__"]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.environ.update(THREADS)
        if hide_main:
            sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main_module
            for name, value in saved.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
