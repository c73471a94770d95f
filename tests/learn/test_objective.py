import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ript.core.errors import ConfigError, NotFiniteError, TrainingError
from ript.core.metrics import merge, values
from ript.learn.objective import clipped_objective, reduction_count, reduction_weights, weighted_objective

GOLDEN = Path(__file__).parents[1] / "golden" / "loop_io.npz"


def by_ratio(ratios, advantage, mask=None, **options):
    """Objective of one decision a trajectory: ratios [B, K] over old log-probabilities of 0."""
    log_prob = torch.tensor(ratios, dtype=torch.float64).log()[:, None].requires_grad_()
    mask = torch.ones_like(log_prob, dtype=torch.bool) if mask is None else torch.tensor(mask)[:, None]
    advantage = torch.tensor(advantage, dtype=torch.float64)
    loss, metrics = clipped_objective(log_prob, torch.zeros_like(log_prob), advantage, mask, **options)
    loss.backward()
    return loss.item(), log_prob.grad[:, 0], values(metrics)


def random_case(seed, b=5, d=3, k=2):
    """(log_prob, old_log_prob, advantage, mask, entropy), float64; a third masked, ratios beyond the clip."""
    rng = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(b, d, k, generator=rng, dtype=torch.float64)
    new = old + 0.3 * torch.randn(b, d, k, generator=rng, dtype=torch.float64)
    advantage = torch.randn(b, generator=rng, dtype=torch.float64)
    mask = torch.rand(b, d, k, generator=rng) < 0.65
    return new, old, advantage, mask, torch.rand(b, d, k, generator=rng, dtype=torch.float64)


def test_the_clip_bounds_gain_but_never_loss():
    # A = 1: ratio 1.5 counts as 1.2, 0.5 as 0.5.  A = -1: ratio 1.5 counts as 1.5, 0.5 as 0.8.
    loss, gradient, metrics = by_ratio([[1.5, 0.5], [1.5, 0.5]], [1.0, -1.0])
    assert loss == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)
    torch.testing.assert_close(gradient, torch.tensor([[0, -0.5], [1.5, 0]]).double() / 4)
    assert metrics["loss"] == pytest.approx(loss)
    assert metrics["clip_fraction"] == 0.5


def test_upper_and_lower_clip_are_separate():
    loss, gradient, _ = by_ratio([[1.25], [0.85]], [1.0, -1.0], clip_low=0.1, clip_high=0.28)
    assert loss == pytest.approx((-1.25 + 0.9) / 2)
    torch.testing.assert_close(gradient, torch.tensor([[-1.25], [0.0]]).double() / 2)


def test_ratio_one_gives_minus_the_mean_advantage_and_the_policy_gradient():
    loss, gradient, metrics = by_ratio([[1.0, 1.0], [1.0, 1.0]], [2.0, -1.0])
    assert loss == pytest.approx(-0.5)
    torch.testing.assert_close(gradient, torch.tensor([[-2.0, -2.0], [1.0, 1.0]]).double() / 4)
    assert metrics["clip_fraction"] == metrics["kl"] == 0


def test_token_mean_weighs_tokens_and_trajectory_mean_weighs_trajectories():
    mask = [[True, True, True], [True, False, False]]
    ratios = [[1.0, 1.0, 1.0], [1.1, 9.0, 9.0]]
    assert by_ratio(ratios, [1.0, -1.0], mask)[0] == pytest.approx((-3 + 1.1) / 4)
    assert by_ratio(ratios, [1.0, -1.0], mask, reduction="trajectory")[0] == pytest.approx((-1 + 1.1) / 2)


def test_a_trajectory_without_valid_tokens_does_not_count():
    mask = [[True, True], [False, False]]
    for reduction in ("token", "trajectory"):
        assert by_ratio([[1.0, 1.0], [2.0, 2.0]], [1.0, 5.0], mask, reduction=reduction)[0] == pytest.approx(-1)


def test_nothing_valid_gives_a_loss_of_zero_and_no_metrics():
    loss, gradient, metrics = by_ratio([[1.5, 0.5]], [1.0], [[False, False]])
    assert loss == 0 and (gradient == 0).all() and metrics == {}


def test_metrics_by_hand():
    _, _, metrics = by_ratio([[2.0, 0.25, 7.0]], [1.0], [[True, True, False]])
    assert metrics["ratio_mean"] == pytest.approx(1.125)
    assert (metrics["ratio_min"], metrics["ratio_max"]) == pytest.approx((0.25, 2.0))
    assert metrics["kl"] == pytest.approx((2 - 1 - math.log(2)) + (0.25 - 1 + math.log(4)))  # one decision
    assert metrics["kl_k3"] == metrics["kl"] and metrics["kl_k1"] == pytest.approx(-math.log(2) + math.log(4))
    assert metrics["clip_fraction"] == 0.5


def test_the_kl_is_a_mean_over_decisions_that_have_a_valid_token():
    two, half = 2 - 1 - math.log(2), 0.5 - 1 + math.log(2)
    mask = [[True, True], [True, False], [False, False]]
    _, _, metrics = by_ratio([[2.0, 0.5], [2.0, 9.0], [9.0, 9.0]], [1.0, 1.0, 1.0], mask)
    assert metrics["kl"] == metrics["kl_k3"] == pytest.approx((two + half + two) / 2)


def test_a_ratio_above_e_counts_in_the_kl_as_its_logarithm_grows():
    e = math.e
    for log_ratio, share in ((1.0, e - 2), (3.0, (e - 2) + 2 * (e - 1)), (100.0, (e - 2) + 99 * (e - 1))):
        _, _, metrics = by_ratio([[math.exp(log_ratio), 1.0]], [1.0])
        assert metrics["kl"] == pytest.approx(share)
    assert metrics["kl_k3"] > 1e8


def test_entropy_is_averaged_and_its_bonus_lowers_the_loss_with_the_same_weights():
    mask = [[True, True], [True, False]]
    entropy = torch.tensor([[[1.0, 3.0]], [[6.0, math.nan]]]).double()
    for reduction, mean in (("token", 10 / 3), ("trajectory", 4.0)):
        plain = by_ratio([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0], mask, reduction=reduction)[0]
        loss, _, metrics = by_ratio(
            [[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0], mask, reduction=reduction, entropy=entropy, entropy_bonus=0.1
        )
        assert loss == pytest.approx(plain - 0.1 * mean)
        assert metrics["entropy"] == pytest.approx(10 / 3)
        assert metrics["loss"] == pytest.approx(plain)


def test_what_is_masked_cannot_matter_not_even_nan():
    new, old, advantage, mask, _ = random_case(0)
    mask[2] = False
    clean = new.clone().requires_grad_()
    expected, _ = clipped_objective(clean, old, advantage, mask)
    expected.backward()
    advantage[2] = math.nan
    dirty = torch.where(mask, new, math.nan).requires_grad_()
    loss, metrics = clipped_objective(dirty, torch.where(mask, old, math.inf), advantage, mask)
    loss.backward()
    assert loss.item() == expected.item()
    assert torch.equal(dirty.grad, clean.grad)
    assert all(math.isfinite(value) for value in values(metrics).values())


def test_a_token_outside_the_support_has_ratio_zero_and_no_gradient():
    log_prob = torch.tensor([[[-math.inf, 0.0]]]).requires_grad_()
    loss, metrics = clipped_objective(log_prob, torch.zeros(1, 1, 2), torch.ones(1), torch.ones(1, 1, 2, dtype=bool))
    loss.backward()
    assert loss.item() == pytest.approx(-0.5)
    assert log_prob.grad.tolist() == [[[0.0, -0.5]]]
    assert all(math.isfinite(value) for value in values(metrics).values())


@pytest.mark.parametrize(("log_ratio", "nats"), [(-1000.0, 1000.0), (-25.0, 25.0), (-math.inf, 1e4)])
def test_a_density_that_has_left_a_token_is_as_far_as_it_is_in_the_kl_and_its_ratio_is_zero(log_ratio, nats):
    log_prob = torch.zeros(1, 100, 1).double()
    log_prob[0, 7] = log_ratio
    log_prob.requires_grad_()
    mask = torch.ones(1, 100, 1, dtype=torch.bool)
    loss, metrics = clipped_objective(log_prob, torch.zeros(1, 100, 1).double(), torch.ones(1), mask)
    loss.backward()
    assert loss.item() == pytest.approx(-0.99) and log_prob.grad[0, 7] == pytest.approx(0.0, abs=1e-8)
    assert metrics["kl_k1"].value == pytest.approx(nats / 100)
    assert metrics["kl"].value == pytest.approx((nats - 1) / 100) == metrics["kl_k3"].value


def test_a_policy_to_stay_near_that_has_left_a_token_pushes_it_down():
    log_prob, old = torch.zeros(1, 1).double().requires_grad_(), torch.zeros(1, 1).double()
    loss, metrics = weighted_objective(
        log_prob,
        old,
        torch.zeros(1),
        torch.ones(1, 1, dtype=torch.bool),
        torch.ones(1, 1).double(),
        normaliser=1.0,
        clip_low=0.2,
        clip_high=0.2,
        start_log_prob=old - 1000.0,
        kl_to_start=0.1,
    )
    loss.backward()
    assert metrics["kl_to_start"].value == pytest.approx(999.0)
    assert log_prob.grad.item() == pytest.approx(0.1)


@pytest.mark.parametrize("argument", ["log_prob", "old_log_prob", "advantage", "entropy"])
def test_nan_at_a_valid_place_is_refused_and_named(argument):
    new, old, advantage, mask, entropy = random_case(1)
    mask[3, 1, 1] = True
    arguments = {"log_prob": new, "old_log_prob": old, "advantage": advantage, "entropy": entropy}
    arguments[argument][(3,) if argument == "advantage" else (3, 1, 1)] = math.nan
    with pytest.raises(NotFiniteError, match=f"^{argument} is nan at row "):
        clipped_objective(**arguments, mask=mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("log_ratio", [19.0, 21.0, 89.0, 1000.0])
def test_a_ratio_beyond_the_ceiling_is_clipped_where_it_would_gain_and_pushed_down_where_it_loses(log_ratio, dtype):
    top = math.exp(min(log_ratio, 20.0))
    for advantage, loss, slope in ((1.0, -1.2, 0.0), (-1.0, top * (1 + max(0.0, log_ratio - 20)), top)):
        log_prob = torch.full((1, 1, 2), log_ratio, dtype=dtype).requires_grad_()
        old, mask = torch.zeros(1, 1, 2, dtype=dtype), torch.ones(1, 1, 2, dtype=torch.bool)
        mask[..., 1] = False
        found, metrics = clipped_objective(log_prob, old, torch.tensor([advantage]), mask)
        found.backward()
        assert found.item() == pytest.approx(loss, rel=1e-5)
        assert log_prob.grad.flatten().tolist() == pytest.approx([slope, 0.0], rel=1e-5)
        assert all(math.isfinite(value) for value in values(metrics).values())


def test_a_ratio_that_is_infinite_is_refused():
    log_prob = torch.full((1, 1, 1), 3e38)
    with pytest.raises(NotFiniteError, match=r"ratio exp.* is inf at row 0, term 0 \(1 of 1"):
        clipped_objective(log_prob, torch.zeros(1, 1, 1), torch.ones(1), torch.ones(1, 1, 1, dtype=bool))


def test_shapes_that_disagree_are_refused_by_name():
    new, old, advantage, mask, _ = random_case(2)
    with pytest.raises(TrainingError, match=r"old_log_prob must have shape \(5, 3, 2\), got \(5, 3, 1\)"):
        clipped_objective(new, old[..., :1], advantage, mask)
    with pytest.raises(TrainingError, match=r"advantage must have shape \(5,\), got \(5, 1\)"):
        clipped_objective(new, old, advantage[:, None], mask)
    with pytest.raises(TrainingError, match=r"\[B, D, K\], got shape \(3, 2\)"):
        clipped_objective(new[0], old[0], advantage, mask)


@pytest.mark.parametrize("clip", [{"clip_low": 0.0}, {"clip_low": 1.0}, {"clip_high": -0.2}, {"clip_high": math.inf}])
def test_a_clip_range_that_cannot_work_is_refused(clip):
    with pytest.raises(ConfigError, match="clip_low"):
        by_ratio([[1.0]], [1.0], **clip)


def test_an_unknown_reduction_and_a_bonus_without_entropy_are_refused():
    with pytest.raises(ConfigError, match="reduction"):
        by_ratio([[1.0]], [1.0], reduction="sum")
    with pytest.raises(ConfigError, match="entropy"):
        by_ratio([[1.0]], [1.0], entropy_bonus=0.1)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 4), reduction=st.sampled_from(["token", "trajectory"]))
def test_parts_with_the_global_normaliser_add_up_to_the_whole(seed, cut, reduction):
    new, old, advantage, mask, entropy = random_case(seed)
    options = {"reduction": reduction, "entropy_bonus": 0.05}
    whole = new.clone().requires_grad_()
    loss, metrics = clipped_objective(whole, old, advantage, mask, entropy=entropy, **options)
    loss.backward()

    normaliser = float(mask.sum() if reduction == "token" else mask.any((1, 2)).sum())
    split = new.clone().requires_grad_()
    parts = []
    for rows in (slice(0, cut), slice(cut, None)):
        part, measured = clipped_objective(
            split[rows],
            old[rows],
            advantage[rows],
            mask[rows],
            entropy=entropy[rows],
            normaliser=normaliser,
            **options,
        )
        part.backward()
        parts.append(measured)
    torch.testing.assert_close(split.grad, whole.grad)
    assert values(merge(parts)) == pytest.approx(values(metrics), abs=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_the_loss_scales_with_the_advantage_and_is_never_below_the_unclipped_one(seed, scale):
    new, old, advantage, mask, _ = random_case(seed)
    loss, _ = clipped_objective(new, old, advantage, mask)
    scaled, _ = clipped_objective(new, old, scale * advantage, mask)
    torch.testing.assert_close(scaled, scale * loss)
    unclipped = -(advantage[:, None, None] * (new - old).exp() * mask).sum() / max(int(mask.sum()), 1)
    assert loss.item() >= unclipped.item() - 1e-12


# ---- the reference numbers ----


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        data = {name: torch.from_numpy(file[name]) for name in file.files if not name.startswith("e2e")}
    cube = {name: data[name].view(48, 6, 8) for name in ("old_logprobs", "new_logprobs", "token_valid")}
    return data | cube | {"advantages": data["advantages"].flatten()}


def golden_loss(golden, rows=slice(None), **options):
    """(loss, gradient [48, 48] by new log-probabilities, metrics). The reference counts padding trajectories."""
    new = golden["new_logprobs"].clone().requires_grad_()
    if options.get("reduction") == "trajectory":
        options["normaliser"] = float(len(new[rows]))
    loss, metrics = clipped_objective(
        new[rows], golden["old_logprobs"][rows], golden["advantages"][rows], golden["token_valid"][rows], **options
    )
    loss.backward()
    return loss.detach(), new.grad.view(48, 48), metrics


def assert_close(actual, reference):
    torch.testing.assert_close(actual, reference, rtol=0, atol=3e-5 * max(1.0, float(reference.abs().max())))


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
def test_loss_and_gradient_equal_the_reference(golden, reduction):
    loss, gradient, _ = golden_loss(golden, reduction=reduction)
    assert_close(loss, golden[f"loss_{reduction}_mean"])
    reference = golden[f"grad_{reduction}_mean"]
    assert_close(gradient, reference)
    torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_losses_of_minibatches_equal_the_reference(golden, reduction, size):
    losses = [golden_loss(golden, slice(i, i + size), reduction=reduction)[0] for i in range(0, 48, size)]
    assert_close(torch.stack(losses), golden[f"loss_{reduction}_mean_minibatch{size}"])


@pytest.mark.parametrize("reduction", ["token", "trajectory"])
def test_asymmetric_clip_equals_the_reference(golden, reduction):
    loss, _, _ = golden_loss(golden, reduction=reduction, clip_high=0.28)
    assert_close(loss, golden[f"loss_{reduction}_mean_cliphigh028"])
    assert abs(loss - golden[f"loss_{reduction}_mean"]) > 1e-4


def test_losses_and_averaged_gradient_of_two_ranks_equal_the_reference(golden):
    groups = torch.arange(48).view(6, 8)
    results = [golden_loss(golden, groups[rank].flatten()) for rank in ([0, 3, 5], [1, 2, 4])]
    assert_close(results[0][0], golden["loss_token_mean_rank0of2"])
    assert_close(results[1][0], golden["loss_token_mean_rank1of2"])
    assert_close((results[0][1] + results[1][1]) / 2, golden["grad_token_mean_2ranks_averaged"])


def test_clip_fraction_and_mean_ratio_equal_the_reference(golden):
    # The reference counts masked tokens (of ratio 1) as well.
    everything = {**golden, "token_valid": torch.ones(48, 6, 8, dtype=torch.bool)}
    metrics = values(golden_loss(everything)[2])
    assert metrics["clip_fraction"] == pytest.approx(float(golden["metric_clipfrac"]), abs=3e-5)
    assert metrics["ratio_mean"] == pytest.approx(float(golden["metric_ratio"]), abs=3e-5)


def test_a_mean_is_over_a_whole_number_of_tokens_or_of_trajectories_with_any():
    terms = torch.tensor([3, 0, 7] * 1000)
    assert (reduction_count(terms, "token"), reduction_count(terms, "trajectory")) == (10_000.0, 2000.0)
    mask = torch.arange(7) < terms[:, None]
    weight = reduction_weights(mask, terms, "trajectory")
    assert float(weight.sum()) == pytest.approx(2000, rel=1e-5)  # in float32, hence not exactly
