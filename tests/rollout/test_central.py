"""One policy for all workers: whose simulators work while it decides, and how many questions it takes at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ript.core.types import ActionChunk, Observation, RolloutRequest, Status
from ript.rollout.pool import make_pool
from tests.fakes import FakeFactory, FakePolicy, FakeSimulator, fake_state, fake_task

LONG = fake_task("long-80", 80)


def requests(n: int) -> list[RolloutRequest]:
    return [RolloutRequest(initial_state=fake_state(i, 0.0, LONG), index=0, seed=(0,)) for i in range(n)]


class Logging(FakeFactory):
    """Its simulators write a line for every chunk that they have executed."""

    def __call__(self, key: str) -> FakeSimulator:
        simulator, log = FakeFactory(delay=self.delay)(key), Path(str(self.log))
        step_chunk = simulator.step_chunk

        def stepped(actions: np.ndarray) -> object:
            result = step_chunk(actions)
            with log.open("a") as file:
                file.write(".")
            return result

        simulator.step_chunk = stepped  # type: ignore[method-assign,assignment]
        return simulator


class Watching(FakePolicy):
    """Takes its time, and counts the chunks that were executed meanwhile."""

    def __init__(self, log: Path, seconds: float = 0.0):
        super().__init__()
        self.log, self.seconds = log, seconds
        self.rows: list[int] = []
        self.meanwhile: list[int] = []

    def act(
        self, observation: Observation, generators: Sequence[np.random.Generator], *, greedy: bool = False
    ) -> ActionChunk:
        before = len(self.log.read_text())
        time.sleep(self.seconds)
        self.rows.append(len(observation))
        self.meanwhile.append(len(self.log.read_text()) - before)
        return super().act(observation, generators, greedy=greedy)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").write_text("")
    return tmp_path / "log"


@pytest.mark.parametrize("slots", [6, 5])
def test_half_of_a_workers_simulators_work_while_the_policy_decides_for_the_other_half(log, slots):
    policy = Watching(log, seconds=0.05)
    settings = {"workers": 1, "slots": slots, "inference": "central"}
    with make_pool(Logging(log=str(log), delay=0.02), policy, **settings) as pool:  # type: ignore[arg-type]
        done = list(pool.run(requests(slots)))
    assert {rollout.decisions for rollout in done} == {20}
    assert sum(policy.rows) == 20 * slots
    assert len(policy.rows) >= 38, "halves, but for the beginning"
    assert sum(steps > 0 for steps in policy.meanwhile) > 20  # of 40, some of which a busy machine is late for


def test_a_half_whose_rollouts_end_together_is_refilled_at_once(log):
    policy = Watching(log, seconds=0.01)
    settings = {"workers": 1, "slots": 8, "inference": "central"}
    with make_pool(Logging(log=str(log), delay=0.002), policy, **settings) as pool:  # type: ignore[arg-type]
        assert len(list(pool.run(requests(32)))) == 32
    assert sum(policy.rows) == 32 * 20
    assert policy.rows.count(4) >= 0.95 * len(policy.rows)


def test_one_slot_is_not_halved(log):
    policy = Watching(log)
    with make_pool(Logging(log=str(log)), policy, workers=1, slots=1, inference="central") as pool:
        assert len(list(pool.run(requests(2)))) == 2
    assert policy.rows == [1] * 40


def test_questions_of_all_workers_are_decided_together_when_they_come_within_the_time_for_gathering(log):
    policy = Watching(log)
    settings = {"workers": 3, "slots": 1, "inference": "central", "gather": 30.0}
    with make_pool(Logging(log=str(log), delay=0.005), policy, **settings) as pool:  # type: ignore[arg-type]
        began = time.monotonic()
        assert len(list(pool.run(requests(3)))) == 3
        assert time.monotonic() - began < 20, "it waits no longer than until all have asked"
        assert policy.rows == [3] * 20
        policy.rows.clear()
        assert len(list(pool.run(requests(2)))) == 2
        assert time.monotonic() - began < 20, "nor for workers that have nothing to do"
        assert policy.rows == [2] * 20


class SlowToBuild(FakeFactory):
    """Building a simulator of the task "slow-..." takes its time."""

    def __call__(self, key: str) -> FakeSimulator:
        if "slow" in key:
            time.sleep(1.0)
        return super().__call__(key)


def test_a_worker_that_is_busy_with_something_else_does_not_hold_up_the_others(log):
    policy = Watching(log)
    settings = {"workers": 2, "slots": 1, "inference": "central", "gather": 0.005}
    slow = RolloutRequest(initial_state=fake_state(0, 0.0, fake_task("slow-8", 8)), index=0, seed=(0,))
    with make_pool(SlowToBuild(), policy, **settings) as pool:  # type: ignore[arg-type]
        done = [rollout.initial_state_id for rollout in pool.run([slow, *requests(1)])]
    assert done[-1] == slow.initial_state.id
    assert policy.rows.count(1) > 18


def test_statuses_do_not_depend_on_who_decides_for_whom(log):
    wanted = [RolloutRequest(initial_state=fake_state(i, 0.1), index=0, seed=(1,)) for i in range(12)]
    found = []
    for workers, slots, gather in ((1, 1, 0.0), (2, 5, 0.0), (3, 4, 0.05)):
        settings = {"workers": workers, "slots": slots, "gather": gather, "inference": "central"}
        with make_pool(FakeFactory(delay=0.001), FakePolicy(), **settings) as pool:  # type: ignore[arg-type]
            found.append({(r.initial_state_id, r.status, r.env_steps) for r in pool.run(wanted)})
    assert found[0] == found[1] == found[2]
    assert {status for _, status, _ in found[0]} == {Status.SUCCESS, Status.FAILURE}
