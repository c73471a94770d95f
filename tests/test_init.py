import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ript


def test_what_type_checkers_see_is_what_is_imported() -> None:
    tree = ast.parse(Path(ript.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name: node.module for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == {name: f"ript.{home}" for name, home in ript._HOME.items()}
    assert sorted(seen) == ript.__all__ and len(seen) <= 25


def test_no_namespace_holds_a_module_and_something_else_of_one_name() -> None:
    modules = [name for _, name, _ in pkgutil.walk_packages(ript.__path__, "ript.") if name != "ript.__main__"]
    assert not {f"ript.{name}" for name in ript.__all__} & set(modules)
    for name in modules:
        importlib.import_module(name)
    for name in modules:
        package, _, module = name.rpartition(".")
        assert inspect.ismodule(getattr(sys.modules[package], module)), name
    assert all(inspect.isroutine(getattr(ript, name)) for name in ("train_rl", "train_sft", "evaluate", "quickstart"))


def test_errors_and_records_are_found_under_their_public_names() -> None:
    code = (
        "import sys, ript\n"
        "assert not any(name.startswith('ript.core.types') for name in sys.modules)  # importing it stays light\n"
        "assert ript.types.Group is __import__('ript.core.types').core.types.Group\n"
        "assert ript.errors.ConfigError is __import__('ript.core.errors').core.errors.ConfigError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["errors", "types"])
def test_public_modules_hold_what_those_of_core_define_and_are_files_for_type_checkers(name: str) -> None:
    public, core = (importlib.import_module(f"{package}.{name}") for package in ("ript", "ript.core"))
    tree = ast.parse(Path(core.__file__ or "").read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert {name for name in defined if not name.startswith("_")} <= set(public.__all__)
    assert all(getattr(public, name) is getattr(core, name) for name in public.__all__)
    assert importlib.util.find_spec(f"ript.{name}") is not None and type(public) is type(sys)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        _ = ript.train  # type: ignore[attr-defined]
    assert set(ript.__all__) < set(dir(ript))


def test_the_version_is_written_once_and_said_alike() -> None:
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ript.core.version.VERSION"}
    assert f"version: {ript.__version__}\n" in (root / "CITATION.cff").read_text()
    newest = re.search(r"^## (.*)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and re.search(rf"(^|[ (]){re.escape(ript.__version__)}(\)|$)", newest[1])
