"""Run folders with made-up numbers and moving-square videos: test data that no policy and no simulator produced."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from ript.core.types import EvalResult, TaskResult
from ript.run.folder import RunFolder


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson 95 % interval."""
    if not trials:
        return 0.0, 1.0
    z, rate = 1.959964, successes / trials
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def moving_square(frames: int = 24, size: int = 64, offset: int = 0) -> np.ndarray:
    """A square that walks over a grey floor: uint8 `[T, size, size, 3]`."""
    video = np.full((frames, size, size, 3), 90, dtype=np.uint8)
    for t in range(frames):
        left = 4 + (2 * t + offset) % (size - 20)
        video[t, size // 2 - 6 : size // 2 + 6, left : left + 12] = (220, 90, 40)
    return video


def evaluation(rates: dict[str, float], mode: str, rng: np.random.Generator, trials: int = 100) -> EvalResult:
    """Made-up outcomes on `trials` states a task, the same states whatever the rate."""
    tasks, per_state = {}, {}
    for task, rate in rates.items():
        difficulty = np.random.default_rng(len(task)).random(trials)
        noise = rng.normal(0, 0.06, trials)
        outcomes = ["success" if d + e < rate else "failure" for d, e in zip(difficulty, noise, strict=True)]
        per_state[task] = [(f"{len(task):02x}{i:014x}", outcome) for i, outcome in enumerate(outcomes)]
        successes = outcomes.count("success")
        tasks[task] = TaskResult(successes=successes, trials=trials, errors=0, interval=wilson(successes, trials))
    successes = sum(result.successes for result in tasks.values())
    trials = sum(result.trials for result in tasks.values())
    total = TaskResult(successes=successes, trials=trials, errors=0, interval=wilson(successes, trials))
    return EvalResult(policy="policy", seed=7, mode=mode, tasks=tasks, total=total, per_state=per_state)


def metrics_line(iteration: int, iterations: int, rng: np.random.Generator, speed: float) -> dict[str, float]:
    """One plausible line of metrics.jsonl."""
    done = 1 - math.exp(-speed * iteration)
    rollouts = int(rng.integers(300, 420))
    split = {"simulate": 3.3, "render": 4.6, "infer": 1.6, "wait": 0.5}
    split = {name: seconds * rng.uniform(0.9, 1.1) for name, seconds in split.items()}
    rollout, update = sum(split.values()) / 2, rng.uniform(2.4, 3.0)
    evaluate = 5.2 if iteration % 3 == 0 or iteration == iterations else 0.0
    return {
        "rollout/success": 0.12 + 0.83 * done + rng.normal(0, 0.03),
        "rollout/signal_share": 0.75 - 0.5 * done + rng.normal(0, 0.03),
        "rollout/rejected_share": 0.25 + 0.5 * done,
        "rollout/groups_attempted": 24,
        "rollout/groups_accepted": 16,
        "rollout/rollouts": rollouts,
        "rollout/env_steps": rollouts * 140,
        "rollout/errors": 0,
        "update/loss": -0.01 * rng.random(),
        "update/clip_fraction": 0.08 + 0.06 * rng.random(),
        "update/kl": 0.05 + 0.02 * rng.normal(),
        "update/entropy": 1.9 - 1.1 * done + 0.03 * rng.normal(),
        "update/ratio_min": 0.4,
        "update/ratio_max": 2.1,
        "update/first_ratio_deviation": 1e-7,
        "update/grad_norm": 0.6 + 0.2 * rng.random(),
        "update/epochs": 3,
        "update/learning_rate": 1e-4,
        **{f"time/{name}": seconds for name, seconds in split.items()},
        "time/rollout": rollout,
        "time/update": update,
        "time/eval": evaluate,
        "time/total": rollout + update + 0.3,
    }


def make_run(
    path: Path,
    *,
    tasks: tuple[str, ...] = ("drawer-open-v3",),
    iterations: int = 15,
    speed: float = 0.3,
    seed: int = 0,
    videos: int = 3,
    finished: bool = True,
) -> Path:
    """Write a whole run folder of made-up numbers and return it."""
    rng = np.random.default_rng(seed)
    modes = ("sampled (temperature 0.6)", "greedy")
    spent = {"rollouts": 0, "env_steps": 0, "seconds": 0.0}
    config = {
        "recipe": "made-up test data",
        "seed": seed,
        "sim": {"suite": "metaworld", "cameras": ["near"], "horizon": 500, "tasks": list(tasks)},
        "learn": {"learning_rate": 1e-4, "epochs": 3, "clip_low": 0.2, "clip_high": 0.2},
        "notes": ["An auxiliary loss on privileged object positions was used in pre-training."],
    }
    with RunFolder.create(path, config) as run:
        for iteration in range(iterations + 1):
            if iteration:
                line = metrics_line(iteration, iterations, rng, speed)
                for name in ("rollouts", "env_steps"):
                    spent[name] += line[f"rollout/{name}"]
                spent["seconds"] += line["time/total"] + line["time/eval"]
                run.log(iteration, {**line, **{f"total/{name}": value for name, value in spent.items()}})
            if iteration % 3 == 0 or iteration == iterations:
                for place, mode in enumerate(modes):
                    rate = 0.12 + (0.86 + 0.02 * place) * (1 - math.exp(-speed * iteration))
                    rates = {task: rate * (1 - 0.05 * n) for n, task in enumerate(tasks)}
                    run.log_eval(iteration, evaluation(rates, mode, rng), **spent)
        for stage, outcome in (("before", "failure"), ("after", "success")):
            run.save_videos(
                stage,
                [(tasks[0], f"{i:016x}", outcome, moving_square(offset=9 * i, frames=30)) for i in range(videos)],
            )
        if finished:
            run.finish(f"all {iterations} iterations done")
    return path
