"""QueST's supervised stages: the skill autoencoder, the policy on all tasks, and fine-tuning toward a few of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch

from ript.core.errors import PolicyError
from ript.core.metrics import Metrics
from ript.core.options import replace
from ript.core.supervised import DemoSource, Stage
from ript.policies.parameters import parameter_groups
from ript.policies.quest.options import QuestTraining
from ript.policies.quest.policy import QuestPolicy


def take_statistics(policy: QuestPolicy, windows: DemoSource, standardise: bool) -> None:
    """Normalise by these demonstrations from now on: object positions always, proprioception with `standardise`.

    Raises:
        PolicyError: they carry no object positions, which the policy's loss needs.
    """
    encoder, statistics = policy.encoder, windows.statistics()
    if standardise:
        encoder.proprio_mean.copy_(torch.as_tensor(statistics.proprio_mean))
        encoder.proprio_std.copy_(torch.as_tensor(statistics.proprio_std))
    if encoder.privileged is not None:
        if statistics.privileged_mean is None or statistics.privileged_std is None:
            raise PolicyError(
                "the demonstrations carry no object positions (obs/privileged), which the policy's loss needs"
            )
        encoder.privileged_mean.copy_(torch.as_tensor(statistics.privileged_mean))
        encoder.privileged_std.copy_(torch.as_tensor(statistics.privileged_std))


def make_stages(
    policy: QuestPolicy, training: QuestTraining, windows: DemoSource, targets: Sequence[str], *, fresh: bool
) -> list[Stage]:
    """The stages on these windows: all three of a fresh policy, or fine-tuning alone; that only with targets."""
    s = training
    if {task.key for task in windows.tasks} <= set(targets):  # which take every batch then
        s = replace(s, finetune_share=1.0)
    chunks, mask = windows.action_chunks()
    steps = s.stage_steps(steps=len(chunks), looks=len(windows), target_looks=windows.windows_of(targets))

    def chunk_draws(rng: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            yield rng.integers(len(chunks), size=s.autoencoder_batch)

    def chunk_loss(rows: np.ndarray, batch: np.ndarray) -> tuple[torch.Tensor, Metrics]:
        executed = int(mask[batch].sum())
        return policy.autoencoder_loss(torch.from_numpy(chunks[rows]), torch.from_numpy(mask[rows]), count=executed)

    def window_draws(weights: dict[str, float] | None) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
        return lambda rng: windows.draws(s.policy_batch, rng, task_weights=weights)

    def window_loss(rows: np.ndarray, batch: np.ndarray, decoder_scale: float = 0.0) -> tuple[torch.Tensor, Metrics]:
        return policy.loss(
            windows.batch(rows),
            decoder_scale=decoder_scale,
            colour_jitter=s.colour_jitter,
            noisy_targets=s.noisy_targets,
            windows=len(batch),
            actions=windows.executed(batch),
        )

    actor = [policy.encoder, policy.prior]
    noisy = [policy.autoencoder] if s.noisy_targets else []
    stages = []
    if fresh:
        stages += [
            Stage(
                name="autoencoder",
                steps=steps["autoencoder"],
                learning_rate=s.autoencoder_learning_rate,
                modules=[policy.autoencoder],
                groups=parameter_groups([policy.autoencoder]),
                draws=chunk_draws,
                loss=chunk_loss,
                judged="reconstruction_l1",
            ),
            Stage(
                name="policy",
                steps=steps["policy"],
                learning_rate=s.policy_learning_rate,
                modules=actor,
                groups=parameter_groups(actor),
                draws=window_draws(None),
                loss=window_loss,
                judged="token_loss",
                noisy=noisy,
            ),
        ]
    if targets:
        tuned = [*actor, policy.autoencoder.decoder] if s.finetune_decoder else actor
        stages.append(
            Stage(
                name="finetune",
                steps=steps["finetune"],
                learning_rate=s.finetune_learning_rate,
                modules=tuned,
                groups=parameter_groups(tuned),
                draws=window_draws(windows.target_weights(targets, s.finetune_share)),
                loss=partial(window_loss, decoder_scale=s.finetune_decoder),
                judged="token_loss",
                noisy=noisy,
            )
        )
    return stages


def babble(policy: QuestPolicy, seed: int, steps: int = 200, batch: int = 32) -> None:
    """Give a policy without demonstrations skills to choose from: fit its autoencoder to random straight movements."""
    rng = np.random.default_rng([seed, 0xBABB1E])
    shape = (batch, 1, policy.config.action_dim)
    optimiser = torch.optim.AdamW(policy.autoencoder.parameters(), lr=3e-3, fused=True)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.0, total_iters=steps)
    mask = torch.ones(batch, policy.config.chunk, dtype=torch.bool)
    policy.autoencoder.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # of dropout
        for _ in range(steps):
            chunks = torch.from_numpy(rng.uniform(-1, 1, shape)).float().expand(-1, policy.config.chunk, -1)
            loss, _ = policy.autoencoder_loss(chunks, mask)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
    policy.eval()
