"""Policies whose sample is no list of variables: a flow's chain of denoising steps, and one stochastic step of it.

Both draw noise x_0 and denoise it in N Euler steps; spec: Flow-Noise (every step is noisy, all are scored) and Flow-SDE
with one stochastic step (its index is drawn for each decision, the others follow the ODE, one term).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from ript.core.metrics import values
from ript.core.types import ActionChunk, RolloutRequest
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser
from ript.learn.update import update
from ript.rollout.pool import make_pool
from ript.rollout.sampling import collect_groups
from tests.fakes import ACTION_DIM, CHUNK, FakeFactory, fake_state

STEPS, STD = 4, 0.2


class ChainPolicy(torch.nn.Module):
    """Flow-Noise: `sample` is the chain `[B, STEPS + 1, H, A]`, scored by K = STEPS + 1 terms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.velocity = torch.nn.Linear(CHUNK * ACTION_DIM + 2, CHUNK * ACTION_DIM)

    def mean(self, x: torch.Tensor, step: torch.Tensor, task: torch.Tensor) -> torch.Tensor:
        """Of the next state of the chain, `[..., H, A]`, given this one at step `[...]`."""
        time = torch.stack([step / STEPS, task.expand_as(step)], -1)
        return x - self.velocity(torch.cat([x.flatten(-2), time], -1)).unflatten(-1, (CHUNK, ACTION_DIM)) / STEPS

    def draw(self, generators, rows: int) -> torch.Tensor:
        """Noise for the start and each step `[B, STEPS + 1, H, A]`, a row from its own generator."""
        shape = (STEPS + 1, CHUNK, ACTION_DIM)
        return torch.from_numpy(np.stack([g.normal(size=shape) for g in generators])).float()

    @torch.no_grad()
    def act(self, observation, generators, *, greedy=False):
        task = torch.from_numpy(observation.proprio[:, 2])
        noise = self.draw(generators, len(observation))
        chain = [noise[:, 0]]
        for step in range(STEPS):
            mean = self.mean(chain[-1], torch.full((len(noise),), float(step)), task)
            chain.append(mean + STD * noise[:, step + 1])
        sample = torch.stack(chain, 1)
        return ActionChunk(
            actions=(chain[-1] / 4 + 0.5).numpy(),
            sample=sample.numpy(),
            log_prob=self.log_prob({"task": task}, sample)[0].numpy(),
            inputs={},
            rollout_inputs={"task": task.numpy()},
        )

    def log_prob(self, inputs, sample):
        step = torch.arange(STEPS, dtype=torch.float32).expand(len(sample), -1)
        means = self.mean(sample[:, :-1], step, inputs["task"][:, None])
        terms = [Normal(0.0, 1.0).log_prob(sample[:, :1]), Normal(means, STD).log_prob(sample[:, 1:])]
        return torch.cat(terms, 1).flatten(2).sum(-1), None

    def rl_parameters(self):
        return [{"params": list(self.parameters())}]

    def weights(self):
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    def load_weights(self, weights):
        self.load_state_dict(dict(weights))

    def check_simulator(self, spec):
        pass


class StepPolicy(ChainPolicy):
    """Flow-SDE: `sample` is x_{i+1}; the x_i and i that it is drawn given are inputs, and K = 1."""

    @torch.no_grad()
    def act(self, observation, generators, *, greedy=False):
        task = torch.from_numpy(observation.proprio[:, 2])
        index = torch.tensor([float(g.integers(STEPS)) for g in generators])
        noise = self.draw(generators, len(observation))
        x, before, after = noise[:, 0], noise[:, 0], noise[:, 0]
        for step in range(STEPS):
            here = (index == step)[:, None, None]
            mean = self.mean(x, torch.full((len(noise),), float(step)), task)
            before, x = torch.where(here, x, before), torch.where(here, mean + STD * noise[:, step + 1], mean)
            after = torch.where(here, x, after)
        inputs = {"before": before, "index": index}
        return ActionChunk(
            actions=(x / 4 + 0.5).numpy(),
            sample=after.numpy(),
            log_prob=self.log_prob(inputs | {"task": task}, after)[0].numpy(),
            inputs={name: tensor.numpy() for name, tensor in inputs.items()},
            rollout_inputs={"task": task.numpy()},
        )

    def log_prob(self, inputs, sample):
        mean = self.mean(inputs["before"], inputs["index"], inputs["task"])
        return Normal(mean, STD).log_prob(sample).flatten(1).sum(1, keepdim=True), None


@pytest.mark.parametrize(("kind", "terms"), [(ChainPolicy, STEPS + 1), (StepPolicy, 1)])
def test_a_flow_policy_goes_through_rollouts_batch_and_update_and_learns(kind, terms) -> None:
    policy, found = kind(), []
    optimiser = make_optimiser(policy, learning_rate=0.1)
    with make_pool(FakeFactory(), policy, workers=0, slots=16) as pool:
        for version in range(5):
            pool.set_policy(policy.weights(), version)
            states = (fake_state(100 * version + i, chance=0.1) for i in range(40))
            collection = collect_groups(pool, states, group_size=8, quota=8, max_attempts=40, seed=(0, version))
            batch = make_batch(collection.groups)
            (first, *_) = batch.rollouts
            assert first.log_prob.shape == first.mask.shape == (first.decisions, terms) and first.mask.all()
            generator = torch.Generator().manual_seed(version)
            done = update(policy, optimiser, batch, epochs=5, minibatch_decisions=96, generator=generator)
            metrics = values(done.metrics)
            assert metrics["first_ratio_deviation"] < 1e-4 and "entropy" not in metrics
            found.append(values(collection.metrics)["success"])
    assert found[0] < 0.35 and np.mean(found[-2:]) > 0.5


def test_a_flow_policys_chain_comes_back_from_worker_processes_as_it_was_drawn() -> None:
    wanted = [RolloutRequest(initial_state=fake_state(0), index=i, seed=(3,)) for i in range(4)]
    found = []
    for workers in (0, 1):
        with make_pool(FakeFactory(), ChainPolicy(), workers=workers, slots=4) as pool:
            found.append({r.index: r for r in pool.run(iter(wanted))})
    here, there = found
    for index, rollout in here.items():
        assert np.array_equal(rollout.sample, there[index].sample) and rollout.sample.ndim == 4
        assert np.array_equal(rollout.rollout_inputs["task"], there[index].rollout_inputs["task"])
