"""What is too heavy for every simulator to have its own: compiled models, renderers, environments to reset with.

A simulator takes the part of its task while it is open, and all that are open share it. When the last one lets go of it
the part stays for whoever comes next, until too many are unused.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, Protocol, TypeVar

SPARE = 2
"""Parts that stay although no simulator uses them, least recently used closed first."""


class Closable(Protocol):
    """Something that frees what it holds."""

    def close(self) -> None: ...


Part = TypeVar("Part", bound=Closable)


class Shelf(Generic[Part]):
    """Parts of one process by key, each there once. How many are in use is up to those who open simulators.

    Args:
        spare: unused parts that stay.
    """

    def __init__(self, spare: int = SPARE):
        self._spare = spare
        self._parts: dict[Hashable, Part] = {}
        self._users: dict[Hashable, int] = {}

    def take(self, key: Hashable, make: Callable[[], Part], user: object) -> tuple[Part, Callable[[], object]]:
        """The part of this key, made if it is not there.

        Args:
            key: the same for all that may share it.
            make: makes the part.
            user: who takes it; a user that is forgotten has let go.

        Returns:
            part: in use until let go.
            let_go: to be called when the user is closed; calling it again does nothing.
        """
        self._users[key] = self._users.get(key, 0) + 1
        forget = weakref.finalize(user, self._forget, key)
        forget.atexit = False
        if key not in self._parts:
            self.close_unused(self._spare)
            try:
                self._parts[key] = make()
            except BaseException:
                forget()
                raise

        def let_go() -> None:
            forget()
            self.close_unused(self._spare)

        return self._parts[key], let_go

    def _forget(self, key: Hashable) -> None:
        """Closes nothing: a user may be forgotten at any moment and in any thread."""
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            if key in self._parts:
                self._parts[key] = self._parts.pop(key)  # the latest of the unused

    def close_unused(self, spare: int = 0) -> None:
        """Close the parts that no simulator uses, but for the `spare` that were used last."""
        unused = [key for key in self._parts if key not in self._users]
        for key in unused[: max(0, len(unused) - spare)]:
            self._parts.pop(key).close()

    def __iter__(self) -> Iterator[Part]:
        return iter(list(self._parts.values()))

    def __len__(self) -> int:
        return len(self._parts)


class Shared(Protocol):
    """A part that each of its users sets as it needs it before it uses it."""

    active: Turn | None
    """The user whose settings it has now; None: nobody's."""


class Turn:
    """One simulator's use of a part whose settings all its users change.

    Args:
        part: which others use as well.
        let_go: ends the use, as `Shelf.take` gave it.
    """

    def __init__(self, part: Shared, let_go: Callable[[], object]):
        self._part, self._let_go = part, let_go

    def take(self, settle: Callable[[], None], *, again: bool = False) -> None:
        """Let the part have this user's settings, which `settle` puts there; those that it has are left, unless they
        are to be set `again`."""
        if again or self._part.active is not self:
            self._part.active = None  # should it fail half-way
            settle()
            self._part.active = self

    def end(self) -> None:
        """Use the part no more; calling it again does nothing."""
        if self._part.active is self:
            self._part.active = None
        self._let_go()


def return_freed_memory() -> None:
    """Compiling a model frees more than half of what it took, which glibc keeps unless told otherwise."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
