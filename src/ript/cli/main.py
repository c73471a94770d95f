"""The `ript` command: parses, calls a function of `commands`, prints its answer, exits.

Exit codes: 0 done, 1 a clear error, 2 usage, 130 interrupted, 143 terminated (129 with the terminal), 141 the reader of
a result went away. With `--json` exactly one JSON document goes to stdout; everything else goes to stderr. Nothing
heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from ript.cli.answer import Answer, exit_code_of
from ript.cli.parser import COMMANDS, make_parser
from ript.core import interpreter, streams
from ript.core.disk import unexpected
from ript.core.errors import ConfigError, RiptError, UnknownNameError
from ript.core.memory import ANYWHERE, out_of_memory, ran_out

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # training sets torch's own count where it needs more (config: threads)
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Threads that wait by spinning take the core from the one waited for: with two threads on two cores that other
    # programs use too, an update took 14.9 s instead of 1.6 s. Spinning for some 20 microseconds does no harm there,
    # and on idle cores it keeps the threads of a training step awake between operations (LOG.md).
    "GOMP_SPINCOUNT": "2000",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set before torch is loaded, unless the user has."""

READER_GONE = 141
"""Exit code when the reader of stdout went away before it had the result; that of a program ended by SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(interpreter.arguments()[1:] if argv is None else argv)
    debug = "--debug" in words
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    streams.open_closed_descriptors()
    streams.speak_utf8()
    interpreter.terminated_by.clear()
    try:
        return _run(words)
    except (KeyboardInterrupt, SystemExit) as stop:
        if not (code := exit_code_of(stop)):
            left = ": ".join(["SystemExit", *map(str, stop.args)])
            return _fail(f"error: a package or simulator ended the command ({left}); `--debug` says where", 1, debug)
        kept = " ".join(getattr(stop, "__notes__", [])) or "nothing was written"
        return _fail(f"{'interrupted' if isinstance(stop, KeyboardInterrupt) else 'terminated'}: {kept}", code)
    except streams.NotPrinted as error:
        if error.reader_gone:
            return READER_GONE
        return _fail(f"error: cannot write to standard output: {error}", 1, debug)
    except RiptError as error:
        return _fail(f"error: {error}", error.exit_code, debug)
    except Exception as error:
        if ran_out(error):
            said = [f"error: {out_of_memory(error, 'on the way', ANYWHERE)}", *getattr(error, "__notes__", [])]
            return _fail("; ".join(said), 1, debug)
        if isinstance(error, OSError):
            return _fail(f"error: {unexpected(error)}", 1, debug)
        raise


def _run(words: list[str]) -> int:
    first = next((word for word in words if not word.startswith("-")), None)
    if first is not None and first not in COMMANDS:
        raise UnknownNameError("command", first, COMMANDS)
    parser = make_parser(words)
    try:
        args, rest = parser.parse_known_args(words)
    except SystemExit:  # --help
        return 0
    if args.version:
        from ript import __version__

        streams.emit(__version__)
        return 0
    if first is None:
        if rest:
            raise ConfigError(f"{rest[0]} without a command: expected one of {', '.join(COMMANDS)} before it")
        parser.print_help()
        return 2
    if rest and not args.overrides:
        _refuse(rest, args)
    args.rest = rest
    with _saying_what_is_resumed(args):
        interpreter.load_torch_where_it_can_be()
        from ript.cli import commands

        with (
            _terminated_like_interrupted(),
            interpreter.noticing(),
            streams.forgiving(),
            _stdout_for_the_document(args.json),
            _warnings_said(),
        ):
            answer = getattr(commands, args.run)(args)
    return _tell(answer, args.json, args.run)


@contextlib.contextmanager
def _saying_what_is_resumed(args: argparse.Namespace) -> Iterator[None]:
    """A run that was to go on is there, also when the command is stopped before it has begun with it."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if getattr(args, "resume", None) and not getattr(stop, "__notes__", []):
            from ript.cli.arguments import kept_of_run

            if args.resume is True:  # a command whose folder is --out
                where = f" in {args.out}" if args.out else ""
                stop.add_note(f"what is done is kept{where}; the same command goes on from there")
            else:
                stop.add_note(kept_of_run(args.resume, args.run))
        raise


def _tell(answer: Answer, json: bool, command: str) -> int:
    """Print the answer; returns the exit code. Work that was done is not lost when it cannot be printed."""
    text = answer.text
    if json:
        from ript.run.files import dumps

        text = dumps(answer.document, indent=2)
    try:
        streams.emit(text)
    except streams.NotPrinted as error:
        if answer.kept:
            streams.say(f"ript: the result could not be printed ({error}); all of it is in {answer.kept}")
            return answer.code
        if answer.costly:
            streams.say(f"ript: the result could not be printed ({error}); it is kept in {_keep(answer, command)}")
        raise
    return answer.code


def _keep(answer: Answer, command: str) -> str:
    """Write the document into a file of its own, in the current folder or else the temporary one; returns its path."""
    from ript.run.files import now, write_json

    name = f"ript-{command.replace('_', '-')}-{now().replace(':', '')}-{os.getpid()}.json"
    for place in (os.curdir, tempfile.gettempdir()):
        with contextlib.suppress(RiptError, OSError):
            path = os.path.abspath(os.path.join(place, name))
            write_json(path, answer.document)
            return path
    return "no file either: none could be written here or in the temporary folder"


def _refuse(rest: Sequence[str], args: argparse.Namespace) -> NoReturn:
    if rest[0].startswith("-"):
        known = [
            f"--{name.removeprefix('field_').replace('_', '-')}"
            for name in vars(args)
            if name not in ("run", "overrides")
        ]
        name = rest[0].partition("=")[0]
        if name in known:
            raise ConfigError(f"{name} belongs behind the command")
        raise UnknownNameError("option", name, known)
    raise ConfigError(f"{rest[0]!r} belongs to no option")


def _fail(message: str, code: int, debug: bool = False) -> int:
    if debug:
        streams.say(traceback.format_exc().rstrip())
    streams.say(f"ript: {message}")
    return code


@contextlib.contextmanager
def _stdout_for_the_document(json: bool) -> Iterator[None]:
    """With `json`, whatever this process, its libraries or its workers print meanwhile goes to stderr."""
    if not json:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextlib.contextmanager
def _warnings_said() -> Iterator[None]:
    """What the package logs as a warning, such as what was lost and is done again, is a line of status."""
    from ript.run.progress import Said

    logger, handler = logging.getLogger("ript"), Said(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind as Ctrl-C does, so that workers end and locks are released; see `TERMINATED`."""

    def terminate(signum: int, frame: object) -> None:
        interpreter.terminated_by.append(signum)
        raise SystemExit(128 + signum)

    before = {}
    try:
        for number in (code - 128 for code in interpreter.TERMINATED):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                before[number] = signal.signal(number, terminate)
    except ValueError:  # not in the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
