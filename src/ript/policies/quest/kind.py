"""QueST as a kind of policy: skills of a discrete autoencoder, chosen by a GPT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ript.core.house import PolicyKind
from ript.core.types import SimulatorSpec
from ript.policies.quest.options import QuestOptions, QuestTraining

if TYPE_CHECKING:
    from ript.policies.quest.policy import QuestPolicy


def make(options: QuestOptions, spec: SimulatorSpec, seed: int, privileged_dim: int) -> QuestPolicy:
    """A new policy with weights drawn from the seed."""
    import torch

    from ript.policies import language
    from ript.policies.quest.config import SIZES, QuestConfig, chunk_and_execute
    from ript.policies.quest.policy import QuestPolicy

    chunk, execute = chunk_and_execute(options)
    sizes = SIZES[options.size] | {
        "chunk": chunk,
        "execute": execute,
        "action_dim": spec.action_dim,
        "cameras": dict(spec.cameras),
        "proprio": dict(spec.proprio),
        "language_dim": language.DIMS[options.language],
        "privileged_dim": privileged_dim if options.privileged else 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QuestPolicy(QuestConfig(**sizes), spec)


def load(folder: str | Path) -> QuestPolicy:
    """The policy in a folder."""
    from ript.policies.quest.policy import QuestPolicy

    return QuestPolicy.from_pretrained(folder)


KIND = PolicyKind(
    kind="quest",
    summary="discrete skills, chosen by a GPT that sees pictures and reads the instruction",
    options=QuestOptions,
    training=QuestTraining,
    make=make,
    load=load,
)
