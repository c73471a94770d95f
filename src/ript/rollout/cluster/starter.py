"""Nodes that a pool can have, and how one is started."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ript.core import interpreter
from ript.core.errors import ConfigError
from ript.rollout.cluster.connection import LOCAL, Connection, Place
from ript.rollout.cluster.member import Has, Member, workers_on
from ript.rollout.cluster.node import Node, Setup, Started
from ript.rollout.cluster.versions import ALWAYS, differing, installed

PASSED_ON = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables of this process that nodes have too."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of a cluster is used; 0 stands for all of it.

    Attributes:
        nodes: at most; on a cluster that is started here, exactly.
        workers_per_node: worker processes of each; 0: one a core.
        silence: seconds without a sign of life after which a node counts as lost.
        start: seconds that nodes may take to start, or to be found again when all are lost.
        gpus_per_node: 1: each node has a GPU to itself; less: a share of one; 0: none.
        device: where nodes learn, and act with central inference: "cpu" or "cuda".
        backend: of sums over ranks; see `learn.ranks.over`.
    """

    nodes: int = 0
    workers_per_node: int = 0
    silence: float = 60.0
    start: float = 180.0
    gpus_per_node: float = 0
    device: str = "cpu"
    backend: str = "gloo"

    @property
    def nodes_per_gpu(self) -> int:
        """How many nodes share a GPU."""
        return int(1 / self.gpus_per_node + 1e-6) if self.gpus_per_node else 0


class Starter:
    """Starts nodes.

    Args:
        cluster: where.
        size: how much of it.
        node: what runs on each.
        factory: packed simulator factory.
        settings: arguments of `rollout.pool.make_pool`, but for its workers.
        packages: whose versions must be those of this process.
        check: see `Setup`.
    """

    def __init__(
        self,
        cluster: Connection,
        *,
        size: Size,
        node: type[Node],
        factory: bytes,
        settings: Mapping[str, Any],
        packages: Sequence[str],
        check: str,
    ):
        self._cluster, self.size, self._node, self._check = cluster, size, node, check
        self._factory, self._settings = factory, settings
        self._packages = (*ALWAYS, *packages)
        self._versions = installed(self._packages)
        self._made = 0
        self._shares: Counter[str] = Counter()

    @property
    def shared(self) -> bool:
        """All nodes are on one machine, on a cluster that was started for them."""
        return self._cluster.address == LOCAL

    def places(self) -> list[Place]:
        """Where nodes shall be, one entry each.

        Raises:
            ConfigError: the cluster has fewer nodes, cores or GPUs than wanted.
        """
        found, wanted = self._cluster.places(), self.size.nodes
        if self.size.gpus_per_node:
            self._require_gpus(found)
        seats = self._seats()
        if len(seats) < wanted:
            has = ", ".join(self._told(place) for place in found) or "none"
            what = f"{len(seats)} with cores to give"
            if self.size.gpus_per_node:
                what = f"GPUs for {len(seats)} of them (cluster.gpus_per_node = {self.size.gpus_per_node:g})"
            raise ConfigError(
                f"cluster.nodes = {wanted}, but the cluster has {what}: {has}; add some, or ask for fewer"
            )
        seats = seats[: wanted or len(seats)]
        self._shares = Counter(place.id for place in seats)
        for place in seats:
            share = self._share(place)
            workers = workers_on(place, self.size.workers_per_node, share)
            if workers * share > place.cores:
                raise ConfigError(
                    f"cluster.workers_per_node = {workers}, but {place.name} has {place.cores} cores"
                    f"{f' for {share} nodes' if share > 1 else ''}: ask for fewer workers or nodes"
                )
        return seats

    def missing(self, have: Sequence[Place]) -> list[Place]:
        """Where nodes may be started beside those that there are, in `have`: `size.nodes` in all at most."""
        taken, found = Counter(place.id for place in have), []
        for place in self._seats():
            if taken[place.id]:
                taken[place.id] -= 1
            else:
                found.append(place)
        return found[: max(0, self.size.nodes - len(have))] if self.size.nodes else found

    def _seats(self) -> list[Place]:
        """Where nodes may be, one entry each, machines in turn."""
        found = self._cluster.places("GPU" if self.size.gpus_per_node else "CPU")
        found = found[:1] if self.shared else found
        room = [self._room(place) for place in found]
        return [place for turn in range(max(room, default=0)) for place, n in zip(found, room, strict=True) if turn < n]

    def _room(self, place: Place) -> int:
        """How many nodes a machine may have: one; or one a GPU, or as many as share its GPUs."""
        if self.size.gpus_per_node:
            return place.gpus * self.size.nodes_per_gpu
        return (self.size.nodes or 1) if self.shared else 1

    def _share(self, place: Place) -> int:
        """How many nodes share its cores: as many as there were at the start, for one that came later as may be."""
        return self._shares[place.id] or max(1, self._room(place))

    def _told(self, place: Place) -> str:
        return f"{place.name}, {place.gpus} GPUs" if self.size.gpus_per_node else place.name

    def _require_gpus(self, found: Sequence[Place]) -> None:
        """Raise `ConfigError` unless these machines have GPUs: all, or some where so many nodes are asked for."""
        asked, without = f"cluster.gpus_per_node = {self.size.gpus_per_node:g}", [p.name for p in found if not p.gpus]
        if found and len(without) == len(found):
            raise ConfigError(
                f"{asked}, but no machine of the cluster has a GPU to give ({', '.join(without)}): start Ray on "
                "machines with GPUs (`ray start --num-gpus=N` where it does not find them), or leave it out"
            )
        if without and not self.size.nodes:
            raise ConfigError(
                f"{asked}, but {', '.join(without)} has no GPU to give, so that nothing could be done there: start Ray "
                f"there with --num-cpus=0, or say how many nodes are wanted (--cluster.nodes={len(self._seats())})"
            )

    def member(self, place: Place, has: Has) -> Member:
        """One that is being started; no two have one name."""
        self._made += 1
        workers = workers_on(place, self.size.workers_per_node, self._share(place))
        setup = Setup(
            name=f"node {self._made}" if self.shared else f"node {self._made} at {place.name}",
            factory=self._factory,
            pool={**self._settings, "workers": workers},
            packages=self._packages,
            device=self.size.device,
            on_gpu=self.size.gpus_per_node > 0,
            backend=self.size.backend,
            check=self._check,
            path=interpreter.module_path(),
            environ={name: os.environ[name] for name in PASSED_ON if name in os.environ},
        )
        slots, gpus = int(self._settings["slots"]), self.size.gpus_per_node
        return Member(self._cluster, place, self._node, setup, has, workers=workers, slots=slots, gpus=gpus)

    def require_same(self, member: Member, told: Started) -> None:
        """Raise `ConfigError` for a node that has other versions than this process."""
        if differ := differing(self._versions, told.versions):
            raise ConfigError(f"{member.name} has other versions than this process: {differ}; install the same")

    def require_room(self, members: Sequence[Member], size: int) -> None:
        """Raise `ConfigError` for a policy of so many bytes that a machine has no room for: each worker has a copy, or
        with central inference each node, and what it was sent as; likewise for a policy that acts on nodes' GPUs."""
        central = self._settings.get("inference") == "central"
        for place in {member.place for member in members}:
            here = [member for member in members if member.place == place]
            copies = sum(1 if central else max(1, member.workers) for member in here) + 1
            free = min(member.memory for member in here)
            if copies * size > free:
                fewer = "" if central else "fewer --cluster.workers_per_node, --rollout.inference=central, or "
                raise ConfigError(
                    f"the policy takes {size / 2**30:.1f} GiB, and {here[0].name} has {free / 2**30:.1f} GiB for "
                    f"{copies} copies of it ({'one a node' if central else 'one a worker'}, and one that is sent): "
                    f"give {fewer}machines with more memory"
                )
        copies = self.size.nodes_per_gpu if central and self.size.device == "cuda" else 0
        for member in members if copies else ():
            if member.gpu_memory is not None and copies * size > member.gpu_memory:
                raise ConfigError(
                    f"the policy takes {size / 2**30:.1f} GiB, and the GPU of {member.name} has "
                    f"{member.gpu_memory / 2**30:.1f} GiB free for {copies} of it: give GPUs with more memory, or "
                    "fewer nodes to each (--cluster.gpus_per_node)"
                )
