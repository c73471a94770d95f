"""What the command line is made of: parsers, commands, and options that several commands have."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from ript.core import streams
from ript.core.errors import ConfigError

OVERRIDES = """
Any field of the configuration can be changed, as --section.field=value: --learn.learning_rate=3e-5,
--sim.cameras near,corner2. `ript recipes NAME` prints all fields and what they mean."""


class Parser(argparse.ArgumentParser):
    """Full option names only; mistakes are `ConfigError`s, like all other mistakes."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """One that takes a file or folder expands `~`: the shell leaves that alone in `--out=~/runs`."""
        if str(settings.get("metavar")).startswith(("DIR", "FILE")):
            settings.setdefault("type", os.path.expanduser)
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")

    def print_help(self, file: object = None) -> None:
        streams.emit(self.format_help().rstrip("\n"))


def command(
    commands: argparse._SubParsersAction, name: str, run: str, help: str, examples: str, overrides: bool = False
) -> argparse.ArgumentParser:
    """The parser of a new command.

    Args:
        commands: to which it is added.
        name: as it is typed.
        run: name of the function that does it.
        help: what it does, in words that begin small and end without a stop.
        examples: lines of its help.
        overrides: whether it takes fields of the configuration.
    """
    parser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"examples:\n{examples}\n{OVERRIDES if overrides else ''}",
    )
    parser.set_defaults(run=run, overrides=overrides)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout, all else on stderr")
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def fields(parser: argparse.ArgumentParser, *names: str) -> None:
    """Options that stand for fields of the configuration; they are typed and checked there."""
    texts = {
        "tasks": ("+", "TASK", "target tasks, or a named list such as ML45-test (default: the recipe's)"),
        "iterations": (None, "N", "iterations of post-training, at most (default: the recipe's)"),
        "source": (None, "WHO", "who demonstrates: expert or human (default: the suite's usual one)"),
        "workers": (None, "N", "worker processes (default: the recipe's); 0: all work is done in this process"),
        "seed": (None, "N", "seed of the run (default: the recipe's)"),
        "cluster": (None, "WHERE", "work on a Ray cluster: local, auto or HOST:PORT; docs/clusters.md"),
    }
    for name in names:
        nargs, metavar, text = texts[name]
        parser.add_argument(f"--{name}", dest=f"field_{name}", nargs=nargs, metavar=metavar, help=text)


def number(parser: argparse.ArgumentParser, name: str, default: int | None, text: str) -> None:
    """An option that takes a whole number; its default is said. None: what `text` says."""
    said = text if default is None else f"{text} (default {default})"
    parser.add_argument(name, type=int, default=default, metavar="N", help=said)


def recipe(parser: argparse.ArgumentParser, default: str | None = "quickstart") -> None:
    """The option for a recipe; without a default it may be left out."""
    text = "recipe, or a .toml file" + (f" (default {default})" if default else "")
    parser.add_argument("--recipe", default=default, metavar="NAME", type=os.path.expanduser, help=text)
