"""What a policy's skills allow: a scripted expert whose actions pass through the skill autoencoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ript.core.errors import ConfigError
from ript.core.interfaces import Demonstrator, SimulatorFactory
from ript.core.metrics import Mean
from ript.core.simulators import opened
from ript.core.types import InitialState
from ript.policies.quest.policy import QuestPolicy


def replay_autoencoded(
    policy: QuestPolicy, factory: SimulatorFactory, task_key: str, states: int = 10, seed: int = 0
) -> Mean:
    """Success of the scripted expert when each of its chunks passes through the skill autoencoder first.

    What the policy could do with these skills if it saw everything and chose the best ones: a bound on perception-free
    control. The expert looks again after each chunk; a second simulator, brought to the same place by the same actions,
    is where it plans.

    Returns:
        successes over `states` training states, or as many as there are.

    Raises:
        ConfigError: the task has no scripted expert.
    """
    execute = policy.config.execute
    with opened(factory(task_key)) as sim, opened(factory(task_key)) as ahead:
        if not isinstance(ahead, Demonstrator):
            raise ConfigError(f"{task_key} has no scripted expert, whose actions would pass through the autoencoder")
        results = []
        for state in {state.id: state for state in sim.initial_states(states, seed, "train")}.values():
            sim.reset(state)
            executed: list[np.ndarray] = []
            result = None
            while result is None or not (result.done or sum(map(len, executed)) >= sim.task.horizon):
                chunk = _plan(ahead, state, executed, policy.config.chunk)
                with torch.no_grad():
                    tokens = policy.autoencoder.encode(torch.from_numpy(chunk)[None])
                    decoded = policy.autoencoder.decode(tokens)[0, :execute].clamp(-1, 1).numpy()
                result = sim.step_chunk(decoded)
                executed.append(decoded[: result.env_steps])
            results.append(result.success)
    return Mean(sum(results), len(results))


def _plan(sim: Demonstrator, state: InitialState, executed: Sequence[np.ndarray], chunk: int) -> np.ndarray:
    """The expert's next `chunk` clean actions `[H, A]` after `executed`; the last repeated once it has succeeded."""
    sim.reset(state)
    for actions in executed:
        sim.step_chunk(actions)
    planned: list[np.ndarray] = []
    while len(planned) < chunk:
        planned.append(sim.expert_action())
        if sim.step_chunk(planned[-1][None]).done:
            break
    return np.stack(planned + [planned[-1]] * (chunk - len(planned)))
