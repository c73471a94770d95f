"""Optional trackers: the lines of a run's logs, under the same keys, also to TensorBoard or Weights & Biases.

They are extra. One that fails, leaves or gives no answer is dropped with a line, and the run goes on; its logs have
everything. Trackers are called in threads of their own, where no signal to this program is raised: what is raised
there, SystemExit and KeyboardInterrupt included, is their doing and not the user's.
"""

from __future__ import annotations

import importlib
import math
import secrets
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ript.core.errors import DataError, DependencyMissing, UnknownNameError
from ript.run.files import read_json, write_json
from ript.run.progress import status

RECORD = "tracked.json"
"""The file of the run folder with the run's id at its trackers, and the last iteration of each stream that each of them
was sent."""
CALL_SECONDS = 120.0
"""How long a tracker may take to start, for a line, or to end, which may include an upload."""


class Tracker(Protocol):
    """Where numbers go: made from (run folder, configuration, id of the run), the same id whenever it goes on."""

    def log(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Record finite numbers under their keys."""
        ...

    def close(self, failed: bool) -> None:
        """End; `failed` when the run did not come to its end."""
        ...


class TensorBoardTracker:
    """Event files in `folder`/tensorboard; look with `tensorboard --logdir`."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str):
        self._writer = self.package().SummaryWriter(str(folder / "tensorboard"))

    @staticmethod
    def package() -> Any:
        return _imported("torch.utils.tensorboard", "TensorBoard", "tensorboard")

    def log(self, iteration: int, numbers: Mapping[str, float]) -> None:
        for key, value in numbers.items():
            self._writer.add_scalar(key, value, iteration)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run named after the run folder; a resumed run goes on under the same id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], run_id: str):
        wandb = self.package()
        self._run = wandb.init(
            project="ript",
            id=run_id,
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
            settings=wandb.Settings(console="off"),  # it would put itself between us and the terminal
        )
        # Its own step only counts calls: an evaluation has the iteration of the line before it.
        self._run.define_metric("*", step_metric="iteration")

    @staticmethod
    def package() -> Any:
        return _imported("wandb", "Weights & Biases", "wandb")

    def log(self, iteration: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **numbers})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[str, Any] = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}


def require_trackers(names: Iterable[str]) -> None:
    """See, before anything is written, that all these trackers can be used.

    Raises:
        UnknownNameError: no such tracker.
        DependencyMissing: its package cannot be imported; names the extra.
    """
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
        TRACKERS[name].package()


class Trackers:
    """The trackers of one run. Each is sent each line of the run's logs once, however often the run is resumed.

    Nothing raises: a tracker that fails to start, to log or to end is dropped.

    Args:
        names: of `TRACKERS`.
        folder: run folder.
        config: of the run, plain values.
        rows: lines of the run's logs so far; those that a tracker was not sent yet are sent.
    """

    def __init__(
        self, names: Iterable[str], folder: Path, config: Mapping[str, Any], rows: Iterable[Mapping[str, Any]] = ()
    ):
        self._folder = folder
        self._running: dict[str, Tracker] = {}
        try:
            self._id, self._sent = _read_record(folder)
        except DataError as error:  # its id is lost, and what was sent: another would get all lines a second time
            if names := list(names):
                status(f"  tracker {' and '.join(names)} is dropped ({error}; without that file it would begin anew)")
            names = ()
        for name in names:
            self._sent.setdefault(name, {})
            self._attempt(name, partial(self._start, name, config))
        for row in rows:
            self.send(row)

    def send(self, row: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl or evals.jsonl."""
        stream, numbers = read_row(row)
        for name in list(self._running):
            if row["iteration"] > self._sent[name].get(stream, -1):
                self._attempt(name, partial(self._send, name, stream, row["iteration"], numbers))

    def close(self, failed: bool) -> None:
        """End all, each within `CALL_SECONDS`. Closing twice is fine."""
        for name, tracker in list(self._running.items()):
            del self._running[name]
            self._attempt(name, partial(_apart, partial(tracker.close, failed), CALL_SECONDS))

    def _start(self, name: str, config: Mapping[str, Any]) -> None:
        self._running[name] = _apart(partial(TRACKERS[name], self._folder, config, self._id), CALL_SECONDS)
        self._write_record()

    def _send(self, name: str, stream: str, iteration: int, numbers: Mapping[str, float]) -> None:
        _apart(partial(self._running[name].log, iteration, numbers), CALL_SECONDS)
        self._sent[name][stream] = iteration
        self._write_record()

    def _write_record(self) -> None:
        write_json(self._folder / RECORD, {"id": self._id, "sent": self._sent})

    def _attempt(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # of the tracker, or of the disk that does not take its record
            self._running.pop(name, None)
            cause = str(error) if isinstance(error, _Failed) else _in_a_line(error)
            status(f"  tracker {name} is dropped ({cause}); the run goes on, its logs are complete")


class _Failed(Exception):
    """What was called apart raised, or gave no answer; in a line."""


def _apart(action: Callable[[], Any], seconds: float | None) -> Any:
    """What `action` returns, called in a thread of its own.

    Raises:
        _Failed: it raised anything, or returned nothing within `seconds`; then it is left behind.
    """
    outcome: list[tuple[Any, str]] = []

    def run() -> None:
        try:
            outcome.append((action(), ""))
        except BaseException as error:
            outcome.append((None, _in_a_line(error)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise _Failed(f"no answer within {seconds:.0f} s: it is left behind, and may hold up the end of this program")
    value, failure = outcome[0]
    if failure:
        raise _Failed(failure)
    return value


def _in_a_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[0]


def read_row(row: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The stream that a line of a log belongs to, and its finite numbers.

    Of an evaluation: eval/STATES/MODE, successes over trials of all tasks, and with several eval/STATES/MODE/TASK.
    """
    if "eval" not in row:
        return "metrics", _finite({key: value for key, value in row.items() if key != "iteration"})
    name, tasks = f"eval/{row['states']}/{row['mode'].split()[0]}", row["eval"]["tasks"]
    results = {name: row["eval"]["total"]}
    if len(tasks) > 1:
        results |= {f"{name}/{task}": result for task, result in tasks.items()}
    return name, {key: result["successes"] / result["trials"] for key, result in results.items() if result["trials"]}


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {key: float(value) for key, value in numbers.items() if value is not None and math.isfinite(value)}


def _read_record(folder: Path) -> tuple[str, dict[str, dict[str, int]]]:
    """(id, tracker -> stream -> iteration); a new id where there is none. Raises `DataError` when it cannot be read."""
    if not (folder / RECORD).exists():
        return secrets.token_hex(6), {}
    record = read_json(folder / RECORD)
    try:
        return str(record["id"]), {
            name: {stream: int(last) for stream, last in sent.items()} for name, sent in record["sent"].items()
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / RECORD} is damaged ({error!r})") from error


def _imported(module: str, what: str, extra: str) -> Any:
    try:
        return _apart(partial(importlib.import_module, module), None)
    except _Failed as error:  # a package that does not fit another one raises what it likes
        raise DependencyMissing(
            f"the {what} tracker was asked for but cannot be imported ({error}): pip install 'ript[{extra}]'"
        ) from error
