"""A node of a cluster, as it runs there: an actor with a pool of its own, which keeps the records of its rollouts.

One thread owns the pool and does one thing after another; calls of the driver come in on other threads and are handed
to it. While it runs rollouts it heeds them between two turns of the pool.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from ript.core import capacity, children, interpreter, policy_calls
from ript.core.device_memory import free_on
from ript.core.types import Errand, Rollout, RolloutRequest
from ript.core.workers import Crashed
from ript.rollout.cluster.connection import require_ray, room_in_store
from ript.rollout.cluster.gpu import take_gpu
from ript.rollout.cluster.records import Record
from ript.rollout.cluster.versions import installed
from ript.rollout.local.worker import load_weights
from ript.rollout.pool import make_pool


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a node is told when it starts.

    Attributes:
        name: of the node, for messages.
        factory: packed simulator factory.
        pool: arguments of `make_pool`, but for the factory and the policy.
        packages: whose versions it tells.
        device: "cpu" or "cuda", where it learns, and acts with central inference.
        on_gpu: Ray gives it a GPU, or a share of one.
        backend: of sums over ranks; see `learn.ranks.over`.
        check: "module:name" of a function that raises what the machine lacks, given the node's name; called there in a
            process of its own. Empty: nothing in particular is needed.
        path: the driver's module path; what of it is there is looked through here too.
        environ: variables of the driver that are set here too.
    """

    name: str
    factory: bytes
    pool: Mapping[str, Any]
    packages: Sequence[str]
    device: str
    on_gpu: bool
    backend: str
    check: str
    path: Sequence[str]
    environ: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Started:
    """What a node says when it has started.

    Attributes:
        pid: of its process.
        saturation: see `EnvPool.saturation`.
        cores: that its process may use.
        memory: bytes that are available there.
        gpu_memory: bytes that are free on its GPU; None where it computes on the CPU.
        versions: of the packages it was asked for.
    """

    pid: int
    saturation: int
    cores: int
    memory: int
    gpu_memory: int | None
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """What a node has done of a run; `results` are rollouts, their records held here, or why the run ended."""

    run: int
    results: Sequence[Rollout | Crashed]


class _Stopped(Exception):
    """The driver ended the run."""


@dataclass(frozen=True)
class _Stop:
    run: int


@dataclass(frozen=True)
class _Give:
    run: int
    requests: Sequence[RolloutRequest]


@dataclass
class _Call:
    work: Callable[[], Any]
    answer: Future[Any] = field(default_factory=Future)


class Node:
    """See the module. Every method but `results` answers when it is done; what it raises is the answer, `Crashed`."""

    def __init__(self) -> None:
        self._name, self._ray = "a node", require_ray()
        self._inbox: queue.SimpleQueue[_Call | _Give | _Stop] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[tuple[int, Rollout | Crashed]] = queue.SimpleQueue()
        self._requests: deque[RolloutRequest] = deque()
        self._run = 0
        self._in_flight = self._kept_bytes = 0
        self._acts_here = False  # in this process, not in its workers
        self._pool: Any = None
        self._abandoned = threading.Event()
        self._desk: dict[str, Any] = {"abandoned": self._abandoned}
        self._working = threading.Lock()
        threading.Thread(target=self._own, daemon=True, name="pool").start()

    def pool(self, setup: Setup) -> Any:
        """The pool that makes its rollouts."""
        return make_pool(children.unpack(setup.factory), None, **setup.pool)

    # ------------------------------------------------------------------------------------------ the driver's calls

    def start(self, setup: Setup, policy: bytes | None, weights: bytes | None, version: int) -> Started | Crashed:
        """Be ready, with the policy and weights that there are."""
        return self._do(lambda: self._start(setup, policy, weights, version))

    def here(self) -> None:
        """Answers at once: the node is there."""

    def use(self, policy: bytes) -> Crashed | None:
        return self._do(lambda: self._use(policy))

    def set_policy(self, weights: bytes, version: int) -> Crashed | None:
        return self._do(lambda: self._pool.set_policy(load_weights(weights), version))

    def work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(desk, *arguments)`, beside what the pool does; see `learn.spread.Machines`."""
        try:
            with self._working:
                self._abandoned.clear()
                return function(self._desk, *arguments)
        except BaseException as error:
            return Crashed.of(error, self._name)

    def abandon(self) -> None:
        """A node that works together with this one was lost."""
        self._abandoned.set()

    def ask(self, errands: Sequence[Errand]) -> list[Any] | Crashed:
        return self._do(lambda: self._pool.ask(errands))

    def timings(self) -> dict[str, float] | Crashed:
        return self._do(self._timings)

    def begin(self, run: int) -> None:
        """A run begins; its rollouts are given from now on."""
        self._do(lambda: self._begin(run))

    def give(self, run: int, requests: Sequence[RolloutRequest]) -> None:
        self._inbox.put(_Give(run, requests))

    def stop(self, run: int) -> None:
        """Drop what is in flight of this run. Returns when the pool is free."""
        self._inbox.put(_Stop(run))
        self._do(lambda: None)

    def results(self, patience: float) -> Part:
        """What has been done since the last call, of one run; waits for something at most `patience` seconds. That it
        answers is also the node's sign of life."""
        found: list[Rollout | Crashed] = []
        run = self._run
        with contextlib.suppress(queue.Empty):
            of, result = self._outbox.get(timeout=patience)
            while True:
                if of != run:
                    run, found = of, []
                found.append(result)
                of, result = self._outbox.get_nowait()
        return Part(run, found)

    def close(self) -> None:
        self._do(lambda: None if self._pool is None else self._pool.close())

    # ------------------------------------------------------------------------------------------ the owner's thread

    def _do(self, work: Callable[[], Any]) -> Any:
        call = _Call(work)
        self._inbox.put(call)
        return call.answer.result()

    def _own(self) -> None:
        while True:
            self._handle(self._inbox.get())
            if self._run:
                self._go(self._run)

    def _handle(self, item: _Call | _Give | _Stop) -> None:
        """Do what was asked for.

        Raises:
            _Stopped: it was to end the present run.
        """
        if isinstance(item, _Call):
            try:
                item.answer.set_result(item.work())
            except BaseException as error:
                item.answer.set_result(Crashed.of(error, self._name))
        elif item.run != self._run:
            return
        elif isinstance(item, _Stop):
            raise _Stopped
        else:
            self._requests.extend(item.requests)

    def _begin(self, run: int) -> None:
        self._run, self._in_flight = run, 0
        self._requests.clear()

    def _go(self, run: int) -> None:
        """Run rollouts until the driver says that it is enough."""
        try:
            for rollout in self._pool.run(self._source(), self._heed):
                self._in_flight -= 1
                self._outbox.put((run, self._held(rollout)))
        except _Stopped:
            pass
        except BaseException as error:
            self._outbox.put((run, Crashed.of(error, self._name)))
        finally:
            self._run = 0

    def _heed(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._handle(self._inbox.get_nowait())

    def _source(self) -> Iterator[RolloutRequest | None]:
        while True:
            while not self._requests and not self._in_flight:
                self._handle(self._inbox.get())
            if not self._requests:
                yield None
                continue
            self._in_flight += 1
            yield self._requests.popleft()

    def _held(self, rollout: Rollout) -> Rollout:
        """The rollout without its record, which stays here."""
        if not rollout.recorded:
            return rollout
        arrays = (rollout.sample, rollout.log_prob, *(rollout.inputs or {}).values())
        self._kept_bytes += sum(array.nbytes for array in arrays if array is not None)
        with room_in_store("the record of a rollout"):
            held = Record(self._name, self._ray.put(rollout))
        return replace(rollout.outcome(), mask=rollout.mask, held=held)

    def _timings(self) -> dict[str, float]:
        spent = {name: float(metric.value) for name, metric in self._pool.timings().items()}
        kept, self._kept_bytes = self._kept_bytes, 0
        return spent | {"bytes": float(kept)}

    def _use(self, policy: bytes) -> None:
        self._desk["policy"] = policy
        acts: Any = children.unpack(policy)
        self._pool.use(policy_calls.to(acts, self._desk["device"]) if self._acts_here else acts)

    def _start(self, setup: Setup, policy: bytes | None, weights: bytes | None, version: int) -> Started:
        self._name = setup.name
        self._desk |= {"host": self._ray.util.get_node_ip_address(), "device": setup.device, "backend": setup.backend}
        self._acts_here = setup.pool["inference"] == "central"
        sys.path += [path for path in setup.path if path not in sys.path and os.path.isdir(path)]
        os.environ.update(setup.environ)
        if setup.on_gpu:
            take_gpu(setup.name, setup.device, setup.backend)
        if setup.check and (lacks := interpreter.in_a_child(setup.check, setup.name)) is not None:
            raise lacks
        self._pool = self.pool(setup)
        if policy is not None:
            self._use(policy)
        if weights is not None:
            self._pool.set_policy(load_weights(weights), version)
        return Started(
            pid=os.getpid(),
            saturation=self._pool.saturation,
            cores=capacity.cores().usable,
            memory=capacity.memory().available,
            gpu_memory=free_on(setup.device),
            versions=installed(setup.packages),
        )


class Learner(Node):
    """A node that only learns: it has no workers."""

    def pool(self, setup: Setup) -> Any:
        return super().pool(replace(setup, pool={**setup.pool, "workers": 0, "inference": "local"}))
