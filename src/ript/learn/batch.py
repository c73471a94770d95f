"""Accepted groups of rollouts -> decisions as rows, which the update reads where the rollouts keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch

from ript.core.errors import NoSignalError, TrainingError
from ript.core.types import Group, Rollout
from ript.learn.advantage import leave_one_out

T = TypeVar("T")
Layout = dict[str, tuple[np.dtype, tuple[int, ...]]]
"""Name -> (type, shape of a row)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some decisions as tensors, for one pass.

    Attributes:
        sample: `[r, ...]`.
        old_log_prob: float32 `[r, K]`.
        mask: bool `[r, K]`.
        advantage: float32 `[r]`, the rollout's advantage on each of its decisions.
        inputs: name -> `[r, ...]`; what a rollout has once is there for each of its rows.
    """

    sample: torch.Tensor
    old_log_prob: torch.Tensor
    mask: torch.Tensor
    advantage: torch.Tensor
    inputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateBatch:
    """Decisions of rollouts as rows: row r is one decision, and rows of a rollout are contiguous, in order.

    The arrays stay where the rollouts have them: `take` copies the rows of one pass, and nothing else is copied.

    Attributes:
        rollouts: N of them, with records of one layout.
        advantage: float32 `[N]`.
        trajectory: int64 `[R]`, which rollout (0..N-1) a row belongs to.
        decision: int32 `[R]`, which of that rollout's decisions a row is.
        mine: bool `[N]`, the rollouts whose rows this rank works on; None: all.
        terms: int64 `[N]`, valid terms in each rollout's rows.
    """

    rollouts: tuple[Rollout, ...]
    advantage: torch.Tensor
    trajectory: torch.Tensor
    decision: torch.Tensor
    mine: torch.Tensor | None = None
    terms: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        rows = self.decision.split(torch.bincount(self.trajectory, minlength=len(self.rollouts)).tolist())
        valid = [int(_there(r.mask)[own.numpy()].sum()) for r, own in zip(self.rollouts, rows, strict=True)]
        object.__setattr__(self, "terms", torch.tensor(valid, dtype=torch.int64))

    @staticmethod
    def of(
        rollouts: Sequence[Rollout],
        advantage: Sequence[float] | None = None,
        decisions: Sequence[torch.Tensor] | None = None,
    ) -> UpdateBatch:
        """Rows of recorded rollouts.

        Args:
            rollouts: at least one.
            advantage: of each; None: 0.
            decisions: of each the decisions that become rows, int64 `[d]` in order; None: all.
        """
        rows = [torch.arange(r.decisions) for r in rollouts] if decisions is None else decisions
        return UpdateBatch(
            rollouts=tuple(rollouts),
            advantage=torch.tensor([0.0] * len(rollouts) if advantage is None else advantage, dtype=torch.float32),
            trajectory=torch.arange(len(rollouts)).repeat_interleave(torch.tensor([len(own) for own in rows])),
            decision=torch.cat([own.int() for own in rows]),
        )

    def __len__(self) -> int:
        return len(self.trajectory)

    def here(self) -> UpdateBatch:
        """The batch with all records of this rank here, which may have stayed where they were made.

        Raises:
            WorkerError: a record is lost.
            TrainingError: records of rollouts do not fit together; says which.
        """
        if all(rollout.held is None for rollout in self.rollouts):
            return self
        mine = [True] * len(self.rollouts) if self.mine is None else self.mine.tolist()
        whole = [rollout.whole() if own else rollout for rollout, own in zip(self.rollouts, mine, strict=True)]
        fetched = [rollout for rollout, own in zip(whole, mine, strict=True) if own]
        for rollout in fetched:
            _check_recorded(rollout)
            _check_layout(rollout, _layout(fetched[0]))
        return replace(self, rollouts=tuple(whole))

    def own(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows, among these int64 `[r]`, that this rank works on."""
        return rows if self.mine is None else rows[self.mine[self.trajectory[rows]]]

    def ages(self, version: int) -> torch.Tensor:
        """How many versions of the policy lie between the one that acted and this one, for each row: int64 `[R]`.

        Raises:
            TrainingError: a rollout was made by a later one.
        """
        acted = torch.tensor([rollout.policy_version for rollout in self.rollouts])
        if len(acted) and int(acted.max()) > version:
            raise TrainingError(
                f"a rollout was made by version {int(acted.max())} of the policy, which is at version {version} now"
            )
        return (version - acted)[self.trajectory]

    def take(self, rows: torch.Tensor, device: torch.device | str = "cpu") -> Rows:
        """The rows int64 `[r]`, copied to a device."""
        owners, decisions = self._places(rows)
        first = owners[0]
        inputs = {
            name: _gather([_there(r.inputs)[name] for r in owners], decisions).to(device)
            for name in _there(first.inputs)
        }
        for name in first.rollout_inputs or {}:
            once = [_there(r.rollout_inputs)[name] for r in owners]
            inputs[name] = _joined(once, once[0].shape).to(device)
        return Rows(
            sample=_gather([_there(r.sample) for r in owners], decisions).to(device),
            old_log_prob=_gather([_there(r.log_prob) for r in owners], decisions).to(device),
            mask=_gather([_there(r.mask) for r in owners], decisions).to(device),
            advantage=self.advantage[self.trajectory[rows]].to(device),
            inputs=inputs,
        )

    def old_log_prob(self, rows: torch.Tensor) -> torch.Tensor:
        """The recorded log-probabilities of rows int64 `[r]`: float32 `[r, K]`, on the CPU."""
        owners, decisions = self._places(rows)
        return _gather([_there(r.log_prob) for r in owners], decisions)

    def mask(self, rows: torch.Tensor) -> torch.Tensor:
        """Which terms of rows int64 `[r]` count: bool `[r, K]`, on the CPU."""
        owners, decisions = self._places(rows)
        return _gather([_there(r.mask) for r in owners], decisions)

    def _places(self, rows: torch.Tensor) -> tuple[list[Rollout], list[int]]:
        """For each row its rollout, and its decision there."""
        return [self.rollouts[n] for n in self.trajectory[rows].tolist()], self.decision[rows].tolist()


def _gather(arrays: Sequence[np.ndarray], decisions: Sequence[int]) -> torch.Tensor:
    """Row i is `arrays[i][decisions[i]]`. Arrays `[D, ...]` of one type and row shape."""
    return _joined([array[d : d + 1] for array, d in zip(arrays, decisions, strict=True)], arrays[0].shape[1:])


def _joined(rows: Sequence[np.ndarray], shape: tuple[int, ...]) -> torch.Tensor:
    """A copy of rows of one type that have, each, the numbers of this shape."""
    try:
        joined = bytearray().join(rows)  # type: ignore[arg-type]  # buffers: a fifth of the time of joining arrays
    except TypeError:  # not contiguous
        return torch.from_numpy(np.stack([row.reshape(shape) for row in rows]))
    return torch.from_numpy(np.frombuffer(joined, rows[0].dtype).reshape(len(rows), *shape))


def _there(value: T | None) -> T:
    """What a recorded rollout has."""
    assert value is not None
    return value


def make_batch(
    groups: Sequence[Group],
    *,
    min_abs_advantage: float = 0.0,
    normalise_std: bool = False,
    max_decisions: int = 0,
    generator: torch.Generator | None = None,
) -> UpdateBatch:
    """Advantages of each group, and the decisions of all its valid rollouts as rows.

    Rollouts that ended in ERROR are left out, of the baseline too. The order is that of groups, rollouts and decisions.

    Args:
        groups: accepted groups, recorded (`RolloutRequest.record`).
        min_abs_advantage: leave out rollouts whose |advantage| is below this; their rows add nothing or little to the
            gradient but cost as much. They still count in the baseline.
        normalise_std: see `leave_one_out`.
        max_decisions: keep at most this many decisions of a rollout, drawn without replacement; 0 keeps all. The mean
            over a trajectory's kept decisions is an unbiased estimate of the mean over all of them, so with reduction
            "trajectory" the update estimates the same gradient and a long failure costs no more than a short success.
            With reduction "token" it changes the objective: long rollouts then weigh less.
        generator: CPU generator of that draw; needed with `max_decisions`.

    Returns:
        a batch of R rows that looks into the rollouts' arrays; records that are held elsewhere are checked when they
        are fetched (`UpdateBatch.here`).

    Raises:
        TrainingError: a rollout was not recorded, or records of rollouts do not fit together; says which.
        NoSignalError: no rollout is left.
    """
    rollouts: list[Rollout] = []
    kept: list[float] = []
    decisions: list[torch.Tensor] = []
    layout: Layout = {}
    for group in groups:
        advantages = leave_one_out(group.rewards, normalise_std=normalise_std)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            if np.isnan(advantage) or abs(advantage) < min_abs_advantage:
                continue
            if rollout.held is None:
                _check_recorded(rollout, group)
                layout = layout or _layout(rollout)
                _check_layout(rollout, layout, group)
            rollouts.append(rollout)
            kept.append(float(advantage))
            decisions.append(_some(rollout.decisions, max_decisions, generator))
    if not rollouts:
        errors = sum(r.reward is None for g in groups for r in g.rollouts)
        raise NoSignalError(
            f"no rollout is left to learn from: {len(groups)} groups, {errors} rollouts in ERROR, "
            f"the others below |advantage| {min_abs_advantage}"
        )
    return UpdateBatch.of(rollouts, kept, decisions)


def _some(decisions: int, most: int, generator: torch.Generator | None) -> torch.Tensor:
    """All decisions of a rollout, or a random few, in order: int64 `[d]`."""
    if not most or decisions <= most:
        return torch.arange(decisions)
    return torch.randperm(decisions, generator=generator)[:most].sort().values


def _check_recorded(rollout: Rollout, group: Group | None = None) -> None:
    """Raise unless the rollout holds what the update needs."""
    where = _address(rollout, group)
    needed = ("sample", "log_prob", "mask", "inputs")
    if missing := [name for name in needed if getattr(rollout, name) is None]:
        raise TrainingError(f"{where} was not recorded ({', '.join(missing)} missing): request it with record=True")
    log_prob, mask = _there(rollout.log_prob), _there(rollout.mask)
    if rollout.decisions < 1 or log_prob.ndim != 2:
        raise TrainingError(
            f"{where}: expected log_prob [D, K], D >= 1, got {log_prob.shape} and {rollout.decisions} decisions"
        )
    if mask.shape != log_prob.shape:
        raise TrainingError(f"{where}: mask is {mask.shape}, but log_prob is {log_prob.shape}")
    named = {"sample": _there(rollout.sample), "log_prob": log_prob}
    for name, array in (named | {f"input {name!r}": array for name, array in _there(rollout.inputs).items()}).items():
        if len(array) != rollout.decisions:
            raise TrainingError(f"{where}: {name} has {len(array)} rows for {rollout.decisions} decisions")


def _check_layout(rollout: Rollout, expected: Layout, group: Group | None = None) -> None:
    """Raise unless its records are laid out like those of the first one."""
    if (layout := _layout(rollout)) != expected:
        said, first = (
            {name: (str(dtype), shape) for name, (dtype, shape) in sorted(found.items())}
            for found in (layout, expected)
        )
        raise TrainingError(f"{_address(rollout, group)}: records {said}, but the first rollout of the batch {first}")


def _layout(rollout: Rollout) -> Layout:
    rows = {"sample": _there(rollout.sample), "log_prob": _there(rollout.log_prob)} | dict(_there(rollout.inputs))
    once = rollout.rollout_inputs or {}
    return {name: (array.dtype, array.shape[1:]) for name, array in rows.items()} | {
        name: (array.dtype, array.shape) for name, array in once.items()
    }


def _address(rollout: Rollout, group: Group | None) -> str:
    task = f" of {group.initial_state.task.key}" if group else ""
    return f"rollout {rollout.index} from initial state {rollout.initial_state_id}{task}"
