"""Demonstrations of Gymnasium environments that somebody has: their actions, replayed from the seeds of their resets.

A file in the layout of robomimic (`demos.formats.robomimic`). What is read of it:

    data                  attrs: env_name, the environment's id or PACKAGE:ID; or robomimic's env_args, which has it
    data/demo_i           attrs: seed, that of the `reset(seed=...)` that it began with
        actions           [T, A], in the environment's own units, the last or an earlier one brings success
"""

from __future__ import annotations

import numpy as np

from ript.core.documents import json_value
from ript.core.errors import ConfigError, DataError
from ript.core.types import ForeignDemo, InitialState, Observation, Recording, SimulatorSpec
from ript.sims.gym.options import GymOptions
from ript.sims.gym.simulator import GymSimulator
from ript.sims.gym.tasks import NAME


def is_known(demo: ForeignDemo) -> bool:
    """Whether a file says what `convert` reads."""
    return "seed" in demo.attributes


def convert(demo: ForeignDemo, options: GymOptions, rendered: bool) -> tuple[Recording, SimulatorSpec]:
    """A recording with looks, up to success, and what it was seen through.

    Args:
        demo: of such a file.
        options: of the simulator that replays it.
        rendered: has to be: what is seen is what the simulator shows.

    Raises:
        ConfigError: pictures of the file are asked for.
        DataError: it does not say its environment or seed, has other actions, or they do not solve the task here.
    """
    where = f"{demo.path}: key 'data/{demo.name}"
    if not rendered:
        raise ConfigError(
            "what Gymnasium environments show is drawn when actions are replayed: give --pictures=rendered"
        )
    with GymSimulator(_name(demo), **options.arguments_of_simulators()) as simulator:
        scale = simulator.actions
        if demo.actions.ndim != 2 or demo.actions.shape[1] != scale.dim:
            raise DataError(f"{where}/actions': expected [T, {scale.dim}], got {list(demo.actions.shape)}")
        state = simulator.state_of_seed(_seed(demo, where))
        actions = np.stack([scale.from_environment(action) for action in demo.actions])
        looks = _replayed(simulator, state, actions, where)
        images = {name: np.concatenate([look.images[name] for look in looks]) for name in looks[0].images}
        proprio = np.concatenate([look.proprio for look in looks])
        seen = Observation(images=images, proprio=proprio, instruction=(simulator.task.instruction,) * len(looks))
        return Recording(initial_state=state, actions=actions[: len(looks)], looks=seen), simulator.spec


def _replayed(simulator: GymSimulator, state: InitialState, actions: np.ndarray, where: str) -> list[Observation]:
    """What was seen before each action, up to that which brought success."""
    looks = [simulator.reset(state)]
    for number, action in enumerate(actions):
        result = simulator.step_chunk(action[None])
        if result.success:
            return looks
        if result.done or number == len(actions) - 1:
            break
        looks.append(simulator.observe())
    raise DataError(
        f"{where}': its {len(actions)} actions, replayed after reset(seed={int(state.state[0])}), do not solve "
        f"{simulator.task.key} (over after {number + 1}): they are of another seed or version of the environment, or "
        "success is another thing (--sim.success), or they take longer than episodes here (--sim.horizon)"
    )


def _name(demo: ForeignDemo) -> str:
    """The environment's id."""
    name, arguments = demo.attributes.get("env_name"), demo.attributes.get("env_args")
    if not name and isinstance(arguments, str):
        try:
            name = json_value(arguments)["env_name"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{demo.path}: attribute env_args of 'data': no JSON with env_name ({error})") from error
    if not isinstance(name, str) or not name:
        raise DataError(f"{demo.path}: attribute env_name of 'data' is missing: the environment's id, or PACKAGE:ID")
    return name.removeprefix(f"{NAME}/")


def _seed(demo: ForeignDemo, where: str) -> int:
    found = np.asarray(demo.attributes.get("seed"))
    if found.size != 1 or found.dtype.kind not in "iu" or not 0 <= int(found) < 2**53:
        raise DataError(f"{where}': attribute seed is {demo.attributes.get('seed')!r}; expected that of its reset")
    return int(found)
