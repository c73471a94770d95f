"""Nodes that a pool can have, and how one is started."""

from __future__ import annotations

import os
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
        gpus_per_node: that a node has to itself.
        device: where nodes learn, "cpu" or "cuda".
    """

    nodes: int = 0
    workers_per_node: int = 0
    silence: float = 60.0
    start: float = 180.0
    gpus_per_node: int = 0
    device: str = "cpu"


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

    @property
    def shared(self) -> bool:
        """All nodes are on one machine, on a cluster that was started for them."""
        return self._cluster.address == LOCAL

    def places(self) -> list[Place]:
        """Where nodes shall be, one entry each.

        Raises:
            ConfigError: the cluster has fewer nodes or cores than wanted.
        """
        found, wanted = self._cluster.places(), self.size.nodes
        if self.shared and found:
            found = found[:1] * (wanted or 1)
        if len(found) < wanted:
            raise ConfigError(
                f"cluster.nodes = {wanted}, but the cluster has {len(found)} with cores to give: "
                f"{', '.join(place.name for place in found) or 'none'}; add some, or ask for fewer"
            )
        found = found[: wanted or len(found)]
        for place in found:
            share = found.count(place)
            workers = workers_on(place, self.size.workers_per_node, share)
            if workers * share > place.cores:
                raise ConfigError(
                    f"cluster.workers_per_node = {workers}, but {place.name} has {place.cores} cores"
                    f"{f' for {share} nodes' if share > 1 else ''}: ask for fewer workers"
                )
        return found

    def member(self, place: Place, has: Has) -> Member:
        """One that is being started; no two have one name."""
        self._made += 1
        workers = workers_on(place, self.size.workers_per_node, max(1, self.size.nodes) if self.shared else 1)
        setup = Setup(
            name=f"node {self._made}" if self.shared else f"node {self._made} at {place.name}",
            factory=self._factory,
            pool={**self._settings, "workers": workers},
            packages=self._packages,
            device=self.size.device,
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
        with central inference each node, and what it was sent as."""
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
