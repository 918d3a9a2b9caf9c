"""AWM's, DGPO's, CRD's and DPO's formulas against closed forms and a Gaussian whose optimum is known."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import pipeline_folder
from torch.nn import functional as F

from rewarddance.alignment.awm import AwmRecipe, matching_log_prob
from rewarddance.alignment.crd import CrdRecipe, crd_loss, implicit_reward
from rewarddance.alignment.dgpo import DgpoRecipe, clipped, dgpo_loss
from rewarddance.alignment.forward_process import ForwardRecipe, Learned, group_mean, prediction_error
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.online_dpo import OnlineDpoRecipe, dpo_loss
from rewarddance.generators.pipelines import load_generator

RECIPES = [AwmRecipe(), DgpoRecipe(), CrdRecipe(adaptive=False), NftRecipe()]
names = [type(recipe).__name__ for recipe in RECIPES]
SIGMA = 0.6


def gaussian(n: int, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_0 ~ N(0.5, 1), the exact prediction of it from x_t, and standardised x_0 as advantage (a linear reward)."""
    rng = torch.Generator().manual_seed(0)
    x_0, eps = 0.5 + torch.randn(n, 1, generator=rng), torch.randn(n, 1, generator=rng)
    x_t = (1 - SIGMA) * x_0 + SIGMA * eps
    gain = (1 - SIGMA) / ((1 - SIGMA) ** 2 + SIGMA**2)
    advantage = x_0[:, 0].unflatten(0, (groups, -1))
    advantage = ((advantage - advantage.mean(1, keepdim=True)) / advantage.std(1, keepdim=True)).flatten()
    return x_0, 0.5 + gain * (x_t - (1 - SIGMA) * 0.5), advantage


def gradient(recipe: ForwardRecipe, shift: float, n: int = 40_000) -> float:
    """d loss / d shift of a prediction that is the exact one and a shift, the old policy and the base being exact."""
    x_0, exact, advantage = gaussian(n)
    moved = torch.tensor(shift, requires_grad=True)
    group = torch.zeros(n, dtype=torch.long)
    learned = Learned(x_0, exact + moved, exact, exact, advantage, group, SIGMA, 1 / SIGMA)
    return torch.autograd.grad(recipe.loss(learned), moved)[0].item()


@pytest.mark.parametrize("recipe", RECIPES, ids=names)
def test_each_methods_first_step_goes_the_way_that_raises_a_linear_reward(recipe):
    assert gradient(recipe, 0.0) < -0.1


def test_awms_first_gradient_is_the_covariance_of_advantage_and_x_0():
    """d / d shift of mean A (x_0_hat - x_0)^2 / sigma^2 is - 2 cov(A, x_0 - E[x_0 | x_t]) / sigma^2; A is x_0's."""
    left = 1 - (1 - SIGMA) ** 2 / ((1 - SIGMA) ** 2 + SIGMA**2)  # of the variance, once x_t is known
    assert gradient(AwmRecipe(), 0.0) == pytest.approx(-2 * left / SIGMA**2, rel=0.02)


def test_dgpos_first_gradient_is_half_of_awms():
    """Where the network is the base, no group is told apart, and the weight is sigmoid(0)."""
    assert gradient(DgpoRecipe(), 0.0) == pytest.approx(0.5 * gradient(AwmRecipe(), 0.0), rel=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_crds_optimum_on_a_gaussian_is_the_shift_that_the_reward_calls_for(beta):
    """R is linear in x_0 with slope 2 shift / sigma^2, r with slope 1 / 2 clip: least squares is known."""
    recipe = CrdRecipe(beta=beta, adaptive=False, advantage_clip=5.0)
    x_0, exact, advantage = gaussian(40_000)
    r = 0.5 + 0.5 * (advantage / 5).clamp(-1, 1)
    slope = 2 * (x_0 - exact)[:, 0] / SIGMA**2  # of R in the shift
    slope, r = slope - slope.mean(), r - r.mean()
    best = ((slope * r).sum() / (slope * slope).sum() / beta).item()
    step = 0.05  # the mean of R is taken as given, but centring makes its gradient vanish; R's square term cancels
    assert gradient(recipe, best - step) < 0 < gradient(recipe, best + step)
    assert abs(gradient(recipe, best)) < 0.02 * abs(gradient(recipe, 0.0))


def test_dpos_optimum_on_a_gaussian_is_the_shift_that_the_pairs_call_for():
    """Pairs won with the logit k (e_w - e_l), e = x_0 - E[x_0 | x_t]: the shift is k sigma^2 / beta."""
    beta, k, n = 4.0, 2.0, 40_000
    x_0, exact, _ = gaussian(n)
    e = (x_0 - exact)[:, 0].unflatten(0, (-1, 2))
    rng = torch.Generator().manual_seed(1)
    first = torch.rand(n // 2, generator=rng) < (k * (e[:, 0] - e[:, 1])).sigmoid()
    advantage = torch.stack([first.float(), 1 - first.float()], 1).flatten()
    recipe = OnlineDpoRecipe(beta=beta)

    def slope(shift: float) -> float:
        moved, total = torch.tensor(shift, requires_grad=True), 0.0
        for rows in torch.arange(n).split(400):  # the pairs of a batch are a matrix
            of_rows = x_0[rows], exact[rows] + moved, None, exact[rows], advantage[rows], rows // 2
            learned = Learned(*of_rows, SIGMA, 1 / SIGMA)
            total += torch.autograd.grad(recipe.loss(learned), moved)[0].item()
        return total

    best = k * SIGMA**2 / beta
    assert slope(0.8 * best) < 0 < slope(1.2 * best) and abs(slope(best)) < 0.15 * abs(slope(0.0))


def test_dpos_loss_is_the_mean_over_a_groups_pairs_that_differ():
    fall, advantage = torch.tensor([0.3, 0.1, 0.2, 0.5, 0.4]), torch.tensor([1.0, 0.0, 0.0, 2.0, 2.0])
    group = torch.tensor([0, 0, 0, 1, 1])  # the second group has no order
    by_hand = -(F.logsigmoid(torch.tensor(0.2)) + F.logsigmoid(torch.tensor(0.1))) / 2 / 2
    torch.testing.assert_close(dpo_loss(fall, advantage, group, beta=2.0), by_hand)


def test_dpo_takes_the_best_and_the_worst_and_any_two_of_a_flat_group():
    advantage = torch.tensor([[0.0, 2.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    chosen = OnlineDpoRecipe(group_size=4).chosen(advantage)
    assert chosen[0].tolist() == [False, True, True, False] and chosen.sum(1).tolist() == [2, 2]
    assert OnlineDpoRecipe(group_size=4, pairs="all").chosen(advantage).all()


def test_the_error_is_that_of_a_flows_velocity():
    x_0, eps, v = torch.randn(3, 2, 4), torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    x_t = (1 - SIGMA) * x_0 + SIGMA * eps
    found = prediction_error(x_t - SIGMA * v, x_0, 1 / SIGMA)
    torch.testing.assert_close(found, v - (eps - x_0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["sd15-ddim", "sd15-v", "sdxl-euler", "sdxl-euler-v"])
def test_the_error_is_that_of_what_a_diffusion_network_predicts(family):
    """eps, or v = alpha eps - sigma x_0, of a network whose pipeline says which; whatever its sampler."""
    generator = load_generator(str(pipeline_folder(family)), 4)
    for step in (0, 3):
        alpha, sigma = generator.scales(step)
        x_0, eps, told = torch.randn(3, *generator.init_noise([0]).shape)
        right = alpha * eps - sigma * x_0 if family.endswith("-v") else eps
        x_0_hat = generator.predict_x0(alpha * x_0 + sigma * eps, told, step)
        error = prediction_error(x_0_hat, x_0, generator.error_scale(step))
        torch.testing.assert_close(error, told - right, rtol=1e-3, atol=1e-3)


def test_a_groups_mean_is_taken_whatever_its_number_and_order():
    found = group_mean(torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.tensor([9, 2, 9, 2]))
    assert found.tolist() == [2, 6, 2, 6]


def test_the_matching_loss_is_weighted_by_powers_of_the_level():
    errors = torch.rand(3)
    for weighting, power in (("uniform", 0), ("t", 1), ("t^2", 2)):
        torch.testing.assert_close(matching_log_prob(errors, SIGMA, weighting), -errors * SIGMA**power)


def test_dgpos_gradient_is_that_of_its_log_sigmoid():
    error, base, advantage = torch.rand(8, requires_grad=True), torch.rand(8), torch.randn(8)
    group, beta = torch.arange(8) // 4, 3.0
    (found,) = torch.autograd.grad(dgpo_loss(error, base, advantage, group, beta), error)
    told = torch.stack([(beta * advantage * (error - base))[group == k].mean() for k in range(2)])
    (expected,) = torch.autograd.grad(-F.logsigmoid(-told).mean() / beta, error)
    torch.testing.assert_close(found, expected)


def test_errors_that_went_far_enough_have_no_gradient():
    error = torch.tensor([0.5, 0.5, 1.5, 1.5], requires_grad=True)
    found = clipped(error, torch.ones(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.1)
    torch.testing.assert_close(found, error)
    assert torch.autograd.grad(found.sum(), error)[0].tolist() == [0, 1, 1, 0]


def test_an_implicit_reward_is_the_fall_of_the_error_and_may_be_divided_by_its_size():
    error, old = torch.randn(3, 6), torch.randn(3, 6)
    torch.testing.assert_close(implicit_reward(error, old, False), old.square().mean(1) - error.square().mean(1))
    by_size = old.square().mean(1) / old.abs().mean(1) - error.square().mean(1) / error.abs().mean(1)
    torch.testing.assert_close(implicit_reward(error, old, True), by_size)


def test_crds_loss_is_nought_where_the_centred_rewards_agree():
    r, group = torch.rand(8), torch.arange(8) // 4
    assert crd_loss(r / 2 + group, r, group, beta=2.0).item() == pytest.approx(0, abs=1e-12)
    assert crd_loss(r, r, group, beta=2.0).item() > 0.01


def test_the_old_policys_decay_follows_the_authors_schedules():
    slow = NftRecipe(decay_rise=0.001, ema_decay=0.5)
    late = NftRecipe(decay_rise=0.0075, decay_from=75, ema_decay=0.999, updates=2, prompts_per_step=2)
    assert [slow.decay_at(step) for step in (0, 99, 10_000)] == pytest.approx([0.001, 0.1, 0.5])
    assert [late.decay_at(step) for step in (0, 36, 37, 10_000)] == pytest.approx([0, 0, 0.0075, 0.999])
    assert NftRecipe().decay_at(0) == NftRecipe().decay_at(99) == 0.5
