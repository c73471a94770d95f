"""What a kind of policy brings so that its speed can be measured: random policies, and what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ript.core.types import Observation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One thing that a kind does in a better way than another, to be timed in turn.

    Attributes:
        name: what is done, in a few words.
        work: does it.
        otherwise: the other way, in words that follow "as fast as".
        other: does it that way.
    """

    name: str
    work: Callable[[], object]
    otherwise: str
    other: Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Specimens:
    """Random policies of a kind, for `ript bench policy`.

    Attributes:
        sizes: names, the smallest first; the last is the published one.
        usual: the size that is measured when none is named.
        make: (size, device) -> a policy with random weights, made there.
        look: (policy, batch) -> random observations of so many different tasks.
        decisions: (policy, look, rows) -> inputs and sample of so many decisions, as `log_prob` takes them.
        comparisons: (policy, look) -> what is timed besides.
        batches: observations of one `act`, each measured.
        rows: decisions of an update step.
        micro_batch: decisions of a pass of it, at most; 0: all.
        options: what torch offers on top is tried, too.
        require_room: (size, device, batch, micro-batch) -> nothing; raises `DeviceTooSmall` before anything is made.
        plan: (size, batch, micro-batch) -> for a person, what such a policy takes on devices of several sizes; none: it
            is small.
    """

    sizes: tuple[str, ...]
    usual: str
    make: Callable[[str, str], Any]
    look: Callable[[Any, int], Observation]
    decisions: Callable[[Any, Observation, int], tuple[Mapping[str, torch.Tensor], torch.Tensor]]
    comparisons: Callable[[Any, Observation], Sequence[Comparison]] = lambda policy, look: ()
    batches: tuple[int, ...] = (16,)
    rows: int = 512
    micro_batch: int = 0
    options: bool = True
    require_room: Callable[[str, str, int, int], None] = lambda size, device, batch, micro_batch: None
    plan: Callable[[str, int, int], Sequence[str]] = lambda size, batch, micro_batch: ()
