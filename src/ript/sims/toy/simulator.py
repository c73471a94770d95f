"""A toy suite: move a dot to a goal in a picture. Exact, deterministic, microseconds a step; for tests and first tries.

Positions lie in the square [-1, 1] x [-1, 1], x to the right and y up. An action moves the dot by at most `STEP` along
each axis. Random actions succeed now and then, so that post-training has something to learn from at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ript.core.errors import ConfigError, SimulatorError, UnknownNameError
from ript.core.types import UNNAMED_PROPRIO, ChunkResult, InitialState, Observation, SimulatorSpec, Split, Task
from ript.sims import episode
from ript.sims.sequences import streams

NAME = "toy"
CAMERA = "top"
STEP = 0.15
RADIUS = 0.3
"""Distance from the goal within which the task is solved."""
CLEARANCE = 2 * RADIUS
"""Least distance between dot and goal at the start."""

_DOT_COLOUR = np.array([240.0, 240.0, 240.0])
_GOAL_COLOUR = np.array([60.0, 200.0, 90.0])
_TABLE_COLOUR = np.array([30.0, 30.0, 50.0])

Sampler = Callable[[np.random.Generator], np.ndarray]

# Task name -> (instruction, where the goal may be).
TASKS: dict[str, tuple[str, Sampler]] = {
    "reach": ("Move the white dot to the green goal.", lambda g: g.uniform(-0.9, 0.9, 2)),
    "reach-centre": ("Move the white dot to the green goal in the middle.", lambda g: g.uniform(-0.2, 0.2, 2)),
    "reach-corner": (
        "Move the white dot to the green goal in the upper right corner.",
        lambda g: g.uniform(0.5, 0.9, 2),
    ),
    "reach-left": (
        "Move the white dot to the green goal on the left.",
        lambda g: np.array([g.uniform(-0.9, -0.5), g.uniform(-0.9, 0.9)]),
    ),
}


def toy_tasks(horizon: int = 40) -> tuple[Task, ...]:
    """The toy tasks, in a stable order."""
    return tuple(
        Task(suite=NAME, name=name, instruction=text, index=i, horizon=horizon)
        for i, (name, (text, _)) in enumerate(TASKS.items())
    )


def toy_spec(image_size: int) -> SimulatorSpec:
    """What the toy shows and takes."""
    return SimulatorSpec(
        suite=NAME,
        cameras={CAMERA: (image_size, image_size)},
        proprio={UNNAMED_PROPRIO: 2},
        action_dim=2,
        render={"size": [image_size, image_size]},
    )


class ToySimulator:
    """A dot, a goal and a camera above them. Implements `Simulator` and `Demonstrator`.

    The initial state is `[dot x, dot y, goal x, goal y]`; proprio is the dot's position `[2]`, privileged the goal's.

    Args:
        task_name: one of `TASKS`.
        horizon: steps after which an episode without success is over.
        image_size: height and width of the picture, at least 8 pixels.

    Raises:
        UnknownNameError: no such task.
        ConfigError: a horizon or size that cannot work.
    """

    def __init__(self, task_name: str = "reach", *, horizon: int = 40, image_size: int = 16):
        if task_name not in TASKS:
            raise UnknownNameError("toy task", task_name, TASKS)
        if horizon < 1:
            raise ConfigError(f"horizon: expected at least 1, got {horizon}")
        if image_size < 8:
            raise ConfigError(f"image_size: expected at least 8 pixels, got {image_size}")
        self.task = toy_tasks(horizon)[list(TASKS).index(task_name)]
        self.spec = toy_spec(image_size)
        self.seconds = {"simulate": 0.0, "render": 0.0}
        self._size = image_size
        self._state: InitialState | None = None
        self._dot, self._goal = np.zeros(2), np.zeros(2)
        self._steps, self._done = 0, True

    def reset(self, initial_state: InitialState) -> Observation:
        """Set the exact state, then look."""
        episode.require_own(self.task, initial_state)
        if initial_state.state.size != 4 or not np.isfinite(initial_state.state).all():
            raise SimulatorError(
                f"{self.task.key}: initial state {initial_state.id} does not fit: expected 4 finite numbers, "
                f"got {initial_state.state.tolist()}"
            )
        self._state, self._steps, self._done = initial_state, 0, False
        self._dot, self._goal = initial_state.state[:2].copy(), initial_state.state[2:].copy()
        return self.observe()

    def _address(self) -> str:
        return episode.address(self.task, self._state, self._steps)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute float32 `[H, 2]` (clipped to [-1, 1]), stopping at success or at the horizon."""
        actions = episode.checked_actions(
            np.asarray(actions, np.float32), 2, self._address(), begun=self._state is not None, over=self._done
        )
        start, executed, success = time.perf_counter(), 0, False
        moves = np.clip(actions, -1, 1).astype(np.float64) * STEP
        for move in moves[: self.task.horizon - self._steps]:
            self._dot = np.clip(self._dot + move, -1, 1)
            executed += 1
            success = float(np.hypot(*(self._dot - self._goal))) <= RADIUS
            if success:
                break
        self._steps += executed
        self._done = success or self._steps >= self.task.horizon
        self.seconds["simulate"] += time.perf_counter() - start
        return ChunkResult(success=success, env_steps=executed, done=self._done)

    def _require_state(self) -> None:
        episode.require_begun(self.task, self._state)

    def _draw(self, size: int) -> np.ndarray:
        pixel = 2.0 / size
        centres = np.arange(size) * pixel - 1 + pixel / 2
        picture = np.broadcast_to(_TABLE_COLOUR, (size, size, 3))
        for place, radius, colour in ((self._goal, RADIUS, _GOAL_COLOUR), (self._dot, 0.12, _DOT_COLOUR)):
            distance = np.hypot(centres[None, :] - place[0], -centres[:, None] - place[1])
            cover = np.clip(0.5 + (radius - distance) / pixel, 0, 1)[..., None]
            picture = picture + cover * (colour - picture)
        return picture.round().astype(np.uint8)

    def observe(self) -> Observation:
        """Look: one picture `[1, h, w, 3]`, row 0 at the top; proprio `[1, 2]`."""
        self._require_state()
        start = time.perf_counter()
        picture = self._draw(self._size)
        self.seconds["render"] += time.perf_counter() - start
        return Observation(
            images={CAMERA: picture[None]},
            proprio=self._dot.astype(np.float32)[None],
            instruction=(self.task.instruction,),
        )

    def render(self) -> np.ndarray:
        """A picture for videos: uint8 `[128, 128, 3]`."""
        self._require_state()
        start = time.perf_counter()
        picture = self._draw(128)
        self.seconds["render"] += time.perf_counter() - start
        return picture

    def expert_action(self) -> np.ndarray:
        """Straight to the goal: float32 `[2]`."""
        return np.clip((self._goal - self._dot) / STEP, -1, 1).astype(np.float32)

    def privileged(self) -> np.ndarray:
        """The goal's position: float32 `[2]`."""
        return self._goal.astype(np.float32)

    def initial_states(self, n: int, seed: int = 0, split: Split = "train", start: int = 0) -> list[InitialState]:
        """States number start..start+n-1 of the sequence (split, seed)."""
        return [self._sampled(label, generator) for label, generator in streams(self.task, n, seed, split, start)]

    def _sampled(self, label: str, generator: np.random.Generator) -> InitialState:
        goal = TASKS[self.task.name][1](generator)
        dot = generator.uniform(-0.9, 0.9, 2)
        for _ in range(1000):
            if np.hypot(*(dot - goal)) >= CLEARANCE:
                break
            dot = generator.uniform(-0.9, 0.9, 2)
        state = np.concatenate([dot, goal])
        return InitialState(task=self.task, state=state, origin="sampled", label=label)

    def close(self) -> None:
        self._state, self._done = None, True

    def __enter__(self) -> ToySimulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
