"""Code of a user's own, named by module and name: `my_file:reach`, `my_file:MyPolicy`."""

from __future__ import annotations

import importlib
import sys
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
    here = interpreter.folder()
    if here and here not in sys.path:
        sys.path.append(here)
    try:
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
