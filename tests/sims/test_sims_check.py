"""`check_simulator` must find each violation of the contract: here are simulators that break it in one way each."""

import numpy as np
import pytest

from ript.core.errors import SimulatorError, UnknownNameError
from ript.core.types import InitialState, Observation
from ript.sims.check import CHECKS, check_simulator
from ript.sims.toy.simulator import ToySimulator


class ReturnsTheOldScene(ToySimulator):
    """Looks before it sets the state."""

    def reset(self, initial_state):
        before = self._draw(self._size) if self._state is not None else None
        observation = super().reset(initial_state)
        if before is None:
            return observation
        return Observation(
            images={"top": before[None]}, proprio=observation.proprio, instruction=observation.instruction
        )


class RemembersTheLastEpisode(ToySimulator):
    """A controller that starts where the last episode left it."""

    drift = 0.0

    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        self._dot = self._dot + self.drift
        self.drift += 1e-9
        return result


class SharesItsPosition(ToySimulator):
    """Instances share what each needs for itself."""

    shared = np.zeros(2)

    @property
    def _dot(self):
        return SharesItsPosition.shared

    @_dot.setter
    def _dot(self, value):
        SharesItsPosition.shared = value


class DriftsBelowSinglePrecision(ToySimulator):
    """Its observations are equal to the last bit, its state vector is not."""

    drift = 0.0

    def step_chunk(self, actions):
        self.drift += 1e-15
        return super().step_chunk(actions)

    def state_vector(self):
        return self._dot + self.drift


class ForgetsSuccessWithinAChunk(ToySimulator):
    """Looks for success only after the last action of a chunk, as if nothing could happen in between."""

    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        if result.success and len(actions) > 1:
            return type(result)(success=False, env_steps=result.env_steps, done=True)
        return result


class SinglePrecisionStates(ToySimulator):
    def reset(self, initial_state):
        observation = super().reset(initial_state)
        self._dot = self._dot.astype(np.float32).astype(np.float64) + np.random.default_rng().normal(0, 1e-6, 2)
        return observation


class StatesDependOnHowMany(ToySimulator):
    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(n, seed + n, split, start)


class ValidationIsTest(ToySimulator):
    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(n, seed, "test" if split == "validation" else split, start)


class NextSeedsTrainIsTest(ToySimulator):
    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(n, seed + 1 if split == "test" else seed, "train", start)


class AllSplitsAreTrain(ToySimulator):
    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(n, seed, "train", start)


class OneStateForAll(ToySimulator):
    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(1, seed, split) * n


class DrawsAtEveryStep(ToySimulator):
    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        self.observe()
        return result


class ChunkActsOnce(ToySimulator):
    """Executes the first action of a chunk for all of it."""

    def step_chunk(self, actions):
        actions = np.asarray(actions)
        return super().step_chunk(np.repeat(actions[:1], len(actions), axis=0) if actions.ndim == 2 else actions)


class ChangesTheActions(ToySimulator):
    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        actions *= 0.5
        return result


class LookingMoves(ToySimulator):
    def render(self):
        self._dot = self._dot + 1e-3
        return super().render()


class OneBufferForAllPictures(ToySimulator):
    buffer = np.empty((1, 16, 16, 3), np.uint8)

    def observe(self):
        look = super().observe()
        self.buffer[:] = look.images["top"]
        return Observation(images={"top": self.buffer}, proprio=look.proprio, instruction=look.instruction)


class WrongImageSize(ToySimulator):
    def observe(self):
        look = super().observe()
        return Observation(
            images={"top": look.images["top"][:, :-1]}, proprio=look.proprio, instruction=look.instruction
        )


class DoublePrecisionProprio(ToySimulator):
    def observe(self):
        look = super().observe()
        return Observation(images=look.images, proprio=look.proprio.astype(np.float64), instruction=look.instruction)


class NeverEnds(ToySimulator):
    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        self._done = False
        self._steps = min(self._steps, self.task.horizon - 1)
        return type(result)(success=result.success, env_steps=result.env_steps, done=result.success)


class ErrorsWithoutAddress(ToySimulator):
    def step_chunk(self, actions):
        try:
            return super().step_chunk(actions)
        except SimulatorError:
            raise SimulatorError("something went wrong") from None


class LetsNumpyComplain(ToySimulator):
    def step_chunk(self, actions):
        if np.asarray(actions).shape[-1:] != (2,):
            raise ValueError("operands could not be broadcast together")
        return super().step_chunk(actions)


class StockToy:
    """A stand-in for an environment that a simulator wraps: the same dot, but with its own reward and step size."""

    def __init__(self, state: InitialState, step: float):
        self.dot, self.goal, self.size = state.state[:2].copy(), state.state[2:].copy(), step
        self.first = np.concatenate([self.dot, self.goal])

    def step(self, action):
        self.dot = np.clip(self.dot + np.clip(action, -1, 1).astype(np.float64) * self.size, -1, 1)
        distance = float(np.hypot(*(self.dot - self.goal)))
        return np.concatenate([self.dot, self.goal]), -distance, distance <= 0.3


class WithStock(ToySimulator):
    stock_step, reward_error = 0.15, 0.0

    def state_vector(self):
        return np.concatenate([self._dot, self._goal])

    def stock_reward(self, action):
        return -float(np.hypot(*(self._dot - self._goal))) + self.reward_error

    def stock_episode(self, state):
        return StockToy(state, self.stock_step)


class StepsDifferFromStock(WithStock):
    stock_step = 0.1500001


class RewardDiffersFromStock(WithStock):
    reward_error = 1e-12


class SucceedsBeforeStock(WithStock):
    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        self._done = True
        return type(result)(success=True, env_steps=result.env_steps, done=True)


BROKEN = [
    (ReturnsTheOldScene, "first observation is of the initial state"),
    (RemembersTheLastEpisode, "used equals fresh"),
    (SharesItsPosition, "interleaved instances do not leak"),
    (DriftsBelowSinglePrecision, "used equals fresh"),
    (ForgetsSuccessWithinAChunk, "chunks equal single steps"),
    (SinglePrecisionStates, "used equals fresh"),
    (StatesDependOnHowMany, "initial states are sequences"),
    (AllSplitsAreTrain, "initial states are sequences"),
    (ValidationIsTest, "initial states are sequences"),
    (NextSeedsTrainIsTest, "initial states are sequences"),
    (OneStateForAll, "initial states are sequences"),
    (DrawsAtEveryStep, "nothing is drawn without a look"),
    (ChunkActsOnce, "chunks equal single steps"),
    (ChangesTheActions, "chunks equal single steps"),
    (LookingMoves, "looking changes nothing"),
    (OneBufferForAllPictures, "looking changes nothing"),
    (WrongImageSize, "observations fit the spec"),
    (DoublePrecisionProprio, "observations fit the spec"),
    (NeverEnds, "episodes end at the horizon"),
    (ErrorsWithoutAddress, "errors have an address"),
    (LetsNumpyComplain, "errors have an address"),
    (StepsDifferFromStock, "equals stock"),
    (RewardDiffersFromStock, "equals stock"),
    (SucceedsBeforeStock, "equals stock"),
]


@pytest.mark.parametrize(("broken", "check"), BROKEN, ids=[b.__name__ for b, _ in BROKEN])
def test_the_check_finds_what_is_broken_and_says_where(broken, check):
    with pytest.raises(SimulatorError, match="toy/reach"):
        check_simulator(broken, checks=[check])


def test_every_check_has_a_simulator_that_fails_it():
    assert {check for _, check in BROKEN} == set(CHECKS)


def test_a_simulator_that_keeps_the_contract_passes_every_check_that_applies():
    assert check_simulator(ToySimulator) == [name for name in CHECKS if name != "equals stock"]
    assert check_simulator(WithStock) == list(CHECKS)


def test_an_unknown_check_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="equals stock"):
        check_simulator(ToySimulator, checks=["equal stock"])
