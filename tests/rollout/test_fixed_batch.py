"""Batches of one size make rollouts equal to the last bit, however many are in progress."""

from __future__ import annotations

import pytest

from ript.build import make_env_pool, simulator_factory
from ript.core.errors import ConfigError
from ript.core.types import Rollout, RolloutRequest
from ript.rollout.pool import make_pool
from tests.fakes import FakeFactory, FakePolicy, same
from tests.rollout.test_pool import collect, requests
from tests.toy_runs import lively_policy, toy_config


def rollouts(slots: int, fixed_batch: int) -> dict[tuple[str, int], Rollout]:
    config = toy_config(rollout={"slots": slots, "fixed_batch": fixed_batch})
    with simulator_factory(config.sim)("toy/reach-centre") as simulator:
        states = simulator.initial_states(6)
    wanted = [
        RolloutRequest(initial_state=state, index=k, seed=(0,), greedy=k == 2) for state in states for k in range(3)
    ]
    with make_env_pool(config.sim, config.rollout, lively_policy(config)) as pool:
        return {(r.initial_state_id, r.index): r for r in pool.run(iter(wanted))}


def test_rollouts_are_equal_to_the_bit_in_batches_of_one_size_alone() -> None:
    several, few = rollouts(7, 4), rollouts(2, 4)
    assert len(several) == 18 and all(same(several[key], few[key]) for key in several)
    loose = rollouts(7, 0), rollouts(2, 0)
    assert not all(same(loose[0][key], loose[1][key]) for key in loose[0])


def test_rows_that_fill_up_a_batch_are_nobodys_rollouts() -> None:
    wanted = requests()
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=4) as pool:
        expected = collect(pool, wanted)
    with make_pool(FakeFactory(), FakePolicy(), workers=0, slots=4, fixed_batch=3) as pool:
        found = collect(pool, wanted)
    assert all(same(found[key], expected[key]) for key in expected)


def test_a_batch_of_less_than_no_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="fixed_batch must be 0 or more, got -1"):
        make_pool(FakeFactory(), FakePolicy(), workers=0, fixed_batch=-1)
