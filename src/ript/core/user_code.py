"""Code of a user's own, named by module and name: `my_file:reach`, `my_file:MyPolicy`."""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ript.core import interpreter
from ript.core.errors import ConfigError, UnknownNameError


def find(name: str, where: str, example: str) -> Any:
    """What "module:name" names. The module may lie in the current folder.

    Args:
        name: as it was given.
        where: dotted name of the setting, or what is sought, for messages.
        example: of such a name.

    Raises:
        ConfigError: not of this form, a module that is not there or cannot be imported, or nothing that can be called.
        UnknownNameError: the module has no such name.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"{where}: {name!r}; expected {example}")
    require_module(module, where)
    here = interpreter.folder()
    if here and here not in sys.path:
        sys.path.append(here)
    try:
        with interpreter.staying():
            loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = f"there is no module {error.name}"
        raise ConfigError(f"{where}: {name}: {missing}; start `ript` in the folder of the file") from error
    except Exception as error:  # whatever a file of a user's own raises
        raise ConfigError(f"{where}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(loaded, attribute):
        known = [key for key, value in vars(loaded).items() if callable(value) and not key.startswith("_")]
        raise UnknownNameError(f"name in {module} ({where})", attribute, known)
    return getattr(loaded, attribute)


def require_module(name: str, where: str) -> None:
    """Raise `ConfigError` where a module is named by a path or its file's name, saying how it is named.

    Args:
        name: of the module, as it was given.
        where: dotted name of the setting, or what is sought, for messages.
    """
    bare = name.replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".py")
    folder = name.replace("\\", "/").rstrip("/").rpartition("/")[0]
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        start = f": start `ript` in the folder {folder}, and name it {bare}" if folder else f": name it {bare}"
        start = start if bare.isidentifier() else "; expected a name such as my_file"
        raise ConfigError(f"{where}: {name} is no module's name, but that of a file{start}")


def fingerprints(modules: Iterable[str]) -> dict[str, str]:
    """Module -> digest of its file, 16 hex digits, of those of these modules that are a user's own.

    With them those that they have got something from which lie in the same folder, or below. Code of this package, of
    Python and of installed packages is told by versions; that of a script is not compared.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or (file := _own_file(name)) is None:
            continue
        found[name] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        root = file.parents[name.count(".") + (file.name == "__init__.py")]
        for value in vars(sys.modules[name]).values():
            other = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(other, str) and (near := _own_file(other)) is not None and near.is_relative_to(root):
                waiting.append(other)
    return dict(sorted(found.items()))


def _own_file(module: str) -> Path | None:
    """The source file of an imported module; None for a module that is not a user's own."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file or not str(file).endswith(".py") or module == "__main__" or module.partition(".")[0] == "ript":
        return None
    path = Path(file).resolve()
    installed = [Path(place).resolve() for place in sysconfig.get_paths().values()]
    packages = any(path.is_relative_to(place) for place in installed if place.name.endswith("-packages"))
    library = Path(sysconfig.get_paths()["stdlib"]).resolve()
    return None if packages or path.is_relative_to(library) or not path.is_file() else path
