"""Complete runs on the toy simulator, small enough for a test, and ways to interrupt them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ript.build import make_env_pool, make_policy, simulator_factory, task_keys
from ript.config.sections import Config, DemoConfig, EvalConfig, LearnConfig, RolloutConfig, SamplingConfig, sim_options
from ript.core.options import SimOptions, replace
from ript.demos.collect import collect_demos
from ript.policies.quest.options import QuestOptions, QuestTraining
from ript.policies.quest.policy import QuestPolicy
from ript.run.folder import RunFolder
from ript.run.states import InitialStates
from ript.sims.registry import make_simulator
from ript.sims.toy.options import ToyOptions

torch.set_num_threads(1)


class Stopped(BaseException):
    """As abrupt as a kill: nothing in the code under test handles it."""


@contextmanager
def initial_states(
    sim: SimOptions, tasks: tuple[str, ...], seed: int = 0, demos: Sequence[str] = ()
) -> Iterator[InitialStates]:
    """Of simulators in this process."""
    with make_env_pool(sim, RolloutConfig(workers=0)) as pool:
        yield InitialStates(pool, tasks, seed, demos)


def toy_config(**changes: Any) -> Config:
    """A run of a second or two. Keyword arguments replace fields; a mapping replaces fields of a section."""
    config = Config(
        recipe="toy",
        tasks=("reach-centre",),
        iterations=3,
        sim=ToyOptions(image_size=8, horizon=16),
        policy=QuestOptions(size="tiny", chunk=4),
        demos=DemoConfig(per_task=2, every=1),
        sft=QuestTraining(
            autoencoder_steps=20,
            autoencoder_batch=32,
            policy_steps=20,
            policy_batch=16,
            finetune_steps=10,
            threads=1,
            checkpoint_every=10,
        ),
        rollout=RolloutConfig(workers=0, slots=16),
        sampling=SamplingConfig(group_size=4, groups=3, max_attempts=6),
        learn=LearnConfig(learning_rate=3e-3, epochs=2, minibatch=32, micro_batch=20, threads=1),
        eval=EvalConfig(trials=6, every=1, every_trials=5, videos=0),
    )
    for name, value in changes.items():
        if isinstance(value, dict):
            other = name == "sim" and value.get("suite", "toy") != "toy"
            value = sim_options(**value) if other else replace(getattr(config, name), **value)
        config = replace(config, **{name: value})
    return config


def lively_policy(config: Config, seed: int = 1) -> QuestPolicy:
    """An untrained policy whose skills move the dot far, each in its own direction: it succeeds now and then."""
    policy = make_policy(config, make_simulator("toy/reach", image_size=config.sim.image_size).spec, seed=seed)
    autoencoder = policy.autoencoder
    with torch.no_grad():
        autoencoder.action_out.bias.zero_()
        for layer in (
            autoencoder.action_out,
            autoencoder.fsq.project_out,
            autoencoder.decoder[0].cross_attention.out_proj,
        ):
            layer.weight.mul_(5)
    return policy


def toy_demos(path: Path, config: Config, *tasks: str) -> Path:
    """A file with `config.demos.per_task` demonstrations of each task."""
    keys = task_keys(config.sim, tasks)
    collect_demos(simulator_factory(config.sim), keys, config.demos.per_task, path, every=config.demos.every)
    return path


def stop_in(monkeypatch: pytest.MonkeyPatch, method: str, when: Callable[..., bool] | int) -> None:
    """Make `RunFolder.method` raise `Stopped` when called for that iteration, or when `when(call number, *args)`."""
    original, calls = getattr(RunFolder, method), [0]

    def stopping(self: RunFolder, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if when(calls[0], *args) if callable(when) else args[0] == when:
            raise Stopped
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RunFolder, method, stopping)


def weights(folder: Path) -> bytes:
    return (folder / "policy" / "model.safetensors").read_bytes()


def without_times(folder: Path) -> dict[str, list[Any]]:
    """What a run folder logged, but for wall clock and paths, and what was launched ahead, which depends on timing."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                k: clean(v)
                for k, v in value.items()
                if "seconds" not in k and not k.startswith("time/") and k not in ("policy", "rollout/dropped_rollouts")
            }
        return value

    files = [folder / name for name in ("metrics.jsonl", "evals.jsonl")]
    return {f.name: [clean(json.loads(line)) for line in f.read_text().splitlines()] for f in files if f.exists()}
