"""Gymnasium environments as simulators: small ones of our own, MuJoCo ones of Gymnasium, Fetch."""

from __future__ import annotations

import json
import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from packages import needs

from ript.build import horizons, make_policy, own_code
from ript.config.overrides import load_recipe as recipe
from ript.core.errors import ConfigError, DependencyMissing, PolicyError, RiptError, SimulatorError, UnknownNameError
from ript.core.options import replace
from ript.core.registry import suites
from ript.policies.loading import load_policy
from ript.rl import train_rl
from ript.sims.check import CHECKS, check_simulator
from ript.sims.gym import cameras, environment, instances, pictures, success
from ript.sims.gym.instances import SHELF
from ript.sims.gym.simulator import GymSimulator
from ript.sims.gym.tasks import task_of
from ript.sims.registry import make_simulator
from ript.sims.seen import sim_options_of
from ript.sims.soundness import in_words, soundness
from ript.sims.toy.simulator import ToySimulator

pytestmark = needs("mujoco")
PACKAGE = "gym_environments"


def made(name: str, **settings) -> GymSimulator:
    return GymSimulator(f"{PACKAGE}:{name}-v0", **settings)


def check(name: str, **settings) -> list[str]:
    return check_simulator(lambda: made(name, **settings))


@pytest.fixture(autouse=True)
def nothing_is_left_on_the_shelf():
    yield
    SHELF.close_unused()
    assert len(SHELF) == 0


# ------------------------------------------------------------------------------------------------------ the contract


def test_whole_numbers_without_a_sign_are_numbers():
    assert check("Bytes") == list(CHECKS)
    with made("Bytes") as simulator:
        state = simulator.initial_states(1)[0]
        simulator.reset(state)
        assert simulator.state_vector().size == simulator.stock_episode(state).first.size == 4


@pytest.mark.parametrize("name", ["Dot", "Point", "StickyPoint", "TiringPoint", "NoisyPoint", "Pixels"])
def test_an_environment_keeps_the_contract_and_goes_the_way_of_a_new_one(name):
    assert check(name) == list(CHECKS)


@pytest.mark.parametrize(
    "name",
    [
        "FetchReach-v4",
        "FetchPush-v4",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("FetchPickAndPlace-v4", "FetchSlide-v4")),
    ],
)
def test_fetch_keeps_the_contract_with_physics_for_a_state_and_has_views_of_its_own(name):
    pytest.importorskip("gymnasium_robotics")
    with GymSimulator(name) as simulator:
        assert simulator.exact == ""
    found = check_simulator(lambda: GymSimulator(name, cameras=("front", "side"), image_size=32), steps=15)
    assert found == list(CHECKS)


@pytest.mark.parametrize(
    "name, says",
    [
        (
            "FourStep",
            r"FourStep-v0: step returned 4 values; expected \(observation, reward, terminated, ",
        ),
        ("LookReset", r"LookReset-v0: reset returned one dict; expected \(observation, info\), as Gymnasium has it"),
    ],
)
def test_an_environment_of_the_old_interface_is_told_what_it_returned(name, says):
    with pytest.raises(SimulatorError, match=says):
        made(name, horizon=30)


def test_an_environment_that_ends_by_itself_is_over_then():
    assert check("Falls", success="reward>=-0.1") == list(CHECKS)
    with made("Falls", success="reward>=-0.1") as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        result = simulator.step_chunk(np.ones((30, 2), np.float32))
        assert result.done and not result.success and result.env_steps < 30 and simulator.terminated


@pytest.mark.parametrize(
    "name, why",
    [
        ("Dot", "not a MuJoCo environment"),
        ("HiddenPoint", "attribute 'hidden' holds a builtins.range_iterator"),
        ("SecretPoint", "put into the state after a reset, it shows something else at step 1"),
        ("Point", ""),
        ("TiringPoint", ""),
        ("NoisyPoint", ""),
    ],
)
def test_what_is_not_exact_says_why_and_is_held_by_seeds(name, why):
    with made(name) as simulator:
        assert why in simulator.exact and bool(why) == bool(simulator.exact)
        size = simulator.initial_states(1)[0].state.size
    with made(name, states="seed") as simulator:
        assert simulator.exact
        assert simulator.initial_states(1)[0].state.size < size or why


def test_physics_is_refused_where_it_is_not_exact():
    with pytest.raises(ConfigError, match=r"sim\.states=physics.*'hidden' holds"):
        made("HiddenPoint", states="physics")


def test_what_an_instance_keeps_in_hidden_places_is_found_by_the_check():
    with pytest.raises(SimulatorError, match="a used and a fresh instance"):
        check("HiddenPoint")
    assert check("HiddenPoint", rebuild=True) == list(CHECKS)


def test_a_leak_is_found_by_the_check_and_mended_by_building_anew():
    with pytest.raises(SimulatorError, match="a used and a fresh instance"):
        check("Leaky")
    assert check("Leaky", rebuild=True) == list(CHECKS)


def test_resets_that_are_not_alike_are_an_error_and_mended_by_building_anew():
    with made("Counting") as simulator, pytest.raises(SimulatorError, match=r"--sim\.rebuild=true"):
        for state in simulator.initial_states(3):
            simulator.reset(state)
    assert check("Counting", rebuild=True) == list(CHECKS)


def test_instances_share_one_model_and_one_renderer():
    with made("Point") as a, made("Point") as b:
        assert len(SHELF) == 1
        states = a.initial_states(2)
        a.reset(states[0]), b.reset(states[1])
        assert a.env is b.env
        assert len(next(iter(SHELF))._renderers) == 1
        assert not np.array_equal(a.state_vector(), b.state_vector())


def test_renderers_of_an_environment_are_few_and_the_least_recently_used_is_freed():
    made_for, freed = [], []

    class Pictures:
        def __init__(self, key):
            self.key = key
            made_for.append(key)

        def close(self):
            freed.append(self.key)

    with made("Point"):
        shared = next(iter(SHELF))
        keys = range(instances.RENDERERS)
        for key in [*keys, 0, "one more"]:
            shared.pictures(key, lambda key=key: Pictures(key))
        assert made_for == [*keys, "one more"] and freed == [1], "0 was used again after 1"
        assert len(shared._renderers) == instances.RENDERERS
        shared.close_renderers()
        assert len(freed) == instances.RENDERERS + 1


def test_a_state_puts_what_was_drawn_back_into_the_model():
    with made("StickyPoint") as a, made("StickyPoint") as b:
        first, second = a.initial_states(2)
        a.reset(first), b.reset(second)
        brakes = [simulator.env.model.dof_damping[0] for simulator in (a, b, a)]
        assert brakes[0] == brakes[2] != brakes[1]


def test_the_goal_that_is_shown_by_a_callback_is_in_the_picture_and_physics_is_left_alone():
    with made("Point", cameras=("above",), image_size=64) as simulator:
        for state in simulator.initial_states(3):
            simulator.reset(state)
            simulator.step_chunk(np.ones((2, 2), np.float32))
            before = simulator.state_vector()
            picture = simulator.observe().images["above"][0].astype(int)
            red = np.argwhere((picture[..., 0] > 90) & (picture[..., 1] < 60))
            assert len(red) > 3
            row, column = red.mean(axis=0)
            goal = simulator.observation[4:]
            assert abs(column - (32 + goal[0] * 31)) < 4 and abs(row - (32 - goal[1] * 31)) < 4
            assert np.array_equal(before, simulator.env._see())
            assert simulator.env.model.site("goal").pos[0] == 0


def test_states_of_splits_and_seeds_come_from_numbers_that_cannot_meet():
    with made("Dot") as simulator:
        seen = {
            int(state.state[0])
            for split in ("train", "test", "validation", "demo")
            for seed in (0, 1, 255)
            for state in simulator.initial_states(20, seed, split)
        }
        assert len(seen) == 4 * 3 * 20 and max(seen) < 2**32
        assert min(seen) >= 2**31  # the seeds 0, 1, 2, ... of what others recorded are none of them
        (last,) = simulator.initial_states(1, 0, "train", 2**20 + 3)
        assert last.id == simulator.initial_states(1, 0, "train", 3)[0].id
        assert simulator.initial_states(1, 2**63 - 1)[0].state[0] < 2**53


def test_the_suite_makes_any_environment_by_its_name_and_finds_its_options_again():
    suite = suites.get("gym")
    assert suite.available() is None and suite.tasks()[0].key == "gym/FetchReach-v4"
    assert suite.task(f"gym/{PACKAGE}:Dot-v0").horizon == 30
    options = suite.options(
        cameras=("eye=render",), image_size=(20, 30), proprio=("place",), success="success", repeat=2, horizon=12
    )
    with make_simulator(f"gym/{PACKAGE}:Dot-v0", **options.values()) as simulator:
        assert simulator.task.horizon == 12 and simulator.task.key == f"gym/{PACKAGE}:Dot-v0"
        again = suite.options_of(simulator.spec)
        assert again == options.replaced(horizon=0)
    assert suite.caveats(options) == ["each action is repeated 2 times, so that a step is 2 of the environment's"]
    with pytest.raises(PolicyError, match="says what it was made with"):
        suite.options_of(ToySimulator().spec)


def test_the_file_of_an_environment_of_a_users_own_belongs_to_a_run_and_gymnasiums_own_do_not():
    options = suites.get("gym").options()
    assert list(own_code(options, [f"gym/{PACKAGE}:Dot-v0"], object())) == [PACKAGE]
    assert own_code(options, ["gym/Pendulum-v1"], object()) == {}


def test_the_page_lists_every_setting_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "adding_a_simulator.md").read_text()
    table = page.partition("### Settings")[2].partition("| view |")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(set(suites.get("gym").options.model_fields) - {"suite"})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"arguments": "reach=1"}, r"sim\.arguments: expected a JSON object"),
        ({"arguments": '{"render_mode": "human"}'}, "render_mode cannot be given here"),
        ({"rebuild": True, "states": "physics"}, "contradict each other"),
        ({"proprio": ("a", "a")}, r"sim\.proprio: named twice: a"),
        ({"repeat": 0}, r"sim\.repeat: must be in 1\.\.1000"),
        ({"states": "goal"}, r"sim\.states: 'goal' is not one of"),
        ({"instruction": "Go\nthere."}, r"sim\.instruction: expected a line of text, got 'Go\\nthere\.'"),
        ({"instruction": "Go \udcff"}, r"sim\.instruction: expected a line of text"),
        ({"success": "won\udcff"}, r"sim\.success: expected a line of text"),
        ({"proprio": ("place", "\udcff")}, r"sim\.proprio: expected a line of text"),
    ],
)
def test_options_that_cannot_be_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        suites.get("gym").options(**given)


def test_keyword_arguments_are_the_same_however_they_are_written():
    options = suites.get("gym").options
    assert options(arguments='{"b":1,"a": 2.0}') == options(arguments=' { "a":2.0 , "b": 1}')
    assert options(arguments="{ }") == options()
    with made("Dot", arguments='{"reach":0.5}') as one, made("Dot", arguments='{ "reach": 0.5 }') as other:
        assert one.spec == other.spec and len(SHELF) == 1


def test_a_check_of_more_steps_than_an_episode_has_ends_with_it():
    drawn = []

    class Counted(GymSimulator):
        def initial_states(self, n, *args, **settings):
            drawn.append(n)
            return super().initial_states(n, *args, **settings)

    assert len(check_simulator(lambda: Counted(f"{PACKAGE}:Dot-v0"), steps=10**5)) == len(CHECKS)
    assert len(drawn) < 60


# ------------------------------------------------------------------------------------------------------ what is taken


def test_actions_are_stretched_to_the_bounds_of_the_environment():
    with made("Dot") as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        place = simulator.env.place.copy()
        simulator.env.place = np.zeros(2)
        simulator.step_chunk(np.array([[1, -1]], np.float32))
        assert np.allclose(simulator.env.place, [0.2, -0.1])
        assert np.allclose(simulator.from_environment([0.2, -0.1]), [1, -1])
        assert np.allclose(simulator.from_environment([0.0, 0.1]), [0, 0], atol=1e-6)
        assert place.shape == (2,)


def test_an_episode_of_repeated_actions_stays_within_the_environments_own_limit():
    name = f"gym/{PACKAGE}:Later-v0"
    options = suites.get("gym").options(repeat=4)
    with make_simulator(name, **options.values()) as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        simulator.env.goal[:] = 50
        result = simulator.step_chunk(np.zeros((30, 2), np.float32))
        assert result.done and result.env_steps == simulator.task.horizon == 7 and simulator.env.steps == 28
    assert horizons(options, [name]) == {name: 7}
    assert horizons(options.replaced(repeat=50), [name]) == {name: 1}
    assert horizons(options.replaced(horizon=20), [name]) == {name: 20}


def test_a_repeated_action_is_one_step_of_ours():
    with made("Dot", repeat=3, horizon=4) as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        simulator.env.place, simulator.env.goal = np.zeros(2), np.full(2, -1.0)
        result = simulator.step_chunk(np.array([[1, 1]], np.float32))
        assert result.env_steps == 1 and np.allclose(simulator.env.place, [0.6, 0.9])
    assert check("Dot", repeat=3) == list(CHECKS)


@pytest.mark.parametrize(
    "name, words, expected",
    [
        ("Dot", (), ["place", "goal"]),
        ("Dot", ("goal[1]", "place"), ["goal 1", "place"]),
        ("Point", (), ["observation"]),
        ("Point", ("observation[:4]",), ["observation :4"]),
        ("Pixels", (), ["agent_pos"]),
    ],
)
def test_proprioception_is_what_is_named(name, words, expected):
    with made(name, proprio=words) as simulator:
        look = simulator.reset(simulator.initial_states(1)[0])
        seen = environment.parts(simulator.observation)
        parts = []
        for word in expected:
            key, _, where = word.partition(" ")
            a, colon, b = where.partition(":")
            picked = slice(int(a or 0), int(b)) if colon else slice(int(a), int(a) + 1) if a else slice(None)
            parts.append(seen[key][picked])
        assert look.proprio[0].tolist() == np.concatenate(parts).astype(np.float32).tolist()
        assert look.proprio.shape == (1, simulator.spec.proprio_dim)
        assert list(simulator.spec.proprio) == [part.word for part in simulator._proprio]


def test_cameras_are_model_cameras_free_views_keys_and_renders():
    free = "near=0 -1.5 1.5 to 0 0 0 fovy 50"
    with made("Point", cameras=("above", free), image_size=(20, 32)) as simulator:
        look = simulator.reset(simulator.initial_states(1)[0])
        assert {name: image.shape for name, image in look.images.items()} == {
            "above": (1, 20, 32, 3),
            "near": (1, 20, 32, 3),
        }
        assert simulator.spec.cameras == {"above": (20, 32), "near": (20, 32)}
        assert simulator.render().shape == (160, 160, 3)
    with made("Pixels", cameras=("eye=pixels", "render"), image_size=48) as simulator:
        look = simulator.reset(simulator.initial_states(1)[0])
        assert np.array_equal(look.images["eye"][0], simulator.observation["pixels"])
        assert np.array_equal(look.images["eye"], look.images["render"])


def test_a_picture_in_another_size_holds_the_means_of_what_it_covers():
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    halved = pictures.resized(picture, (3, 3))
    assert np.array_equal(halved, np.rint(picture.reshape(3, 2, 3, 3, 3).mean(axis=(1, 3), dtype=np.float64)))
    assert np.array_equal(pictures.resized(picture, (12, 18)), picture.repeat(2, 0).repeat(2, 1))
    assert pictures.resized(picture, (4, 5)).shape == (4, 5, 3)


def test_what_changes_in_a_model_is_drawn_and_what_changes_back_too():
    with made("Point", cameras=("above",)) as simulator:
        first = simulator.reset(simulator.initial_states(1)[0]).images["above"]
        ball = simulator.env.model.geom(1).rgba
        ball[:3] = (0, 0, 1)
        blue = simulator.observe().images["above"]
        ball[:3] = 1
        assert np.array_equal(first, simulator.observe().images["above"]) and not np.array_equal(first, blue)


def test_boxes_stand_where_meshes_are():
    pytest.importorskip("gymnasium_robotics")
    looks = []
    for meshes in ("boxes", "mesh"):
        with GymSimulator("FetchReach-v4", meshes=meshes) as simulator:
            (look,) = simulator.reset(simulator.initial_states(1)[0]).images.values()
            looks.append(look[0].astype(int))
    white = [(look.min(axis=2) > 150).mean() for look in looks]
    assert 0.5 < white[0] / white[1] < 2 and not np.array_equal(*looks)


@pytest.mark.parametrize(
    "rule, step, expected",
    [
        ("", (0.0, False, {"is_success": 1.0}), True),
        ("", (0.0, False, {"success": np.array([False])}), False),
        ("done", (0.0, False, {"done": True, "success": False}), True),
        ("terminated", (0.0, True, {}), True),
        ("reward >= -0.5", (-0.4, False, {}), True),
        ("reward>=-0.5", (-0.6, True, {}), False),
        ("reward>=0", (0.0, False, {}), True),
        ("reward>0", (0.0, False, {}), False),
        ("reward > 0", (0.1, False, {}), True),
        ("", (0.0, False, {"success": np.int64(0)}), False),
    ],
)
def test_success_is_what_the_rule_says(rule, step, expected):
    assert success.Success("gym/x", rule)(*step) is expected


@pytest.mark.parametrize(
    "rule", ["reward>=nan", "reward>=inf", "reward > -inf", "reward<0.5", "reward==1", "reward=>1"]
)
def test_a_threshold_that_says_nothing_is_refused_before_anything_is_built(rule):
    with pytest.raises(ConfigError, match=r"sim\.success: .*; expected reward>=NUMBER or reward>NUMBER with a finite"):
        suites.get("gym").options(success=rule)
    with pytest.raises(ConfigError, match=r"sim\.success"):
        made("Dot", success=rule)


@pytest.mark.parametrize(
    "name, rule, kind, message",
    [
        (
            "NanReward",
            "reward>=-0.1",
            SimulatorError,
            "the reward is nan; expected a finite number, to judge success by",
        ),
        ("NanReward", "reward>-0.1", SimulatorError, "the reward is nan"),
        ("NanSuccess", "", SimulatorError, r"info\['success'\] is .*nan.*; expected true or false"),
        ("NanEnd", "", SimulatorError, "step returned terminated = nan; expected true or false"),
        ("Progress", "progress", ConfigError, r"info\['progress'\] is 0\.01; expected true or false \(1 or 0\)"),
        ("Progress", "", ConfigError, r"info\['success'\] is -1; expected true or false \(1 or 0\)"),
    ],
)
def test_what_is_neither_true_nor_false_is_no_success_and_no_failure(name, rule, kind, message):
    with pytest.raises(kind, match=message) as caught, made(name, success=rule) as simulator:
        (state,) = simulator.initial_states(1)
        simulator.reset(state)
        simulator.env.goal[:] = 50
        simulator.step_chunk(np.zeros((30, 2), np.float32))
    if kind is SimulatorError:
        assert f"gym/{PACKAGE}:{name}-v0, initial state {state.id}, step 3: " in str(caught.value)


def test_a_reward_that_nothing_is_judged_by_may_be_anything_and_is_compared_as_it_is():
    assert check("NanReward") == list(CHECKS)


@pytest.mark.parametrize("settings", [{}, {"states": "seed"}])
def test_a_simulation_that_becomes_unstable_is_an_error_and_the_next_episode_is_not(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log
    with made("Bursting", **settings) as simulator:
        first, second = simulator.initial_states(2, start=1)
        simulator.reset(first)
        simulator.step_chunk(np.zeros((6, 2), np.float32))
        with pytest.raises(SimulatorError, match=rf"{first.id}, step 12: the simulation has become unstable"):
            simulator.step_chunk(np.zeros((6, 2), np.float32))
        simulator.reset(second)
        simulator.step_chunk(np.zeros((6, 2), np.float32))


def test_what_is_shown_besides_may_be_nan_which_the_check_says_once():
    found = soundness(lambda: made("NanGoal", proprio=("place",)), states=2, seed=1)
    assert found.sound and [finding.name for finding in found.findings] == list(CHECKS)
    assert "4 of 4 episodes came to NaN or infinity in numbers that a policy is not shown" in in_words(found)
    hidden = soundness(lambda: made("NanGoal", proprio=("place",), privileged=("goal",)), states=2, seed=1)
    assert [(one.name, "privileged: expected finite" in one.what) for one in hidden.failed] == [
        (next(iter(CHECKS)), True)
    ]
    shown = soundness(lambda: made("NanGoal"), states=2, seed=1)
    assert all("the observation is not finite" in finding.what and finding.raised for finding in shown.failed)
    words = in_words(shown)
    assert words.count("found: ") == words.count("means: this cannot be checked") == 1
    assert "ms a step" not in words and shown.to_json()["seconds"]["step"] is None  # nothing was measured
    assert words.endswith(f"not sound: the simulator raises in {len(shown.failed)} of 11 checks") and shown.failed


def test_where_all_test_states_are_like_practised_ones_practice_is_not_sound():
    found = soundness(lambda: made("TwoStarts"), states=8)
    assert not found.failed and found.alike == 8 and not found.sound
    assert (
        in_words(found).rpartition("\n")[2].startswith("not sound: every test state looks like one that is practised")
    )


def test_practice_may_count_another_success_and_says_which_test_states_are_like_practised_ones(tmp_path, capsys):
    base = recipe("practice")
    config = replace(
        base,
        tasks=(f"{PACKAGE}:TwoStarts-v0",),
        iterations=1,
        sim=base.sim.replaced(image_size=16),
        sampling=replace(base.sampling, group_size=4, groups=1, max_attempts=2),
        eval=replace(base.eval, trials=5, every=0, videos=0),
    )
    with made("TwoStarts", image_size=16) as simulator:
        policy = make_policy(config, simulator.spec)
    policy.save_pretrained(tmp_path / "policy")
    other = replace(config, sim=config.sim.replaced(success="reward>-0.5"))
    result = train_rl(other, tmp_path / "policy", tmp_path / "run")
    assert sim_options_of(load_policy(result.policy)).success == "reward>-0.5"
    said = capsys.readouterr().err
    alike = "5 of the first 5 test states look like one of the first 16 that are practised on"
    assert alike in said and "the first 5 states of split test look like 2" in said
    notes = json.loads((result.folder / "config.json").read_text())["config"]["notes"]
    assert any(alike in note for note in notes) and any("success is a threshold" in note for note in notes)
    with pytest.raises(PolicyError, match=r"than it is given: repeat = 1, got 2; use the policy's own"):
        train_rl(replace(config, sim=config.sim.replaced(repeat=2)), tmp_path / "policy", tmp_path / "other")


@pytest.mark.parametrize("seed, works", [(255, True), (256, False)])
def test_a_generator_that_takes_small_seeds_takes_those_of_runs_below_256(seed, works):
    with made("OldSeeds") as simulator:
        if works:
            simulator.reset(simulator.initial_states(1, seed, "test", 2**20 - 1)[0])
            return
        with pytest.raises(SimulatorError, match=r"test seed 256 #0.*raised ValueError.*with --seed below 256"):
            simulator.initial_states(1, seed, "test")


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("FetchPickAndPlace-v4", "Fetch pick and place."),
        ("package:space/PushT-v0", "Push t."),
        ("HalfCheetah-v5", "Half cheetah."),
        ("AntMaze_UMaze-v5", "Ant maze u maze."),
    ],
)
def test_an_instruction_is_made_of_the_id(name, sentence):
    assert environment.instruction_of(name) == sentence


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "name, settings, kind, message",
    [
        (
            "Discrete",
            {},
            ConfigError,
            r"gym/gym_environments:Discrete-v0: its action space is Discrete\(4\).*bounded Box",
        ),
        ("Unbounded", {}, ConfigError, r"its action space is Box\(-inf, inf.*infinite"),
        ("Silent", {}, ConfigError, r"sim\.success.*is_success and success are not in.*distance.*--sim\.success=KEY"),
        ("Dot", {"success": "won"}, ConfigError, r"won is not in the info of a step \(its keys: success\)"),
        ("Dot", {"success": "reward>=much"}, ConfigError, r"'reward>=much'; expected reward>=NUMBER"),
        ("Silent", {"success": "reward>"}, ConfigError, "expected reward>=NUMBER"),
        ("NoRender", {}, ConfigError, r"sim\.cameras.*makes no pictures.*render modes are none"),
        ("Endless", {}, ConfigError, r"sim\.horizon.*no limit of steps.*--sim\.horizon=200"),
        ("Dot", {"proprio": ("plaice",)}, UnknownNameError, r"key of the observation.*'plaice': did you mean place"),
        ("Dot", {"proprio": ("place[2]",)}, ConfigError, r"place\[2\]: place has 2 numbers"),
        ("Pixels", {"proprio": ("pixels",)}, ConfigError, "not a vector of numbers"),
        ("Dot", {"cameras": ("front",)}, UnknownNameError, r"camera.*not a MuJoCo one.*'front'"),
        ("Point", {"cameras": ("abuve",)}, UnknownNameError, "did you mean above"),
        ("Point", {"cameras": ("0 0 1 to 0 0 0",)}, ConfigError, "has no name"),
        ("Point", {"cameras": ("a=0 0 1 to 0 0 1",)}, ConfigError, "looks at where it stands"),
        ("Point", {"cameras": ("a=above", "a=default")}, ConfigError, "named twice"),
        ("Dot", {"cameras": ()}, ConfigError, "at least one camera"),
        ("Dot", {"arguments": '{"reech": 1}'}, ConfigError, r"sim\.arguments.*reech"),
        ("Dotty", {}, UnknownNameError, "did you mean Dot-v0"),
    ],
)
def test_what_cannot_be_practised_in_is_refused_with_what_to_do(name, settings, kind, message):
    with pytest.raises(kind, match=message):
        made(name, **settings)


def test_the_views_that_a_suite_knows_of_a_task_are_among_those_that_are_suggested():
    needs("gymnasium_robotics")
    with pytest.raises(UnknownNameError, match="unknown camera 'frnt': did you mean front"):
        GymSimulator("FetchReach-v4", cameras=("frnt", "side"))
    with pytest.raises(UnknownNameError, match=r"such as |known: .*front.*left.*right.*side") as raised:
        GymSimulator("FetchReach-v4", cameras=("banana",))
    assert {"front", "side", "right", "left", "default"} <= set(raised.value.known)


def test_pictures_that_are_none_or_of_a_wrong_type_are_refused():
    for name, kind, message in (
        ("Blind", ConfigError, r"makes no pictures of its own \(its render\(\) gave None\)"),
        ("Bright", SimulatorError, r"a picture is float64 \[48, 48, 3\]; expected uint8"),
    ):
        with made(name) as simulator, pytest.raises(kind, match=message):
            simulator.reset(simulator.initial_states(1)[0])


def test_a_reset_that_does_not_repeat_itself_is_refused_at_once():
    with made("Restless") as simulator:
        (state,) = simulator.initial_states(1)
        with pytest.raises(SimulatorError, match=rf"Restless.*{state.id}.*does not repeat itself.*np_random"):
            simulator.reset(state)


def test_a_reset_that_shows_another_picture_is_refused_at_once_and_one_that_is_drawn_a_little_differently_is_not():
    with made("RestlessPixels", cameras=("observation",), proprio=()) as simulator:
        for state in simulator.initial_states(4):
            with pytest.raises(SimulatorError, match=r"RestlessPixels.*does not repeat itself.*np_random"):
                simulator.reset(state)
    picture = np.random.default_rng(0).integers(1, 255, (96, 96, 3)).astype(np.uint8)
    near = (picture + np.random.default_rng(1).integers(-1, 2, picture.shape)).astype(np.uint8)
    tolerances = instances.TOLERANCE, instances.TOLERANCE
    assert np.allclose(instances.summary(near), instances.summary(picture), *tolerances)
    assert not np.allclose(instances.summary(picture[::-1]), instances.summary(picture), *tolerances)
    cloud = np.random.default_rng(0).normal(size=(300, 3))
    assert not np.allclose(instances.summary(cloud[::-1]), instances.summary(cloud), *tolerances)


def test_a_package_that_is_missing_or_broken_is_named(tmp_path, monkeypatch):
    with pytest.raises(DependencyMissing, match="no package gym_unheard_of here: install it"):
        GymSimulator("gym_unheard_of:Dot-v0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_environments.py").write_text("1 / 0")
    with pytest.raises(DependencyMissing, match="broken_environments cannot be imported: ZeroDivisionError"):
        GymSimulator("broken_environments:Dot-v0")
    (tmp_path / "needy_environments.py").write_text("import unheard_of_either")
    with pytest.raises(DependencyMissing, match="needs unheard_of_either, which is not installed"):
        GymSimulator("needy_environments:Dot-v0")


def test_an_environment_in_a_file_of_the_current_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_environments.py").write_text(
        "import gymnasium\nfrom gym_environments import Dot\n"
        "gymnasium.register('Mine-v0', entry_point=Dot, max_episode_steps=7)\n"
    )
    assert task_of("my_environments:Mine-v0").horizon == 7


def test_fetch_without_its_package_says_what_to_install(monkeypatch):
    find = environment.importlib.import_module

    def without(name, *rest):
        if name == "gymnasium_robotics":
            raise ModuleNotFoundError(name=name)
        return find(name, *rest)

    monkeypatch.setattr(environment.importlib, "import_module", without)
    with pytest.raises(DependencyMissing, match=r'pip install "ript\[robotics\]"'):
        task_of("FetchReach-v99")


def test_what_an_environment_raises_has_an_address():
    with made("Breaks") as simulator:
        (state,) = simulator.initial_states(1, start=1)
        simulator.reset(state)
        with pytest.raises(
            SimulatorError, match=rf"{state.id}, step [1-9]\d*: the environment raised ZeroDivisionError: of the"
        ):
            simulator.step_chunk(np.ones((30, 2), np.float32))


def test_a_state_of_other_settings_does_not_fit():
    with made("Point", states="seed") as simulator:
        (state,) = simulator.initial_states(1)
    with made("Point") as simulator, pytest.raises(SimulatorError, match=r"does not fit.*other --sim\.states"):
        simulator.reset(state)


def test_a_simulator_that_cannot_be_made_leaves_nothing_behind():
    with pytest.raises(RiptError):
        made("Dot", proprio=("nothing",))
    SHELF.close_unused()
    assert len(SHELF) == 0


def test_views_are_read_as_they_are_written():
    known = {"front": "2 0 1 to 1 0 0"}
    assert cameras.named_views(["a=0 -1.5 2. to 0 0 0 fovy 30", "above", "front", "b=front"], known) == {
        "a": "0 -1.5 2. to 0 0 0 fovy 30",
        "above": "above",
        "front": "2 0 1 to 1 0 0",
        "b": "2 0 1 to 1 0 0",
    }
    assert gymnasium.registry  # the tests above registered what they use
