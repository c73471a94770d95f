"""Optional trackers: the lines of metrics.jsonl, with the same keys, also to TensorBoard or Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Iterable, Mapping
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
        self._writer = self.package().SummaryWriter(str(Path(folder) / "tensorboard"))

    @staticmethod
    def package() -> Any:
        return _imported("torch.utils.tensorboard", "TensorBoard", "tensorboard")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        for key, value in _finite(metrics).items():
            self._writer.add_scalar(key, value, iteration)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run named after the run folder; a resumed run goes on under the same id."""

    def __init__(self, folder: str | Path, config: Mapping[str, Any]):
        wandb, folder = self.package(), Path(folder)
        run_id = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:12]
        self._run = wandb.init(
            project="ript", id=run_id, name=folder.name, dir=str(folder), config=dict(config), resume="allow"
        )
        # Its own step may only grow; a run resumed from a checkpoint passes some iterations again.
        self._run.define_metric("*", step_metric="iteration")

    @staticmethod
    def package() -> Any:
        return _imported("wandb", "Weights & Biases", "wandb")

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"iteration": iteration, **_finite(metrics)})

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[TensorBoardTracker] | type[WandbTracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}


def require_trackers(names: Iterable[str]) -> None:
    """Before anything is written:

    Raises:
        UnknownNameError: no such tracker.
        DependencyMissing: its package is not installed; names the extra.
    """
    for name in names:
        if name not in TRACKERS:
            raise UnknownNameError("tracker", name, TRACKERS)
        TRACKERS[name].package()


def make_trackers(names: Iterable[str], folder: str | Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Start trackers by name ("tensorboard", "wandb") for the run folder `folder`. Raises as `require_trackers`."""
    names = list(names)
    require_trackers(names)
    return [TRACKERS[name](folder, config) for name in names]


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if value is not None and math.isfinite(value)}


def _imported(module: str, what: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DependencyMissing(
            f"the {what} tracker was asked for but cannot be imported ({error}): pip install 'ript[{extra}]'"
        ) from error
