"""Memory of a device, before anything is put there: what is needed for what, what there is, and what would fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ript.core.errors import DeviceTooSmall

GIB = 2**30

Needs = Mapping[str, int]
"""What it is for -> bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a policy shall do on a device.

    Attributes:
        device_bytes: that are free there.
        act_batch: decisions in one batch of acting; 0: it acts elsewhere.
        micro_batch: decisions in one pass of training; 0: it is not trained.
        supervised: the training is supervised.
        copies: of the policy's weights, one more where training stays near a start.
    """

    device_bytes: int
    act_batch: int = 0
    micro_batch: int = 0
    supervised: bool = False
    copies: int = 1


def free_on(device: str) -> int | None:
    """Bytes that are free on a GPU; None for the CPU, whose memory other programs share and the disk extends."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.device(device).type == "cuda" else None


def total(needs: Needs) -> int:
    return sum(needs.values())


def listed(needs: Needs) -> str:
    """For a person: all that takes a hundredth of a GiB or more."""
    return ", ".join(f"{what} {size / GIB:.2f}" for what, size in needs.items() if size >= GIB / 100)


def require_room(what: str, needs: Needs, device_bytes: int, ways: Iterable[tuple[str, Needs]]) -> None:
    """Raise unless it fits.

    Args:
        what: shall be put there, after "too small for".
        needs: bytes by purpose.
        device_bytes: that are free.
        ways: other settings, in words, and what is needed with them, in the order in which they are to be preferred.

    Raises:
        DeviceTooSmall: says what is needed for what, and which of the ways fit.
    """
    if total(needs) <= device_bytes:
        return
    tried = [("as asked", needs), *ways]
    fitting = [f"{words}: {total(other) / GIB:.1f} GiB" for words, other in tried if total(other) <= device_bytes]
    least_words, least = min(tried, key=lambda way: total(way[1]))
    remedy = (
        f"what fits: {fitting[0]}" if fitting else f"at the least it takes {total(least) / GIB:.1f} GiB ({least_words})"
    )
    raise DeviceTooSmall(
        f"a device with {device_bytes / GIB:.1f} GiB free is too small for {what}, which takes "
        f"{total(needs) / GIB:.1f} GiB ({listed(needs)}); {remedy}"
    )
