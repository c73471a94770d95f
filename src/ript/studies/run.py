"""Run a study: every cell and seed, resumable; then one table and one report.

Several processes, of several machines that share the folder, may work on it: each cell is run once, by whichever comes
to it first.

out/study.json              what was asked for
out/sft-HASH/               fine-tuned policies; cells that differ in post-training alone share them
out/CELL-seedN/             a post-training run; its result.json says that it is done
out/CELL-seedN.error.txt    why a cell failed; it is tried again by the next call with --resume
out/table.md, report.html   made anew after every cell
out/.claims/                what a process works on now: one lock for each cell and fine-tuned policy
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ript.build import demo_source, simulator_factory, task_keys
from ript.config import overrides
from ript.config.sections import Config
from ript.core.errors import ConfigError, DataError, NoSignalError, RiptError, RunError
from ript.core.files import expanded, make_folder, read_text, write_text
from ript.core.options import replace
from ript.core.registry import kinds
from ript.demos.demo_set import open_demos
from ript.policies.folder import kind as policy_kind
from ript.policies.folder import read_tensors
from ript.report.page import report_or_say
from ript.report.tables import count
from ript.rl import train_rl
from ript.run import lock
from ript.run.files import read_json, write_json
from ript.run.lock import InUse, locked
from ript.run.progress import status
from ript.run.reading import read_config, read_rows
from ript.run.resuming import differing, neutral
from ript.run.settings import leaves, listed, refuse_unused, refuse_unused_stages, unused
from ript.run.start import within_episodes
from ript.studies.bases import (
    OF_BASE,
    base_fingerprint,
    base_folder,
    collect,
    make_base,
    sft_fingerprint,
    train_unless_done,
)
from ript.studies.catalogue import Cell, Scale, Study, get_study, with_simulator
from ript.studies.notes import finetunes
from ript.studies.table import markdown, study_table, summarise

RECORD, CLAIMS = "study.json", ".claims"


def run_study(
    name: str,
    out: str | Path,
    *,
    scale: Scale = "small",
    seeds: Sequence[int] | None = None,
    changes: Mapping[str, Sequence[str]] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run what is not done yet, and wait for what other processes are running.

    Args:
        name: of `catalogue.STUDIES`.
        out: folder of the study.
        scale: "small" or "paper".
        seeds: instead of the study's own, or of those that are there; with `resume`, further ones are added.
        changes: field -> words, in every cell; see `overrides`. Those that results do not depend on
            (`resuming.neutral`) are this process's own, and others may come with each call.
        resume: `out` holds this study already; another process may be working on it.

    Returns:
        {"study", "scale", "seeds", "changes", "question", "expected", "shrunk", "differs", "rows", "cells", "failed",
        "table", "report"}; a row is {"cell", "seed", "mode", "before", "after", "iterations", "rollouts", "env_steps"},
        a cell what its seeds come to together, see `table.Row`.

    Raises:
        UnknownNameError: no such study or field.
        ConfigError: a value that cannot be, one of a field that the study varies, or a seed given twice.
        DependencyMissing: its simulator is not there.
        RunError: `out` holds something else.
    """
    changes = changes or {}
    study = with_simulator(with_changes(get_study(name, scale), changes))
    folder = expanded(out)
    asked = record(study, folder, seeds_to_run(study, folder, seeds, resume), changes, resume)
    with locked(make_folder(folder), wait=True):  # others may have begun meanwhile
        if (folder / RECORD).exists():
            asked = record(study, folder, asked["seeds"], changes, resume)
        write_json(folder / RECORD, asked)
    study = replace(study, changed=_told(asked["changes"]))
    _run_cells(study, asked["seeds"], folder)
    return _summary_of_all(study, folder)


def with_changes(study: Study, changes: Mapping[str, Sequence[str]]) -> Study:
    """The study with other values in all its cells, which its table then tells."""
    if not changes:
        return study
    if "seed" in changes:
        raise ConfigError("seed: a study has several; give them with --seeds")
    names = [_long(name) for name in changes]
    cells = tuple(replace(cell, config=overrides.apply(cell.config, changes)) for cell in study.cells)
    for name in names:  # that one cell of several has an effect of it is enough
        why = [unused("study", cell.config, name) for cell in cells]
        if all(why):
            raise ConfigError(str(why[0]))
    cells = tuple(replace(cell, config=within_episodes(cell.config, names)) for cell in cells)
    for cell in cells:
        refuse_unused("study", cell.config, ())
    if not any(finetunes(cell.config) for cell in cells):
        refuse_unused_stages(cells[0].config, names, base=False, targets=False)
    for name in changes:
        values = [_value(cell.config, _long(name)) for cell in study.cells]
        if any(value != values[0] for value in values):
            raise ConfigError(f"{name} is what the cells of {study.name} differ in ({values}), and cannot be set")
    return replace(study, cells=cells, changed=_told(_binding(changes)))


def _binding(changes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Those on which results depend."""
    return {name: list(words) for name, words in changes.items() if not neutral(_long(name))}


def _told(changes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """In words, as the table has them."""
    return tuple(f"{name} = {' '.join(words)}" for name, words in changes.items())


def _long(name: str) -> str:
    return overrides.SHORT.get(name, name)


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds, when each is there once and none is negative."""
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds: each once and none negative, got {' '.join(map(str, seeds))}")
    return list(seeds)


def _value(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def seeds_to_run(study: Study, folder: Path, seeds: Sequence[int] | None, resume: bool) -> list[int]:
    """The seeds to run: those asked for; without any, those of a study that goes on, or the study's own."""
    if seeds:
        return checked_seeds(seeds)
    if resume and (folder / RECORD).exists():
        return list(_held(folder)["seeds"]) or list(study.seeds)
    return list(study.seeds)


def _held(folder: Path) -> dict[str, Any]:
    """What study.json says.

    Raises:
        RunError: it is damaged.
    """
    held = read_json(folder / RECORD)
    seeds = held.get("seeds") if isinstance(held, dict) else None
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not isinstance(held, dict) or not isinstance(seeds, list) or not whole or len(set(seeds)) < len(seeds):
        raise RunError(f"{folder / RECORD} is damaged: choose another --out")
    return held


def record(
    study: Study, folder: Path, seeds: Sequence[int], changes: Mapping[str, Sequence[str]], resume: bool
) -> dict[str, Any]:
    """What study.json will say: what was asked for, with the seeds that are there already. Nothing is written.

    Raises:
        RunError: the study cannot be run in that folder; names the settings that are others there.
    """
    asked: dict[str, Any] = {"study": study.name, "scale": study.scale, "seeds": list(seeds)}
    asked |= {"changes": _binding(changes)}
    there: list[int] = []
    if (folder / RECORD).exists():
        held = _held(folder)
        if set(held) != set(asked):
            raise RunError(f"{folder / RECORD} is damaged: choose another --out")
        elsewhere = "ask for the same, or choose another --out"
        if (held["study"], held["scale"]) != (study.name, study.scale) or (not resume and held["seeds"] != list(seeds)):
            raise RunError(f"{folder} holds another study ({_words(held)}): {elsewhere}")
        if held["changes"] != asked["changes"]:
            if others := _others(study, held, folder):
                raise RunError(f"{folder} holds another study: {'; '.join(others)}: {elsewhere}")
            asked["changes"] = held["changes"]  # the same values in other words
        if not resume:
            raise RunError(f"{folder} holds this study already: go on with --resume, or choose another --out")
        there = held["seeds"]
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty, and no study ({RECORD} is missing): choose another --out")
    elif resume:
        raise RunError(f"{folder} holds no study: leave --resume out to begin")
    return asked | {"seeds": list(dict.fromkeys([*there, *seeds]))}


def _others(study: Study, held: Mapping[str, Any], folder: Path) -> list[str]:
    """The settings of cells that are others than in the study on record, each with both values."""
    try:
        there = with_simulator(with_changes(get_study(study.name, study.scale), held["changes"]))
    except (RiptError, TypeError, AttributeError, ValueError) as error:
        why = f"what it was asked for, {held['changes']}, cannot be asked for now ({error})"
        raise RunError(f"{folder / RECORD}: {why}: choose another --out") from error
    found: dict[str, str] = {}
    for here, other in zip(study.cells, there.cells, strict=True):
        ours, theirs = leaves(here.config.to_json()), leaves(other.config.to_json())
        for name in [*ours, *(theirs.keys() - ours.keys())]:
            if ours.get(name) != theirs.get(name) and not neutral(name):
                value, has = listed(ours.get(name)), listed(theirs.get(name))
                found.setdefault(name, f"{name} = {value} (the study there has {has})")
    return list(found.values())


def require_inputs(study: Study) -> None:
    """Raise unless what the cells' policies need is here, and the demonstrations whose states they practise on.

    Raises:
        DependencyMissing, DataError: something is not, or it is damaged.
    """
    for options in {str(cell.config.policy): cell.config.policy for cell in study.cells}.values():
        kinds.get(options.kind).check(options)
    for file in sorted({file for cell in study.cells for file in cell.config.sampling.demos}):
        open_demos([file])


def _words(asked: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in asked.items() if value)


def _cells(study: Study, seeds: Sequence[int]) -> Iterator[tuple[Cell, int]]:
    for seed in seeds:
        for cell in study.cells:
            yield cell, seed


def finished(study: Study, seeds: Sequence[int], folder: Path) -> set[tuple[str, int]]:
    """(name of a cell, seed) of the runs that are done."""
    return {
        (c.name, seed) for c, seed in _cells(study, seeds) if (cell_folder(folder, c, seed) / "result.json").exists()
    }


def cell_folder(folder: Path, cell: Cell, seed: int) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', cell.name).strip('-')}-seed{seed}"


# ------------------------------------------------------------------ one cell


def _run_cells(study: Study, seeds: Sequence[int], folder: Path) -> None:
    """All cells: those that are free here, one after another; those that others work on are waited for, and run here
    if they stop before it is done. One that fails is not tried again, wherever that was."""
    left, before, waiting = list(_cells(study, seeds)), _troubles(folder), False
    while left:
        busy = []
        for cell, seed in left:
            name = cell_folder(folder, cell, seed).name
            try:
                with locked(make_folder(folder / CLAIMS / name)):
                    failed_elsewhere = _troubles(folder).get(name) != before.get(name)
                    if not failed_elsewhere and _run_cell(study, cell, seed, folder):
                        _summary_of_all(study, folder)
            except InUse:
                busy.append((cell, seed))
        if len(busy) == len(left):
            if not waiting:
                status(f"{study.name}: waiting for {count(len(busy), 'cell')} that other processes work on")
            waiting = True
            time.sleep(lock.POLL)
        left = busy


def _troubles(folder: Path) -> dict[str, int]:
    """Name of a cell's folder -> when its error was written, as a number that changes."""
    return {path.name.removesuffix(".error.txt"): path.stat().st_mtime_ns for path in folder.glob("*.error.txt")}


def _run_cell(study: Study, cell: Cell, seed: int, folder: Path) -> bool:
    """One run, unless it is done already; what goes wrong in it is written down and does not stop the others."""
    run = cell_folder(folder, cell, seed)
    trouble = run.with_name(f"{run.name}.error.txt")
    if (cell.name, seed) in finished(study, [seed], folder):
        return False
    status(f"{study.name}: {cell.name}, seed {seed}")
    try:
        config = replace(cell.config, seed=seed)
        policy = start_policy(config, folder)
        if study.on_demonstrated(cell) and not config.sampling.demos:
            demos = (str(base_folder(config) / "demos.hdf5"),)
            config = replace(config, sampling=replace(config.sampling, demos=demos))
        train_rl(config, policy, run, resume=(run / "config.json").exists())
        trouble.unlink(missing_ok=True)
    except Exception as error:  # whatever it is, out of memory too: the other cells go on
        status(f"  failed: {error}")
        again = ""
        if isinstance(error, NoSignalError):
            again = f"; to try it from its beginning, delete {run}"
        elif isinstance(error, DataError) and OF_BASE not in str(error):
            made = (base_folder(cell.config), folder / f"sft-{sft_fingerprint(replace(cell.config, seed=seed))}", run)
            if damaged := [place for place in made if f"{place}/" in str(error)]:
                again = f"; delete {damaged[0]}, and --resume makes it again"
        write_text(trouble, "".join(traceback.format_exception(error)).rstrip() + again)
    return True


def start_policy(config: Config, folder: Path) -> Path:
    """The base, fine-tuned toward the tasks that it has not seen; made unless it is there."""
    base = make_base(replace(config, seed=0), base_folder(config))
    if not finetunes(config):
        return base / "sft" / "policy"
    sft = folder / f"sft-{sft_fingerprint(config)}"
    target = sft.with_suffix(".hdf5")
    d = config.demos
    if (sft / "policy").exists():
        return sft / "policy"
    with locked(make_folder(folder / CLAIMS / sft.name), wait=True):  # other cells need it, too
        if not target.exists():
            keys = task_keys(config.sim, config.tasks)
            collect(
                simulator_factory(config.sim),
                keys,
                d.target,
                target,
                source=demo_source(config, target=True) or "expert",
                seed=config.seed,
                noise=d.noise,
                every=d.every,
                workers=config.rollout.workers,
            )
        train_unless_done(config, [base / "demos.hdf5", target], sft, base=base / "sft" / "policy")
    return sft / "policy"


# ------------------------------------------------------------------ results


def _summary_of_all(study: Study, folder: Path) -> dict[str, Any]:
    """`summary`, with the seeds of all processes that work on the study."""
    with locked(folder, wait=True):
        asked = read_json(folder / RECORD)
        return summary(replace(study, seeds=tuple(asked["seeds"])), asked, folder)


def summary(study: Study, asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is done so far; writes the table and the report. A cell whose files are damaged or gone counts as failed."""
    rows, runs = [], []
    shared: dict[tuple[str, str], tuple[str, Path]] = {}
    bases: dict[str, str] = {}  # name of a cell -> fingerprint of its base, which no seed is part of
    failed = {path.name.removesuffix(".error.txt"): _last_line(path) for path in sorted(folder.glob("*.error.txt"))}
    for cell, seed in _cells(study, asked["seeds"]):
        run = cell_folder(folder, cell, seed)
        if not (run / "result.json").exists():
            continue
        try:
            base = bases.get(cell.name) or bases.setdefault(cell.name, base_fingerprint(cell.config))
            row = _row(cell, seed, run, base)
            _require_shared(row.pop("shared"), run, shared)
            rows.append(row)
            runs.append(run)
        except (RiptError, OSError, LookupError, TypeError, ValueError) as error:
            failed[run.name] = f"{error}; to run it again, delete {run} and use --resume"
    found = summarise(study, rows)
    table = study_table(study, found, failed)
    write_text(folder / "table.md", markdown(table))
    report = report_or_say(runs, folder / "report.html", table=table) if runs else None
    return asked | {
        "question": study.question,
        "expected": study.expected,
        "shrunk": list(study.shrunk),
        "differs": list(study.differs),
        "rows": [{k: v for k, v in row.items() if k != "states"} for row in rows],
        "cells": [row.to_json() for row in found],
        "failed": failed,
        "table": str(folder / "table.md"),
        "report": None if report is None else str(report),
    }


def _require_shared(
    contents: Mapping[tuple[str, str], str | None], run: Path, shared: dict[tuple[str, str], tuple[str, Path]]
) -> None:
    """Raise unless a run began with what the others did; `shared` has what, by its name, and is added to.

    Raises:
        RunError: it did not, for something was made anew or replaced meanwhile.
    """
    for what, content in contents.items():
        if content is None:
            continue
        held, other = shared.setdefault(what, (content, run))
        if held != content:
            raise RunError(f"{run} began with {what[1]} of other content than {other}")


def _last_line(path: Path) -> str:
    try:
        lines = read_text(path).strip().splitlines()
    except (RiptError, UnicodeDecodeError):
        lines = []
    return lines[-1] if lines else f"why is not to be read in {path}"


def _whole(number: object, name: str, run: Path) -> int:
    if not isinstance(number, int):
        raise RunError(f"{run / 'metrics.jsonl'} is damaged: {name} is {number!r}")
    return number


def _row(cell: Cell, seed: int, run: Path, of_base: str) -> dict[str, Any]:
    """A finished run in the study's terms; `of_base` is the fingerprint of the cell's base.

    Raises:
        RunError: it is damaged, or of other settings.
    """
    if not isinstance(read_json(run / "result.json"), dict):
        raise RunError(f"{run / 'result.json'} is damaged")
    config, held = replace(cell.config, seed=seed), read_config(run)["config"]
    others, base = differing("rl", held.get("recipe_config"), config), held.get("start_content")
    start = run.parent / Path(held.get("start") or "").parent.name  # the study may have been moved meanwhile
    if finetunes(config) and (start / "config.json").exists():
        tuned = read_config(start)["config"]
        tuning, base = tuned["recipe_config"], tuned.get("base_content")
        others += [name for name in differing("sft", tuning, config) if name in leaves(tuning)]
    if others:
        raise RunError(f"{run} was made with other settings than this cell of the study has now ({', '.join(others)})")
    policy_kind(run / "policy")
    read_tensors(run / "policy" / "model.safetensors")
    evals = [row for row in read_rows(run / "evals.jsonl") if row["states"] == "test"]
    mode = cell.config.eval.mode
    counted = [row for row in evals if row["mode"].startswith(mode)]
    totals = [row["eval"]["total"] for row in counted]
    if len(totals) < (2 if cell.config.iterations else 1):  # without an iteration, before is after
        raise RunError(f"{run / 'evals.jsonl'} lacks the evaluation before or after post-training")
    metrics = read_rows(run / "metrics.jsonl")
    if cell.config.iterations and not metrics:
        raise RunError(f"{run / 'metrics.jsonl'} is missing or empty")
    last = metrics[-1] if metrics else {}
    return {
        "cell": cell.name,
        "seed": seed,
        "mode": mode,
        "before": totals[0],
        "after": totals[-1],
        "iterations": last.get("iteration", 0),
        "rollouts": last.get("total/rollouts", 0),
        "env_steps": _whole(last.get("total/env_steps", 0), "total/env_steps", run),
        "states": {"before": counted[0]["per_state"], "after": counted[-1]["per_state"]},
        "shared": {
            (of_base, "a base"): base,
            (" ".join((of_base, *config.sampling.demos, *config.tasks)), "initial states"): held.get("states_content"),
        },
    }
