"""Accepted groups of rollouts -> one flat batch of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from ript.core.errors import NoSignalError, TrainingError
from ript.core.types import Group, Rollout, UpdateBatch
from ript.learn.advantage import leave_one_out


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
        a batch of R rows on the CPU; each array of the rollouts is copied once.

    Raises:
        TrainingError: a rollout was not recorded, or records of rollouts do not fit together; says which.
        NoSignalError: no rollout is left.
    """
    kept: list[tuple[Rollout, float]] = []
    for group in groups:
        advantages = leave_one_out(group.rewards, normalise_std=normalise_std)
        for rollout, advantage in zip(group.rollouts, advantages, strict=True):
            if np.isnan(advantage) or abs(advantage) < min_abs_advantage:
                continue
            _check_recorded(group, rollout, like=kept[0][0] if kept else rollout)
            if max_decisions and rollout.decisions > max_decisions:
                rollout = _thinned(rollout, max_decisions, generator)
            kept.append((rollout, float(advantage)))
    if not kept:
        errors = sum(r.reward is None for g in groups for r in g.rollouts)
        raise NoSignalError(
            f"no rollout is left to learn from: {len(groups)} groups, {errors} rollouts in ERROR, "
            f"the others below |advantage| {min_abs_advantage}"
        )
    rollouts = [rollout for rollout, _ in kept]
    rows = torch.tensor([r.decisions for r in rollouts])
    assert rollouts[0].inputs is not None
    return UpdateBatch(
        sample=_join([r.sample for r in rollouts]),
        old_log_prob=_join([r.log_prob for r in rollouts]),
        mask=_join([r.mask for r in rollouts]),
        advantage=torch.tensor([a for _, a in kept], dtype=torch.float32).repeat_interleave(rows),
        trajectory=torch.arange(len(rollouts)).repeat_interleave(rows),
        inputs={name: _join([(r.inputs or {})[name] for r in rollouts]) for name in rollouts[0].inputs},
    )


def _thinned(rollout: Rollout, decisions: int, generator: torch.Generator | None) -> Rollout:
    """The rollout with a random few of its decisions, in order."""
    rows = torch.randperm(rollout.decisions, generator=generator)[:decisions].sort().values.numpy()
    assert rollout.sample is not None and rollout.log_prob is not None
    assert rollout.mask is not None and rollout.inputs is not None
    return replace(
        rollout,
        sample=rollout.sample[rows],
        log_prob=rollout.log_prob[rows],
        mask=rollout.mask[rows],
        inputs={name: array[rows] for name, array in rollout.inputs.items()},
        decisions=decisions,
    )


def _join(parts: Sequence[np.ndarray | None]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([p for p in parts if p is not None]))


def _check_recorded(group: Group, rollout: Rollout, like: Rollout) -> None:
    """Raise unless the rollout holds what the update needs, in the same layout as the first one."""
    where = f"rollout {rollout.index} from initial state {group.initial_state.id} of {group.initial_state.task.key}"
    arrays = {"sample": rollout.sample, "log_prob": rollout.log_prob, "mask": rollout.mask}
    missing = [name for name, array in arrays.items() if array is None]
    missing += ["inputs"] if rollout.inputs is None else []
    if missing:
        raise TrainingError(f"{where} was not recorded ({', '.join(missing)} missing): request it with record=True")
    assert rollout.sample is not None and rollout.inputs is not None and like.inputs is not None
    if rollout.decisions < 1 or rollout.sample.ndim != 2:
        raise TrainingError(
            f"{where}: expected a sample [D, K], D >= 1, got {rollout.sample.shape} and {rollout.decisions} decisions"
        )
    for name, array in arrays.items():
        if array is not None and array.shape != rollout.sample.shape:
            raise TrainingError(f"{where}: {name} is {array.shape}, but sample is {rollout.sample.shape}")
    if len(rollout.sample) != rollout.decisions:
        raise TrainingError(f"{where}: {rollout.decisions} decisions, but sample is {rollout.sample.shape}")
    for name, array in rollout.inputs.items():
        if len(array) != rollout.decisions:
            raise TrainingError(f"{where}: input {name!r} has {len(array)} rows for {rollout.decisions} decisions")
    if (layout := _layout(rollout.inputs, rollout.sample)) != (expected := _layout(like.inputs, like.sample)):
        raise TrainingError(f"{where}: records {layout}, but the first rollout of the batch {expected}")


def _layout(inputs: Mapping[str, np.ndarray], sample: np.ndarray | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape of a row)."""
    arrays = dict(inputs) | ({} if sample is None else {"sample": sample})
    return {name: (str(array.dtype), array.shape[1:]) for name, array in sorted(arrays.items())}
