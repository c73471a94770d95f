"""What Gymnasium environments return that is not what was expected: taken for what it means, or named."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gym_environments import Dot
from packages import needs

from ript.core.errors import SimulatorError
from ript.sims.gym.simulator import GymSimulator

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

    def __init__(self, pays: str = "one", after: int = 0, info: bool = True, leaves: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.pays, self.after, self.informs, self.leaves = pays, after, info, leaves

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        seen, reward, terminated, truncated, info = super().step(action)
        if self.steps <= self.after:
            return seen, reward, terminated, truncated, info
        if self.leaves:
            raise SystemExit(3)
        return seen, REWARDS[self.pays], terminated, truncated, info if self.informs else None

    def render(self) -> Any:
        return np.zeros((0, 24, 3), np.uint8) if self.pays == "whole" else super().render()


gymnasium.register("Paying-v0", entry_point=Paying, max_episode_steps=30)


def made(arguments: str, **settings: Any) -> GymSimulator:
    return GymSimulator("Paying-v0", arguments=arguments, cameras=("render",), **settings)


def test_a_reward_in_an_array_of_one_is_a_number():
    with made('{"pays": "one"}', success="reward>=0.9") as simulator:
        state = simulator.initial_states(1)[0]
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
        ('"leaves": true', r"the environment ends the program \(SystemExit: 3\)"),
    ],
)
def test_what_a_step_returns_that_is_nothing_of_the_kind_is_named_with_its_address(arguments, says):
    with pytest.raises(SimulatorError, match=rf"^gym/Paying-v0.*: {says}"):
        made(f"{{{arguments}}}")
    with made(f'{{{arguments}, "after": 4}}') as simulator:
        simulator.reset(simulator.initial_states(1)[0])
        with pytest.raises(SimulatorError, match=rf"^gym/Paying-v0, initial state \w+, step \d+: {says}"):
            simulator.step_chunk(np.repeat(STAY, 30, 0))


def test_a_picture_without_pixels_is_refused():
    with (
        made('{"pays": "whole"}') as simulator,
        pytest.raises(SimulatorError, match=r"a picture is uint8 \[0, 24, 3\]"),
    ):
        simulator.reset(simulator.initial_states(1)[0])
