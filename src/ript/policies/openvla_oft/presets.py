"""Named sizes of policies that two cores can train."""

from __future__ import annotations

from dataclasses import dataclass

from ript.policies.openvla_oft.sizes import LlamaSizes, TowerSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named size.

    Attributes:
        side: patches along one side of a picture.
        dino, siglip, llama: see `sizes`.
        chunk: actions of a decision.
    """

    side: int
    dino: TowerSizes
    siglip: TowerSizes
    llama: LlamaSizes
    chunk: int


PRESETS = {
    "tiny": Preset(
        side=4,
        dino=TowerSizes(width=16, blocks=2, heads=2, hidden=32, prefix=5, layer_scale=True),
        siglip=TowerSizes(width=16, blocks=2, heads=2, hidden=32),
        llama=LlamaSizes(width=32, hidden=64, layers=2, heads=2, vocabulary=384),
        chunk=4,
    ),
    "small": Preset(
        side=4,
        dino=TowerSizes(width=64, blocks=3, heads=2, hidden=256, prefix=5, layer_scale=True),
        siglip=TowerSizes(width=64, blocks=3, heads=2, hidden=256),
        llama=LlamaSizes(width=128, hidden=352, layers=4, heads=4, vocabulary=512),
        chunk=8,
    ),
}
