import numpy as np
import pytest

from ript.core.errors import ConfigError, UnknownNameError
from ript.sims.check import check_simulator
from ript.sims.registry import find_task, list_tasks, make_simulator
from ript.sims.toy.simulator import RADIUS, TASKS, ToySimulator


@pytest.mark.parametrize("task", TASKS)
def test_every_toy_task_keeps_the_contract(task):
    check_simulator(lambda: ToySimulator(task))


@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_every_toy_task(task):
    with ToySimulator(task) as simulator:
        for state in simulator.initial_states(20, split="test"):
            simulator.reset(state)
            result = simulator.step_chunk(simulator.expert_action()[None])
            while not result.done:
                result = simulator.step_chunk(simulator.expert_action()[None])
            assert result.success


def test_random_chunks_sometimes_solve_the_toy_so_that_there_is_something_to_learn_from():
    generator, successes = np.random.default_rng(0), 0
    with ToySimulator() as simulator:
        for state in simulator.initial_states(100):
            simulator.reset(state)
            done = False
            while not done:
                result = simulator.step_chunk(np.repeat(generator.uniform(-1, 1, (1, 2)), 4, axis=0))
                done = result.done
            successes += result.success
    assert 10 <= successes <= 60


def test_no_toy_episode_starts_solved():
    with ToySimulator("reach-centre") as simulator:
        for state in simulator.initial_states(200):
            assert np.hypot(*(state.state[:2] - state.state[2:])) > RADIUS


def test_the_picture_shows_the_dot_white_and_the_goal_green_where_they_are():
    with ToySimulator(image_size=40) as simulator:
        state = simulator.initial_states(1)[0]
        picture = simulator.reset(state).images["top"][0].astype(int)
        for (x, y), colour in ((state.state[:2], (240, 240, 240)), (state.state[2:], (60, 200, 90))):
            row, column = int((1 - y) / 2 * 40), int((x + 1) / 2 * 40)
            assert np.abs(picture[row, column] - colour).max() < 10


def test_two_instances_give_the_same_initial_states():
    a, b = ToySimulator().initial_states(3, seed=5), ToySimulator(image_size=32).initial_states(3, seed=5)
    assert [s.id for s in a] == [s.id for s in b]


def test_a_task_is_found_by_key_and_by_name_and_a_misspelt_one_gets_the_nearest():
    assert find_task("toy/reach-corner") == find_task("reach-corner")
    assert find_task("drawer-open-v3").key == "metaworld/drawer-open-v3"
    with pytest.raises(UnknownNameError, match=r"metaworld task .* drawer-open-v3"):
        find_task("metaworld/draweropen")
    assert sum(task.suite in ("metaworld", "toy") for task in list_tasks()) == 54
    assert make_simulator("toy/reach", horizon=7).task.horizon == 7


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="horizon"):
        ToySimulator(horizon=0)
    with pytest.raises(ConfigError, match="image_size"):
        ToySimulator(image_size=4)
    with pytest.raises(UnknownNameError, match="reach"):
        ToySimulator("raech")


@pytest.mark.parametrize("key", ["toy/reach", "metaworld/reach-v3"])
def test_initial_states_are_asked_for_by_numbers_and_a_split_that_there_are(key):
    with make_simulator(key) as simulator:
        assert simulator.initial_states(0) == []
        with pytest.raises(ConfigError, match=rf"{key}, initial states: n = -1, start = -2, expected 0 or more"):
            simulator.initial_states(-1, start=-2)
        with pytest.raises(ConfigError, match="seed = -3"):
            simulator.initial_states(1, seed=-3)
        with pytest.raises(UnknownNameError, match="unknown split 'tests': did you mean test"):
            simulator.initial_states(1, split="tests")
