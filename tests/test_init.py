import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ript


def test_what_type_checkers_see_is_what_is_imported() -> None:
    tree = ast.parse(Path(ript.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == {name: f"ript.{home}" for name, home in ript._HOME.items()}
    assert sorted(seen) == ript.__all__ and len(seen) <= 25


def test_a_module_named_after_its_function_does_not_take_its_place() -> None:
    code = (
        "import ript.train_rl, ript.train_sft, ript.studies.quickstart, ript.evaluate\n"
        "from ript.evaluate import wilson\n"
        "from ript import evaluate\n"
        "print(*(type(f).__name__ for f in (ript.train_rl, ript.train_sft, ript.quickstart, ript.evaluate, evaluate)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["function"] * 5


def test_errors_and_records_are_found_under_their_public_names() -> None:
    code = (
        "import sys, ript, ript.types\n"
        "assert 'ript.core.types' not in sys.modules  # importing it stays light\n"
        "from ript.types import Group\n"
        "from ript.errors import ConfigError\n"
        "import ript.core.errors, ript.core.types\n"
        "assert Group is ript.types.Group is ript.core.types.Group\n"
        "assert ConfigError is ript.errors.ConfigError is ript.core.errors.ConfigError\n"
        "from ript import errors, types\n"
        "assert errors is ript.core.errors and types is ript.core.types\n"
        "assert not hasattr(ript.types, 'group')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = ript.train  # type: ignore[attr-defined]
    assert ript.__version__ == importlib.metadata.version("ript")
    assert set(ript.__all__) < set(dir(ript))
