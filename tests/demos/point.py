"""A point on a table that its expert moves to a goal: a real, exact simulator small enough to read in a test."""

from __future__ import annotations

import os
import time
import zlib

import numpy as np

from ript.core.errors import SimulatorError
from ript.core.types import ChunkResult, InitialState, Observation, SimulatorSpec, Task

SIZE = 12
HORIZON = 60


class Point:
    """State: position and goal, `[4]`. Tasks named "...-unlucky" have an expert that walks away from half the goals."""

    def __init__(self, key: str, shade: int = 200, fault: str = ""):
        suite, name = key.split("/")
        self.task = Task(suite=suite, name=name, instruction=f"move to the {name}", index=0, horizon=HORIZON)
        self.spec = SimulatorSpec(
            suite=suite,
            cameras={"top": (SIZE, SIZE)},
            proprio={"position": 2},
            action_dim=2,
            render={"shade": shade, "size": (SIZE, SIZE)},
        )
        self.seconds = {"simulate": 0.0, "render": 0.0}
        self.rendered = 0
        self.closed = False
        self._shade, self._fault = shade, fault
        self._position, self._goal, self._steps = np.zeros(2), np.zeros(2), 0
        self._done = True

    def initial_states(self, n, seed=0, split="train", start=0):
        states = []
        for i in range(start, start + n):
            name = zlib.crc32(f"{self.task.key} {split}".encode())
            draw = np.random.default_rng([seed, name, i]).uniform(-1, 1, 4)
            states.append(InitialState(task=self.task, state=draw, origin="sampled", label=f"{split} seed {seed} #{i}"))
        return states

    def reset(self, initial_state):
        if initial_state.task.key != self.task.key:
            raise SimulatorError("state of another task")
        self._position, self._goal = initial_state.state[:2].copy(), initial_state.state[2:].copy()
        self._steps, self._done = 0, False
        return self.observe()

    def step_chunk(self, actions):
        if self._done:
            raise SimulatorError("stepped after the episode was over")
        for i, action in enumerate(actions):
            self._position = self._position + 0.1 * action.astype(float)
            self._steps += 1
            if self._fault == "die" and self._steps == 3:
                os._exit(7)
            if self._fault == "hang" and self._steps == 3:
                time.sleep(60)
            if self._fault == "raise" and self._steps == 3:
                raise ValueError("the table broke")
            if self._fault == "interrupt" and self._steps == 3:
                raise KeyboardInterrupt
            success = bool(np.abs(self._position - self._goal).max() < 0.08)
            if success or self._steps >= HORIZON:
                self._done = True
                return ChunkResult(success=success, env_steps=i + 1, done=True)
        return ChunkResult(success=False, env_steps=len(actions), done=False)

    def observe(self):
        self.rendered += 1
        image = np.zeros((SIZE, SIZE, 3), np.uint8)
        for channel, place in enumerate((self._position, self._goal)):
            row, column = np.clip(((place + 1.5) / 3 * SIZE).astype(int), 0, SIZE - 1)
            image[row, column, channel] = self._shade
        return Observation(
            images={"top": image[None]},
            proprio=self._position.astype(np.float32)[None],
            instruction=(self.task.instruction,),
        )

    def render(self):
        return self.observe().images["top"][0]

    def expert_action(self):
        if self._fault == "nan":
            return np.array([np.nan, 0], np.float32)
        away = -1 if self.task.name.endswith("hopeless") else 1
        if self.task.name.endswith("unlucky") and self._goal[0] > 0:
            away = -1
        return np.clip(away * 5 * (self._goal - self._position), -1, 1).astype(np.float32)

    def privileged(self):
        return np.append(self._goal, 0.0).astype(np.float32)

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
