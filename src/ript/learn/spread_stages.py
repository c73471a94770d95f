"""Supervised stages on the nodes of a cluster, each node a rank that works on its part of every batch.

As with updates, nothing on a node outlives the steps between two checkpoints that the driver could not send again: a
stretch that loses a rank is done again from its beginning, by those that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from ript.core.supervised import Stage
from ript.learn.ranks import Grouped
from ript.learn.spread import Machines, Seat, join, on_cpu, require_nodes, together
from ript.learn.stages import Here, StageSettings, Stretch, changing, own_randomness, require_parts

Made = tuple[torch.nn.Module, Sequence[Stage]]
"""A policy, and the stages that train it."""


class Lesson(Protocol):
    """What every rank learns from; sent to each node once."""

    @property
    def name(self) -> str:
        """Tells it from others."""
        ...

    def make(self, device: str) -> Made:
        """The policy as it is before all stages, and these."""
        ...


class SpreadStages:
    """A `learn.stages.Trainer` whose steps are done by ranks.

    Args:
        machines: that ranks can be on.
        ranks: how many; 0: one on every node.
        lesson: from which nodes make what is trained.
        policy: of this process; has the weights of each stretch when it is done.
        stages: of it.
        settings: of all stages.

    Raises:
        ConfigError: more ranks than nodes, or a policy that needs whole batches.
    """

    def __init__(
        self,
        machines: Machines,
        ranks: int,
        lesson: Lesson,
        policy: torch.nn.Module,
        stages: Sequence[Stage],
        settings: StageSettings,
    ):
        require_nodes(machines, ranks)
        require_parts(policy, f"learn.ranks = {ranks or 'auto'}")
        self.machines, self.ranks, self.policy, self.settings = machines, ranks, policy, settings
        self.kept = changing(policy, stages)
        self.lesson = machines.share(lesson)

    def begin(self, number: int, state: Mapping[str, Any] | None) -> None:
        self.number = number
        if state is not None:
            self.policy.load_state_dict(state["policy"], strict=False)
        now = {name: tensor for name, tensor in self.policy.state_dict().items() if name in self.kept}
        self.state = state or {"policy": on_cpu(now), "optimiser": None, "rng": None}

    def go(self, start: int, end: int, advance: Callable[[], None]) -> Stretch:
        told = self.machines.share((self.settings, self.number, self.state, start, end))
        found: Stretch | None = None
        while found is None:
            self.machines.look()
            nodes = sorted(self.machines.nodes)[: self.ranks or None]
            found = together(self.machines, nodes, train, [(self.lesson, told)] * len(nodes))
        self.state = found.state
        self.policy.load_state_dict(found.state["policy"], strict=False)
        for _ in range(start, end):
            advance()
        return found


# ---------------------------------------------------------------------------------------------- on a node


def train(
    desk: dict[str, Any],
    seat: Seat,
    lesson: Lesson,
    told: tuple[StageSettings, int, Mapping[str, Any], int, int],
) -> Stretch | None:
    """Steps of a stage as one rank; what they came to on rank 0, None on the others."""
    settings, number, state, start, end = told
    ranks = join(desk, seat)
    if desk.get("lesson") != lesson.name:
        desk["lesson made"], desk["lesson"] = lesson.make(desk["device"]), lesson.name
    policy, stages = desk["lesson made"]
    torch.set_num_threads(settings.threads)
    policy.load_state_dict(state["policy"], strict=False)
    with own_randomness(policy):
        here = Here(policy, stages, settings, ranks)
        here.begin(number, None if state["optimiser"] is None else state)
        done = here.go(start, end, lambda: None)
    if isinstance(ranks, Grouped):
        ranks.require_equal(policy.state_dict().values())
    if seat.rank:
        return None
    return Stretch(first=done.first, metrics=done.metrics, rate=done.rate, state=on_cpu(done.state))
