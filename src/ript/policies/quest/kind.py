"""QueST as a kind of policy: skills of a discrete autoencoder, chosen by a GPT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ript.core.errors import DataError, PolicyError
from ript.core.interfaces import SimulatorFactory
from ript.core.options import Settings
from ript.core.plugins import CheckpointFormat, PolicyKind
from ript.core.specimens import Specimens
from ript.core.supervised import DemoSource, Stage
from ript.core.types import SimulatorSpec
from ript.policies.quest.options import PUBLISHED_SUITE, QuestOptions, QuestTraining
from ript.policies.quest.words import in_words

if TYPE_CHECKING:
    from ript.policies.quest.policy import QuestPolicy


def make(options: QuestOptions, spec: SimulatorSpec, seed: int, privileged_dim: int | None) -> QuestPolicy:
    """A new policy with weights drawn from the seed.

    Raises:
        DataError: the auxiliary loss is asked for, and the demonstrations have no object positions.
    """
    import torch

    from ript.policies import language
    from ript.policies.quest.config import SIZES, QuestConfig, chunk_and_execute
    from ript.policies.quest.policy import QuestPolicy

    if options.privileged and privileged_dim == 0:
        raise DataError(
            "policy.privileged asks for object positions, and the demonstrations have none (obs/privileged)"
        )
    chunk, execute = chunk_and_execute(options)
    sizes = SIZES[options.size] | {
        "chunk": chunk,
        "execute": execute,
        "action_dim": spec.action_dim,
        "cameras": dict(spec.cameras),
        "proprio": dict(spec.proprio),
        "language_dim": language.DIMS[options.language],
        "privileged_dim": (privileged_dim or 0) if options.privileged else 0,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QuestPolicy(QuestConfig(**sizes), spec)


def load(folder: str | Path) -> QuestPolicy:
    """The policy in a folder."""
    from ript.policies.quest.policy import QuestPolicy

    return QuestPolicy.from_pretrained(folder)


def check(options: QuestOptions) -> None:
    """Embed a sentence: whether the model that reads instructions is here.

    Raises:
        DependencyMissing, DataError: it is not, or it is damaged.
    """
    from ript.policies import language

    language.embed(["a sentence"], options.language)


def prepare_untrained(policy: QuestPolicy, seed: int) -> None:
    """Give it skills to choose from: random movements."""
    from ript.policies.quest.stages import babble

    babble(policy, seed)


def begin(policy: QuestPolicy, options: QuestOptions, windows: DemoSource) -> None:
    """Normalise by these demonstrations."""
    from ript.policies.quest.stages import take_statistics

    take_statistics(policy, windows, options.standardise)


def stages(
    policy: QuestPolicy, training: QuestTraining, windows: DemoSource, targets: Sequence[str], fresh: bool
) -> list[Stage]:
    """All three of a new policy, or fine-tuning alone; that only with targets."""
    from ript.policies.quest.stages import make_stages

    return make_stages(policy, training, windows, targets, fresh=fresh)


def card(policy: QuestPolicy, windows: DemoSource, fresh: bool) -> dict[str, str]:
    """Whether the policy has learned from what acting policies do not see."""
    auxiliary = policy.encoder.privileged is not None and windows.privileged is not None
    base = not fresh and policy.config.privileged_dim > 0
    said = "yes" if auxiliary else "no, but in its base's training" if base else "no"
    return {"auxiliary loss on object positions from the simulator": said}


def bound(policy: QuestPolicy, factory: SimulatorFactory, task: str) -> str | None:
    """How often the scripted expert succeeds with actions that pass through the skills."""
    from ript.policies.quest.replay import replay_autoencoded

    upper = replay_autoencoded(policy, factory, task)
    return (
        f"the expert's actions through the skill autoencoder succeed in {upper.total:.0f} of {upper.count:.0f} states"
    )


class QuestFile(Settings):
    ABOUT: ClassVar[str] = "How a published checkpoint is read."

    config: str = Field(
        PUBLISHED_SUITE,
        description="Suite that a file of the published sizes is for, or a .json file with its configuration.",
    )
    sampling: Literal["exact", "published"] = Field(
        "exact", description='"published": draw from the top 5 but optimise the full softmax.'
    )
    embeddings: str = Field(
        "",
        description="File instruction -> vector (.safetensors), instead of CLIP's, which is fetched when needed.",
    )


def read(file: str | Path, options: QuestFile) -> tuple[QuestPolicy, list[str]]:
    """The policy in a published checkpoint, and what the file holds besides."""
    from ript.policies.folder import read_tensors
    from ript.policies.quest.checkpoint import LEFT_OUT, import_quest

    policy = import_quest(file, options.config, sampling=options.sampling)
    given = read_tensors(options.embeddings) if options.embeddings else {}
    if options.embeddings and not given:
        raise PolicyError(f"{options.embeddings} holds no embeddings: expected tensors whose names are instructions")
    for sentence, vector in given.items():
        policy.remember(sentence, vector)
    left_out = policy.card["imported from"].get(LEFT_OUT, "")
    return policy, left_out.split(", ") if left_out else []


def about(policy: QuestPolicy, options: QuestFile, instructions: Sequence[str]) -> list[str]:
    """How many of a suite's instructions have an embedding in the file that was given."""
    if not options.embeddings or not instructions:
        return []
    wanted = set(instructions)
    has = len(wanted & set(policy.remembered))
    others = "" if has == len(wanted) else "; others need CLIP (docs/quest_checkpoints.md)"
    suite = policy.simulator.suite
    return [f"{options.embeddings} has {has or 'none'} of the {len(wanted)} instructions of {suite}'s tasks{others}"]


def write(policy: QuestPolicy, file: str | Path) -> list[str]:
    """Write a published checkpoint; returns what it does not hold."""
    from ript.policies.quest.checkpoint import export_quest, not_held

    export_quest(policy, file)
    return not_held(policy)


PUBLISHED = CheckpointFormat(
    name="quest",
    summary="a published QueST checkpoint",
    suffix=".pth",
    options=QuestFile,
    read=read,
    about=about,
    write=write,
    examples=(
        "  ript import quest model.pth --config libero --out policies/quest-libero\n"
        "  ript import quest model.pth --config config.json --out policies/quest-mine\n"
        "  ript import quest model.pth --config config.json --sim.suite NAME --cameras VIEW \\\n"
        "          --out policies/quest-corner",
        "  ript export quest policies/quest-libero model.pth",
    ),
)


def specimens() -> Specimens:
    """Random policies of every size."""
    from ript.policies.quest import specimens as made

    return Specimens(
        sizes=("tiny", "small", "paper"),
        usual="small",
        make=made.random_policy,
        look=made.random_look,
        decisions=made.decisions,
        comparisons=made.comparisons,
    )


KIND = PolicyKind(
    kind="quest",
    summary="discrete skills, chosen by a GPT that sees pictures and reads the instruction",
    options=QuestOptions,
    training=QuestTraining,
    make=make,
    load=load,
    check=check,
    language=lambda options: options.language,
    prepare_untrained=prepare_untrained,
    window=lambda policy: policy.config.chunk,
    begin=begin,
    stages=stages,
    card=card,
    bound=bound,
    in_words=in_words,
    formats=(PUBLISHED,),
    specimens=specimens,
)
