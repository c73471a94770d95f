"""A QueST configuration in words, for tables of what differs between two."""

from __future__ import annotations

from ript.policies.quest.config import SIZES, QuestConfig, chunk_and_execute
from ript.policies.quest.options import QuestOptions, QuestTraining

PARAMETERS = {"paper": "20 M", "small": "1.3 M", "tiny": "below 0.1 M"}
MODELS = {"minilm": "MiniLM", "clip": "CLIP"}


def in_words(options: QuestOptions, training: QuestTraining, finetunes: bool) -> dict[str, dict[str, str]]:
    """See `PolicyKind.in_words`."""
    return {
        "policy": _policy(options),
        "supervised training": _supervised(options, training, finetunes),
        "practice": {
            "token among the likeliest": str(options.top_k or "all"),
            "temperature": "chosen by entropy" if options.entropy else f"{options.temperature:g}",
        },
        "update": {"trained": options.rl_trains.replace("+", " and ")},
    }


def _policy(options: QuestOptions) -> dict[str, str]:
    size = QuestConfig(**SIZES[options.size])
    chunk, execute = chunk_and_execute(options)
    return {
        "parameters": PARAMETERS[options.size],
        "pictures seen by": "ResNet-18" if size.vision == "resnet18" else "three convolutions",
        "actions executed": f"{execute} of {chunk}",
        "instructions by": MODELS[options.language],
        "proprioception": "standardised" if options.standardise else "as it is",
    }


def _supervised(options: QuestOptions, training: QuestTraining, finetunes: bool) -> dict[str, str]:
    s = training

    def length(steps: int, epochs: float) -> str:
        return f"{epochs:g} epochs" if epochs else f"{steps} steps"

    found = {
        "skills": f"{length(s.autoencoder_steps, s.autoencoder_epochs)} at {s.autoencoder_learning_rate:g}",
        "policy": f"{length(s.policy_steps, s.policy_epochs)} at {s.policy_learning_rate:g}",
        "auxiliary loss on object positions": "on" if options.privileged else "off",
        "colours changed by": f"jitter of {s.colour_jitter:g}" if s.colour_jitter else "brightness alone",
        "target tokens with dropout": "on" if s.noisy_targets else "off",
    }
    if finetunes:
        found |= {
            "fine-tuning": f"{length(s.finetune_steps, s.finetune_epochs)} at {s.finetune_learning_rate:g}",
            "target demonstrations in a batch of it": f"{s.finetune_share:.0%}",
            "action decoder in it": "trained" if s.finetune_decoder else "left as it is",
        }
    return found
