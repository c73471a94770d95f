"""`make_batch` and `update` on the tiny QueST policy against the reference post-training run."""

import numpy as np
import pytest
import test_quest_golden as quest
import torch

from ript.core.metrics import values
from ript.core.types import Group, InitialState, Rollout, Status, Task
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser
from ript.learn.update import update

LOOP = quest.LOOP
policy = quest.policy  # the fixture


def reference_groups(policy):
    """The 2 groups of 8 recorded rollouts; rows after success are masked."""
    task = Task(suite="golden", name="run", instruction="run", index=0, horizon=24)
    rollouts = []
    for n, reward in enumerate(LOOP["e2e_rewards"].flatten()):
        d, valid = int(LOOP["e2e_recorded_steps"][n]), int(LOOP["e2e_valid_steps"][n])
        prefix, sample = LOOP["e2e_context"][n, :d], LOOP["e2e_tokens"][n, :d]
        inputs = {"task_token": prefix[:, 0], "observation_token": prefix[:, 1]}
        with torch.no_grad():
            log_prob, _ = policy.log_prob(
                {name: torch.from_numpy(token) for name, token in inputs.items()}, torch.from_numpy(sample)
            )
        mask = np.repeat(np.arange(d)[:, None] < valid, sample.shape[1], 1)
        rollouts.append(
            Rollout(
                initial_state_id="",
                index=n % 8,
                status=Status.SUCCESS if reward else Status.FAILURE,
                sample=sample,
                log_prob=log_prob.numpy(),
                mask=mask,
                inputs=inputs,
                decisions=d,
                env_steps=8 * valid,
                policy_version=0,
            )
        )
    state = InitialState(task=task, state=np.zeros(1), origin="sampled")
    return [Group(initial_state=state, rollouts=tuple(rollouts[i : i + 8])) for i in (0, 8)]


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_the_update_ends_at_the_reference_weights(policy, micro_batch):
    batch = make_batch(reference_groups(policy))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimiser = make_optimiser(policy, learning_rate=2e-4, weight_decay=1e-4)
    result = update(
        policy, optimiser, batch, epochs=3, minibatch_trajectories=4, generator=None, micro_batch=micro_batch
    )
    metrics = values(result.metrics)
    tokens = 8 * LOOP["e2e_valid_steps"].reshape(4, 4).sum(1)
    assert metrics["loss"] == pytest.approx(np.average(LOOP["e2e_losses"], weights=np.tile(tokens, 3)), abs=3e-5)
    assert metrics["grad_norm"] == pytest.approx(LOOP["e2e_grad_norms"].mean(), rel=2e-3)
    assert metrics["grad_norm_max"] == pytest.approx(LOOP["e2e_grad_norms"].max(), rel=2e-3)
    assert metrics["first_ratio_deviation"] < 1e-5
    rows = batch.take(torch.arange(len(batch)))
    with torch.no_grad():
        log_prob, _ = policy.log_prob(rows.inputs, rows.sample)
    recorded = np.arange(3)[None] < LOOP["e2e_recorded_steps"][:, None]
    expected = torch.from_numpy(LOOP["e2e_logprobs_after"].reshape(16, 3, 8)[recorded])
    quest.assert_equal(torch.where(rows.mask, log_prob, 1.0), expected.numpy())
    after = dict(policy.named_parameters())
    for name, key in (("prior.head.bias", "e2e_delta_head_bias"), ("prior.norm.weight", "e2e_delta_lnf_weight")):
        delta = (after[name] - before[name]).detach().numpy()
        # the largest change is 2e-3: the tolerance of the other arrays would say little
        np.testing.assert_allclose(delta, LOOP[key], atol=1e-6)
    assert all(torch.equal(after[n], before[n]) for n in before if not n.startswith("prior."))
