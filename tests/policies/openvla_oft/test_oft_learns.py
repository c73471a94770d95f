"""A tiny policy of the same classes, from demonstrations to post-training, on the toy suite."""

import contextlib
import copy
import dataclasses
import functools
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oft_policies import generators

from ript.core.errors import ConfigError, PolicyError
from ript.core.types import SimulatorSpec
from ript.demos.collect import collect_demos
from ript.demos.demo_set import open_demos
from ript.demos.windows import Windows
from ript.learn.batch import make_batch
from ript.learn.rate import make_optimiser
from ript.learn.stages import StageSettings, run_stages
from ript.learn.update import update
from ript.policies.openvla_oft.checkpoint import load
from ript.policies.openvla_oft.fresh import new_policy, statistics_of, take_statistics
from ript.policies.openvla_oft.stages import make_stages
from ript.rollout.pool import make_pool
from ript.rollout.sampling import collect_groups
from ript.sims.registry import make_simulator

TASK = "toy/reach-centre"
SIMULATOR = functools.partial(make_simulator, image_size=16, horizon=16)
TRAINING = SimpleNamespace(
    policy_batch=16,
    policy_learning_rate=1.5e-3,
    finetune_learning_rate=1e-3,
    finetune_share=0.5,
    scale_batch=16,
    scale_learning_rate=1e-2,
    stage_steps=lambda **counts: {"policy": 90, "finetune": 0, "scale": 30},
)


class Said:
    """A journal that keeps what is said."""

    def __init__(self):
        self.rows = []

    def load_checkpoint(self):
        return None

    def save_checkpoint(self, iteration, state): ...

    def log(self, iteration, row):
        self.rows.append(row)

    def progress(self, total, what):
        return contextlib.nullcontext(SimpleNamespace(advance=lambda: None))

    def say(self, line): ...


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    path = tmp_path_factory.mktemp("demos") / "toy.hdf5"
    collect_demos(SIMULATOR, [TASK], 12, path, every=1)
    return Windows(open_demos([path]), 4)


@pytest.fixture(scope="module")
def trained(windows):
    """(a policy that has gone through its stages, what was logged)."""
    policy = new_policy("tiny", windows.spec, seed=0)
    take_statistics(policy, windows)
    stages = make_stages(policy, TRAINING, windows, [], fresh=True)
    said = Said()
    settings = StageSettings(seed=0, threads=1, weight_decay=0.0, max_grad_norm=1.0, warmup=0.1, checkpoint_every=10)
    run_stages(said, policy, stages, settings)
    return policy, said.rows


def with_adapter(policy, **settings):
    """A copy of it with one."""
    return copy.deepcopy(policy).with_adapter(2, 1.0).configured(**settings)


def test_actions_and_then_their_scales_are_learned_from_demonstrations(trained):
    _, rows = trained
    errors, scales = ([row[name] for row in rows if name in row] for name in ("policy/action_l1", "scale/action_nll"))
    assert errors[-1] < 0.5 * errors[0]
    assert scales[-1] < scales[0] - 0.1


def test_new_statistics_are_the_first_and_the_99th_percentile_of_demonstrated_actions(windows):
    actions = np.random.default_rng(0).normal(size=(50, 8, 2)).astype(np.float32)
    mask = np.ones((50, 8), bool)
    mask[:, 6:], actions[:, 6:] = False, 100.0  # filled up, not demonstrated
    found = statistics_of(Demonstrated(windows, actions, mask))
    for bound, percent in ((found.action_low, 1), (found.action_high, 99)):
        np.testing.assert_allclose(bound, np.percentile(actions[mask].astype(np.float64), percent, axis=0))


class Demonstrated:
    """Demonstrations with other actions."""

    def __init__(self, windows, actions, mask):
        self.tasks, self.statistics = windows.tasks, windows.statistics
        self.action_chunks = lambda: (actions, mask)


def test_only_the_scale_head_changes_in_its_stage(windows):
    policy = new_policy("tiny", windows.spec, seed=0)
    take_statistics(policy, windows)
    (_, stage) = make_stages(policy, TRAINING, windows, [], fresh=True)
    before = {name: tensor.clone() for name, tensor in policy.network.state_dict().items()}
    run_stages(
        Said(),
        policy,
        [stage],
        StageSettings(seed=0, threads=1, weight_decay=0.0, max_grad_norm=1.0, warmup=0.1, checkpoint_every=10),
    )
    changed = {name for name, tensor in policy.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.partition(".")[0] for name in changed} == {"scale_head"}


def test_losses_of_parts_add_up_to_that_of_the_batch(windows, trained):
    policy, _ = trained
    rows = np.arange(len(windows))[-9:]  # the last ones run past the end of their demonstration
    executed = windows.executed(rows)
    assert executed < 9 * 4
    parts = [windows.batch(part) for part in (rows[:4], rows[4:])]
    whole, _ = policy.loss(windows.batch(rows))
    torch.testing.assert_close(sum(policy.loss(part, actions=executed)[0] for part in parts), whole)


def rollouts(policy, groups=4):
    with make_pool(SIMULATOR, policy, workers=0, slots=16) as pool, SIMULATOR(TASK) as simulator:
        states = itertools.cycle(simulator.initial_states(groups))
        found = collect_groups(
            pool, states, group_size=4, quota=groups, max_attempts=groups, seed=(0, 0), dynamic=False
        )
    return found.groups


def test_an_adapter_is_put_beside_shared_weights_and_acts_as_before(windows, trained):
    policy, _ = trained
    adapted = policy.with_adapter(2, 1.0)
    observed = windows.batch(np.arange(2)).observation
    np.testing.assert_array_equal(adapted.predict(observed)[0], policy.predict(observed)[0])
    assert policy.config.rank == 0 and not any(".lora_" in name for name in policy.network.state_dict())
    mine, theirs = policy.network.state_dict(), adapted.network.state_dict()
    assert all(tensor.data_ptr() == theirs[name].data_ptr() for name, tensor in mine.items())
    assert adapted == policy.with_adapter(2, 1.0)


@pytest.mark.parametrize("terms, size", [("action", 4), ("dimension", 8)])
def test_practice_updates_adapter_and_head_and_starts_at_a_ratio_of_one(trained, terms, size):
    policy = with_adapter(trained[0], terms=terms, scale_clip=(-5.0, 0.5))
    groups = rollouts(policy)
    (first, *_) = groups[0].rollouts
    assert first.log_prob.shape[1] == size and set(first.rollout_inputs) == {"prompt"}
    before = {name: tensor.clone() for name, tensor in policy.network.state_dict().items()}
    optimiser = make_optimiser(policy, learning_rate=1e-3)
    batch = make_batch(groups)
    result = update(policy, optimiser, batch, epochs=1, generator=None, minibatch_decisions=len(batch), micro_batch=7)
    assert result.metrics["first_ratio_deviation"].value < 1e-4
    changed = {name for name, tensor in policy.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and {name.partition(".")[0] for name in changed} <= {"language_model", "action_head"}
    assert all(".lora_" in name for name in changed if name.startswith("language_model"))
    assert any(".lora_" in name for name in changed)


def test_practice_of_the_head_alone_keeps_hidden_states_instead_of_pictures(trained):
    acting = copy.deepcopy(trained[0])
    learning = {"scale_clip": (-5.0, 0.5), "temperature": 3.0, "execute": 3}
    pictures, policy = acting.configured(**learning), acting.configured(rl_trains="head", **learning)
    groups = rollouts(policy, groups=8)
    for mine, other in zip(groups, rollouts(pictures, groups=8), strict=True):
        for a, b in zip(mine.rollouts, other.rollouts, strict=True):
            np.testing.assert_allclose(a.sample, b.sample, atol=1e-5)
            np.testing.assert_allclose(a.log_prob, b.log_prob, atol=1e-4)
            assert set(a.inputs) == {"hidden"} and not a.rollout_inputs and "pictures" in b.inputs
    before = {name: tensor.clone() for name, tensor in policy.network.state_dict().items()}
    optimiser, batch = make_optimiser(policy, learning_rate=1e-3), make_batch(groups)
    result = update(policy, optimiser, batch, epochs=1, generator=None, minibatch_decisions=len(batch), micro_batch=7)
    assert result.metrics["first_ratio_deviation"].value < 1e-4
    changed = {name for name, tensor in policy.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and {name.partition(".")[0] for name in changed} == {"action_head"}


def test_in_bfloat16_hidden_states_are_kept_to_the_bit_and_the_policy_is_read_back_as_it_acted(
    windows, trained, tmp_path
):
    full = copy.deepcopy(trained[0]).configured(rl_trains="head")
    policy = full.at_precision("bfloat16")
    assert full.network.dtype == torch.float32 and policy.network.action_head is not full.network.action_head
    assert policy.network.action_head.model.fc1.weight is full.network.action_head.model.fc1.weight
    observed = windows.batch(np.arange(3)).observation
    hidden, chunk = policy.hidden(policy.inputs(observed)), policy.act(observed, generators(3))
    assert hidden.dtype == torch.bfloat16
    assert 2 * chunk.inputs["hidden"].nbytes == full.act(observed, generators(3)).inputs["hidden"].nbytes
    inputs = {name: torch.from_numpy(array) for name, array in chunk.inputs.items()}
    assert torch.equal(policy.hidden(inputs), hidden)
    np.testing.assert_array_equal(policy.log_prob(inputs, torch.from_numpy(chunk.sample))[0].detach(), chunk.log_prob)
    np.testing.assert_allclose(policy.predict(observed)[0], full.predict(observed)[0], atol=0.05)
    policy.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again == policy
    np.testing.assert_array_equal(again.act(observed, generators(3)).sample, chunk.sample)


def test_recomputed_activations_change_no_gradient(trained):
    batch, gradients = make_batch(rollouts(with_adapter(trained[0]))), []
    for forward, recompute in itertools.product(("official", "two_pass"), (False, True)):
        policy = with_adapter(trained[0], recompute=recompute, forward=forward)
        groups = policy.rl_parameters()
        rows = batch.take(torch.arange(5))
        policy.log_prob(rows.inputs, rows.sample)[0].sum().backward()
        gradients.append([p.grad for group in groups for p in group["params"] if p.grad is not None])
    assert gradients[0] and all(torch.equal(a, b) for a, b in zip(gradients[0], gradients[1], strict=True))
    assert gradients[2] and all(torch.equal(a, b) for a, b in zip(gradients[2], gradients[3], strict=True))


def test_the_head_may_learn_at_a_rate_of_its_own(trained):
    policy = with_adapter(trained[0], head_rate=1e-5)
    optimiser = make_optimiser(policy, learning_rate=1e-3)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    names = {name: rates[id(p)] for name, p in policy.network.named_parameters() if id(p) in rates}
    assert {rate for name, rate in names.items() if name.startswith("action_head.")} == {1e-5}
    assert {rate for name, rate in names.items() if ".lora_" in name} == {1e-3}
    assert set(names) == set(policy.weights())


def test_practice_makes_what_succeeded_likelier(trained):
    policy = with_adapter(trained[0], scale_clip=(-5.0, 0.5), temperature=3.0)
    batch = make_batch(rollouts(policy, groups=8))
    optimiser = make_optimiser(policy, learning_rate=3e-3)
    rows = batch.take(torch.arange(len(batch)))

    def gain():
        with torch.no_grad():
            log_prob, _ = policy.log_prob(rows.inputs, rows.sample)
        return ((log_prob - rows.old_log_prob) * rows.mask).sum(-1) @ rows.advantage

    update(policy, optimiser, batch, epochs=2, generator=None, minibatch_decisions=len(batch))
    assert gain() > 0.1


def test_a_policy_made_here_is_saved_whole_and_comes_back_to_the_bit(windows, trained, tmp_path):
    policy, _ = trained
    policy = with_adapter(policy)
    policy.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again == policy and again.config.base is None
    observed = windows.batch(np.arange(3)).observation
    mine, theirs = (p.act(observed, generators(3)) for p in (policy, again))
    np.testing.assert_array_equal(mine.sample, theirs.sample)
    other = dataclasses.replace(observed, instruction=("Something else entirely.",) * 3)
    np.testing.assert_array_equal(policy.predict(other)[0], again.predict(other)[0])


def test_words_of_its_instructions_are_few_tokens_and_others_are_read_bytewise(windows, trained):
    policy, _ = trained
    known, strange = policy.prompts([windows.tasks[0].instruction, "Jump über the Zaun!"])
    assert len(known) < 30 < len(strange) + 10
    assert max(known + strange) < policy.config.sizes.llama.vocabulary


def test_a_new_policy_is_drawn_from_its_seed_alone(windows):
    torch.manual_seed(5)
    one = new_policy("tiny", windows.spec, seed=3)
    torch.manual_seed(6)
    assert one == new_policy("tiny", windows.spec, seed=3)
    assert one != new_policy("tiny", windows.spec, seed=4)


@pytest.mark.parametrize("cameras", [{"a": (16, 12)}, {"a": (16, 16), "b": (32, 32)}, {"a": (18, 18)}])
def test_pictures_that_do_not_divide_into_patches_are_refused(cameras):
    spec = SimulatorSpec(suite="toy", cameras=cameras, proprio={"p": 2}, action_dim=2, render={})
    with pytest.raises(ConfigError, match="square pictures of one size"):
        new_policy("tiny", spec, seed=0)


def test_a_picture_of_another_size_is_refused(windows, trained):
    observed = windows.batch(np.arange(1)).observation
    small = dataclasses.replace(observed, images={k: v[:, :8, :8] for k, v in observed.images.items()})
    with pytest.raises(PolicyError, match="a picture of 8 x 8: the policy takes 16 x 16"):
        trained[0].predict(small)
