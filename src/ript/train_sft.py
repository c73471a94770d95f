"""Supervised stages: the skill autoencoder, the policy on all tasks, and fine-tuning toward a few target tasks.

Resumable: a stage's data order, dropout and augmentation continue exactly where the last checkpoint left them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ript.build import load_quest, make_policy, simulator_factory, task_keys, use_device
from ript.config import Config
from ript.demos.demo_set import DemoSet, open_demos
from ript.demos.statistics import Statistics
from ript.demos.windows import Windows
from ript.errors import ConfigError, DataError, NotFiniteError, PolicyError, RunError
from ript.interfaces import Demonstrator
from ript.learn.gradient import Gradient, Loss
from ript.metrics import Mean, Metrics, merge, values
from ript.policies.quest.layers import drawing_from
from ript.policies.quest.policy import QuestPolicy, parameter_groups
from ript.report.progress import progress, status
from ript.report.run import RunFolder, read_config
from ript.types import InitialState


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One supervised stage.

    Attributes:
        name: for logs.
        steps: optimiser steps.
        learning_rate: peak; warmed up over 5 % of the steps, then a cosine to a tenth.
        modules: what is trained.
        draws: generator -> rows of endless batches, int `[B]` each.
        loss: rows -> (loss, metrics).
    """

    name: str
    steps: int
    learning_rate: float
    modules: Sequence[torch.nn.Module]
    draws: Callable[[np.random.Generator], Iterator[np.ndarray]]
    loss: Loss[np.ndarray]


def train_sft(
    config: Config,
    demos: Sequence[str | Path] | DemoSet,
    out: str | Path,
    *,
    base: str | Path | None = None,
    resume: bool = False,
) -> QuestPolicy:
    """Train a policy on demonstrations, or fine-tune a base policy toward the target tasks.

    Without `base`: autoencoder, then policy on every task in the files; then fine-tuning when some of them are target
    tasks. With `base`: fine-tuning alone; its autoencoder is kept.

    Args:
        config: recipe; `tasks` are the targets.
        demos: files, or an opened set.
        out: run folder; the policy is written to `out/policy`.
        base: policy folder to start from.
        resume: go on with an interrupted run in `out`.

    Raises:
        ConfigError: a base, but no task to fine-tune it toward.
        DataError: the files are unusable or lack a target task.
        NotFiniteError: the loss became NaN; the last checkpoint is kept.
        RunError: `out` is in use or holds another run.
    """
    demo_set = demos if isinstance(demos, DemoSet) else open_demos(list(demos))
    have = {task.key for task in demo_set.tasks}
    targets = tuple(k for k in task_keys(config.sim, config.tasks) if k in have)
    missing = sorted(set(task_keys(config.sim, config.tasks)) - have)
    if missing:
        raise DataError(
            f"no demonstration of target task {', '.join(missing)} in the files; there are {', '.join(sorted(have))}"
        )
    if base is not None and not targets:
        raise ConfigError("a base policy is fine-tuned toward target tasks, and none is given: give --tasks")
    device = use_device(config.device)
    policy = load_quest(base) if base is not None else _new_policy(config, demo_set)
    windows = Windows(demo_set, policy.config.chunk)
    if base is None:
        _set_statistics(policy, Statistics.of(windows))
    policy.to(device).check_simulator(windows.spec)
    policy.embed([task.instruction for task in windows.tasks])
    stages = _stages(config, policy, windows, targets, fresh=base is None)
    document = {
        "recipe_config": config.to_json(),
        "demos": [str(file.path.absolute()) for file in demo_set.files],
        "base": None if base is None else str(Path(base).absolute()),
    }
    with RunFolder.open(out) if resume else RunFolder.create(out, document, "sft") as run:
        threads = torch.get_num_threads()
        torch.set_num_threads(config.sft.threads)
        try:
            with torch.random.fork_rng(devices=[]):
                _run_stages(run, config, policy, stages)
        finally:
            torch.set_num_threads(threads)
        policy.eval()
        policy.card["supervised training"] = {
            "recipe": config.recipe,
            "demonstrations": len(demo_set),
            "tasks": ", ".join(t.name for t in windows.tasks),
            "target tasks": ", ".join(config.tasks) or "none",
            "seed": config.seed,
            "auxiliary loss on object positions from the simulator": "yes" if config.policy.privileged else "no",
        }
        with run.replace(run.policy) as folder:
            policy.save_pretrained(folder)
        run.finish("all stages done")
    return policy


def resume_sft(out: str | Path) -> QuestPolicy:
    """Go on with an interrupted run, with its own configuration and demonstrations.

    Raises:
        RunError: `out` is in use, is not a run of supervised training, or is of another version.
        DataError: its demonstrations are gone.
    """
    document = read_config(out)
    if document["kind"] != "sft":
        raise RunError(
            f"{out} is not a run of supervised training: go on with `ript {document['kind']} --resume {out}`"
        )
    asked = document["config"]
    config = Config.from_json(asked["recipe_config"])
    return train_sft(config, asked["demos"], out, base=asked["base"], resume=True)


def _new_policy(config: Config, demos: DemoSet) -> QuestPolicy:
    first = next(demos.demos())
    privileged = first.privileged
    if config.policy.privileged and privileged is None:
        raise DataError(
            "policy.privileged asks for object positions, and the demonstrations have none (obs/privileged)"
        )
    return make_policy(config, demos.spec, 0 if privileged is None else privileged.shape[1])


def _set_statistics(policy: QuestPolicy, statistics: Statistics) -> None:
    encoder = policy.encoder
    encoder.proprio_mean.copy_(torch.as_tensor(statistics.proprio_mean))
    encoder.proprio_std.copy_(torch.as_tensor(statistics.proprio_std))
    if encoder.privileged is not None:
        if statistics.privileged_mean is None or statistics.privileged_std is None:
            raise PolicyError(
                "the demonstrations carry no object positions (obs/privileged), which the policy's loss needs"
            )
        encoder.privileged_mean.copy_(torch.as_tensor(statistics.privileged_mean))
        encoder.privileged_std.copy_(torch.as_tensor(statistics.privileged_std))


def _stages(config: Config, policy: QuestPolicy, windows: Windows, targets: Sequence[str], fresh: bool) -> list[Stage]:
    s = config.sft
    chunks, mask = windows.action_chunks()

    def chunk_draws(rng: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            yield rng.integers(len(chunks), size=s.autoencoder_batch)

    def chunk_loss(rows: np.ndarray) -> tuple[torch.Tensor, Metrics]:
        return policy.autoencoder_loss(torch.from_numpy(chunks[rows]), torch.from_numpy(mask[rows]))

    def window_draws(weights: dict[str, float] | None) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
        return lambda rng: windows.draws(s.policy_batch, rng, task_weights=weights)

    def window_loss(rows: np.ndarray, decoder_scale: float = 0.0) -> tuple[torch.Tensor, Metrics]:
        return policy.loss(windows.batch(rows), decoder_scale=decoder_scale)

    def steps(epochs: float, steps: int, windows: int, batch: float) -> int:
        return math.ceil(epochs * windows / batch) if epochs else steps

    actor = [policy.encoder, policy.prior]
    stages = []
    if fresh:
        stages += [
            Stage(name="autoencoder", learning_rate=s.autoencoder_learning_rate,
                  steps=steps(s.autoencoder_epochs, s.autoencoder_steps, len(chunks), s.autoencoder_batch),
                  modules=[policy.autoencoder], draws=chunk_draws, loss=chunk_loss),
            Stage(name="policy", learning_rate=s.policy_learning_rate, modules=actor,
                  steps=steps(s.policy_epochs, s.policy_steps, len(windows), s.policy_batch),
                  draws=window_draws(None), loss=window_loss),
        ]  # fmt: skip
    if targets:
        weights = windows.target_weights(targets, s.finetune_share)
        own = sum(windows.tasks[i].key in targets for i in windows.task_index)
        stages.append(
            Stage(name="finetune", learning_rate=s.finetune_learning_rate,
                  modules=[*actor, policy.autoencoder.decoder] if s.finetune_decoder else actor,
                  steps=steps(s.finetune_epochs, s.finetune_steps, own, s.policy_batch * s.finetune_share),
                  draws=window_draws(weights), loss=partial(window_loss, decoder_scale=s.finetune_decoder))
        )  # fmt: skip
    return stages


def schedule(step: int, steps: int, peak: float) -> float:
    """Learning rate: linear warm-up over 5 % of the steps, then a cosine from `peak` to a tenth of it."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _run_stages(run: RunFolder, config: Config, policy: QuestPolicy, stages: Sequence[Stage]) -> None:
    done = 0  # steps of earlier stages
    found = run.load_checkpoint()
    reached = found.iteration if found else 0
    for number, stage in enumerate(stages):
        if reached >= done + stage.steps:  # finished before the interruption
            done += stage.steps
            if found and reached == done:
                policy.load_state_dict(found.state["policy"])
            continue
        rng = np.random.default_rng([config.seed, number])
        torch.manual_seed(config.seed * 1000 + number)
        optimiser = torch.optim.AdamW(parameter_groups(stage.modules), weight_decay=config.sft.weight_decay)
        start = 0
        if found and reached > done:
            start = reached - done
            policy.load_state_dict(found.state["policy"])
            optimiser.load_state_dict(found.state["optimiser"])
            rng.bit_generator.state = found.state["rng"]
            torch.set_rng_state(found.state["torch_rng"])

        def save(step: int, rng: np.random.Generator = rng, optimiser: torch.optim.Optimizer = optimiser,
                 done: int = done) -> None:  # fmt: skip
            run.save_checkpoint(done + step, {
                "policy": policy.state_dict(), "optimiser": optimiser.state_dict(),
                "rng": rng.bit_generator.state, "torch_rng": torch.get_rng_state(),
            })  # fmt: skip

        metrics = _run_stage(run, config, policy, stage, optimiser, rng, start, done, save)
        done += stage.steps
        numbers = ", ".join(f"{k.split('/')[-1]} {v:.3g}" for k, v in metrics.items())
        status(f"  {stage.name}: {stage.steps} steps, {numbers}")


def _run_stage(
    run: RunFolder,
    config: Config,
    policy: QuestPolicy,
    stage: Stage,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    start: int,
    offset: int,
    save: Callable[[int], None],
) -> dict[str, float]:
    """Train one stage from step `start`; returns the metrics of its last stretch."""
    parameters = [p for module in stage.modules for p in module.parameters()]
    draws, threads = stage.draws(rng), _threads(config, policy)
    parts: list[Metrics] = []
    last: dict[str, float] = {}
    every = config.sft.checkpoint_every
    bar: progress[None]
    with (
        progress(stage.steps - start, f"training: {stage.name}") as bar,
        Gradient(parameters, threads) as gradient,
    ):
        for step in range(start, stage.steps):
            for module in stage.modules:
                module.train()
            policy.training = True
            for group in optimiser.param_groups:
                group["lr"] = schedule(step, stage.steps, stage.learning_rate)
            optimiser.zero_grad(set_to_none=True)
            try:
                metrics = gradient.add(partial(_part_loss, stage), _parts(next(draws), threads, rng))
            except NotFiniteError as error:
                raise NotFiniteError(
                    f"{error} at step {step}; lower the learning rate; the last checkpoint in {run.path} is kept"
                ) from error
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.sft.max_grad_norm)
            optimiser.step()
            parts.append(metrics | {"grad_norm": Mean(float(norm))})
            bar.advance()
            if (step + 1) % every == 0 or step + 1 == stage.steps:
                last = {f"{stage.name}/{k}": v for k, v in values(merge(parts)).items()}
                run.log(offset + step + 1, last | {"learning_rate": optimiser.param_groups[0]["lr"]})
                save(step + 1)
                parts = []
    policy.eval()
    return last


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a batch that a thread works on.

    Attributes:
        rows: int `[b]`.
        share: of the batch.
        seed: of its dropout and augmentation; None: torch's generator, when the part is the whole.
    """

    rows: np.ndarray
    share: float
    seed: int | None


def _threads(config: Config, policy: QuestPolicy) -> int:
    """Parts of a batch that are worked on side by side: one where it must stay whole, for batch statistics or a GPU."""
    whole = policy.device.type != "cpu" or any(isinstance(m, torch.nn.BatchNorm2d) for m in policy.modules())
    return 1 if whole else config.sft.threads


def _parts(rows: np.ndarray, threads: int, rng: np.random.Generator) -> list[_Part]:
    if threads == 1:
        return [_Part(rows, 1.0, None)]
    cut = [part for part in np.array_split(rows, threads) if len(part)]
    return [_Part(part, len(part) / len(rows), int(rng.integers(2**63))) for part in cut]


def _part_loss(stage: Stage, part: _Part) -> tuple[torch.Tensor, Metrics]:
    generator = None if part.seed is None else torch.Generator().manual_seed(part.seed)
    with drawing_from(generator):
        loss, metrics = stage.loss(part.rows)
    if not torch.isfinite(loss):
        raise NotFiniteError(f"the loss of stage {stage.name} became {loss.item()}")
    return loss * part.share, metrics


def babble(policy: QuestPolicy, seed: int, steps: int = 300) -> None:
    """Give a policy without demonstrations skills to choose from: fit its autoencoder to random straight movements."""
    rng = np.random.default_rng([seed, 0xBABB1E])
    shape = (128, 1, policy.config.action_dim)
    optimiser = torch.optim.AdamW(policy.autoencoder.parameters(), lr=3e-3)
    mask = torch.ones(128, policy.config.chunk, dtype=torch.bool)
    policy.autoencoder.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for _ in range(steps):
            chunks = torch.from_numpy(rng.uniform(-1, 1, shape)).float().expand(-1, policy.config.chunk, -1)
            loss, _ = policy.autoencoder_loss(chunks, mask)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    policy.eval()


def replay_autoencoded(policy: QuestPolicy, config: Config, task: str, states: int = 10, seed: int = 0) -> Mean:
    """Success of the scripted expert when each of its chunks passes through the skill autoencoder first.

    What the policy could do with these skills if it saw everything and chose the best ones: a bound on perception-free
    control. The expert looks again after each chunk; a second simulator, brought to the same place by the same actions,
    is where it plans.

    Returns:
        successes over `states` training states.
    """
    (key,) = task_keys(config.sim, (task,))
    factory, execute = simulator_factory(config.sim), policy.config.execute
    with factory(key) as sim, factory(key) as ahead:
        assert isinstance(ahead, Demonstrator)
        results = []
        for state in sim.initial_states(states, seed, "train"):
            sim.reset(state)
            executed: list[np.ndarray] = []
            result = None
            while result is None or not result.done:
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
