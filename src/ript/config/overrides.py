"""Command-line words that change a configuration: `--learn.epochs=2`, `--learn.epochs 2`, `--tasks reach push`.

Types come from the settings themselves; a message names the field, what was expected and what was given.
"""

from __future__ import annotations

import math
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ript.config import recipes
from ript.config.earlier import RENAMED
from ript.config.sections import Config, policy_options, sim_options, training_options
from ript.core.documents import toml_value
from ript.core.errors import ConfigError, DataError, UnknownNameError
from ript.core.files import read_text
from ript.core.options import Settings, SimOptions

SHORT = {"workers": "rollout.workers", "cluster": "cluster.address", "source": "demos.source"}
"""Names that stand for a field of a section."""

_SUITE, _KIND = "sim.suite", "policy.kind"
"""They say whose settings `sim` are, and `policy` and `sft`."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def fields(config: Config) -> dict[str, Any]:
    """Every field by its dotted name -> its type."""
    known: dict[str, Any] = {}
    for name, value in config.values().items():
        if isinstance(value, Settings):
            known |= {f"{name}.{inner}": field.annotation for inner, field in type(value).model_fields.items()}
        else:
            known[name] = Config.model_fields[name].annotation
    return known | dict.fromkeys((_SUITE, _KIND), str)


def split_words(words: Sequence[str]) -> dict[str, list[str]]:
    """`["--a.b=1", "--c", "x", "y"]` -> `{"a.b": ["1"], "c": ["x", "y"]}`; of an option given twice the last counts.

    Raises:
        ConfigError: a word that belongs to no option.
    """
    found: dict[str, list[str]] = {}
    taking: list[str] | None = None
    for word in words:
        if word.startswith("--") and word != "--":
            name, equals, value = word[2:].partition("=")
            values = [value] if equals else []
            found[name.replace("-", "_")] = values
            taking = None if equals else values
        elif taking is None:
            raise ConfigError(f"{word!r} belongs to no option: write --section.field=value")
        else:
            taking.append(word)
    return found


def parse_value(name: str, hint: Any, words: Sequence[str]) -> Any:
    """The value of a field from the words given for it.

    Raises:
        ConfigError: names the field, what is expected and what was given.
    """
    got = " ".join(words)
    try:
        return _value(hint, words, got)
    except ValueError:
        given = repr(got) if words else "nothing"
        raise ConfigError(f"{name}: expected {_expected(hint)}, got {given}") from None


def _value(hint: Any, words: Sequence[str], got: str) -> Any:
    """Raises `ValueError` for words that the type does not have."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        return _value(parts[0], words, got)
    if kind is tuple:
        values = tuple(part.strip() for word in words for part in word.split(",") if part.strip())
        if parts[-1] is Ellipsis:
            return values
        return tuple(_value(part, [value], value) for part, value in zip(parts, values, strict=True))
    if kind in (types.UnionType, typing.Union):
        for part in parts[:-1]:
            try:
                return _value(part, words, got)
            except ValueError:
                continue
        return _value(parts[-1], words, got)
    if hint is bool and (not words or got.lower() in (*_TRUE, *_FALSE)):
        return not words or got.lower() in _TRUE
    if hint is bool or len(words) != 1 or (kind is Literal and got not in parts):
        raise ValueError(got)
    value = got if kind is Literal else hint(got)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(got)
    return value


def apply(config: Config, given: Mapping[str, Sequence[str]]) -> Config:
    """The configuration with other values; contradictions are judged when all of them are in.

    Another suite, or another kind of policy, begins with its own defaults.

    Args:
        config: a recipe.
        given: field (or a name of `SHORT`) -> words, as from `split_words`.

    Raises:
        UnknownNameError: no such field; the nearest are suggested.
        ConfigError: a value that cannot be.
    """
    given = {SHORT.get(name, RENAMED.get(name, name)): words for name, words in given.items()}
    config = _of_other_names(config, given)
    known = fields(config)
    changed: dict[str, dict[str, Any]] = {}
    for name, words in given.items():
        if name not in known:
            raise _unknown(config, name, known)
        section, _, inner = name.rpartition(".")
        changed.setdefault(section, {})[inner] = parse_value(name, known[name], words)
    plain = changed.pop("", {})
    sections = {section: getattr(config, section).replaced(**values) for section, values in changed.items()}
    return config.replaced(**sections, **plain)


def of_simulators(suite: str, given: Mapping[str, Sequence[str]]) -> SimOptions:
    """The settings of a suite's simulators with other values, for commands that need nothing else.

    Args:
        suite: its name.
        given: "sim.NAME" -> words, as from `split_words`.

    Raises:
        UnknownNameError: no such suite or setting; the nearest are suggested.
        ConfigError: a value that cannot be.
    """
    options, changed = sim_options(suite), {}
    known = {f"sim.{name}": field.annotation for name, field in type(options).model_fields.items()}
    for name, words in given.items():
        if (name := RENAMED.get(name, name)) not in known:
            raise UnknownNameError(f"setting of simulators of suite {suite}", name, known)
        changed[name.removeprefix("sim.")] = parse_value(name, known[name], words)
    return options.replaced(**changed)


def _of_other_names(config: Config, given: Mapping[str, Sequence[str]]) -> Config:
    suite, kind = (parse_value(name, str, given[name]) if name in given else None for name in (_SUITE, _KIND))
    if suite not in (None, config.sim.suite):
        config = config.replaced(sim=sim_options(suite))
    if kind not in (None, config.policy.kind):
        config = config.replaced(policy=policy_options(kind), sft=training_options(kind))
    return config


def _unknown(config: Config, name: str, known: Mapping[str, Any]) -> UnknownNameError:
    """The error for a field that there is not. For a section that a suite or a kind brings, its own settings alone are
    suggested."""
    whose = {"sim": f"simulators of suite {config.sim.suite}", "policy": f"policies of kind {config.policy.kind}"}
    whose["sft"] = f"the supervised training of {whose['policy']}"
    section = name.partition(".")[0]
    if "." in name and section in whose:
        own = [other for other in known if other.startswith(f"{section}.")]
        return UnknownNameError(f"setting of {whose[section]}", name, own)
    return UnknownNameError("option or field", name, known)


def said_in(name: str) -> set[str]:
    """What a recipe file of a user's own says of simulator and policy, by dotted names: it was asked for, as if it had
    been given on the command line.

    Nothing of a recipe here, nor of a file that keeps the name of one: there it counts what is said otherwise. And no
    0, which leaves a setting to what decides it elsewhere.

    Raises:
        DataError: as `load_recipe`.
    """
    if not name.endswith(".toml") or (data := _read(name)).get("recipe") in recipes.RECIPES:
        return set()
    return {
        f"{section}.{field}"
        for section in ("sim", "policy")
        for field, value in data.get(section, {}).items()
        if value is False or value not in (0, "", [])
    }


def load_recipe(name: str) -> Config:
    """A recipe by its name, or from a TOML file as `ript recipes NAME` prints it.

    Raises:
        UnknownNameError: no such recipe, or no such field in the file.
        DataError: the file is missing or not TOML.
        ConfigError: a value in the file that cannot be; or another file.
    """
    if name not in recipes.RECIPES and not name.endswith(".toml") and Path(name).exists():
        raise ConfigError(
            f"--recipe {name}: a recipe is a name (`ript recipes` lists them) or a .toml file (`ript recipes NAME` "
            "prints one); a run goes on with --resume"
        )
    if not name.endswith(".toml"):
        return recipes.get(name)
    try:
        return Config.from_json(_read(name))
    except UnknownNameError as error:
        remedy = "take it out, if an earlier version of ript printed it there"
        raise UnknownNameError(f"{error.kind} in {name}", error.name, error.known, remedy) from error


def _read(name: str) -> dict[str, Any]:
    remedy = f"`ript recipes NAME > {shlex.quote(name)}` makes such a file"
    try:
        data = toml_value(read_text(name))
    except FileNotFoundError as error:
        raise DataError(f"{name}: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise DataError(f"{name} is not a TOML document: {error}") from error
    if not data:
        raise DataError(f"{name} is empty: it holds no setting; {remedy}")
    return data


def _expected(hint: Any) -> str:
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        return _expected(parts[0])
    if kind is Literal:
        return "one of " + ", ".join(parts)
    if kind in (types.UnionType, typing.Union):
        return " or ".join(map(_expected, parts))
    if kind is tuple:
        return "words" if parts[-1] is Ellipsis else f"{len(parts)} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "one word")
