"""What a command has to say, for a person and for a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ript.core.interpreter import TERMINATED, exit_code

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def exit_code_of(stop: KeyboardInterrupt | SystemExit) -> int:
    """The exit code of a command that was stopped from outside; 0 when a package of its own choice ended it."""
    code = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else exit_code(stop)
    return code if isinstance(code, int) and code in (INTERRUPTED, *TERMINATED) else 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command has to say.

    Attributes:
        text: for a person.
        document: the same for a machine (`--json`).
        code: exit code.
        kept: where all of it is when it cannot be printed; empty when only printing it keeps it.
        costly: then it is written to a file, for it took work to find out.
    """

    text: str
    document: Any
    code: int = 0
    kept: str = ""
    costly: bool = False
