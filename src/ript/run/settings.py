"""What becomes of settings: which of them a command uses, which a policy has decided already, what a run records.

A setting that cannot have an effect is refused when somebody asked for it. When it merely comes with the recipe, what
is recorded is what the policy has instead, or nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ript.config import recipes
from ript.config.earlier import RENAMED
from ript.config.sections import Config, policy_options, sim_options, training_options
from ript.core.errors import ConfigError
from ript.core.hooks import kind_of, made_with
from ript.core.options import Settings, replace
from ript.core.registry import kinds
from ript.run.cards import horizon_in

if TYPE_CHECKING:
    from ript.core.interfaces import PostTrainable

Leaves = dict[str, Any]
"""Dotted name of a setting -> its value, as plain JSON: {"iterations": 15, "policy.size": "small", ...}."""

BUILT = "what of policy. is built"
"""Stands in `USED` for the policy's settings that are decided when it is made; its kind says which these are."""

_RUN = ("recipe", "tasks", "seed", "sim.")
USED: dict[str, tuple[str, ...]] = {
    "check": ("sim.",),
    "demos convert": ("sim.",),
    "demos collect": (
        "sim.",
        "demos.noise",
        "demos.every",
        "demos.expert",
        "demos.source",
        "rollout.workers",
        "cluster.",
    ),
    "sft": (*_RUN, "device", "tracker", BUILT, "sft.", "cluster.", "learn.ranks"),
    "rl": (
        *(*_RUN, "device", "tracker", "iterations", "stop_at", "policy."),
        *("rollout.", "cluster.", "sampling.", "learn.", "eval."),
    ),
    "bench rollout": (*_RUN, BUILT, "rollout.", "cluster."),
    "bench update": (*_RUN, "policy.", "rollout.", "cluster.", "sampling.", "learn."),
}
"""Command -> the settings that it uses, or the sections; those that are not here use all of them."""

_BUT: dict[str, tuple[str, ...]] = {
    "quickstart": ("demos.expert",),  # keeps what it made, and would not see that a file of a user's own changed
    "study": ("demos.expert",),
    "bench update": ("sampling.horizon_margin", "learn.adapt_kl"),  # act on the next iteration
}
"""Command -> settings of its sections that it does not use."""

_TOLERATED = ("eval.every_trials",)
"""Settings that are not refused when they have no effect: they belong to one that is switched on and off."""


def leaves(data: Mapping[str, Any]) -> Leaves:
    """The settings of a configuration's JSON form, by their present names."""
    flat: Leaves = {}
    for name, value in data.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, Mapping) else {name: value}
    return {RENAMED.get(name, name): value for name, value in flat.items()}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `leaves`."""
    data: dict[str, Any] = {}
    for name, value in flat.items():
        section, _, inner = name.rpartition(".")
        (data.setdefault(section, {}) if section else data)[inner] = value
    return data


def uses(command: str, config: Config, name: str) -> bool:
    """Whether a command uses a setting at all."""
    if name in _BUT.get(command, ()):
        return False
    if command not in USED:
        return True
    if command == "bench rollout" and name in _policy(config.policy.DEMONSTRATED):
        return False
    if command != "sft" and name in _policy(config.policy.FURTHER_ALONE):
        return False
    built = ("policy.kind", *_policy(config.policy.BUILT))
    further = _policy(config.policy.FURTHER) if command == "sft" else ()
    return among(USED[command], name) or (BUILT in USED[command] and name in built) or name in further


def among(names: Collection[str], name: str) -> bool:
    """Whether a setting is one of these, or in one of these sections."""
    return name in names or f"{name.partition('.')[0]}." in names


def _policy(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"policy.{name}" for name in names)


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
    if config.policy.kind != plain.policy.kind:  # and whoever wants another kind of policy
        policy, training = policy_options(config.policy.kind), training_options(config.policy.kind)
        own = leaves({"policy": policy.to_json(), "sft": training.to_json()})
        before |= {name: value for name, value in own.items() if name != "policy.kind"}
    return set(given) | {name for name, value in leaves(config.to_json()).items() if value != before.get(name, missing)}


# ------------------------------------------------------------------ what has no effect


def idle(command: str, config: Config) -> dict[str, str]:
    """Settings that change nothing in a command beside the others: dotted name -> why, and the remedy."""
    sections = [section for section in config.values().values() if isinstance(section, Settings)]
    found = {section.named(name): why for section in sections for name, why in section.idle().items()}
    if command == "sft":  # follows these whatever practice does
        found = {name: why for name, why in found.items() if name not in _policy(config.policy.FURTHER)}
    if not config.cluster.used:
        found["learn.ranks"] = " without a cluster, whose nodes are the ranks: give --cluster, or leave it out"
    if config.cluster.used and not config.learn.ranks:
        found["cluster.backend"] = " without ranks, whose sums go over it: give --learn.ranks=auto, or leave it out"
    if config.cluster.used:
        found["rollout.workers"] = " on a cluster: give --cluster.workers_per_node"
    elif not config.rollout.workers:
        for name in ("rollout.inference", "rollout.gather", "rollout.request_timeout", "rollout.max_retries"):
            found[name] = " without workers, for the policy acts in this process: leave it out, or give --workers N"
    elif config.rollout.inference == "local":
        found["rollout.gather"] = " with rollout.inference = local, where nothing is gathered: leave it out"
    if not config.rollout.lag:
        found["rollout.ahead"] = " with rollout.lag = 0, where no rollouts are made ahead: leave it out"
    if not config.sampling.dynamic:
        for name in ("sampling.max_attempts", "sampling.equal_tasks"):
            found[name] = " with sampling.dynamic = false, which takes the first groups as they are: leave it out"
    elif len(config.tasks) == 1:
        found["sampling.equal_tasks"] = f" with one task ({config.tasks[0]}): leave it out"
    if not config.eval.every:
        found["eval.every_trials"] = " while eval.every = 0: leave it out"
    return found


def unused(command: str, config: Config, name: str) -> str | None:
    """Why a setting that was given would change nothing, and what to do; None when it has an effect.

    Args:
        command: such as "rl".
        config: with what was given.
        name: dotted.
    """
    if not uses(command, config, name):
        others = [f"`ript {other}`" for other in (*USED, "quickstart", "study") if uses(other, config, name)][:2]
        use = f" ({' and '.join(others)} {'use' if len(others) > 1 else 'uses'} it)" if others else ""
        return f"{name} has no effect in `ript {command}`: leave it out{use}"
    if name == "rollout.inference" and config.rollout.inference == "local":
        return None  # what happens anyway, and the remedy when it was central
    if name == "learn.ranks" and not config.learn.ranks:
        return None  # likewise, of a run that leaves its cluster
    if command == "sft" and name.startswith("cluster.") and config.cluster.used and not config.learn.ranks:
        return f"{name} has no effect in `ript sft` without ranks, which learn on the nodes: give --learn.ranks=auto"
    why = None if name in _TOLERATED else idle(command, config).get(name)
    return None if why is None else f"{name} has no effect{why}"


def refuse_unused(command: str, config: Config, given: Iterable[str]) -> None:
    """Raise `ConfigError` for a setting from the command line that would change nothing; see `unused`."""
    for name in given:
        if why := unused(command, config, name):
            raise ConfigError(why)
    r = config.rollout
    if r.lag and not config.cluster.used and (not r.workers or r.inference == "central"):
        raise ConfigError(
            "rollout.lag = 1 lets workers act while this process trains the policy, so they need copies of it: give "
            "--workers N and --rollout.inference=local, or --cluster"
        )
    alone = not r.workers and not config.cluster.used
    if uses(command, config, "rollout.inference") and r.inference == "central" and alone:
        raise ConfigError(
            "rollout.inference = central has no effect without workers, for the policy acts in this process: give "
            "--workers N, or --rollout.inference=local"
        )


def refuse_unused_stages(
    config: Config, given: Iterable[str], *, base: bool, targets: bool, others: bool = True
) -> None:
    """Raise `ConfigError` for a setting of a supervised stage that there will not be.

    Args:
        config: whose policy's kind has the stages.
        given: dotted names from the command line.
        base: there is a base policy, so only fine-tuning is done.
        targets: there are target tasks, so fine-tuning is done.
        others: there are demonstrations of other tasks than these.
    """
    for name in given:
        if why := stage_is_missing(config, name, base=base, targets=targets, others=others):
            raise ConfigError(f"{name} has no effect: {why}; leave it out")


def refuse_without_base(config: Config, given: Iterable[str]) -> None:
    """Raise `ConfigError` for a setting of what a loaded policy is given, where there is none; see
    `PolicyKind.further`."""
    for name in given:
        if name in _policy(config.policy.FURTHER):
            raise ConfigError(f"{name} has no effect on a new policy: leave it out, or give --base")


def _not_given(command: str, config: Config, policy: PostTrainable) -> tuple[str, ...]:
    """Dotted names of settings of what supervised training gives a loaded policy, and did not give this one."""
    own = made_with(policy)
    lacking = [name for name in config.policy.FURTHER if name in own and own[name] is None]
    return _policy(lacking) if command == "sft" else ()


def refuse_not_given(config: Config, policy: PostTrainable, given: Iterable[str]) -> None:
    """Raise `ConfigError` for a setting of what a base is given to be trained further, where it learns without.

    Args:
        config: of supervised training.
        policy: the base, with what its kind gives it; see `PolicyKind.further`.
        given: dotted names from the command line.
    """
    for name in given:
        if name in _not_given("sft", config, policy):
            raise ConfigError(
                f"{name} has no effect: the base holds all its weights and is trained whole; leave it out"
            )


def stage_is_missing(config: Config, name: str, *, base: bool, targets: bool, others: bool = True) -> str:
    """Why a setting is of a supervised stage, or a part of one, that there will not be; empty when it is not. See
    `refuse_unused_stages`."""
    section, _, inner = name.rpartition(".")
    if not targets and name == "demos.target":
        return "there is no target task to fine-tune toward"
    return config.sft.missing(inner, base=base, targets=targets, others=others) if section == "sft" else ""


# ------------------------------------------------------------------ what a policy has decided


def settled(
    config: Config,
    policy: PostTrainable,
    asked: Collection[str],
    whose: str = "the policy",
    sections: Sequence[str] = ("policy",),
) -> Config:
    """The configuration with what the policy has in place of what nobody asked for.

    Args:
        config: of a run that begins with the policy.
        policy: whose kind, size, chunk, ... are what they are.
        asked: dotted names; see `asked_for`.
        whose: the policy, in words.
        sections: that its kind brings, of those that count: "policy", "sft".

    Raises:
        ConfigError: a setting was asked for that its kind does not have, or that cannot be changed any more; names
            each, and the policy's own value.
    """
    config = _of_its_kind(config, policy, asked, whose, sections)
    if kind_of(policy) != config.policy.kind:  # a kind that is known to its script alone
        return config
    own, wanted = made_with(policy), config.policy.values() | config.policy.decided()
    refused, changes, built = [], {}, True
    for name in dict.fromkeys((*config.policy.BUILT, *(name for name in own if name in wanted))):
        if wanted[name] == own.get(name):
            continue
        if own.get(name) is None and name in config.policy.FURTHER:
            continue  # it may be given one
        if f"policy.{name}" in asked:
            has = "no such setting" if own.get(name) is None else f"{name} = {_word(own[name])}"
            refused.append(f"policy.{name} = {_word(wanted[name])} ({whose} has {has})")
            built = built and name in config.policy.BUILT
        elif own.get(name) is not None:
            changes[name] = own[name]
    if refused:
        how = "train a policy with it (`ript sft`" + (" without --base)" if "sft" in sections else ")")
        if not built:
            how = (
                "start from another policy: the one that a run began with is in its start/, and one that was imported "
                "can be imported again with other options"
            )
        raise ConfigError(f"{'; '.join(refused)}: cannot be changed any more; leave it out, or {how}")
    return replace(config, policy=replace(config.policy, **changes))


def _of_its_kind(
    config: Config, policy: PostTrainable, asked: Collection[str], whose: str, sections: Sequence[str]
) -> Config:
    """The configuration with the settings of the policy's kind in place of those of another one."""
    kind = kind_of(policy)
    if kind == config.policy.kind:
        return config
    known = kind is not None and kind in kinds
    options = policy_options(str(kind)) if known else None
    training = training_options(str(kind)) if known else None
    refused: list[str] = []
    kept: dict[str, dict[str, Any]] = {"policy": {}, "sft": {}}
    for name in sorted(asked):
        section, _, inner = name.rpartition(".")
        theirs = {"policy": options, "sft": training}.get(section)
        if section not in sections or name == "policy.kind":
            continue
        if theirs is None or inner not in type(theirs).model_fields:
            refused.append(f"{name} ({whose} is of kind {kind}, which has no such setting)")
        else:
            kept[section][inner] = getattr(getattr(config, section), inner)
    if "policy.kind" in asked:
        refused.insert(0, f"policy.kind = {config.policy.kind} ({whose} is of kind {kind})")
    if refused:
        raise ConfigError(f"{'; '.join(refused)}: leave it out")
    if options is None or training is None:
        return config
    return replace(config, policy=replace(options, **kept["policy"]), sft=replace(training, **kept["sft"]))


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def measured(config: Config, policy: PostTrainable, asked: Collection[str]) -> Config:
    """The configuration with the horizon that the policy was measured with before, when nobody asked for another."""
    horizon = horizon_in(policy.card)
    if not horizon or ("sim.horizon" in asked and config.sim.horizon):  # 0: as it was measured
        return config
    return replace(config, sim=replace(config.sim, horizon=horizon))


def within(config: Config, demonstrated: Mapping[str, Collection[int]]) -> Config:
    """The configuration with the horizon that demonstrations were collected with, unless it says one.

    Args:
        config: of supervised training.
        demonstrated: task key -> horizons that its demonstrations were collected with, of the tasks without a horizon
            of their own.

    Raises:
        ConfigError: there are several.
    """
    steps = sorted({horizon for of_task in demonstrated.values() for horizon in of_task})
    if config.sim.horizon or not steps:
        return config
    if len(steps) > 1:
        raise ConfigError(
            f"sim.horizon: {', '.join(demonstrated)} has no horizon of its own, and the demonstrations were collected "
            f"with {' and '.join(map(str, steps))}: say which counts (--sim.horizon={steps[-1]})"
        )
    return replace(config, sim=replace(config.sim, horizon=steps[0]))


def another_horizon(horizon: int, known: Collection[int], whose: str) -> str:
    """What to say where episodes have another horizon than was known before; empty where they have not.

    Args:
        horizon: of the episodes; 0: each task's own.
        known: horizons that it is beside; none, or 0, where nothing is known.
        whose: they are, in words.
    """
    others = sorted(steps for steps in set(known) if steps not in (0, horizon))
    if not horizon or not others:
        return ""
    return (
        f"episodes end after {horizon} steps, and {whose} {' and '.join(map(str, others))}: success rates within other "
        "numbers of steps are other quantities"
    )


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
                f"sim.{name} = {listed(wanted)}, but the demonstrations have {listed(value)}: leave it out, or "
                "collect others"
            )
    return replace(config, sim=replace(config.sim, **sim))


def listed(value: object) -> str:
    """A setting's value, in words."""
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else _word(value)


# ------------------------------------------------------------------ what a run records


def recorded(command: str, config: Config, policy: PostTrainable | None = None) -> Leaves:
    """The settings that have had an effect.

    Args:
        command: "rl" or "sft".
        config: settled.
        policy: when given, what it does not have is left out.
    """
    without_effect = set(idle(command, config))
    if policy is not None:
        built = made_with(policy)
        without_effect |= {f"policy.{name}" for name in config.policy.BUILT if built.get(name) is None}
        without_effect |= set(_not_given(command, config, policy))
        if kind_of(policy) != config.policy.kind:
            without_effect |= set(_policy(type(config.policy).model_fields))
    return {
        name: value
        for name, value in leaves(config.to_json()).items()
        if uses(command, config, name) and name not in without_effect
    }
