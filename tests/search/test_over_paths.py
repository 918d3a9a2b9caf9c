"""Search over paths: noising again is exact in every family, and the best copies stay."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian import Bright, GaussianDiffusion, exploding, generators, preserving
from tiny import GaussianGenerator, TinyGenerator

from rewarddance.errors import InputError
from rewarddance.search.over_paths import Paths, noise_level, plan_rounds, renoised
from rewarddance.search.recipe import Budget
from rewarddance.search.run import read_method, search
from rewarddance.types import Scales

FAMILIES = sorted(generators(4))


def pairs(family: str) -> list[tuple[Scales, Scales]]:
    """The scales of some pairs of a family's steps, the less noisy one first."""
    generator = generators(20)[family]
    return [(generator.scales(s), generator.scales(t)) for s, t in ((20, 3), (18, 1), (10, 9), (15, 0))]


@pytest.mark.parametrize("family", FAMILIES)
def test_noising_again_gives_the_noisier_marginal_exactly(family):
    """By covariance: x_s has the noise sigma_s, and after noising the sum of both has sigma_t, on alpha_t x_0."""
    for s, t in pairs(family):
        x_0, eps, eps_again = torch.eye(3, dtype=torch.float64)  # three independent directions
        x_t = renoised(s.alpha * x_0 + s.sigma * eps, eps_again, s, t)
        assert x_t[0].item() == pytest.approx(t.alpha)
        assert x_t[1:].norm().item() == pytest.approx(t.sigma)


@pytest.mark.parametrize("family", FAMILIES)
def test_noising_to_the_same_level_changes_nothing(family):
    s = generators(20)[family].scales(7)
    x_s = torch.randn(2, 5)
    torch.testing.assert_close(renoised(x_s, torch.randn(2, 5), s, s), x_s)


def test_flow_noise_is_the_known_formula():
    x, eps = torch.randn(2, 4, dtype=torch.float64)
    s, t = 0.2, 0.7
    expected = (1 - t) / (1 - s) * x + math.sqrt(t**2 - ((1 - t) * s / (1 - s)) ** 2) * eps
    torch.testing.assert_close(renoised(x, eps, Scales(1 - s, s), Scales(1 - t, t)), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gaussian_noised_again_has_the_marginal_of_its_step(family):
    """From data to level t: mean and deviation of the latents are those of the closed form."""
    generator = generators(20)[family]
    x_0 = 2.0 + 0.5 * torch.randn(400_000)
    for step in (2, 8, 14):
        alpha, sigma = generator.scales(step)
        x_t = renoised(x_0, torch.randn(400_000), generator.scales(20), generator.scales(step))
        deviation = math.sqrt(alpha**2 * 0.25 + sigma**2)
        assert x_t.mean().item() == pytest.approx(2.0 * alpha, abs=0.01 * deviation)
        assert x_t.std().item() == pytest.approx(deviation, rel=0.01)


@pytest.mark.parametrize("scales", [preserving(12), exploding(12)], ids=["preserving", "exploding"])
@pytest.mark.parametrize("step", [0, 5, 11])
def test_the_predicted_x_0_of_a_gaussian_diffusion_is_its_posterior_mean(scales, step):
    generator = GaussianDiffusion(2.0, 0.5, scales)
    alpha, sigma = generator.scales(step)
    x_t = alpha * 2.0 + math.sqrt(alpha**2 * 0.25 + sigma**2) * torch.randn(50)
    gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
    x_0 = generator.predict_x0(x_t, generator.predict(x_t, step, None), step)
    torch.testing.assert_close(x_0, 2.0 + gain * (x_t - alpha * 2.0), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_path_with_one_copy_ends_in_the_data_whatever_the_family(family):
    """Nothing is chosen, so noising and denoising must leave the distribution as it is."""
    generator = generators(120)[family]
    recipe = Paths(paths=1, copies=1)
    results = search(generator, Bright(), ["p"] * 16, recipe, "samples=6", prompts_at_once=16, runners_up=9)
    candidates = [candidate for result in results for candidate in result.pictures if "renoised" in candidate.origin]
    assert len(candidates) == 16
    pixels = torch.stack([candidate.pixels for candidate in candidates])
    assert pixels.mean().item() == pytest.approx(2.0, abs=0.04)
    assert pixels.std().item() == pytest.approx(0.5, rel=0.05)


def test_levels_are_shares_of_noise_and_sigma_itself_for_flow():
    assert noise_level(Scales(0.3, 0.7)) == pytest.approx(0.7)
    assert noise_level(Scales(1.0, 0.0)) == 0
    assert noise_level(Scales(1.0, 50.0)) == pytest.approx(50 / 51)
    assert noise_level(Scales(math.sqrt(0.5), math.sqrt(0.5))) == pytest.approx(0.5)


def test_the_published_levels_take_four_rounds():
    levels = [1 - step / 100 for step in range(101)]
    plan = plan_rounds(Paths(), levels)
    assert plan.start == 89
    assert plan.rounds == [(11, 92), (14, 95), (17, 98), (20, 100)]


def test_steps_that_are_too_coarse_are_refused():
    levels = [1.0, 0.5, 0.0]
    with pytest.raises(InputError, match="a generator of 2 steps has none between") as caught:
        plan_rounds(Paths(sigma=0.1, df=0.1, db=0.2), levels)
    assert "num_inference_steps" in caught.value.remedy


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"df": 0.8, "db": 0.8}, "never end"),
        ({"sigma": 0.5, "df": 0.6, "db": 0.9}, "more than 1"),
        ({"copies": 0}, "copies"),
    ],
)
def test_levels_that_lead_nowhere_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        Paths(**options)


@pytest.mark.parametrize("judging", ["alone", "first", "knockout", "tournament"])
def test_cost_is_as_planned_and_the_rest_goes_into_plain_samples(judging):
    generator = TinyGenerator(20)
    plan = plan_rounds(Paths(), [noise_level(generator.scales(step)) for step in range(21)])
    copies = 8
    whole = 2 * plan.start + sum(copies * (down - up + (down < 20)) for up, down in plan.rounds)
    budget = Budget(evaluations=whole + 25)
    (result,) = search(generator, Bright(), ["p"], Paths(), budget, judging=judging, runners_up=100)
    assert result.spent.evaluations == whole + 20
    plain = [candidate for candidate in result.pictures if "renoised" not in candidate.origin]
    assert len(plain) == 1


def test_every_round_records_its_noise_so_that_a_path_can_be_repeated():
    generator = GaussianGenerator(2.0, 0.5, 30)
    (result,) = search(generator, Bright(), ["p"], Paths(paths=1, copies=3), "samples=14", runners_up=0)
    origin = result.winner.origin
    plan = plan_rounds(Paths(), [noise_level(generator.scales(step)) for step in range(31)])
    assert len(origin["renoised"]) == len(plan.rounds)
    x, current = generator.init_noise([origin["noise"]]), plan.start

    def denoise(x, start, stop):
        for step in range(start, stop):
            x = generator.advance(x, generator.predict(x, step, None), step)
        return x

    x = denoise(x, 0, current)
    for (up, down), seed in zip(plan.rounds, origin["renoised"], strict=True):
        eps = torch.randn(x[0].shape, generator=torch.Generator().manual_seed(seed))[None]
        x = denoise(renoised(x, eps, generator.scales(current), generator.scales(up)), up, down)
        current = down
    torch.testing.assert_close(generator.decode(x)[0], result.winner.pixels)


def test_the_copies_that_stay_are_the_best():
    """With a judge of brightness the winners are brighter than plain samples."""
    generator = GaussianGenerator(2.0, 0.5, 20)
    results = search(generator, Bright(), ["p"] * 8, Paths(paths=1, copies=8), "samples=40", runners_up=0)
    brightness = torch.stack([result.winner.pixels.mean() for result in results]).mean().item()
    spread = 0.5 / math.sqrt(3 * 8 * 8)  # of the mean of one picture
    assert brightness > 2.0 + 1.2 * spread


def test_a_budget_below_one_path_is_refused_with_its_cost():
    with pytest.raises(InputError, match=r"one path with 4 copies takes \d+ evaluations, the budget has 20"):
        search(TinyGenerator(20), Bright(), ["p"], "paths", "samples=1")


def test_more_copies_than_a_batch_holds_are_refused():
    with pytest.raises(InputError, match="9 copies of a path are more than the 8 pictures"):
        search(TinyGenerator(20), Bright(), ["p"] * 8, Paths(copies=9), "samples=40")


def test_more_paths_or_pictures_than_a_batch_holds_are_refused():
    with pytest.raises(InputError, match="4 paths of 4 copies are more than the 8 pictures"):
        search(TinyGenerator(20), Bright(), ["p"] * 8, Paths(paths=4), "samples=400")
    for method, option in (("pruning", "trajectories"), ("zero_order", "neighbours")):
        with pytest.raises(InputError, match=f"{option} is 16, and 8 pictures of a prompt are made together"):
            search(TinyGenerator(20), Bright(), ["p"] * 8, read_method(method, {option: 16}), "samples=40")
