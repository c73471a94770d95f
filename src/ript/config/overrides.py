"""Command-line words that change a configuration: `--learn.epochs=2`, `--learn.epochs 2`, `--tasks reach push`.

Types come from the dataclasses of `sections`; a message names the field, what was expected and what was given.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ript.config import recipes
from ript.config.sections import Config
from ript.core.documents import toml_value
from ript.core.errors import ConfigError, DataError, UnknownNameError
from ript.core.files import read_text

SHORT = {"workers": "rollout.workers"}
"""Names that stand for a field of a section."""

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def fields() -> dict[str, Any]:
    """Every field by its dotted name -> its type."""
    known: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            known |= {f"{name}.{inner}": kind for inner, kind in typing.get_type_hints(hint).items()}
        else:
            known[name] = hint
    return known


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
    expected = _expected(hint)
    got = " ".join(words)
    wrong = ConfigError(
        f"{name}: expected {expected}, got {got!r}" if words else f"{name}: expected {expected}, got nothing"
    )
    if typing.get_origin(hint) is tuple:
        return tuple(part.strip() for word in words for part in word.split(",") if part.strip())
    if hint is bool:
        if not words or got.lower() in _TRUE:
            return True
        if got.lower() in _FALSE:
            return False
        raise wrong
    if len(words) != 1:
        raise wrong
    if typing.get_origin(hint) is Literal:
        if got not in typing.get_args(hint):
            raise wrong
        return got
    try:
        value = hint(got)
    except ValueError:
        raise wrong from None
    if isinstance(value, float) and not math.isfinite(value):
        raise wrong
    return value


def apply(config: Config, given: Mapping[str, Sequence[str]]) -> Config:
    """The configuration with other values; contradictions are judged when all of them are in.

    Args:
        config: a recipe.
        given: field (or a name of `SHORT`) -> words, as from `split_words`.

    Raises:
        UnknownNameError: no such field; the nearest are suggested.
        ConfigError: a value that cannot be.
    """
    known = fields()
    data = config.to_json()
    for name, words in given.items():
        name = SHORT.get(name, name)
        if name not in known:
            raise UnknownNameError("option or field", name, known)
        value = parse_value(name, known[name], words)
        section, _, inner = name.rpartition(".")
        (data[section] if section else data)[inner] = value
    return Config.from_json(data)


def load_recipe(name: str) -> Config:
    """A recipe by its name, or from a TOML file as `ript recipes NAME` prints it.

    Raises:
        UnknownNameError: no such recipe, or no such field in the file.
        DataError: the file is missing or not TOML.
        ConfigError: a value in the file that cannot be.
    """
    if not name.endswith(".toml"):
        return recipes.get(name)
    try:
        data = toml_value(read_text(name))
    except FileNotFoundError as error:
        raise DataError(f"{name}: {error.strerror}; `ript recipes NAME > {name}` makes such a file") from error
    except ValueError as error:
        raise DataError(f"{name} is not a TOML document: {error}") from error
    if not data:
        raise DataError(f"{name} is empty: it holds no setting; `ript recipes NAME > {name}` makes such a file")
    return Config.from_json(data)


def _expected(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(typing.get_args(hint))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "one word")
