"""The QueST policy as a `LikelihoodPolicy`: what it draws, what it says about it, and what it learns from."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from policy_fixtures import SENTENCES, SPEC, generators, make_observation, make_policy, repeat, take, tensors

from ript.core.errors import ConfigError, PolicyError
from ript.core.metrics import merge
from ript.core.noise import Noise, drawing_from
from ript.core.types import DemoBatch, SimulatorSpec
from ript.policies.quest.encoders import Adapter
from ript.policies.quest.layers import Attention, Dropout
from ript.policies.quest.policy import QuestPolicy
from ript.policies.vision import ImageEncoder

DENSITIES = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7, "top_k": 3},
    {"top_k": 1},
    {"top_k": 4, "sampling": "published"},
    {"temperature": 0.5, "top_k": 4, "sampling": "published"},
]
PAIRS = torch.tensor(list(itertools.product(range(9), repeat=2)))
"""Every sample that a decision can have, `[81, 2]`."""


# ---------------------------------------------------------------------- one density for acting and learning


@pytest.mark.parametrize("rl_trains", ["prior", "prior+adapter", "prior+encoders"])
@pytest.mark.parametrize("density", DENSITIES, ids=str)
def test_the_log_prob_of_acting_is_the_log_prob_recomputed(density: dict, rl_trains: str) -> None:
    policy = with_adapter(make_policy(**density, rl_trains=rl_trains))
    chunk = policy.act(make_observation(12), generators(12))
    log_prob, entropy = policy.log_prob(*tensors(chunk))
    np.testing.assert_allclose(log_prob.detach().numpy(), chunk.log_prob, atol=1e-5)
    assert log_prob.requires_grad and entropy.shape == log_prob.shape


@pytest.mark.parametrize("rl_trains", ["prior", "prior+adapter", "prior+encoders"])
def test_the_inputs_hold_what_the_trained_part_needs_and_no_more(rl_trains: str) -> None:
    policy = with_adapter(make_policy(rl_trains=rl_trains))
    chunk = policy.act(make_observation(3), generators(3))
    kept = {
        "prior": ({"observation_token"}, {"task_token"}),
        "prior+adapter": ({"features"}, {"language"}),
        "prior+encoders": ({"image/front", "image/wrist", "proprio"}, {"language"}),
    }
    assert (set(chunk.inputs), set(chunk.rollout_inputs)) == kept[rl_trains]
    log_prob, _ = policy.log_prob(*tensors(policy.act(make_observation(3), generators(3))))
    log_prob.sum().backward()
    touched = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == ({"prior"} if rl_trains == "prior" else {"prior", "encoder"})


def test_every_token_shapes_the_first_action_so_all_count_however_much_of_a_chunk_is_executed() -> None:
    policy = make_policy()
    chunk = policy.act(make_observation(4), generators(4))
    assert chunk.term_steps is None
    tokens = torch.from_numpy(chunk.sample)
    for k in range(tokens.shape[1]):
        other = tokens.clone()
        other[:, k] = (other[:, k] + 1) % policy.config.codebook
        with torch.no_grad():
            moved = (policy.autoencoder.decode(other) - policy.autoencoder.decode(tokens))[:, 0].abs().amax(1)
        assert (moved > 1e-4).all()


@pytest.mark.parametrize("rl_trains", ["prior", "prior+adapter", "prior+encoders"])
def test_what_is_kept_once_a_rollout_is_the_same_in_every_batch_to_the_bit(rl_trains: str) -> None:
    policy, look = make_policy(language_dim=384, width=64, rl_trains=rl_trains), make_observation(33)
    look = replace(look, instruction=tuple(f"task {i % 3}" for i in range(33)))
    whole = policy.act(look, generators(33)).rollout_inputs
    for rows in ([0], [5, 2], list(range(0, 33, 3))):
        part = policy.act(take(look, rows), generators(len(rows))).rollout_inputs
        for name, array in part.items():
            np.testing.assert_array_equal(array, whole[name][rows])


def joint(policy: QuestPolicy, **density: object) -> np.ndarray:
    """Probability of every pair under a density, `[81]`, for the first observation."""
    other = policy.configured(**density)
    inputs, _ = tensors(other.act(repeat(make_observation(1), 81), generators(81)))
    with torch.no_grad():
        return other.log_prob(inputs, PAIRS)[0].sum(1).double().exp().numpy()


def drawable(policy: QuestPolicy, k: int) -> np.ndarray:
    """Which pairs have both tokens among the k most likely, bool `[81]`, from the full forward pass."""
    with torch.no_grad():
        logits = policy.prior_logits(policy.prefix(repeat(make_observation(1), 81)), PAIRS)
    ranks = logits.argsort(-1, descending=True).argsort(-1)
    return (ranks.gather(-1, PAIRS[..., None])[..., 0] < k).all(1).numpy()


@pytest.mark.parametrize("density", [{}, {"temperature": 0.5}, {"temperature": 1.3, "top_k": 4}], ids=str)
def test_draws_are_as_frequent_as_the_density_says(density: dict) -> None:
    """Chi-square over all 81 outcomes of 12,000 draws; passes 9,999 in 10,000 right implementations."""
    policy = make_policy(**density)
    expected = joint(policy)
    allowed = drawable(policy, density.get("top_k", 9))
    assert expected[allowed].sum() == pytest.approx(1, abs=1e-5)
    draws = 12_000
    shared = np.random.default_rng(1)
    counts = np.zeros(81)
    for _ in range(4):
        sample = policy.act(repeat(make_observation(1), draws // 4), [shared] * (draws // 4)).sample
        counts += np.bincount(sample[:, 0] * 9 + sample[:, 1], minlength=81)
    assert not counts[~allowed].any()
    common = allowed & (expected * draws >= 5)
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], 1 - expected[common].sum()) * draws
    keep = wanted > 1
    statistic = float(((observed - wanted)[keep] ** 2 / wanted[keep]).sum())
    df = int(keep.sum()) - 1
    critical = df * (1 - 2 / (9 * df) + 3.72 * math.sqrt(2 / (9 * df))) ** 3  # Wilson and Hilferty, p = 1e-4
    assert df >= 10 and statistic < critical


def test_published_sampling_draws_from_the_top_k_and_reports_the_full_softmax() -> None:
    policy = make_policy(temperature=0.7, top_k=3, sampling="published")
    chunk = policy.act(repeat(make_observation(1), 500), generators(500))
    allowed = drawable(policy, 3)
    drawn = chunk.sample[:, 0] * 9 + chunk.sample[:, 1]
    assert allowed[drawn].all()
    full = joint(policy, temperature=1.0, top_k=0, sampling="exact")
    np.testing.assert_allclose(np.exp(chunk.log_prob.sum(1)), full[drawn], rtol=1e-4)
    assert full[allowed].sum() < 0.99  # so it is not the density that was sampled


def test_entropy_is_that_of_the_sampled_density() -> None:
    policy = make_policy(temperature=0.8, top_k=3)
    inputs, _ = tensors(policy.act(repeat(make_observation(1), 9), generators(9)))
    first = torch.stack([torch.arange(9), torch.zeros(9, dtype=torch.long)], 1)
    with torch.no_grad():
        log_prob, entropy = policy.log_prob(inputs, first)
    best = log_prob[:, 0].topk(3)
    p = best.values.double().exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert float(entropy[best.indices[0], 0]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-5)


# ---------------------------------------------------------------------- rows do not know of each other


@pytest.mark.parametrize("greedy", [False, True])
def test_a_batch_of_one_gives_the_row_of_a_batch(greedy: bool) -> None:
    policy, observation = make_policy(top_k=5), make_observation(7)
    whole = policy.act(observation, generators(7), greedy=greedy)
    for row in range(7):
        one = policy.act(take(observation, [row]), [generators(7)[row]], greedy=greedy)
        np.testing.assert_array_equal(one.sample[0], whole.sample[row])
        np.testing.assert_allclose(one.actions[0], whole.actions[row], atol=1e-5)
        np.testing.assert_allclose(one.log_prob[0], whole.log_prob[row], atol=1e-5)
        for name in whole.inputs:
            np.testing.assert_allclose(one.inputs[name][0], whole.inputs[name][row], atol=1e-5)
    inputs, sample = tensors(whole)
    full = policy.log_prob(inputs, sample)[0]
    alone = torch.cat(
        [policy.log_prob({k: v[r : r + 1] for k, v in inputs.items()}, sample[r : r + 1])[0] for r in range(7)]
    )
    torch.testing.assert_close(alone, full, atol=1e-5, rtol=0)


def test_results_do_not_depend_on_the_order_of_a_batch() -> None:
    policy, observation, order = make_policy(), make_observation(8), [5, 2, 7, 0, 1, 6, 3, 4]
    straight = policy.act(observation, generators(8))
    shuffled = policy.act(take(observation, order), [generators(8)[i] for i in order])
    np.testing.assert_array_equal(shuffled.sample, straight.sample[order])
    np.testing.assert_allclose(shuffled.actions, straight.actions[order], atol=1e-5)


def test_every_row_draws_from_its_own_generator_alone() -> None:
    policy, own = make_policy(), generators(3)
    policy.act(make_observation(3), own)
    assert [g.random() for g in own] == [g.random(3)[2] for g in generators(3)]  # two tokens, two numbers


def test_every_row_needs_a_generator() -> None:
    with pytest.raises(ConfigError, match="3 observations need as many generators, got 2"):
        make_policy().act(make_observation(3), generators(2))


@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_actions_that_are_not_finite_do_not_become_finite_by_being_clamped(broken: float) -> None:
    policy = make_policy()
    well = policy.act(make_observation(3), generators(3)).actions
    with torch.no_grad():
        policy.autoencoder.action_out.bias[1] = broken
    actions = policy.act(make_observation(3), generators(3)).actions
    assert np.abs(well).max() <= 1
    assert not np.isfinite(actions[..., 1]).any()
    np.testing.assert_array_equal(actions[..., 0], well[..., 0])


# ---------------------------------------------------------------------- greedy, cache, top k


def test_greedy_takes_the_most_likely_token_each_time_and_leaves_the_generators_alone() -> None:
    policy, untouched = make_policy(temperature=1.5), generators(20)
    chunk = policy.act(make_observation(20), untouched, greedy=True)
    inputs, sample = tensors(chunk)
    logits = policy.prior_logits(policy.prefix(inputs), sample)
    np.testing.assert_array_equal(logits.argmax(-1).numpy(), chunk.sample)
    assert len(np.unique(chunk.sample, axis=0)) > 1
    likeliest = (logits / 1.5).log_softmax(-1).amax(-1).detach()
    np.testing.assert_allclose(chunk.log_prob, likeliest, rtol=1e-5, atol=1e-6)
    assert [g.random() for g in untouched] == [g.random() for g in generators(20)]
    assert policy.act(make_observation(20), (), greedy=True).sample.tolist() == chunk.sample.tolist()


def test_generation_with_a_cache_gives_the_logits_of_the_full_forward_pass() -> None:
    policy = make_policy(chunk=16)  # four tokens
    prefix = policy.prefix(make_observation(5)).detach()
    drawn = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (5, 4)))
    tokens, logits = policy.prior.generate(prefix, lambda logits, step: drawn[:, step])
    torch.testing.assert_close(tokens, drawn)
    torch.testing.assert_close(logits, policy.prior_logits(prefix, drawn).detach(), atol=1e-5, rtol=0)


def test_a_token_that_leaves_the_top_k_keeps_a_finite_smooth_ratio_and_its_gradient() -> None:
    policy = make_policy(top_k=3, temperature=0.9)
    chunk = policy.act(make_observation(1), generators(1))
    inputs, sample = tensors(chunk)
    logits = policy.prior_logits(policy.prefix(inputs), sample)[0, 0].detach() / 0.9
    token = int(sample[0, 0])
    others = logits[torch.arange(9) != token].sort(descending=True).values
    values = []
    for level in np.linspace(float(others[0]) + 1, float(others[-1]) - 1, 60):
        policy.prior.zero_grad()
        with torch.no_grad():
            saved = policy.prior.head.bias.clone()
            policy.prior.head.bias[token] += 0.9 * (level - float(logits[token]))
        first = policy.log_prob(inputs, sample)[0][0, 0]
        first.backward()
        log_prob, gradient = float(first.detach()), policy.prior.head.bias.grad
        assert math.isfinite(log_prob) and gradient is not None
        assert torch.isfinite(gradient).all() and float(gradient[token]) > 0
        # By hand: the token against the two best of the others, whatever its own rank.
        by_hand = level - math.log(math.exp(level) + float(others[:2].exp().sum()))
        assert log_prob == pytest.approx(by_hand, abs=1e-4)
        values.append(log_prob)
        with torch.no_grad():
            policy.prior.head.bias.copy_(saved)
    steps = -np.diff(values)
    assert (steps > 0).all()  # less and less likely, without a jump as it crosses rank 3
    assert steps.max() < 1.5 * (float(others[0]) - float(others[-1]) + 2) / 59


# ---------------------------------------------------------------------- actions


def test_actions_are_decoded_cut_to_what_is_executed_and_clipped() -> None:
    policy = make_policy()
    with torch.no_grad():
        policy.autoencoder.action_out.weight.mul_(20)
    chunk = policy.act(make_observation(5), generators(5))
    decoded = policy.autoencoder.decode(torch.from_numpy(chunk.sample)).detach().numpy()
    assert np.abs(decoded).max() > 1
    assert chunk.actions.shape == (5, 6, 2) and chunk.actions.dtype == np.float32
    np.testing.assert_allclose(chunk.actions, np.clip(decoded[:, :6], -1, 1), atol=1e-6)


def test_every_token_decodes_to_the_same_code_that_encoding_quantised_to() -> None:
    autoencoder = make_policy().autoencoder
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (64, 8, 2)).astype(np.float32))
    codes, tokens = autoencoder.fsq(autoencoder.latents(actions))
    assert len(tokens.unique()) >= 3 and int(tokens.max()) < 9
    torch.testing.assert_close(autoencoder.fsq.lookup(tokens), codes, atol=1e-6, rtol=0)


# ---------------------------------------------------------------------- supervised losses


def chunks(rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = np.random.default_rng(0)
    actions = torch.from_numpy(g.uniform(-1, 1, (rows, 8, 2)).astype(np.float32))
    mask = torch.arange(8)[None] < torch.from_numpy(g.integers(1, 9, rows))[:, None]
    return actions, mask


def test_the_autoencoder_loss_is_the_mean_over_actions_that_are_there() -> None:
    policy = make_policy()
    actions, mask = chunks()
    assert 0 < int(mask.sum()) < mask.numel()
    loss, metrics = policy.autoencoder_loss(actions, mask)
    reconstruction = policy.autoencoder(actions)[0].detach().numpy()
    errors = [abs(reconstruction[b, t, a] - float(actions[b, t, a])) for b, t, a in np.ndindex(6, 8, 2) if mask[b, t]]
    assert float(loss.detach()) == pytest.approx(np.mean(errors), rel=1e-5)
    assert metrics["reconstruction_l1"].value == pytest.approx(np.mean(errors), rel=1e-5)


def test_padding_gets_no_gradient_of_its_reconstruction() -> None:
    policy = make_policy()
    actions, mask = chunks()
    kept: list[torch.Tensor] = []

    def keep(module: object, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    policy.autoencoder.action_out.register_forward_hook(keep)
    policy.autoencoder_loss(actions, mask)[0].backward()
    gradient = kept[0].grad
    assert gradient is not None and not gradient[~mask].any() and gradient[mask].all()


def test_loss_metrics_of_parts_merge_to_those_of_the_whole() -> None:
    policy = make_policy(privileged_dim=2)
    actions, mask = chunks()
    whole = policy.autoencoder_loss(actions, mask)[1]["reconstruction_l1"]
    parts = merge([policy.autoencoder_loss(actions[i : i + 2], mask[i : i + 2])[1] for i in (0, 2, 4)])
    assert parts["reconstruction_l1"].value == pytest.approx(whole.value, rel=1e-5)
    whole_loss = policy.loss(demo_batch(6))[1]
    merged = merge([policy.loss(demo_batch(6, [0]))[1], policy.loss(demo_batch(6, [1, 2, 3, 4, 5]))[1]])
    for name in ("token_loss", "token_accuracy", "privileged_loss"):
        assert merged[name].value == pytest.approx(whole_loss[name].value, rel=1e-4), name


def demo_batch(total: int, rows: list[int] | None = None) -> DemoBatch:
    actions, mask = chunks(total)
    rows = list(range(total)) if rows is None else rows
    privileged = np.random.default_rng(5).normal(size=(total, 2)).astype(np.float32)
    return DemoBatch(
        observation=take(make_observation(total), rows),
        actions=actions.numpy()[rows],
        mask=mask.numpy()[rows],
        privileged=privileged[rows],
    )


def test_the_policy_loss_is_the_cross_entropy_of_the_encoded_tokens() -> None:
    policy, batch = make_policy(), demo_batch(6)
    loss, metrics = policy.loss(batch)
    targets = policy.autoencoder.encode(torch.from_numpy(batch.actions))
    log_prob = policy.log_prob(policy.inputs(batch.observation), targets)[0]
    assert float(loss.detach()) == pytest.approx(-float(log_prob.detach().mean()), rel=1e-5)
    assert set(metrics) == {"token_loss", "token_accuracy"}
    loss.backward()
    assert all(p.grad is None for p in policy.autoencoder.parameters())
    assert policy.encoder.task.weight.grad is not None


def test_targets_are_encoded_without_dropout_in_every_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch = make_policy(autoencoder_dropout=0.5).train(), demo_batch(6)
    seen: list[torch.Tensor] = []
    encode = policy.autoencoder.encode
    monkeypatch.setattr(policy.autoencoder, "encode", lambda actions: (seen.append(encode(actions)), seen[-1])[1])
    policy.loss(batch)
    torch.testing.assert_close(seen[0], policy.eval().autoencoder.encode(torch.from_numpy(batch.actions)))
    assert len(seen) == 2
    policy.train()
    noisy, again = (policy.autoencoder.latents(torch.from_numpy(batch.actions)) for _ in range(2))
    assert not torch.equal(noisy, again)  # elsewhere there is dropout


def test_dropout_in_attention_is_on_its_weights() -> None:
    """With all of them dropped only the projection's bias comes through; with none, what torch's kernel computes."""
    torch.manual_seed(0)
    attention, x = Attention(8, 2, 1 - 1e-6).train(), torch.randn(3, 5, 8)
    torch.testing.assert_close(attention(x, causal=True), attention.out_proj.bias.expand(3, 5, 8))
    for causal in (False, True):
        attention.dropout.p = 1e-12
        written_out = attention.train()(x, causal=causal)
        assert attention.dropout.drops
        torch.testing.assert_close(written_out, attention.eval()(x, causal=causal))


def test_dropout_keeps_the_mean_and_draws_from_the_generator_of_its_thread() -> None:
    dropout, x = Dropout(0.25).train(), torch.ones(200, 200)

    def drawn(seed: int) -> torch.Tensor:
        with drawing_from(Noise(seed)):
            return dropout(x)

    kept = drawn(0)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(2) as threads:
        beside = list(threads.map(drawn, [0, 1] * 8))
    assert all(torch.equal(mask, kept) for mask in beside[::2])
    assert all(torch.equal(mask, beside[1]) for mask in beside[1::2]) and not torch.equal(beside[1], kept)
    assert torch.equal(torch.get_rng_state(), state)
    dropout(x)
    assert not torch.equal(torch.get_rng_state(), state)  # torch's own, outside


def test_a_loss_repeats_itself_with_the_same_generator() -> None:
    """Dropout, augmentation and drawn tokens: all randomness of a training step."""
    policy, batch = make_policy(dropout=0.2).train(), demo_batch(6)

    def loss(seed: int) -> float:
        with drawing_from(Noise(seed)):
            return float(policy.loss(batch, decoder_scale=1.0)[0].detach())

    state = torch.get_rng_state()
    assert loss(0) == loss(0) != loss(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_auxiliary_loss_is_added_where_object_positions_are_known() -> None:
    policy, batch = make_policy(privileged_dim=2), demo_batch(6)
    with torch.no_grad():
        policy.encoder.privileged_mean.fill_(0.5)
        policy.encoder.privileged_std.fill_(2.0)
    loss, metrics = policy.loss(batch)
    assert float(loss.detach()) == pytest.approx(
        metrics["token_loss"].value + metrics["privileged_loss"].value, rel=1e-5
    )
    assert policy.encoder.privileged is not None and batch.privileged is not None
    inputs = policy.inputs(batch.observation)
    features = policy.encoder.features({k: inputs[f"image/{k}"] for k in SPEC.cameras}, inputs["proprio"])
    error = np.abs(policy.encoder.privileged(features).detach().numpy() - (batch.privileged - 0.5) / 2)
    huber = np.where(error < 1, 0.5 * error**2, error - 0.5).mean()
    assert metrics["privileged_loss"].value == pytest.approx(huber, rel=1e-4)
    without = DemoBatch(observation=batch.observation, actions=batch.actions, mask=batch.mask)
    assert "privileged_loss" not in policy.loss(without)[1]


def test_the_autoencoders_dropout_acts_on_targets_only_where_it_is_asked_to() -> None:
    policy, batch = make_policy(dropout=0.0, autoencoder_dropout=0.5), demo_batch(6)

    def losses(**settings: bool) -> set[float]:
        with drawing_from(Noise(0)):
            return {float(policy.loss(batch, **settings)[0].detach()) for _ in range(5)}  # type: ignore[arg-type]

    policy.autoencoder.train()  # and the rest in evaluation mode: no augmentation
    assert len(losses()) == 1 and len(losses(noisy_targets=True)) > 1
    policy.autoencoder.eval()
    assert losses() == losses(noisy_targets=True)


def test_pictures_are_augmented_in_training_mode_only() -> None:
    policy, batch = make_policy(dropout=0.0), demo_batch(6)
    assert float(policy.loss(batch)[0].detach()) == float(policy.loss(batch)[0].detach())
    policy.train()
    torch.manual_seed(0)
    assert float(policy.loss(batch)[0].detach()) != float(policy.loss(batch)[0].detach())


# ---------------------------------------------------------------------- what post-training updates, what workers get


def with_adapter(policy: QuestPolicy, seed: int = 5) -> QuestPolicy:
    """Prepared by decisions of its own, when it is to have an adapter, with a linear layer that is no longer zero."""
    other = policy.with_adapter(tensors(policy.act(make_observation(40, seed=seed), generators(40)))[0])
    if other.encoder.adapter is not None:
        torch.nn.init.normal_(other.encoder.adapter.linear.weight, std=0.1)
    return other


def test_a_policy_that_was_given_an_adapter_acts_as_before_and_is_another_one() -> None:
    policy = make_policy(rl_trains="prior+adapter")
    before = policy.state_dict()
    names = set(before)
    prepared = policy.with_adapter(tensors(policy.act(make_observation(40), generators(40)))[0])
    assert prepared.config.adapter == 10 and policy.config.adapter == 0  # a quarter of 40 decisions
    assert policy.encoder.adapter is None and set(policy.state_dict()) == names
    added = set(prepared.state_dict()) - names
    assert added == {f"encoder.adapter.{name}" for name in ("mean", "basis", "linear.weight")}
    assert prepared.prior is policy.prior  # trained in place
    mine, other = (p.act(make_observation(6), generators(6)) for p in (policy, prepared))
    assert np.array_equal(mine.sample, other.sample) and np.array_equal(mine.actions, other.actions)
    assert prepared.with_adapter({}) is prepared and make_policy(rl_trains="prior").with_adapter({}).config.adapter == 0


def test_an_adapter_sees_what_varies_within_tasks_with_unit_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    task = torch.arange(3).repeat_interleave(200)
    scale = torch.tensor([100.0, 1.0, 0.01, 1.0])
    features = torch.randn(600, 4, generator=generator) * scale + 50.0 * task[:, None]
    adapter = Adapter(4, 3, 2)
    adapter.fit(features, task)
    seen = (features - adapter.mean) @ adapter.basis
    within = torch.stack([seen[task == t] - seen[task == t].mean(0) for t in range(3)]).flatten(0, 1)
    torch.testing.assert_close(within.T @ within / 600, torch.eye(3), atol=1e-3, rtol=0)
    assert adapter(features).abs().max() == 0  # zero until it is trained


def test_an_adapter_of_features_that_do_not_vary_stays_finite() -> None:
    adapter = Adapter(4, 2, 2)
    adapter.fit(torch.ones(8, 4), torch.zeros(8, dtype=torch.int64))
    assert torch.isfinite(adapter.basis).all()


def test_with_an_adapter_post_training_leaves_the_encoders_alone() -> None:
    policy = with_adapter(make_policy(rl_trains="prior+adapter"))
    trained = {id(p) for group in policy.rl_parameters() for p in group["params"]}
    names = {name for name, p in policy.named_parameters() if id(p) in trained}
    assert {name for name in names if not name.startswith("prior.")} == {"encoder.adapter.linear.weight"}
    assert {n for n in policy.weights() if n.startswith("encoder")} == {
        f"encoder.adapter.{name}" for name in ("mean", "basis", "linear.weight")
    }


def test_an_adapter_is_saved_and_loaded_and_reaches_other_copies(tmp_path: Path) -> None:
    policy = with_adapter(make_policy(rl_trains="prior+adapter"))
    policy.save_pretrained(tmp_path / "policy")
    assert QuestPolicy.from_pretrained(tmp_path / "policy") == policy
    other = with_adapter(make_policy(rl_trains="prior+adapter", seed=1), seed=6)
    other.load_weights(policy.weights())
    assert torch.equal(other.encoder.adapter.basis, policy.encoder.adapter.basis)


@pytest.mark.parametrize(("rl_trains", "modules"), [("prior", {"prior"}), ("prior+encoders", {"prior", "encoder"})])
def test_post_training_updates_and_sends_exactly_the_trained_modules(rl_trains: str, modules: set[str]) -> None:
    policy = make_policy(rl_trains=rl_trains)
    names = {id(p): name for name, p in policy.named_parameters()}
    groups = policy.rl_parameters()
    trained = [names[id(p)] for group in groups for p in group["params"]]
    assert len(trained) == len(set(trained)) and {n.split(".")[0] for n in trained} == modules
    assert set(trained) == {n for n in names.values() if n.split(".")[0] in modules}
    assert {n.split(".")[0] for n in policy.weights()} == modules
    assert "weight_decay" not in groups[0] and groups[1]["weight_decay"] == 0
    undecayed = {names[id(p)] for p in groups[1]["params"]}
    assert {"prior.embedding.weight", "prior.norm.weight", "prior.head.bias"} <= undecayed
    assert "prior.head.weight" not in undecayed


def test_sent_weights_make_another_policy_act_the_same() -> None:
    policy, other = make_policy(), make_policy(seed=1)
    other.autoencoder.load_state_dict(policy.autoencoder.state_dict())
    assert not np.array_equal(
        other.act(make_observation(5), generators(5)).sample, policy.act(make_observation(5), generators(5)).sample
    )
    other.load_weights(policy.weights())
    for sentence in SENTENCES:
        other.remember(sentence, policy.embed([sentence])[0])
    ours, theirs = (p.act(make_observation(5), generators(5)) for p in (policy, other))
    np.testing.assert_array_equal(ours.sample, theirs.sample)
    np.testing.assert_array_equal(ours.actions, theirs.actions)


def test_other_settings_share_the_weights_and_leave_the_original_alone() -> None:
    policy = make_policy()
    sharper = policy.configured(temperature=0.25)
    assert policy.config.temperature == 1 and sharper.config.temperature == 0.25
    with torch.no_grad():
        policy.prior.head.weight.add_(1)
    assert torch.equal(sharper.prior.head.weight, policy.prior.head.weight)
    inputs, sample = tensors(policy.act(make_observation(4), generators(4)))
    logits = policy.prior_logits(policy.prefix(inputs), sample)
    expected = (logits * 4).log_softmax(-1).gather(-1, sample[..., None])[..., 0]
    torch.testing.assert_close(sharper.log_prob(inputs, sample)[0], expected)
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        policy.configured(temperature=0.0)


# ---------------------------------------------------------------------- instructions and simulators


def test_a_sentence_never_seen_before_is_valid_input() -> None:
    policy = make_policy(language_dim=384)
    look = make_observation(2)
    other = type(look)(images=look.images, proprio=look.proprio, instruction=("juggle three eggs", "sing"))
    chunk = policy.act(other, generators(2))
    assert np.isfinite(chunk.actions).all()
    words = chunk.rollout_inputs["language"]
    assert not np.allclose(words[0], words[1])


def test_a_sentence_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        "ript.policies.language.embed", lambda s, model: (asked.append([model, *s]), torch.ones(len(s), 384))[1]
    )
    policy = make_policy(language_dim=384)
    for _ in range(3):
        assert policy.embed(["lift the lid", "open the drawer", "lift the lid"]).shape == (3, 384)
    assert asked == [["minilm", "lift the lid"]]


def test_embeddings_of_another_size_are_refused() -> None:
    policy = make_policy()
    with pytest.raises(PolicyError, match=r"size 4, the sentence models here give .*384.*policy\.remember"):
        policy.embed(["an unknown sentence"])
    with pytest.raises(PolicyError, match=r"expected an embedding \[4\], got \[5\]"):
        policy.remember("lift", torch.zeros(5))
    with pytest.raises(PolicyError, match="the embedding of 'lift' holds NaN"):
        policy.remember("lift", torch.tensor([0.0, 1.0, torch.nan, 0.0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": {"front": (8, 8)}}, r"cameras .*: expected .*wrist.*, got \{'front': \(8, 8\)\}"),
        ({"cameras": {"front": (16, 8), "wrist": (8, 6)}}, r"got .*\(16, 8\)"),
        ({"proprio": {"proprio": 7}}, r"proprioception .*: expected \{'hand': 2, 'gripper': 1\}, got \{'proprio': 7\}"),
        ({"proprio": {"hand": 2, "grip": 1}}, r"expected \{'hand': 2, 'gripper': 1\}, got \{'hand': 2, 'grip': 1\}"),
        ({"proprio": {"hand": 1, "gripper": 2}}, r"got \{'hand': 1, 'gripper': 2\}"),
        ({"proprio": {"gripper": 1, "hand": 2}}, r"in order.*got \{'gripper': 1, 'hand': 2\}"),
        ({"action_dim": 4}, "action size: expected 2, got 4"),
        ({"suite": "table"}, "trained in desk, the simulator is of table"),
        ({"render": {"arm": "mesh"}}, "than it is given: arm = boxes, got mesh; use the policy's own"),
    ],
)
def test_a_simulator_that_does_not_fit_is_refused_with_the_difference(change: dict, message: str) -> None:
    fields = {name: getattr(SPEC, name) for name in SPEC.__dataclass_fields__}
    policy = make_policy()
    policy.check_simulator(SPEC)
    with pytest.raises(PolicyError, match=message):
        policy.check_simulator(SimulatorSpec(**fields | change))


def test_a_policy_is_made_without_dropout_switched_on() -> None:
    assert not any(module.training for module in make_policy().modules())


def test_a_large_picture_is_scaled_by_bilinear_sampling_at_pixel_centres_without_a_filter() -> None:
    encoder = ImageEncoder("cnn", 8, 512, 512).eval()
    seen: list[torch.Tensor] = []
    encoder.features.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randint(0, 256, (1, 512, 512, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        encoder(images)
    # A quarter of the size: the centre of each 4 x 4 block lies between its middle four pixels, and no other counts.
    middle = images.float()[:, 1::4], images.float()[:, 2::4]
    expected = sum(rows[:, :, 1::4] + rows[:, :, 2::4] for rows in middle) / 4 / 255
    torch.testing.assert_close(seen[0].permute(0, 2, 3, 1), expected)
