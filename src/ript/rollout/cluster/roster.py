"""Which nodes a pool has: started, heard, lost, found again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ript.core.errors import ConfigError, RiptError, WorkerError
from ript.core.workers import Crashed
from ript.rollout.cluster.connection import Connection, room_in_store
from ript.rollout.cluster.member import Has, Member
from ript.rollout.cluster.node import Part, Started
from ript.rollout.cluster.starter import Starter
from ript.rollout.stream import Flight

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())

PATIENCE_SECONDS = 30.0
"""After which it is said that nodes have not started yet."""
LOOK_SECONDS = 5.0
"""Between two looks at which nodes the cluster has."""


class Work(Protocol):
    """What the nodes work on, and who is told of it."""

    @property
    def has(self) -> Has:
        """The present policy."""
        ...

    @property
    def present_run(self) -> int:
        """The number of the run that goes on; 0: none."""
        ...

    def heard(self, member: Member, part: Part) -> None:
        """Results have come."""
        ...

    def lost(self, member: Member, flights: Sequence[Flight], cause: str) -> None:
        """A node is gone, with what it had in flight."""
        ...


class Roster:
    """The nodes of a pool.

    Results are heard by whoever waits for something. While a run goes on that is its thread (`minding`), and calls from
    other threads only wait for their answers.

    Args:
        work: of the nodes.
        cluster: that they are in.
        starter: starts them.

    Attributes:
        members: nodes that work.
    """

    def __init__(self, work: Work, cluster: Connection, starter: Starter):
        self.members: list[Member] = []
        self._coming: list[Member] = []
        self._work, self._cluster, self._ray, self._starter = work, cluster, cluster.ray, starter
        self._size = starter.size
        self._looked = 0.0
        self._barren = 0
        self._minder = 0
        self.idle = threading.Event()  # no run goes on, in whatever thread
        self.idle.set()

    # ------------------------------------------------------------------------------------------ who hears the nodes

    def minding(self) -> None:
        """A run begins, in this thread, which looks after the nodes until `idle` is set again."""
        self._minder = threading.get_ident()
        self.idle.clear()

    @property
    def minded_here(self) -> bool:
        """Whether a run goes on in this very thread."""
        return not self.idle.is_set() and self._minder == threading.get_ident()

    @property
    def _minded_elsewhere(self) -> bool:
        return not self.idle.is_set() and self._minder != threading.get_ident()

    def listen(self, wanted: list[Any], of: Mapping[Member, Any] | None = None) -> list[Member]:
        """Wait until something comes, a second at most. Returns those whose answer among `wanted` is there."""
        if self._minded_elsewhere:
            ready, _ = self._ray.wait(wanted, timeout=1.0, fetch_local=False)
            return [member for member, ref in (of or {}).items() if ref in set(ready)]
        polls = {member.poll: member for member in self.members}
        everything = [*polls, *wanted]
        ready, _ = self._ray.wait(everything, timeout=1.0, fetch_local=False)
        if ready:
            ready, _ = self._ray.wait(everything, num_returns=len(everything), timeout=0, fetch_local=False)
        for ref in ready:
            if (member := polls.get(ref)) is not None:
                part = self._got(member, ref)
                if part is not None:
                    self._work.heard(member, member.heard(part))
        for member in list(self.members):
            if member.hangs(self._size.silence):
                self._lose(member, f"no sign of life for {self._size.silence:g} s")
        if not self.members:
            self._find_again()
        elif self._work.present_run:
            self.take_up()
        there = set(ready)
        return [member for member, ref in (of or {}).items() if ref in there]

    def _got(self, member: Member, ref: Any) -> Any:
        """What a call to a node gave; None when it was lost."""
        try:
            with room_in_store(f"an answer of {member.name}"):
                return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            if self._minded_elsewhere:
                while member in self.members and not self.idle.wait(0.1):  # until the one that looks after them knows
                    pass
            if member in self.members:
                self._lose(member, said(error))
            return None

    # ------------------------------------------------------------------------------------------ calls

    def answers(self, asked: dict[Member, Any], *, together: bool = False) -> dict[Member, Any]:
        """What nodes answer, those left out that are lost meanwhile.

        Args:
            asked: node -> its call.
            together: they wait for each other: when one is lost or raises, the others are told, and given up when they
                do not come back; what they raise is an answer too.

        Raises:
            RiptError: what a node raised, as soon as it comes.
        """
        answers: dict[Member, Any] = {}
        alone: float | None = None  # since when
        told: list[Any] = []
        while waiting := {m: ref for m, ref in asked.items() if m in self.members and m not in answers}:
            for member in self.listen(list(waiting.values()), waiting):
                found = self._got(member, waiting[member])
                if isinstance(found, Crashed) and not together:
                    raise found.rebuild()
                if member in self.members:
                    answers[member] = found
            failed = any(isinstance(found, Crashed) for found in answers.values())
            if not together or (not failed and all(member in self.members for member in asked)):
                continue
            if alone is None:
                alone = time.monotonic()
                told = [member.actor.abandon.remote() for member in waiting]
            elif time.monotonic() - alone > self._size.silence:
                for member in waiting:
                    if member in self.members and member not in answers:
                        self._lose(member, "it waits for a node that was lost")
        if told:  # what comes next shall not be abandoned
            self._ray.wait(told, num_returns=len(told), timeout=1.0, fetch_local=False)
        return answers

    def all(self, method: str, *arguments: Any) -> dict[Member, Any]:
        """Let all nodes do something, and wait until they have."""
        return self.answers({m: getattr(m.actor, method).remote(*arguments) for m in self.members})

    def give_policy(self, method: str, *arguments: Any) -> None:
        """Let the nodes that were there before have what has changed."""
        has = self._work.has
        old = [member for member in self.members if member.has is not has]
        self.answers({m: getattr(m.actor, method).remote(*arguments) for m in old})
        for member in old:
            member.has = has

    # ------------------------------------------------------------------------------------------ those that come

    def start(self) -> None:
        """Start all nodes, and wait for them.

        Raises:
            ConfigError: the cluster has fewer nodes or cores than wanted, or a node other versions than this process.
            WorkerError: one is not in time.
            RiptError: one has not what a machine must have.
        """
        places = self._starter.places()
        if not places:
            raise ConfigError("the cluster has no machine with a core to give")
        self._coming = [self._starter.member(place, self._work.has) for place in places]
        began, told, what = time.monotonic(), False, "cores or GPUs" if self._size.gpus_per_node else "cores"
        while self._coming:
            if self._adopt_started(strict=True) or not self._coming:
                continue
            names, waited = ", ".join(member.name for member in self._coming), time.monotonic() - began
            if waited > PATIENCE_SECONDS and not told:
                told = True
                _log.warning("waiting for %s, which may be in use by another run (`ray status` says)", names)
            if waited > self._size.start:
                raise WorkerError(
                    f"{names} did not start within {self._size.start:g} s: its {what} may be in use by another run "
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
                self._starter.require_same(member, told)
                self._welcome(member, told)
            except (self._ray.exceptions.RayError, RiptError) as error:
                member.kill()
                if strict:
                    raise (
                        error
                        if isinstance(error, RiptError)
                        else WorkerError(f"{member.name} did not start: {said(error)}")
                    ) from error
                _log.warning("%s cannot be used: %s", member.name, error)
        return bool(ready)

    def _welcome(self, member: Member, told: Started) -> None:
        """A node that has started works with the others, with the policy that these have by now."""
        has = self._work.has
        missing: list[tuple[str, tuple[Any, ...]]] = []
        if has.policy is not member.has.policy:
            missing.append(("use", (has.policy,)))
        if has.weights is not None and (missing or has.weights is not member.has.weights):
            missing.append(("set_policy", (has.weights, has.version)))
        if self._work.present_run:
            missing.append(("begin", (self._work.present_run,)))
        for method, arguments in missing:
            found = self._ray.get(getattr(member.actor, method).remote(*arguments), timeout=self._size.start)
            if isinstance(found, Crashed):
                raise found.rebuild()
        member.has = has
        member.started(told)
        self.members.append(member)

    def take_up(self, *, wait: bool = False) -> None:
        """Nodes that the cluster has, and this pool not: start them, and take in those that have started.

        Args:
            wait: look whether there are any, however short ago that was done.
        """
        if not wait and time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        self._ask_for_missing()
        if self._coming:
            self._adopt_started(strict=False, patience=0.0)

    def _ask_for_missing(self) -> None:
        """Start what this pool has not and may have."""
        places = self._starter.missing([member.place for member in (*self.members, *self._coming)])
        self._coming += [self._starter.member(place, self._work.has) for place in places]

    # ------------------------------------------------------------------------------------------ those that go

    def did_something(self) -> None:
        """A node has returned a rollout."""
        self._barren = 0

    def _lose(self, member: Member, cause: str) -> None:
        """A node is gone: what it had in flight is run elsewhere."""
        flights = list(member.flights.values())
        _log.warning("%s: %s; the %d rollouts it had are run again", member.name, cause, len(flights))
        self.members.remove(member)
        member.kill()
        self._barren = 0 if flights else self._barren + 1
        if self._barren >= 3:
            raise WorkerError(f"{self._barren} nodes in a row were lost before they did anything; the last: {cause}")
        self._work.lost(member, flights, cause)

    def _find_again(self) -> None:
        """All nodes are lost: wait until one can be started again.

        Raises:
            WorkerError: none can.
        """
        deadline = time.monotonic() + self._size.start
        while not self.members:
            if not self._coming:
                self._ask_for_missing()
            if self._coming:
                self._adopt_started(strict=False)
            elif time.monotonic() < deadline:
                time.sleep(0.5)
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"all nodes of the cluster are lost, and none came back within {self._size.start:g} s"
                )

    def close(self) -> None:
        """End all nodes, and leave the cluster."""
        members, coming, self.members, self._coming = self.members, self._coming, [], []
        try:
            for member in coming:  # it may wait for a core, and then has nothing to close
                member.kill()
            if members:
                self._ray.wait([m.actor.close.remote() for m in members], num_returns=len(members), timeout=2.0)
            for member in members:
                member.kill()
        except Exception as error:  # the connection is gone, and with it what was started over it
            _log.warning("the cluster was left without a word: %s", error)
        finally:
            self._cluster.close()


def said(error: BaseException) -> str:
    """An error's first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
