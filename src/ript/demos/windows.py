"""Training windows over demonstrations, held in memory, or on the disk where their pictures are too large for that.

Each look starts a window: the observation, and the expert's next H actions. A window that runs past the end of its
demonstration repeats the last action there, and its mask is False.

    demonstration steps   0 1 2 3 4 5 6          looks at 0 2 4 6, H = 4
    window of look 2      . . . . 4 5 6 6        mask T T T F

A policy that sees several observation steps at a time is given those before the look as well, as in rollouts: of
consecutive environment steps, and of the first step again where there was none before it. That needs demonstrations
with a look at every step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ript.core import capacity
from ript.core.errors import ConfigError, DataError
from ript.core.files import make_folder
from ript.core.places import CACHE, cache_folder
from ript.core.supervised import Statistics
from ript.core.types import DemoBatch, Observation, SimulatorSpec, Task
from ript.demos.demo_set import DemoSet
from ript.demos.normalisation import measure
from ript.demos.records import Demo


class Windows:
    """All windows of a set of demonstrations, decompressed once: a `DemoSource`.

    Args:
        demos: the demonstrations; at least one.
        horizon: H, actions in a window.
        observation_steps: n, consecutive steps that a window's observation has; its own is the last.

    Attributes:
        spec: what the simulator showed and took.
        tasks: distinct tasks.
        horizon: H.
        observation_steps: n.
        images: camera -> uint8 `[W, h, w, 3]`, one row a window.
        proprio: float32 `[W, P]`.
        privileged: float32 `[W, O]`, or None unless every demonstration has it, with one O.
        task_index: int64 `[W]`, position in `tasks`.
        actions: float32 `[N, A]`, the clean actions of all demonstrations end to end.

    Raises:
        DataError: no demonstration, a damaged file, pictures that fit neither into memory nor on the disk, or steps
            without a look where n > 1.
    """

    def __init__(self, demos: DemoSet, horizon: int, observation_steps: int = 1):
        if horizon < 1:
            raise ConfigError(f"horizon = {horizon}; expected at least 1 action in a window")
        if not len(demos):
            raise DataError("no demonstration to train on; collect some with `ript demos collect`")
        self.spec: SimulatorSpec = demos.spec
        self.tasks: tuple[Task, ...] = demos.tasks
        self.horizon, self.observation_steps = horizon, observation_steps
        self.images = _allocate(demos)
        loaded = []
        filled = 0
        for demo in demos.demos():
            if observation_steps > 1:
                _require_every_step(demo, observation_steps)
            rows = slice(filled, filled + len(demo.frame_steps))
            for name, frames in self.images.items():
                frames[rows] = demo.images[name]
            loaded.append(dataclasses.replace(demo, images={}))  # the small arrays
            filled = rows.stop
        lengths = np.array([len(demo) for demo in loaded])
        looks = np.array([len(demo.frame_steps) for demo in loaded])
        first = np.cumsum(lengths) - lengths
        self._first_row = np.repeat(np.cumsum(looks) - looks, looks)  # [W], of the window's demonstration
        position = {task.key: i for i, task in enumerate(self.tasks)}
        self.actions = np.concatenate([demo.actions for demo in loaded])
        self.proprio = np.concatenate([demo.proprio for demo in loaded])
        self.privileged = _join_privileged(loaded)
        self.task_index = np.repeat([position[demo.task.key] for demo in loaded], looks)
        self._step = np.concatenate([f + demo.frame_steps for f, demo in zip(first, loaded, strict=True)])  # [W]
        self._end = np.repeat(first + lengths, lengths)  # [N], one past the last step of step n's demonstration
        self._instructions = np.array([task.instruction for task in self.tasks], dtype=object)

    def __len__(self) -> int:
        """The number of windows, W."""
        return len(self._step)

    @property
    def nbytes(self) -> int:
        """Bytes that the pictures take."""
        return sum(frames.nbytes for frames in self.images.values())

    def batch(self, rows: np.ndarray) -> DemoBatch:
        """The windows `rows`, int `[B]`."""
        actions, mask = self._chunks(self._step[rows])
        steps = [np.maximum(rows - back, self._first_row[rows]) for back in reversed(range(self.observation_steps))]
        return DemoBatch(
            observation=Observation.stacked([self._look(at) for at in steps]),
            actions=actions,
            mask=mask,
            privileged=None if self.privileged is None else self.privileged[rows],
        )

    def _look(self, rows: np.ndarray) -> Observation:
        return Observation(
            images={name: frames[rows] for name, frames in self.images.items()},
            proprio=self.proprio[rows],
            instruction=tuple(self._instructions[self.task_index[rows]]),
        )

    def batches(
        self, batch_size: int, rng: np.random.Generator, *, task_weights: Mapping[str, float] | None = None
    ) -> Iterator[DemoBatch]:
        """Endless random batches: `batch` of what `draws` draws."""
        return map(self.batch, self.draws(batch_size, rng, task_weights=task_weights))

    def draws(
        self, batch_size: int, rng: np.random.Generator, *, task_weights: Mapping[str, float] | None = None
    ) -> Iterator[np.ndarray]:
        """The windows of endless random batches, each int `[B]`.

        Windows are drawn with replacement and independently from batch to batch, so the state of `rng` is the whole
        position: to resume, restore it and call again. Within a batch the draw is stratified: every batch has the
        tasks (and the early and late parts of their demonstrations) in nearly the proportions asked for.

        Args:
            batch_size: B.
            rng: drawn from once for each batch, before it is yielded.
            task_weights: task key -> share of the windows drawn (any scale; a task left out gets none). Default: every
                window equally often. See `target_weights`.
        """
        upper = np.cumsum(self._probabilities(task_weights))
        upper /= upper[-1]
        while True:
            strata = (np.arange(batch_size) + rng.random(batch_size)) / batch_size
            rows = np.searchsorted(upper, strata, side="right")
            yield rng.permutation(np.minimum(rows, len(self) - 1))

    def target_weights(self, targets: Sequence[str], fraction: float) -> dict[str, float]:
        """Task weights for `batches`: this fraction of windows from the target tasks, the rest from the others.

        Within each of the two, a task counts by its number of windows. With no other task the targets take all.
        """
        self._known(targets)
        if not 0 <= fraction <= 1:
            raise ConfigError(f"fraction = {fraction}; expected 0..1")
        counts = dict(zip((t.key for t in self.tasks), np.bincount(self.task_index).tolist(), strict=True))
        of_targets = sum(counts[key] for key in dict.fromkeys(targets))
        others = sum(counts.values()) - of_targets
        if not of_targets or not others:
            return {key: float(count) for key, count in counts.items()}
        return {
            key: count * (fraction / of_targets if key in targets else (1 - fraction) / others)
            for key, count in counts.items()
        }

    def windows_of(self, targets: Sequence[str]) -> int:
        """How many windows are of these tasks."""
        return sum(self.tasks[i].key in targets for i in self.task_index)

    def statistics(self) -> Statistics:
        """Means and deviations over all windows: what a policy normalises its inputs with."""
        return measure(self.proprio, self.privileged)

    def fingerprint(self) -> str:
        """A hash of all that is learned from, 16 hex digits: other demonstrations have another, wherever they lie."""
        digest = hashlib.sha256(json.dumps([[task.key, task.instruction] for task in self.tasks]).encode())
        arrays = [self.task_index, self._step, self._end, self.actions, self.proprio]
        arrays += [] if self.privileged is None else [self.privileged]
        for array in (*arrays, *(self.images[name] for name in sorted(self.images))):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def executed(self, rows: np.ndarray) -> int:
        """Actions of the windows `rows` that a demonstration has: where the masks are True."""
        steps = self._step[rows]
        return int(np.minimum(self._end[steps] - steps, self.horizon).sum())

    def action_chunks(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows from *every* step, looked at or not: actions float32 `[N, H, A]` and mask bool `[N, H]`."""
        return self._chunks(np.arange(len(self.actions)))

    def _chunks(self, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ahead = steps[:, None] + np.arange(self.horizon)
        end = self._end[steps][:, None]
        return self.actions[np.minimum(ahead, end - 1)], ahead < end

    def _probabilities(self, task_weights: Mapping[str, float] | None) -> np.ndarray:
        """The probability of each window to be drawn, `[W]`, on any scale."""
        if task_weights is None:
            return np.ones(len(self))
        self._known(task_weights)
        weight = np.array([task_weights.get(task.key, 0.0) for task in self.tasks], float)
        if not np.isfinite(weight).all() or (weight < 0).any() or not weight.sum():
            raise ConfigError(f"task_weights = {dict(task_weights)}; expected numbers >= 0, not all of them 0")
        counts = np.bincount(self.task_index, minlength=len(self.tasks))
        return (weight / counts)[self.task_index]

    def _known(self, task_keys: Sequence[str] | Mapping[str, float]) -> None:
        there = [task.key for task in self.tasks]
        for key in task_keys:
            if key not in there:
                raise DataError(f"no demonstration of {key}; there are {', '.join(there)}")


IN_MEMORY = 0.5
"""Share of the available memory up to which pictures are held there; more lie in a file that is mapped."""


def _allocate(demos: DemoSet) -> dict[str, np.ndarray]:
    """Room for all pictures, in memory or else on the disk; `DataError` before anything is read."""
    looks = sum(entry.looks for entry in demos.entries)
    shapes = {name: (looks, *size, 3) for name, size in demos.spec.cameras.items()}
    needed = sum(math.prod(shape) for shape in shapes.values())
    available = capacity.memory().available
    if needed <= IN_MEMORY * available:
        return {name: np.empty(shape, np.uint8) for name, shape in shapes.items()}
    try:
        return {name: _mapped(shape) for name, shape in shapes.items()}
    except OSError as error:
        raise DataError(
            f"the pictures of {len(demos)} demonstrations take {needed / 2**30:.1f} GiB; {available / 2**30:.1f} of "
            f"memory are available, and there is no room for them in {cache_folder()} ({error.strerror or error}): "
            f"choose fewer tasks or demonstrations, smaller pictures, or set {CACHE} to a folder on another disk"
        ) from error


def _mapped(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 `shape` in a file without a name, which is gone with the array, or with the process, however that ends."""
    with tempfile.TemporaryFile(dir=make_folder(cache_folder())) as file:
        os.posix_fallocate(file.fileno(), 0, math.prod(shape))  # a full disk is an error here, not a signal later
        return np.frombuffer(mmap.mmap(file.fileno(), math.prod(shape)), np.uint8).reshape(shape)


def _require_every_step(demo: Demo, observation_steps: int) -> None:
    """Raise `DataError` unless each step of a demonstration, from its first to its last look, was looked at."""
    if not np.array_equal(demo.frame_steps, np.arange(len(demo.frame_steps))):
        raise DataError(
            f"the policy sees {observation_steps} consecutive steps at a time, and a demonstration of {demo.task.key} "
            f"has looks at steps {', '.join(map(str, demo.frame_steps[:3]))}, ...: collect with --demos.every=1"
        )


def _join_privileged(loaded: Sequence[Demo]) -> np.ndarray | None:
    parts = [demo.privileged for demo in loaded if demo.privileged is not None]
    alike = len(parts) == len(loaded) and len({part.shape[1] for part in parts}) == 1
    return np.concatenate(parts) if alike else None
