"""What a file's code says: names, and words in texts. Comments, docstrings and examples of commands are not code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

EXAMPLE = re.compile(r"^  ript .*$", re.MULTILINE)
"""A line of `--help` that shows a command."""


def said(source: str) -> Iterator[str]:
    """Every name, module and text, those of f-strings in pieces."""
    tree = ast.parse(source)
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield EXAMPLE.sub("", node.value)
        for field in ("id", "attr", "name", "module", "arg"):
            if isinstance(found := getattr(node, field, None), str):
                yield found
