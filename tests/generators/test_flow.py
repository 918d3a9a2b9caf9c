"""Flow matching where all is known: a Gaussian, whose velocity, posterior mean and flow are closed forms."""

from __future__ import annotations

import pytest
import torch
from tiny import GaussianGenerator

from rewarddance.generators.flow import euler_step, noised, predicted_x_0
from rewarddance.generators.sampling import dpm_rollout, rollout, sample

SIGMAS = (0.1, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_predicting_with_the_true_velocity_undoes_the_noise(sigma):
    x_0, eps = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(predicted_x_0(noised(x_0, eps, sigma), eps - x_0, sigma), x_0)


def test_no_noise_is_the_picture_and_all_noise_is_the_noise():
    x_0, eps = torch.randn(2, 5)
    assert torch.equal(noised(x_0, eps, 0.0), x_0)
    assert torch.equal(noised(x_0, eps, 1.0), eps)


def test_each_sample_may_have_its_own_noise_level():
    x_0, eps = torch.randn(2, 4, 3)
    sigma = torch.tensor(SIGMAS)[:, None]
    for row, level in enumerate(SIGMAS):
        torch.testing.assert_close(noised(x_0, eps, sigma)[row], noised(x_0[row], eps[row], level))


@pytest.mark.parametrize("sigma", SIGMAS)
def test_an_euler_step_to_zero_is_the_prediction(sigma):
    x_t, v = torch.randn(2, 5)
    torch.testing.assert_close(euler_step(x_t, v, sigma, 0.0), predicted_x_0(x_t, v, sigma))


def test_an_euler_step_stays_on_the_straight_line():
    x_0, eps = torch.randn(2, 5, dtype=torch.float64)
    torch.testing.assert_close(euler_step(noised(x_0, eps, 0.8), eps - x_0, 0.8, 0.3), noised(x_0, eps, 0.3))


@pytest.mark.parametrize("step", range(8))
def test_the_one_step_prediction_of_a_gaussian_is_its_posterior_mean(step):
    generator = GaussianGenerator(mean=2.0, deviation=0.5, num_steps=8)
    x_t = rollout(generator, ["p"] * 4, [1, 2, 3, 4], step).x_t
    clean = generator.predict_x0(x_t, generator.predict(x_t, step, None), step)
    torch.testing.assert_close(clean, generator.posterior(x_t, generator.sigmas[step])[0], atol=1e-5, rtol=1e-5)


def test_the_posterior_mean_is_what_drawings_with_that_noise_average_to():
    """The closed form itself, against simulation: E[x_0 | x_t near 1] at sigma 0.4."""
    generator = GaussianGenerator(mean=2.0, deviation=0.5, num_steps=8)
    x_0, eps = 2.0 + 0.5 * torch.randn(2_000_000), torch.randn(2_000_000)
    x_t = noised(x_0, eps, 0.4)
    near = (x_t - 1.0).abs() < 0.01
    assert x_0[near].mean().item() == pytest.approx(generator.posterior(torch.tensor(1.0), 0.4)[0].item(), abs=0.02)


def test_many_euler_steps_reach_the_target_distribution():
    generator = GaussianGenerator(mean=2.0, deviation=0.5, num_steps=200)
    found = sample(generator, ["p"] * 64, list(range(64)))
    assert found.mean().item() == pytest.approx(2.0, abs=0.02)
    assert found.std().item() == pytest.approx(0.5, rel=0.03)


def test_the_samplers_error_halves_when_its_steps_double():
    """The exact flow of a Gaussian carries eps to mean + deviation eps."""
    errors = []
    for steps in (50, 100, 200):
        generator = GaussianGenerator(mean=2.0, deviation=0.5, num_steps=steps)
        exact = 2.0 + 0.5 * generator.init_noise([0, 1])
        errors.append((sample(generator, ["p", "p"], [0, 1])[:, 0] - exact).abs().mean().item())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def error_of(steps: int, forwards: int | None) -> float:
    """Of a Gaussian's samples, which the exact flow carries from eps to mean + deviation eps."""
    generator, seeds = GaussianGenerator(mean=2.0, deviation=0.5, num_steps=steps), [0, 1, 2, 3]
    done = (
        rollout(generator, ["p"] * 4, seeds, steps)
        if forwards is None
        else dpm_rollout(generator, ["p"] * 4, seeds, forwards)
    )
    return (done.x_t - 2.0 - 0.5 * done.noise).abs().mean().item()


def test_dpm_in_half_as_many_forwards_is_closer_than_euler():
    assert error_of(12, 6) < error_of(12, None)
    assert error_of(24, 12) < error_of(24, None) / 5


def test_dpm_is_of_second_order():
    assert error_of(240, 6) / error_of(240, 12) > 4


def test_dpm_takes_no_more_forwards_than_the_sampler_has_steps():
    with pytest.raises(ValueError, match="has 12 steps"):
        error_of(12, 13)
