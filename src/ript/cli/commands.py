"""What each `ript` command does: arguments in, an `Answer` out. Heavy imports live inside the functions."""

from __future__ import annotations

import fnmatch
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ript.cli.answer import Answer, exit_code_of
from ript.cli.arguments import (
    asked_fields,
    configure,
    given_fields,
    kept_of_run,
    need_a_working_machine,
    refuse_with_resume,
    require,
    resumed,
    saying_what_is_kept,
    steps_or_protocol,
    task_names,
)
from ript.cli.check import check as check
from ript.cli.checkpoints import export_checkpoint as export_checkpoint
from ript.cli.checkpoints import import_checkpoint as import_checkpoint
from ript.cli.demonstrations import demos_collect as demos_collect
from ript.cli.demonstrations import demos_convert as demos_convert
from ript.cli.demonstrations import demos_info as demos_info
from ript.cli.demonstrations import demos_verify as demos_verify
from ript.cli.machine import bench_policy as bench_policy
from ript.cli.machine import bench_rollout as bench_rollout
from ript.cli.machine import bench_update as bench_update
from ript.cli.machine import doctor as doctor
from ript.cli.parser import CLUSTER
from ript.config import overrides, recipes
from ript.config.text import describe
from ript.core.errors import ConfigError, RiptError, RunError, UnknownNameError
from ript.core.options import replace
from ript.report.tables import change, count, eval_table, modes, points, rate, table

if TYPE_CHECKING:
    from ript.core.plugins import Suite
    from ript.core.types import EvalResult, Task


# ------------------------------------------------------------------ tasks, recipes


def show_tasks(args: Namespace) -> Answer:
    from ript.run.progress import status
    from ript.sims.registry import listing_suites

    suites, broken = listing_suites()
    if args.pattern is None:
        found = [task for suite in suites.values() for task in suite.tasks()]
        for why in broken.values():
            status(f"not listed: {why}")
    else:
        found = _matching(args.pattern, suites, broken)
    return Answer(
        text=table([(t.key, t.instruction) for t in found]),
        document=[
            {"key": t.key, "suite": t.suite, "name": t.name, "instruction": t.instruction, "horizon": t.horizon}
            for t in found
        ],
    )


def _matching(pattern: str, found: Mapping[str, Suite], broken: Mapping[str, RiptError]) -> list[Task]:
    from ript.sims.registry import keys_elsewhere, suite_to_install

    if why := broken.get(pattern.partition("/")[0]):
        raise why
    named = {
        written: suite
        for suite in found.values()
        for name in suite.lists()
        for written in (name, f"{suite.name}/{name}")
    }
    if pattern in named:
        return list(named[pattern].expanded([pattern]))
    everything = [task for suite in found.values() for task in suite.tasks()]
    matching = [
        t for t in everything if pattern in t.key or fnmatch.fnmatch(t.key, pattern) or fnmatch.fnmatch(t.name, pattern)
    ]
    if not matching:
        known = keys_elsewhere(pattern) or [*(t.name for t in everything), *named]
        remedy = suite_to_install(pattern if "/" in pattern else f"{pattern}/") if pattern[:1].isalpha() else ""
        raise UnknownNameError("task or named list", pattern, known, remedy)
    return matching


def show_recipes(args: Namespace) -> Answer:
    from ript.studies.catalogue import STUDIES, get_study

    if args.name in STUDIES:
        study = get_study(args.name, "paper")
        where = ", practised on the initial states of its base's demonstrations"
        cells = "\n".join(f"# {cell.name}{where if study.on_demonstrated(cell) else ''}" for cell in study.cells)
        text = f"# {study.question} The first of these cells (`ript study {study.name}` runs them all):\n{cells}"
        config = study.cells[0].config
        return Answer(
            text=f"{text}\n\n{describe(config)}", document={cell.name: cell.config.to_json() for cell in study.cells}
        )
    if args.name is not None:
        config = overrides.load_recipe(args.name)
        return Answer(text=describe(config), document=config.to_json())
    known = recipes.ABOUT
    studies = {name: get_study(name, "paper").question for name in STUDIES}
    text = f"{table(list(known.items()))}\n\nstudies of the paper (run with `ript study NAME`):\n"
    return Answer(text=text + table(list(studies.items())), document=known | studies)


# ------------------------------------------------------------------ training


def sft(args: Namespace) -> Answer:
    began = time.perf_counter()
    if args.resume:
        refuse_with_resume(args, "demos", "base")
        config, given = resumed(args, "sft")
        from ript.run.settings import leaves
        from ript.sft import resume_sft

        changes = {name: value for name, value in leaves(config.to_json()).items() if name in given}
        with saying_what_is_kept(lambda: kept_of_run(args.resume, "sft")):
            resume_sft(args.resume, changes)
        out = args.resume
    else:
        require(args, "recipe", "demos", "out")
        config = configure(args)
        from ript.sft import train_sft

        with saying_what_is_kept(lambda: kept_of_run(args.out, "sft")):
            train_sft(config, args.demos, args.out, base=args.base, asked=asked_fields(args))
        out = args.out
    from ript.run.files import read_lines

    numbers: dict[str, float] = {}
    for row in read_lines(Path(out) / "metrics.jsonl"):
        numbers |= {k: v for k, v in row.items() if "/" in k}
    document = {
        "policy": str(Path(out) / "policy"),
        "run": str(out),
        "metrics": numbers,
        "seconds": round(time.perf_counter() - began, 2),
    }
    rows = [(name, f"{value:.4g}") for name, value in numbers.items() if value is not None]
    text = table(rows, right=(1,)) + f"\n\npolicy: {document['policy']}"
    return Answer(text=text, document=document, kept=str(out))


def rl(args: Namespace) -> Answer:
    if args.resume:
        refuse_with_resume(args, "policy")
        config, given = resumed(args, "rl")
        asked, out = {*given}, args.resume
    else:
        require(args, "recipe", "out")
        config, asked, out = configure(args), asked_fields(args), args.out
        if args.policy is None and config.recipe != "smoke":
            raise ConfigError(
                f"recipe {config.recipe} starts from a trained policy: give --policy DIR (`ript sft` makes one)"
            )
    from ript.report.page import report_or_say
    from ript.rl import train_rl

    with saying_what_is_kept(lambda: kept_of_run(out, "rl")):
        result = train_rl(config, args.policy, out, resume=bool(args.resume), asked=asked)
        report = report_or_say([result.folder], result.folder / "report.html")
    document: dict[str, Any] = {
        "before": {mode: r.to_json() for mode, r in result.before.items()},
        "after": {mode: r.to_json() for mode, r in result.after.items()},
        "change": {mode: change(result.before[mode], r) for mode, r in result.after.items()},
        "iterations": result.iterations,
        "rollouts": result.rollouts,
        "env_steps": result.env_steps,
        "seconds": dict(result.seconds),
        "reason": result.reason,
        "run": str(out),
        "policy": str(result.policy),
        "report": None if report is None else str(report),
    }
    did = f"{count(result.iterations, 'iteration')}, {count(result.rollouts, 'rollout')}, {result.env_steps} steps"
    lines = [f"{did}; {result.reason}"]
    lines += [f"before   {modes(result.before)}", f"after    {modes(result.after)}"]
    lines += [f"change   {mode} {points(found)}" for mode, found in document["change"].items()]
    lines += [f"look at  {report or result.folder} (policy: {result.policy})"]
    lines += (unmeasured := _unmeasured(*result.before.values(), *result.after.values()))
    return Answer(text="\n".join(lines), document=document, code=1 if unmeasured else 0, kept=str(out))


def quickstart(args: Namespace) -> Answer:
    from ript.studies.bases import base_folder, base_is_made
    from ript.studies.quickstart import output_folder
    from ript.studies.quickstart import quickstart as run

    config = configure(args)
    if args.target and "tasks" in given_fields(args):
        raise ConfigError("--target and --tasks are the same: give one of them")
    if args.target:
        config = recipes.with_tasks(config, task_names(config.sim, [args.target]))
    out = output_folder(config, args.fresh, args.out)
    need_a_working_machine(out, [config], needs_cache=lambda: not (args.fresh or base_is_made(base_folder(config))))

    with saying_what_is_kept(f"finished stages and checkpoints are kept in {out}; the same command goes on from there"):
        result = run(seed=config.seed, fresh=args.fresh, out=out, config=config)
    before, after = (results[result.mode] for results in (result.rl.before, result.rl.after))
    lines = (
        f"before   {rate(before.total)} of {result.target} on test states, from "
        f"{count(config.demos.target, 'demonstration')}{' each' if len(config.tasks) > 1 else ''}",
        f"after    {rate(after.total)} after {count(result.rl.iterations, 'iteration')} of practice; "
        f"{points(change(before, after))}",
        f"look at  {result.report or result.rl.folder} (policy: {result.rl.policy})",
        *(unmeasured := _unmeasured(before, after)),
    )
    return Answer(text="\n".join(lines), document=result.to_json(), code=1 if unmeasured else 0, kept=str(out))


# ------------------------------------------------------------------ results


def evaluate(args: Namespace) -> Answer:
    from ript.config.sections import ClusterConfig, EvalConfig, RolloutConfig
    from ript.core.places import require_writable_folder
    from ript.evaluation import evaluate as measure
    from ript.evaluation import named_policy
    from ript.run.progress import status
    from ript.run.video import require_encoder, require_no_videos, write_videos
    from ript.sims.seen import sim_options_of

    if args.trials < 1:
        raise ConfigError(f"--trials must be at least 1, got {args.trials}")
    EvalConfig(trials=args.trials)
    given = {name: getattr(args, f"cluster_{name}") for name, _, _ in CLUSTER}
    given = {name: value for name, value in given.items() if value is not None}
    cluster = ClusterConfig(address=args.cluster or "", **given)
    if given and not cluster.used:
        raise ConfigError(f"{', '.join(f'--cluster.{name}' for name in given)}: no effect without --cluster")
    rollout = RolloutConfig(workers=args.workers, inference="central" if cluster.gpus_per_node else "local")
    name, policy = named_policy(args.policy)
    sim = sim_options_of(policy)
    names, how = task_names(sim, args.tasks), steps_or_protocol(sim.suite, args.horizon)
    if args.videos:
        require_encoder()
        require_writable_folder(args.video_dir)
        require_no_videos(args.video_dir)
    with saying_what_is_kept("nothing is kept of an evaluation; run it again"):
        result = measure(
            policy,
            names,
            trials=args.trials,
            seed=args.seed,
            greedy=args.greedy,
            temperature=args.temperature,
            videos=args.videos,
            state_noise=args.state_noise,
            rollout=rollout,
            cluster=cluster,
            **how,
        )
    result = replace(result, policy=name)
    steps = sorted(set(result.horizon.values()))
    within = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}, each task's own"
    moved = f", objects moved by {100 * result.state_noise:g} cm" if result.state_noise else ""
    text = f"{name}, {result.mode}, seed {result.seed}, horizon {within}{moved}\n\n{eval_table(result)}"
    code = 0
    try:
        written, missing = write_videos(args.video_dir, result.videos)
        if result.videos:
            text += f"\n\n{count(len(written), 'video')} in {args.video_dir}"
        for line in missing:
            status(line)
        code = 1 if missing else 0
    except (KeyboardInterrupt, SystemExit) as stop:  # what was measured is complete
        if not (code := exit_code_of(stop)):
            raise
        status(f"stopped while videos were written; those that are done are in {args.video_dir}")
    unmeasured = _unmeasured(result)
    text += "".join(f"\n\n{line}" for line in unmeasured)
    if result.reasons:
        text += f"\n\nan ERROR in full:\n{result.reasons[0].example}"
    return Answer(text=text, document=result.to_json(), code=code or int(bool(unmeasured)), costly=True)


def _unmeasured(*results: EvalResult) -> list[str]:
    """A line that names the tasks of which nothing was measured; none when there are none."""
    found = [task for result in results for task, of_task in result.tasks.items() if not of_task.trials]
    return [f"not measured, for every trial ended in ERROR: {', '.join(dict.fromkeys(found))}"] if found else []


def report(args: Namespace) -> Answer:
    from ript.report.page import write_report

    folders = [_run_folder(Path(run)) for run in args.runs]
    out = write_report(folders, args.out)
    document = {"report": str(out), "runs": [str(f) for f in folders]}
    return Answer(text=f"written to {out}", document=document, kept=str(out))


def _run_folder(folder: Path) -> Path:
    """The folder itself, or the run inside an output folder of `ript quickstart`."""
    from ript.core.disk import reading

    inside = folder / "rl"
    with reading(folder, RunError):
        return inside if not (folder / "config.json").exists() and (inside / "config.json").exists() else folder


def study(args: Namespace) -> Answer:
    from ript.core.files import read_text
    from ript.run.progress import status
    from ript.studies.bases import base_folder, base_is_made
    from ript.studies.catalogue import STUDIES, get_study, with_simulator
    from ript.studies.cost import cost
    from ript.studies.run import finished, record, require_inputs, run_study, seeds_to_run, with_changes

    if args.name is None:
        found = [get_study(name) for name in STUDIES]
        return Answer(
            text=table([["study", "needs", "question"], *([one.name, one.needs, one.question] for one in found)]),
            document={one.name: one.question for one in found},
        )
    changes = overrides.split_words(args.rest)
    chosen = with_simulator(with_changes(get_study(args.name, args.scale), changes))
    out = args.out or f"runs/study-{args.name}-{args.scale}"
    seeds = seeds_to_run(chosen, Path(out), args.seeds, args.resume)
    done: set[tuple[str, int]] = set()
    if not args.dry_run or args.resume:  # what cannot be run is refused before anything is measured
        seeds = record(chosen, Path(out), seeds, changes, args.resume)["seeds"]
        done = finished(chosen, seeds, Path(out))
    chosen = replace(chosen, seeds=tuple(seeds))
    if args.dry_run or len(done) < len(chosen.cells) * len(seeds):
        if not args.dry_run:
            require_inputs(chosen)
        expense = cost(chosen, seeds, done)
        if args.dry_run:
            document = {"study": args.name, "scale": args.scale} | expense.to_json()
            return Answer(text=expense.text(chosen), document=document, costly=True)
        status(expense.text(chosen))
        need_a_working_machine(
            Path(out),
            [cell.config for cell in chosen.cells],
            needs_cache=lambda: not all(base_is_made(base_folder(cell.config)) for cell in chosen.cells),
        )
    with saying_what_is_kept(f"finished cells are kept in {out}; go on with --resume"):
        document = run_study(args.name, out, scale=args.scale, seeds=seeds, changes=changes, resume=args.resume)
    lines = [read_text(document["table"])]
    lines += [f"look at  {document['report']}"] if document["report"] else []
    lines += [f"failed   {cell}: {why}" for cell, why in document["failed"].items()]
    return Answer(text="\n".join(lines), document=document, code=1 if document["failed"] else 0, kept=str(out))
