"""The real simulator. A selection of tasks is compared with the stock environment; all 50 are by `make test-all`."""

import multiprocessing
import pickle
import time
import weakref
from functools import partial

import numpy as np
import pytest

from ript.core.errors import ConfigError, SimulatorError, UnknownNameError
from ript.core.interfaces import Demonstrator
from ript.sims.check import check_simulator
from ript.sims.metaworld.instructions import INSTRUCTIONS
from ript.sims.metaworld.simulator import (
    CAMERAS,
    CameraView,
    MetaworldSimulator,
    close_renderers,
    metaworld_tasks,
)
from ript.sims.metaworld.stock import RENDERERS, SHELF, SharedTask, StockMetaworld
from ript.sims.metaworld.success import SUCCESS, Body, near
from ript.sims.metaworld.tasks import LISTS
from ript.sims.mujoco import gl
from ript.sims.mujoco.gl import import_mujoco

TASK = "drawer-open-v3"
# One task for every kind of success rule, reset and goal.
SELECTION = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "button-press-topdown-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "hammer-v3",
    "lever-pull-v3",
    "pick-place-wall-v3",
    "plate-slide-back-v3",
    "reach-v3",
    "stick-pull-v3",
    "stick-push-v3",
    "sweep-into-v3",
    "window-close-v3",
)


@pytest.fixture(scope="module", autouse=True)
def free_renderers():
    yield
    close_renderers()


@pytest.fixture
def simulator():
    with MetaworldSimulator(TASK) as simulator:
        yield simulator


def solve(simulator, state, steps=200):
    """Follow the expert; the number of steps to success, or None."""
    simulator.reset(state)
    for step in range(1, steps + 1):
        result = simulator.step_chunk(simulator.expert_action()[None])
        if result.success:
            return step
    return None


@pytest.mark.parametrize("task", [TASK, "window-open-v3"])
def test_the_simulator_keeps_the_whole_contract(task):
    passed = check_simulator(partial(MetaworldSimulator, task, horizon=60), episodes=1, steps=12)
    assert passed[-1] == "equals stock"


@pytest.mark.parametrize(
    "task", [task if task in SELECTION else pytest.param(task, marks=pytest.mark.slow) for task in INSTRUCTIONS]
)
def test_observations_and_success_equal_the_stock_environment_until_the_expert_succeeds(task):
    with MetaworldSimulator(task) as simulator:
        solved = (follows_stock_to_success(simulator, state) for state in simulator.initial_states(5, seed=3))
        assert any(solved), "the expert never succeeded, so success was not compared"


def follows_stock_to_success(simulator, state):
    stock, generator = simulator.stock_episode(state), np.random.default_rng(0)
    simulator.reset(state)
    assert np.array_equal(simulator.state_vector(), stock.first)
    for step in range(200):
        # The noise makes the hand bump into things; the expert brings it back.
        noise = generator.normal(0, 0.2, 4) if step < 20 else 0.0
        action = np.clip(simulator.expert_action() + noise, -1.5, 1.5).astype(np.float32)
        before = stock.env.data.qpos.copy()
        vector, _, success = stock.step(action)
        result = simulator.step_chunk(action[None])
        assert np.array_equal(simulator.state_vector(), vector), step
        assert result.success == success, step
        if success:
            flips_where_stock_flips(simulator.task.name, stock, before, stock.env.data.qpos.copy(), action)
            return True
    return False


def flips_where_stock_flips(task, stock, failure, success, action):
    """Between the last two poses, bisect to the very threshold: the rule and the stock flag agree all the way."""
    mujoco = import_mujoco()
    env, rule = stock.env, SUCCESS[task](stock.env.data, stock.first[-3:])
    low, high = 0.0, 1.0
    for _ in range(45):
        middle = (low + high) / 2
        env.data.qpos[:] = failure + middle * (success - failure)
        mujoco.mj_forward(env.model, env.data)
        expected = bool(env.evaluate_state(env._get_obs(), action)[1]["success"])
        assert rule() == expected, middle
        low, high = (low, middle) if expected else (middle, high)


def test_a_long_trajectory_in_chunks_equals_stock_in_its_last_frame(simulator):
    state = simulator.initial_states(1)[0]
    stock = simulator.stock_episode(state)
    actions = np.repeat(np.random.default_rng(1).uniform(-1, 1, (20, 4)), 8, axis=0).astype(np.float32)
    observation = simulator.reset(state)
    for first in range(0, len(actions), 8):
        vector = [stock.step(action) for action in actions[first : first + 8]][-1][0]
        simulator.step_chunk(actions[first : first + 8])
        observation = simulator.observe()
    assert np.array_equal(observation.proprio[0], vector[[0, 1, 2, 3, 18, 19, 20, 21]].astype(np.float32))
    assert np.array_equal(simulator.state_vector(), vector)


def test_an_initial_state_survives_storage_and_a_process_that_never_drew_it(simulator):
    state = simulator.initial_states(1, seed=9)[0]
    simulator.reset(state)
    actions = np.random.default_rng(2).uniform(-1, 1, (16, 4)).astype(np.float32)
    simulator.step_chunk(actions)
    stored = pickle.loads(pickle.dumps(state))
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        there = pool.apply(_vector_after, (partial(MetaworldSimulator, TASK), stored, actions))
    assert stored.id == state.id
    assert np.array_equal(there, simulator.state_vector())


def _vector_after(factory, state, actions):
    with factory() as simulator:
        simulator.reset(state)
        simulator.step_chunk(actions)
        return simulator.state_vector()


def test_the_first_picture_shows_the_state_even_where_the_stock_reset_leaves_old_poses():
    with MetaworldSimulator("window-close-v3") as simulator:
        state = simulator.initial_states(1)[0]
        handle = simulator.reset(state) and simulator.privileged()[:3]
        simulator.step_chunk(np.zeros((1, 4), np.float32))
        assert np.abs(simulator.privileged()[:3] - handle).max() < 0.01
        # The stock observation after the reset has the handle 20 cm away, where the window is closed.
        stale = simulator.stock_episode(state).first[4:7]
        assert np.abs(stale - handle).max() > 0.15


def test_instances_share_the_model_and_drawing_leaves_it_alone(simulator):
    model = simulator._model
    simulator.reset(simulator.initial_states(1)[0])
    before = {
        name: getattr(model, name).copy() for name in ("geom_type", "geom_size", "geom_rgba", "cam_pos", "body_pos")
    }
    simulator.observe()
    simulator.render()
    for name, values in before.items():
        assert np.array_equal(getattr(model, name), values), name
    start = time.process_time()
    others = [MetaworldSimulator(TASK) for _ in range(10)]
    assert time.process_time() - start < 0.5  # a model of its own would cost each 150 ms
    assert all(other._model is model for other in others)


def test_instances_that_take_turns_go_to_the_bit_the_ways_that_each_goes_alone_over_a_model_of_its_own():
    """While another draws initial states and another one is filmed, as in a worker between two rounds."""
    with MetaworldSimulator("window-close-v3") as drawing:  # whose reset leaves old poses behind
        states = drawing.initial_states(6, seed=4)
    plans = np.random.default_rng(3).uniform(-1, 1, (6, 5, 8, 4)).astype(np.float32)
    alone = []
    for state, plan in zip(states, plans, strict=True):
        SHELF.close_unused()
        with MetaworldSimulator("window-close-v3") as instance:
            seen = [_seen(instance, instance.reset(state))]
            for chunk in plan:
                instance.step_chunk(chunk)
                seen.append(_seen(instance, instance.observe()))
            alone.append(seen)
            assert len(SHELF) == 1
    instances = [MetaworldSimulator("window-close-v3") for _ in states]
    assert len({id(instance._model) for instance in instances}) == 1
    together = [[_seen(one, one.reset(state))] for one, state in zip(instances, states, strict=True)]
    for round_ in range(5):
        for instance, plan in zip(instances, plans, strict=True):
            instance.step_chunk(plan[round_])
        instances[0].initial_states(1, seed=5, start=round_)
        instances[2].render()
        for instance, seen in reversed(list(zip(instances, together, strict=True))):
            seen.append(_seen(instance, instance.observe()))
        instances[1].perturbed_state(states[0], 0.01, np.random.default_rng(round_))
    assert together == alone


def _seen(simulator, observation):
    pictures = [image.tobytes() for image in observation.images.values()]
    return simulator._data.qpos.tobytes(), simulator._data.qvel.tobytes(), simulator.state_vector().tobytes(), pictures


def test_what_instances_share_is_closed_when_nobody_uses_it_and_others_have_come_since():
    SHELF.close_unused()
    before = len(SHELF)
    a, again, b = (MetaworldSimulator(task) for task in (TASK, TASK, "reach-v3"))
    kept = weakref.ref(a._shared)
    state = a.initial_states(1)[0]
    seen = _seen(a, a.reset(state))
    a.close()
    a.close()
    b.close()
    others = [MetaworldSimulator(task) for task in ("push-v3", "door-open-v3", "soccer-v3", "drawer-close-v3")]
    assert len(SHELF) == before + 1 + 1 + 4, "another instance is open, and the last unused ones stay"
    again.close()
    for other in others:
        other.close()
    assert len(SHELF) == before + 2
    del a, again
    assert kept() is None, "its memory is free"
    with MetaworldSimulator(TASK) as anew:
        assert _seen(anew, anew.reset(state)) == seen
    forgotten = MetaworldSimulator("hammer-v3")
    forgotten.reset(forgotten.initial_states(1)[0])
    del forgotten
    SHELF.close_unused()
    assert len(SHELF) == before


def test_few_ways_of_drawing_a_task_stay_open(simulator):
    state = simulator.initial_states(1)[0]
    first = simulator.reset(state)
    for size in range(20, 28):
        with MetaworldSimulator(TASK, image_size=size) as other:
            other.reset(state)
    assert len(simulator._shared._renderers) == RENDERERS
    assert np.array_equal(simulator.observe().images["side"], first.images["side"])


def test_the_sequence_of_initial_states_is_the_same_in_every_version_of_this_package(simulator):
    """Results name states by split, seed and number: this must keep meaning the same states."""
    vectors = [simulator._shared.layout.split(s.state)[0] for s in simulator.initial_states(2, seed=0, split="test")]
    assert np.round(vectors, 6).tolist() == GOLDEN


GOLDEN = [[0.044512, 0.9, 0.0], [0.046149, 0.9, 0.0]]


def test_a_perturbed_state_is_near_another_and_within_the_hands_reach(simulator):
    state = simulator.initial_states(1)[0]
    layout = simulator._shared.layout
    near_by = [simulator.perturbed_state(state, 0.01, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    vectors = [layout.split(s.state)[0] for s in near_by]
    assert near_by[0].id == near_by[1].id != near_by[2].id != state.id
    for vector in vectors:
        moved = vector - layout.split(state.state)[0]
        assert 0 < abs(moved[0]) < 0.06 and not moved[1:].any()  # a drawer's row and height are the task's
    simulator.reset(near_by[0])
    with pytest.raises(SimulatorError, match="1000 draws left the hand's reach"):
        simulator.perturbed_state(state, 1e6, np.random.default_rng(0))


@pytest.mark.parametrize("task", ["disassemble-v3", "stick-pull-v3", "hand-insert-v3", "handle-press-side-v3"])
def test_noise_has_the_size_that_was_asked_for(task):
    """Not cut off where the task's own initial states end; heights, which hardly vary there, stay."""
    with MetaworldSimulator(task) as simulator:
        shared = simulator._shared
        moved, outside = [], 0
        for i, state in enumerate(simulator.initial_states(40)):
            noisy = simulator.perturbed_state(state, 0.1, np.random.default_rng(i))
            before, after = (shared.layout.split(s.state)[0] for s in (state, noisy))
            moved.append(after - before)
            space = shared.env._random_reset_space
            outside += not ((after >= space.low) & (after <= space.high)).all()
        spread = np.std(moved, axis=0)
        assert 0.07 < spread[0] < 0.13 and spread[1] > 0.05 and not spread[2:].any()
        assert outside > 10
        simulator.reset(noisy)
        for i in range(3):  # the noisiest that the study asks for
            simulator.perturbed_state(state, 0.175, np.random.default_rng(i))


def test_a_vector_that_the_task_refuses_ends_in_an_error_instead_of_a_loop():
    task = SharedTask("push-v3")
    with pytest.raises(SimulatorError, match="metaworld/push-v3, pinned: the task refused"):
        task.build(lambda: np.array([0.0, 0.6, 0.02, 0.0, 0.6, 0.02]), "metaworld/push-v3, pinned")


def test_a_state_of_another_size_or_with_nan_is_refused(simulator):
    from dataclasses import replace

    state = simulator.initial_states(1)[0]
    for bad in (state.state[:-1], np.where(np.arange(state.state.size) == 40, np.nan, state.state)):
        with pytest.raises(SimulatorError, match=TASK):
            simulator.reset(replace(state, state=bad))


def test_unknown_names_get_the_nearest():
    with pytest.raises(UnknownNameError, match="drawer-open-v3"):
        MetaworldSimulator("drawer-opne-v3")
    with pytest.raises(UnknownNameError, match="corner2"):
        MetaworldSimulator(TASK, cameras=("corner22",))
    with pytest.raises(UnknownNameError, match="boxes"):
        MetaworldSimulator(TASK, arm="box")
    misspelt = MetaworldSimulator(TASK, cameras={"mine": CameraView(base="cornr")})
    state = misspelt.initial_states(1)[0]
    with pytest.raises(UnknownNameError, match="corner"):
        misspelt.reset(state)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="horizon"):
        MetaworldSimulator(TASK, horizon=0)
    with pytest.raises(ConfigError, match="image size"):
        MetaworldSimulator(TASK, image_size=0)
    with pytest.raises(ConfigError, match="free-standing"):
        CameraView(position=(0.0, 0.0, 1.0))
    with pytest.raises(ConfigError, match="keeps its direction"):
        CameraView(base="corner", target=(0.0, 0.0, 0.0))


def test_every_camera_gives_its_own_picture_of_the_asked_size(simulator):
    state = simulator.initial_states(1)[0]
    with MetaworldSimulator(TASK, cameras=tuple(CAMERAS), image_size=(24, 32)) as several:
        images = several.reset(state).images
    assert {image.shape for image in images.values()} == {(1, 24, 32, 3)}
    distinct = {image.tobytes() for image in images.values()}
    assert len(distinct) == len(CAMERAS) - 1  # corner4 is where papers move corner2 to
    assert images["corner2"].tobytes() == images["corner4"].tobytes() != images["corner2-stock"].tobytes()


def test_pictures_are_upright():
    """From above, the robot's base is at the lower edge and the drawer at the upper; the drawer is green."""
    with MetaworldSimulator(TASK, cameras=("topview",), image_size=32, arm="mesh") as simulator:
        image = simulator.reset(simulator.initial_states(1)[0]).images["topview"][0].astype(int)
    green = (image[..., 1] > image[..., 0] + 20) & (image[..., 1] > image[..., 2] + 20)
    assert green[:16].sum() > 10 * max(1, green[16:].sum())


def test_the_ways_to_draw_the_arm_differ_only_where_the_arm_is(simulator):
    state = simulator.initial_states(1)[0]
    pictures = {}
    for arm in ("boxes", "mesh", "hidden"):
        with MetaworldSimulator(TASK, arm=arm) as other:
            pictures[arm] = other.reset(state).images["side"][0].astype(int)
    red = {arm: ((p[..., 0] > 1.6 * p[..., 1]) & (p[..., 0] > 1.6 * p[..., 2])).sum() for arm, p in pictures.items()}
    assert red["boxes"] >= red["mesh"] > 150 > red["hidden"]
    right_half = [p[32:, 40:] for p in pictures.values()]
    assert np.abs(right_half[0] - right_half[1]).max() < 3 and np.abs(right_half[0] - right_half[2]).max() < 3


def test_a_video_frame_is_larger_and_does_not_change_what_the_policy_sees(simulator):
    first = simulator.reset(simulator.initial_states(1)[0])
    assert simulator.render().shape == (160, 160, 3)
    assert np.array_equal(simulator.observe().images["side"], first.images["side"])


def test_a_closed_context_frees_its_renderers_and_the_next_look_makes_new_ones(simulator):
    first = simulator.reset(simulator.initial_states(1)[0])
    gl.close_context()
    assert not any(shared._renderers for shared in SHELF)
    assert np.array_equal(simulator.observe().images["side"], first.images["side"])


def test_experts_solve_test_states_and_privileged_positions_are_the_objects(simulator):
    assert isinstance(simulator, Demonstrator)
    for state in simulator.initial_states(3, split="test"):
        assert solve(simulator, state)
        vector = simulator.state_vector()
        expected = np.concatenate([vector[4:7], vector[11:14], vector[36:39]])
        assert np.allclose(simulator.privileged(), expected, atol=1e-6)


def test_an_episode_ends_at_the_horizon_within_a_chunk():
    with MetaworldSimulator(TASK, horizon=10) as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        assert simulator.step_chunk(np.zeros((8, 4))).env_steps == 8
        last = simulator.step_chunk(np.zeros((8, 4)))
        assert (last.env_steps, last.done, last.success) == (2, True, False)
        with pytest.raises(SimulatorError, match="step 10: stepped after"):
            simulator.step_chunk(np.zeros((1, 4)))


def test_a_simulation_that_becomes_unstable_is_an_error_and_the_next_episode_is_not(simulator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log
    first, second = simulator.initial_states(2)
    simulator.reset(first)
    simulator.step_chunk(np.zeros((3, 4), np.float32))
    simulator._data.qvel[0] = np.nan
    with pytest.raises(SimulatorError, match=rf"{first.id}, step 5: the simulation has become unstable"):
        simulator.step_chunk(np.zeros((2, 4), np.float32))
    simulator.reset(second)
    simulator.step_chunk(np.zeros((2, 4), np.float32))


def test_success_stops_a_chunk_at_the_step_of_success(simulator):
    state = simulator.initial_states(1)[0]
    steps = solve(simulator, state)
    simulator.reset(state)
    actions = []
    for _ in range(steps - 4):
        actions.append(simulator.expert_action())
        simulator.step_chunk(actions[-1][None])
    last = np.repeat(simulator.expert_action()[None], 12, axis=0)
    result = simulator.step_chunk(last)
    assert result.success and result.done and result.env_steps < 12


def test_distances_at_the_threshold_are_decided_as_numpy_decides_them():
    """The rule sums squares in another order than numpy, which must not matter even at the threshold, as here."""

    class Data:
        def __init__(self, xpos):
            self.xpos = xpos

        def body(self, name):
            return self

    generator, radius, inside = np.random.default_rng(0), 0.05, 0
    for _ in range(2000):
        direction = generator.normal(size=3)
        goal = generator.normal(size=3)
        point = goal + direction / np.linalg.norm(direction) * radius
        stock = bool(np.linalg.norm(point - goal) <= radius)
        assert near(Body("any"), radius)(Data(point), goal)() == stock
        inside += stock
    assert 200 < inside < 1800  # rounding alone decides


def test_the_task_list_is_complete_and_every_instruction_is_one_distinct_sentence():
    tasks = metaworld_tasks(horizon=77)
    assert len(tasks) == 50 and {t.horizon for t in tasks} == {77}
    assert [t.index for t in tasks] == list(range(50)) and [t.name for t in tasks] == sorted(SUCCESS)
    texts = [t.instruction for t in tasks]
    assert len(set(texts)) == 50
    for text in texts:
        assert text.endswith(".") and text.count(".") == 1 and text[0].isupper() and len(text.split()) >= 3


def test_the_splits_are_of_known_tasks_and_hold_out_what_they_say():
    assert {name: len(names) for name, names in LISTS.items()} == {
        "MT10": 10,
        "MT50": 50,
        "ML10-train": 10,
        "ML10-test": 5,
        "ML45-train": 45,
        "ML45-test": 5,
    }
    assert all(set(names) <= set(INSTRUCTIONS) for names in LISTS.values())
    for name in ("ML10", "ML45"):
        assert not set(LISTS[f"{name}-train"]) & set(LISTS[f"{name}-test"])
    assert set(LISTS["ML45-test"]) == {
        "box-close-v3",
        "disassemble-v3",
        "hand-insert-v3",
        "pick-place-wall-v3",
        "stick-pull-v3",
    }


def test_the_published_splits_of_the_package_are_ours_too():
    from metaworld import env_dict

    assert set(LISTS["MT10"]) == set(env_dict.MT10_V3)
    assert set(LISTS["ML10-train"]) == set(env_dict.ML10_V3["train"])
    assert set(LISTS["ML10-test"]) == set(env_dict.ML10_V3["test"])


def test_stock_rewards_are_those_of_the_stock_environment(simulator):
    state = simulator.initial_states(1)[0]
    stock: StockMetaworld = simulator.stock_episode(state)
    simulator.reset(state)
    for _ in range(20):
        action = simulator.expert_action()
        simulator.step_chunk(action[None])
        assert simulator.stock_reward(action) == stock.step(action)[1]
