"""Initial states of a run, drawn by its pool."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_runs import initial_states, lively_policy, toy_config

from ript.build import make_env_pool, simulator_factory, task_keys
from ript.config.sections import RolloutConfig
from ript.core.errors import ConfigError, DataError, SimulatorError
from ript.core.interfaces import EnvPool
from ript.core.options import SimOptions
from ript.core.types import Errand, InitialState
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.initial_states import demo_initial_states
from ript.evaluation import evaluate
from ript.rl import train_rl
from ript.run.states import AHEAD, InitialStates
from ript.sims.metaworld.options import MetaworldOptions
from ript.sims.toy.simulator import ToySimulator

TOY = toy_config().sim


def states_of(*tasks: str, seed: int = 0) -> AbstractContextManager[InitialStates]:
    return initial_states(TOY, task_keys(TOY, tasks), seed)


def take(source: InitialStates, n: int, position: int = 0, fixed: int = 0) -> list[str]:
    stream = source.training(position, fixed)
    return [next(stream).id for _ in range(n)]


def test_training_states_take_tasks_in_turn_and_go_on_from_any_position() -> None:
    with states_of("reach", "reach-left") as source:
        states = [next(stream) for stream in [source.training(0)] for _ in range(6)]
        assert [state.task.name for state in states] == ["reach", "reach-left"] * 3
        assert len({state.id for state in states}) == 6
        assert take(source, 4, position=2) == [state.id for state in states[2:]]


def test_a_fixed_set_of_states_is_gone_through_again_and_again() -> None:
    with states_of("reach", "reach-left") as source:
        ids = take(source, 12, fixed=2)
        assert ids[:4] == ids[4:8] == ids[8:] and len(set(ids)) == 4
        assert ids[:4] == take(source, 4)


def test_demonstrated_states_are_practised_on_in_order_and_again(tmp_path: Path) -> None:
    keys = task_keys(TOY, ("reach", "reach-left"))
    file = str(tmp_path / "d.hdf5")
    collect_demos(simulator_factory(TOY), keys, 3, file)
    shown = {key: [s.id for s in demo_initial_states(open_demos([file]), [key])] for key in keys}
    in_turn = [shown[key][i] for i in range(3) for key in keys]
    with initial_states(TOY, keys, 0, [file]) as source:
        assert take(source, 12) == in_turn * 2
        assert take(source, 8, fixed=2) == in_turn[:4] * 2
        with pytest.raises(ConfigError, match="4 states wanted; toy/reach has 3 demonstrated"):
            take(source, 1, fixed=4)
    with (
        pytest.raises(DataError, match="no demonstration of toy/reach-centre"),
        initial_states(TOY, ("toy/reach-centre",), 0, [file]),
    ):
        pass


def test_states_depend_on_the_seed_and_measured_ones_on_theirs_alone() -> None:
    with states_of("reach") as one, states_of("reach", seed=1) as other:
        assert not set(take(one, 20)) & set(take(other, 20))
        measured = [s.id for states in one.measured("test", 5).values() for s in states]
        assert measured == [s.id for states in other.measured("test", 5).values() for s in states]
        assert measured[:3] == [s.id for states in one.measured("test", 3).values() for s in states]
        assert not set(measured) & {s.id for states in one.measured("test", 5, seed=1).values() for s in states}


def test_practice_demonstrations_validation_and_test_have_no_state_in_common_at_any_seed(tmp_path: Path) -> None:
    collect_demos(simulator_factory(TOY), ["toy/reach"], 5, tmp_path / "d.hdf5")
    found = {"demonstrated": {state.id for state in demo_initial_states(open_demos([tmp_path / "d.hdf5"]))}}
    with states_of("reach") as source:
        found["practised"] = set(take(source, 300))
        for split in ("validation", "test"):
            states = [source.states("toy/reach", 200, split, 0, seed) for seed in range(3)]
            found[split] = {state.id for several in states for state in several}
    assert {name: len(ids) for name, ids in found.items()} == {
        "demonstrated": 5,
        "practised": 300,
        "validation": 600,
        "test": 600,
    }
    assert len(set().union(*found.values())) == 1505


def test_without_a_task_there_is_nothing_to_practise_on() -> None:
    with states_of() as source, pytest.raises(ConfigError, match="no task to practise on"):
        next(source.training(0))


def test_states_with_noise_are_moved_the_same_way_whenever_they_come_up() -> None:
    sim = MetaworldOptions(image_size=16)
    with initial_states(sim, ("metaworld/drawer-open-v3",), 0) as source:
        plain = list(itertools.islice(source.training(0, 2), 4))
        moved = list(itertools.islice(source.training(0, 2, 0.02), 4))
        assert [s.id for s in moved[:2]] == [s.id for s in moved[2:]] and len({s.id for s in moved}) == 2
        assert not {s.id for s in plain} & {s.id for s in moved}
        further = next(source.training(0, 2, 0.05))
        near, far = (abs(s.state[1] - plain[0].state[1]) for s in (moved[0], further))
        assert near > 0 and 0 < far < 0.3


def test_a_simulator_without_an_object_cannot_be_given_noise() -> None:
    with states_of("reach") as source, pytest.raises(ConfigError, match="no object that could be moved"):
        next(source.training(0, noise=0.1))


# ---------------------------------------------------------------------- where they are drawn


@pytest.mark.parametrize(
    ("sim", "tasks", "noise"),
    [(TOY, ("reach", "reach-left"), 0.0), (MetaworldOptions(image_size=16), ("drawer-open", "push"), 0.02)],
)
def test_states_are_to_the_bit_those_that_a_simulator_of_our_own_draws(
    sim: SimOptions, tasks: tuple[str, ...], noise: float
) -> None:
    keys = task_keys(sim, tasks)
    simulators = {key: simulator_factory(sim)(key) for key in keys}
    drawn = [simulators[keys[i % 2]].initial_states(1, 7, "train", i // 2)[0] for i in range(10)]
    expected = {"train": drawn, "moved": drawn}
    if noise:
        generators = [np.random.default_rng([7, simulators[keys[i % 2]].task.index, i // 2]) for i in range(10)]
        expected["moved"] = [
            simulators[state.task.key].perturbed_state(state, noise, generator)  # type: ignore[attr-defined]
            for state, generator in zip(drawn, generators, strict=True)
        ]
    for split in ("test", "validation"):
        expected[split] = [s for key in keys for s in simulators[key].initial_states(40, 3, split)]  # type: ignore[arg-type]
    with make_env_pool(sim, RolloutConfig(workers=2, slots=2)) as pool:
        states = InitialStates(pool, keys, 7)
        found = {
            "train": list(itertools.islice(states.training(0), 10)),
            "moved": list(itertools.islice(states.training(0, 0, noise), 10)),
            "test": [s for several in states.measured("test", 40, 3).values() for s in several],
            "validation": [s for key in keys for s in states.states(key, 40, "validation", 0, 3)],
        }
        assert [states.task(key) for key in keys] == [simulators[key].task for key in keys]
        assert states.spec == simulators[keys[0]].spec
    for name, several in expected.items():
        assert [(s.task, s.label, s.origin) for s in found[name]] == [(s.task, s.label, s.origin) for s in several]
        assert all(np.array_equal(a.state, b.state) for a, b in zip(found[name], several, strict=True)), name
        assert not any(state.state.flags.writeable for state in found[name])


def test_states_to_be_measured_on_are_moved_alike_whoever_asks_and_not_as_those_to_practise_on() -> None:
    sim, seeds = MetaworldOptions(image_size=16), []
    key = task_keys(sim, ("push",))[0]
    for trials in (20, 3):
        with make_env_pool(sim, RolloutConfig(workers=0)) as pool:
            states = InitialStates(pool, (key,), 7)
            (still,) = states.measured("test", 3, 7).values()
            (moved,) = states.measured("test", trials, 7, 0.02).values()
            assert len(moved) == trials and not {state.id for state in still} & {state.id for state in moved}
            seeds.append([state.id for state in moved[:3]])
    assert seeds[0] == seeds[1]
    with simulator_factory(sim)(key) as simulator:
        as_practised = np.random.default_rng([7, simulator.task.index, 0])
        assert simulator.perturbed_state(still[0], 0.02, as_practised).id != moved[0].id  # type: ignore[attr-defined]
    with states_of("reach") as source, pytest.raises(ConfigError, match="no object that could be moved"):
        source.measured("test", 3, noise=0.1)


class Listening:
    """A pool in this process that remembers what it was asked for."""

    def __init__(self, pool: EnvPool):
        self._pool = pool
        self.asked: list[list[Errand]] = []

    def ask(self, errands: Sequence[Errand]) -> list[Any]:
        self.asked.append(list(errands))
        return self._pool.ask(errands)


def test_states_drawn_ahead_are_not_drawn_again_when_the_next_iteration_goes_on_before_their_end() -> None:
    with make_env_pool(TOY, RolloutConfig(workers=0)) as pool:
        listening = Listening(pool)
        states = InitialStates(listening, ("toy/reach",), 0)  # type: ignore[arg-type]
        first = [state.id for state in itertools.islice(states.training(0), 20)]
        assert len(listening.asked) == 1
        again = [state.id for state in itertools.islice(states.training(12), AHEAD - 12)]
        assert len(listening.asked) == 1
        assert again[:8] == first[12:]
        list(itertools.islice(states.training(12), AHEAD - 11))
        assert len(listening.asked) == 2
        assert len(states._practised) == 2 * AHEAD - 12


def test_a_state_that_cannot_be_made_is_told_when_its_turn_comes_and_not_when_it_is_drawn_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def moved(self: ToySimulator, state: InitialState, std: float, generator: np.random.Generator) -> InitialState:
        if state.label.endswith("#3"):
            raise SimulatorError("no draw was accepted")
        return state

    monkeypatch.setattr(ToySimulator, "perturbed_state", moved, raising=False)
    with states_of("reach") as source:
        stream = source.training(0, noise=0.1)
        assert [next(stream).label[-2:] for _ in range(3)] == ["#0", "#1", "#2"]
        with pytest.raises(SimulatorError, match="no draw was accepted"):
            next(stream)


def test_a_run_and_an_evaluation_open_no_simulator_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(
        iterations=1,
        tasks=("reach-centre", "reach-left"),
        policy={"entropy": 1.0, "rl_trains": "prior+adapter"},
        rollout={"workers": 1},
        sampling={"groups": 1, "max_attempts": 4},
    )
    policy = lively_policy(config)

    def refused(self: ToySimulator, *args: object, **settings: object) -> None:
        raise AssertionError("a simulator in the process that trains")

    monkeypatch.setattr(ToySimulator, "__init__", refused)
    result = train_rl(config, policy, tmp_path / "run")
    assert result.iterations == 1
    train_rl(config, None, tmp_path / "fresh")
    found = evaluate(result.policy, ["reach-left"], trials=3, rollout=config.rollout)
    assert found.total.trials == 3
