"""What a configuration says, in words, and where two differ: how a small study is told from the paper's."""

from __future__ import annotations

from ript.config.sections import Config
from ript.core.options import SimOptions
from ript.policies.quest.config import SIZES, QuestConfig

Settings = dict[str, dict[str, str]]
"""Group -> label -> value."""

PARAMETERS = {"paper": "20 M", "small": "1.3 M", "tiny": "below 0.1 M"}
MODELS = {"minilm": "MiniLM", "clip": "CLIP"}


def finetunes(config: Config) -> bool:
    """Whether the base is fine-tuned before practice: it has not seen all tasks."""
    return not set(config.tasks) <= set(config.pretrain_tasks)


def differences(ours: Config, paper: Config) -> tuple[str, ...]:
    """A line for each group of settings that are not the same."""
    theirs = _settings(paper, on_demonstrated=not finetunes(paper))
    lines = []
    for group, settings in _settings(ours).items():
        told = [
            f"{label} {value} instead of {theirs[group][label]}"
            for label, value in settings.items()
            if theirs[group].get(label, value) != value
        ]
        if told:
            lines.append(f"{group}: {'; '.join(told)}")
    return tuple(lines)


def _settings(c: Config, on_demonstrated: bool = False) -> Settings:
    return {
        "policy": _policy(c),
        "supervised training": _supervised(c),
        "practice": _practice(c, on_demonstrated),
        "update": _update(c),
        "evaluation": {
            "states of each task": str(c.eval.trials),
            "actions": c.eval.mode,
            "in between": f"every {c.eval.every} iterations" if c.eval.every else "never",
        },
    }


def _policy(c: Config) -> dict[str, str]:
    p, quest = c.policy, QuestConfig(**SIZES[c.policy.size])
    chunk = p.chunk or quest.chunk
    return {
        "parameters": PARAMETERS[p.size],
        "pictures seen by": "ResNet-18" if quest.vision == "resnet18" else "three convolutions",
        **_simulator(c.sim),
        "actions executed": f"{p.execute or (chunk if p.chunk else quest.execute)} of {chunk}",
        "instructions by": MODELS[p.language],
        "proprioception": "standardised" if p.standardise else "as it is",
    }


def _simulator(sim: SimOptions) -> dict[str, str]:
    """What the suite's own settings say, the cameras with the size of their pictures."""
    own = {name: value for name, value in sim.to_json().items() if name not in SimOptions.model_fields}
    if "cameras" in own and "image_size" in own:
        own["cameras"] = f"{', '.join(own['cameras'])} of {own.pop('image_size')} pixels"
    return {name.replace("_", " "): str(value) for name, value in own.items()}


def _supervised(c: Config) -> dict[str, str]:
    s = c.sft

    def length(steps: int, epochs: float) -> str:
        return f"{epochs:g} epochs" if epochs else f"{steps} steps"

    found = {
        "demonstrations of each pre-training task": str(c.demos.per_task),
        "looks every": f"{c.demos.every} steps" if c.demos.every > 1 else "step",
        "skills": f"{length(s.autoencoder_steps, s.autoencoder_epochs)} at {s.autoencoder_learning_rate:g}",
        "policy": f"{length(s.policy_steps, s.policy_epochs)} at {s.policy_learning_rate:g}",
        "auxiliary loss on object positions": "on" if c.policy.privileged else "off",
        "learning rates rise over": f"{s.warmup:.0%} of the steps",
        "gradient norm at most": f"{s.max_grad_norm:g}",
        "colours changed by": f"jitter of {s.colour_jitter:g}" if s.colour_jitter else "brightness alone",
        "target tokens with dropout": "on" if s.noisy_targets else "off",
    }
    if finetunes(c):
        found |= {
            "fine-tuning": f"{length(s.finetune_steps, s.finetune_epochs)} at {s.finetune_learning_rate:g}",
            "target demonstrations in a batch of it": f"{s.finetune_share:.0%}",
            "action decoder in it": "trained" if s.finetune_decoder else "left as it is",
        }
    return found


def _practice(c: Config, on_demonstrated: bool) -> dict[str, str]:
    s = c.sampling
    states = f"{s.contexts} of each task" if s.contexts else "new ones in every iteration"
    accepted, tried = s.groups * s.group_size, s.max_attempts * s.group_size
    steps = s.horizon or c.sim.horizon or "each task's own"
    temperature = "chosen by entropy" if c.policy.entropy else f"{c.policy.temperature:g}"
    return {
        "iterations": str(c.iterations),
        "rollouts in groups with a signal": f"{accepted} out of at most {tried}",
        "initial states": "those of the demonstrations" if on_demonstrated else states,
        "horizon": f"{steps}{', or less where successes are short' if s.horizon_margin else ''}",
        "token among the likeliest": str(c.policy.top_k or "all"),
        "temperature": temperature,
    }


def _update(c: Config) -> dict[str, str]:
    u = c.learn
    trajectories = u.minibatch_trajectories
    return {
        "trained": c.policy.rl_trains.replace("+", " and "),
        "epochs": str(u.epochs),
        "learning rate": f"{u.learning_rate:g}{', which follows the KL' if u.adapt_kl else ''}",
        "stop at a KL of": f"{u.target_kl:g} a decision" if u.target_kl else "none",
        "weight of the KL to the start": f"{u.kl_to_start:g}",
        "minibatch": f"{trajectories} trajectories" if trajectories else f"{u.minibatch} decisions",
        "mean over": "all tokens" if u.reduction == "token" else "each trajectory first",
        "weight decay": f"{u.weight_decay:g}",
    }
