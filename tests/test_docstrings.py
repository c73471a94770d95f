"""Docstrings name what there is: every argument and attribute that one describes exists."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ript

PACKAGE = Path(ript.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def described(docstring: str | None, section: str) -> list[str]:
    """Names of the entries of a section such as "Args:"; of "a, b: both" there are two."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    if f"{section}:" not in lines:
        return []
    names = []
    for line in lines[lines.index(f"{section}:") + 1 :]:
        if line and not line.startswith("    "):
            break
        entry = re.match(r" {4}(?! )([\w*, ]+):(?: |$)", line)
        names += [name.strip(" *") for name in entry.group(1).split(",")] if entry else []
    return names


def arguments(function: ast.FunctionDef) -> set[str]:
    a = function.args
    return {x.arg for x in [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg] if x is not None}


def attributes(kind: ast.ClassDef) -> set[str]:
    """Fields, methods and what is set on `self`."""
    own = {ast.unparse(node.target) for node in kind.body if isinstance(node, ast.AnnAssign)}
    own |= {node.name for node in kind.body if isinstance(node, ast.FunctionDef)}
    return own | {
        node.attr
        for node in ast.walk(kind)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def invented(source: str) -> Iterator[str]:
    """What docstrings describe and the code does not have."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            have, named = arguments(node), described(ast.get_docstring(node), "Args")
        elif isinstance(node, ast.ClassDef):
            makers = [made for made in node.body if isinstance(made, ast.FunctionDef) and made.name == "__init__"]
            have = attributes(node).union(*map(arguments, makers))
            named = [name for section in ("Args", "Attributes") for name in described(ast.get_docstring(node), section)]
        else:
            continue
        yield from (f"{node.name} describes {name}" for name in named if name not in have)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_describe_arguments_and_attributes_that_exist(path: Path) -> None:
    assert list(invented(path.read_text())) == []


FUNCTION = '''
def f(a, *, b):
    """Do.

    Args:
        a, c: both.
        b: one,
            over: two lines.
    """
'''
RECORD = '''
class R:
    """A record.

    Attributes:
        x: one.
        y: none.
    """

    x: int
'''


def test_what_a_docstring_invents_would_be_found() -> None:
    assert list(invented(FUNCTION)) == ["f describes c"]
    assert list(invented(RECORD)) == ["R describes y"]


def test_no_docstring_begins_as_the_rest_of_a_sentence_about_the_name_before_it() -> None:
    fragment = re.compile(r'^\s*"""(?:Of|That|Whose|It is)\b.*', re.MULTILINE)
    found = {path.name: fragment.findall(path.read_text("utf-8")) for path in FILES}
    assert not {name: lines for name, lines in found.items() if lines}
