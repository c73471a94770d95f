"""What may be other when a run goes on than when it began, and what a finished run did otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ript.config import recipes
from ript.config.sections import Config
from ript.core.errors import ConfigError, RunError
from ript.run.settings import Leaves, among, leaves, listed, recorded

NEUTRAL = ("tracker", "rollout.", "cluster.")
"""Settings, or sections, that results do not depend on."""
BINDING = ("rollout.lag", "rollout.ahead")
"""Settings of those sections on which results do depend."""
FREE: dict[str, tuple[str, ...]] = {
    "rl": ("iterations", "learn.ranks", *NEUTRAL),
    "sft": ("tracker", "sft.checkpoint_every", "learn.ranks", "cluster."),
}
"""Command -> the settings, or sections, that may be others when its run goes on."""


def refuse_changes(
    command: str, held: Mapping[str, Any], now: Mapping[str, Any], given: Collection[str] = ()
) -> Leaves:
    """What is another setting when a run goes on.

    Args:
        command: "rl" or "sft".
        held: the run's own settings, as its config.json has them.
        now: what is wanted, by dotted names.
        given: those of them that somebody gave by name; without any, all are wanted alike. A setting that the record
            does not hold had no effect, or is younger than the run: it keeps its default, and another value is refused
            where it was given; one that may be another is so only where it was given.

    Returns:
        name -> new value, of those that may change.

    Raises:
        ConfigError: names each setting that may not.
    """
    before = leaves(held)
    may = (*FREE[command], "recipe")
    missing = object()  # what had no effect is not in the record, and may have one now
    defaults = leaves(Config.from_record(held).to_json())
    before = {name: defaults[name] for name in given if name in defaults and not _may(may, name)} | before
    changed = {
        name: value
        for name, value in now.items()
        if before.get(name, missing) != value and (name in before or (_may(may, name) and (not given or name in given)))
    }
    fixed = [
        f"{name} = {listed(value)} (the run has {listed(before[name])})"
        for name, value in changed.items()
        if not _may(may, name)
    ]
    if fixed:
        free = ", ".join(f"{name}*" if name.endswith(".") else name for name in FREE[command])
        free += f" (but not {' or '.join(BINDING)})" if "rollout." in FREE[command] else ""
        raise ConfigError(
            f"a run goes on with its own settings, and these are others: {'; '.join(fixed)}. Leave them out, or begin "
            f"a new run with another --out; only {free} may change"
        )
    return {name: value for name, value in changed.items() if name != "recipe"}


def without_cluster(config: Config, changed: Mapping[str, Any], held: Mapping[str, Any]) -> Leaves:
    """What changes further when a run leaves its cluster: there are no ranks then, and workers as in its recipe.

    Args:
        config: with what changed.
        changed: what was asked for, by dotted names.
        held: the run's own settings, as its config.json has them.
    """
    before, more = leaves(held), {}
    if config.cluster.used or not Config.from_record(held).cluster.used:
        return {}
    if config.learn.ranks and "learn.ranks" not in changed:
        more["learn.ranks"] = 0
    if not {"rollout.workers"} & {*before, *changed} and config.recipe in recipes.RECIPES:
        more["rollout.workers"] = recipes.get(config.recipe).rollout.workers
    return more


def refuse_other_code(held: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raise `RunError` when a file of a user's own, which a run is made of, is another than it began with.

    Args:
        held: what its config.json says; a record of an earlier version says nothing of code.
        now: module -> digest of its file.
    """
    changed = [name for name, digest in held.get("code", {}).items() if now.get(name, digest) != digest]
    if changed:
        are = "are other files" if len(changed) > 1 else "is another file"
        raise RunError(
            f"a run goes on with the code that it began with, and {', '.join(changed)} {are} now: put back what was "
            "there, or begin a new run with another --out (ript rl --policy takes the policy that this one has reached)"
        )


def refuse_other_content(held: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Raise `RunError` when what a run goes on with is other than what it began with.

    Args:
        held: what its config.json says; a record of an earlier version says nothing of content.
        now: entry of the record -> what is there now.
    """
    changed = [name for name, content in now.items() if held.get(name, content) != content]
    if changed:
        what = "; ".join(f"{_CONTENT[name]} ({now[name] or 'none'}, the run has {held[name]})" for name in changed)
        raise RunError(
            f"a run goes on with what it began with, and {what}: put the files back, or begin a new run with another "
            "--out"
        )


_CONTENT = {
    "demos_content": "the demonstrations are others",
    "states_content": "the initial states of sampling.demos are others",
    "base_content": "the base is another",
    "start_content": "the policy is another",
}
"""Entry of a run's record -> what is wrong when it has changed."""


def neutral(name: str) -> bool:
    """Whether results do not depend on a setting."""
    return _may(NEUTRAL, name)


def _may(names: Collection[str], name: str) -> bool:
    """Whether a setting is one of these, or in one of these sections, and does not bind."""
    return among(names, name) and name not in BINDING


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
        if ours.get(name) != value and not _may((*NEUTRAL, "recipe", "sft.checkpoint_every", "sampling.demos"), name)
    ]
