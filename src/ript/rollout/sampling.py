"""Dynamic rollout sampling: groups of rollouts whose rewards differ, taken in launch order.

A group in which every rollout succeeded, or every one failed, has no gradient: it is rejected and another initial
state is tried (RIPT-VLA, arXiv 2505.17016). Successes end early, so whichever groups *finish* first are not a fair
sample; here the result is defined without any clock:

    go through the initial states in order; attempt each; stop at the `quota`-th group with a signal,
    or after `max_attempts` groups.

Groups do run in parallel, but what was launched beyond that point is dropped whole, however fast it was. For fixed
seeds the collection therefore does not depend on workers, slots or timing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ript.core.errors import ConfigError
from ript.core.interfaces import EnvPool
from ript.core.metrics import Mean, Metrics, Sum
from ript.core.types import Group, Heed, InitialState, Rollout, RolloutRequest, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """What an iteration learns from.

    Attributes:
        groups: accepted groups, in launch order; fewer than the quota when `max_attempts` or the states ran out.
        attempted: every group of the definition above, in launch order, accepted ones included; rejected ones without
            what an update needs.
        position: how many initial states these took, those passed over included. The next collection goes on with the
            state after them.
        metrics:
            success: Mean over the valid rollouts of all attempted groups (not inflated by rejection).
            attempted, accepted, rejected_all_success, rejected_all_failure, rejected_invalid (fewer than two valid
            rollouts): Sum of groups.
            rejected_share: Mean of rejected over attempted groups.
            signal_share: Mean of groups with a signal over attempted groups, with or without dynamic sampling.
            rollouts, env_steps, errors: Sum over attempted groups.
            dropped_rollouts: Sum of rollouts launched beyond them, whether finished or not. This one depends on timing.
    """

    groups: tuple[Group, ...]
    attempted: tuple[Group, ...]
    position: int
    metrics: Metrics


class Gathering:
    """A collection in the making. It can be made in several parts, between which the pool's policy may change.

    Launching: a group is launched when it is needed for certain: all that is undecided could be accepted and the
    quota would still not be met. The slots of a worker share one processor, so an empty slot costs little, and a
    rollout that is dropped costs what a needed one does: nothing is launched on speculation while the workers have
    enough to do. Only when fewer than `pool.saturation` rollouts are in flight, and the acceptance rate so far makes
    it more likely than not that another group is needed, is one launched ahead.

    Memory: records of a rejected group are dropped when its last rollout arrives; kept are those of at most
    `quota` groups with a signal, of what is in flight, and of the few launched ahead.

    Args:
        initial_states: drawn one a group, in order. A state that comes up again counts on: its second group has the
            rollout indices K..2K-1, so that it is not a copy of the first.
        group_size: K, rollouts from each initial state.
        quota: groups wanted.
        max_attempts: groups attempted at most, with dynamic sampling.
        seed: (run seed, iteration).
        dynamic: False accepts the first `quota` groups whatever their rewards.
        equal_tasks: the number of tasks of the states, when each is to have an equal share: with dynamic sampling,
            states of a task that has its share of the quota, or of `max_attempts`, before them are passed over. So a
            task with few groups with a signal keeps its part of the update, and one with none does not use up the
            attempts of others. 0: states are attempted as they come.
        horizon: task key -> `RolloutRequest.horizon`; a task that is missing runs to the simulator's.

    Raises:
        ConfigError: K < 2, quota < 1, or with dynamic sampling quota > max_attempts.
    """

    def __init__(
        self,
        initial_states: Iterator[InitialState],
        *,
        group_size: int,
        quota: int,
        max_attempts: int,
        seed: tuple[int, ...],
        dynamic: bool = True,
        equal_tasks: int = 0,
        horizon: Mapping[str, int] | None = None,
    ):
        limit = max_attempts if dynamic else quota
        _check(group_size, quota, limit)
        self._states, self._seed, self._horizon = iter(initial_states), seed, horizon or {}
        self._ledger = _Ledger(group_size, quota, limit, dynamic, equal_tasks if dynamic else 0)

    def gather(
        self,
        pool: EnvPool,
        attempts: int | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        heed: Heed | None = None,
    ) -> None:
        """Attempt groups until the collection is complete.

        Args:
            pool: holds the policy.
            attempts: stop when so many groups, at most `quota`, have been attempted in all; go on by another call.
            progress: called with (accepted, attempted) whenever one more group is settled.
            heed: see `EnvPool.run`.
        """
        ledger = self._ledger
        ledger.stop = ledger.limit if attempts is None else min(attempts, ledger.quota)
        requests = _requests(ledger, pool, self._states, self._seed, self._horizon)
        run = pool.run(requests) if heed is None else pool.run(requests, heed)
        try:
            while not ledger.complete:
                rollout = next(run, None)
                if rollout is None:
                    break
                settled = ledger.settled
                ledger.add(rollout)
                if progress is not None and ledger.settled > settled:
                    progress(ledger.accepted, ledger.settled)
        finally:
            run.close()

    def collection(self) -> Collection:
        """What has been gathered."""
        return self._ledger.collection()


def collect_groups(
    pool: EnvPool,
    initial_states: Iterator[InitialState],
    *,
    progress: Callable[[int, int], None] | None = None,
    heed: Heed | None = None,
    **settings: Any,
) -> Collection:
    """Collect `quota` groups with a signal, in one part: see `Gathering` and its `gather`."""
    gathering = Gathering(initial_states, **settings)
    gathering.gather(pool, progress=progress, heed=heed)
    return gathering.collection()


@dataclass(slots=True)
class _Entry:
    """A launched group."""

    state: InitialState
    position: int
    """How many initial states were drawn, this one included."""
    first_index: int
    rollouts: list[Rollout | None]
    accepted: bool | None = None
    """None until its last rollout arrives, or until its rewards are known to differ."""
    group: Group | None = None


@dataclass(slots=True)
class _Ledger:
    """Groups in launch order, and how far they are settled."""

    group_size: int
    quota: int
    limit: int
    dynamic: bool
    equal_tasks: int
    stop: int = 0
    """Attempts after which the present part ends, at most `limit`."""
    position: int = 0
    """How many initial states were drawn."""
    entries: list[_Entry] = field(default_factory=list)
    settled: int = 0
    accepted: int = 0
    in_flight: int = 0
    _drawn: Counter[str] = field(default_factory=Counter)
    _by_rollout: dict[tuple[str, int], _Entry] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Enough accepted groups, or nothing more may be launched and all is settled."""
        return self.accepted >= self.quota or self.settled >= self.stop

    @property
    def exhausted(self) -> bool:
        return len(self.entries) >= self.stop

    def wants(self, saturation: int) -> bool:
        """Launch another group now? See `collect_groups`."""
        sure = sum(entry.accepted is True for entry in self.entries)
        undecided = sum(entry.accepted is None for entry in self.entries)
        if sure + undecided < self.quota:
            return True
        if not self.dynamic or self.in_flight >= saturation:
            return False
        decided = len(self.entries) - undecided
        rate = (sure + 1) / (decided + 1)
        return self.quota - sure - rate * undecided >= 0.5

    def has_room(self, task: str) -> bool | None:
        """Whether a further group of this task is attempted; None while groups in flight decide that."""
        if not self.equal_tasks:
            return True
        found = [entry.accepted for entry in self.entries if entry.state.task.key == task]
        sure, undecided = found.count(True), found.count(None)
        quota, limit = (-(-n // self.equal_tasks) for n in (self.quota, self.limit))
        if sure >= quota or len(found) >= limit:
            return False
        return None if sure + undecided >= quota else True

    def launch(self, state: InitialState) -> _Entry:
        first = self._drawn[state.id] * self.group_size
        self._drawn[state.id] += 1
        entry = _Entry(state, self.position, first, [None] * self.group_size)
        self.entries.append(entry)
        for index in range(first, first + self.group_size):
            self._by_rollout[state.id, index] = entry
        self.in_flight += self.group_size
        return entry

    def add(self, rollout: Rollout) -> None:
        entry = self._by_rollout[rollout.initial_state_id, rollout.index]
        entry.rollouts[rollout.index - entry.first_index] = rollout
        self.in_flight -= 1
        have = [r for r in entry.rollouts if r is not None]
        group = Group(initial_state=entry.state, rollouts=tuple(have))
        if group.has_signal or not self.dynamic:
            entry.accepted = True
        if len(have) == self.group_size:
            entry.accepted = bool(entry.accepted)
            entry.group = group if entry.accepted else _stripped(group)
            entry.rollouts = [None] * self.group_size
            self._settle()

    def _settle(self) -> None:
        """Take finished groups in launch order, up to the quota."""
        while not self.complete and self.settled < len(self.entries) and self.entries[self.settled].group is not None:
            self.accepted += self.entries[self.settled].accepted is True
            self.settled += 1

    def collection(self) -> Collection:
        taken = self.entries[: self.settled]
        attempted = tuple(entry.group for entry in taken if entry.group is not None)
        launched = sum(self.group_size for _ in self.entries)
        return Collection(
            groups=tuple(entry.group for entry in taken if entry.group is not None and entry.accepted),
            attempted=attempted,
            position=taken[-1].position if taken else 0,
            metrics=_metrics(attempted, self.accepted, self.dynamic)
            | {"dropped_rollouts": Sum(float(launched - self.settled * self.group_size))},
        )


_MOST_PASSED = 2
"""States of each task passed over in a row, after which every task has its share."""


def _requests(
    ledger: _Ledger,
    pool: EnvPool,
    states: Iterator[InitialState],
    seed: tuple[int, ...],
    horizon: Mapping[str, int],
) -> Iterator[RolloutRequest | None]:
    """Requests of whole groups; None while no further group is wanted."""
    state, passed = None, 0
    while not ledger.exhausted:
        if not ledger.wants(pool.saturation):
            yield None
            continue
        if state is None:
            state = next(states, None)
            ledger.position += 1
        if state is None:
            return
        room = ledger.has_room(state.task.key)
        if room is None:
            yield None
            continue
        if not room:
            state, passed = None, passed + 1
            if passed > _MOST_PASSED * ledger.equal_tasks:
                return
            continue
        entry, state, passed = ledger.launch(state), None, 0
        for number in range(ledger.group_size):
            yield RolloutRequest(
                initial_state=entry.state,
                index=entry.first_index + number,
                seed=seed,
                horizon=horizon.get(entry.state.task.key),
            )


ENOUGH, SEVERAL = 8, 3
"""Successes of a task in an iteration, and groups that they come from, from which its practice horizon is set."""
SHORTEST = 0.25
"""Least practice horizon, as a share of the longest: a rollout that has no time to succeed says nothing."""


def practice_horizons(
    collection: Collection, present: Mapping[str, int], *, margin: float, longest: Mapping[str, int]
) -> dict[str, int]:
    """Task key -> environment steps after which its next practice rollouts are failures.

    What comes after the moment at which successes have happened costs simulation and adds decisions that hardly
    matter to the gradient. So: `margin` times the 90th percentile of the lengths of the task's successes. Where lengths
    are spread out up to the horizon, it does not shrink (for a margin above 1 / 0.9).

    Only groups with a signal count: a state that is solved whatever the policy does, such as one that begins solved,
    would shorten the horizon until no other state can be solved. Where they are too few to tell, the horizon doubles.

    Args:
        collection: the iteration's rollouts.
        present: horizons so far, kept for tasks that the collection did not come to.
        margin: above 1.
        longest: task key -> upper bound; the lower one is `SHORTEST` of it.
    """
    lengths: dict[str, list[list[int]]] = {}
    for group in collection.attempted:
        done = [rollout.env_steps for rollout in group.rollouts if rollout.status is Status.SUCCESS]
        lengths.setdefault(group.initial_state.task.key, []).extend([done] if group.has_signal else [])
    horizons = dict(present)
    for task, groups in lengths.items():
        together = [steps for done in groups for steps in done]
        if len(groups) >= SEVERAL and len(together) >= ENOUGH:
            wanted = math.ceil(margin * float(np.quantile(together, 0.9, method="higher")))
        else:
            wanted = 2 * present.get(task, longest[task])
        horizons[task] = min(longest[task], max(wanted, math.ceil(SHORTEST * longest[task])))
    return horizons


def _stripped(group: Group) -> Group:
    """The group's rollouts without what only an update needs."""
    return replace(group, rollouts=tuple(rollout.outcome() for rollout in group.rollouts))


def _metrics(attempted: tuple[Group, ...], accepted: int, dynamic: bool) -> Metrics:
    rollouts = [rollout for group in attempted for rollout in group.rollouts]
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    rejected = [] if not dynamic else [group for group in attempted if not group.has_signal]
    valid = [int(np.sum(~np.isnan(group.rewards))) for group in rejected]
    success = [group.success for group, n in zip(rejected, valid, strict=True) if n >= 2]
    return {
        "success": Mean(sum(rewards), len(rewards)),
        "attempted": Sum(len(attempted)),
        "accepted": Sum(accepted),
        "rejected_all_success": Sum(success.count(1.0)),
        "rejected_all_failure": Sum(success.count(0.0)),
        "rejected_invalid": Sum(len(valid) - len(success)),
        "rejected_share": Mean(len(rejected), len(attempted)),
        "signal_share": Mean(sum(group.has_signal for group in attempted), len(attempted)),
        "rollouts": Sum(len(rollouts)),
        "env_steps": Sum(sum(rollout.env_steps for rollout in rollouts)),
        "errors": Sum(sum(rollout.status is Status.ERROR for rollout in rollouts)),
    }


def _check(group_size: int, quota: int, max_attempts: int) -> None:
    if group_size < 2:
        raise ConfigError(
            f"group_size must be at least 2, got {group_size}: a rollout is compared with others of its group"
        )
    if quota < 1:
        raise ConfigError(f"quota must be at least 1, got {quota}")
    if quota > max_attempts:
        raise ConfigError(
            f"quota = {quota} groups cannot be met with max_attempts = {max_attempts}: raise it or lower the quota"
        )
