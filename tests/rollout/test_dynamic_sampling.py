"""Dynamic sampling: which groups are taken, whatever the order in which rollouts finish."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ript.core.errors import ConfigError
from ript.core.metrics import values
from ript.core.types import Group, InitialState, Rollout, RolloutRequest, Status
from ript.rollout.pool import make_pool
from ript.rollout.sampling import Collection, collect_groups, practice_horizons
from tests.fakes import FakeFactory, FakePolicy, fake_state, fake_task, same

STATUS = {1: Status.SUCCESS, 0: Status.FAILURE, None: Status.ERROR}
STATUS_REWARD = {status: reward for reward, status in STATUS.items()}


@dataclass
class ScriptedPool:
    """A pool in which the test decides what each rollout gives and which of those in flight finishes next.

    Attributes:
        rewards: state number -> reward of each of the group's rollouts (1, 0 or None for ERROR).
        choose: number of rollouts in flight -> which one finishes.
        capacity: rollouts in flight at most.
    """

    rewards: Sequence[Sequence[int | None]]
    choose: Callable[[int], int] = lambda n: 0
    capacity: int = 8
    saturation: int = 4
    launched: list[tuple[int, int]] = field(default_factory=list)
    dropped: int = 0

    def set_policy(self, weights: object, version: int) -> None: ...

    def run(self, requests: Iterable[RolloutRequest | None]) -> Generator[Rollout, None, None]:
        source, flying, more = iter(requests), [], True
        try:
            while True:
                while more and len(flying) < self.capacity:
                    request = next(source, "end")
                    if request is None:
                        assert flying, "waits for nothing"
                        break
                    more = request != "end"
                    if more:
                        self.launched.append((int(request.initial_state.state[0]), request.index))
                        flying.append(request)
                if not flying:
                    return
                yield self.finish(flying.pop(self.choose(len(flying))))
        finally:
            self.dropped = len(flying)

    def finish(self, request: RolloutRequest) -> Rollout:
        number = int(request.initial_state.state[0])
        group = self.rewards[number]
        status = STATUS[group[request.index % len(group)]]
        data = None if status is Status.ERROR else np.zeros((1, 2))
        return Rollout(
            initial_state_id=request.initial_state.id,
            index=request.index,
            status=status,
            sample=data,
            log_prob=data,
            mask=data,
            inputs=None if data is None else {"x": data},
            decisions=1,
            env_steps=10,
            policy_version=0,
            frames=np.zeros((2, 1, 1, 3), np.uint8) if request.video else None,
            error="broken" if status is Status.ERROR else None,
        )

    def timings(self) -> dict:
        return {}

    def close(self) -> None: ...


def states(n: int | None = None) -> Iterator[InitialState]:
    return (fake_state(i) for i in (itertools.count() if n is None else range(n)))


def in_turn(n: int, tasks: int) -> Iterator[InitialState]:
    """States 0..n-1, of so many tasks in turn."""
    several = [dataclasses.replace(fake_task(), name=f"task-{number}") for number in range(tasks)]
    return (fake_state(i, task=several[i % tasks]) for i in range(n))


def numbers(groups: Sequence[Group]) -> list[int]:
    return [int(group.initial_state.state[0]) for group in groups]


def sequentially(
    table: Sequence[Sequence[int | None]], quota: int, max_attempts: int, tasks: int = 1, equal: bool = False
) -> tuple[list[int], list[int]]:
    """The definition: one group after the other, of tasks in turn. (accepted, attempted)."""
    accepted: list[int] = []
    attempted: list[int] = []
    for number, rewards in enumerate(table):
        if len(accepted) == quota or len(attempted) == max_attempts:
            break
        share = [sum(other % tasks == number % tasks for other in others) for others in (accepted, attempted)]
        if equal and (share[0] >= -(-quota // tasks) or share[1] >= -(-max_attempts // tasks)):
            continue
        attempted.append(number)
        if {0, 1} <= set(rewards):
            accepted.append(number)
    return accepted, attempted


reward = st.sampled_from([0, 1, 0, 1, None])
tables = st.integers(2, 5).flatmap(
    lambda k: st.lists(st.lists(reward, min_size=k, max_size=k), min_size=1, max_size=14)
)


@settings(max_examples=200, deadline=None)
@given(
    table=tables,
    quota=st.integers(1, 6),
    extra=st.integers(0, 10),
    capacity=st.integers(1, 40),
    saturation=st.integers(1, 40),
    tasks=st.integers(1, 3),
    equal=st.booleans(),
    data=st.data(),
)
def test_in_whatever_order_rollouts_finish_the_groups_are_those_of_the_sequential_definition(
    table, quota, extra, capacity, saturation, tasks, equal, data
):
    def choose(n: int) -> int:
        return data.draw(st.integers(0, n - 1))

    pool = ScriptedPool(table, choose, capacity=capacity, saturation=saturation)
    collection = collect_groups(
        pool,
        in_turn(len(table), tasks),
        group_size=len(table[0]),
        quota=quota,
        max_attempts=quota + extra,
        seed=(0,),
        equal_tasks=tasks if equal else 0,
    )
    accepted, attempted = sequentially(table, quota, quota + extra, tasks, equal)
    assert numbers(collection.groups) == accepted
    assert numbers(collection.attempted) == attempted
    assert collection.position == max(attempted, default=-1) + 1
    for group in collection.attempted:
        assert [r.index for r in group.rollouts] == list(range(len(table[0])))
        assert [r.reward for r in group.rollouts] == list(table[int(group.initial_state.state[0])])
    counts = values(collection.metrics)
    rewards = [r for number in attempted for r in table[number] if r is not None]
    assert counts["success"] == pytest.approx(np.mean(rewards), nan_ok=True) if rewards else np.isnan(counts["success"])
    assert counts["rollouts"] + counts["dropped_rollouts"] == len(table[0]) * len({n for n, _ in pool.launched})
    rejected = [counts[f"rejected_{why}"] for why in ("all_success", "all_failure", "invalid")]
    assert counts["accepted"] + sum(rejected) == counts["attempted"] == len(attempted)
    assert len({n for n, _ in pool.launched}) <= quota + extra


def collect(table: Sequence[Sequence[int | None]], quota: int = 2, **kw: object) -> tuple[Collection, ScriptedPool]:
    pool_settings = {k: kw.pop(k) for k in ("choose", "capacity", "saturation") if k in kw}
    pool = ScriptedPool(table, **pool_settings)  # type: ignore[arg-type]
    given_ = {"group_size": len(table[0]), "max_attempts": 10, "seed": (0,)} | kw
    return collect_groups(pool, states(len(table)), quota=quota, **given_), pool  # type: ignore[arg-type]


def test_what_was_rejected_is_counted_by_its_reason():
    table = [(1, 1, 1), (0, 0, 0), (1, 0, 1), (None, None, 1), (1, 1, None), (0, None, 1)]
    collection, _ = collect(table)
    counts = values(collection.metrics)
    assert numbers(collection.groups) == [2, 5]
    assert {name: counts[name] for name in counts if name.startswith(("rej", "acc", "att"))} == {
        "attempted": 6,
        "accepted": 2,
        "rejected_all_success": 2,
        "rejected_all_failure": 1,
        "rejected_invalid": 1,
        "rejected_share": 4 / 6,
    }
    assert counts["success"] == pytest.approx(9 / 14)
    assert counts["errors"] == 4
    assert counts["env_steps"] == 180


def test_rejected_groups_keep_their_rewards_but_not_what_only_an_update_needs():
    collection, _ = collect([(1, 1), (1, 0)], quota=1)
    rejected, accepted = collection.attempted
    assert rejected.rewards.tolist() == [1, 1]
    assert all(r.sample is r.log_prob is r.mask is r.inputs is None for r in rejected.rollouts)
    assert all(r.sample is not None and r.inputs for r in accepted.rollouts)
    assert collection.groups == (accepted,)


def test_a_task_that_nobody_solves_uses_up_its_own_attempts_alone():
    """Of three tasks in turn the second fails always: with equal shares it gets a third of the attempts."""
    pool = ScriptedPool([(0, 0) if i % 3 == 1 else (0, 1) for i in range(300)])
    settings_ = {"group_size": 2, "quota": 6, "max_attempts": 12, "seed": (0,)}
    collection = collect_groups(pool, in_turn(300, 3), **settings_, equal_tasks=3)
    assert [number % 3 for number in numbers(collection.groups)] == [0, 2, 0, 2]
    assert [number % 3 for number in numbers(collection.attempted)].count(1) == 4
    assert len(collection.attempted) == 8 and collection.position == 11


def test_a_short_batch_is_used_as_it_is():
    always = [(1, 1)] * 10
    collection, pool = collect(always, quota=3, max_attempts=7)
    assert collection.groups == ()
    assert collection.position == 7
    assert len(pool.launched) == 14
    collection, _ = collect([(1, 1), (0, 1), (0, 0)], quota=3, max_attempts=7)
    assert numbers(collection.groups) == [1]
    assert collection.position == 3, "the states ran out"


def test_without_dynamic_sampling_the_first_groups_are_taken_whatever_their_rewards():
    collection, pool = collect([(1, 1), (0, 0), (0, 1), (None, None)], quota=4, dynamic=False)
    assert numbers(collection.groups) == [0, 1, 2, 3]
    assert all(group.rollouts[0].sample is not None for group in collection.groups[:3])
    counts = values(collection.metrics)
    assert counts["rejected_share"] == counts["rejected_all_success"] == 0
    assert len(pool.launched) == 8


def test_nothing_is_launched_that_is_not_needed_while_there_is_enough_to_do():
    mixed = [(0, 1)] * 50
    collection, pool = collect(mixed, quota=5, capacity=100, saturation=1)
    assert len(pool.launched) == 10
    assert values(collection.metrics)["dropped_rollouts"] == 0
    rejected = [(0, 0)] * 4 + mixed
    _, pool = collect(rejected, quota=5, capacity=100, saturation=1)
    assert len(pool.launched) == 2 * (4 + 5), "each rejection is replaced by one"


@pytest.mark.parametrize("choose", [lambda n: 0, lambda n: min(2, n - 1)], ids=["in order", "the oldest lags"])
def test_idle_workers_are_given_groups_ahead_when_most_groups_are_rejected(choose):
    table = [(0, 0)] * 8 + [(0, 1)] * 8
    _, frugal = collect(table, quota=1, max_attempts=16, capacity=100, saturation=1)
    collection, busy = collect(table, quota=1, max_attempts=16, capacity=100, saturation=8, choose=choose)
    assert numbers(collection.groups) == [8], "what was launched ahead is not taken beyond the quota"
    assert len(frugal.launched) == 18
    assert 18 < len(busy.launched) <= 18 + 8
    counts = values(collection.metrics)
    assert counts["rollouts"] == 18
    assert counts["dropped_rollouts"] == len(busy.launched) - 18


def test_the_next_collection_goes_on_right_after_the_accepted_ones_whatever_was_in_flight():
    table = [(0, 1), (1, 1)] * 10
    at, taken = 0, []
    for _ in range(3):
        pool = ScriptedPool(table, choose=lambda n: n - 1, capacity=30, saturation=30)
        left = itertools.islice(states(len(table)), at, None)
        collection = collect_groups(pool, left, group_size=2, quota=3, max_attempts=9, seed=(0,))
        taken += numbers(collection.attempted)
        at += collection.position
    assert taken == list(range(at))


def test_a_state_that_comes_up_twice_gives_two_different_groups():
    twice = iter([fake_state(0, 0.2), fake_state(1, 0.2), fake_state(0, 0.2)])
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=8) as pool:
        collection = collect_groups(pool, twice, group_size=6, quota=3, max_attempts=3, seed=(0,), dynamic=False)
    first, _, second = collection.groups
    assert [r.index for r in second.rollouts] == [6, 7, 8, 9, 10, 11]
    assert not any(np.array_equal(a.sample[0], b.sample[0]) for a in first.rollouts for b in second.rollouts)


def test_progress_tells_accepted_and_attempted_groups_in_launch_order():
    told: list[tuple[int, int]] = []
    collect([(1, 1), (0, 1), (0, 0), (0, 1)], quota=2, progress=lambda *now: told.append(now))
    assert told[-1] == (2, 4)
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"group_size": 1}, "group_size must be at least 2, got 1"),
        ({"quota": 0}, "quota must be at least 1"),
        ({"quota": 11}, "quota = 11 groups cannot be met with max_attempts = 10"),
    ],
)
def test_a_collection_that_cannot_work_is_refused(changes, named):
    wanted = {"group_size": 4, "quota": 2, "max_attempts": 10, "seed": (0,)} | changes
    with pytest.raises(ConfigError, match=named):
        collect_groups(ScriptedPool([(0, 1)]), states(), **wanted)


def test_an_error_in_the_middle_closes_the_run():
    pool = ScriptedPool([(0, 1)] * 9, capacity=6)

    def stop(accepted: int, attempted: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_groups(pool, states(9), group_size=2, quota=4, max_attempts=9, seed=(0,), progress=stop)
    assert pool.dropped > 0


# ---------------------------------------------------------------------------- with simulators

EASY, HARD = fake_task("easy-12", 12), fake_task("hard-120", 120)


def two_tasks() -> Iterator[InitialState]:
    """Every other state is easy (success .58, over within 3 decisions), the others are hard (.3, failures take 30)."""
    return (fake_state(i, (0.25, 0.012)[i % 2], (EASY, HARD)[i % 2]) for i in itertools.count())


@pytest.fixture(scope="module")
def alone() -> Collection:
    """One rollout at a time: nothing overlaps, so nothing can be chosen by its length."""
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=1) as pool:
        return collect_groups(pool, two_tasks(), group_size=4, quota=12, max_attempts=99, seed=(5, 0))


@pytest.mark.parametrize(
    ("workers", "slots", "inference"), [(0, 40, "local"), (2, 3, "local"), (2, 16, "local"), (2, 8, "central")]
)
def test_the_groups_do_not_depend_on_workers_slots_or_timing(alone, workers, slots, inference):
    with make_pool(
        FakeFactory(delay=0.0003 if workers else 0.0), FakePolicy(), workers=workers, slots=slots, inference=inference
    ) as pool:
        found = collect_groups(pool, two_tasks(), group_size=4, quota=12, max_attempts=99, seed=(5, 0))
    assert found.position == alone.position
    assert numbers(found.attempted) == numbers(alone.attempted)
    for mine, theirs in zip(found.attempted, alone.attempted, strict=True):
        assert all(same(a, b) for a, b in zip(mine.rollouts, theirs.rollouts, strict=True))
    without_dropped = [{k: v for k, v in c.metrics.items() if k != "dropped_rollouts"} for c in (found, alone)]
    assert without_dropped[0] == without_dropped[1]


def first_finished(quota: int, seed: int) -> list[Group]:
    """The tempting rule: keep everything busy, and take whichever groups with a signal are complete first."""
    flying: dict[str, list[Rollout]] = {}
    known: dict[str, InitialState] = {}
    done: list[Group] = []

    def requests() -> Iterator[RolloutRequest]:
        for state in two_tasks():
            known[state.id] = state
            for k in range(4):
                yield RolloutRequest(initial_state=state, index=k, seed=(5, seed))

    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=40) as pool:
        for rollout in pool.run(requests()):
            group = flying.setdefault(rollout.initial_state_id, [])
            group.append(rollout)
            if len(group) == 4:
                complete = Group(initial_state=known[rollout.initial_state_id], rollouts=tuple(group))
                done += [complete] if complete.has_signal else []
                if len(done) == quota:
                    return done
    raise AssertionError


def test_accepted_groups_are_not_more_successful_than_the_truth_as_first_finished_ones_would_be():
    """The truth: attempt 400 states one after the other; how successful are the groups with a signal, and how many of
    them are of the hard task? Many small collections must agree within three standard errors."""
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=40) as pool:
        everything = collect_groups(
            pool, two_tasks(), group_size=4, quota=400, max_attempts=400, seed=(5, 0), dynamic=False
        )
        collections = [
            collect_groups(pool, two_tasks(), group_size=4, quota=8, max_attempts=99, seed=(5, seed))
            for seed in range(30)
        ]
    truth = [group for group in everything.groups if group.has_signal]
    ours = [group for collection in collections for group in collection.groups]
    naive = [group for seed in range(30) for group in first_finished(8, seed)]

    def success(groups: Sequence[Group]) -> list[float]:
        return [group.success for group in groups]

    def hard(groups: Sequence[Group]) -> list[float]:
        return [float(group.initial_state.task.name == HARD.name) for group in groups]

    def excess(values_: list[float], of_truth: list[float]) -> float:
        """Difference of the means, in standard errors."""
        spread = np.hypot(np.std(values_) / len(values_) ** 0.5, np.std(of_truth) / len(of_truth) ** 0.5)
        return float((np.mean(values_) - np.mean(of_truth)) / spread)

    assert abs(excess(success(ours), success(truth))) < 3
    assert abs(excess(hard(ours), hard(truth))) < 3
    assert excess(success(naive), success(truth)) > 4, "the tempting rule would fail this test: inflated,"
    assert excess(hard(naive), hard(truth)) < -10, "because it leaves out the hard task"

    attempted = [group for collection in collections for group in collection.attempted]
    assert abs(excess(success(attempted), success(everything.groups))) < 3, "and so is the reported success rate"


# ---------------------------------------------------------------------- practice horizons


def collection_of(lengths: dict[str, list[list[tuple[int, Status]]]]) -> Collection:
    """Task -> groups -> rollouts, each (environment steps, how it ended)."""
    groups = tuple(
        Group(
            initial_state=dataclasses.replace(fake_state(0), task=dataclasses.replace(fake_task(), name=name)),
            rollouts=tuple(
                dataclasses.replace(rollout(status), env_steps=steps, index=i) for i, (steps, status) in enumerate(rows)
            ),
        )
        for name, several in lengths.items()
        for rows in several
    )
    return Collection(groups=(), attempted=groups, position=len(groups), metrics={})


def rollout(status: Status) -> Rollout:
    (taken,) = ScriptedPool(rewards=[[STATUS_REWARD[status]]]).run(
        iter([RolloutRequest(initial_state=fake_state(0), index=0, seed=(0,))])
    )
    return taken


OK, BAD = Status.SUCCESS, Status.FAILURE


def horizon_after(groups: list[list[tuple[int, Status]]], present: int, longest: int = 200) -> int:
    collection = collection_of({"task": groups})
    key = collection.attempted[0].initial_state.task.key
    return practice_horizons(collection, {key: present}, margin=1.25, longest={key: longest})[key]


def test_states_that_are_solved_at_once_whatever_happens_do_not_shorten_the_horizon() -> None:
    """As in FetchPush, where 11 % of the initial states are solved by doing nothing."""
    at_once, never = [(1, OK)] * 16, [(50, BAD)] * 16
    for solved in (1, 5):
        assert horizon_after([at_once] * solved + [never] * 15, 50, longest=50) == 50
    some = [(30, OK)] * 8 + [(50, BAD)] * 8
    assert horizon_after([at_once] * 5 + [some] * 3, 50, longest=50) == 38  # the others' time


def test_successes_of_one_state_or_two_are_not_enough_to_shorten_the_horizon() -> None:
    mixed = [(80, OK)] * 15 + [(200, BAD)]
    assert [horizon_after([mixed] * groups, 200) for groups in (1, 2, 3)] == [200, 200, 100]


def test_a_horizon_leaves_time_to_fail_and_comes_back_when_too_few_succeed() -> None:
    assert horizon_after([[(2, OK)] * 15 + [(200, BAD)]] * 8, 200) == 50  # a quarter of the longest
    never = [[(50, BAD)] * 16] * 8
    assert [horizon_after(never, present) for present in (50, 100, 200)] == [100, 200, 200]


def test_a_short_task_beside_a_long_one_has_bounds_of_its_own() -> None:
    quick = [[(2, OK)] * 8 + [(10, BAD)]] * 3
    collection = collection_of({"short": quick, "long": quick, "none": [[(10, BAD)] * 16]})
    keys = {group.initial_state.task.name: group.initial_state.task.key for group in collection.attempted}
    longest = {keys["short"]: 10, keys["long"]: 100, keys["none"]: 10}
    found = practice_horizons(collection, longest, margin=1.25, longest=longest)
    assert {name: found[key] for name, key in keys.items()} == {"short": 3, "long": 25, "none": 10}


def test_a_tasks_horizon_follows_the_time_of_its_successes_alone() -> None:
    collection = collection_of(
        {
            "quick": [[(10 * i, OK) for i in range(1, 11)] + [(200, BAD)] * 6] * 3,  # 90th percentile: 100
            "late": [[(190, OK)] * 8 + [(200, BAD)]] * 3,
            "rare": [[(20, OK)] * 2 + [(200, BAD)] * 14] * 3,  # too few to tell
            "never": [[(200, BAD)] * 16],
        }
    )
    keys = {group.initial_state.task.name: group.initial_state.task.key for group in collection.attempted}
    present = dict.fromkeys(keys.values(), 200) | {keys["rare"]: 75}
    found = practice_horizons(collection, present, margin=1.25, longest=dict.fromkeys(present, 200))
    assert {name: found[key] for name, key in keys.items()} == {"quick": 125, "late": 200, "rare": 150, "never": 200}
    assert present[keys["quick"]] == 200  # not changed in place


@given(st.lists(st.integers(1, 300), min_size=8, max_size=64), st.floats(1.12, 3.0), st.integers(300, 500))
def test_a_horizon_never_cuts_more_than_a_tenth_of_the_successes(
    lengths: list[int], margin: float, longest: int
) -> None:
    collection = collection_of({"task": [[*((n, OK) for n in lengths), (longest, BAD)]] * 3})
    key = collection.attempted[0].initial_state.task.key
    (horizon,) = practice_horizons(collection, {}, margin=margin, longest={key: longest}).values()
    assert np.mean(np.array(lengths) > horizon) <= 0.1 and horizon <= longest
