"""What settings are made of: frozen records that pydantic validates when they are made, and says in our words.

Every field has a meaning and, where it needs one, a range: `horizon: int = Field(0, ge=0, description="...")`. A record
that cannot be raises `ConfigError` naming the field by its dotted name, the value and what was expected.
"""

from __future__ import annotations

import dataclasses
import json
import typing
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from ript.core.errors import ConfigError, UnknownNameError
from ript.core.types import Task

R = TypeVar("R")
S = TypeVar("S", bound="Settings")

Words = Annotated[tuple[str, ...], Field(strict=False)]
"""A tuple of words, made of a list as well: JSON and TOML have no tuples."""

MOST_SEEDS = 2**63 - 1
"""Random generators take no larger seed."""
Pixels = Annotated[int, Field(ge=8, le=1024)]
Size = Pixels | Annotated[tuple[Pixels, Pixels], Field(strict=False)]
"""The size of a picture in pixels: one number, or height and width."""


class Settings(BaseModel):
    """Base of every group of settings: nothing can be changed, and nothing given that there is not.

    Attributes:
        ABOUT: one line of what they are about; without it the docstring's first, which `python -OO` does not have.
        SECTION: where they stand in a configuration ("sim": `sim.horizon`); "" is the top.
        OVERRULED: field -> another one that decides in its place unless that is 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    ABOUT: ClassVar[str] = ""
    SECTION: ClassVar[str] = ""
    OVERRULED: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "ABOUT" not in cls.__dict__ and cls.__doc__:
            cls.ABOUT = cls.__doc__.partition("\n")[0]
        cls.__doc__ = cls.__doc__ or cls.ABOUT

    def __init__(self, **given: Any) -> None:
        given = {name: _plain(value) for name, value in given.items()}
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise translated(type(self), given, error) from None

    def replaced(self: S, **changes: Any) -> S:
        """The same settings with other values of some fields, validated again.

        Raises:
            UnknownNameError: no such field.
            ConfigError: a value that cannot be.
        """
        return type(self)(**{**self.values(), **changes})

    __replace__ = replaced  # of `copy.replace`, from Python 3.13 on

    def values(self) -> dict[str, Any]:
        """Field -> value, as it is: groups of settings stay records."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def to_json(self) -> dict[str, Any]:
        """Plain values, as JSON has them: lists for tuples."""
        return json.loads(self.model_dump_json())

    def idle(self) -> dict[str, str]:
        """Fields that change nothing beside the others -> why, and the remedy."""
        return {
            name: f" while {self.named(by)} = {value:g} decides: leave it out, or give --{self.named(by)}=0"
            for name, by in self.OVERRULED.items()
            if (value := getattr(self, by))
        }

    @classmethod
    def meaning(cls, name: str) -> str:
        """What a field means."""
        return cls.model_fields[name].description or ""

    @classmethod
    def named(cls, name: str) -> str:
        """The dotted name of a field."""
        return f"{cls.SECTION}.{name}" if cls.SECTION else name


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's, which is what records hold."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 else value


def replace(record: R, **changes: Any) -> R:
    """The same record with other values of some fields: settings, validated again, or any dataclass.

    Raises:
        ConfigError: settings that cannot be.
    """
    if isinstance(record, Settings):
        return record.replaced(**changes)
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]


def need(ok: bool, where: str, what: str) -> None:
    """Raise `ConfigError` unless all is well.

    Args:
        ok: whether it is.
        where: dotted name of the field.
        what: was expected, and what is there instead.
    """
    if not ok:
        raise ConfigError(f"{where}: {what}")


def translated(kind: type[Settings], given: Mapping[str, Any], error: ValidationError) -> ConfigError:
    """The first thing that pydantic found, as an error of ours."""
    found = error.errors(include_url=False)[0]
    name = str(found["loc"][0]) if found["loc"] else ""
    value = given.get(name)
    if found["type"] == "extra_forbidden":
        whose = [f" ({who} {field.default})" for who, field in kind.model_fields.items() if who in ("suite", "kind")]
        return UnknownNameError(f"field of {kind.SECTION or 'config'}{''.join(whose)}", name, kind.model_fields)
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
        top = "2^63 - 1" if bounds["le"] == MOST_SEEDS else bounds["le"]
        return f"in {bounds['ge']}..{top}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {value}" for name, value in bounds.items())


def _kind_of(hint: Any) -> str:
    if typing.get_origin(hint) is tuple and str in typing.get_args(hint):
        return "a list of words"
    if isinstance(hint, type):
        return "fields" if issubclass(hint, Settings) else hint.__name__
    return str(hint)


_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")
"""Categories of characters that are in no line of text: control characters, halves of pairs (what was not UTF-8), and
ends of lines."""


class SimOptions(Settings):
    """What every suite's simulators can be told. A suite brings a subclass with settings of its own."""

    ABOUT: ClassVar[str] = "The simulator and what it shows."
    SECTION: ClassVar[str] = "sim"

    suite: str = Field(description="Simulator suite (`ript doctor` names those that are here).")
    horizon: int = Field(
        0,
        ge=0,
        le=10**6,
        description="Steps (actions) after which a rollout without success is a failure; 0: as the policy was "
        "measured before, or else as the suite says of the task.",
    )

    @model_validator(mode="after")
    def _is_text(self) -> Self:
        for name, value in self.values().items():
            for word in value if isinstance(value, tuple) else (value,):
                odd = isinstance(word, str) and any(unicodedata.category(letter) in _NO_TEXT for letter in word)
                need(not odd, self.named(name), f"expected a line of text, got {word!r}")
        return self

    def horizon_of(self, task: Task) -> int:
        """Steps after which a rollout of a task without success is a failure: `horizon`, or else the task's own."""
        return self.horizon or task.horizon

    if TYPE_CHECKING:  # a subclass's own, for its own code

        def __getattr__(self, name: str) -> Any: ...


class PolicyOptions(Settings):
    """What can be chosen of every policy. A kind of policy brings a subclass with settings of its own.

    Attributes:
        BUILT: fields that are decided when a policy is made, and cannot be changed any more; besides `kind`.
        DEMONSTRATED: those of them that have no effect on a policy without demonstrations.
        FURTHER: fields that supervised training of a loaded policy follows (`PolicyKind.further`), but not of a new
            one; whatever `idle` says, which is about practice.
        FURTHER_ALONE: those of them that nothing else follows.
    """

    ABOUT: ClassVar[str] = "The policy."
    SECTION: ClassVar[str] = "policy"

    BUILT: ClassVar[tuple[str, ...]] = ()
    DEMONSTRATED: ClassVar[tuple[str, ...]] = ()
    FURTHER: ClassVar[tuple[str, ...]] = ()
    FURTHER_ALONE: ClassVar[tuple[str, ...]] = ()

    kind: str = Field(description="Kind of policy (`ript doctor` names those that are here).")

    def decided(self) -> dict[str, Any]:
        """Fields of `BUILT` -> what a policy that is made with these options has, where 0 means "as the size says"."""
        return {name: getattr(self, name) for name in self.BUILT}

    @property
    def calibrates(self) -> bool:
        """Whether a policy with these options chooses something by its own rollouts before practice."""
        return False

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class TrainingOptions(Settings):
    """What can be chosen of any supervised training. A kind of policy brings a subclass with what its stages need.

    Attributes:
        OF_BASE: names of the stages that make a policy from demonstrations of all tasks, in order. A field that is
            about a stage begins with its name: NAME_steps, NAME_learning_rate; NAME_epochs, where there is one, counts
            passes over the windows instead.
        OF_TARGETS: those that train a policy further, toward the target tasks.
        SHARED: fields that begin with a stage's name and are about others too.
        BESIDE_OTHERS: fields that have no effect when all demonstrations are of target tasks.
    """

    ABOUT: ClassVar[str] = "Supervised training."
    SECTION: ClassVar[str] = "sft"

    OF_BASE: ClassVar[tuple[str, ...]] = ()
    OF_TARGETS: ClassVar[tuple[str, ...]] = ()
    SHARED: ClassVar[tuple[str, ...]] = ()
    BESIDE_OTHERS: ClassVar[tuple[str, ...]] = ()

    weight_decay: float = Field(
        0.0001, ge=0, le=1, description="AdamW's weight decay in all stages; biases and norms have none."
    )
    max_grad_norm: float = Field(
        10.0, gt=0, description="Norm above which a gradient is scaled down to it, in all stages."
    )
    warmup: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of a stage's steps over which its learning rate rises, before a cosine takes it "
        "down to a tenth.",
    )
    threads: int = Field(
        2,
        ge=1,
        le=256,
        description="Parts of a batch worked on side by side on a CPU; torch's threads where a batch must "
        "stay whole (batch norms).",
    )
    micro_batch: int = Field(
        0,
        ge=0,
        description="Windows of a batch in one pass at most; 0: all. Changes no result beyond rounding "
        "(and, on a GPU, the draws of dropout).",
    )
    checkpoint_every: int = Field(200, ge=1, description="Steps between checkpoints.")

    @property
    def largest_pass(self) -> int:
        """Windows in the largest pass of training."""
        sizes = [getattr(self, name) for name in type(self).model_fields if name.endswith("_batch")]
        return self.micro_batch or max(sizes, default=1)

    @classmethod
    def stages(cls) -> tuple[str, ...]:
        """Names of all stages, in order."""
        return tuple(dict.fromkeys((*cls.OF_BASE, *cls.OF_TARGETS)))

    @classmethod
    def stage_of(cls, name: str) -> str | None:
        """The one stage that a field is about; None for a field that is about several."""
        if name in cls.SHARED:
            return None
        return next((stage for stage in cls.stages() if name.startswith(f"{stage}_")), None)

    def idle(self) -> dict[str, str]:
        """See `Settings.idle`: fields of stages without steps, too."""
        found = super().idle()
        for stage in self.stages():
            if not any(getattr(self, f"{stage}_{length}", 0) for length in ("steps", "epochs")):
                why = f" while {self.named(f'{stage}_steps')} = 0: leave it out"
                lengths = (f"{stage}_steps", f"{stage}_epochs")
                about = (name for name in type(self).model_fields if self.stage_of(name) == stage)
                found |= {name: why for name in about if name not in lengths}
        return found

    @classmethod
    def missing(cls, name: str, *, base: bool, targets: bool, others: bool = True) -> str:
        """Why a field is about a stage, or a part of one, that there will not be; empty when it is not.

        Args:
            name: of the field.
            base: there is a base policy, so that only the stages toward target tasks are run.
            targets: there are target tasks.
            others: there are demonstrations of other tasks than these.
        """
        stage = cls.stage_of(name)
        if base and stage is not None and stage not in cls.OF_TARGETS:
            return "a base policy keeps what it has learned"
        if not targets and stage is not None and stage not in cls.OF_BASE:
            return "there is no target task to fine-tune toward"
        if not others and name in cls.BESIDE_OTHERS:
            return "all demonstrations are of target tasks, which take every batch"
        return ""

    def stage_steps(self, *, steps: float, looks: float, target_looks: float) -> dict[str, int]:
        """Optimiser steps of each stage, for demonstrations of so many environment steps and looks in all."""
        return {stage: getattr(self, f"{stage}_steps") for stage in self.stages()}

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
