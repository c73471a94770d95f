"""What settings are made of: frozen records that pydantic validates when they are made, and says in our words.

Every field has a meaning and, where it needs one, a range: `horizon: int = Field(0, ge=0, description="...")`. A record
that cannot be raises `ConfigError` naming the field by its dotted name, the value and what was expected.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ript.core.errors import ConfigError, UnknownNameError

S = TypeVar("S", bound="Settings")

Words = Annotated[tuple[str, ...], Field(strict=False)]
"""A tuple of words, made of a list as well: JSON and TOML have no tuples."""

Pixels = Annotated[int, Field(ge=8, le=1024)]
Size = Pixels | Annotated[tuple[Pixels, Pixels], Field(strict=False)]
"""Of a picture: one number, or height and width."""


class Settings(BaseModel):
    """Base of every group of settings: nothing can be changed, and nothing given that there is not.

    A subclass sets `SECTION`, where its fields stand in a configuration ("sim": `sim.horizon`); "" is the top.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    SECTION: ClassVar[str] = ""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise translated(type(self), error) from None

    def replaced(self: S, **changes: Any) -> S:
        """The same settings with other values of some fields, validated again.

        Raises:
            UnknownNameError: no such field.
            ConfigError: a value that cannot be.
        """
        return type(self)(**{**self.values(), **changes})

    def values(self) -> dict[str, Any]:
        """Field -> value, as it is: groups of settings stay records."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def to_json(self) -> dict[str, Any]:
        """Plain values, as JSON has them: lists for tuples."""
        return json.loads(self.model_dump_json())

    @classmethod
    def meaning(cls, name: str) -> str:
        """What a field means."""
        return cls.model_fields[name].description or ""

    @classmethod
    def named(cls, name: str) -> str:
        """The dotted name of a field."""
        return f"{cls.SECTION}.{name}" if cls.SECTION else name


def need(ok: bool, where: str, what: str) -> None:
    """Raise `ConfigError` unless all is well.

    Args:
        ok: whether it is.
        where: dotted name of the field.
        what: was expected, and what is there instead.
    """
    if not ok:
        raise ConfigError(f"{where}: {what}")


def translated(kind: type[Settings], error: ValidationError) -> ConfigError:
    """The first thing that pydantic found, as an error of ours."""
    found = error.errors(include_url=False)[0]
    name, value = str(found["loc"][0]) if found["loc"] else "", found.get("input")
    if found["type"] == "extra_forbidden":
        return UnknownNameError(f"field of {kind.SECTION or 'config'}", name, kind.model_fields)
    where, field = kind.named(name), kind.model_fields.get(name)
    if field is None:
        return ConfigError(f"{where or kind.__name__}: {found['msg']}, got {value!r}")
    if found["type"] == "missing":
        return ConfigError(f"{where}: is needed: {field.description}")
    if found["type"] == "finite_number":
        return ConfigError(f"{where}: must be a finite number, got {value}")
    if found["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return ConfigError(f"{where}: must be {_range(field, found.get('ctx', {}))}, got {value}")
    hint = field.annotation
    if typing.get_origin(hint) is Literal:
        return ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, typing.get_args(hint)))}")
    return ConfigError(f"{where}: expected {_kind_of(hint)}, got {value!r}")


def _range(field: FieldInfo, passed: Mapping[str, Any]) -> str:
    """What a field's numbers must be, from its bounds (or the one that was passed): "in 0..1", "at least 0"."""
    bounds = {
        name: getattr(bound, name)
        for bound in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(bound, name, None) is not None
    } or passed
    if bounds.keys() == {"ge", "le"}:
        return f"in {bounds['ge']}..{bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {value}" for name, value in bounds.items())


def _kind_of(hint: Any) -> str:
    if typing.get_origin(hint) is tuple and str in typing.get_args(hint):
        return "a list of words"
    if isinstance(hint, type):
        return "fields" if issubclass(hint, Settings) else hint.__name__
    return str(hint)


class SimOptions(Settings):
    """What every suite's simulators can be told. A suite brings a subclass with settings of its own."""

    SECTION: ClassVar[str] = "sim"

    suite: str = Field(description="Simulator suite, by name (`ript doctor` lists those that are here).")
    horizon: int = Field(
        0,
        ge=0,
        le=10**6,
        description="Environment steps after which a rollout without success is a failure; 0: as the policy was "
        "measured before, or else as the suite says of the task.",
    )
