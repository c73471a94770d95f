"""From nothing to a post-trained policy: what `make quickstart` runs.

Demonstrations and the pre-trained base do not depend on the target (unless it is one of the base's tasks, which is then
left out), so they are kept in a cache between targets: see `bases`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ript.build import demo_source, horizons, simulator_factory, task_keys
from ript.config.recipes import quickstart as recipe
from ript.config.recipes import with_tasks
from ript.config.sections import Config
from ript.core import arguments
from ript.core.errors import ConfigError, RiptError, RunError
from ript.core.files import expanded, make_folder
from ript.core.options import replace
from ript.core.registry import kinds
from ript.demos.demo_set import open_demos
from ript.policies.loading import load_policy
from ript.report.page import report_or_say
from ript.report.tables import change
from ript.rl import RLResult, train_rl
from ript.run.files import read_json, write_json
from ript.run.lock import locked
from ript.run.progress import status
from ript.run.resuming import neutral
from ript.run.settings import Leaves, asked_for, leaves
from ript.run.start import within_episodes
from ript.run.video import require_encoder
from ript.studies.bases import base_folder, collect, make_base, make_base_demos, train_unless_done


@dataclass(frozen=True, kw_only=True)
class QuickstartResult:
    """`to_json` is the documented `ript quickstart --json` document."""

    target: str
    mode: str
    rl: RLResult
    seconds: dict[str, float]
    report: Path | None

    def to_json(self) -> dict:
        return {
            "target": self.target,
            "sft": self.rl.before[self.mode].to_json(),
            "rl": self.rl.after[self.mode].to_json(),
            "change": change(self.rl.before[self.mode], self.rl.after[self.mode]),
            "iterations": self.rl.iterations,
            "rollouts": self.rl.rollouts,
            "env_steps": self.rl.env_steps,
            "seconds": self.seconds,
            "policy": str(self.rl.policy),
            "report": None if self.report is None else str(self.report),
        }


def quickstart(
    target: str | None = None,
    *,
    seed: int | None = None,
    fresh: bool = False,
    out: str | Path | None = None,
    config: Config | None = None,
) -> QuickstartResult:
    """Demonstrations, supervised training, measurement, post-training, measurement, report.

    One that was interrupted goes on where it was when it is called again with the same arguments.

    Args:
        target: task to learn; the recipe's by default, which may be several. Each gets `demos.target` demonstrations.
        seed: of everything but the base, which is shared by all seeds; the recipe's by default.
        fresh: make the base in the output folder instead of using the cache.
        out: output folder; by default one under `runs/`.
        config: another recipe than `quickstart`.

    Raises:
        ConfigError, UnknownNameError: no target, or one that does not exist.
        RunError: the output folder holds something else, or it is in use by another process.
    """
    config = config or recipe()
    arguments.instance("config", config, Config, "ript.recipe(name) gives one")
    if target is not None:
        arguments.instance("target", target, str, "a task")
    seed = None if seed is None else arguments.seed("seed", seed)
    fresh, out = arguments.truth("fresh", fresh), None if out is None else arguments.place("out", out)
    keys = task_keys(config.sim, (target,) if target else config.tasks)
    if not keys:
        raise ConfigError("no target task: give --target")
    config = with_tasks(config, tuple(key.partition("/")[2] for key in keys))
    config = config if seed is None else replace(config, seed=seed)
    within_episodes(config, asked_for(config))  # refused before anything is made, as is what nobody demonstrates
    demo_source(config), demo_source(config, target=True)
    if config.eval.videos:
        require_encoder()
    folder = output_folder(config, fresh, out)
    base = folder / "base" if fresh else base_folder(config)  # first: without a home there is no cache
    with locked(make_folder(folder)):
        return _Quickstart(config, keys, fresh, folder, base).go()


class _Quickstart:
    """The stages, each of which is skipped or goes on where it was when an earlier call had begun it."""

    def __init__(self, config: Config, keys: tuple[str, ...], fresh: bool, folder: Path, base: Path):
        self.config, self.keys, self.folder, self.base = config, keys, folder, base
        self.record = _record(config, fresh)
        if _interrupted(folder, config, fresh):
            self.record = _recorded(folder) | {"config": config.to_json()}
            status(f"going on with {folder}")
        self.seconds: dict[str, float] = self.record["seconds"]

    def go(self) -> QuickstartResult:
        with self.stage("demonstrations"):
            self.demonstrations()
        with self.stage("pre-training"):
            make_base(self.config, self.base)
        with self.stage("fine-tuning"):
            demos = [self.base / "demos.hdf5", self.folder / "target.hdf5"]
            train_unless_done(self.config, demos, self.folder / "sft", base=self.base / "sft" / "policy")
            practice = self.practice()
            self.say_what_is_possible(practice)
        status("post-training")
        rl = self.folder / "rl"
        result = train_rl(practice, self.folder / "sft" / "policy", rl, resume=(rl / "config.json").exists())
        self.seconds |= {k: round(v, 4) for k, v in result.seconds.items()}
        with self.stage("report"):
            report = report_or_say([result.folder], self.folder / "report.html")
        self.keep(finished=True)
        return QuickstartResult(
            target=", ".join(self.config.tasks),
            mode=self.config.eval.mode,
            rl=result,
            seconds=self.seconds,
            report=report,
        )

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Say what is done, and add up how long it took, over interruptions too."""
        status(what)
        self.keep()
        began, before = time.perf_counter(), self.seconds.get(what, 0.0)
        try:
            yield
        finally:
            self.seconds[what] = round(before + time.perf_counter() - began, 4)
            self.keep()

    def keep(self, finished: bool = False) -> None:
        write_json(self.folder / RECORD, self.record | {"seconds": self.seconds, "finished": finished})

    def demonstrations(self) -> None:
        make_base_demos(self.config, self.base)
        if not (self.folder / "target.hdf5").exists():
            d, factory = self.config.demos, simulator_factory(self.config.sim)
            target = self.folder / "target.hdf5"
            source = demo_source(self.config, target=True) or "expert"
            how = {"source": source, "seed": self.config.seed, "noise": d.noise, "every": d.every}
            collect(factory, self.keys, d.target, target, **how)

    def practice(self) -> Config:
        """The configuration of post-training: its rollouts are longer than the recipe says where a demonstration of the
        target takes longer than that."""
        config, s = self.config, self.config.sampling
        demos = open_demos(self.folder / "target.hdf5").info()["tasks"]
        longest = max(task["steps"]["max"] for task in demos.values())
        if not s.horizon or longest < s.horizon:
            return config
        horizon = min(math.ceil(LONGER * longest), max(horizons(config.sim, self.keys).values()))
        status(f"  practice rollouts may take {horizon} steps instead of {s.horizon}: a demonstration took {longest}")
        return replace(config, sampling=replace(s, horizon=horizon))

    def say_what_is_possible(self, practice: Config) -> None:
        """Within practice's horizon: what is tried again and again from its beginning costs the square of it."""
        sim = self.config.sim
        sim = sim.replaced(horizon=practice.sampling.horizon or sim.horizon)
        policy, factory = load_policy(self.folder / "sft" / "policy"), simulator_factory(sim)
        for task, key in zip(self.config.tasks, self.keys, strict=True):
            if told := kinds.get(self.config.policy.kind).bound(policy, factory, key):
                status(f"  {task}: {told}")


LONGER = 1.5
"""Practice rollouts may take so many times the longest demonstration where the recipe has fewer steps than that."""
RECORD = "quickstart.json"
"""The file of the output folder that says what was asked for, the seconds of each stage, and whether all is done."""


def _record(config: Config, fresh: bool) -> dict[str, Any]:
    return {"config": config.to_json(), "fresh": fresh, "seconds": {}, "finished": False}


def output_folder(config: Config, fresh: bool, out: str | Path | None) -> Path:
    """`out`, or a folder under `runs/`: one that is empty, not there, or holds the same quickstart, interrupted.

    Raises:
        ConfigError: there is nothing to make the base from.
        RunError: `out` holds something else.
    """
    if not config.pretrain_tasks:
        raise ConfigError(
            f"recipe {config.recipe} has no task besides its targets to pre-train the base on: give --pretrain_tasks"
        )
    if out is not None:
        folder = expanded(out)
        if folder.exists() and not (folder.is_dir() and (_interrupted(folder, config, fresh) or _empty(folder))):
            raise RunError(f"{folder} is {_content(folder)}: choose another --out, or remove it")
        return folder
    what = f"quickstart-{config.tasks[0]}" if len(config.tasks) == 1 else config.recipe
    name = f"{what}-seed{config.seed}"
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists() or _interrupted(folder, config, fresh):
            return folder
    raise RiptError(f"there are 9,999 folders like runs/{name}: remove some")


def _interrupted(folder: Path, config: Config, fresh: bool) -> bool:
    """Whether the folder holds this very quickstart, unfinished."""
    if not (folder / RECORD).exists():
        return False
    asked = _record(config, fresh)
    record = _recorded(folder)
    if not all(record.get(name) == asked[name] for name in ("fresh", "finished")):
        return False
    return _results_depend_on(record.get("config")) == _results_depend_on(asked["config"])


def _results_depend_on(config: Any) -> Leaves | None:
    """The settings but for those, such as the number of workers, that may be others when the quickstart goes on."""
    if not isinstance(config, dict):
        return None
    return {name: value for name, value in leaves(config).items() if not neutral(name)}


def _recorded(folder: Path) -> dict[str, Any]:
    record = read_json(folder / RECORD)
    seconds = record.get("seconds") if isinstance(record, dict) else None
    if not isinstance(seconds, dict) or not all(isinstance(value, int | float) for value in seconds.values()):
        raise RunError(f"{folder / RECORD} is damaged: choose another --out, or remove {folder}")
    return record


def _empty(folder: Path) -> bool:
    """Whether nothing was made there; the record of a quickstart that ended before it made anything is nothing yet."""
    return all(path.name in (".lock", ".owner.json", RECORD) for path in folder.iterdir())


def _content(folder: Path) -> str:
    if not folder.is_dir():
        return "a file"
    if not (folder / RECORD).exists():
        return "not empty"
    finished = _recorded(folder).get("finished")
    return "a finished quickstart" if finished else "an interrupted quickstart with other settings"
