"""The `ript` command line as argparse sees it: commands, their options, help and examples."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ript.cli.options import Parser, command, fields, number, recipe
from ript.config import defaults

DESCRIPTION = """\
Interactive post-training of Vision-Language-Action policies: a policy practises in a simulator and improves from
success or failure alone."""

EXAMPLES = """\
examples:
  ript doctor                                             is everything here that is needed?
  ript rl --recipe smoke --out runs/smoke                 a first try, in under a minute
  ript quickstart --target drawer-open-v3                 from nothing to a post-trained policy
  ript eval --policy runs/smoke/policy --tasks reach

`ript COMMAND --help` shows the options and examples of a command."""

COMMANDS = (
    "tasks",
    "recipes",
    "check",
    "demos",
    "sft",
    "rl",
    "eval",
    "report",
    "study",
    "import",
    "export",
    "bench",
    "doctor",
    "quickstart",
)


CLUSTER = (
    ("nodes", int, "nodes to use (default: all)"),
    ("workers_per_node", int, "worker processes of each node (default: one a core)"),
    ("silence", float, "seconds without a sign of life after which a node counts as lost (default 60)"),
    ("start_timeout", float, "seconds that nodes may take to start (default 180)"),
    ("gpus_per_node", float, "1: a GPU for each node, to act and render on; 0.5: two share one (default 0)"),
)
"""Settings of a cluster that `ript eval` takes: name, type, meaning."""


def make_parser(words: Sequence[str] = ("import", "export")) -> argparse.ArgumentParser:
    """The command line, whole as far as `words`, what was typed, need it.

    `args.run` names a command's function; `args.overrides` says whether it takes fields.
    """
    parser = Parser(prog="ript", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for add in (_add_lists, _add_check, _add_demos, _add_training, _add_results, _add_studies):
        add(commands)
    _add_published(commands, words)
    for add in (_add_bench, _add_doctor, _add_quickstart):
        add(commands)
    return parser


def _add_lists(commands: argparse._SubParsersAction) -> None:
    p = command(
        commands,
        "tasks",
        "show_tasks",
        "list tasks and their instructions",
        "  ript tasks\n  ript tasks drawer\n  ript tasks '*-close-v3'\n  ript tasks ML45-test",
    )
    p.add_argument("pattern", nargs="?", metavar="PATTERN", help="part of a name, a shell pattern, or a named list")
    p = command(
        commands,
        "recipes",
        "show_recipes",
        "list recipes, or print one as a complete configuration",
        "  ript recipes\n  ript recipes quickstart\n  ript recipes quickstart > mine.toml",
    )
    p.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        type=os.path.expanduser,
        help="recipe to print; its text is TOML that --recipe reads back",
    )


def _add_check(commands: argparse._SubParsersAction) -> None:
    p = command(
        commands,
        "check",
        "check",
        "say whether practice on a simulator is sound, and whether a policy keeps its contract; exit code 1 if not",
        "  ript check toy/reach\n  ript check gym/FetchReach-v4\n"
        "  ript check gym/my_file:MyTask-v0 --sim.success=solved --sim.cameras=render\n"
        "  ript check toy/reach --policy my_policy:MyPolicy",
        overrides=True,
    )
    p.add_argument("task", metavar="TASK", help="SUITE/NAME: a task of any suite (`ript tasks`), or SUITE/PACKAGE:ID")
    p.add_argument(
        "--policy",
        metavar="WHAT",
        help="check a policy there, too: its folder, hf://owner/name[@revision], or a kind such as my_file:MyPolicy, "
        "of which a new one is made; docs/adding_a_policy.md has the contract",
    )
    number(p, "--states", 20, "initial states to try")
    number(p, "--steps", 40, "environment steps of each trajectory")
    number(p, "--seed", 0, "seed of the initial states and of the random actions")


def _add_demos(commands: argparse._SubParsersAction) -> None:
    demos = commands.add_parser(
        "demos",
        help="make, describe and replay demonstrations",
        description="Demonstrations by scripted experts or people, in HDF5 files.",
    )
    kinds = demos.add_subparsers(metavar="COMMAND", parser_class=Parser, required=True)
    p = command(
        kinds,
        "collect",
        "demos_collect",
        "let scripted experts make demonstrations, or replay those of people; only successes are kept",
        "  ript demos collect --tasks drawer-open-v3 --per-task 1 --out drawer.hdf5\n"
        "  ript demos collect --tasks reach push --per-task 20 --noise 0.2 --seed 1 --out demos.hdf5\n"
        "  ript demos collect --source human --tasks 'libero_*' --per-task 1 --out human.hdf5",
        overrides=True,
    )
    p.add_argument(
        "--tasks", nargs="+", metavar="TASK", required=True, help="tasks, a named list such as ML45-train, or a pattern"
    )
    p.add_argument("--per-task", type=int, metavar="N", required=True, help="demonstrations of each task")
    p.add_argument("--out", metavar="FILE.hdf5", required=True, help="file to write; replaced when all is done")
    number(p, "--seed", 0, "seed of the initial states and of the noise")
    p.add_argument(
        "--noise",
        type=float,
        metavar="STD",
        help="standard deviation of the Gaussian noise on executed actions (default: the recipe's)",
    )
    recipe(p)
    fields(p, "source", "workers")
    p = command(
        kinds,
        "convert",
        "demos_convert",
        "read demonstrations of other programs: a suite's makers', or actions and seeds of any Gymnasium environment",
        "  ript demos convert downloads/*_demo.hdf5 --out demos.hdf5\n"
        "  ript demos convert FILE --pictures rendered --sim.image_size=64 --every 2 --out demos.hdf5",
        overrides=True,
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="files to read")
    p.add_argument("--out", metavar="FILE.hdf5", required=True, help="file to write; replaced when all is done")
    p.add_argument(
        "--pictures",
        choices=("own", "rendered"),
        default="own",
        help="those in the files (default), or drawn anew from the recorded states, as --sim.* say",
    )
    number(p, "--every", 1, "keep every N-th observation")
    p = command(
        kinds,
        "info",
        "demos_info",
        "describe demonstration files: tasks, cameras, counts",
        "  ript demos info demos.hdf5",
    )
    p.add_argument("files", nargs="+", metavar="FILE", help="demonstration files")
    p = command(
        kinds,
        "verify",
        "demos_verify",
        "replay every demonstration in the simulator; exit code 1 when one does not succeed",
        "  ript demos verify demos.hdf5",
    )
    p.add_argument("file", metavar="FILE", help="demonstration file")


def _add_training(commands: argparse._SubParsersAction) -> None:
    p = command(
        commands,
        "sft",
        "sft",
        "train a policy on demonstrations (supervised fine-tuning), in the stages of its kind",
        "  ript sft --recipe quickstart --demos base.hdf5 drawer.hdf5 --out runs/sft\n"
        "  ript sft --recipe quickstart --demos base.hdf5 --tasks= --out runs/base    (no target: the base)\n"
        "  ript sft --recipe quickstart --demos base.hdf5 drawer.hdf5 --base runs/base/policy --out runs/b\n"
        "  ript sft --resume runs/sft\n"
        "  ript sft --recipe quickstart --demos demos.hdf5 --cluster auto --learn.ranks=auto --out runs/sft",
        overrides=True,
    )
    recipe(p, default=None)
    p.add_argument("--demos", nargs="+", metavar="FILE", help="demonstration files")
    p.add_argument("--out", metavar="DIR", help="run folder; the policy is written to DIR/policy")
    p.add_argument("--base", metavar="DIR", help="policy folder to fine-tune, or hf://owner/name[@revision]")
    p.add_argument("--resume", metavar="DIR", help="go on with an interrupted run")
    fields(p, "tasks", "seed", "cluster")
    p = command(
        commands,
        "rl",
        "rl",
        "post-train a policy by practice in a simulator",
        "  ript rl --recipe smoke --out runs/smoke\n"
        "  ript rl --recipe quickstart --policy runs/sft/policy --tasks drawer-open-v3 --out runs/rl\n"
        "  ript rl --recipe quickstart --policy runs/sft/policy --iterations 30 --workers 8 --seed 1 \\\n"
        "          --learn.learning_rate=5e-5 --out runs/rl2\n"
        "  ript rl --resume runs/rl\n"
        "  ript rl --resume runs/rl --iterations 30 --workers 8\n"
        "  ript rl --resume runs/rl --cluster auto",
        overrides=True,
    )
    recipe(p, default=None)
    p.add_argument(
        "--policy",
        metavar="DIR",
        help="policy folder to start from, or hf://owner/name[@revision] (recipe smoke needs none)",
    )
    p.add_argument("--out", metavar="DIR", help="run folder; the policy is written to DIR/policy")
    p.add_argument(
        "--resume",
        metavar="DIR",
        help="go on with a run that was interrupted, or with more --iterations; --workers and other --rollout.* "
        "may change",
    )
    fields(p, "tasks", "iterations", "workers", "seed", "cluster")


def _add_results(commands: argparse._SubParsersAction) -> None:
    p = command(
        commands,
        "eval",
        "evaluate",
        "measure a policy on test initial states",
        "  ript eval --policy runs/rl/policy --tasks drawer-open-v3 --trials 100\n"
        "  ript eval --policy runs/rl/policy --tasks ML45-test --greedy --json > eval.json\n"
        "  ript eval --policy runs/rl/policy --tasks reach --videos 3 --video-dir videos\n"
        "  ript eval --policy runs/rl/policy --tasks libero_object/4 --state-noise 0.05",
    )
    p.add_argument("--policy", metavar="DIR", required=True, help="policy folder, or hf://owner/name[@revision]")
    p.add_argument("--tasks", nargs="+", metavar="TASK", required=True, help="tasks, or a named list such as MT10")
    number(p, "--trials", 100, "test initial states of each task")
    number(p, "--seed", 0, "seed of the initial states and of sampling")
    mode = p.add_mutually_exclusive_group()
    mode.add_argument("--greedy", action="store_true", help="take the most likely sample instead of drawing one")
    mode.add_argument(
        "--temperature", type=float, metavar="T", help="temperature of sampling (default: the policy's own)"
    )
    number(p, "--videos", 0, "write videos of rollouts from the first N initial states of each task")
    p.add_argument(
        "--video-dir", default="eval-videos", metavar="DIR", help="folder for the videos (default eval-videos)"
    )
    p.add_argument(
        "--horizon",
        metavar="N",
        help="environment steps after which a rollout without success is a failure, or the name of one of the suite's "
        "protocols, such as published (default: the policy's)",
    )
    p.add_argument(
        "--state-noise",
        "--state_noise",
        dest="state_noise",
        type=float,
        default=0.0,
        metavar="METRES",
        help="standard deviation of Gaussian noise on where objects stand in the test states (default 0)",
    )
    number(p, "--workers", 2, "worker processes; 0: rollouts run in this process")
    p.add_argument("--cluster", metavar="WHERE", help="run rollouts on a Ray cluster: local, auto or HOST:PORT")
    for name, kind, about in CLUSTER:
        spelled = dict.fromkeys((f"--cluster.{name.replace('_', '-')}", f"--cluster.{name}"))
        p.add_argument(*spelled, dest=f"cluster_{name}", type=kind, metavar=kind.__name__[0].upper(), help=about)
    p = command(
        commands,
        "report",
        "report",
        "write one web page about one run, or several side by side",
        "  ript report runs/rl --out report.html\n  ript report runs/seed0 runs/seed1 --out seeds.html",
    )
    p.add_argument("runs", nargs="+", metavar="DIR", help="run folders")
    p.add_argument("--out", metavar="FILE.html", required=True, help="page to write")


def _add_studies(commands: argparse._SubParsersAction) -> None:
    p = command(
        commands,
        "study",
        "study",
        "run one of the paper's studies: every combination of settings, then one table and one report",
        "  ript study\n  ript study demos --dry-run\n  ript study demos --out runs/demos\n"
        "  ript study context_size --seeds 0 1 2 --out runs/contexts\n"
        "  ript study demos --out runs/demos --resume\n"
        "  ript study demos --iterations=15 --rollout.workers=8 --out runs/longer\n"
        "  ript study metaworld_ml45 --scale paper --dry-run",
        overrides=True,
    )
    p.add_argument("name", nargs="?", metavar="NAME", help="study to run; without one they are listed")
    p.add_argument(
        "--scale", default="small", metavar="NAME", help="small (for two cores) or paper; --dry-run says how long"
    )
    p.add_argument("--seeds", nargs="+", type=int, metavar="N", help="seeds to run (default: the study's own)")
    p.add_argument("--out", metavar="DIR", help="folder of the study (default runs/study-NAME-SCALE)")
    p.add_argument("--resume", action="store_true", help="go on with a study that was interrupted")
    p.add_argument(
        "--dry-run", action="store_true", help="only say what would be run, and what it would cost on this machine"
    )


def _add_published(commands: argparse._SubParsersAction, words: Sequence[str]) -> None:
    into = commands.add_parser(
        "import",
        help="turn a published checkpoint into a policy folder",
        description="Published checkpoints as policy folders.",
    )
    out = commands.add_parser(
        "export",
        help="turn a policy folder into a published checkpoint",
        description="Policy folders as published checkpoints.",
    )
    for name, parser in (("import", into), ("export", out)):
        formats = parser.add_subparsers(metavar="FORMAT", parser_class=Parser, required=True)
        if name in words:  # the kinds of policy, which bring the formats, are not looked through for other commands
            from ript.cli import checkpoints

            (checkpoints.add_import if name == "import" else checkpoints.add_export)(formats)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser("bench", help="measure speed", description="Benchmarks: ratios, and all raw numbers.")
    kinds = bench.add_subparsers(metavar="COMMAND", parser_class=Parser, required=True)
    p = command(
        kinds,
        "rollout",
        "bench_rollout",
        "time rollouts beside the stock environment, and beside the best that their parts alone allow",
        "  ript bench rollout\n  ript bench rollout --tasks drawer-open-v3 reach-v3 --workers 2 --json\n"
        "  ript bench rollout --cluster local --cluster.nodes=2 --cluster.workers-per-node=1    (what a cluster costs)",
        overrides=True,
    )
    recipe(p)
    fields(p, "tasks", "workers", "cluster")
    p = command(
        kinds,
        "update",
        "bench_update",
        "measure where the time of a post-training iteration goes",
        "  ript bench update\n  ript bench update --policy runs/sft/policy --tasks drawer-open-v3 --json",
        overrides=True,
    )
    p.add_argument("--policy", metavar="DIR", help="trained policy (default: random weights and drawn rewards)")
    recipe(p)
    fields(p, "tasks", "workers", "cluster")
    p = command(
        kinds,
        "policy",
        "bench_policy",
        "time what a policy computes when it acts and learns, beside the best that this machine could do",
        "  ript bench policy\n  ript bench policy --size paper --batch 16 --json\n"
        "  ript bench policy --kind openvla_oft --synthetic --device cuda",
    )
    p.add_argument("--kind", default=defaults.KIND, metavar="NAME", help=f"kind of policy (default {defaults.KIND})")
    p.add_argument(
        "--size", metavar="NAME", help="size of the policy; a wrong name is answered with those that there are"
    )
    p.add_argument(
        "--synthetic",
        action="store_true",
        help="the published size, where --size names none; all weights are random and made on the device",
    )
    p.add_argument(
        "--batch", type=int, nargs="+", metavar="N", help="observations of one call of act (default: the kind's)"
    )
    number(p, "--rows", None, "decisions of one update step (default: the kind's)")
    number(p, "--micro_batch", None, "decisions of one pass of an update step (default: the kind's)")
    p.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda (default cpu)")
    number(p, "--threads", None, "torch threads (default 2)")


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    p = command(
        commands,
        "doctor",
        "doctor",
        "check this machine; exit code 1 when something needed is missing",
        "  ript doctor\n  ript doctor --json\n  ript doctor --cluster auto --suite metaworld",
    )
    p.add_argument(
        "--suite",
        default=defaults.SUITE,
        metavar="NAME",
        help=f"suite of simulators that is needed here, and is tried (default {defaults.SUITE})",
    )
    p.add_argument("--cluster", metavar="WHERE", help="check every node of a Ray cluster too: auto or HOST:PORT")


def _add_quickstart(commands: argparse._SubParsersAction) -> None:
    p = command(
        commands,
        "quickstart",
        "quickstart",
        "from nothing to a post-trained policy: demonstrations, training, post-training, report",
        "  ript quickstart\n  ript quickstart --target button-press-topdown-v3 --seed 1\n"
        "  ript quickstart --fresh --out runs/from-nothing",
        overrides=True,
    )
    p.add_argument(
        "--target", metavar="TASK", help="task of the recipe's suite; it gets one demonstration (default the recipe's)"
    )
    p.add_argument("--fresh", action="store_true", help="make the pre-trained base anew, without the cache")
    p.add_argument("--out", metavar="DIR", help="output folder (default: a new one under runs/)")
    recipe(p)
    fields(p, "seed", "iterations", "workers")
