"""What the commands share: from arguments to a configuration, and what is said when one is stopped."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ript.config import overrides, recipes
from ript.config.sections import Config
from ript.core.errors import ConfigError, DependencyMissing, RiptError, UnknownNameError
from ript.core.interpreter import as_typed
from ript.core.memory import ran_out
from ript.core.options import SimOptions, replace
from ript.core.registry import suites
from ript.run.settings import refuse_unused


def given_fields(args: Namespace) -> dict[str, list[str]]:
    """Dotted name -> words, of the settings that were given."""
    given = overrides.split_words(args.rest)
    for name, value in vars(args).items():
        if name.startswith("field_") and value is not None:
            given[name.removeprefix("field_")] = value if isinstance(value, list) else [value]
    given = {overrides.SHORT.get(name, name): words for name, words in given.items()}
    return _suite_of_tasks([*given.get("tasks", []), *(getattr(args, "tasks", None) or [])], args) | given


def _suite_of_tasks(words: Sequence[str], args: Namespace) -> dict[str, list[str]]:
    """The suite that tasks name, "gym/FetchReach-v4", as a setting; or, of tasks that the recipe's suite does not have,
    the only one that lists them; nothing where there is none.

    Raises:
        ConfigError: they name several.
    """
    parts = [part.strip() for word in words for part in word.split(",") if part.strip()]
    named = {part.partition("/")[0] for part in parts if "/" in part} & set(suites.names())
    if len(named) > 1:
        raise ConfigError(f"tasks of several suites ({', '.join(sorted(named))}): name those of one")
    from ript.sims.registry import listing_suites

    recipe = getattr(args, "recipe", None)
    if parts and not named and recipe and not _has(overrides.load_recipe(recipe).sim.suite, parts):
        having = [name for name, suite in listing_suites()[0].items() if suite.lists_all(parts)]
        named = set(having) if len(having) == 1 else set()
    return {"sim.suite": [*named]} if named else {}


def _start(args: Namespace) -> str | None:
    """The policy that a command begins with; None: a new one."""
    return getattr(args, "policy", None) or getattr(args, "base", None)


def _require_suite_of_demos(args: Namespace) -> None:
    """Raise unless the suite is here that the demonstrations of a command are of, as far as that can be read."""
    from ript.demos.demo_set import open_demos

    try:
        suite = open_demos(getattr(args, "demos", None) or []).spec.suite
    except RiptError:  # said when it is their turn
        return
    suites.get(suite)


def _kind_of_start(args: Namespace, given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The kind of the policy that a command begins with, as a setting, where settings of a kind were given: they are
    that kind's own.

    Raises:
        PolicyError: there is no policy.
    """
    start = _start(args)
    if not start or not any(name.startswith(("policy.", "sft.")) for name in given):
        return {}
    from ript.policies.loading import kind_in

    return {"policy.kind": [kind_in(start)]}


def _has(suite: str, names: Sequence[str]) -> bool:
    try:
        return bool(suites.get(suite).expanded(names))
    except UnknownNameError:
        return False


def asked_fields(args: Namespace) -> set[str]:
    """Dotted names of the settings that were asked for: given, or said by a recipe file of a user's own."""
    return {*given_fields(args), *overrides.said_in(args.recipe)}


def configure(args: Namespace) -> Config:
    """The recipe with what was given for its fields; names of tasks are the simulator's own.

    Raises:
        ConfigError: a setting was given that has no effect in this command.
        UnknownNameError: no such task; or the suite is not here of the policy that it begins with, which is said first.
    """
    given, start = given_fields(args), _start(args)
    if start:
        from ript.policies.loading import require_suite

        require_suite(start)
    config = overrides.apply(overrides.load_recipe(args.recipe), _kind_of_start(args, given) | given)
    if "tasks" in given:
        try:
            config = recipes.with_tasks(config, task_names(config.sim, config.tasks))
        except UnknownNameError:
            _require_suite_of_demos(args)
            raise
    refuse_unused(args.run.replace("_", " "), config, given)
    return config


def resumed(args: Namespace, command: str) -> tuple[Config, dict[str, list[str]]]:
    """The configuration of a run that goes on, with the given settings in the place of its own; and these settings.

    Raises:
        ConfigError: a setting was given that has no effect in this command.
    """
    from ript.run.reading import read_config

    given = given_fields(args)
    if not given:
        return Config(), given
    held = read_config(args.resume, to_resume=True)
    config = overrides.apply(Config.from_record(held["config"].get("recipe_config", {})), given)
    if "tasks" in given:
        config = replace(config, tasks=task_names(config.sim, config.tasks))
    refuse_unused(command, config, given)
    return config, given


def task_names(sim: SimOptions, words: Sequence[str]) -> tuple[str, ...]:
    """Task names of the suite from names, keys, comma-separated lists and named lists.

    Raises:
        UnknownNameError: no such task; the nearest are suggested.
    """
    from ript.build import task_keys

    parts = tuple(part.strip() for word in words for part in word.split(",") if part.strip())
    return tuple(key.partition("/")[2] for key in task_keys(sim, parts))


def steps_or_protocol(suite: str, word: str | None) -> dict[str, Any]:
    """What `evaluate` takes for a number of steps, or for the name of one of the suite's protocols.

    Raises:
        UnknownNameError: neither.
    """
    if word is None or re.fullmatch(r"-?\d{1,18}", word, re.ASCII):
        return {"horizon": None if word is None else int(word)}
    protocols = suites.get(suite).protocols
    if not protocols:
        raise ConfigError(f"--horizon: expected a number of steps, got {word!r}; suite {suite} has no protocols")
    if word not in protocols:
        raise UnknownNameError(f"number of steps or protocol of suite {suite}", word, protocols)
    return {"protocol": word}


def require(args: Namespace, *names: str) -> None:
    missing = [f"--{name}" for name in names if not getattr(args, name)]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} needed (or --resume DIR; see --help)")


def refuse_with_resume(args: Namespace, *names: str) -> None:
    given = [f"--{name}" for name in ("recipe", "out", *names) if getattr(args, name)]
    if given:
        raise ConfigError(f"--resume goes on with the run's own configuration; leave out {' '.join(given)}")


def kept_of_run(folder: str | Path, command: str) -> str:
    """What an interrupted run leaves behind, and how to go on with it."""
    if not (Path(folder) / "config.json").exists():
        return "nothing was written"
    return f"checkpoints are in {folder}; go on with: {as_typed(command, '--resume', folder)}"


@contextmanager
def saying_what_is_kept(kept: Any) -> Iterator[None]:
    """Ctrl-C (or SIGTERM) inside says what was kept and how to go on: a sentence, or a function that makes it then.

    So does memory that runs out.
    """
    try:
        yield
    except BaseException as stop:
        if isinstance(stop, KeyboardInterrupt | SystemExit) or ran_out(stop):
            stop.add_note(kept() if callable(kept) else kept)
        raise


def need_a_working_machine(folder: Path, configs: Sequence[Config], *, needs_cache: Callable[[], bool]) -> None:
    """Raise `DependencyMissing`, saying what to do, unless everything that runs of these configurations need is here.

    Args:
        folder: where results will be written.
        configs: of one suite.
        needs_cache: whether something is to be written into the cache; asked where that cannot be.
    """
    from ript.build import language_of
    from ript.cli.doctor import doctor as examine
    from ript.run.progress import status

    status("checking this machine")
    needed = {
        "cache": needs_cache,
        "language model": lambda: any(language_of(config) == "minilm" for config in configs),
        "video encoder": lambda: any(config.eval.videos for config in configs),
    }
    missing = [
        check
        for check in examine(folder, configs[0].sim.suite)
        if check.required and not check.ok and needed.get(check.name, lambda: True)()
    ]
    if missing:
        listed = "; ".join(f"{c.name}: {c.detail}{f' ({c.remedy})' if c.remedy else ''}" for c in missing)
        raise DependencyMissing(f"this machine is not ready: {listed}; `ript doctor` says more")
