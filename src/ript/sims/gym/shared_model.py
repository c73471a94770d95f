"""MuJoCo environments with one model for all instances of a process, and exact initial states.

Building an environment takes half a second and tens of megabytes, most of it meshes. So one is built for each process;
an instance is an `MjData` and the environment's attributes, which change places with another's when it has its turn.
An initial state holds all that the environment's future depends on, as numbers:

    [seed, physics, what resets change in the model, what they change in attributes, the first observation]

Nobody promises that this is all of an environment's state. So it is tried when the environment is built: instances put
into such states, taking turns, must go the ways that the environment itself goes after `reset(seed=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ript.core.errors import RiptError
from ript.sims.gym.attributes import Attributes
from ript.sims.gym.environment import stepped
from ript.sims.gym.fields import Fields
from ript.sims.gym.numbers import NotExact, count, numbers, rebuilt, same, structure

PROBES = (0, 1, 2)
"""Seeds of the resets from which it is learned what a reset changes."""
RESETS = range(100, 112)
"""Seeds of more resets, so that what few of them change is known as well."""
TRIED = (3, 4)
"""Seeds of the states that are tried."""
STEPS = 8


@dataclass(eq=False)
class Own:
    """What an instance has of its own: its simulation, its attributes, and what it changed in the model, by name."""

    data: Any
    attributes: list[dict[str, Any]] = field(default_factory=list)
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    unwatched: bool = False
    """Its large arrays have not been looked at since it had its turn."""


class SharedEnvironment:
    """One built MuJoCo environment, and what instances need to share it.

    Args:
        key: of the task, for errors.
        env: newly built, and not reset yet.
        actions: n, seed -> actions `[n, ...]` of the environment's action space, to try it with.

    Attributes:
        env: the environment.
        model: its `MjModel`, with what `active` changed in it.
        fields, built: of the model, and what was in them when it was built.
        active: the instance that has its turn, or None.
        size: numbers in an initial state.

    Raises:
        NotExact: its state cannot be held exactly; says why.
    """

    def __init__(self, key: str, env: Any, actions: Callable[[int, int], Sequence[Any]]):
        import mujoco

        self._mujoco, self._key, self.env = mujoco, key, env
        self.active: Own | None = None
        self._attributes = Attributes(env)
        self.model = self._attributes.model
        self.fields = Fields(self.model)
        self.built = self.fields.snapshot(whole=True)
        self._varying: list[str] = []
        self._built = self._attributes.put_away(self._attributes.now(), self._attributes.data)
        self._built_data = _copy(self._attributes.data)
        try:
            self._learn(actions)
            self._try(actions)
        except (NotExact, RiptError):
            raise
        except Exception as error:  # of any kind that an environment raises where its state is not what it expects
            raise NotExact(f"it raised {type(error).__name__}: {error}") from error

    # ------------------------------------------------------------------------------------------- the environment's own

    def _as_built(self) -> Own:
        """Make the environment what it was when it was newly built."""
        self._let_go()
        instance = Own(_copy(self._built_data))
        self.fields.restore(self.built)
        self.fields.restore_large(self.built)
        instance.attributes = self._attributes.take_out(self._built, instance.data)
        self._attributes.use(instance.attributes)
        return instance

    def own_reset(self, seed: int) -> tuple[Own, Any]:
        """What a newly built environment does: (its instance, its first observation) after `reset(seed=seed)`."""
        instance = self._as_built()
        observation, _ = self.env.reset(seed=seed)
        return instance, observation

    # ----------------------------------------------------------------------------------------------- what there is

    def _learn(self, actions: Callable[[int, int], Sequence[Any]]) -> None:
        """Find out what resets and steps change."""
        resets, changed = [], set()
        for seed in (*PROBES, *RESETS):
            instance, observation = self.own_reset(seed)
            stored = self._attributes.put_away(instance.attributes, instance.data)
            resets.append((self._attributes.take_out(stored, self._built_data), stored, observation))
            changed |= self._changed()
            for action in actions(STEPS, seed) if seed in PROBES else ():
                self.env.step(action)
            changed |= self._changed()
        self._varying = sorted(changed)
        (first, self._stored, self._observation), *others = resets
        self._observation = _own(self._observation)
        self._layout = [
            (place, name)
            for place, held in enumerate(first)
            for name, value in held.items()
            if any(self._differs(held, other[place], name, value) for other, _, _ in others)
        ]
        self._constant = [
            {
                name: (structure(value), numbers(value))
                for name, value in held.items()
                if (place, name) not in self._layout
            }
            for place, held in enumerate(first)
        ]
        sizes = (
            sum(self.fields.value(name).size for name in self._varying),
            sum(count(first[place][name]) for place, name in self._layout),
            count(self._observation),
        )
        self._parts = np.cumsum([1, physics(self.model, self._built_data).size, *sizes])
        self.size = int(self._parts[-1])

    def _changed(self) -> set[str]:
        """Names of what is not as it was built in the model."""
        self.require_small()
        return self.fields.changed(self.built)

    def require_small(self) -> None:
        """Raise `NotExact` where more was changed in the model than an instance can have of its own."""
        for name in sorted(self.fields.changed_large(self.built)):
            size = self.fields.value(name).nbytes
            raise NotExact(f"it changes its model's {name}, {size:,} bytes, which instances cannot take turns with")

    def _differs(self, held: dict, other: dict, name: str, value: Any) -> bool:
        if held.keys() != other.keys():
            raise NotExact(f"its attributes differ from reset to reset: {sorted(held.keys() ^ other.keys())}")
        if structure(value) != structure(other[name]):
            raise NotExact(f"its attribute {name!r} differs from reset to reset in more than its numbers")
        return not same(numbers(value), numbers(other[name]))

    # ----------------------------------------------------------------------------------------------- initial states

    def state(self, seed: int) -> np.ndarray:
        """The initial state of a seed, as a newly built environment makes it: float64 `[size]`.

        Raises:
            NotExact: this reset changes what none did when the environment was tried.
        """
        instance, observation = self.own_reset(seed)
        return self._state(seed, instance, observation)

    def _state(self, seed: int, instance: Own, observation: Any) -> np.ndarray:
        new = self._changed() - set(self._varying)
        if new:
            raise NotExact(f"the reset with seed {seed} changes its model's {', '.join(sorted(new))}, others do not")
        found = []
        stored = self._attributes.put_away(instance.attributes, instance.data)
        attributes = self._attributes.take_out(stored, self._built_data)
        for place, constant in enumerate(self._constant):
            held = attributes[place]
            names = constant.keys() | {name for at, name in self._layout if at == place}
            for name in held.keys() ^ names:
                raise NotExact(f"its attribute {name!r} comes and goes")
            for name, (kind, own) in constant.items():
                if structure(held[name]) != kind or not same(numbers(held[name]), own):
                    raise NotExact(f"the reset with seed {seed} changes its attribute {name!r}, others do not")
        for place, name in self._layout:
            found.append(numbers(attributes[place][name]))
        if structure(observation) != structure(self._observation):
            raise NotExact("its first observation differs from reset to reset in more than its numbers")
        fields = [self.fields.value(name).ravel() for name in self._varying]
        return np.concatenate(
            [[float(seed)], physics(self.model, instance.data), *fields, *found, numbers(observation)]
        )

    def put(self, instance: Own, state: np.ndarray) -> Any:
        """Put an instance into an initial state and let it have its turn; returns the first observation.

        Raises:
            NotExact: instances changed more of the model than they can have of their own.
        """
        if instance.unwatched:
            self.ended(instance)
        whole, fields, held, observed = np.split(state.copy(), self._parts)[1:5]  # MuJoCo wants it writable
        self._let_go()
        instance.attributes = self._attributes.take_out(self._stored, instance.data)
        at = 0
        for place, name in self._layout:
            value = instance.attributes[place][name]
            n = count(value)
            instance.attributes[place][name] = rebuilt(value, held[at : at + n])
            at += n
        instance.fields, at = {}, 0
        for name in self._varying:
            built = self.fields.then(name, self.built)
            instance.fields[name] = fields[at : at + built.size].reshape(built.shape)
            at += built.size
        self.use(instance)
        self._mujoco.mj_resetData(self.model, instance.data)
        set_physics(self.model, instance.data, whole)
        return rebuilt(_own(self._observation), observed)

    def new_instance(self) -> Own:
        """An instance that is in no state yet."""
        return Own(self._mujoco.MjData(self.model))

    # ----------------------------------------------------------------------------------------------- taking turns

    def use(self, instance: Own) -> None:
        """Let an instance have its turn: `env` is now its environment."""
        if self.active is instance:
            return
        self._let_go()
        self.fields.restore(self.built)
        for name, value in instance.fields.items():
            self.fields.set(name, value)
        self._attributes.use(instance.attributes)
        self.active, instance.unwatched = instance, True

    def _let_go(self) -> None:
        """Keep what the active instance changed in the model, whatever and whenever; its attributes stay where they
        are."""
        if self.active is not None:
            self.active.fields = {name: self.fields.value(name) for name in self.fields.changed(self.built)}
            self.active = None

    def ended(self, instance: Own) -> None:
        """An instance's episode is over.

        Raises:
            NotExact: instances changed more of the model than they can have of their own.
        """
        self.require_small()
        instance.unwatched = False

    def close(self, instance: Own) -> None:
        """The instance will not be used again."""
        if self.active is instance:
            self.active = None

    # ----------------------------------------------------------------------------------------------- whether it holds

    def _try(self, actions: Callable[[int, int], Sequence[Any]]) -> None:
        """Raise `NotExact` unless instances that take turns go the ways of the environment itself."""
        states, ways, plans = [], [], [actions(STEPS, seed) for seed in TRIED]
        for seed, plan in zip(TRIED, plans, strict=True):
            instance, observation = self.own_reset(seed)
            states.append(self._state(seed, instance, observation))
            ways.append([self._seen(self.env.step(action)) for action in plan])
            self.require_small()
        instances = [self.new_instance() for _ in TRIED]
        for instance, state in zip(instances, states, strict=True):
            self.put(instance, state)
        for step in range(STEPS):
            for instance, way, plan in zip(instances, ways, plans, strict=True):
                self.use(instance)
                if not same(self._seen(self.env.step(plan[step])), way[step]):
                    raise NotExact(f"put into the state after a reset, it shows something else at step {step + 1}")

    def _seen(self, result: Any) -> np.ndarray:
        observation, reward, terminated, _, _ = stepped(self._key, result)
        return np.concatenate([numbers(observation), [reward, float(terminated)]])


def physics(model: Any, data: Any) -> np.ndarray:
    """The whole of what MuJoCo integrates: float64 `[P]` (time, positions, velocities, warm start, controls, ...)."""
    import mujoco

    kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    found = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, found, kind)
    return found


def set_physics(model: Any, data: Any, state: np.ndarray) -> None:
    """Set what MuJoCo integrates; what is computed from it is up to date."""
    import mujoco

    kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_setState(model, data, state, kind)
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, state, kind)  # mj_forward changed the solver's warm start


def _copy(data: Any) -> Any:
    return data.__copy__()


def _own(value: Any) -> Any:
    """A value with containers and arrays of its own."""
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_own(item) for item in value)
    return value
