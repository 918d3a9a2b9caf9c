"""ReFL's losses against their closed forms, and where each of them stops to teach."""

from __future__ import annotations

import math

import pytest
import torch

from rewarddance.alignment.refl_losses import LOSSES, hinge_loss, linear_loss, log_loss, margin_loss
from rewarddance.alignment.safeguards import norm_excess, relative_norm, velocity_mse

CAP = 0.9
BELOW = [-30.0, -2.0, 0.0, 2.0]
"""Margins whose P(yes) is below the cap; 2.197 is the cap's own."""


def gradient(loss, margin: float) -> float:
    at = torch.tensor([margin], requires_grad=True)
    loss(at, CAP).backward()
    return at.grad.item()


@pytest.mark.parametrize("margin", BELOW)
def test_each_loss_is_its_formula(margin):
    p, at = 1 / (1 + math.exp(-margin)), torch.tensor([margin])
    assert linear_loss(at, CAP).item() == pytest.approx(-p)
    assert hinge_loss(at, CAP).item() == pytest.approx(CAP - p, rel=1e-5)
    assert log_loss(at, CAP).item() == pytest.approx(math.log(CAP) - math.log(p), rel=1e-5)
    assert margin_loss(at, CAP).item() == pytest.approx(math.log(9) - margin, rel=1e-5)


@pytest.mark.parametrize("margin", BELOW)
def test_each_slope_is_its_formula(margin):
    p = 1 / (1 + math.exp(-margin))
    assert gradient(linear_loss, margin) == pytest.approx(-p * (1 - p), rel=1e-4)
    assert gradient(hinge_loss, margin) == pytest.approx(-p * (1 - p), rel=1e-4)
    assert gradient(log_loss, margin) == pytest.approx(-(1 - p), rel=1e-4)
    assert gradient(margin_loss, margin) == -1


@pytest.mark.parametrize("name", ["hinge", "log", "margin"])
def test_a_sample_above_the_cap_teaches_nothing(name):
    assert LOSSES[name](torch.tensor([2.3, 50.0]), CAP).item() == 0
    assert gradient(LOSSES[name], 2.3) == 0


def test_the_linear_loss_never_stops():
    assert gradient(linear_loss, 4.0) < -0.01


def test_a_sample_that_is_surely_worse_still_teaches_by_log_and_margin():
    assert abs(gradient(hinge_loss, -30.0)) < 1e-12
    assert gradient(log_loss, -30.0) == pytest.approx(-1)
    assert gradient(margin_loss, -30.0) == -1


@pytest.mark.parametrize("loss", LOSSES.values())
def test_each_loss_is_the_mean_over_samples(loss):
    margins = torch.tensor([-1.0, 0.5, 3.0])
    assert loss(margins, CAP).item() == pytest.approx(sum(loss(one[None], CAP).item() for one in margins) / 3, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values())
def test_no_loss_falls_with_the_reward(loss):
    values = [loss(torch.tensor([margin]), CAP).item() for margin in torch.linspace(-8, 8, 33).tolist()]
    assert values == sorted(values, reverse=True) and values[0] > values[-1]


def test_the_velocity_distance_is_the_mean_square_and_pulls_back_to_the_base():
    v, base = torch.randn(2, 3, 4, 4).requires_grad_(), torch.randn(2, 3, 4, 4)
    distance = velocity_mse(v, base)
    assert distance.item() == pytest.approx(((v - base) ** 2).sum().item() / v.numel(), rel=1e-5)
    distance.backward()
    torch.testing.assert_close(v.grad, 2 * (v.detach() - base) / v.numel())
    assert velocity_mse(base, base).item() == 0


def test_the_norm_guard_is_a_hinge_on_the_relative_norm():
    base = torch.randn(3, 3, 4, 4)
    scales = torch.tensor([1.2, 0.9, 1.0])
    v = (scales[:, None, None, None] * base).requires_grad_()
    norm = relative_norm(v, base)
    torch.testing.assert_close(norm, scales)
    excess = norm_excess(norm)
    assert excess.item() == pytest.approx(0.2 / 3, rel=1e-4)
    excess.backward()
    length = base[0].norm()
    torch.testing.assert_close(v.grad[0], base[0] / length / length / 3)  # along v, by its own unit
    assert v.grad[1].abs().max() == 0
    rounded = torch.tensor([1.0000002, 0.9999998], requires_grad=True)  # at the first step, when both are the same
    norm_excess(rounded).backward()
    assert rounded.grad is not None and rounded.grad.tolist() == [0, 0]
