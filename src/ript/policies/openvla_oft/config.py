"""What an OpenVLA-OFT policy is, weights apart; saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ript.core.errors import ConfigError, UnknownNameError
from ript.policies.openvla_oft.density import CLIP, Density, Sampling, Terms
from ript.policies.openvla_oft.numbers import Statistics
from ript.policies.openvla_oft.pictures import Normalisation
from ript.policies.openvla_oft.prompt import SPACE
from ript.policies.openvla_oft.sizes import OpenVlaSizes

Pictures = Literal["published", "plain"]
"""How frames are prepared. "published": turned, through JPEG, resized, cropped, as OpenVLA-OFT trained. "plain":
as they are, which must be the size that the towers see."""
Forward = Literal["official", "two_pass"]
"""Which forward pass; see `model`. "two_pass" trains at a fraction of the cost and is another function than published
checkpoints were trained for: on the reference network normalised means move by up to 0.09."""
Trains = Literal["adapter+head", "adapter", "head"]
"""What post-training updates: the adapter's layers in the language model, the L1 head, or both. The scale head is left
as it is. Where the head alone is trained, rollouts keep hidden states, and updates begin there."""
Precision = Literal["float32", "bfloat16"]
"""In what the network before the heads computes and is kept; where it refers to a base, on the CPU alone."""
LONGEST_PROMPT = 256
"""Tokens; LIBERO's have 22 to 40. Every decision that is recorded holds as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model, whose weights a folder does not hold itself.

    Attributes:
        name: a folder, or "hf://owner/name".
        revision: of a name on the hub: a commit.
        index: hash of the list of its tensors, files and sizes: another base is noticed before it is loaded.
        weights: hash of its weights; None in folders of earlier versions.
        tokenizer: hash of its tokenizer.json; None where it had none, and in folders of earlier versions.
    """

    name: str
    revision: str | None
    index: str
    weights: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OftConfig:
    """Everything but weights.

    Attributes:
        sizes: of the network.
        statistics: by which proprioception and actions are normalised.
        cameras: names of the pictures, in the order in which the policy was trained on them.
        execute: actions of a chunk that are executed before the next look.
        normalisation: of pixels.
        pictures: see `Pictures`.
        upside_down: frames stand upside down, as robosuite's do.
        forward: see `Forward`.
        temperature, sampling, terms, scale_clip: of the density; see `density`.
        rl_trains: see `Trains`.
        head_rate: learning rate of the L1 head in post-training; 0: that of the adapter.
        precision: see `Precision`.
        recompute: in training, layers of the language model keep no activations but compute them again: less memory, a
            third more work, same numbers.
        rank: of the adapter; 0 for none.
        scaling: factor on its updates.
        last: token that a prompt ends with; None for none.
        base: whose weights these are, when the folder does not hold them itself.
    """

    sizes: OpenVlaSizes
    statistics: Statistics
    cameras: tuple[str, ...]
    execute: int = 8
    normalisation: Normalisation = field(default_factory=Normalisation)
    pictures: Pictures = "published"
    upside_down: bool = True
    forward: Forward = "official"
    temperature: float = 1.0
    sampling: Sampling = "exact"
    terms: Terms = "action"
    scale_clip: tuple[float, float] = CLIP
    rl_trains: Trains = "adapter+head"
    head_rate: float = 0.0
    precision: Precision = "float32"
    recompute: bool = False
    rank: int = 0
    scaling: float = 0.5
    last: int | None = SPACE
    base: Base | None = None

    def __post_init__(self) -> None:
        words = {"pictures": Pictures, "forward": Forward, "sampling": Sampling, "terms": Terms, "rl_trains": Trains}
        words |= {"precision": Precision}
        for name, known in words.items():
            if (value := getattr(self, name)) not in get_args(known):
                raise UnknownNameError(name, value, get_args(known))
        if not 1 <= self.execute <= self.sizes.chunk:
            raise ConfigError(f"execute = {self.execute}: expected 1 to {self.sizes.chunk}, the actions of a chunk")
        if len(self.cameras) != self.sizes.pictures or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"cameras = {self.cameras}: expected {self.sizes.pictures} different names")
        if not self.scale_clip[0] < self.scale_clip[1]:
            raise ConfigError(f"scale_clip = {self.scale_clip}: expected a least and a largest log-scale")
        if not 0 <= self.head_rate < float("inf"):
            raise ConfigError(f"head_rate = {self.head_rate}: expected 0 or a learning rate")
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"temperature = {self.temperature}: expected a finite number above 0")

    @property
    def density(self) -> Density:
        return Density(temperature=self.temperature, sampling=self.sampling, terms=self.terms, clip=self.scale_clip)

    @property
    def room(self) -> int:
        """Most tokens of a prompt."""
        return min(LONGEST_PROMPT, self.sizes.llama.positions - self.sizes.seen - self.sizes.slots - 1)

    def to_json(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"sizes": self.sizes.to_json(), "statistics": self.statistics.to_json()}
        parts |= {"normalisation": asdict(self.normalisation), "base": asdict(self.base) if self.base else None}
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in parts}
        return parts | plain | {"cameras": list(self.cameras), "scale_clip": list(self.scale_clip)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OftConfig:
        """The inverse of `to_json`.

        Raises:
            ConfigError, PolicyError, KeyError, TypeError: it describes no such policy.
        """
        given = dict(data)
        statistics, base = given.pop("statistics"), given.pop("base")
        rows = {name: tuple(row) for name, row in given.pop("normalisation").items()}
        return cls(
            **given
            | {
                "sizes": OpenVlaSizes.from_json(given["sizes"]),
                "statistics": Statistics.from_json(statistics, statistics["key"], statistics["gripper"]),
                "normalisation": Normalisation(**rows),
                "cameras": tuple(given["cameras"]),
                "scale_clip": tuple(given["scale_clip"]),
                "base": Base(**base) if base else None,
            }
        )
