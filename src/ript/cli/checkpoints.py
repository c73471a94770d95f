"""`ript import` and `ript export`: checkpoints of other programs as policy folders, and back, in formats of kinds."""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Iterator
from typing import Literal

from ript.cli.answer import Answer
from ript.cli.options import command
from ript.core import policy_calls
from ript.core.errors import ConfigError, PolicyError, RiptError
from ript.core.options import Settings
from ript.core.plugins import CheckpointFormat, PolicyKind
from ript.core.registry import kinds


def formats() -> Iterator[tuple[PolicyKind, CheckpointFormat]]:
    """Every format of every kind that can be found; kinds that cannot be imported are left out."""
    for name in kinds.names():
        try:
            kind = kinds.get(name)
        except RiptError:
            continue
        yield from ((kind, one) for one in kind.formats)


def _format(name: str) -> tuple[PolicyKind, CheckpointFormat]:
    return next((kind, one) for kind, one in formats() if one.name == name)


def add_import(commands: argparse._SubParsersAction) -> None:
    for _, one in formats():
        if one.read is not None:
            p = command(
                commands,
                one.name,
                "import_checkpoint",
                f"read {one.summary}" + (f" ({one.suffix})" if one.suffix else ""),
                one.examples[0],
            )
            p.set_defaults(format=one.name, overrides=True)
            p.add_argument("file", metavar=f"FILE{one.suffix}", help="what to read; nothing in it is run")
            add_options(p, one.options)
            p.add_argument(
                "--cameras",
                nargs="+",
                metavar="VIEW",
                help="the suite's views for the file's cameras, in order (default: published); --sim.* say the rest",
            )
            p.add_argument("--out", metavar="DIR", required=True, help="policy folder to write")


def add_export(commands: argparse._SubParsersAction) -> None:
    for _, one in formats():
        if one.write is not None:
            p = command(commands, one.name, "export_checkpoint", f"write a policy as {one.summary}", one.examples[1])
            p.set_defaults(format=one.name)
            p.add_argument("policy", metavar="DIR", help="policy folder, or hf://owner/name[@revision]")
            p.add_argument("file", metavar=f"FILE{one.suffix}", help="file to write")


def add_options(parser: argparse.ArgumentParser, options: type[Settings]) -> None:
    """An option for each field: its choices, its meaning and its default."""
    for name, field in options.model_fields.items():
        hint = field.annotation
        choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else None
        default = f" (default {field.default})" if field.default else ""
        parser.add_argument(
            f"--{name}",
            dest=f"option_{name}",
            choices=choices,
            metavar=None if choices else "WORD",
            type=str if choices else os.path.expanduser,
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def import_checkpoint(args: argparse.Namespace) -> Answer:
    """A file as a policy folder, for the simulators that it says or that were asked for."""
    from ript.cli.arguments import given_fields
    from ript.config import overrides
    from ript.config.sections import Config
    from ript.core.hooks import caveats_of, settings_of
    from ript.core.registry import suites
    from ript.policies.published import as_published, show

    kind, one = _format(args.format)
    assert one.read is not None
    replaced = _replaced(args.out)
    given_options = {name.removeprefix("option_"): v for name, v in vars(args).items() if name.startswith("option_")}
    options = one.options(**{name: v for name, v in given_options.items() if v is not None})
    policy, left_out = one.read(args.file, options)
    given = given_fields(args)
    if others := [name for name in given if not name.startswith("sim.")]:
        raise ConfigError(
            f"{others[0]} has no effect in `ript import {one.name}`: only sim.* say what the policy was shown"
        )
    (suite,) = given.get("sim.suite", [policy.simulator.suite])
    if policy.simulator.render and not given and not args.cameras:
        pass  # it says itself what it was shown
    elif suite in suites.names():
        sim = as_published(policy, suite, args.cameras or ())
        show(policy, overrides.apply(Config(sim=sim), given).sim)
    elif given or args.cameras:
        raise ConfigError("say of which suite the policy was shown pictures: --sim.suite=NAME (see `ript doctor`)")
    spec = policy.simulator
    tasks = suites.get(spec.suite).tasks() if spec.suite in suites.names() else ()
    said = [*replaced, *one.about(policy, options, [task.instruction for task in tasks])]
    policy_calls.save(policy, args.out)
    parameters = sum(parameter.numel() for parameter in policy.parameters()) if hasattr(policy, "parameters") else 0
    document = {
        "policy": str(args.out),
        "parameters": parameters,
        "config": settings_of(policy),
        "suite": spec.suite,
        "left_out": list(left_out),
        "notes": said,
    }
    text = (
        f"{args.out}: {kind.kind} for {spec.suite!r}, {parameters:,} parameters, cameras {', '.join(spec.cameras)}, "
        f"proprioception {spec.proprio_dim}, actions {spec.action_dim}"
    )
    ignored = [f"{args.file} also holds {', '.join(left_out)}: not read"] if left_out else []
    return Answer(text="\n".join([text, *said, *ignored, *caveats_of(policy)]), document=document, kept=str(args.out))


def _replaced(out: str) -> list[str]:
    """What an import will replace, in words; nothing where there is no policy.

    Raises:
        PolicyError: a policy that was trained here, which a file of another program would take the place of.
    """
    from ript.core.files import absolute
    from ript.policies.folder import card
    from ript.run.cards import is_trained
    from ript.run.reading import read_config

    folder = absolute(out)
    try:
        held = card(folder)
    except RiptError:
        return []  # who saves there finds out what it is
    try:
        read_config(folder.parent)
        what = f"is a policy of the run {folder.parent}"
    except RiptError:
        what = "holds a policy that was trained here" if is_trained(held) else ""
    if what:
        raise PolicyError(f"{out} {what}, which would be lost: choose another --out, nothing was written")
    origin = held.get("imported from")
    origin = f" from {origin['file']}" if isinstance(origin, dict) and "file" in origin else ""
    return [f"replaces the policy in {out} that was imported{origin}"]


def export_checkpoint(args: argparse.Namespace) -> Answer:
    """A policy folder as a file of another program."""
    from ript.core.hooks import kind_of
    from ript.policies.loading import load_policy

    kind, one = _format(args.format)
    assert one.write is not None
    policy = load_policy(args.policy)
    if kind_of(policy) != kind.kind:
        raise ConfigError(f"{args.policy} holds a {kind_of(policy)!r} policy: {one.summary} holds one of {kind.kind}")
    lost = one.write(policy, args.file)
    document = {"file": str(args.file), "policy": str(args.policy), "notes": list(lost)}
    return Answer(text="\n".join([f"written to {args.file}", *lost]), document=document, kept=str(args.file))
