"""What suites and kinds of policies there are: found by name, imported one at a time, from folders and from packages.

A folder `sims/NAME/` with a `suite.py`, or `policies/NAME/` with a `kind.py`, is found by its name. An installed
package brings its own by an entry point of the group "ript.suites" or "ript.policies": name = the name, object = the
record. A script registers a record itself; and "module:name" is a name too, of something in a file of a user's own. No
more than the one that is asked for is imported.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, Generic, TypeVar

from ript.core import interpreter, user_code
from ript.core.errors import ConfigError, DependencyMissing, RiptError, UnknownNameError
from ript.core.memory import translated
from ript.core.plugins import PolicyKind, Suite
from ript.core.types import Task

T = TypeVar("T")


class Registry(Generic[T]):
    """Records by name.

    Args:
        what: the records are, in words: "simulator suite".
        record: their class.
        name_of: a record -> its name.
        entry_points: group in which installed packages name theirs.
        package: whose folders hold one each.
        module: file in such a folder, without ".py".
        attribute: the record's name in that module.
        of_class: "module:function" of what makes a record of a class: (class, name) -> record; empty: nothing does.
        unasked: fields whose functions are not asked with care, for their callers do that.
        answers: field -> class of what its function gives several of.
    """

    def __init__(
        self,
        what: str,
        record: type[T],
        name_of: Callable[[T], str],
        *,
        entry_points: str,
        package: str,
        module: str,
        attribute: str,
        of_class: str = "",
        unasked: Sequence[str] = (),
        answers: Mapping[str, type] | None = None,
    ):
        self.what, self._record, self._name_of = what, record, name_of
        self._group, self._package, self._module, self._attribute = entry_points, package, module, attribute
        self._of_class, self._unasked, self._answers = of_class, unasked, answers or {}
        self._registered: dict[str, T] = {}
        self._loaded: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """All names, sorted. Nothing is imported for it."""
        return tuple(sorted({*self._registered, *self._folders(), *self._plugins()}))

    def get(self, name: str) -> T:
        """The record of a name; its module is imported, and no other.

        Raises:
            UnknownNameError: no such name; the nearest are suggested.
            ConfigError: several claim the name, or what is there is no such record.
            DependencyMissing: its module could not be imported; says why.
        """
        if name in self._registered:
            return self._registered[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def unknown(self, name: str) -> UnknownNameError:
        """The error for a name that nothing here has."""
        remedy = f"install the package that brings it (an entry point of {self._group})"
        return UnknownNameError(self.what, name, self.names(), remedy)

    def __contains__(self, name: str) -> bool:
        """Whether there is such a name; of "module:name" only that it is one."""
        return ":" in name or name in self.names()

    def all(self) -> tuple[dict[str, T], dict[str, RiptError]]:
        """(name -> record, name -> why there is none) of everything that can be found."""
        records: dict[str, T] = {}
        broken: dict[str, RiptError] = {}
        for name in self.names():
            try:
                records[name] = self.get(name)
            except RiptError as error:
                broken[name] = error
        return records, broken

    def register(self, record: T) -> T:
        """Make a record known in this process, in place of one that was registered under its name before.

        Raises:
            ConfigError: not a record of this kind, or its name belongs to a folder or an installed package.
        """
        if not isinstance(record, self._record):
            raise ConfigError(f"expected a {self._record.__name__} as {self.what}, got {record!r}")
        name = self._name_of(record)
        if name in self._folders() or name in self._plugins():
            raise ConfigError(
                f"{self.what} {name!r} is there already ({', '.join(self._claims(name))}): choose another"
            )
        self._registered[name] = record
        return record

    def unregister(self, name: str) -> None:
        """Forget what `register` made known; nothing if it did not."""
        self._registered.pop(name, None)

    def _folders(self) -> dict[str, str]:
        """Name -> module, of folders that hold one."""
        spec = util.find_spec(self._package)
        places = spec.submodule_search_locations if spec else None
        return {
            folder.name: f"{self._package}.{folder.name}.{self._module}"
            for place in places or ()
            for folder in Path(place).iterdir()
            if (folder / f"{self._module}.py").is_file()
        }

    def _plugins(self) -> dict[str, list[metadata.EntryPoint]]:
        found: dict[str, list[metadata.EntryPoint]] = {}
        for point in metadata.entry_points(group=self._group):
            found.setdefault(point.name, []).append(point)
        return found

    def _claims(self, name: str) -> list[str]:
        """Who says that a name is theirs, in words."""
        claims = [module for folder, module in self._folders().items() if folder == name]
        return claims + [f"{point.value} of {_owner(point)}" for point in self._plugins().get(name, ())]

    def _load(self, name: str) -> T:
        folder, points = self._folders().get(name), self._plugins().get(name, [])
        claims = self._claims(name)
        if not claims and ":" in name:
            example = f"MODULE:NAME of a {self._record.__name__}{' or a class' if self._of_class else ''}"
            return self._checked(user_code.find(name, self.what, example), name, "a file of your own")
        if not claims:
            raise self.unknown(name)
        if len(claims) > 1:
            raise ConfigError(f"{self.what} {name!r} is claimed by {' and by '.join(claims)}: uninstall all but one")
        try:
            with interpreter.staying():
                if folder is None:
                    record = points[0].load()
                else:
                    record = getattr(importlib.import_module(folder), self._attribute)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise DependencyMissing(
                f"{self.what} {name!r} ({claims[0]}) cannot be imported: {why}; install what it needs, or uninstall it"
            ) from error
        return self._checked(record, name, claims[0])

    def _checked(self, found: Any, name: str, claim: str) -> T:
        """What was found under a name, as a record."""
        if self._of_class and isinstance(found, type):
            found = user_code.find(self._of_class, self.what, "MODULE:FUNCTION")(found, name)
        if not isinstance(found, self._record) or self._name_of(found) != name:
            is_there = f"one named {self._name_of(found)!r}" if isinstance(found, self._record) else _in_words(found)
            expected = f"a {self._record.__name__} of that name{', or a class' if self._of_class else ''}"
            raise ConfigError(f"{self.what} {name!r} ({claim}): expected {expected}, got {is_there}")
        return found if claim.startswith(f"{self._package}.") else self._asked(found, name)

    def _asked(self, found: T, name: str) -> T:
        """A record that is none of this package's, whose functions say whose they are when they raise."""
        changes = {
            field.name: _Asked(value, f"{self.what} {name!r}: {field.name}", self._answers.get(field.name))
            for field in dataclasses.fields(found)  # type: ignore[arg-type]
            if callable(value := getattr(found, field.name))
            and not isinstance(value, type)
            and field.name not in self._unasked
        }
        return dataclasses.replace(found, **changes)  # type: ignore[type-var]


class _Asked:
    """A function of somebody's record, asked with care.

    Args:
        func: it.
        what: it is, for errors.
        several: class of what it gives several of; None: it gives something else.
    """

    def __init__(self, func: Callable[..., Any], what: str, several: type | None):
        self.func, self.what, self.several = func, what, several

    def __call__(self, *given: Any, **named: Any) -> Any:
        with translated(self._blamed):
            found = self.func(*given, **named)
        if self.several is not None:
            good = isinstance(found, Sequence) and all(isinstance(one, self.several) for one in found)
            if not good:
                raise ConfigError(f"{self.what} returned {found!r:.200}; expected a tuple of {self.several.__name__}")
        return found

    def _blamed(self, error: BaseException) -> ConfigError:
        place = traceback.extract_tb(error.__traceback__)[2:]  # without this call and the one that translates
        where = f" ({place[-1].filename}, line {place[-1].lineno})" if place else ""
        return ConfigError(f"{self.what} raised {type(error).__name__}: {error}{where}")


def _in_words(found: object) -> str:
    return f"the function {found.__name__}" if inspect.isfunction(found) else repr(found)


def _owner(point: metadata.EntryPoint) -> str:
    return "an unnamed package" if point.dist is None else f"package {point.dist.name}"


suites: Registry[Suite] = Registry(
    "simulator suite",
    Suite,
    lambda suite: suite.name,
    entry_points="ript.suites",
    package="ript.sims",
    module="suite",
    attribute="SUITE",
    unasked=("make",),
    answers={"tasks": Task},
)
"""Every suite of simulators."""

kinds: Registry[PolicyKind] = Registry(
    "kind of policy",
    PolicyKind,
    lambda kind: kind.kind,
    entry_points="ript.policies",
    package="ript.policies",
    module="kind",
    attribute="KIND",
    of_class="ript.policies.user_class:kind_of_class",
)
"""Every kind of policy."""


def simulator_versions(suite: str) -> dict[str, str]:
    """Distribution -> version of what a suite's simulators are made of, for a record; empty when it is not here."""
    try:
        return suites.get(suite).versions()
    except RiptError:
        return {}
