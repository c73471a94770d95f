"""This Python: its program, arguments, module path and current folder; and another one that finds the same packages.

Any of them may be missing or odd: in a program that embeds Python, in a folder that was deleted.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.spawn import get_executable
from types import FrameType

from ript.core.errors import DependencyMissing, RiptError, WorkerError


def executable() -> str:
    """The program to start another Python with.

    Raises:
        DependencyMissing: none is known; says how to name one.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = [os.path.join(prefix, "bin", name) for prefix in (sys.prefix, sys.base_prefix)]
    for path in (os.fsdecode(get_executable() or ""), sys.executable or "", *beside):
        if path and (found := shutil.which(path)):
            return found
    raise DependencyMissing(
        "no Python program is known to start a process with (sys.executable is not one, as where Python is embedded): "
        "name one with multiprocessing.set_executable(path), or use workers=0"
    )


def command(code: str, *arguments: str) -> list[str]:
    """The command that runs `code` in a Python of its own, which finds the packages that this one finds.

    A file in the current folder does not take the place of a package there. `sys.argv[1:]` is `arguments`.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    begin = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    return [executable(), *flags, "-P", "-c", begin + code, json.dumps(module_path()), *arguments]


def as_typed(*words: object) -> str:
    """A command of this package as messages name it: what a shell would take apart is quoted."""
    return shlex.join(["ript", *map(str, words)])


def in_a_child(function: str, argument: str) -> RiptError | None:
    """Call a function, "module:name", with one argument in a Python of its own, and wait until that has ended.

    Returns:
        The error that it raised, if any: one of ours as it was, but for its cause, others in words.

    Raises:
        DependencyMissing: no Python program is known.
        WorkerError: the process could not be started, or said nothing at its end.
    """
    code = "from ript.core.interpreter import _answer_parent; _answer_parent()"
    try:
        done = subprocess.run(
            command(code, function, argument),
            cwd=folder_to_start_in(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except OSError as error:
        raise WorkerError(f"no process could be started for {function}: {error}") from error
    last = (done.stdout.splitlines() or [b""])[-1]
    if not last.startswith(ANSWER):
        why = (done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"])[-1]
        raise WorkerError(f"{function} ended its process with code {done.returncode}: {why}")
    answer: RiptError | None = pickle.loads(bytes.fromhex(last.removeprefix(ANSWER).decode()))
    return answer


ANSWER = b"ript: "
"""How the last line of such a process begins; the pickled answer follows, as hexadecimal digits."""


def _answer_parent() -> None:
    """The process of `in_a_child`."""
    error: RiptError | None = None
    try:
        module, name = sys.argv[1].split(":")
        getattr(importlib.import_module(module), name)(sys.argv[2])
    except RiptError as found:
        error = found
    except Exception as found:  # packages that it uses raise what they like
        error = WorkerError(f"{sys.argv[1]}({sys.argv[2]!r}): {type(found).__name__}: {found}")
    sys.stdout.buffer.write(b"\n" + ANSWER + pickle.dumps(error).hex().encode() + b"\n")
    sys.stdout.buffer.flush()
    os._exit(0)


def arguments() -> list[str]:
    """`sys.argv`, as strings; it always has a first one."""
    return [str(word) for word in getattr(sys, "argv", None) or [""]]


def module_path() -> list[str]:
    """`sys.path`, with the current folder by its name. Import looks at nothing but strings."""
    named = [str(path) or folder() for path in sys.path if isinstance(path, str)]
    return [path for path in named if path]


def folder() -> str:
    """The current folder; empty when it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


def folder_to_start_in() -> str | None:
    """For a new process: None for the current folder, the root when it was deleted."""
    return None if folder() else os.sep


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """For the import of packages that start a Python of their own to do so, as GLFW's does to look for its library.

    It would find modules in the current folder first, where a file may bear the name of one (`types.py`); and it needs
    a program to start.
    """
    variable, program = "PYTHONSAFEPATH", sys.executable
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    if not program:
        with contextlib.suppress(DependencyMissing):
            sys.executable = executable()
    try:
        yield
    finally:
        sys.executable = program
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before


TERMINATED = (143, 129)
"""Exit codes after SIGTERM and SIGHUP, which unwind as Ctrl-C does."""

terminated_by: list[int] = []
"""The signals of `TERMINATED` that have come, for a library may raise a `SystemExit` of its own in place of ours."""


def exit_code(stop: SystemExit) -> object:
    """What a process is to end with: after a signal that ends it, its exit code, whatever was made of it."""
    return 128 + terminated_by[0] if terminated_by else stop.code


def stops(error: BaseException) -> bool:
    """Whether it is to end this process, as signals do and what a worker ends by, and not somebody's `sys.exit()`."""
    return isinstance(error, SystemExit) and (type(error) is not SystemExit or exit_code(error) in TERMINATED)


@contextlib.contextmanager
def ending(ours: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Within, what code of others raises that is no `Exception` (`sys.exit()`, a `KeyboardInterrupt` where nobody
    pressed Ctrl-C, a `GeneratorExit`, a panic of an extension in Rust) becomes `ours` of that. Signals to stop, and
    what a worker ends by, come as they are."""
    with noticing():
        before = len(_pressed)
        try:
            yield
        except Exception:
            raise
        except BaseException as stop:
            replaced = bool(_noting) and signal.getsignal(signal.SIGINT) is not _noting[0]  # by that code
            if stops(stop) or (replaced and ends_programs(stop)) or len(_pressed) > before:
                raise
            raise ours(stop) from stop


def ends_programs(error: BaseException) -> bool:
    """Whether it is made to end a program, as `sys.exit()` and Ctrl-C do."""
    return isinstance(error, SystemExit | KeyboardInterrupt)


def said_by(error: BaseException) -> str:
    """What somebody's code raised, in words."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def staying() -> contextlib.AbstractContextManager[None]:
    """For the import of anybody's module: one that ends the program, as a script does without a main guard, or raises
    what is no `Exception`, raises `ImportError` instead."""

    def ours(stop: BaseException) -> ImportError:
        if not ends_programs(stop):
            return ImportError(f"it raises {said_by(stop)} when it is imported")
        return ImportError(
            f"it ends the program when it is imported ({said_by(stop)}): what a script does belongs under "
            'if __name__ == "__main__"'
        )

    return ending(ours)


_pressed: list[int] = []
"""A Ctrl-C each that came while somebody was `noticing`."""
_noting: list[Callable[[int, FrameType | None], None]] = []
"""What handles it meanwhile; none in processes that ignore it, as workers do."""


@contextlib.contextmanager
def noticing() -> Iterator[None]:
    """Within, a Ctrl-C is noted besides what it does. To change handlers takes longer than many a call of a simulator,
    so a command does it once, and a pool of this process once a rollout."""
    inside = _noting or threading.current_thread() is not threading.main_thread()
    before = None if inside else signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        _pressed.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    _noting.append(note)
    try:
        yield
    finally:
        _noting.clear()
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)


def load_torch_where_it_can_be() -> None:
    """Where the current folder was deleted, load torch from another one; does nothing elsewhere.

    Its libraries end the whole process when they are loaded in such a folder (oneMKL, exit code 2), and the module that
    optimisers load later asks for the folder; once loaded, both work.
    """
    if folder() or "torch._dynamo" in sys.modules:
        return
    here = os.open(os.curdir, os.O_RDONLY)
    try:
        os.chdir(os.sep)
        with contextlib.suppress(Exception):  # who needs it will say so
            torch = importlib.import_module("torch")
            importlib.import_module("torch._dynamo")
            torch.ones(2, 2) @ torch.ones(2, 2)  # loads oneMKL
    finally:
        os.fchdir(here)
        os.close(here)
