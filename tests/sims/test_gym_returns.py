"""What Gymnasium environments return that is not what was expected: taken for what it means, or named."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gym_environments import Dot
from gymnasium import spaces
from packages import needs

from ript.core.errors import ConfigError, SimulatorError
from ript.sims.check import CHECKS, check_simulator
from ript.sims.gym.simulator import GymSimulator
from ript.sims.soundness import in_words, soundness

pytestmark = needs("mujoco")
STAY = np.zeros((1, 2), np.float32)
REWARDS = {
    "one": np.array([1.0]),
    "whole": 3,
    "two": np.array([1.0, 0.5]),
    "none": None,
    "dict": {"reach": 1.0, "cost": 0.2},
}


class Paying(Dot):
    """Returns a reward, an info and a picture of any kind, or leaves, after some steps."""

    steps = 0

    def __init__(self, pays: str = "one", after: int = 0, info: bool = True, leaves: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.pays, self.after, self.informs, self.leaves = pays, after, info, leaves

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        seen, reward, terminated, truncated, info = super().step(action)
        if self.steps <= self.after:
            return seen, reward, terminated, truncated, info
        if self.leaves:
            raise {"exit": SystemExit(3), "close": GeneratorExit()}[self.leaves]
        return seen, REWARDS[self.pays], terminated, truncated, info if self.informs else None

    def render(self) -> Any:
        return np.zeros((0, 24, 3), np.uint8) if self.pays == "whole" else super().render()


class Dim(Dot):
    """Shows one grey whatever happens, and takes its actions in another form."""

    def __init__(self, space: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        whole = spaces.Box(-1, 1, (2,))
        largest = np.finfo(np.float32).max
        forms = {"dict": spaces.Dict({"a": whole}), "largest": spaces.Box(-largest, largest, (2,))}
        self.action_space = forms.get(space, whole)

    def render(self) -> Any:
        return np.full((8, 8, 3), 99, np.uint8)


class Ends(Dot):
    """Is over after two steps, and takes no more."""

    steps = 0

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 0
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        assert self.steps <= 2, "stepped after its end"
        return *super().step(action)[:2], self.steps == 2, False, {"success": False}


class Lever(Dot):
    """One action alone, which is no array of them."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.action_space = spaces.Box(-2, 2, ())

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action), action
        return super().step(np.full(2, action))


gymnasium.register("Paying-v0", entry_point=Paying, max_episode_steps=30)
for kind in (Dim, Ends, Lever):
    gymnasium.register(f"{kind.__name__}-v0", entry_point=kind, max_episode_steps=30)


def made(arguments: str, **settings: Any) -> GymSimulator:
    return GymSimulator("Paying-v0", arguments=arguments, cameras=("render",), **settings)


def test_a_reward_in_an_array_of_one_is_a_number():
    with made('{"pays": "one"}', success="reward>=0.9") as simulator:
        state = simulator.initial_states(1, start=1)[0]
        simulator.reset(state)
        assert simulator.step_chunk(STAY).success and simulator.stock_reward(STAY[0]) == 1
        assert simulator.stock_episode(state).step(STAY[0])[1:] == (1, True)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ('"pays": "two"', r"the reward that step returned is float64 \[2\]; expected a number"),
        ('"pays": "none"', "the reward that step returned is None; expected a number"),
        ('"pays": "dict"', r"the reward that step returned is \{'reach': 1.0, 'cost': 0.2\}; expected a number"),
        ('"info": false', "the info that step returned is None; expected a dict"),
        ('"leaves": "exit"', "the environment raised SystemExit: 3"),
        ('"leaves": "close"', "the environment raised GeneratorExit"),
    ],
)
def test_what_a_step_returns_that_is_nothing_of_the_kind_is_named_with_its_address(arguments, says):
    with pytest.raises(SimulatorError, match=rf"^gym/Paying-v0.*: {says}"):
        made(f"{{{arguments}}}")
    with made(f'{{{arguments}, "after": 4}}') as simulator:
        simulator.reset(simulator.initial_states(1, start=1)[0])
        with pytest.raises(SimulatorError, match=rf"^gym/Paying-v0, initial state \w+, step \d+: {says}"):
            simulator.step_chunk(np.repeat(STAY, 30, 0))


def test_a_picture_without_pixels_is_refused():
    with (
        made('{"pays": "whole"}') as simulator,
        pytest.raises(SimulatorError, match=r"a picture is uint8 \[0, 24, 3\]"),
    ):
        simulator.reset(simulator.initial_states(1, start=1)[0])


def test_the_check_says_what_a_policy_sees_and_which_pictures_tell_it_nothing():
    found = soundness(lambda: GymSimulator("Dim-v0", image_size=(16, 24)), states=3)
    assert found.plain == ("default",) and found.sound
    words = in_words(found)
    assert "a policy sees pictures: default 16 x 24; and numbers: place (2), goal (2)" in words
    assert "default: the pictures of all 3 states are equal, and tell a policy nothing" in words
    assert "pictures of all" not in in_words(soundness(lambda: GymSimulator("Ends-v0"), states=3))


def test_a_repeated_action_ends_with_the_episode():
    with GymSimulator("Ends-v0", repeat=4) as simulator:
        simulator.reset(simulator.initial_states(1, start=1)[0])
        assert simulator.step_chunk(STAY).done and simulator.terminated


def test_an_action_of_one_number_needs_no_axis():
    assert check_simulator(lambda: GymSimulator("Lever-v0"), steps=10) == list(CHECKS)


@pytest.mark.parametrize(
    "space, says",
    [("dict", "Make one Box of several in a wrapper"), ("largest", r"Box\(-3\.4\S+.*, which is infinite")],
)
def test_spaces_of_actions_that_do_not_fit_are_told_what_would(space, says):
    with pytest.raises(ConfigError, match=says):
        GymSimulator("Dim-v0", arguments=f'{{"space": "{space}"}}')
