"""One try of a scripted expert: act with noise, and if that succeeded, replay it with the eyes open. Or the recorded
actions of a person, replayed likewise.

The try itself renders nothing, so a failed one costs physics alone. A successful one is replayed from the same initial
state to take its pictures; the replay has to succeed at the same step, so whatever is stored has been verified once.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ript.core.errors import ConfigError, NotFiniteError, SimulatorError
from ript.core.interfaces import Demonstrator, Recorded, Simulator
from ript.core.types import InitialState, Observation
from ript.demos.records import Demo

DemoSource = Literal["expert", "human"]
"""Who demonstrates: a `Demonstrator`'s scripted expert, or people, whose `Recorded` actions are replayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSettings:
    """How experts act and how often they look.

    Attributes:
        source: who demonstrates.
        seed: of initial states and noise.
        noise: standard deviation of the Gaussian noise added to each executed action dimension, in action units.
        every: look before every `every`-th step, step 0 included.
    """

    source: DemoSource = "expert"
    seed: int = 0
    noise: float = 0.2
    every: int = 2


def noise_generator(seed: int, task_key: str, number: int) -> np.random.Generator:
    """The noise of try `number`: a function of its arguments alone, whichever process runs it."""
    return np.random.default_rng([seed, zlib.crc32(task_key.encode()), number])


def require_source(sim: Simulator, source: DemoSource) -> None:
    """Raise `ConfigError` unless a simulator has what demonstrations are to come from."""
    if source == "human" and not isinstance(sim, Recorded):
        raise ConfigError(f"the simulator of {sim.task.key} brings no demonstrations of people to be replayed")
    if source == "expert" and not isinstance(sim, Demonstrator):
        raise ConfigError(f"the simulator of {sim.task.key} has no scripted expert; demonstrations cannot be collected")


def make_demo(sim: Simulator, number: int, settings: ExpertSettings) -> Demo | None:
    """Try number `number` of this task: from state `number` of the split "demo"; None when the expert failed.

    The result depends on the task, `number` and `settings` alone. `Demo.tries` is 1; the caller counts. Of people's
    demonstrations, recording `number`.

    Raises:
        ConfigError: there is nobody who demonstrates, or there are not so many recordings.
        SimulatorError: the replay did not succeed at the step at which the try did, or a recording not at all.
        NotFiniteError: the expert's action, or what the simulator shows, is not finite.
    """
    require_source(sim, settings.source)
    if settings.source == "human":
        assert isinstance(sim, Recorded)
        return _replayed(sim, number, settings)
    assert isinstance(sim, Demonstrator)
    (state,) = sim.initial_states(1, settings.seed, "demo", start=number)
    attempt = _act(sim, state, noise_generator(settings.seed, sim.task.key, number), settings)
    if attempt is None:
        return None
    demo = _watch(sim, state, attempt, settings.every)
    if demo is None or len(demo) != len(attempt.executed):
        replayed = "not at all" if demo is None else f"after {len(demo)}"
        raise SimulatorError(
            f"{sim.task.key}, initial state {state.id}: the same actions succeeded after {len(attempt.executed)} steps "
            f"and, replayed, {replayed}; the simulator breaks its contract (see sims/check.py)"
        )
    return demo


def _replayed(sim: Recorded, number: int, settings: ExpertSettings) -> Demo:
    """Recording `number` until it succeeds."""
    found = sim.recordings()
    if number >= len(found):
        raise ConfigError(f"{sim.task.key} has {len(found)} recorded demonstrations: ask for no more, or leave it out")
    state, actions = found[number].initial_state, np.asarray(found[number].actions, np.float32)
    demo = _watch(sim, state, _Attempt(actions, actions), settings.every)
    if demo is None:
        raise SimulatorError(
            f"{sim.task.key}, {state.label or state.id}: its {len(actions)} recorded actions do not solve the task: "
            f"they are of another version of the simulator, or the horizon is too short ({sim.task.horizon})"
        )
    return demo


class _Attempt(NamedTuple):
    clean: np.ndarray  # [T, A]
    executed: np.ndarray  # [T, A]


def _act(
    sim: Demonstrator, state: InitialState, generator: np.random.Generator, settings: ExpertSettings
) -> _Attempt | None:
    """Follow the expert, with noise, until success; None if the horizon comes first."""
    sim.reset(state)
    clean: list[np.ndarray] = []
    executed: list[np.ndarray] = []
    while True:
        action = np.asarray(sim.expert_action(), np.float32)
        if not np.isfinite(action).all():
            raise NotFiniteError(
                f"the expert of {sim.task.key} answered {action} at step {len(clean)} from initial state {state.id}; "
                "expected finite numbers in [-1, 1]"
            )
        noisy = action + settings.noise * generator.standard_normal(len(action))
        clean.append(np.clip(action, -1, 1))
        executed.append(np.clip(noisy, -1, 1).astype(np.float32))
        result = sim.step_chunk(executed[-1][None])
        if result.success:
            return _Attempt(np.stack(clean), np.stack(executed))
        if result.done or len(clean) >= sim.task.horizon:
            return None


def _watch(sim: Simulator, state: InitialState, attempt: _Attempt, every: int) -> Demo | None:
    """Replay an attempt until it succeeds, looking before steps 0, every, 2 every, ...; None if it does not."""
    private: Callable[[], np.ndarray] = getattr(sim, "privileged", lambda: np.zeros(0, np.float32))
    looks: list[Observation] = []
    privileged: list[np.ndarray] = []
    for step, action in enumerate(attempt.executed):
        if step % every == 0:
            looks.append(sim.reset(state) if step == 0 else sim.observe())
            privileged.append(np.array(private(), np.float32))
        result = sim.step_chunk(action[None])
        if result.success or result.done:
            break
    if not result.success:
        return None
    clean, executed = attempt.clean[: step + 1], attempt.executed[: step + 1]
    seen, hidden = Observation.concatenate(looks), np.stack(privileged)
    for what, rows in (("proprio", seen.proprio), ("privileged", hidden)):
        if not np.isfinite(rows).all():
            step = every * int(np.argwhere(~np.isfinite(rows))[0, 0])
            raise NotFiniteError(
                f"{sim.task.key}, initial state {state.id}: {what} holds NaN or infinity at step {step}; "
                "expected finite numbers"
            )
    return Demo(
        initial_state=state,
        actions=clean,
        executed_actions=executed,
        frame_steps=np.arange(0, len(executed), every, dtype=np.int64),
        images=dict(seen.images),
        proprio=seen.proprio,
        privileged=hidden if hidden.shape[1] else None,
        tries=1,
    )
