"""Arguments of public functions: plain values of Python and NumPy, in the form that the code behind them expects.

What a type checker would have said is said by an error that names the argument: it would otherwise come out as a
traceback from far inside, or be recorded as something that no program reads back.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ript.core.errors import ConfigError
from ript.core.files import expanded
from ript.core.options import MOST_SEEDS


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number, Python's or NumPy's.

    Raises:
        ConfigError: a truth, a number with a fraction or of another type, or one out of the range; names the argument.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and _within(int(value), least, most):
        return int(value)
    raise ConfigError(f"{name} must be a whole number{_range(least, most)}, got {value!r}")


def number(name: str, value: Any, least: float | None = None, most: float | None = None) -> float:
    """A finite number. Raises as `whole` does."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            found = math.inf
        if math.isfinite(found) and _within(found, least, most):
            return found
    raise ConfigError(f"{name} must be a number{_range(least, most)}, got {value!r}")


def seed(name: str, value: Any) -> int:
    """A whole number that random generators take. Raises as `whole` does."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and 0 <= int(value) <= MOST_SEEDS:
        return int(value)
    raise ConfigError(f"{name} must be in 0..2^63 - 1, a whole number, got {value!r}")


def truth(name: str, value: Any) -> bool:
    """True or False. Raises `ConfigError` for all else: "no" would be true."""
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise ConfigError(f"{name} must be True or False, got {value!r}")


def words(name: str, value: Any) -> tuple[str, ...]:
    """Words: several, or one, which is not taken letter by letter.

    Raises:
        ConfigError: something else; names the argument.
    """
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else None
    if found is None or not all(isinstance(word, str) for word in found):
        raise ConfigError(f"{name} must be a word or several, got {value!r}")
    return found


def place(name: str, value: Any) -> Path:
    """A path, a leading `~` expanded. Raises `ConfigError` for what is none."""
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name} must be a path, got {value!r}")
    return expanded(Path(value))


def places(name: str, value: Any) -> list[Path]:
    """Paths: several, or one. Raises `ConfigError` for what is none."""
    if isinstance(value, str | os.PathLike):
        return [place(name, value)]
    if not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a path or several, got {value!r}")
    return [place(name, one) for one in value]


def instance(name: str, value: Any, kind: type, remedy: str) -> None:
    """Raise `ConfigError` unless the value is of this class; `remedy` says how one is had."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {kind.__name__} ({remedy}), got {value!r}")


def function(name: str, value: Any, what: str, given: int = 0) -> None:
    """Raise `ConfigError` unless the value can be called with so many arguments; `what` says with what and for what."""
    if not callable(value):
        raise ConfigError(f"{name} must be a function, {what}; got {value!r}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # nobody knows what it takes
        return
    try:
        signature.bind(*[None] * given)
    except TypeError:
        many = f"{given} argument{'' if given == 1 else 's'}" if given else "no argument"
        raise ConfigError(f"{name} must be a function, {what}, which takes {many}; this takes {signature}") from None


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" in {least:g}..{most:g}"
    return f" of at least {least:g}" if least is not None else f" of at most {most:g}" if most is not None else ""
