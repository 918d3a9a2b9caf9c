"""Pruning drops the trajectories whose predicted x_0 are poor, and stays within its budget."""

from __future__ import annotations

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator

from rewarddance.generators.sampling import predictions, sample
from rewarddance.search.batch import noise_seed
from rewarddance.search.pruning import Pruning, stages
from rewarddance.search.run import search


def test_stages_are_steps_between_the_first_and_the_last():
    assert stages(Pruning(), 12) == [3, 6]
    assert stages(Pruning(at=(0.01, 0.02, 0.99)), 12) == [1, 11]
    assert stages(Pruning(), 2) == [1]
    assert stages(Pruning(), 1) == []


def test_the_survivors_are_those_with_the_best_predictions():
    generator, recipe = TinyGenerator(8), Pruning(at=(0.5,), keep=0.25, trajectories=8)
    # 8 trajectories for 5 steps and 2 for 3
    (result,) = search(generator, Bright(), ["a"], recipe, "evaluations=46", runners_up=9)
    seeds = [noise_seed(0, 0, number) for number in range(8)]
    early, final = predictions(TinyGenerator(8), ["a"] * 8, seeds, [4] * 8)
    best = early.mean(dim=(1, 2, 3, 4)).argsort(descending=True)[:2].tolist()
    assert {candidate.origin["noise"] for candidate in result.pictures} == {seeds[i] for i in best}
    for candidate in result.pictures:
        torch.testing.assert_close(candidate.pixels, final[seeds.index(candidate.origin["noise"])])
    assert result.spent[:3] == (46, 8 + 2, 8 + 2)


@pytest.mark.parametrize("judging", ["alone", "first", "knockout", "tournament"])
def test_the_budget_is_used_and_never_passed(judging):
    generator, budget = TinyGenerator(10), "evaluations=137"
    for prompts in (["a"], ["a", "bb", "ccc"]):
        for result in search(generator, Bright(), prompts, Pruning(), budget, judging=judging, batch_size=24):
            assert 137 - 10 < result.spent.evaluations <= 137


def test_the_other_prompts_of_a_batch_change_nothing():
    options = {"prompts_at_once": 3, "batch_size": 24}
    results = search(TinyGenerator(), Bright(), ["a", "bb", "ccc"], "pruning", "samples=9", **options)
    seeds = [result.winner.origin["noise"] for result in results]
    assert len(set(seeds)) == 3
    for index, (result, seed) in enumerate(zip(results, seeds, strict=True)):
        torch.testing.assert_close(sample(TinyGenerator(), [result.prompt], [seed])[0], result.winner.pixels)
        assert seed in [noise_seed(0, index, number) for number in range(60)]


def test_it_finds_better_pictures_than_plain_samples_at_the_same_cost():
    def brightness(method) -> float:
        results = search(TinyGenerator(12), Bright(), ["a"] * 8, method, "samples=12", runners_up=0, batch_size=256)
        return torch.stack([result.winner.pixels.mean() for result in results]).mean().item()

    assert brightness(Pruning()) > brightness("best_of_n")
