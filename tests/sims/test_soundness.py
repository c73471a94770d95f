"""Whether practice is sound, in words: on simulators that keep the contract, break it, or leave nothing to learn."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from ript.core.errors import ConfigError, SimulatorError
from ript.core.types import ChunkResult
from ript.sims.check import CHECKS
from ript.sims.soundness import MEANS, in_words, soundness
from ript.sims.toy.simulator import ToySimulator


class Solved(ToySimulator):
    """Is solved after a step, whatever is done."""

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        result = super().step_chunk(actions if np.ndim(actions) != 2 else actions[:1])
        self._done = True
        return ChunkResult(success=True, env_steps=result.env_steps, done=True)


class SometimesSolved(ToySimulator):
    """Is solved by doing nothing where the dot starts on the left."""

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        if self._state is None or self._state.state[0] >= -0.5:
            return super().step_chunk(actions)
        result = super().step_chunk(actions if np.ndim(actions) != 2 else actions[:1])
        self._done = True
        return ChunkResult(success=True, env_steps=result.env_steps, done=True)


class Leaky(ToySimulator):
    """A reset leaves something behind."""

    drift = 0.0

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        result = super().step_chunk(actions)
        self.drift += 0.01
        self._dot = self._dot + self.drift
        return result


class Alike(ToySimulator):
    """Test states are those that are practised on, told apart by what nobody sees."""

    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(n, seed, "train" if split == "test" else split, start)


class NoNumber(ToySimulator):
    def reset(self, initial_state):
        raise SimulatorError("toy/reach: no reset is possible")


class RaisesSometimes(ToySimulator):
    """Raises in some states, beyond those that the checks look at."""

    def reset(self, initial_state):
        if initial_state.label.endswith(("#7", "#8")):
            raise KeyError("a state")
        return super().reset(initial_state)


class Quits(ToySimulator):
    """Ends the program in some states."""

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        if self._state is not None and self._state.state[0] < 0:
            sys.exit(3)
        return super().step_chunk(actions)


class SpecOfThree(ToySimulator):
    def __init__(self):
        super().__init__()
        self.spec = 3


class FewTested(Alike):
    """Its test split has three states."""

    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(n if split != "test" else max(0, min(n, 3 - start)), seed, split, start)


class EmptySplit(ToySimulator):
    def initial_states(self, n, seed=0, split="train", start=0):
        return super().initial_states(n, seed, split, start) if split != "test" else []


class NoStates(ToySimulator):
    def initial_states(self, *args, **settings):
        raise KeyError("no states")


class Raises(ToySimulator):
    """Raises what is no error of ours."""

    def render(self):
        raise KeyError("picture")


def test_a_simulator_that_keeps_the_contract_is_sound_and_every_check_is_listed():
    found = soundness(ToySimulator, states=5)
    assert found.sound and not found.failed and not found.still
    assert [finding.name for finding in found.findings] == list(CHECKS)
    words = in_words(found)
    assert words.endswith("sound: 10 of 10 checks that apply hold")
    assert "0 of 5 states are solved by doing nothing" in words and "ms a step" in words


def test_the_first_instance_costs_what_it_takes_to_load_what_all_share():
    made = []

    def factory() -> ToySimulator:
        if not made:
            time.sleep(0.2)
        made.append(1)
        return ToySimulator()

    assert soundness(factory, states=2).build >= 0.2


def test_what_fails_is_said_with_what_it_means():
    found = soundness(Leaky, states=3)
    words = in_words(found)
    assert not found.sound and "used equals fresh" in [finding.name for finding in found.failed]
    assert MEANS["used equals fresh"] in words and "toy/reach, initial state" in words
    assert words.rpartition("\n")[2].startswith("not sound: practice here would learn from what is not so (used equals")


def test_states_that_are_solved_by_doing_nothing_are_counted_and_named():
    found = soundness(SometimesSolved, states=12)
    with ToySimulator() as toy:
        left = [state.id for state in toy.initial_states(12) if state.state[0] < -0.5]
    assert 0 < len(left) < 12
    assert [id_ for id_, _, _ in found.still] == left and found.sound
    assert f"{len(left)} of 12 states are solved by doing nothing" in in_words(found)
    assert left[0] in in_words(found)


def test_it_is_said_when_no_episode_succeeded():
    never, some = soundness(lambda: ToySimulator("reach-corner"), states=2), soundness(SometimesSolved, states=12)
    assert never.sound and "no episode succeeded, so success itself was not tried" in in_words(never)
    assert some.succeeded and "no episode succeeded" not in in_words(some)
    assert [found.to_json()["success_was_seen"] for found in (never, some)] == [False, True]


def test_where_there_is_nothing_to_learn_practice_is_not_sound():
    found = soundness(Solved, states=3)
    assert len(found.still) == 3 and not found.sound
    assert in_words(found).endswith(
        "every state that was tried is solved by doing nothing, so there is nothing to learn"
    )


def test_test_states_that_look_like_practised_ones_are_counted():
    found = soundness(Alike, states=4)
    assert found.alike == 4 and "4 of 4 test states look like one that is practised on" in in_words(found)
    few = soundness(FewTested, states=6)
    assert (few.alike, few.tested, few.sound) == (3, 3, False)
    assert "3 of 3 test states look like one that is practised on" in in_words(few)


def test_an_error_of_any_kind_is_a_finding_but_not_where_nothing_is_possible():
    found = soundness(Raises, states=2)
    assert [(f.name, f.what) for f in found.failed] == [("looking changes nothing", "KeyError: 'picture'")]
    with pytest.raises(SimulatorError, match="no reset is possible"):
        soundness(NoNumber, states=2)
    with pytest.raises(SimulatorError, match="toy/reach: KeyError: 'no states'"):
        soundness(NoStates, states=2)
    with pytest.raises(SimulatorError, match=r"initial_states\(2, split='test'\) gave a list of 0; expected init"):
        soundness(EmptySplit, states=2)
    with pytest.raises(SimulatorError, match="no simulator can be made: ZeroDivisionError: division by zero"):
        soundness(lambda: 1 / 0, states=2)
    some = soundness(RaisesSometimes, states=10)
    assert not some.sound and not some.failed and some.raised == "KeyError: 'a state'"
    assert "but not all were tried, for it raised KeyError: 'a state'" in in_words(some)
    assert in_words(some).rpartition("\n")[2].startswith("not known to be sound: 10 of 10 checks that apply hold, but ")
    with pytest.raises(ConfigError, match="factory made a simulator whose spec is 3; expected a SimulatorSpec"):
        soundness(SpecOfThree, states=2)


def test_a_simulator_that_ends_the_program_raises_as_any_other():
    found = soundness(Quits, states=4)
    assert not found.sound and "it ends the program (SystemExit: 3)" in found.raised
    (said,) = {finding.what for finding in found.failed}
    assert said.startswith("it ends the program (SystemExit: 3)") and all(f.raised for f in found.failed)
    with pytest.raises(SimulatorError, match=r"it ends the program \(SystemExit: 4\)"):
        soundness(lambda: sys.exit(4), states=2)


def test_every_check_says_what_its_failure_means():
    assert set(MEANS) == set(CHECKS)
