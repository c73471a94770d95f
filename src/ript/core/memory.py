"""Memory that runs out, as an error of `ript`: while doing what, and what to lower."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ript.core.errors import OutOfMemory, RiptError
from ript.core.interpreter import ending

ANYWHERE = "rollout.slots, rollout.workers (--workers) or the size of batches, or close other programs"
"""What to lower when it is not known who needed the memory."""
_LONGEST = 160

_SAID = re.compile(
    r"can(?:no|')t allocate memory|out of memory|not enough memory|bad_alloc|_ALLOC_FAILED"
    r"|could not create a primitive\s*$|std::bad_array_new_length",
    re.IGNORECASE,
)
"""What libraries that have no class for it say: torch on a CPU, oneDNN, cuBLAS, C++."""


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out, the machine's or a GPU's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # numpy's too; torch's
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _SAID.search(str(error)) is not None


def out_of_memory(error: BaseException, what: str, lower: str) -> OutOfMemory:
    """The error to raise when memory ran out; it says where, and what to lower.

    Args:
        error: for which `ran_out` holds.
        what: was being done, such as "in the update".
        lower: settings, or what else would take less.
    """
    said = (str(error).strip().splitlines() or [""])[0]
    said = re.sub(r"^\[.*?\] .*?\. ", "", said)  # torch's own place in its source
    said = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."
    return OutOfMemory(f"memory ran out {what} ({said or type(error).__name__}): lower {lower}")


@contextmanager
def translated(ours: Callable[[BaseException], RiptError]) -> Iterator[None]:
    """Within, what code of others raises becomes an error of this package.

    Args:
        ours: what was raised -> the error to raise instead. It is not asked about errors of this package, memory that
            ran out and signals to stop, which come as they are.
    """
    with ending(ours):  # a program with a window calls `sys.exit()` when that is closed, extensions in Rust panic
        try:
            yield
        except RiptError:
            raise
        except Exception as error:
            if ran_out(error):
                raise
            raise ours(error) from error


@contextmanager
def enough_memory(what: str, lower: str) -> Iterator[None]:
    """Within, memory that runs out is an `OutOfMemory`; see `out_of_memory` for the arguments."""
    try:
        yield
    except Exception as error:
        if ran_out(error):
            raise out_of_memory(error, what, lower) from error
        raise
