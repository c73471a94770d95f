"""The Laplace density: what is drawn is what is scored."""

import math

import numpy as np
import pytest
import torch
from oft_golden import arrays

from ript.learn.objective import weighted_objective
from ript.policies.openvla_oft.density import Density


def some(b=2, h=3, a=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(b, h, a, generator=g) for _ in range(3))


@pytest.mark.parametrize("tag", ["base", "lora"])
@pytest.mark.parametrize("name", ["s0", "s1", "s2", "b2"])
def test_published_scores_are_reproduced(tag, name):
    golden = arrays("io")

    def of(key):
        return torch.from_numpy(golden[f"{tag}/{name}/ript/{key}"])

    density = Density(sampling="published", temperature=5.0)
    log_prob, entropy = density.log_prob(of("normalized_mean"), of("log_b"), of("given_actions"))
    torch.testing.assert_close(log_prob, of("logprob_clamped_sum"), atol=1e-5, rtol=0)
    each, _ = Density(sampling="published", terms="dimension").log_prob(
        of("normalized_mean"), of("log_b"), of("given_actions")
    )
    torch.testing.assert_close(each, of("logprob_clamped").flatten(1), atol=1e-5, rtol=0)
    assert log_prob.shape == entropy.shape == (len(of("log_b")), 8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_what_is_drawn_has_the_density_that_scores_it(temperature):
    """The average score of many draws is minus the entropy, and their mean distance from the mean is the scale."""
    mean, log_b, _ = some(1, 1, 3)
    n, density = 200_000, Density(temperature=temperature)
    mean, log_b = mean.expand(n, -1, -1), log_b.expand(n, -1, -1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random((n, 1, 3)))
    sample = density.drawn(mean, log_b, uniforms)
    log_prob, entropy = density.log_prob(mean, log_b, sample)
    assert log_prob.mean() == pytest.approx(-entropy[0, 0].item(), abs=0.02)
    scale = temperature * log_b[0, 0].clamp(-2, 0.5).exp()
    torch.testing.assert_close((sample - mean).abs().mean((0, 1)), scale, rtol=0.02, atol=0)
    torch.testing.assert_close(entropy[0, 0], (1 + torch.log(2 * scale)).sum())


def test_the_published_mismatch_is_what_it_is():
    """Drawn with the scale that is neither clipped nor without the factor, scored with the one that is both."""
    n = 100_000
    mean, log_b = torch.zeros(n, 1, 1), torch.full((n, 1, 1), -3.0)
    density = Density(sampling="published", temperature=5.0)
    sample = density.drawn(mean, log_b, torch.from_numpy(np.random.default_rng(0).random((n, 1, 1))))
    assert sample.abs().mean().item() == pytest.approx(5 * math.exp(-3), rel=0.02)
    log_prob, entropy = density.log_prob(mean, log_b, sample)
    assert entropy[0, 0].item() == pytest.approx(1 + math.log(2) - 2)
    assert log_prob.mean().item() != pytest.approx(-entropy[0, 0].item(), abs=0.5)


def test_the_extremes_of_a_uniform_number_give_finite_samples():
    mean, log_b, _ = some(1, 1, 2)
    for extreme in (0.0, 0.5, 1 - 2.0**-53):
        uniforms = torch.full((1, 1, 2), extreme, dtype=torch.float64)
        sample = Density().drawn(mean, log_b, uniforms)
        assert torch.isfinite(sample).all()
        if extreme == 0.5:
            torch.testing.assert_close(sample, mean)


def test_terms_are_actions_or_their_dimensions():
    mean, log_b, sample = some()
    action, dimension = (Density(terms=t).log_prob(mean, log_b, sample) for t in ("action", "dimension"))
    for a, d in zip(action, dimension, strict=True):
        assert a.shape == (2, 3) and d.shape == (2, 12)
        torch.testing.assert_close(a, d.unflatten(1, (3, 4)).sum(-1))


def test_a_temperature_is_a_factor_on_the_scale():
    mean, log_b, sample = some()
    log_b = log_b.clamp(-2, 0)
    warm, _ = Density(temperature=1.5).log_prob(mean, log_b, sample)
    same, _ = Density().log_prob(mean, log_b + math.log(1.5), sample)
    torch.testing.assert_close(warm, same)


def test_the_updates_estimates_of_kl_are_the_closed_form_of_two_laplace_densities():
    """With r the ratio of scales (old to new) and d the distance of means in the new scale, KL(old || new) is
    d + r exp(-d / r) - 1 - log r."""
    n, old, new = 200_000, (0.3, -0.5), (-0.4, 0.2)
    here, there = (tuple(torch.full((n, 1, 1), x) for x in density) for density in (old, new))
    sample = Density().drawn(*here, torch.from_numpy(np.random.default_rng(0).random((n, 1, 1))))
    old_log_prob, log_prob = (Density().log_prob(*density, sample)[0] for density in (here, there))
    ratio, distance = math.exp(old[1] - new[1]), abs(old[0] - new[0]) / math.exp(new[1])
    exact = distance + ratio * math.exp(-distance / ratio) - 1 - math.log(ratio)
    _, metrics = weighted_objective(
        log_prob,
        old_log_prob,
        torch.zeros(n),
        torch.ones(n, 1, dtype=torch.bool),
        torch.ones(n, 1),
        normaliser=n,
        clip_low=0.2,
        clip_high=0.2,
    )
    assert metrics["kl_k1"].value == pytest.approx(exact, abs=0.01)
    assert metrics["kl_k3"].value == pytest.approx(exact, abs=0.01)
