"""The contract of `Simulator`, checked on any simulator: the suites of this package and a user's own.

    passed = check_simulator(lambda: MySimulator("task"))

Every check raises `SimulatorError` at the first violation, naming the task, the initial state and the step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args

import numpy as np

from ript.core import arguments
from ript.core.errors import ConfigError, DependencyMissing, RiptError, SimulatorError, UnknownNameError
from ript.core.interfaces import Simulator
from ript.core.simulators import surviving
from ript.core.types import InitialState, Observation, SimulatorSpec, Split, Task
from ript.sims.trajectories import (
    Moment,
    Violation,
    compare,
    copied,
    difference,
    fail,
    moment,
    plans,
    random_actions,
    same,
    trajectory,
)


class StockEpisode(Protocol):
    """The environment that a simulator wraps, unmodified, after a reset to one initial state.

    Attributes:
        first: its observation vector after the reset.
    """

    first: np.ndarray

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        """(observation vector, reward, success)."""
        ...


@dataclass(frozen=True)
class _Subject:
    """What is checked, and how much of it."""

    factory: Callable[[], Simulator]
    stock: Callable[[InitialState], StockEpisode] | None
    seed: int
    episodes: int
    steps: int

    def states(self, simulator: Simulator) -> list[InitialState]:
        return simulator.initial_states(self.episodes, seed=self.seed)


def check_simulator(
    factory: Callable[[], Simulator],
    *,
    stock: Callable[[InitialState], StockEpisode] | None = None,
    seed: int = 0,
    episodes: int = 2,
    steps: int = 40,
    checks: Collection[str] | None = None,
) -> list[str]:
    """Hold a simulator to its contract.

    Args:
        factory: makes a new instance.
        stock: gives the wrapped environment for an initial state, to compare step by step with the simulator's
            `state_vector()`, `stock_reward(action)` and success. By default the simulator's `stock_episode`, if any.
        seed: of initial states and random actions.
        episodes: initial states to check with.
        steps: steps of each trajectory.
        checks: names of `CHECKS` to run, or one; all by default.

    Returns:
        Names of the checks that passed.

    Raises:
        SimulatorError: the first violation, with its address.
        UnknownNameError: a check that does not exist.
    """
    arguments.function("factory", factory, "which makes a new simulator")
    seed, episodes = arguments.seed("seed", seed), arguments.whole("episodes", episodes, 1)
    steps, checks = arguments.whole("steps", steps, 1), None if checks is None else arguments.words("checks", checks)
    for name in checks or ():
        if name not in CHECKS:
            raise UnknownNameError("check", name, CHECKS)
    require_simulator(factory)
    subject = _Subject(factory, stock, seed, episodes, steps)
    chosen = {name: check for name, check in CHECKS.items() if checks is None or name in checks}
    return [name for name, check in chosen.items() if check(subject) is not False]


_MEMBERS = (
    "task",
    "spec",
    "seconds",
    "reset",
    "step_chunk",
    "observe",
    "render",
    "initial_states",
    "close",
    "__enter__",
    "__exit__",
)


def require_simulator(factory: Callable[[], Simulator]) -> None:
    """Raise `ConfigError` unless what is made is a simulator, as far as its members tell; `SimulatorError` where making
    it raises."""
    try:
        with surviving():
            made: Any = factory()
    except RiptError:
        raise
    except Exception as error:  # whatever a maker of anyone's raises
        raise SimulatorError(f"no simulator can be made: {type(error).__name__}: {error}") from error
    lacks = [member for member in _MEMBERS if not hasattr(made, member)]
    try:
        if lacks:
            raise ConfigError(f"factory made {made!r}, which is no simulator: it has no {', '.join(lacks)}")
        for name, kind in (("task", Task), ("spec", SimulatorSpec)):
            if not isinstance(found := getattr(made, name), kind):
                raise ConfigError(f"factory made a simulator whose {name} is {found!r}; expected a {kind.__name__}")
    finally:
        if hasattr(made, "close"):
            made.close()


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        name: of `CHECKS`.
        passed: None where it does not apply.
        what: the first violation, with its address; "" without one.
        raised: it is none of the check's: the simulator raised, so that the check could not be made.
    """

    name: str
    passed: bool | None
    what: str = ""
    raised: bool = False


def findings(factory: Callable[[], Simulator], *, seed: int = 0, episodes: int = 2, steps: int = 40) -> list[Finding]:
    """Every check of `check_simulator`, whether or not those before it passed.

    Raises:
        ConfigError, DependencyMissing: no simulator can be made, or it cannot do what it is for.
    """
    subject, found = _Subject(factory, None, seed, episodes, steps), []
    for name, check in CHECKS.items():
        try:
            with surviving():
                found.append(Finding(name=name, passed=None if check(subject) is False else True))
        except (ConfigError, DependencyMissing):
            raise
        except Exception as error:  # a simulator of anyone's, which may raise anything
            what = str(error) if isinstance(error, SimulatorError) else f"{type(error).__name__}: {error}"
            found.append(Finding(name=name, passed=False, what=what, raised=not isinstance(error, Violation)))
    return found


def observations_fit_the_spec(subject: _Subject) -> None:
    """Shapes, types and cameras of observations are those of `spec`, and numbers are finite, at every step."""
    with subject.factory() as simulator:
        state = subject.states(simulator)[0]
        _fits(simulator, state, 0, simulator.reset(state))
        for step, action in enumerate(random_actions(simulator, subject.steps, subject.seed), start=1):
            done = simulator.step_chunk(action[None]).done
            _fits(simulator, state, step, simulator.observe())
            if done:
                break


def _fits(simulator: Simulator, state: InitialState, step: int, look: Observation) -> None:
    task, spec = simulator.task, simulator.spec
    if set(look.images) != set(spec.cameras):
        fail(task, state, step, f"cameras: expected {sorted(spec.cameras)}, got {sorted(look.images)}")
    for name, image in look.images.items():
        shape = (1, *spec.cameras[name], 3)
        if image.shape != shape or image.dtype != np.uint8 or not image.flags.c_contiguous:
            got = f"{image.dtype} {image.shape}"
            fail(task, state, step, f"image {name!r}: expected contiguous uint8 {shape}, got {got}")
    expected = (1, spec.proprio_dim)
    if look.proprio.shape != expected or look.proprio.dtype != np.float32 or not np.isfinite(look.proprio).all():
        got = f"{look.proprio.dtype} {look.proprio.tolist()}"
        fail(task, state, step, f"proprio: expected finite float32 {expected}, got {got}")
    if look.instruction != (task.instruction,):
        fail(task, state, step, f"instruction: expected {(task.instruction,)}, got {look.instruction}")
    privileged = getattr(simulator, "privileged", None)
    if privileged and not np.isfinite(hidden := np.asarray(privileged())).all():
        fail(task, state, step, f"privileged: expected finite numbers, got {hidden.tolist()}")


def initial_states_are_sequences(subject: _Subject) -> None:
    """State i depends on neither n, start nor instance; ids are unique; splits and seeds share no state, but that a
    benchmark's states are the same whatever the seed."""
    with subject.factory() as simulator, subject.factory() as other:
        task, n = simulator.task, subject.episodes + 2
        states = simulator.initial_states(n, seed=subject.seed)
        for state in states:
            if state.task.key != task.key or state.state.dtype != np.float64:
                fail(task, state, None, f"initial state of {state.task.key}, {state.state.dtype}; expected float64")
        ids = [state.id for state in states]
        if len(set(ids)) != n:
            fail(task, None, None, f"initial states are not unique: {ids}")
        if [s.id for s in simulator.initial_states(n - 1, seed=subject.seed)] != ids[:-1]:
            fail(task, None, None, "the first initial states depend on how many are asked for")
        if [s.id for s in other.initial_states(n - 1, seed=subject.seed, start=1)] != ids[1:]:
            fail(task, None, None, "initial states depend on start or on the instance")
        seen: dict[str, tuple[str, str]] = {}
        for (split, what), others in {
            (split, f"the split {split}, seed {seed}"): simulator.initial_states(n, seed=seed, split=split)
            for split in get_args(Split)
            for seed in (subject.seed, subject.seed + 1)
        }.items():
            for state in others:
                whose, first = seen.setdefault(state.id, (split, what))
                if first != what and (whose != split or state.origin != "benchmark"):
                    fail(task, state, None, f"{first} and {what} share this initial state")


def first_observation_is_of_the_initial_state(subject: _Subject) -> None:
    """What `reset` returns is what a look right after it shows, in a used instance too."""
    with subject.factory() as simulator:
        for state in [*subject.states(simulator), *subject.states(simulator)]:
            first = copied(simulator.reset(state))
            different = difference(first, simulator.observe())
            if different:
                fail(simulator.task, state, 0, f"reset returned another observation than the state's: {different}")
            simulator.step_chunk(random_actions(simulator, subject.steps, subject.seed))


def used_equals_fresh(subject: _Subject) -> None:
    """Same state and actions give the same trajectory in an instance that did other things before and in a new one."""
    with subject.factory() as used:
        for state in subject.states(used):
            for kind, actions in plans(used, state, subject.steps, subject.seed):
                with subject.factory() as fresh:
                    expected = trajectory(fresh, state, actions)
                got = trajectory(used, state, actions)
                compare(got, expected, used.task, state, f"a used and a fresh instance, {kind},")


def interleaved_instances_do_not_leak(subject: _Subject) -> None:
    """Two instances that take turns, while a third draws initial states, go the ways that each goes alone."""
    with subject.factory() as a, subject.factory() as b, subject.factory() as drawing:
        states = a.initial_states(2, seed=subject.seed)
        actions = random_actions(a, subject.steps, subject.seed), -random_actions(a, subject.steps, subject.seed)
        alone = [trajectory(a, state, plan) for state, plan in zip(states, actions, strict=True)]
        together: list[list[Moment]] = [
            [moment(simulator, 0, None, simulator.reset(state))]
            for simulator, state in zip((a, b), states, strict=True)
        ]
        for step in range(len(actions[0])):
            if all(moments[-1].result is not None and moments[-1].result.done for moments in together):
                break
            drawing.initial_states(1, seed=subject.seed, start=step)
            for simulator, plan, moments in zip((a, b), actions, together, strict=True):
                if moments[-1].result is None or not moments[-1].result.done:
                    result = simulator.step_chunk(plan[step : step + 1])
                    moments.append(moment(simulator, step + 1, result, simulator.observe()))
        for state, one, other in zip(states, together, alone, strict=True):
            compare(one, other, a.task, state, "an instance beside another and alone")


def chunks_equal_single_steps(subject: _Subject) -> None:
    """A chunk does what its actions do one by one, and leaves the given array alone."""
    with subject.factory() as simulator:
        task = simulator.task
        for state in subject.states(simulator):
            for kind, actions in plans(simulator, state, subject.steps, subject.seed):
                single = {m.step: m for m in trajectory(simulator, state, actions)}
                given = actions.copy()
                for chunk in trajectory(simulator, state, given, chunk=7):
                    if chunk.step not in single:
                        fail(task, state, chunk.step, f"a chunk of {kind} went on after the end of the episode")
                    step = single[chunk.step]
                    compare(
                        [replace(chunk, result=None)],
                        [replace(step, result=None)],
                        task,
                        state,
                        f"chunks and steps, {kind},",
                    )
                    if chunk.result and step.result and chunk.result.success != step.result.success:
                        fail(task, state, chunk.step, f"success of a chunk and of its steps differ, {kind}")
                if not np.array_equal(given, actions):
                    fail(task, state, None, "step_chunk changed the actions it was given")


def looking_changes_nothing(subject: _Subject) -> None:
    """Pictures do not disturb the trajectory, and a later look does not overwrite an earlier one."""
    with subject.factory() as simulator:
        task, state = simulator.task, subject.states(simulator)[0]
        actions = random_actions(simulator, subject.steps, subject.seed)
        often = trajectory(simulator, state, actions)[-1]
        simulator.reset(state)
        for step in range(often.step):
            result = simulator.step_chunk(actions[step : step + 1])
            simulator.render()
        early = simulator.observe()
        rarely = moment(simulator, often.step, result, early)
        compare([rarely], [often], task, state, "rare and frequent looks")
        simulator.reset(subject.states(simulator)[-1])
        if difference(early, rarely.observation):
            fail(task, state, often.step, "a later look overwrote the arrays of an earlier observation")


def nothing_is_drawn_without_a_look(subject: _Subject) -> None:
    """`step_chunk` spends no time on rendering; `observe` does."""
    with subject.factory() as simulator:
        state = subject.states(simulator)[0]
        simulator.reset(state)
        before = dict(simulator.seconds)
        simulator.step_chunk(random_actions(simulator, subject.steps, subject.seed))
        after = dict(simulator.seconds)
        if after["render"] != before["render"]:
            fail(simulator.task, state, None, "step_chunk rendered")
        if not after["simulate"] > before["simulate"]:
            fail(simulator.task, state, None, 'step_chunk did not add to seconds["simulate"]')
        simulator.observe()
        if not simulator.seconds["render"] > after["render"]:
            fail(simulator.task, state, None, 'observe did not add to seconds["render"]')


def episodes_end_at_the_horizon(subject: _Subject) -> None:
    """An episode without success ends exactly at the horizon, even within a chunk; or when the environment itself ends
    it, which a simulator says with an attribute `terminated`."""
    with subject.factory() as simulator:
        state = subject.states(simulator)[0]
        simulator.reset(state)
        horizon, taken = simulator.task.horizon, 0
        still = np.zeros((max(2, horizon // 3 + 1), simulator.spec.action_dim), np.float32)
        while True:
            result = simulator.step_chunk(still)
            taken += result.env_steps
            if result.success or taken > horizon or result.done:
                break
        early = getattr(simulator, "terminated", False) is True
        if taken > horizon or (not result.success and not early and taken != horizon):
            fail(simulator.task, state, taken, f"expected the end at horizon {horizon}, after {taken} steps: {result}")
        if result.success and not result.done:
            fail(simulator.task, state, taken, "success without done")


@contextmanager
def _refused(task: Task, state: InitialState | None, what: str) -> Iterator[None]:
    """Expects a `SimulatorError` that names the task, and the initial state if there is one."""
    try:
        yield
    except SimulatorError as error:
        missing = [part for part in (task.name, state.id if state else "") if part not in str(error)]
        if missing:
            fail(task, state, None, f"{what}: the error does not name {', '.join(missing)}: {error}")
    except Exception as error:
        fail(task, state, None, f"{what}: expected SimulatorError, got {type(error).__name__}: {error}")
    else:
        fail(task, state, None, f"{what} was not refused")


def errors_have_an_address(subject: _Subject) -> None:
    """Bad states and actions, and steps outside an episode, raise `SimulatorError` naming task and initial state."""
    with subject.factory() as simulator:
        task, state, dim = simulator.task, subject.states(simulator)[0], simulator.spec.action_dim
        still = np.zeros((1, dim), np.float32)
        with _refused(task, None, "a step before reset"):
            simulator.step_chunk(still)
        with _refused(task, replace(state, task=replace(task, name="another")), "a state of another task"):
            simulator.reset(replace(state, task=replace(task, name="another")))
        short = replace(state, state=state.state[:-1])
        with _refused(task, short, "a state of a wrong size"):
            simulator.reset(short)
        simulator.reset(state)
        for what, actions in {
            "actions of a wrong size": np.zeros((1, dim + 1), np.float32),
            "actions without a time axis": np.zeros(dim, np.float32),
            "no actions": np.zeros((0, dim), np.float32),
            "actions that are not a number": np.full((1, dim), np.nan, np.float32),
            "infinite actions": np.full((1, dim), np.inf, np.float32),
        }.items():
            with _refused(task, state, what):
                simulator.step_chunk(actions)
        for _ in range(task.horizon):
            if simulator.step_chunk(still).done:
                break
        with _refused(task, state, "a step after the end"):
            simulator.step_chunk(still)


def equals_stock(subject: _Subject) -> bool | None:
    """Observation vector, reward and success are those of the wrapped environment, step by step."""
    with subject.factory() as simulator:
        subject_: Any = simulator
        stock = subject.stock or getattr(subject_, "stock_episode", None)
        if stock is None:
            return False
        for state in subject.states(simulator):
            for kind, actions in list(plans(simulator, state, subject.steps, subject.seed)):
                episode = stock(state)
                simulator.reset(state)
                _same_vector(simulator.task, state, 0, subject_.state_vector(), episode.first)
                for step, action in enumerate(actions, start=1):
                    vector, reward, success = episode.step(action)
                    result = simulator.step_chunk(action[None])
                    _same_vector(simulator.task, state, step, subject_.state_vector(), vector)
                    if result.success != success:
                        what = f"{kind}: success is {result.success}, in the stock environment {success}"
                        fail(simulator.task, state, step, what)
                    if hasattr(simulator, "stock_reward"):
                        ours = simulator.stock_reward(action)
                        if ours != reward and not (np.isnan(ours) and np.isnan(reward)):
                            what = f"{kind}: reward is {ours}, in the stock environment {reward}"
                            fail(simulator.task, state, step, what)
                    if result.done:
                        break
    return None


def _same_vector(task: Task, state: InitialState, step: int, ours: np.ndarray, stock: np.ndarray) -> None:
    if not same(ours, stock):
        where: list[Any] = [ours.shape, stock.shape]
        if ours.shape == stock.shape:
            where = np.flatnonzero((ours != stock) & ~(np.isnan(ours) & np.isnan(stock))).tolist()
        fail(task, state, step, f"the observation vector differs from the stock environment's at {where}")


CHECKS: dict[str, Callable[[_Subject], bool | None]] = {
    check.__name__.replace("_", " "): check
    for check in (
        observations_fit_the_spec,
        initial_states_are_sequences,
        first_observation_is_of_the_initial_state,
        used_equals_fresh,
        interleaved_instances_do_not_leak,
        chunks_equal_single_steps,
        looking_changes_nothing,
        nothing_is_drawn_without_a_look,
        episodes_end_at_the_horizon,
        errors_have_an_address,
        equals_stock,
    )
}
"""Check name -> check. One that returns False does not apply."""
