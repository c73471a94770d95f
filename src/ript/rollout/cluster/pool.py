"""A pool whose nodes are actors of a Ray cluster: each has a pool of worker processes, and keeps what it recorded.

The driver hands out requests and hears outcomes. What a lost node had is run again on another: a rollout is a function
of weights and request, so it comes out the same.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ript.core import children, interpreter
from ript.core.errors import ConfigError, RiptError, WorkerError
from ript.core.interfaces import Policy, SimulatorFactory
from ript.core.metrics import Metrics, Sum
from ript.core.types import Errand, Heed, Rollout, RolloutRequest, Status
from ript.core.workers import Crashed
from ript.rollout.cluster.connection import LOCAL, Connection, Place
from ript.rollout.cluster.member import Has, Member, place_on, workers_on
from ript.rollout.cluster.node import Node, Part, Record, Setup
from ript.rollout.cluster.versions import ALWAYS, differing, installed
from ript.rollout.engine import address
from ript.rollout.local.process_pool import NO_POLICY, SPENT
from ript.rollout.local.processes import pack_policy
from ript.rollout.local.worker import dump_weights
from ript.rollout.stream import ErrorLimit, Flight, Stream, refuse_if

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables of this process that nodes have too."""
LOST_AT_MOST, FETCH_SECONDS = 5, 30.0
"""Times that one record is looked for, and seconds after which it is asked whether its node is still there."""
LOOK_SECONDS = 5.0
"""Between two looks at which nodes the cluster has."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of a cluster is used; 0 stands for all of it.

    Attributes:
        nodes: at most; on a cluster that is started here, exactly.
        workers_per_node: worker processes of each; 0: one a core.
        silence: seconds without a sign of life after which a node counts as lost.
        start: seconds that nodes may take to start, or to be found again when all are lost.
        gpus_per_node: that a node has to itself.
        device: where nodes learn, "cpu" or "cuda".
    """

    nodes: int = 0
    workers_per_node: int = 0
    silence: float = 60.0
    start: float = 180.0
    gpus_per_node: int = 0
    device: str = "cpu"


def make_cluster_pool(
    make_simulator: SimulatorFactory,
    policy: Policy | None,
    *,
    address: str,
    size: Size,
    settings: Mapping[str, Any],
    packages: Sequence[str] = (),
    node: type[Node] = Node,
) -> ClusterPool:
    """A pool on a cluster; see `ClusterPool` for the arguments, and `Connection` for the address and what is raised."""
    cores = size.nodes * size.workers_per_node or None  # of a local cluster: as many as are asked for
    joined = Connection(address, cores)
    pool = ClusterPool(joined, make_simulator, size=size, settings=settings, packages=packages, node=node)
    if policy is not None:
        pool.use(policy)
    return pool


class Kept:
    """The record of a rollout, on its node, as long as the driver has a use for it. One that is lost is made again.

    On its way to another process it is the `Record` alone.
    """

    def __init__(self, record: Record, request: RolloutRequest, version: int, pool: ClusterPool):
        self.record, self.request, self.version, self._pool = record, request, version, pool

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self.record.node, self.record.ref)

    def fetch(self) -> Rollout:
        for _ in range(LOST_AT_MOST):
            self._pool.mend()
            try:
                return self.record.fetch(FETCH_SECONDS)
            except self._pool.lost_errors:
                self._pool.look()
        raise WorkerError(f"the record of {address(self.request)} was lost {LOST_AT_MOST} times")


class ClusterPool:
    """An `EnvPool` over the nodes of a cluster. Close it, or use it as a context manager.

    Args:
        cluster: closed with the pool.
        make_simulator: task key -> simulator.
        size: how much of the cluster.
        settings: arguments of `rollout.pool.make_pool`, of each node's pool, but for its workers.
        packages: whose versions must be the same on all nodes.
        node: what runs on them.

    Raises:
        ConfigError: the cluster has fewer nodes or cores than wanted, or a node other versions than this process.
        WorkerError: nodes do not start.
    """

    def __init__(
        self,
        cluster: Connection,
        make_simulator: SimulatorFactory,
        *,
        size: Size,
        settings: Mapping[str, Any],
        packages: Sequence[str] = (),
        node: type[Node] = Node,
    ):
        self._cluster, self._ray, self._size = cluster, cluster.ray, size
        self._node = node
        self._max_retries = int(settings["max_retries"])
        self._errors = ErrorLimit(float(settings["max_error_rate"]))
        self._settings = {**settings, "max_error_rate": 1.0}  # judged here, over all nodes
        self._factory = children.pack(make_simulator)
        self._packages = (*ALWAYS, *packages)
        self._versions = installed(self._packages)
        self._members: list[Member] = []
        self._coming: list[Member] = []
        self._has = Has()
        self._had: dict[int, Has] = {}  # by version, as long as rollouts of it may be learned from
        self._looked = 0.0
        self._run = self._ticket = 0
        self._running, self._runner = False, 0
        self._idle = threading.Event()  # no run goes on, in whatever thread
        self._idle.set()
        self._barren = self._made = 0
        self._stream: Stream | None = None
        self._done: deque[Rollout] = deque()
        self._kept: weakref.WeakSet[Kept] = weakref.WeakSet()
        self._spent: Counter[str] = Counter()
        self.rows: dict[str, dict[str, float]] = {}  # what each node did between the last two calls of `timings`
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------ what a pool does

    @property
    def saturation(self) -> int:
        return sum(member.saturation for member in self._members)

    @property
    def lost_errors(self) -> tuple[type[Exception], ...]:
        """Errors that Ray raises when an object is gone with its node."""
        errors = self._ray.exceptions
        return errors.ObjectLostError, errors.RayActorError, errors.RaySystemError, errors.GetTimeoutError

    def look(self) -> None:
        """See whether nodes are lost or have come; waits until those that are lost have been heard of."""
        if not self._running:
            self._take_up(wait=True)
        self._all("here")

    @property
    def workers(self) -> int:
        """Worker processes of all nodes that work."""
        return sum(max(1, member.workers) for member in self._members)

    @property
    def nodes(self) -> list[str]:
        """Names of those that work."""
        return [member.name for member in self._members]

    def use(self, policy: Policy) -> None:
        refuse_if(self._running, "use")
        self._has = Has(policy=self._ray.put(pack_policy(policy)))
        self._take_up(wait=True)
        self._give_policy("use", self._has.policy)

    def set_policy(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        refuse_if(self._running, "set_policy")
        self._need_policy()
        self._has = replace(self._has, weights=self._ray.put(dump_weights(weights)), version=version)
        self._had = {v: has for v, has in self._had.items() if v >= version - 1} | {version: self._has}
        self._take_up(wait=True)
        self._give_policy("set_policy", self._has.weights, version)

    def run(
        self, requests: Iterable[RolloutRequest | None], heed: Heed | None = None
    ) -> Generator[Rollout, None, None]:
        refuse_if(self._running, "run")
        self._need_policy()
        self._take_up(wait=True)
        self._run += 1
        self._running, self._runner = True, threading.get_ident()
        self._idle.clear()
        stream = self._stream = Stream(requests, self._ticket)
        try:
            self._all("begin", self._run)
            while True:
                if heed is not None:
                    heed()
                    stream.ask_again()
                self._assign(stream)
                if not self._done:
                    if not any(member.flights for member in self._members) and stream.finished():
                        return
                    self._turn()
                while self._done:
                    rollout = self._done.popleft()
                    self._errors.add(rollout)
                    stream.ask_again()
                    yield rollout
        finally:
            self._ticket = stream.ticket
            self._stop()

    def ask(self, errands: Sequence[Errand]) -> list[Any]:
        answers: dict[int, Any] = {}
        tries: Counter[int] = Counter()
        while missing := [number for number in range(len(errands)) if number not in answers]:
            shares = self._shares([(number, errands[number]) for number in missing])
            asked = {m: m.actor.ask.remote([errands[n] for n in numbers]) for m, numbers in shares.items()}
            for member, found in self._answers(asked).items():
                answers |= dict(zip(shares[member], found, strict=True))
            tries.update(number for number in missing if number not in answers)
            if lost := next((number for number, times in tries.items() if times > self._max_retries), None):
                raise WorkerError(f"{errands[lost].task}: its node was lost, {tries[lost]} times")
        return [answers[number] for number in range(len(errands))]

    def timings(self) -> Metrics:
        if not self._running:
            self.rows = {}
            for member, spent in self._all("timings").items():
                self._spent.update(spent)
                self.rows[member.name] = spent | {"workers": float(max(1, member.workers))}
        spent, self._spent = self._spent, Counter()
        return {name: Sum(float(spent[name])) for name in SPENT}

    @property
    def pids(self) -> dict[str, int]:
        """Name -> process id, of those that work."""
        return {member.name: member.pid for member in self._members}

    # ------------------------------------------------------------------------------------------ as machines of ranks

    def home(self, rollout: Rollout) -> str | None:
        name = rollout.held.record.node if isinstance(rollout.held, Kept) else None
        return name if name in self.nodes else None

    def share(self, thing: Any) -> Any:
        return self._ray.put(thing)

    def work(self, function: Callable[..., Any], jobs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        named = {member.name: member for member in self._members}
        asked = {named[n]: named[n].actor.work.remote(function, *job) for n, job in jobs.items() if n in named}
        answers = self._answers(asked, together=True)
        failed = [answer for answer in answers.values() if isinstance(answer, Crashed)]
        if failed and len(answers) == len(jobs):  # else because of one that was lost
            own = [crash for crash in failed if crash.kind != "ElsewhereError"]
            raise (own or failed)[0].rebuild()
        return {m.name: answer for m, answer in answers.items() if not isinstance(answer, Crashed)}

    def mend(self) -> None:
        """Make records again that were lost with their nodes, all that somebody still has a use for."""
        lost = [kept for kept in list(self._kept) if kept.record.node not in self.nodes]
        if not lost:
            return
        here = self._running and self._runner == threading.get_ident()
        if here or any(kept.version != self._has.version and kept.version not in self._had for kept in lost):
            raise WorkerError(f"{lost[0].record.node} was lost with {len(lost)} records, too late to make them again")
        self._idle.wait()
        _log.warning("%d records were lost with their nodes; their rollouts are made again", len(lost))
        for version in sorted({kept.version for kept in lost}):
            if version != self._has.version:
                self._has = self._had[version]
                self._give_policy("set_policy", self._has.weights, version)
            places = {(k.request.initial_state.id, k.request.index): k for k in lost if k.version == version}
            for rollout in self.run(iter([kept.request for kept in places.values()])):
                if rollout.held is None:
                    raise WorkerError(f"a rollout whose record was lost could not be made again: {rollout.error}")
                places[rollout.initial_state_id, rollout.index].record = rollout.held.record  # type: ignore[attr-defined]

    def close(self) -> None:
        """End all nodes, and leave the cluster."""
        members, self._members, self._coming = [*self._members, *self._coming], [], []
        try:
            if members:
                self._ray.wait([m.actor.close.remote() for m in members], num_returns=len(members), timeout=2.0)
            for member in members:
                member.kill()
        except Exception as error:  # the connection is gone, and with it what was started over it
            _log.warning("the cluster was left without a word: %s", error)
        finally:
            self._cluster.close()

    def __enter__(self) -> ClusterPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ work

    def _need_policy(self) -> None:
        if self._has.policy is None:
            raise ConfigError(NO_POLICY)

    def _assign(self, stream: Stream) -> None:
        """Give requests to nodes while there is room."""
        room = sum(member.capacity - len(member.flights) for member in self._members)
        drawn: list[Flight] = []
        while len(drawn) < room and (flight := stream.draw()) is not None:
            drawn.append(flight)
        given: dict[Member, list[RolloutRequest]] = {}
        held = []
        for flight in drawn:  # from here on: to draw may have lost nodes
            member = place_on(flight.request.initial_state.task.key, self._members)
            if member is None:
                held.append(flight)
                continue
            member.load.give(flight)
            given.setdefault(member, []).append(flight.request)
        for flight in reversed(held):
            stream.back(flight)
        for member, requests in given.items():
            member.actor.give.remote(self._run, requests)

    def _shares(self, numbered: Sequence[tuple[int, Errand]]) -> dict[Member, list[int]]:
        """Which errands each node runs: those of a task together, as far as that leaves none idle."""
        shares: dict[Member, list[int]] = {}
        most = -(-len(numbered) // len(self._members))
        for number, errand in sorted(numbered, key=lambda one: one[1].task):
            open_members = [m for m in self._members if len(shares.get(m, ())) < most]
            chosen = min(
                open_members,
                key=lambda m: (errand.task not in m.load.loaded, len(shares.get(m, ())) / max(1, m.workers)),
            )
            chosen.load.use(errand.task)
            shares.setdefault(chosen, []).append(number)
        return shares

    def _turn(self) -> None:
        """Wait for results, take them in, and give up nodes that are lost."""
        self._listen([])

    def _answers(self, asked: dict[Member, Any], *, together: bool = False) -> dict[Member, Any]:
        """What nodes answer, those left out that are lost meanwhile.

        Args:
            asked: node -> its call.
            together: they wait for each other: when one is lost, the others are told, and given up when they do not
                come back; what they raise is an answer too.

        Raises:
            RiptError: what a node raised, as soon as it comes.
        """
        answers: dict[Member, Any] = {}
        alone: float | None = None  # since when
        while waiting := {m: ref for m, ref in asked.items() if m in self._members and m not in answers}:
            for member in self._listen(list(waiting.values()), waiting):
                found = self._got(member, waiting[member])
                if isinstance(found, Crashed) and not together:
                    raise found.rebuild()
                if member in self._members:
                    answers[member] = found
            if not together or all(member in self._members for member in asked):
                continue
            if alone is None:
                alone = time.monotonic()
                for member in waiting:
                    member.actor.abandon.remote()
            elif time.monotonic() - alone > self._size.silence:
                for member in waiting:
                    if member in self._members and member not in answers:
                        self._lose(member, "it waits for a node that was lost")
        return answers

    def _all(self, method: str, *arguments: Any) -> dict[Member, Any]:
        """Let all nodes do something, and wait until they have."""
        return self._answers({m: getattr(m.actor, method).remote(*arguments) for m in self._members})

    def _listen(self, wanted: list[Any], of: Mapping[Member, Any] | None = None) -> list[Member]:
        """Wait until something comes, a second at most. Returns those whose answer among `wanted` is there.

        While another thread runs rollouts, that one hears the nodes and looks after them.
        """
        if not self._idle.is_set() and self._runner != threading.get_ident():
            ready, _ = self._ray.wait(wanted, timeout=1.0, fetch_local=False)
            return [member for member, ref in (of or {}).items() if ref in set(ready)]
        polls = {member.poll: member for member in self._members}
        everything = [*polls, *wanted]
        ready, _ = self._ray.wait(everything, timeout=1.0, fetch_local=False)
        if ready:
            ready, _ = self._ray.wait(everything, num_returns=len(everything), timeout=0, fetch_local=False)
        for ref in ready:
            if (member := polls.get(ref)) is not None:
                part = self._got(member, ref)
                if part is not None:
                    self._take_in(member, member.heard(part))
        for member in list(self._members):
            if member.hangs(self._size.silence):
                self._lose(member, f"no sign of life for {self._size.silence:g} s")
        if not self._members:
            self._find_again()
        elif self._running:
            self._take_up()
        there = set(ready)
        return [member for member, ref in (of or {}).items() if ref in there]

    def _got(self, member: Member, ref: Any) -> Any:
        """What a call to a node gave; None when it was lost."""
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            if not self._idle.is_set() and self._runner != threading.get_ident():
                while member in self._members and not self._idle.wait(0.1):  # until the one that looks after them knows
                    pass
            if member in self._members:
                self._lose(member, _said(error))
            return None

    def _take_in(self, member: Member, part: Part) -> None:
        if not self._running or part.run != self._run:
            return
        for result in part.results:
            if isinstance(result, Crashed):
                raise result.rebuild()
            flight = member.landed(result.initial_state_id, result.index)
            if flight is not None:
                self._barren = 0
                self._spent["rollouts"] += 1
                self._done.append(self._with_record(result, flight.request))

    def _with_record(self, rollout: Rollout, request: RolloutRequest) -> Rollout:
        if rollout.held is None:
            return rollout
        kept = Kept(rollout.held, request, rollout.policy_version, self)  # type: ignore[arg-type]
        self._kept.add(kept)
        return replace(rollout, held=kept)

    def _stop(self) -> None:
        """End a run: nodes drop what is in flight."""
        self._running, self._stream = False, None
        self._done.clear()
        for member in self._members:
            member.flights.clear()
        self._all("stop", self._run)
        self._idle.set()

    # ------------------------------------------------------------------------------------------ nodes

    def _start(self) -> None:
        """Start all nodes, and wait for them."""
        places = self._places()
        if not places:
            raise ConfigError("the cluster has no machine with a core to give")
        self._coming = [self._member(place) for place in places]
        self._await_coming()

    def _places(self) -> list[Place]:
        """Where nodes shall be, one entry each."""
        found, wanted = self._cluster.places(), self._size.nodes
        if self._cluster.address == LOCAL and found:
            found = found[:1] * (wanted or 1)
        if len(found) < wanted:
            raise ConfigError(
                f"cluster.nodes = {wanted}, but the cluster has {len(found)} with cores to give: "
                f"{', '.join(place.name for place in found) or 'none'}; add some, or ask for fewer"
            )
        found = found[: wanted or len(found)]
        for place in found:
            share = found.count(place)
            workers = workers_on(place, self._size.workers_per_node, share)
            if workers * share > place.cores:
                raise ConfigError(
                    f"cluster.workers_per_node = {workers}, but {place.name} has {place.cores} cores"
                    f"{f' for {share} nodes' if share > 1 else ''}: ask for fewer workers"
                )
        return found

    def _member(self, place: Place) -> Member:
        """One that is being started; no two have one name."""
        self._made += 1
        shared = self._cluster.address == LOCAL
        workers = workers_on(place, self._size.workers_per_node, max(1, self._size.nodes) if shared else 1)
        setup = Setup(
            name=f"node {self._made}" if shared else f"node {self._made} at {place.name}",
            factory=self._factory,
            pool={**self._settings, "workers": workers},
            packages=self._packages,
            device=self._size.device,
            path=interpreter.module_path(),
            environ={name: os.environ[name] for name in PASSED_ON if name in os.environ},
        )
        slots, gpus = int(self._settings["slots"]), self._size.gpus_per_node
        return Member(self._cluster, place, self._node, setup, self._has, workers=workers, slots=slots, gpus=gpus)

    def _await_coming(self) -> None:
        """Wait until all nodes that were started are there.

        Raises:
            WorkerError: one is not in time; or has raised, then its error.
        """
        deadline = time.monotonic() + self._size.start
        while self._coming:
            if self._adopt_started(strict=True) or not self._coming:
                continue
            if time.monotonic() > deadline:
                names = ", ".join(member.name for member in self._coming)
                raise WorkerError(
                    f"{names} did not start within {self._size.start:g} s: its cores may be in use by another run "
                    "(`ray status` says), or the machine may be out of reach"
                )

    def _adopt_started(self, *, strict: bool, patience: float = 1.0) -> bool:
        """Take in nodes that have started; whether there were any. `strict`: one that cannot is an error."""
        waiting = {member.starting: member for member in self._coming}
        ready, _ = self._ray.wait(list(waiting), timeout=patience, fetch_local=False)
        for ref in ready:
            member = waiting[ref]
            self._coming.remove(member)
            try:
                told = self._ray.get(ref)
                if isinstance(told, Crashed):
                    raise told.rebuild()
                if differ := differing(self._versions, told.versions):
                    raise ConfigError(f"{member.name} has other versions than this process: {differ}; install the same")
                self._welcome(member, told)
            except (self._ray.exceptions.RayError, RiptError) as error:
                member.kill()
                if strict:
                    raise (
                        error
                        if isinstance(error, RiptError)
                        else WorkerError(f"{member.name} did not start: {_said(error)}")
                    ) from error
                _log.warning("%s cannot be used: %s", member.name, error)
        return bool(ready)

    def _welcome(self, member: Member, told: Any) -> None:
        """A node that has started works with the others, with the policy that these have by now."""
        has = self._has
        missing: list[tuple[str, tuple[Any, ...]]] = []
        if has.policy is not member.has.policy:
            missing.append(("use", (has.policy,)))
        if has.weights is not None and (missing or has.weights is not member.has.weights):
            missing.append(("set_policy", (has.weights, has.version)))
        if self._running:
            missing.append(("begin", (self._run,)))
        for method, arguments in missing:
            found = self._ray.get(getattr(member.actor, method).remote(*arguments), timeout=self._size.start)
            if isinstance(found, Crashed):
                raise found.rebuild()
        member.has = has
        member.started(told)
        self._members.append(member)

    def _give_policy(self, method: str, *arguments: Any) -> None:
        """Let the nodes that were there before have what has changed."""
        old = [member for member in self._members if member.has is not self._has]
        self._answers({m: getattr(m.actor, method).remote(*arguments) for m in old})
        for member in old:
            member.has = self._has

    def _take_up(self, *, wait: bool = False) -> None:
        """Nodes that the cluster has, and this pool not: start them, and take in those that have started.

        Args:
            wait: look whether there are any, however short ago that was done.
        """
        if not wait and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        for place in self._cluster.places():
            have = [*self._members, *self._coming]
            missing = (self._size.nodes or 1) - len(have) if self._cluster.address == LOCAL else 1
            if self._cluster.address != LOCAL and any(m.place.id == place.id for m in have):
                continue
            if not 0 < self._size.nodes <= len(have):
                self._coming += [self._member(place) for _ in range(missing)]
        if self._coming:
            self._adopt_started(strict=False, patience=0.0)

    def _lose(self, member: Member, cause: str) -> None:
        """A node is gone: what it had in flight is run elsewhere."""
        flights = list(member.flights.values())
        _log.warning("%s: %s; the %d rollouts it had are run again", member.name, cause, len(flights))
        self._members.remove(member)
        member.kill()
        self._spent["worker_restarts"] += 1
        self._barren = 0 if flights else self._barren + 1
        if self._barren >= 3:
            raise WorkerError(f"{self._barren} nodes in a row were lost before they did anything; the last: {cause}")
        for flight in flights:
            flight.lost += 1
            if flight.lost > self._max_retries:
                self._done.append(self._give_up(flight, f"{member.name}: {cause}"))
            elif self._stream is not None:
                self._stream.again(flight)
                self._spent["retries"] += 1

    def _find_again(self) -> None:
        """All nodes are lost: wait until one can be started again.

        Raises:
            WorkerError: none can.
        """
        deadline = time.monotonic() + self._size.start
        while not self._members:
            if not self._coming:
                self._coming = [self._member(place) for place in self._cluster.places()]
            if self._coming:
                self._adopt_started(strict=False)
            elif time.monotonic() < deadline:
                time.sleep(0.5)
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"all nodes of the cluster are lost, and none came back within {self._size.start:g} s"
                )

    def _give_up(self, flight: Flight, cause: str) -> Rollout:
        request = flight.request
        return Rollout(
            initial_state_id=request.initial_state.id,
            index=request.index,
            status=Status.ERROR,
            decisions=0,
            env_steps=0,
            policy_version=self._has.version,
            error=f"WorkerError: the node was lost\n  with {address(request)}, {flight.lost} times; the last: {cause}",
        )


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


__all__ = ["ClusterPool", "Size"]
