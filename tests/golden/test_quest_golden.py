"""The QueST policy against reference numbers of the published model: a tiny instance with random weights, on CPU.

Integers exactly; floats within 3e-5 * max(1, max|reference|), as the data's README suggests.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ript.core.types import SimulatorSpec
from ript.learn.advantage import leave_one_out
from ript.learn.objective import clipped_objective
from ript.policies.parameters import parameter_groups
from ript.policies.quest.config import QuestConfig
from ript.policies.quest.layers import Dropout
from ript.policies.quest.policy import QuestPolicy
from ript.policies.quest.published import config_from_published, our_name
from ript.policies.vision import SpatialSoftArgmax

HERE = Path(__file__).parent
IO = np.load(HERE / "tiny_io.npz", allow_pickle=False)
LOOP = np.load(HERE / "loop_io.npz", allow_pickle=False)


def make(config: QuestConfig) -> QuestPolicy:
    spec = SimulatorSpec(
        suite="golden",
        cameras=config.cameras,
        proprio=config.proprio,
        action_dim=config.action_dim,
        render={},
    )
    return QuestPolicy(config, spec)


@pytest.fixture
def policy() -> QuestPolicy:
    hyperparameters = json.loads((HERE / "tiny_config.json").read_text())["hyperparameters"]
    policy = make(config_from_published(hyperparameters))
    published = np.load(HERE / "tiny.npz", allow_pickle=False)
    own = policy.state_dict()
    for key in published.files:
        if (name := our_name(key)) is not None:
            own[name].copy_(torch.from_numpy(published[key]))
    return policy


@pytest.fixture
def prefix(policy: QuestPolicy) -> torch.Tensor:
    return policy.prefix(observation(policy))


def observation(policy: QuestPolicy) -> dict[str, torch.Tensor]:
    inputs = {
        f"image/{name}": torch.from_numpy(IO[f"in_{name}"][:, 0].transpose(0, 2, 3, 1).copy())
        for name in policy.config.cameras
    }
    inputs["proprio"] = torch.from_numpy(np.concatenate([IO[f"in_{k}"][:, 0] for k in policy.config.proprio], -1))
    return inputs | {"language": torch.from_numpy(IO["in_task_emb"])}


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(IO[name])


def assert_equal(got: torch.Tensor, reference: np.ndarray, what: str = "") -> None:
    got = got.detach().numpy()
    assert got.shape == reference.shape, what
    if reference.dtype.kind in "iu":
        np.testing.assert_array_equal(got, reference, err_msg=what)
    else:
        limit = 3e-5 * max(1.0, float(np.abs(reference).max()))
        np.testing.assert_allclose(got, reference, rtol=0, atol=limit, err_msg=what)


def test_the_autoencoder_gives_the_reference_arrays(policy: QuestPolicy) -> None:
    autoencoder, fsq = policy.autoencoder, policy.autoencoder.fsq
    x = autoencoder.action_in(tensor("actions"))
    assert_equal(x, IO["ae_action_proj"])
    x = x.transpose(1, 2)
    for i, block in enumerate(autoencoder.convs):
        x = block(x)
        assert_equal(x, IO[f"ae_conv_block{i}"], f"convolution {i}")
    assert_equal(x.transpose(1, 2), IO["ae_conv_out"])
    x = x.transpose(1, 2) + autoencoder.positions
    for i, block in enumerate(autoencoder.encoder):
        x = block(x)
        assert_equal(x, IO[f"ae_encoder_layer{i}"], f"encoder layer {i}")
    assert_equal(autoencoder.latents(tensor("actions")), IO["ae_latents"])
    pre = fsq.project_in(x)
    assert_equal(pre, IO["ae_fsq_pre"])
    assert_equal(fsq.bound(pre), IO["ae_fsq_bounded"])
    codes, indices = fsq(x)
    assert_equal(indices, IO["ae_indices"])
    assert_equal(codes, IO["ae_quantized"])
    assert_equal(fsq_table(policy)[indices], IO["ae_fsq_code"])
    assert_equal(torch.tensor(len(indices.unique()) / 1000), IO["ae_codes_used_fraction"])
    per_sequence = torch.tensor([len(row.unique()) / row.numel() for row in indices]).mean()
    assert_equal(per_sequence, IO["ae_codes_used_fraction_per_sequence"])
    y = autoencoder.queries.expand(len(codes), -1, -1)
    for i, block in enumerate(autoencoder.decoder):
        y = block(y, codes)
        assert_equal(y, IO[f"ae_decoder_layer{i}"], f"decoder layer {i}")
    reconstruction, tokens = autoencoder(tensor("actions"))
    assert_equal(reconstruction, IO["ae_recon"])
    assert_equal(tokens, IO["ae_indices"])
    loss, _ = policy.autoencoder_loss(tensor("actions"), torch.ones(4, 32, dtype=torch.bool))
    assert_equal(loss, IO["ae_l1"])


def fsq_table(policy: QuestPolicy) -> torch.Tensor:
    fsq = policy.autoencoder.fsq
    half = fsq.levels // 2
    return (torch.arange(1000)[:, None] // fsq.basis % fsq.levels - half) / half


def test_every_code_has_the_reference_vector_and_index(policy: QuestPolicy) -> None:
    fsq = policy.autoencoder.fsq
    assert_equal(fsq_table(policy), IO["fsq_table"])
    assert_equal(fsq_table(policy)[tensor("dec_indices")], IO["dec_fsq_code"])
    assert_equal(fsq.lookup(tensor("dec_indices")), IO["dec_quantized"])
    assert_equal(policy.autoencoder.decode(tensor("dec_indices")), IO["dec_actions"])


def test_the_positions_are_the_reference_tables(policy: QuestPolicy) -> None:
    assert_equal(policy.autoencoder.queries, IO["decoder_queries"])
    assert_equal(policy.prior.positions, IO["prior_posenc"])


def two_tokens(prefix: torch.Tensor) -> dict[str, torch.Tensor]:
    """As rollouts keep a prefix `[B, 2, width]` where the prior alone is trained."""
    return {"task_token": prefix[:, 0], "observation_token": prefix[:, 1]}


def test_the_encoders_give_the_reference_prefix(policy: QuestPolicy, prefix: torch.Tensor) -> None:
    inputs = observation(policy)
    for name, encoder in policy.encoder.images.items():
        x = inputs[f"image/{name}"].permute(0, 3, 1, 2).float() / 255
        for i, layer in enumerate(encoder.features):
            x = layer(x)
            if i == 3:
                assert_equal(x[:1], IO[f"ctx_{name}_stem"], f"{name} stem")
            elif i in (4, 5, 6):
                assert_equal(x[:1], IO[f"ctx_{name}_block{i - 3}"], f"{name} block {i - 3}")
        assert_equal(x, IO[f"ctx_{name}_block4"])
        assert_equal(encoder.keypoints(x), IO[f"ctx_{name}_keypoints"])
        assert_equal(encoder(inputs[f"image/{name}"]), IO[f"ctx_{name}_feature"])
    for name, layer in policy.encoder.proprio.items():
        assert_equal(layer(tensor(f"in_{name}")), IO[f"ctx_{name}_feature"], name)
    images = {name: inputs[f"image/{name}"] for name in policy.config.cameras}
    assert_equal(policy.encoder.features(images, inputs["proprio"])[:, None], IO["ctx_obs_concat"])
    assert_equal(prefix[:, 1:], IO["ctx_obs_token"])
    assert_equal(prefix[:, 0], IO["ctx_task_token"])
    assert_equal(prefix, IO["context"])


def test_the_spatial_soft_argmax_applies_its_convolution_when_it_changes_the_channel_count() -> None:
    layer = SpatialSoftArgmax(128, 16, 4, 4)
    with torch.no_grad():
        layer.conv.weight.copy_(tensor("alt_sp_conv_weight"))
        layer.conv.bias.copy_(tensor("alt_sp_conv_bias"))
    keypoints = layer(tensor("alt_sp_input"))
    assert_equal(keypoints, IO["alt_sp_keypoints"])
    projected = torch.nn.functional.linear(keypoints, tensor("alt_sp_proj_weight"), tensor("alt_sp_proj_bias"))
    assert_equal(projected, IO["alt_sp_output"])


def test_the_prior_gives_the_reference_logits_and_log_probabilities(policy: QuestPolicy, prefix: torch.Tensor) -> None:
    tokens, prior = tensor("prior_tokens"), policy.prior
    assert torch.equal(torch.cat([torch.full((4, 1), prior.start), tokens[:, :-1]], 1), tensor("prior_input"))
    x = torch.cat([prefix, prior.embedding(tensor("prior_input")) + prior.positions[:8]], 1)
    for i, block in enumerate(prior.blocks):
        x = block(x)
        assert_equal(x, IO[f"prior_layer{i}"], f"layer {i}")
    assert_equal(policy.prior_logits(prefix, tokens), IO["prior_logits"])
    log_prob, _ = policy.log_prob(two_tokens(prefix), tokens)
    assert_equal(log_prob, IO["prior_logprobs"])
    assert_equal(log_prob, IO["prior_logprobs_rl_path"])
    cross_entropy = -policy.log_prob(two_tokens(prefix), tensor("ae_indices"))[0].mean()
    assert_equal(cross_entropy, IO["prior_ce_from_actions"])


def test_generation_with_a_cache_follows_the_reference_path(policy: QuestPolicy, prefix: torch.Tensor) -> None:
    ranks = tensor("forced_ranks")
    probabilities = []

    def choose(logits: torch.Tensor, step: int) -> torch.Tensor:
        top = logits.topk(5, -1)
        probabilities.append(top.values.softmax(-1))
        return top.indices.gather(-1, ranks[:, step : step + 1])[:, 0]

    tokens, logits = policy.prior.generate(prefix, choose)
    assert_equal(logits[:, 0], IO["first_logits"])
    assert_equal(logits[:, 0].topk(5, -1).indices, IO["top5_indices"])
    assert_equal(probabilities[0], IO["top5_probs"])
    assert_equal(torch.stack(probabilities, 1), IO["forced_top5_probs"])
    assert_equal(tokens, IO["forced_tokens"])
    assert_equal(policy.autoencoder.decode(tokens).transpose(0, 1), IO["forced_actions_time_first"])


@pytest.mark.parametrize("loss", ["ae_l1", "prior_ce"])
def test_every_gradient_norm_is_the_reference(policy: QuestPolicy, prefix: torch.Tensor, loss: str) -> None:
    if loss == "ae_l1":
        policy.autoencoder_loss(tensor("actions"), torch.ones(4, 32, dtype=torch.bool))[0].backward()
    else:
        (-policy.log_prob(two_tokens(prefix), tensor("ae_indices"))[0].mean()).backward()
    parameters = dict(policy.named_parameters())
    norms = json.loads((HERE / "tiny_grads.json").read_text())
    reference = norms[loss]
    checked = 0
    for key, expected in reference.items():
        name = our_name(key)
        if name is None:
            continue
        gradient = parameters[name].grad
        got = 0.0 if gradient is None else float(gradient.norm())
        assert got == pytest.approx(expected or 0.0, rel=2e-3, abs=1e-4), key
        checked += 1
    assert checked >= 80


def test_the_paper_size_has_the_published_parameters_shapes_and_decay_groups() -> None:
    policy = make(QuestConfig())
    assert sum(p.numel() for p in policy.parameters()) == 20_013_683
    manifest = json.loads((HERE / "full_manifest.json").read_text())
    assert len(manifest["entries"]) == 338
    shapes = {name: list(t.shape) for name, t in policy.state_dict().items()}
    seen = set()
    for entry in manifest["entries"]:
        name = our_name(entry["key"])
        if name is not None:
            assert shapes[name] == entry["shape"], name
            seen.add(name)
    assert shapes.keys() - seen == {"encoder.proprio_mean", "encoder.proprio_std"}
    decayed, plain = parameter_groups([policy])
    assert sum(p.numel() for p in decayed["params"]) + sum(p.numel() for p in plain["params"]) == 20_013_683
    decayed_ids = {id(p) for p in decayed["params"]}
    named = dict(policy.named_parameters())
    for entry in manifest["entries"]:
        name = our_name(entry["key"])
        groups = {group for group in (entry.get("optimizer_group") or {}).values() if group}
        if name in named and groups:
            assert (groups == {"decay"}) == (id(named[name]) in decayed_ids), (name, groups)
    # Which stage trains what; in post-training only the prior gets a gradient, there as here.
    actor = ("encoder.", "prior.")
    stages = {"stage0": ("autoencoder.",), "stage1": actor, "stage2": (*actor, "autoencoder.decoder.")}
    for entry in manifest["entries"]:
        name = our_name(entry["key"])
        for stage, prefixes in stages.items() if name in named else ():
            theirs = bool(entry["optimizer_group"][stage])
            assert theirs == name.startswith(prefixes), (stage, name)


def test_the_objective_gives_the_reference_ratios_and_losses_token_by_token() -> None:
    rewards = LOOP["rewards"]
    valid = LOOP["trajectory_valid"].reshape(6, 8)
    advantages = leave_one_out(rewards)
    np.testing.assert_allclose(rewards - advantages, LOOP["loo_baseline"], atol=3e-5)
    steps = np.arange(6)[None] < LOOP["valid_steps"][:, None]
    assert (LOOP["recorded_steps"] >= LOOP["valid_steps"]).all()
    mask = np.repeat(steps[..., None], 8, -1)
    np.testing.assert_array_equal(mask, LOOP["action_token_mask"])
    np.testing.assert_array_equal(mask.reshape(48, 48) & LOOP["trajectory_valid"][:, None], LOOP["token_valid"])
    assert np.isclose(rewards[valid].mean(), LOOP["metric_mean_score"])
    assert np.isclose(advantages[valid].mean(), LOOP["metric_mean_advantage"], atol=3e-5)

    def one(array: np.ndarray, n: int, i: int) -> torch.Tensor:
        return torch.tensor(array[n, i]).float().view(1, 1, 1)

    flat = torch.from_numpy(advantages).float().flatten()
    for n, i in np.argwhere(LOOP["token_valid"])[::7]:
        loss, metrics = clipped_objective(
            one(LOOP["new_logprobs"], n, i),
            one(LOOP["old_logprobs"], n, i),
            flat[n : n + 1],
            torch.ones(1, 1, 1, dtype=torch.bool),
        )
        assert metrics["ratio_mean"].value == pytest.approx(LOOP["ratio"][n, i], abs=3e-5)
        assert float(loss) == pytest.approx(LOOP["token_loss_max"][n, i], abs=3e-5)
        clipped = LOOP["token_loss_clipped"][n, i] > LOOP["token_loss_unclipped"][n, i]
        assert metrics["clip_fraction"].value == clipped


def test_dropout_is_where_the_published_model_has_it_and_only_in_training(
    policy: QuestPolicy, prefix: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prior: on its input; in each layer on attention weights, after attention, and twice in the feed-forward."""
    dropped: list[tuple[int, float]] = []
    plain = Dropout.forward

    def watched(self: Dropout, x: torch.Tensor) -> torch.Tensor:
        if self.drops:
            dropped.append((x.dim(), self.p))
        return plain(self, x)

    monkeypatch.setattr(Dropout, "forward", watched)
    layers, tokens = policy.config.layers, tensor("prior_tokens")
    quiet = policy.prior_logits(prefix, tokens)
    assert not dropped and torch.equal(quiet, policy.prior_logits(prefix, tokens))
    policy.prior.train()
    assert not torch.equal(quiet, policy.prior_logits(prefix, tokens))
    assert dropped == [(3, 0.1)] + [(4, 0.1), (3, 0.1), (3, 0.1), (3, 0.1)] * layers


def test_a_small_ppo_run_ends_at_the_reference_weights(policy: QuestPolicy) -> None:
    """2 groups of 8 rollouts, 3 epochs of 4 minibatches in order, as `LOOP` records it."""
    rewards, valid = LOOP["e2e_rewards"], LOOP["e2e_valid_steps"]
    advantages = torch.from_numpy(leave_one_out(rewards)).float().flatten()
    prefix, tokens = torch.from_numpy(LOOP["e2e_context"]), torch.from_numpy(LOOP["e2e_tokens"])
    steps = prefix.shape[1]
    mask = (torch.arange(steps)[None] < torch.from_numpy(valid)[:, None])[..., None].expand(-1, -1, 8)

    def log_prob(rows: slice) -> torch.Tensor:
        flat = policy.log_prob(two_tokens(prefix[rows].flatten(0, 1)), tokens[rows].flatten(0, 1))[0]
        return flat.view(-1, steps, 8)

    def masked(x: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, x, 1.0).flatten(1)

    with torch.no_grad():
        old = log_prob(slice(None))
    assert_equal(masked(old), LOOP["e2e_logprobs_before"])
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    groups = parameter_groups([policy.prior])
    optimiser = torch.optim.AdamW(groups, lr=2e-4, weight_decay=1e-4)
    losses, norms, ratios = [], [], []
    for _ in range(3):
        for start in range(0, 16, 4):
            rows = slice(start, start + 4)
            new = log_prob(rows)
            ratios.append((new - old[rows]).detach().exp())
            loss, _ = clipped_objective(new, old[rows], advantages[rows], mask[rows])
            optimiser.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(policy.prior.parameters(), 1.0)))
            optimiser.step()
            losses.append(float(loss.detach()))
    assert_equal(torch.tensor(losses), LOOP["e2e_losses"])
    assert (ratios[0] - 1)[mask[:4]].abs().max() < max(1e-5, 10 * float(LOOP["e2e_first_step_max_abs_ratio_minus_1"]))
    assert_equal(torch.where(mask[12:], ratios[-1], 1.0).flatten(1), LOOP["e2e_ratio_last_minibatch"])
    assert np.isclose(rewards.mean(), LOOP["e2e_mean_score"])
    np.testing.assert_allclose(norms, LOOP["e2e_grad_norms"], rtol=2e-3)
    with torch.no_grad():
        assert_equal(masked(log_prob(slice(None))), LOOP["e2e_logprobs_after"])
    after = dict(policy.named_parameters())
    assert_equal((after["prior.head.bias"] - before["prior.head.bias"]).detach(), LOOP["e2e_delta_head_bias"])
    assert_equal((after["prior.norm.weight"] - before["prior.norm.weight"]).detach(), LOOP["e2e_delta_lnf_weight"])
    assert all(torch.equal(after[n], before[n]) for n in before if not n.startswith("prior."))


def test_every_array_of_the_reference_is_used() -> None:
    source = HERE.joinpath("test_quest_golden.py").read_text() + HERE.joinpath("test_update_golden.py").read_text()
    learn = HERE.parent / "learn"
    source += (learn / "test_objective.py").read_text() + (learn / "test_advantage.py").read_text()
    per_layer = (
        "ae_conv_block",
        "ae_encoder_layer",
        "ae_decoder_layer",
        "prior_layer",
        "ctx_",
        "in_",
        "loss_",
        "grad_",
    )
    unused = [name for name in [*IO.files, *LOOP.files] if name not in source and not name.startswith(per_layer)]
    assert not unused
