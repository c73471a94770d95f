"""An update by several ranks: what the driver sends, what each rank does, and what comes back.

Nothing is kept between updates but copies of what the driver has: a rank is told weights, optimiser and generator with
each update, so any number of ranks may do the next one, and an update that lost a rank begins again with the others.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ript.core import policy_calls
from ript.core.children import pack, unpack
from ript.core.errors import ConfigError
from ript.core.interfaces import LikelihoodPolicy
from ript.core.memory import enough_memory
from ript.core.types import Rollout
from ript.learn.batch import UpdateBatch
from ript.learn.ranks import ALONE, ElsewhereError, Grouped, Ranks, over
from ript.learn.rate import make_optimiser
from ript.learn.update import UpdateResult, update

SECONDS = 600.0
"""Seconds that ranks wait for each other at most; the driver gives up one that hangs long before."""
CONNECTED_SECONDS = 30.0
"""Within which a rank is connected to the first."""


class Machines(Protocol):
    """Where ranks can be: nodes that have a policy, and hold records."""

    @property
    def nodes(self) -> Sequence[str]:
        """Names of those that work."""
        ...

    def home(self, rollout: Rollout) -> str | None:
        """The node that holds its record; None: it is here, or was lost."""
        ...

    def share(self, thing: Any) -> Any:
        """Something that is sent to each node once, however many jobs refer to it; `seen` there."""
        ...

    def look(self) -> None:
        """See which nodes there are: some may be lost, others have come."""
        ...

    def mend(self) -> None:
        """Make records again that were lost with their nodes."""
        ...

    def work(self, function: Callable[..., Any], jobs: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Let each named node call `function(desk, *arguments)`, where `desk` is a dictionary of its own that outlives
        the call and has "policy", packed, "device", "backend", see `ranks.over`, "host", the address that other nodes
        reach it at, and "abandoned", an event that is set when one of the nodes was lost meanwhile.

        Returns:
            node -> answer; without those that were lost meanwhile.

        Raises:
            RiptError: what a node raised; of several the first that is not because of another.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What all ranks have in common when an update begins.

    Attributes:
        weights: see `LikelihoodPolicy.weights`.
        optimiser: its state.
        made_with: arguments of `make_optimiser`.
        generator: its state.
        settings: arguments of `update`.
    """

    weights: Mapping[str, torch.Tensor]
    optimiser: Mapping[str, Any]
    made_with: Mapping[str, float]
    generator: torch.Tensor
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What rank 0 has when an update ends."""

    weights: Mapping[str, torch.Tensor]
    optimiser: Mapping[str, Any]
    generator: torch.Tensor
    result: UpdateResult


class Spread:
    """Updates on nodes; called as `update` is.

    Args:
        machines: that ranks can be on.
        ranks: how many; 0: one on every node.
        made_with: arguments of `make_optimiser`.

    Raises:
        ConfigError: more ranks than nodes.
    """

    def __init__(self, machines: Machines, ranks: int, made_with: Mapping[str, float]):
        require_nodes(machines, ranks)
        self.machines, self.ranks, self.made_with = machines, ranks, made_with
        self._start: tuple[object, Any] = (None, None)  # a policy to stay near, and what is sent of it

    def __call__(
        self,
        policy: LikelihoodPolicy,
        optimiser: torch.optim.Optimizer,
        batch: UpdateBatch,
        *,
        generator: torch.Generator,
        start: LikelihoodPolicy | None = None,
        **settings: Any,
    ) -> UpdateResult:
        """See `update`. What a rank was lost in begins again with those that are left."""
        learner = Learner(
            weights=on_cpu(policy_calls.weights(policy)),
            optimiser=on_cpu(optimiser.state_dict()),
            made_with=self.made_with,
            generator=generator.get_state(),
            settings=settings,
        )
        if start is not self._start[0]:
            self._start = start, self.machines.share(pack(start))
        learned = None
        while learned is None:
            self.machines.mend()
            learned = self._try(learner, batch)
        policy_calls.load_weights(policy, learned.weights)
        optimiser.load_state_dict(dict(learned.optimiser))
        generator.set_state(learned.generator)
        return learned.result

    def _try(self, learner: Learner, batch: UpdateBatch) -> Learned | None:
        """One update; None when a rank was lost in it."""
        machines = self.machines
        nodes = ranked(batch, machines, self.ranks)
        owner = owners(batch, [machines.home(r) for r in batch.rollouts], nodes)
        told, rows = machines.share(learner), machines.share(batch)
        return together(
            machines, nodes, learn, [(told, self._start[1], rows, owner == rank) for rank in range(len(nodes))]
        )


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Which rank a node is.

    Attributes:
        rank, world: its number, and how many there are.
        meeting: see `meeting_place`; None for the only one.
    """

    rank: int
    world: int
    meeting: tuple[str, int] | None


def together(
    machines: Machines, nodes: Sequence[str], function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> Any | None:
    """Let nodes call `function(desk, seat, *arguments)` as ranks of each other.

    Args:
        machines: that have the nodes.
        nodes: rank 0 first.
        function: known on every node.
        arguments: of each rank.

    Returns:
        what rank 0 answers; None when one of them was lost, and nothing has come of it.
    """
    found = machines.work(meeting_place, {nodes[0]: ()}) if len(nodes) > 1 else {nodes[0]: None}
    if nodes[0] not in found:
        return None
    seats = [Seat(rank=rank, world=len(nodes), meeting=found[nodes[0]]) for rank in range(len(nodes))]
    answers = machines.work(
        function, {node: (seat, *own) for node, seat, own in zip(nodes, seats, arguments, strict=True)}
    )
    return answers[nodes[0]] if len(answers) == len(nodes) else None


def require_nodes(machines: Machines, ranks: int) -> None:
    """Raise `ConfigError` when there are more ranks than nodes."""
    if ranks > len(machines.nodes):
        raise ConfigError(
            f"learn.ranks = {ranks}, but there are {len(machines.nodes)} nodes and each can be one rank: add nodes, or "
            "ask for fewer ranks (auto: one on each)"
        )


def ranked(batch: UpdateBatch, machines: Machines, wanted: int) -> list[str]:
    """The nodes that are ranks, rank 0 first: those that hold the most records."""
    held = [machines.home(rollout) for rollout in batch.rollouts]
    order = sorted(machines.nodes, key=lambda node: (-held.count(node), node))
    return order[: wanted or len(order)]


def owners(batch: UpdateBatch, homes: Sequence[str | None], nodes: Sequence[str]) -> torch.Tensor:
    """Which rank works on each rollout, int64 `[N]`: the one that holds it, else the one with the fewest rows."""
    rows = torch.bincount(batch.trajectory, minlength=len(homes)).tolist()
    number = {node: rank for rank, node in enumerate(nodes)}
    owner = [number.get(home or "", -1) for home in homes]
    load = [sum(n for n, rank in zip(rows, owner, strict=True) if rank == own) for own in range(len(nodes))]
    for trajectory, rank in enumerate(owner):
        if rank < 0:
            least = load.index(min(load))
            owner[trajectory] = least
            load[least] += rows[trajectory]
    return torch.tensor(owner)


# ---------------------------------------------------------------------------------------------- on a node


def meeting_place(desk: dict[str, Any]) -> tuple[str, int]:
    """Where ranks find each other: host and port, held open by rank 0."""
    import torch.distributed as dist

    desk["store"] = store = dist.TCPStore(desk["host"], 0, is_master=True, wait_for_workers=False)
    return desk["host"], store.port


def learn(
    desk: dict[str, Any],
    seat: Seat,
    learner: Learner,
    start: bytes | None,
    batch: UpdateBatch,
    mine: torch.Tensor,
) -> Learned | None:
    """An update as one rank, near the packed policy `start`; what it came to on rank 0, None on the others."""
    ranks = join(desk, seat)
    policy, optimiser = _own(desk, learner)
    policy_calls.load_weights(policy, learner.weights)
    optimiser.load_state_dict(dict(learner.optimiser))
    generator = torch.Generator()
    generator.set_state(learner.generator)
    torch.set_num_threads(int(learner.settings.get("threads", 1)))
    near = None if start is None else _copy(desk, "start", start)
    batch = replace(batch, mine=mine)
    with enough_memory("in the update", "learn.micro_batch"):
        result = update(policy, optimiser, batch, generator=generator, start=near, ranks=ranks, **learner.settings)
    if isinstance(ranks, Grouped):
        ranks.require_equal(policy_calls.weights(policy).values())
    if seat.rank:
        return None
    return Learned(
        weights=on_cpu(policy_calls.weights(policy)),
        optimiser=on_cpu(optimiser.state_dict()),
        generator=generator.get_state(),
        result=result,
    )


def join(desk: dict[str, Any], seat: Seat) -> Ranks:
    """Take the seat; returns when all have.

    Raises:
        ElsewhereError: another was lost meanwhile.
    """
    if seat.meeting is None:
        return ALONE
    import torch.distributed as dist

    wait = datetime.timedelta(seconds=CONNECTED_SECONDS)
    store = desk.pop("store", None) if seat.rank == 0 else dist.TCPStore(*seat.meeting, is_master=False, timeout=wait)
    store.set(f"rank {seat.rank}", "here")
    while not store.check(
        [f"rank {number}" for number in range(seat.world)]
    ):  # the group itself would not be interrupted
        if desk["abandoned"].wait(0.01):
            raise ElsewhereError("a rank was lost before all had met")
    return over(
        desk["backend"],
        seat.rank,
        seat.world,
        store,
        host=desk["host"],
        device=desk["device"],
        seconds=SECONDS,
        abandoned=desk["abandoned"],
    )


def _own(desk: dict[str, Any], learner: Learner) -> tuple[Any, torch.optim.Optimizer]:
    """This node's copy of the policy, to be trained, and its optimiser."""
    policy = _copy(desk, "learner", desk["policy"])
    return policy, make_optimiser(policy, **learner.made_with)


def _copy(desk: dict[str, Any], name: str, packed: bytes) -> Any:
    """A policy of this node's own from its packed form, unpacked once."""
    if desk.get(f"{name} packed") != packed:
        desk[f"{name} packed"], desk[name] = packed, unpack(packed).to(desk["device"])
    return desk[name]


def on_cpu(thing: Any) -> Any:
    """Copies of all tensors, on the CPU."""
    if isinstance(thing, torch.Tensor):
        return thing.detach().to("cpu", copy=True)
    if isinstance(thing, Mapping):
        return {key: on_cpu(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return type(thing)(on_cpu(value) for value in thing)
    return thing
