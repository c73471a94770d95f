"""Files that `torch.save` wrote: read, and never unpickled beyond tensors and plain containers of them."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ript.errors import PolicyError
from ript.files import cannot_read, reading, refused, require_content


def load_pth(path: Path) -> Any:
    """What the file holds, on the CPU.

    Raises:
        PolicyError: missing, corrupt, or holds more than tensors.
    """
    with reading(path, PolicyError):
        if path.is_file():
            require_content(path, PolicyError)
    _check_sums(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about files of another pickle protocol, refused below
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


def _check_sums(path: Path) -> None:
    """Torch does not look at the checksums of the archive that it reads."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return  # another format, or none: the reader says so
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        if refused(error):
            raise cannot_read(path, error, PolicyError) from error
        raise PolicyError(f"{path} is not a readable .pth file: {error}") from error
    if damaged:
        raise PolicyError(f"{path} is damaged: {damaged} in it does not have its checksum; fetch the file again")
