"""The run folder: what a run leaves behind, and, beside demonstration files that it names, what it takes to go on.

    config.json         what was asked for; versions and command line
    metrics.jsonl       one line an iteration
    evals.jsonl         one line an evaluation, with the outcome on every initial state
    errors.jsonl        one line an iteration in whose practice rollouts ended in ERROR: why
    checkpoints/NNNNNN  the newest two
    start/              the policy that the run was given
    result.json         written when the run ends: why, and which iteration became the policy
    tracked.json        what trackers were sent, if there are any; tensorboard/ or wandb/ are theirs
    best/  policy/      policy folders: best by validation success so far, and the run's result
    videos/before, videos/after
    report.html

Reading (`run.reading`) needs no lock; writing does, and one process at a time has it.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from ript.core import capacity, interpreter
from ript.core.disk import cannot_write, writing
from ript.core.errors import DataError, NotFiniteError, OutOfMemory, RunError
from ript.core.files import absolute, atomic_folder, clean_leftovers, encoded, make_folder, remove, write_text
from ript.core.interpreter import as_typed
from ript.core.memory import ANYWHERE, enough_memory
from ript.core.registry import simulator_versions
from ript.core.types import EvalResult, Reason
from ript.core.version import VERSION
from ript.run.checkpoint import Checkpoint, list_checkpoints, read_checkpoint, write_checkpoint
from ript.run.files import append_line, dumps, now, read_json, write_json
from ript.run.lock import Lock, acquire, release
from ript.run.progress import status
from ript.run.reading import FORMAT, Kind, read_config, read_rows, version
from ript.run.trackers import Trackers
from ript.run.video import Videos, write_videos

_OWN = (
    "checkpoints",
    "start",
    "best",
    "policy",
    "videos",
    "metrics.jsonl",
    "evals.jsonl",
    "errors.jsonl",
    "result.json",
    "tracked.json",
)
"""What a run writes into its folder, and so would replace or go on with."""
_PACKAGES = ("torch", "numpy", "h5py", "safetensors", "tokenizers", "av")


class RunFolder:
    """An open, locked run folder. A context manager; `close` ends its trackers and releases the lock.

    Make one with `create` (a new run) or `open` (to resume).

    Attributes:
        path: the folder.
        kind: "rl" or "sft".
        config: what was asked for.
    """

    def __init__(self, path: Path, lock: Lock, kind: Kind, config: dict[str, Any], keep: int):
        self.path, self.kind, self.config = path, kind, config
        self._lock, self._keep = lock, keep
        self._wanted: Sequence[str] = ()
        self._trackers: Trackers | None = None
        self._newest: dict[str, int] = {}  # iteration in each log, once this process has read it

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], kind: Kind = "rl", *, keep: int = 2) -> RunFolder:
        """Start a new run in `path`, which is created.

        Args:
            path: a folder that is not yet a run.
            config: plain values; `config["notes"]`, a list of sentences, is shown prominently in the report.
            kind: which loop it belongs to.
            keep: how many checkpoints are kept.

        Raises:
            RunError: the folder already holds a run, is in use, or cannot be written.
        """
        path = make_folder(absolute(path))
        lock = acquire(path)
        try:
            cls.require_free(path)
            write_json(path / "config.json", {**_environment(kind, config), "config": config})
            return cls(path, lock, kind, dict(config), keep)
        except BaseException:
            release(path, lock)
            raise

    @staticmethod
    def require_free(path: str | Path) -> None:
        """Refuse a place where `create` would fail, before anything costly is done; nothing is written.

        Raises:
            RunError: a run lies there or what it would replace, or no folder can be made.
        """
        path = absolute(path)
        with writing(path):
            if (path / "config.json").exists():
                raise RunError(_what_is_there(path))
            if taken := [name for name in _OWN if (path / name).exists()]:
                raise RunError(
                    f"{path} holds {', '.join(taken)}, which a run would replace: choose another --out, or move them"
                )
            real = Path(os.path.realpath(path))
            nearest = next(folder for folder in (real, *real.parents) if folder.exists())
        if not nearest.is_dir():
            raise cannot_write(path, OSError(errno.ENOTDIR, "not a folder"))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise cannot_write(path, OSError(errno.EACCES, "permission denied"))

    @staticmethod
    def require_unended(path: Path) -> None:
        """Refuse to begin a run again that has ended and has no checkpoint to go on from: its logs would be lost.

        Raises:
            RunError: it has, and has none.
        """
        if (path / "result.json").exists() and not list_checkpoints(path / "checkpoints"):
            raise RunError(
                f"{path}: the run has ended, and its checkpoints are gone: there is nothing to go on from. To practise "
                f"on, {another_run_from(path)}"
            )

    @classmethod
    def open(cls, path: str | Path, *, keep: int = 2) -> RunFolder:
        """Open an existing run to go on with it; `load_checkpoint` comes next.

        Raises:
            RunError: not a run folder, in use by another process, or of an incompatible version.
        """
        path = absolute(path)
        document = read_config(path, to_resume=True)
        lock = acquire(path)
        try:
            for folder in (path, path / "checkpoints", path / "videos"):
                clean_leftovers(folder)
            return cls(path, lock, document["kind"], document["config"], keep)
        except BaseException:
            release(path, lock)
            raise

    def track(self, names: Sequence[str]) -> None:
        """From here on, trackers (names of `trackers.TRACKERS`) get all that is logged, and what they lack of before.

        They start when `load_checkpoint` has cut the logs, or with the first line.
        """
        self._wanted = names

    def close(self, *, failed: bool = False) -> None:
        """End the trackers and release the lock. Closing twice is fine."""
        try:
            if self._trackers is not None:
                self._trackers.close(failed)
        finally:
            release(self.path, self._lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def change_settings(self, changes: Mapping[str, Any]) -> None:
        """Record other settings than the run began with, and when; nothing is written when there are none.

        Args:
            changes: dotted name -> value, as plain JSON.
        """
        if not changes:
            return
        document = read_json(self.path / "config.json")
        config, iteration = document["config"], max((row["iteration"] for row in self.metrics()), default=0)
        for name, value in changes.items():
            section, _, inner = name.rpartition(".")
            settings = config["recipe_config"]
            (settings.setdefault(section, {}) if section else settings)[inner] = value
        entry = {"when": now(), "after iteration": iteration, "settings": dict(changes)}
        config["changed"] = [*config.get("changed", []), entry]
        write_json(self.path / "config.json", document)
        self.config = config

    @property
    def best(self) -> Path:
        """Policy folder: best by validation success so far."""
        return self.path / "best"

    @property
    def policy(self) -> Path:
        """Policy folder: the run's result."""
        return self.path / "policy"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @contextmanager
    def saying_what_is_kept(self, when: str = "") -> Iterator[None]:
        """Within, an error that ends training says what is left of it; memory that runs out is an `OutOfMemory`.

        Args:
            when: where training is, such as "iteration 3".
        """
        try:
            with enough_memory("in training", ANYWHERE):
                yield
        except (NotFiniteError, OutOfMemory) as error:
            there = self.path / "checkpoints"
            kept = f"the last good checkpoint is kept in {there}"
            kept = kept if list_checkpoints(there) else "there was no checkpoint yet"
            raise type(error)(f"{when}{when and ': '}{error}; {kept}") from error

    @contextmanager
    def replace(self, folder: Path) -> Iterator[Path]:
        """Yield an empty folder to fill; it takes the place of `folder` (`with run.replace(run.best) as new:`)."""
        with atomic_folder(folder) as temporary:
            yield temporary

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl; it is on the disk when this returns. NaN is written as null.

        A line of the same iteration, left by an earlier attempt, is replaced.
        """
        row = {"iteration": iteration, **metrics}
        self._append("metrics.jsonl", row, ("iteration",))
        self._tracking().send(row)

    def log_errors(self, iteration: int, reasons: Sequence[Reason]) -> None:
        """Append a line to errors.jsonl: why practice rollouts ended in ERROR; none when none did."""
        if reasons:
            row = {"iteration": iteration, "reasons": [reason.to_json() for reason in reasons]}
            self._append("errors.jsonl", row, ("iteration",))

    def log_eval(
        self,
        iteration: int,
        result: EvalResult,
        *,
        rollouts: int = 0,
        env_steps: int = 0,
        seconds: float = 0.0,
        states: str = "test",
    ) -> None:
        """Append a line to evals.jsonl.

        A line with the same iteration, mode and `states`, left by an earlier attempt, is replaced.

        Args:
            iteration: finished iterations; 0 is before post-training.
            result: what was measured.
            rollouts: training rollouts spent so far.
            env_steps: training environment steps spent so far.
            seconds: wall clock of the run so far.
            states: split of the initial states, "test" or "validation".
        """
        row = {
            "iteration": iteration,
            "rollouts": rollouts,
            "env_steps": env_steps,
            "seconds": seconds,
            "mode": result.mode,
            "states": states,
            "eval": result.to_json(),
            "per_state": {task: [list(pair) for pair in pairs] for task, pairs in result.per_state.items()},
        }
        self._append("evals.jsonl", row, ("iteration", "mode", "states"))
        self._tracking().send(row)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_rows(self.path / "metrics.jsonl")

    def evals(self) -> list[dict[str, Any]]:
        """The lines of evals.jsonl."""
        return read_rows(self.path / "evals.jsonl")

    def save_videos(self, stage: Literal["before", "after"], videos: Videos, *, fps: float = 20) -> list[Path]:
        """Write an evaluation's videos as videos/<stage>/<task>__<state id>__<status>.mp4, in place of earlier ones.

        They are extra: one that cannot be written is named on stderr, and the run goes on.

        Args:
            stage: before or after post-training.
            videos: as in `EvalResult.videos`.
            fps: frames a second of the video.

        Returns:
            the files that were written.
        """
        place = self.path / "videos" / stage
        try:
            with atomic_folder(place) as folder:
                written, missing = write_videos(folder, videos, fps=fps)
        except RunError as error:
            written, missing = [], [f"no videos from {stage} post-training: {error}"]
        for line in missing:
            status(f"  {line}")
        return [place / path.name for path in written]

    def save_checkpoint(self, iteration: int, state: Mapping[str, Any]) -> Path:
        """Write checkpoints/NNNNNN atomically, then remove all but the newest `keep`.

        Log the iteration's metrics first: on resume, lines newer than the checkpoint are cut.

        Args:
            iteration: finished iterations.
            state: see `checkpoint.write_checkpoint`.
        """
        path = write_checkpoint(self.path / "checkpoints", iteration, state)
        for old in list_checkpoints(self.path / "checkpoints")[: -self._keep]:
            remove(old)
        return path

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, with the logs cut back to it; None when there is none yet.

        A damaged newer one is named on stderr and removed: the run will pass there again.

        Raises:
            RunError: there are checkpoints, but none can be read; or there are none, of a run that has ended.
        """
        paths = list_checkpoints(self.path / "checkpoints")
        skipped: list[str] = []
        for path in reversed(paths):
            try:
                found = read_checkpoint(path)
            except DataError as error:
                skipped.append(str(error))
                continue
            for message in skipped:
                status(f"checkpoint skipped: {message}; going on from iteration {found.iteration}")
            for damaged in paths[paths.index(path) + 1 :]:
                remove(damaged)
            self._cut(found.iteration)
            logged = {row["iteration"] for row in self.metrics()}
            if self.kind == "rl" and (lost := set(range(1, found.iteration + 1)) - logged):
                status(
                    f"{self.path / 'metrics.jsonl'} lacks {len(lost)} of the iterations up to {found.iteration}, "
                    f"{min(lost)} is the first: the run goes on, its curves will have a gap"
                )
            self._tracking()
            return found
        if paths:
            raise RunError(
                f"no checkpoint of {self.path} can be read ({'; '.join(skipped)}): start again with another --out"
            )
        self.require_unended(self.path)
        if self.metrics():
            status(f"{self.path} has no checkpoint left: starting over from iteration 0")
        self._cut(-1)
        self._tracking()
        return None

    def finish(self, reason: str, *, policy_iteration: int | None = None, **extra: Any) -> None:
        """Write result.json: the run has come to its end.

        Args:
            reason: why it ended, as a sentence, such as "all 15 iterations done".
            policy_iteration: the iteration whose weights became the policy, or None for the last.
            extra: anything else worth keeping, as plain values.
        """
        write_json(
            self.path / "result.json",
            {"reason": reason, "policy_iteration": policy_iteration, "finished": now(), **extra},
        )

    def _append(self, name: str, row: dict[str, Any], key: Sequence[str]) -> None:
        """Append a line in place of one with the same key; a log is only read again when there can be one."""
        if row["iteration"] <= self._newest.get(name, row["iteration"]):
            self._rewrite(name, lambda other: any(other[field] != row[field] for field in key))
        newest = max(row["iteration"], self._newest.pop(name))
        append_line(self.path / name, dumps(row))
        self._newest[name] = newest  # not known after a line that was torn by a full disk

    def _tracking(self) -> Trackers:
        if self._trackers is None:
            rows = [*self.metrics(), *self.evals()] if self._wanted else []
            self._trackers = Trackers(self._wanted, self.path, self.config.get("recipe_config", self.config), rows)
        return self._trackers

    def _cut(self, iteration: int) -> None:
        for name in ("metrics.jsonl", "errors.jsonl"):
            self._rewrite(name, lambda row: row["iteration"] <= iteration)
        # What was measured of the checkpoint's policy came after it, and is measured again, unless it is no longer due.
        self._rewrite("evals.jsonl", lambda row: row["iteration"] < iteration)
        with writing(self.path / "result.json"):
            (self.path / "result.json").unlink(missing_ok=True)

    def _rewrite(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the lines that `keep` accepts, and drop a torn last one. Untouched when nothing changes."""
        path = self.path / name
        rows = [row for row in read_rows(path) if keep(row)]
        self._newest[name] = max((row["iteration"] for row in rows), default=-1)
        text = "".join(dumps(row) + "\n" for row in rows)
        if path.exists() and encoded(text) != path.read_bytes():
            write_text(path, text)


def another_run_from(path: Path) -> str:
    """In words: how to practise on from the policy of a run that is over."""
    words = as_typed("rl", "--recipe", "NAME", "--policy", path / "policy", "--out", "DIR")
    return f"start another run from its policy: {words}"


def _what_is_there(path: Path) -> str:
    """In words, where a config.json is: a run that could go on, or what a new one would replace."""
    found = {}
    with suppress(DataError):
        found = read_json(path / "config.json")
    kind = found.get("kind", "rl") if isinstance(found, dict) and "format" in found else None
    if kind in get_args(Kind):
        return f"{path} already holds a run: go on with it ({as_typed(kind, '--resume', path)}) or choose another --out"
    what = "config.json" if kind is None else f"a {kind!r} policy"
    return f"{path} holds {what}, which a run would replace: choose another --out"


def _environment(kind: Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    suite = str(config.get("recipe_config", {}).get("sim", {}).get("suite", ""))
    program, *words = interpreter.arguments()
    return {
        "format": FORMAT,
        "kind": kind,
        "created": now(),
        "ript": VERSION,
        "command": ["ript", *words] if Path(program).stem in ("ript", "cli", "__main__") else [program, *words],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": capacity.cores().usable,
        "packages": {name: found for name in _PACKAGES if (found := version(name))} | simulator_versions(suite),
    }
