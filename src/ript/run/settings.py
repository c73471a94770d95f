"""What becomes of settings: which of them a command uses, which a policy has decided already, what a run records.

A setting that cannot have an effect is refused when somebody asked for it. When it merely comes with the recipe, what
is recorded is what the policy has instead, or nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ript.config import recipes
from ript.config.sections import Config, sim_options
from ript.core.errors import ConfigError
from ript.core.hooks import made_with
from ript.core.options import replace
from ript.run.cards import horizon_in

if TYPE_CHECKING:
    from ript.core.interfaces import PostTrainable

Leaves = dict[str, Any]
"""Dotted name of a setting -> its value, as plain JSON: {"iterations": 15, "policy.size": "small", ...}."""

BUILT = ("size", "chunk", "execute", "privileged", "standardise", "language")
"""Settings of the policy that are decided when it is made, and cannot be changed any more."""

_BUILT = tuple(f"policy.{name}" for name in BUILT)
_RUN = ("recipe", "tasks", "seed", "sim.")
USED: dict[str, tuple[str, ...]] = {
    "check": ("sim.",),
    "demos collect": ("sim.", "demos.noise", "demos.every", "demos.expert", "rollout.workers"),
    "sft": (*_RUN, "device", "tracker", *_BUILT, "sft."),
    "rl": (*_RUN, "device", "tracker", "iterations", "stop_at", "policy.", "rollout.", "sampling.", "learn.", "eval."),
    "bench rollout": (*_RUN, *_BUILT, "rollout."),
    "bench update": (*_RUN, "policy.", "rollout.", "sampling.", "learn."),
}
"""Command -> the settings that it uses, or the sections; those that are not here use all of them."""

_BUT: dict[str, tuple[str, ...]] = {
    "quickstart": ("demos.expert",),  # keeps what it made, and would not see that a file of a user's own changed
    "study": ("demos.expert",),
    "bench rollout": ("policy.privileged", "policy.standardise"),  # without demonstrations
    "bench update": ("sampling.horizon_margin", "learn.adapt_kl"),  # act on the next iteration
}
"""Command -> settings of its sections that it does not use."""

_OVERRULED = {
    "policy.temperature": "policy.entropy",
    "learn.minibatch": "learn.minibatch_trajectories",
    "sft.autoencoder_steps": "sft.autoencoder_epochs",
    "sft.policy_steps": "sft.policy_epochs",
    "sft.finetune_steps": "sft.finetune_epochs",
}
"""Setting -> another one that decides in its place unless that is 0."""

_STAGES = {
    "autoencoder": ("batch", "learning_rate"),
    "policy": ("learning_rate",),
    "finetune": ("learning_rate", "share", "decoder"),
}
"""Supervised stage -> its settings, which have no effect when it has no steps."""

_TOLERATED = ("eval.every_trials",)
"""Settings that are not refused when they have no effect: they belong to one that is switched on and off."""


def leaves(data: Mapping[str, Any]) -> Leaves:
    """The settings of a configuration's JSON form."""
    flat: Leaves = {}
    for name, value in data.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `leaves`."""
    data: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, inner = name.rpartition(".")
        (data.setdefault(section, {}) if section else data)[inner] = value
    return data


def uses(command: str, name: str) -> bool:
    """Whether a command uses a setting at all."""
    return name not in _BUT.get(command, ()) and (command not in USED or among(USED[command], name))


def asked_for(config: Config, given: Iterable[str] = ()) -> set[str]:
    """What somebody wants: the settings that were given, and those that are not as in the recipe that is named.

    Args:
        config: complete.
        given: dotted names from the command line.
    """
    plain = recipes.get(config.recipe) if config.recipe in recipes.RECIPES else Config()
    before, missing = leaves(plain.to_json()), object()
    if config.sim.suite != plain.sim.suite:  # whoever wants another suite wants its settings as they come
        defaults = sim_options(config.sim.suite).to_json()
        before |= {f"sim.{name}": value for name, value in defaults.items() if name != "suite"}
    return set(given) | {name for name, value in leaves(config.to_json()).items() if value != before.get(name, missing)}


# ------------------------------------------------------------------ what has no effect


def idle(config: Config) -> dict[str, str]:
    """Settings that change nothing beside the others, whatever the command: dotted name -> why, and the remedy."""
    found = {
        name: f" while {by} = {value:g} decides: leave it out, or give --{by}=0"
        for name, by in _OVERRULED.items()
        if (value := _value(config, by))
    }
    if not config.rollout.workers:
        for name in ("rollout.inference", "rollout.request_timeout", "rollout.max_retries"):
            found[name] = " without workers, for the policy acts in this process: leave it out, or give --workers N"
    if not config.sampling.dynamic:
        for name in ("sampling.max_attempts", "sampling.equal_tasks"):
            found[name] = " with sampling.dynamic = false, which takes the first groups as they are: leave it out"
    elif len(config.tasks) == 1:
        found["sampling.equal_tasks"] = f" with one task ({config.tasks[0]}): leave it out"
    if not config.eval.every:
        found["eval.every_trials"] = " while eval.every = 0: leave it out"
    for stage, names in _STAGES.items():
        if not (_value(config, f"sft.{stage}_steps") or _value(config, f"sft.{stage}_epochs")):
            for name in names:
                found[f"sft.{stage}_{name}"] = f" while sft.{stage}_steps = 0: leave it out"
    return found


def unused(command: str, config: Config, name: str) -> str | None:
    """Why a setting that was given would change nothing, and what to do; None when it has an effect.

    Args:
        command: such as "rl".
        config: with what was given.
        name: dotted.
    """
    if not uses(command, name):
        others = [f"`ript {other}`" for other in USED if other != command and uses(other, name)]
        others += ["`ript quickstart`", "`ript study`"]
        return f"{name} has no effect in `ript {command}`: leave it out ({' and '.join(others[:2])} use it)"
    if name == "rollout.inference" and config.rollout.inference == "local":
        return None  # what happens anyway, and the remedy when it was central
    why = None if name in _TOLERATED else idle(config).get(name)
    return None if why is None else f"{name} has no effect{why}"


def refuse_unused(command: str, config: Config, given: Iterable[str]) -> None:
    """Raise `ConfigError` for a setting from the command line that would change nothing; see `unused`."""
    for name in given:
        if why := unused(command, config, name):
            raise ConfigError(why)
    r = config.rollout
    if uses(command, "rollout.inference") and r.inference == "central" and not r.workers:
        raise ConfigError(
            "rollout.inference = central has no effect without workers, for the policy acts in this process: give "
            "--workers N, or --rollout.inference=local"
        )


def _value(config: Config, name: str) -> Any:
    section, _, inner = name.rpartition(".")
    return getattr(getattr(config, section) if section else config, inner)


def refuse_unused_stages(given: Iterable[str], *, base: bool, targets: bool, others: bool = True) -> None:
    """Raise `ConfigError` for a setting of a supervised stage that there will not be.

    Args:
        given: dotted names from the command line.
        base: there is a base policy, so only fine-tuning is done.
        targets: there are target tasks, so fine-tuning is done.
        others: there are demonstrations of other tasks than these.
    """
    for name in given:
        if why := stage_is_missing(name, base=base, targets=targets, others=others):
            raise ConfigError(f"{name} has no effect: {why}; leave it out")


def stage_is_missing(name: str, *, base: bool, targets: bool, others: bool = True) -> str:
    """Why a setting is of a supervised stage, or a part of one, that there will not be; empty when it is not. See
    `refuse_unused_stages`."""
    pretraining = name.startswith("sft.autoencoder_") or name in (
        "sft.policy_steps",
        "sft.policy_epochs",
        "sft.policy_learning_rate",
    )
    if base and pretraining:
        return "a base policy keeps what it has learned"
    if not targets and name.startswith(("sft.finetune_", "demos.target")):
        return "there is no target task to fine-tune toward"
    if not others and name == "sft.finetune_share":
        return "all demonstrations are of target tasks, which take every batch"
    return ""


# ------------------------------------------------------------------ what a policy has decided


def settled(config: Config, policy: PostTrainable, asked: Collection[str], whose: str = "the policy") -> Config:
    """The configuration with what the policy has in place of what nobody asked for.

    Args:
        config: of a run that begins with the policy.
        policy: whose size, chunk, ... are what they are.
        asked: dotted names; see `asked_for`.
        whose: the policy, in words.

    Raises:
        ConfigError: a setting was asked for that cannot be changed any more; names each, and the policy's own value.
    """
    from ript.build import chunk_and_execute

    chunk, execute = chunk_and_execute(config.policy)
    own, wanted = made_with(policy), config.policy.values() | {"chunk": chunk, "execute": execute}
    refused, changes = [], {}
    for name in dict.fromkeys((*BUILT, *(name for name in own if name in wanted))):
        if wanted[name] == own.get(name):
            continue
        if f"policy.{name}" in asked:
            has = "no such setting" if own.get(name) is None else f"{name} = {_word(own[name])}"
            refused.append(f"policy.{name} = {_word(wanted[name])} ({whose} has {has})")
        elif own.get(name) is not None:
            changes[name] = own[name]
    if refused:
        raise ConfigError(
            f"{'; '.join(refused)}: cannot be changed any more; leave it out, or train a policy with it (`ript sft`)"
        )
    return replace(config, policy=replace(config.policy, **changes))


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def measured(config: Config, policy: PostTrainable, asked: Collection[str]) -> Config:
    """The configuration with the horizon that the policy was measured with before, when nobody asked for another."""
    horizon = horizon_in(policy.card)
    if not horizon or "sim.horizon" in asked:
        return config
    return replace(config, sim=replace(config.sim, horizon=horizon))


def shown(config: Config, sim: Mapping[str, Any], asked: Collection[str]) -> Config:
    """The configuration with the simulator settings that the demonstrations were made with.

    Args:
        config: of supervised training.
        sim: field of the section -> the demonstrations' own.
        asked: dotted names; see `asked_for`.

    Raises:
        ConfigError: another value was asked for.
    """
    for name, value in sim.items():
        wanted = getattr(config.sim, name)
        if wanted != value and f"sim.{name}" in asked:
            raise ConfigError(
                f"sim.{name} = {_listed(wanted)}, but the demonstrations have {_listed(value)}: leave it out, or "
                "collect others"
            )
    return replace(config, sim=replace(config.sim, **sim))


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else _word(value)


# ------------------------------------------------------------------ what a run records


def recorded(command: str, config: Config, policy: PostTrainable | None = None) -> Leaves:
    """The settings that have had an effect.

    Args:
        command: "rl" or "sft".
        config: settled.
        policy: when given, what it does not have is left out.
    """
    found, without_effect = {}, idle(config)
    built = None if policy is None else made_with(policy)
    for name, value in leaves(config.to_json()).items():
        missing = built is not None and name in _BUILT and built.get(name.removeprefix("policy.")) is None
        if uses(command, name) and name not in without_effect and not missing:
            found[name] = value
    return found


# ------------------------------------------------------------------ what may change when a run goes on

NEUTRAL = ("tracker", "rollout.")
"""Settings, or sections, that results do not depend on."""
FREE: dict[str, tuple[str, ...]] = {
    "rl": ("iterations", *NEUTRAL),
    "sft": ("tracker", "sft.checkpoint_every"),
}
"""Command -> the settings, or sections, that may be others when its run goes on."""


def refuse_changes(command: str, held: Mapping[str, Any], now: Mapping[str, Any]) -> Leaves:
    """What is another setting when a run goes on.

    Args:
        command: "rl" or "sft".
        held: the run's own settings, as its config.json has them.
        now: what is wanted, by dotted names.

    Returns:
        name -> new value, of those that may change.

    Raises:
        ConfigError: names each setting that may not.
    """
    before = leaves(held)
    may = (*FREE[command], "recipe")
    missing = object()  # what had no effect is not in the record, and may have one now
    changed = {
        name: value
        for name, value in now.items()
        if before.get(name, missing) != value and (name in before or among(may, name))
    }
    fixed = [
        f"{name} = {_listed(value)} (the run has {_listed(before[name])})"
        for name, value in changed.items()
        if not among(may, name)
    ]
    if fixed:
        free = ", ".join(f"{name}*" if name.endswith(".") else name for name in FREE[command])
        raise ConfigError(
            f"a run goes on with its own settings, and these are others: {'; '.join(fixed)}. Leave them out, or begin "
            f"a new run with another --out; only {free} may change"
        )
    return {name: value for name, value in changed.items() if name != "recipe"}


def among(names: Collection[str], name: str) -> bool:
    """Whether a setting is one of these, or in one of these sections."""
    return name in names or f"{name.partition('.')[0]}." in names


def differing(command: str, held: Mapping[str, Any], config: Config) -> list[str]:
    """Names of what a finished run did otherwise than a configuration says now, of what its results depend on.

    Args:
        command: "rl" or "sft".
        held: the run's settings, as its config.json has them; one that is not there had its default.
        config: to compare with.
    """
    ours, theirs = recorded(command, Config.from_record(held)), recorded(command, config)
    return [
        name
        for name, value in theirs.items()
        if ours.get(name) != value and not among((*NEUTRAL, "recipe", "sft.checkpoint_every", "sampling.demos"), name)
    ]
