"""Flow-GRPO's and DiffusionNFT's formulas against closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from rewarddance.alignment.flow_grpo import guarded, kl_to_base, surrogate
from rewarddance.alignment.nft import nft_loss, optimality
from rewarddance.alignment.random_steps import (
    STEPS,
    Step,
    cps_step,
    dance_step,
    ddim_step,
    flow_step,
    log_prob,
    precise_step,
)
from rewarddance.types import Scales


def posterior(x_t, scales, mean=1.5, variance=0.36):
    """E[x_0 | x_t] for x_0 ~ N(mean, variance)."""
    alpha, sigma = scales
    return mean + alpha * variance * (x_t - alpha * mean) / (alpha**2 * variance + sigma**2)


def flow(t):
    return Scales(1 - t, t)


def diffusion(t):
    return Scales(math.cos(t * math.pi / 2), math.sin(t * math.pi / 2))


@pytest.mark.parametrize(
    ("kind", "path", "level"),
    [
        *(("flow", flow, 0.7), ("flow", flow, 0.0), ("dance", flow, 0.3), ("dance", flow, 0.0), ("cps", flow, 0.2)),
        *(("ddim", flow, 0.7), ("ddim", diffusion, 1.0), ("ddim", diffusion, 0.0)),
        *(("precise", flow, 0.7), ("precise", flow, 1.5)),
    ],
)
def test_whatever_the_noise_level_the_samples_have_the_same_distribution(kind, path, level):
    torch.manual_seed(0)
    n, steps = 20_000, 300
    times = torch.linspace(0.999, 0.001, steps + 1).tolist()
    alpha, sigma = path(times[0])
    x = alpha * (1.5 + 0.6 * torch.randn(n, 1)) + sigma * torch.randn(n, 1)
    for now, after in itertools.pairwise(times):
        step = STEPS[kind](x, posterior(x, path(now)), path(now), path(after), level)
        x = step.mean + step.deviation * torch.randn(x.shape)
    assert x.mean().item() == pytest.approx(1.5, abs=0.02) and x.std().item() == pytest.approx(0.6, rel=0.03)


def test_without_noise_a_step_is_eulers():
    x_t, v, t, after = torch.randn(4, 3), torch.randn(4, 3), 0.7, 0.55
    for step in STEPS.values():
        found = step(x_t, x_t - t * v, flow(t), flow(after), 0.0)
        torch.testing.assert_close(found.mean, x_t + (after - t) * v)
        assert found.deviation == 0


def test_a_flow_step_is_the_papers_formula():
    x_t, v, t, after, a = torch.randn(4, 3), torch.randn(4, 3), 0.7, 0.55, 0.8
    s2, dt = a**2 * t / (1 - t), after - t
    by_hand = x_t + (v + s2 / (2 * t) * (x_t + (1 - t) * v)) * dt
    found = flow_step(x_t, x_t - t * v, flow(t), flow(after), a)
    torch.testing.assert_close(found.mean, by_hand)
    assert found.deviation == pytest.approx(math.sqrt(s2 * -dt))
    assert math.isfinite(flow_step(x_t, x_t - v, flow(1.0), flow(0.9), a).deviation)


def test_a_dance_step_is_the_papers_formula():
    x_t, v, t, after, level = torch.randn(4, 3), torch.randn(4, 3), 0.7, 0.55, 0.3
    score = -(x_t - (1 - t) * (x_t - t * v)) / t**2
    by_hand = x_t + (v - level**2 / 2 * score) * (after - t)
    found = dance_step(x_t, x_t - t * v, flow(t), flow(after), level)
    torch.testing.assert_close(found.mean, by_hand)
    assert found.deviation == pytest.approx(level * math.sqrt(t - after))


def test_a_cps_step_has_the_schedules_share_of_signal_and_of_noise():
    x_t, v, t, after, level = torch.randn(4, 3), torch.randn(4, 3), 0.7, 0.55, 0.8
    found = cps_step(x_t, x_t - t * v, flow(t), flow(after), level)
    of_eps = torch.linalg.lstsq(
        (x_t + (1 - t) * v).flatten()[:, None], (found.mean - (1 - after) * (x_t - t * v)).flatten()
    )
    assert math.hypot(float(of_eps.solution), found.deviation) == pytest.approx(after, rel=1e-5)
    x = torch.randn(4, 3)
    away = log_prob(x, found) - log_prob(found.mean, found)
    torch.testing.assert_close(away, -(x - found.mean).square().mean(1))  # without the deviation


def test_a_precise_step_is_many_small_steps_of_the_same_equation():
    x_t, x_0, level = torch.randn(4, 3), torch.randn(4, 3), 0.9
    found = precise_step(x_t, x_0, flow(0.7), flow(0.4), level)
    times, mean, variance = torch.linspace(0.7, 0.4, 4_001, dtype=torch.float64).tolist(), x_t.double(), 0.0
    for t, after in itertools.pairwise(times):
        small = flow_step(mean, x_0.double(), flow(t), flow(after), level)
        shrinks = (after - small.deviation**2 / (2 * t)) / t  # how much of what lay in x_t is left
        mean, variance = small.mean, shrinks**2 * variance + small.deviation**2
    torch.testing.assert_close(found.mean, mean.float(), rtol=1e-3, atol=1e-3)
    assert found.deviation == pytest.approx(math.sqrt(variance), rel=1e-3)


def test_a_precise_step_with_level_root_two_is_ancestral_sampling():
    x_t, x_0 = torch.randn(4, 3), torch.randn(4, 3)
    found = precise_step(x_t, x_0, flow(0.7), flow(0.4), math.sqrt(2))
    ancestral = ddim_step(x_t, x_0, flow(0.7), flow(0.4), 1.0)
    torch.testing.assert_close(found.mean, ancestral.mean)
    assert found.deviation == pytest.approx(ancestral.deviation)
    assert precise_step(x_t, x_0, flow(1.0), flow(0.9), 0.7).deviation == pytest.approx(0.9), "all noise is new"


@pytest.mark.parametrize("deviation", [0.05, 0.3, 1.0])
def test_guard_centres_the_log_ratio_and_gives_it_one_spread_at_all_levels(deviation):
    torch.manual_seed(0)
    old, moved = torch.zeros(20_000, 16), 0.02 * torch.randn(16)
    x, mean = old + deviation * torch.randn(old.shape), old + moved
    log_ratio = log_prob(x, Step(mean, deviation)) - log_prob(x, Step(old, deviation))
    found = guarded(log_ratio, mean, old, deviation)
    spread = moved.norm().item() / 16
    assert abs(found.mean().item()) < 4 * spread / math.sqrt(20_000)
    assert found.std().item() == pytest.approx(spread, rel=0.02)
    bias = -moved.square().mean().item() / (2 * deviation**2)
    assert abs(log_ratio.mean().item() - bias) < 4 * spread / deviation / math.sqrt(20_000)


def test_the_log_probability_is_the_gaussians():
    step, x = Step(torch.randn(5, 2, 3), 0.3), torch.randn(5, 2, 3)
    by_torch = torch.distributions.Normal(step.mean, 0.3).log_prob(x).flatten(1).mean(1)
    torch.testing.assert_close(log_prob(x, step), by_torch)


def test_at_the_first_update_the_surrogates_gradient_is_the_policy_gradient():
    new = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.0])
    loss = surrogate(new, new.detach(), advantage, 0.1)
    (gradient,) = torch.autograd.grad(loss, new)
    torch.testing.assert_close(gradient, -advantage / 3)


def test_beyond_the_clip_range_a_sample_teaches_nothing_more():
    new = torch.tensor([0.5, -0.5, 0.5, -0.5], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0])  # the first two went where they should, the others did not
    (gradient,) = torch.autograd.grad(surrogate(new, torch.zeros(4), advantage, 0.1), new)
    assert gradient[:2].tolist() == [0, 0] and gradient[2] > 0 > gradient[3]


def test_the_kl_is_that_of_two_gaussians():
    one, other = Step(torch.randn(6, 4), 0.4), Step(torch.randn(6, 4), 0.4)
    by_torch = torch.distributions.kl_divergence(
        torch.distributions.Normal(one.mean, 0.4), torch.distributions.Normal(other.mean, 0.4)
    ).mean()
    torch.testing.assert_close(kl_to_base(one, other), by_torch)


def test_optimality_is_a_half_for_the_mean_and_clipped_at_both_ends():
    found = optimality(torch.tensor([-9.0, -2.5, 0.0, 2.5, 9.0]), clip=5.0)
    assert found.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_on_policy_nft_moves_towards_good_samples_and_away_from_bad_ones():
    """At new = old the gradient is 2 b (2 r - 1) (old - x_0), divided by the sample's own distance."""
    old, x_0 = torch.randn(3, 8), torch.randn(3, 8)
    new, r, beta = old.clone().requires_grad_(), torch.tensor([1.0, 0.5, 0.0]), 0.7
    (gradient,) = torch.autograd.grad(nft_loss(new, old, x_0, r, beta), new)
    size = (old - x_0).abs().mean(1, keepdim=True)
    by_hand = 2 * beta * (2 * r - 1)[:, None] * (old - x_0) / size / 8 / 3
    torch.testing.assert_close(gradient, by_hand)
    assert gradient[1].abs().max() < 1e-7


def test_the_positive_side_with_beta_one_is_plain_denoising():
    new, old, x_0 = (torch.randn(3, 8) for _ in range(3))
    away = new - x_0
    by_hand = (away.square().mean(1) / away.abs().mean(1)).mean()
    torch.testing.assert_close(nft_loss(new, old, x_0, torch.ones(3), 1.0), by_hand)
