"""What `ript demos` does: demonstrations made, converted, described, replayed. Heavy imports live inside functions."""

from __future__ import annotations

from argparse import Namespace

from ript.cli.answer import Answer
from ript.cli.arguments import given_fields, saying_what_is_kept, task_names
from ript.config import overrides
from ript.config.sections import Config
from ript.core.errors import ConfigError, DataError
from ript.report.tables import count, table
from ript.run.settings import refuse_unused


def demos_collect(args: Namespace) -> Answer:
    from ript.build import demo_source, demonstrating, demonstrator_factory
    from ript.studies.bases import collect

    given = given_fields(args)
    config = overrides.apply(overrides.load_recipe(args.recipe), given)
    if args.noise is not None and "demos.noise" in given:
        raise ConfigError("--noise and --demos.noise are the same: give one of them")
    source = demo_source(config)
    if source == "human" and (args.noise is not None or "demos.noise" in given):
        raise ConfigError(
            "noise has no effect on demonstrations of people, which are replayed as they are: leave it out"
        )
    refuse_unused("demos collect", config, given)
    names = task_names(config.sim, args.tasks)
    keys = [f"{config.sim.suite}/{name}" for name in names]
    noise = config.demos.noise if args.noise is None else args.noise
    if args.per_task < 1:
        raise ConfigError(f"--per-task must be at least 1, got {args.per_task}")
    with saying_what_is_kept(f"{args.out} was not written; run the command again"), demonstrating(config) as pool:
        made = collect(
            demonstrator_factory(config),
            keys,
            args.per_task,
            args.out,
            source=source or "expert",
            seed=args.seed,
            noise=noise,
            every=config.demos.every,
            workers=config.rollout.workers,
            pool=pool,
        )
    tries = "1 try" if made.tries == 1 else f"{made.tries} tries"
    counts = f"{made.steps} steps, {made.frames} observations, {tries}"
    text = f"{count(made.demos, 'demonstration')} of {count(len(keys), 'task')} ({counts})"
    document = {
        "file": args.out,
        "tasks": keys,
        "source": source,
        "demos": made.demos,
        "steps": made.steps,
        "looks": made.frames,
        "tries": made.tries,
        "seed": args.seed,
        "noise": 0.0 if source == "human" else noise,
    }
    return Answer(text=f"{text}\nwritten to {args.out}", document=document, kept=str(args.out))


def demos_convert(args: Namespace) -> Answer:
    from ript.core.registry import suites
    from ript.demos.convert import convert_demos
    from ript.demos.formats.robomimic import read_foreign

    given = given_fields(args)
    having = {name: suite for name, suite in suites.all()[0].items() if suite.converts is not None}
    if "sim.suite" not in given:
        first = next(read_foreign(args.files[0]))
        if not (theirs := [name for name, suite in having.items() if suite.wrote(first)]):
            raise DataError(
                f"{args.files[0]}: of no suite that reads files of other programs ({', '.join(having)}), as far as it "
                "says: name one (--sim.suite), or see docs/schemas.md for what such files have to say"
            )
        given["sim.suite"] = theirs[:1]
    config = overrides.apply(Config(), given)
    refuse_unused("demos convert", config, given)
    suite = suites.get(config.sim.suite)
    if suite.converts is None:
        raise ConfigError(f"suite {suite.name} reads no demonstrations of other programs; {', '.join(having)} do")
    rendered = args.pictures == "rendered"
    convert = suite.converts
    with saying_what_is_kept(f"{args.out} was not written; run the command again"):
        made = convert_demos(args.files, args.out, lambda demo: convert(demo, config.sim, rendered), every=args.every)
    document = {"file": args.out, "demos": made, "pictures": args.pictures, "every": args.every}
    return Answer(text=f"{count(made, 'demonstration')}\nwritten to {args.out}", document=document, kept=str(args.out))


def demos_info(args: Namespace) -> Answer:
    from ript.demos.demo_set import open_demos

    info = open_demos(args.files).info()
    lines = [f"{f['path']}: {count(f['demos'], 'demonstration')}, {f['bytes'] / 1e6:.1f} MB" for f in info["files"]]
    lines.append("cameras: " + ", ".join(f"{name} {h}x{w}" for name, (h, w) in info["cameras"].items()))
    rows = [("task", "demos", "steps (min-max)", "observations", "tries")] + [
        (
            key,
            str(t["demos"]),
            f"{t['steps']['total']} ({t['steps']['min']}-{t['steps']['max']})",
            str(t["looks"]),
            str(t["tries"]),
        )
        for key, t in info["tasks"].items()
    ]
    return Answer(text="\n".join(lines) + "\n\n" + table(rows, right=(1, 2, 3, 4)), document=info)


def demos_verify(args: Namespace) -> Answer:
    from ript.build import simulator_factory
    from ript.demos.demo_set import open_demos
    from ript.demos.verify import verify
    from ript.run.progress import progress
    from ript.sims.seen import sim_options_of_spec

    demos = open_demos(args.file)
    sim = sim_options_of_spec(demos.spec, max(task.horizon for task in demos.tasks))
    results = []
    with progress[object](len(demos), "replaying demonstrations") as bar:
        for result in verify(args.file, simulator_factory(sim)):
            results.append(result)
            bar.advance()
    good, exact = sum(r.succeeded for r in results), sum(r.exact for r in results)
    rows = [("demonstration", "task", "initial state", "recorded", "replayed")] + [
        (
            r.demo,
            r.task_key,
            r.state_id,
            f"step {r.recorded_steps}",
            f"step {r.replayed_steps}" if r.succeeded else "NO SUCCESS",
        )
        for r in results
    ]
    text = f"{table(rows)}\n\n{good} of {len(results)} succeed, {exact} of them exactly as recorded"
    document = {
        "file": args.file,
        "succeeded": good,
        "exact": exact,
        "demos": [
            {
                "demo": r.demo,
                "task": r.task_key,
                "initial_state": r.state_id,
                "recorded_steps": r.recorded_steps,
                "replayed_steps": r.replayed_steps,
                "pixel_difference": r.pixel_difference,
                "proprio_difference": r.proprio_difference,
            }
            for r in results
        ],
    }
    return Answer(text=text, document=document, code=0 if good == len(results) else 1, costly=True)
