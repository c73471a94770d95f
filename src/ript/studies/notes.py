"""What a configuration says, in words, and where two differ: how a small study is told from the paper's."""

from __future__ import annotations

from ript.config.sections import Config
from ript.core.options import SimOptions
from ript.core.registry import kinds

Settings = dict[str, dict[str, str]]
"""Group -> label -> value."""


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
    words = kinds.get(c.policy.kind).in_words(c.policy, c.sft, finetunes(c))
    return {
        "policy": {**words.get("policy", {}), **_simulator(c.sim)},
        "supervised training": {**_supervised(c), **words.get("supervised training", {})},
        "practice": {**_practice(c, on_demonstrated), **words.get("practice", {})},
        "update": {**words.get("update", {}), **_update(c)},
        "evaluation": {
            "states of each task": str(c.eval.trials),
            "actions": c.eval.mode,
            "in between": f"every {c.eval.every} iterations" if c.eval.every else "never",
        },
    }


def _simulator(sim: SimOptions) -> dict[str, str]:
    """What the suite's own settings say, the cameras with the size of their pictures."""
    own = {name: value for name, value in sim.to_json().items() if name not in SimOptions.model_fields}
    if "cameras" in own and "image_size" in own:
        own["cameras"] = f"{', '.join(own['cameras'])} of {own.pop('image_size')} pixels"
    return {name.replace("_", " "): str(value) for name, value in own.items()}


def _supervised(c: Config) -> dict[str, str]:
    return {
        "demonstrations of each pre-training task": str(c.demos.per_task),
        "an observation every": f"{c.demos.every} steps" if c.demos.every > 1 else "step",
        "learning rates rise over": f"{c.sft.warmup:.0%} of the steps",
        "gradient norm at most": f"{c.sft.max_grad_norm:g}",
    }


def _practice(c: Config, on_demonstrated: bool) -> dict[str, str]:
    s = c.sampling
    states = f"{s.states} of each task" if s.states else "new ones in every iteration"
    accepted, tried = s.groups * s.group_size, s.max_attempts * s.group_size
    steps = s.horizon or c.sim.horizon or "each task's own"
    return {
        "iterations": str(c.iterations),
        "rollouts in groups with a signal": f"{accepted} out of at most {tried}",
        "initial states": "those of the demonstrations" if on_demonstrated else states,
        "horizon": f"{steps}{', or less where successes are short' if s.horizon_margin else ''}",
    }


def _update(c: Config) -> dict[str, str]:
    u = c.learn
    trajectories = u.minibatch_trajectories
    return {
        "epochs": str(u.epochs),
        "learning rate": f"{u.learning_rate:g}{', which follows the KL' if u.adapt_kl else ''}",
        "stop at a KL of": f"{u.target_kl:g} a decision" if u.target_kl else "none",
        "weight of the KL to the start": f"{u.kl_to_start:g}",
        "minibatch": f"{trajectories} trajectories" if trajectories else f"{u.minibatch} decisions",
        "mean over": "all tokens" if u.reduction == "token" else "each trajectory first",
        "weight decay": f"{u.weight_decay:g}",
    }
