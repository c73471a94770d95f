"""The reference policy and observations of it."""

import numpy as np
from oft_golden import SCALE_HEAD, TINY, arrays, document

from ript.core.types import Observation
from ript.policies.openvla_oft.checkpoint import load
from ript.policies.openvla_oft.policy import OpenVlaPolicy

NAMES = ("s0", "s1", "s2")
FRAMES = {"s0": ("pkl/full_image_u8", "pkl/wrist_image_u8")}
FRAMES |= {s: (f"{t}_agentview/raw_u8", f"{t}_wrist/raw_u8") for s, t in (("s1", "t0"), ("s2", "t3"))}
"""The first was turned and resized before it was recorded; the others are the simulator's frames."""


def published(**options) -> OpenVlaPolicy:
    """As a user loads it, with RIPT-VLA's scale head, which an adapter brings itself; the tokenizer that the folder
    lacks is made up for."""
    head = {} if "adapter" in options else {"scale_head": SCALE_HEAD}
    return ready(load(TINY, **{"suite": "libero_spatial"} | head | options))


def ready(policy: OpenVlaPolicy) -> OpenVlaPolicy:
    golden, observations = arrays("io"), document("meta")["observations"]
    policy.remember({observations[name]["task"]: golden[f"{name}/input_ids"].tolist() for name in NAMES})
    return policy


def observation(*names: str) -> Observation:
    """Frames as a simulator gives them, in one batch."""
    pictures, golden, observations = arrays("pictures"), arrays("io"), document("meta")["observations"]
    frames = [[pictures[frame] for frame in FRAMES[name]] for name in names]
    return Observation(
        images={camera: np.stack([row[i] for row in frames]) for i, camera in enumerate(("primary", "wrist"))},
        proprio=np.stack([golden[f"{name}/state"] for name in names]),
        instruction=tuple(observations[name]["task"] for name in names),
    )


def generators(n: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(n)]
