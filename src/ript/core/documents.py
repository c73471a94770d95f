"""JSON and TOML that may come from anywhere: whatever their readers trip over is a `ValueError`."""

from __future__ import annotations

import json
import tomllib
from typing import Any

DEEPEST = 100
"""Lists and tables within each other, at most: far deeper ones end whoever works on them with a `RecursionError`."""
LONGEST = 300
"""Digits of a whole number, at most. Python reads 4300, and makes a float of no more than 308."""
_TOO_LARGE = 10**LONGEST


def json_value(text: str | bytes) -> Any:
    """What a JSON document holds.

    Raises:
        ValueError: it is none, is nested deeper than `DEEPEST`, or has a whole number longer than `LONGEST`.
    """
    try:
        return _usable(json.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def toml_value(text: str) -> dict[str, Any]:
    """What a TOML document holds. Raises as `json_value` does."""
    try:
        return _usable(tomllib.loads(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _usable(document: Any) -> Any:
    level = [document]
    for _ in range(DEEPEST + 1):
        if any(type(value) is int and abs(value) >= _TOO_LARGE for value in level):
            raise ValueError(f"it has a whole number of more than {LONGEST} digits")
        tables = [value.values() for value in level if isinstance(value, dict)]
        inner = tables + [value for value in level if isinstance(value, list)]
        if not inner:
            return document
        level = [value for values in inner for value in values]
    raise ValueError(f"it is nested too deeply: more than {DEEPEST} lists or tables in each other")
