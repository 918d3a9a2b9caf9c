"""Zero-order search stays among noises, moves only to better ones, and is random search at radius 1."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian import Bright, generators
from tiny import GaussianGenerator, TinyGenerator

from rewarddance.search.run import search
from rewarddance.search.zero_order import ZeroOrder


@pytest.mark.parametrize("family", sorted(generators(4)))
def test_neighbours_of_neighbours_are_as_noisy_as_the_first(family):
    generator = generators(4)[family]
    results = search(generator, Bright(), ["p"] * 4, ZeroOrder(radius=0.5), "samples=30", runners_up=29)
    expected = math.hypot(*generator.scales(0))
    latents = torch.stack([candidate.latent for result in results for candidate in result.pictures])
    assert latents.std().item() == pytest.approx(expected, rel=0.05)


def test_a_neighbour_is_at_the_radius_from_its_pivot():
    generator = GaussianGenerator(2.0, 0.5, 4)
    (result,) = search(generator, Bright(), ["p"], ZeroOrder(neighbours=6, radius=0.3), "samples=7", runners_up=6)
    pivot = result.first.latent
    for candidate in result.pictures:
        if candidate is not result.first:
            eps = generator.init_noise([candidate.origin["moved"][-1]])[0]
            torch.testing.assert_close(candidate.latent, math.sqrt(1 - 0.09) * pivot + 0.3 * eps)


def test_the_pivot_is_the_noise_of_the_best_picture_so_far():
    judge = Bright()
    (result,) = search(TinyGenerator(), judge, ["p"], ZeroOrder(neighbours=1, radius=0.2), "samples=40", runners_up=39)
    judged = [id(question.candidate) for question in judge.questions]
    by_age = sorted(result.pictures, key=lambda candidate: judged.index(id(candidate.pixels)))
    best = by_age[0]
    for candidate in by_age[1:]:
        assert candidate.origin["moved"][:-1] == best.origin.get("moved", [])
        best = candidate if candidate.score > best.score else best
    assert best is result.winner and len(best.origin["moved"]) > 3


def test_in_a_smooth_landscape_it_climbs_higher_than_random_search():
    def brightness(method) -> float:
        results = search(TinyGenerator(), Bright(), ["p"] * 6, method, "samples=60", runners_up=0)
        return torch.stack([result.winner.pixels.mean() for result in results]).mean().item()

    assert brightness(ZeroOrder(radius=0.4)) > brightness("best_of_n") + 0.02


def test_at_radius_1_nothing_is_left_of_the_pivot():
    generator = GaussianGenerator(2.0, 0.5, 4)
    (result,) = search(generator, Bright(), ["p"], ZeroOrder(radius=1.0), "samples=5", runners_up=4)
    neighbours = [candidate for candidate in result.pictures if candidate is not result.first]
    for candidate in neighbours:
        torch.testing.assert_close(candidate.latent, generator.init_noise([candidate.origin["moved"][-1]])[0])
