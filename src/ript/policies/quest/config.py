"""Configuration of a QueST policy: one set of modules, several sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ript.core.errors import ConfigError, UnknownNameError
from ript.core.options import PolicyOptions

Sampling = Literal["exact", "published"]
Vision = Literal["resnet18", "cnn"]
Trained = Literal["prior", "prior+adapter", "prior+encoders"]


@dataclass(frozen=True, kw_only=True)
class QuestConfig:
    """Sizes and numerics of a QueST policy (Mete et al. 2024). Defaults are the `paper` size on LIBERO.

    Attributes:
        action_dim: A.
        chunk: H, actions per chunk; `chunk / downsample` skill tokens describe it.
        execute: actions executed before the next look, 1..chunk.
        downsample: temporal stride of the autoencoder's encoder, a power of two.
        fsq_levels: levels of each quantised dimension; the codebook has their product.
        autoencoder_width, encoder_layers, decoder_layers, encoder_heads, decoder_heads: skill autoencoder.
        width, layers, heads: skill GPT.
        dropout: in every layer of the skill GPT, in training only.
        autoencoder_dropout: the same in the autoencoder's transformer layers.
        cameras: camera name -> (h, w), in the order in which features are concatenated.
        vision: "resnet18" (two stages, as published) or "cnn" (three convolutions).
        image_dim: features per camera; half of it key points.
        proprio: name -> dimensions, consecutive slices of the flat proprioception vector.
        proprio_dim: features per proprioception entry.
        language_dim: size of the instruction embedding.
        privileged_dim: outputs of the auxiliary head on object positions used in SFT only; 0 for none.
        temperature: softmax temperature of both the sampled and the optimised density.
        top_k: sample among the k most likely tokens, in both densities; 0 for all.
        sampling: "exact" (the density sampled is the density optimised) or "published" (samples from the top k but
            optimises the full softmax at temperature 1: a known mismatch, for comparison only).
        rl_trains: what post-training updates: "prior"; "prior+adapter" (also a linear layer from whitened features, see
            `encoders.Adapter`); or "prior+encoders".
        adapter: whitened directions that the adapter sees; 0: there is none. Set when post-training starts.
    """

    action_dim: int = 7
    chunk: int = 32
    execute: int = 8
    downsample: int = 4
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    autoencoder_width: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 4
    encoder_heads: int = 4
    decoder_heads: int = 4
    width: int = 384
    layers: int = 6
    heads: int = 6
    dropout: float = 0.1
    autoencoder_dropout: float = 0.1
    cameras: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: {"agentview_rgb": (128, 128), "eye_in_hand_rgb": (128, 128)}
    )
    vision: Vision = "resnet18"
    image_dim: int = 256
    proprio: Mapping[str, int] = field(default_factory=lambda: {"joint_states": 7, "ee_pos": 3, "gripper_states": 2})
    proprio_dim: int = 128
    language_dim: int = 512
    privileged_dim: int = 0
    temperature: float = 1.0
    top_k: int = 0
    sampling: Sampling = "exact"
    rl_trains: Trained = "prior"
    adapter: int = 0

    def __post_init__(self) -> None:
        def need(ok: bool, what: str) -> None:
            if not ok:
                raise ConfigError(f"QuestConfig: {what}")

        for name, known in (("sampling", Sampling), ("vision", Vision), ("rl_trains", Trained)):
            if getattr(self, name) not in get_args(known):
                raise UnknownNameError(name, getattr(self, name), get_args(known))
        d = self.downsample
        need(d >= 1 and d & (d - 1) == 0, f"downsample must be a power of two, got {d}")
        need(self.chunk % d == 0, f"chunk ({self.chunk}) must be a multiple of downsample ({d})")
        need(1 <= self.execute <= self.chunk, f"execute must be in 1..chunk ({self.chunk}), got {self.execute}")
        need(self.width % self.heads == 0, f"width ({self.width}) must be a multiple of heads ({self.heads})")
        for heads in (self.encoder_heads, self.decoder_heads):
            need(self.autoencoder_width % heads == 0, f"autoencoder_width must be a multiple of heads ({heads})")
        need(self.autoencoder_width % 8 == 0, "autoencoder_width must be a multiple of 8 (GroupNorm)")
        need(self.image_dim % 2 == 0, "image_dim must be even (a row and a column per key point)")
        need(self.temperature > 0, f"temperature must be above 0, got {self.temperature}; use greedy mode instead")
        need(self.temperature <= 1e3, f"temperature must be at most 1000, got {self.temperature}")
        need(0 <= self.top_k <= self.codebook, f"top_k must be in 0..{self.codebook}, got {self.top_k}")
        need(self.sampling == "exact" or self.top_k > 0, "published sampling draws from the top_k tokens: give top_k")
        need(self.adapter >= 0, f"adapter must not be negative, got {self.adapter}")
        need(bool(self.cameras), "at least one camera is needed")

    @property
    def tokens(self) -> int:
        """K, skill tokens per decision."""
        return self.chunk // self.downsample

    @property
    def codebook(self) -> int:
        size = 1
        for level in self.fsq_levels:
            size *= level
        return size

    def to_json(self) -> dict:
        return dataclasses.asdict(self) | {
            "cameras": {k: list(v) for k, v in self.cameras.items()},
            "fsq_levels": list(self.fsq_levels),
            "proprio": dict(self.proprio),
        }

    @classmethod
    def from_json(cls, data: Mapping) -> QuestConfig:
        known = {f.name for f in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise UnknownNameError("QuestConfig field", key, known)
        fixed = dict(data)
        if "cameras" in fixed:
            fixed["cameras"] = {k: (int(v[0]), int(v[1])) for k, v in fixed["cameras"].items()}
        if "fsq_levels" in fixed:
            fixed["fsq_levels"] = tuple(fixed["fsq_levels"])
        return cls(**fixed)


SIZES: dict[str, dict] = {
    "paper": {},
    "small": {
        "chunk": 16,
        "execute": 16,
        "autoencoder_width": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_heads": 4,
        "decoder_heads": 4,
        "width": 128,
        "layers": 4,
        "heads": 4,
        "vision": "cnn",
        "image_dim": 128,
        "proprio_dim": 64,
        "language_dim": 384,
        "autoencoder_dropout": 0.0,
    },
    "tiny": {
        "chunk": 8,
        "execute": 8,
        "fsq_levels": (5, 5),
        "autoencoder_width": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_heads": 2,
        "decoder_heads": 2,
        "width": 32,
        "layers": 1,
        "heads": 2,
        "vision": "cnn",
        "image_dim": 16,
        "proprio_dim": 16,
        "language_dim": 384,
        "dropout": 0.0,
        "autoencoder_dropout": 0.0,
    },
}
"""What each named size changes from the defaults of `QuestConfig`."""
SIZED = sorted({name for size in SIZES.values() for name in size} - {"chunk", "execute", "language_dim"})
"""Fields that belong to a size alone."""


def chunk_and_execute(options: PolicyOptions) -> tuple[int, int]:
    """Actions in a chunk and executed before the next look, as these settings or their size say."""
    size = QuestConfig(**SIZES[options.size])
    chunk = options.chunk or size.chunk
    return chunk, options.execute or (chunk if options.chunk else size.execute)
