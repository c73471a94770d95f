"""Files that `torch.save` wrote: read, and never unpickled beyond tensors, plain values and containers of them.

Objects of any other class (configurations, numbers of NumPy, whole optimisers) become `Inert`: torch's restricted
reader is told that name by name, and nothing of theirs is imported or called.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ript.core.disk import cannot_read, reading, refused
from ript.core.errors import PolicyError
from ript.core.files import require_content


class Inert:
    """What stands in for an object, class or function that is not read. Takes whatever that would, and does nothing.

    One stands for all, so they are equal: the reader calls only what is among the values that it was told.
    """

    def __new__(cls, *values: object, **named: object) -> Inert:
        return object.__new__(Inert)  # `cls` may be an instance that stands for a class

    def __init__(self, *values: object, **named: object) -> None: ...

    def __call__(self, *values: object, **named: object) -> Inert:
        return self

    def __setstate__(self, state: object) -> None: ...

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inert)


def _empty_dict(*values: object) -> dict:
    return {}


def _empty_list(*values: object) -> list:
    return []


_FILLED_LATER = {"collections.defaultdict": _empty_dict, "collections.deque": _empty_list}
"""Containers whose content comes after they are made."""


def load_pth(path: Path) -> Any:
    """What the file holds, on the CPU, with `Inert` in place of what is neither a tensor nor plain.

    Raises:
        PolicyError: missing, corrupt, or pickled in a way that torch's restricted reader does not take.
    """
    with reading(path, PolicyError):
        if path.exists() and not path.is_dir():
            require_content(path, PolicyError)
    _check_sums(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about files of another pickle protocol, refused below
            with torch.serialization.safe_globals(_stand_ins(path)):
                return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PolicyError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise PolicyError(f"{path} is a folder: give a .pth file, or load a policy folder as it is") from error
    except pickle.UnpicklingError as error:
        raise PolicyError(
            f"{path} holds more than tensors, or is no .pth file; it was not opened, since unpickling can run code"
        ) from error
    except Exception as error:  # whatever torch's reader trips over
        if refused(error):
            raise cannot_read(path, error, PolicyError) from error
        why = "it is empty" if path.exists() and not path.stat().st_size else f"{type(error).__name__}: {error}"
        raise PolicyError(f"{path} is not a readable .pth file: {why.splitlines()[0]}") from error


def _stand_ins(path: Path) -> list[Any]:
    """What torch's reader is to take for each name in the file that it does not know."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return []
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(_FILLED_LATER.get(name, Inert), name) for name in names] + [(Inert(), "what stands for another")]


def _check_sums(path: Path) -> None:
    """Torch does not look at the checksums of the archive that it reads."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return  # another format, or none: the reader says so
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # whatever the archive's reader trips over
        if refused(error):
            raise cannot_read(path, error, PolicyError) from error
        raise PolicyError(f"{path} is not a readable .pth file: {error}") from error
    if damaged:
        raise PolicyError(f"{path} is damaged: {damaged} in it does not have its checksum; fetch the file again")
