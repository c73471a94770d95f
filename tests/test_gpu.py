"""What changes on a GPU: graphs of the token loop, copies for workers, a run that trains there. Needs a CUDA device."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from policies.policy_fixtures import make_observation, make_policy
from toy_runs import initial_states, toy_config

from ript.build import make_policy as policy_of
from ript.build import task_keys
from ript.config.sections import Config
from ript.policies.loading import load_policy
from ript.rl import train_rl
from ript.rollout.local.processes import pack_policy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def generators(n: int) -> list[np.random.Generator]:
    return [np.random.default_rng([7, i]) for i in range(n)]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 8, 20])
def test_a_replayed_graph_does_what_the_policy_does_on_the_cpu(rows: int, greedy: bool) -> None:
    policy, observation = make_policy(temperature=0.9, top_k=5), make_observation(rows)
    expected = policy.act(observation, generators(rows), greedy=greedy)
    policy.to("cuda")
    for _ in range(2):  # captured, and replayed
        chunk = policy.act(observation, generators(rows), greedy=greedy)
        np.testing.assert_array_equal(chunk.sample, expected.sample)
        np.testing.assert_allclose(chunk.log_prob, expected.log_prob, atol=1e-4)
        np.testing.assert_allclose(chunk.actions, expected.actions, atol=1e-4)


def test_a_graph_follows_the_weights_and_the_temperature() -> None:
    policy, observation = make_policy().to("cuda"), make_observation(6)
    prefix = policy.prefix(observation).detach()
    before = policy.generate(prefix)[1].clone()
    with torch.no_grad():
        policy.prior.head.bias += torch.arange(9.0, device="cuda")
    torch.testing.assert_close(policy.generate(prefix)[1][:, 0], before[:, 0] + torch.arange(9.0, device="cuda"))
    uniforms = torch.from_numpy(np.random.default_rng(0).random((6, 2))).to("cuda")
    for temperature in (0.3, 3.0):
        other = policy.configured(temperature=temperature)
        tokens, _ = other.generate(prefix, uniforms)
        torch.testing.assert_close(tokens, other.generate(prefix, uniforms, graphs=False)[0])


def test_workers_get_a_copy_on_the_cpu_without_graphs() -> None:
    policy = make_policy().to("cuda")
    policy.act(make_observation(2), generators(2))
    copied = pickle.loads(pack_policy(policy))
    assert {p.device.type for p in copied.parameters()} == {"cpu"} and policy.device.type == "cuda"
    assert copied == make_policy()


@pytest.mark.parametrize("rollout", [{"workers": 0}, {"workers": 2}, {"workers": 2, "inference": "central"}])
def test_a_run_trains_on_the_gpu(rollout: dict, tmp_path: Path) -> None:
    config: Config = toy_config(
        iterations=2,
        device="cuda",
        sampling={"group_size": 8, "groups": 4, "max_attempts": 12},
        rollout=rollout,
        policy={"rl_trains": "prior+adapter", "entropy": 1.0},
    )
    with initial_states(config.sim, task_keys(config.sim, config.tasks), 0) as source:
        policy = policy_of(config, source.spec, 0)
        policy.remember(source.task(source.tasks[0]).instruction, torch.ones(policy.config.language_dim))
    result = train_rl(config, policy, tmp_path / "run")
    assert result.iterations == 2
    trained = load_policy(result.policy)
    assert trained != load_policy(tmp_path / "run" / "start")
    document = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "first_ratio_deviation" in document
