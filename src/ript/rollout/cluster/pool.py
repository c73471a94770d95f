"""A pool whose nodes are actors of a Ray cluster: each has a pool of worker processes, and keeps what it recorded.

The driver hands out requests and hears outcomes. What a lost node had is run again on another: a rollout is a function
of weights and request, so it comes out the same.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ript.core import children
from ript.core.errors import ConfigError, WorkerError
from ript.core.interfaces import Policy, SimulatorFactory
from ript.core.metrics import Metrics, Sum
from ript.core.types import Errand, Heed, Rollout, RolloutRequest, Status
from ript.core.workers import Crashed
from ript.rollout.cluster.connection import Connection, room_in_store
from ript.rollout.cluster.member import Has, Member, place_on
from ript.rollout.cluster.node import Node, Part
from ript.rollout.cluster.records import Kept
from ript.rollout.cluster.roster import Roster
from ript.rollout.cluster.starter import Size, Starter
from ript.rollout.engine import address
from ript.rollout.local.process_pool import NO_POLICY, SPENT
from ript.rollout.local.processes import pack_policy
from ript.rollout.local.worker import dump_weights
from ript.rollout.stream import ErrorLimit, Flight, Stream, refuse_if, rollouts_as_they_end

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())


def make_cluster_pool(
    make_simulator: SimulatorFactory,
    policy: Policy | None,
    *,
    address: str,
    size: Size,
    settings: Mapping[str, Any],
    packages: Sequence[str] = (),
    node: type[Node] = Node,
    check: str = "",
) -> ClusterPool:
    """A pool on a cluster; see `ClusterPool` for the arguments, and `Connection` for the address and what is raised."""
    cores = size.nodes * size.workers_per_node or None  # of a local cluster: as many as are asked for
    joined = Connection(address, cores)
    pool = ClusterPool(joined, make_simulator, size=size, settings=settings, packages=packages, node=node, check=check)
    if policy is not None:
        pool.use(policy)
    return pool


class ClusterPool:
    """An `EnvPool` over the nodes of a cluster. Close it, or use it as a context manager.

    Args:
        cluster: closed with the pool.
        make_simulator: task key -> simulator.
        size: how much of the cluster.
        settings: arguments of `rollout.pool.make_pool`, of each node's pool, but for its workers.
        packages: whose versions must be the same on all nodes.
        node: what runs on them.
        check: "module:name" of a function that raises what a machine lacks, given the node's name. It is called on each
            node, in a process of its own.

    Raises:
        ConfigError: the cluster has fewer nodes or cores than wanted, or a node other versions than this process.
        WorkerError: nodes do not start.
        RiptError: of `check`, with the name of the node.

    Attributes:
        has: the present policy.
        present_run: the number of the run that goes on; 0: none.
        rows: what each node did between the last two calls of `timings`.
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
        check: str = "",
    ):
        self._ray = cluster.ray
        self._max_retries = int(settings["max_retries"])
        self._errors = ErrorLimit(float(settings["max_error_rate"]))
        self.has = Has()
        self._had: dict[int, Has] = {}  # by version, as long as rollouts of it may be learned from
        self._runs = self._ticket = self.present_run = 0
        self._stream: Stream | None = None
        self._done: deque[Rollout] = deque()
        self._kept: weakref.WeakSet[Kept] = weakref.WeakSet()
        self._spent: Counter[str] = Counter()
        self.rows: dict[str, dict[str, float]] = {}
        starter = Starter(
            cluster,
            size=size,
            node=node,
            factory=children.pack(make_simulator),
            settings={**settings, "max_error_rate": 1.0},  # judged here, over all nodes
            packages=packages,
            check=check,
        )
        self._starter, self._roster = starter, Roster(self, cluster, starter)
        try:
            self._roster.start()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------ what a pool does

    @property
    def saturation(self) -> int:
        return sum(member.saturation for member in self.members)

    @property
    def members(self) -> list[Member]:
        """Nodes that work."""
        return self._roster.members

    @property
    def workers(self) -> int:
        """Worker processes of all nodes that work."""
        return sum(max(1, member.workers) for member in self.members)

    @property
    def nodes(self) -> list[str]:
        """Names of those that work."""
        return [member.name for member in self.members]

    @property
    def pids(self) -> dict[str, int]:
        """Name -> process id, of those that work."""
        return {member.name: member.pid for member in self.members}

    def use(self, policy: Policy) -> None:
        refuse_if(bool(self.present_run), "use")
        packed = pack_policy(policy)
        self._starter.require_room(self.members, len(packed))
        self.has, self._had = Has(policy=self.share(packed)), {}
        self._roster.take_up(wait=True)
        self._roster.give_policy("use", self.has.policy)

    def set_policy(self, weights: Mapping[str, torch.Tensor], version: int) -> None:
        refuse_if(bool(self.present_run), "set_policy")
        self._need_policy()
        self.has = replace(self.has, weights=self.share(dump_weights(weights)), version=version)
        self._had = {v: has for v, has in self._had.items() if v >= version - 1} | {version: self.has}
        self._roster.take_up(wait=True)
        self._roster.give_policy("set_policy", self.has.weights, version)

    def run(
        self, requests: Iterable[RolloutRequest | None], heed: Heed | None = None
    ) -> Generator[Rollout, None, None]:
        refuse_if(bool(self.present_run), "run")
        self._need_policy()
        self._roster.take_up(wait=True)
        self._runs += 1
        self.present_run = self._runs
        self._roster.minding()
        stream = self._stream = Stream(requests, self._ticket)
        try:
            self._roster.all("begin", self.present_run)
            for rollout in rollouts_as_they_end(
                stream,
                self._done,
                self._errors,
                assign=lambda: self._assign(stream),
                busy=lambda: any(member.flights for member in self.members),
                turn=lambda: self._roster.listen([]),
                heed=heed,
            ):
                self._spent["rollouts"] += 1
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
            for member, found in self._roster.answers(asked).items():
                answers |= dict(zip(shares[member], found, strict=True))
            tries.update(number for number in missing if number not in answers)
            if lost := next((number for number, times in tries.items() if times > self._max_retries), None):
                raise WorkerError(f"{errands[lost].task}: its node was lost, {tries[lost]} times")
        return [answers[number] for number in range(len(errands))]

    def timings(self) -> Metrics:
        if not self.present_run:
            self.rows = {}
            for member, spent in self._roster.all("timings").items():
                self._spent.update(spent)
                self.rows[member.name] = spent | {"workers": float(max(1, member.workers))}
        spent, self._spent = self._spent, Counter()
        return {name: Sum(float(spent[name])) for name in SPENT}

    def close(self) -> None:
        """End all nodes, and leave the cluster."""
        self._roster.close()

    def __enter__(self) -> ClusterPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ as machines of ranks

    def home(self, rollout: Rollout) -> str | None:
        name = rollout.held.record.node if isinstance(rollout.held, Kept) else None
        return name if name in self.nodes else None

    def share(self, thing: Any) -> Any:
        with room_in_store("what all nodes get, on the driver's machine"):
            return self._ray.put(thing)

    def work(self, function: Callable[..., Any], jobs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        named = {member.name: member for member in self.members}
        asked = {named[n]: named[n].actor.work.remote(function, *job) for n, job in jobs.items() if n in named}
        answers = self._roster.answers(asked, together=True)
        failed = [answer for answer in answers.values() if isinstance(answer, Crashed)]
        if failed and len(answers) == len(jobs):  # else because of one that was lost
            own = [crash for crash in failed if crash.kind != "ElsewhereError"]
            raise (own or failed)[0].rebuild()
        return {m.name: answer for m, answer in answers.items() if not isinstance(answer, Crashed)}

    def look(self) -> None:
        if not self.present_run:
            self._roster.take_up(wait=True)
        self._roster.all("here")

    @property
    def lost_errors(self) -> tuple[type[Exception], ...]:
        """Errors that Ray raises when an object is gone with its node."""
        errors = self._ray.exceptions
        return errors.ObjectLostError, errors.RayActorError, errors.RaySystemError, errors.GetTimeoutError

    def mend(self) -> None:
        lost = [kept for kept in list(self._kept) if kept.record.node not in self.nodes]
        if not lost:
            return
        forgotten = any(kept.version != self.has.version and kept.version not in self._had for kept in lost)
        if self._roster.minded_here or forgotten:
            raise WorkerError(f"{lost[0].record.node} was lost with {len(lost)} records, too late to make them again")
        self._roster.idle.wait()
        _log.warning("%d records were lost with their nodes; their rollouts are made again", len(lost))
        for version in sorted({kept.version for kept in lost}):
            if version != self.has.version:
                self.has = self._had[version]
                self._roster.give_policy("set_policy", self.has.weights, version)
            places = {(k.request.initial_state.id, k.request.index): k for k in lost if k.version == version}
            for rollout in self.run(iter([kept.request for kept in places.values()])):
                if rollout.held is None:
                    raise WorkerError(f"a rollout whose record was lost could not be made again: {rollout.error}")
                places[rollout.initial_state_id, rollout.index].record = rollout.held.record  # type: ignore[attr-defined]

    # ------------------------------------------------------------------------------------------ work

    def _need_policy(self) -> None:
        if self.has.policy is None:
            raise ConfigError(NO_POLICY)

    def _assign(self, stream: Stream) -> None:
        """Give requests to nodes while there is room."""
        room = sum(member.capacity - len(member.flights) for member in self.members)
        drawn: list[Flight] = []
        while len(drawn) < room and (flight := stream.draw()) is not None:
            drawn.append(flight)
        given: dict[Member, list[RolloutRequest]] = {}
        held = []
        for flight in drawn:  # from here on: to draw may have lost nodes
            member = place_on(flight.request.initial_state.task.key, self.members)
            if member is None:
                held.append(flight)
                continue
            member.load.give(flight)
            given.setdefault(member, []).append(flight.request)
        for flight in reversed(held):
            stream.back(flight)
        for member, requests in given.items():
            member.actor.give.remote(self.present_run, requests)

    def _shares(self, numbered: Sequence[tuple[int, Errand]]) -> dict[Member, list[int]]:
        """Which errands each node runs: those of a task together, as far as that leaves none idle."""
        shares: dict[Member, list[int]] = {}
        most = -(-len(numbered) // len(self.members))
        for number, errand in sorted(numbered, key=lambda one: one[1].task):
            open_members = [m for m in self.members if len(shares.get(m, ())) < most]
            chosen = min(
                open_members,
                key=lambda m: (errand.task not in m.load.loaded, len(shares.get(m, ())) / max(1, m.workers)),
            )
            chosen.load.use(errand.task)
            shares.setdefault(chosen, []).append(number)
        return shares

    def heard(self, member: Member, part: Part) -> None:
        """Take in results of the present run."""
        if not self.present_run or part.run != self.present_run:
            return
        for result in part.results:
            if isinstance(result, Crashed):
                raise result.rebuild()
            flight = member.landed(result.initial_state_id, result.index)
            if flight is not None:
                self._roster.did_something()
                self._done.append(self._with_record(result, flight.request))

    def _with_record(self, rollout: Rollout, request: RolloutRequest) -> Rollout:
        if rollout.held is None:
            return rollout
        kept = Kept(rollout.held, request, rollout.policy_version, self)  # type: ignore[arg-type]
        self._kept.add(kept)
        return replace(rollout, held=kept)

    def lost(self, member: Member, flights: Sequence[Flight], cause: str) -> None:
        """Run again elsewhere what a lost node had in flight."""
        self._spent["worker_restarts"] += 1
        for flight in flights:
            flight.lost += 1
            if flight.lost > self._max_retries:
                self._done.append(self._give_up(flight, f"{member.name}: {cause}"))
            elif self._stream is not None:
                self._stream.again(flight)
                self._spent["retries"] += 1

    def _give_up(self, flight: Flight, cause: str) -> Rollout:
        request = flight.request
        return Rollout(
            initial_state_id=request.initial_state.id,
            index=request.index,
            status=Status.ERROR,
            decisions=0,
            env_steps=0,
            policy_version=self.has.version,
            error=f"WorkerError: the node was lost\n  with {address(request)}, {flight.lost} times; the last: {cause}",
        )

    def _stop(self) -> None:
        """End a run: nodes drop what is in flight."""
        run, self.present_run, self._stream = self.present_run, 0, None
        self._done.clear()
        for member in self.members:
            member.flights.clear()
        self._roster.all("stop", run)
        self._roster.idle.set()
