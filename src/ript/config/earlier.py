"""What records and recipe files of earlier versions call things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {"sampling.contexts": "sampling.states", "sampling.context_noise": "sampling.state_noise"}
"""Names of fields in version 0.1.0 -> their present ones; both are read."""
OF_EVERY_SUITE = ("cameras", "arm")
"""Settings of the simulator in records of 0.1.0, whether its suite has them or not."""


def by_present_names(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of a record, with fields of earlier names under those that they have now."""
    return {
        section: {RENAMED.get(f"{section}.{name}", str(name)).rpartition(".")[2]: v for name, v in fields.items()}
        if isinstance(fields, Mapping)
        else fields
        for section, fields in data.items()
    }
