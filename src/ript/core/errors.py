"""Every error that `ript` raises on purpose.

    RiptError
    ├── ConfigError             a field, value or combination that cannot work (exit code 2)
    │   └── UnknownNameError    a task, recipe, field or camera that does not exist; suggests the nearest
    ├── DependencyMissing       a package or system library is not installed; names what to install
    │   └── RendererMissing     no OpenGL renderer could be started
    ├── DataError               a file that is missing, corrupt, truncated or foreign; names file and key
    │   └── PolicyError         a policy that cannot be used: its folder is missing, partial or of another version, it
    │                           does not fit a simulator, or a method raised or returned what it may not
    ├── SimulatorError          a simulator failed or broke its contract; says task, initial state and worker
    ├── WorkerError             a rollout worker raised, died or hung
    │   └── ErrorRateExceeded   too many rollouts ended in ERROR
    ├── TrainingError           training cannot go on (the last good checkpoint is kept)
    │   ├── NoSignalError       no group had a signal for several iterations in a row
    │   ├── NotFiniteError      NaN or infinity in a loss, a gradient, an action or its log-probability
    │   └── RatioError          the importance ratio was not 1 before the first update
    ├── OutOfMemory             memory ran out; says while doing what, and what to lower
    │   └── DeviceTooSmall      a device that is too small, found before anything is put there; says what fits
    └── RunError                a run folder that is in use, incomplete or of another version

Errors of third-party packages are translated once, where they are called. The command line prints the message of a
`RiptError` without a traceback (`--debug` shows it) and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class RiptError(Exception):
    """Base of all errors raised on purpose. The message says what, where and what to do."""

    exit_code = 1


class ConfigError(RiptError):
    exit_code = 2


class UnknownNameError(ConfigError):
    """An unknown name; the message lists the nearest known ones.

    Args:
        kind: what the name should be ("task", "recipe", ...).
        name: what was given.
        known: all valid names.
        remedy: what else can be done: the name may be right, and what has it may be missing here.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = ""):
        known = sorted(known)
        near = nearest(name, known)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif len(known) <= 12:
            hint = f"known: {', '.join(known)}"
        else:
            hint = f"there are {len(known)} of them, such as {', '.join(known[:3])}"
        besides = f"{' Otherwise ' if near else '; '}{remedy}" if remedy else ""
        super().__init__(f"unknown {kind} {name!r}: {hint}{besides}")
        self.kind, self.name, self.known, self.remedy = kind, name, known, remedy

    def __reduce__(self) -> tuple:
        """Errors cross process borders; the default would call the class with the message alone."""
        return type(self), (self.kind, self.name, self.known, self.remedy)


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Known names that are like `name`, or have a part that is ("drawr" -> "drawer-open-v3"), the best first."""
    matcher = difflib.SequenceMatcher(b=name.lower())

    def likeness(text: str, weight: float = 1.0) -> float:
        matcher.set_seq1(text.lower())
        return weight * matcher.ratio()

    def best(candidate: str) -> float:
        parts = re.split(r"(?<=[./_-])", candidate)
        runs = {"".join(parts[i:j]).rstrip("./_-") for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)}
        return max([likeness(candidate), *(likeness(run, 0.9) for run in runs)])

    scores = sorted(((best(k), k) for k in known), key=lambda pair: (-pair[0], pair[1]))
    return [k for score, k in scores[:most] if score >= 0.6 and score >= scores[0][0] - 0.15]


class DependencyMissing(RiptError):
    pass


class RendererMissing(DependencyMissing):
    pass


class DataError(RiptError):
    pass


class PolicyError(DataError):
    pass


class SimulatorError(RiptError):
    pass


class WorkerError(RiptError):
    pass


class ErrorRateExceeded(WorkerError):
    pass


class TrainingError(RiptError):
    pass


class NoSignalError(TrainingError):
    pass


class NotFiniteError(TrainingError):
    pass


class RatioError(TrainingError):
    pass


class OutOfMemory(RiptError):
    pass


class DeviceTooSmall(OutOfMemory):
    pass


class RunError(RiptError):
    pass
