"""A configuration as text: the TOML that a recipe file holds, with what everything in it means."""

from __future__ import annotations

import json

from ript.config.sections import Config
from ript.core.options import Settings


def describe(config: Config) -> str:
    """The complete configuration as TOML: a table for each section, with what the section and its fields mean."""
    sections = {name: value for name, value in config.values().items() if isinstance(value, Settings)}
    lines = _described(config, [name for name in type(config).model_fields if name not in sections])
    for name, section in sections.items():
        lines.append(f"\n[{name}]  # {section.ABOUT}")
        lines += _described(section, list(type(section).model_fields))
    return "\n".join(lines)


def _described(settings: Settings, names: list[str]) -> list[str]:
    plain = settings.to_json()
    return [f"{name} = {json.dumps(plain[name], ensure_ascii=False)}  # {settings.meaning(name)}" for name in names]
