"""Sizes of an OpenVLA-OFT policy: those of the published 7 B model are the defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ript.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSizes:
    """A vision transformer.

    Attributes:
        width: of a token.
        blocks: in a published file; the last one is not used, since features are those of the block before.
        heads: of attention.
        hidden: width inside a block's MLP.
        prefix: tokens before the patches (DINOv2: a class token and four registers).
        layer_scale: whether a block's two updates are scaled by learned vectors.
    """

    width: int
    blocks: int
    heads: int
    hidden: int
    prefix: int = 0
    layer_scale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSizes:
    """A Llama.

    Attributes:
        width: of a token.
        hidden: width inside a layer's MLP.
        layers: how many.
        heads: of attention, of keys and values too.
        vocabulary: rows of the embedding table.
        norm_eps: of RMSNorm. OpenVLA's is 1e-6, Llama 2's own was 1e-5.
        theta: base of the rotary wavelengths.
        positions: most tokens of a sequence, pictures included.
    """

    width: int = 4096
    hidden: int = 11008
    layers: int = 32
    heads: int = 32
    vocabulary: int = 32064
    norm_eps: float = 1e-6
    theta: float = 10000.0
    positions: int = 2048


def _dino() -> TowerSizes:
    return TowerSizes(width=1024, blocks=24, heads=16, hidden=4096, prefix=5, layer_scale=True)


def _siglip() -> TowerSizes:
    return TowerSizes(width=1152, blocks=27, heads=16, hidden=4304)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVlaSizes:
    """The whole policy.

    Attributes:
        image: height and width of a picture as the towers see it.
        patch: height and width of a patch.
        pictures: how many the policy looks at.
        dino, siglip: the towers; both see every picture.
        llama: the language model.
        proprio: numbers of proprioception.
        action: dimensions of an action.
        chunk: actions of a decision.
    """

    image: int = 224
    patch: int = 14
    pictures: int = 2
    dino: TowerSizes = field(default_factory=_dino)
    siglip: TowerSizes = field(default_factory=_siglip)
    llama: LlamaSizes = field(default_factory=LlamaSizes)
    proprio: int = 8
    action: int = 7
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.image % self.patch:
            raise ConfigError(f"pictures of {self.image} pixels do not divide into patches of {self.patch}")
        for name in ("dino", "siglip", "llama"):
            part = getattr(self, name)
            if part.width % part.heads:
                raise ConfigError(f"{name}: a width of {part.width} does not divide into {part.heads} heads")
        if self.llama.width // self.llama.heads % 2:
            raise ConfigError(f"llama: heads of {self.llama.width // self.llama.heads} cannot be rotated: it is odd")
        for name in ("dino", "siglip"):
            if getattr(self, name).blocks < 2:
                raise ConfigError(f"{name}: features come from the block before the last, so it takes two at least")

    @property
    def patches(self) -> int:
        """Patches of one picture."""
        return (self.image // self.patch) ** 2

    @property
    def seen(self) -> int:
        """Tokens between the first one and the instruction: patches of all pictures, and proprioception."""
        return self.pictures * self.patches + 1

    @property
    def slots(self) -> int:
        """Placeholder tokens, one a number of the chunk."""
        return self.chunk * self.action

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            TypeError, ConfigError: not such sizes.
        """
        parts: dict[str, type] = {"dino": TowerSizes, "siglip": TowerSizes, "llama": LlamaSizes}
        known = {f.name for f in fields(cls)}
        if unknown := set(data) - known:
            raise ConfigError(f"sizes of a policy have no {sorted(unknown)}")
        return cls(**{k: parts[k](**v) if k in parts else v for k, v in data.items()})
