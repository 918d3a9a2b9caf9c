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
    made = generators(4)[family]
    found = search(made, Bright(), ["p"] * 4, ZeroOrder(radius=0.5), "samples=30", runners_up=29)
    expected = math.hypot(*made.scales(0))
    latents = torch.stack([one.latent for each in found for one in each.pictures])
    assert latents.std().item() == pytest.approx(expected, rel=0.05)


def test_a_neighbour_is_at_the_radius_from_its_pivot():
    made = GaussianGenerator(2.0, 0.5, 4)
    (found,) = search(made, Bright(), ["p"], ZeroOrder(neighbours=6, radius=0.3), "samples=7", runners_up=6)
    pivot = found.first.latent
    for one in found.pictures:
        if one is not found.first:
            eps = made.init_noise([one.origin["moved"][-1]])[0]
            torch.testing.assert_close(one.latent, math.sqrt(1 - 0.09) * pivot + 0.3 * eps)


def test_the_noise_of_the_best_so_far_is_where_it_goes_on():
    judge = Bright()
    (found,) = search(TinyGenerator(), judge, ["p"], ZeroOrder(neighbours=1, radius=0.2), "samples=40", runners_up=39)
    by_age = sorted(found.pictures, key=lambda one: [id(q.candidate) for q in judge.asked].index(id(one.pixels)))
    best = by_age[0]
    for one in by_age[1:]:
        assert one.origin["moved"][:-1] == best.origin.get("moved", [])
        best = one if one.score > best.score else best
    assert best is found.winner and len(best.origin["moved"]) > 3


def test_in_a_smooth_landscape_it_climbs_higher_than_random_search():
    def brightness(method) -> float:
        found = search(TinyGenerator(), Bright(), ["p"] * 6, method, "samples=60", runners_up=0)
        return torch.stack([one.winner.pixels.mean() for one in found]).mean().item()

    assert brightness(ZeroOrder(radius=0.4)) > brightness("best_of_n") + 0.02


def test_at_radius_1_nothing_is_left_of_the_pivot():
    made = GaussianGenerator(2.0, 0.5, 4)
    (found,) = search(made, Bright(), ["p"], ZeroOrder(radius=1.0), "samples=5", runners_up=4)
    moved = [one for one in found.pictures if one is not found.first]
    for one in moved:
        torch.testing.assert_close(one.latent, made.init_noise([one.origin["moved"][-1]])[0])
