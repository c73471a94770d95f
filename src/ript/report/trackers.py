"""Optional trackers: the lines of metrics.jsonl, with the same keys, also to TensorBoard or Weights & Biases."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ript.errors import DependencyMissing, UnknownNameError


class Tracker(Protocol):
    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record finite numbers under their keys."""
        ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in `folder`/tensorboard; look with `tensorboard --logdir`."""

    def __init__(self, folder: str | Path, config: Mapping[str, Any]):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("TensorBoard", "tensorboard", error) from error
        self._writer = SummaryWriter(str(Path(folder) / "tensorboard"))

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for key, value in _finite(metrics).items():
            self._writer.add_scalar(key, value, iteration)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run named after the run folder; a resumed run goes on under the same id."""

    def __init__(self, folder: str | Path, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise _missing("Weights & Biases", "wandb", error) from error
        folder = Path(folder)
        run_id = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:12]
        self._run = wandb.init(
            project="ript", id=run_id, name=folder.name, dir=str(folder), config=dict(config), resume="allow"
        )
        # Its own step may only grow; a run resumed from a checkpoint passes some iterations again.
        self._run.define_metric("*", step_metric="iteration")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **_finite(metrics)})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[str | Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def make_trackers(names: Iterable[str], folder: str | Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Start trackers by name ("tensorboard", "wandb") for the run folder `folder`.

    Raises:
        UnknownNameError: no such tracker.
        DependencyMissing: its package is not installed; names the extra.
    """
    names = list(names)
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
    return [TRACKERS[name](folder, config) for name in names]


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}


def _missing(what: str, extra: str, error: ImportError) -> DependencyMissing:
    return DependencyMissing(
        f"the {what} tracker was asked for but cannot be imported ({error}): pip install 'ript[{extra}]'"
    )
