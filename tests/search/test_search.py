"""`search` with any method: it keeps to its budget and is reproducible, each prompt with its own noises."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator

from rewarddance.errors import InputError, RewardError, SearchIncomplete
from rewarddance.generators.sampling import sample
from rewarddance.search.batch import noise_seed
from rewarddance.search.best_of_n import Random
from rewarddance.search.judging import JUDGING
from rewarddance.search.over_paths import Paths
from rewarddance.search.run import METHODS, search
from rewarddance.types import Verdict

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]
EVERY = [*itertools.product(METHODS, JUDGING)]


def batch_sizes(generator: TinyGenerator) -> list[int]:
    """Records how many pictures each call of the network has."""
    batches: list[int] = []
    predict = generator.predict

    def recorded(x_t, step, condition):
        batches.append(len(x_t))
        return predict(x_t, step, condition)

    generator.predict = recorded
    return batches


@pytest.mark.parametrize(("method", "judging"), EVERY)
def test_every_method_keeps_to_its_budget_and_batch_and_gives_a_winner(method, judging):
    for budget in ("evaluations=150", "questions=61", "samples=20,questions=30"):
        generator = TinyGenerator(8)
        batches = batch_sizes(generator)
        options = {"judging": judging, "prompts_at_once": 2, "batch_size": 10}
        results = search(generator, Bright(), PROMPTS, method, budget, **options)
        assert [result.prompt.text for result in results] == PROMPTS
        assert max(batches) <= 10
        for result in results:
            spent = result.spent
            assert spent.evaluations <= {"e": 150, "q": 10**6, "s": 160}[budget[0]]
            assert spent.questions <= {"e": 10**6, "q": 61, "s": 30}[budget[0]]
            scores = [candidate.score for candidate in result.pictures]
            assert None not in scores
            if judging != "knockout":
                assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("method", METHODS)
def test_every_forward_of_a_search_is_one_for_sampling(method):
    """So that the one plain sample that a winner is held against is drawn in the same precision."""
    generator, depth, outside = TinyGenerator(8), [0], [0]
    predict = generator.predict

    @contextmanager
    def within():
        depth[0] += 1
        yield
        depth[0] -= 1

    def recorded(x_t, step, condition):
        outside[0] += depth[0] != 1
        return predict(x_t, step, condition)

    generator.predict, generator.for_sampling = recorded, within
    search(generator, Bright(), PROMPTS[:2], method, "samples=24", held_out=Bright())
    assert outside == [0]


@pytest.mark.parametrize("method", METHODS)
def test_what_counts_as_spent_is_what_was_computed(method):
    generator, judge = TinyGenerator(8), Bright()
    batches = batch_sizes(generator)
    spent = search(generator, judge, PROMPTS[:4], method, "samples=20", prompts_at_once=4, batch_size=32)[0].spent
    extra = 0 if method in ("best_of_n", "zero_order", "refine") else 4 * 8  # the first samples, for comparison
    assert sum(batches) == 4 * spent.evaluations + extra
    assert len(judge.questions) == 4 * spent.questions


@pytest.mark.parametrize("method", METHODS)
def test_the_same_search_gives_the_same_pictures(method):
    results, again = (search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16", seed=3) for _ in range(2))
    for a, b in zip(results, again, strict=True):
        assert [c.origin for c in a.pictures] == [c.origin for c in b.pictures]
        assert all(torch.equal(c.pixels, d.pixels) for c, d in zip(a.pictures, b.pictures, strict=True))
    other = search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16", seed=4)
    assert results[0].winner.origin != other[0].winner.origin


@pytest.mark.parametrize("method", METHODS)
def test_the_first_sample_is_the_same_in_every_method_and_costs_nothing(method):
    results = search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16")
    for index, result in enumerate(results):
        seed = noise_seed(0, index, 0)
        assert result.first.origin["noise"] == seed
        torch.testing.assert_close(result.first.pixels, sample(TinyGenerator(8), [result.prompt], [seed])[0])
        assert result.spent.evaluations <= 16 * 8


def test_best_of_n_is_the_best_of_the_prompts_first_n_noises():
    results = search(TinyGenerator(), Bright(), PROMPTS, "best_of_n", "samples=11", prompts_at_once=3, batch_size=12)
    for index, result in enumerate(results):
        seeds = [noise_seed(0, index, number) for number in range(11)]
        samples = sample(TinyGenerator(), [result.prompt] * 11, seeds)
        best = samples.mean(dim=(1, 2, 3, 4)).argsort(descending=True)[:3].tolist()
        assert [candidate.origin["noise"] for candidate in result.pictures] == [seeds[i] for i in best]
        assert result.spent[:3] == (44, 11, 11)


def test_n_can_end_a_search_before_the_budget_does():
    (result,) = search(TinyGenerator(), Bright(), ["a"], Random(n=5), "samples=100")
    assert result.spent.pictures == 5


def test_every_judging_chooses_the_same_where_the_judge_is_consistent():
    winners = []
    for judging in JUDGING:
        results = search(TinyGenerator(), Bright(9.0), PROMPTS, budget="samples=9", judging=judging)
        winners.append([result.winner.origin for result in results])
    assert all(chosen == winners[0] for chosen in winners)


def test_a_search_ends_soon_after_its_seconds():
    for method in METHODS:
        (result,) = search(TinyGenerator(8), Bright(), ["a"], method, "seconds=0.2")
        assert 0.05 < result.spent.seconds < 5.0  # soon, on a machine that other work holds up too
        assert result.spent.evaluations > 8
        assert result.spent.generator_seconds + result.spent.judge_seconds <= result.spent.seconds


def test_too_few_seconds_still_give_one_picture():
    for method in METHODS:
        (result,) = search(TinyGenerator(8), Bright(), ["a"], method, "seconds=0.000001")
        assert len(result.pictures) == 1 and result.spent.evaluations <= 8


def test_a_method_that_ran_no_round_says_so():
    (result,) = search(TinyGenerator(20), Bright(), ["a"], Paths(), "seconds=0.000001")
    assert result.rounds == 0 and "renoised" not in result.winner.origin
    for method in METHODS:
        (result,) = search(TinyGenerator(20), Bright(), ["a"], method, "samples=30")
        assert result.rounds > 0, method


def test_finished_prompts_are_reported():
    ticks: list[int] = []
    search(TinyGenerator(), Bright(), PROMPTS, budget="samples=2", prompts_at_once=2, tick=ticks.append)
    assert ticks == [2, 2, 1]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "beam"}, "no search method named 'beam'"),
        ({"budget": "samples"}, "not of the form"),
        ({"prompts_at_once": 5, "batch_size": 4}, "5 prompts at once do not go into a batch of 4"),
        ({"runners_up": -1}, "-1 runners-up"),
        ({"method": Paths(copies=3), "budget": "samples=1"}, "one path with 3 copies takes"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(options, error):
    with pytest.raises(InputError, match=error):
        search(TinyGenerator(8), Bright(), PROMPTS, **options)


class NotFinite(Bright):
    """Gives every picture of the prompt "bb" the same margin."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def __call__(self, questions):
        margin = super().__call__(questions).margin
        return Verdict(torch.where(torch.tensor([q.prompt.text == "bb" for q in questions]), self.margin, margin))


@pytest.mark.parametrize("margin", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_never_ranked_and_costs_its_own_prompt_alone(margin):
    with pytest.raises(SearchIncomplete, match=r"1 of 5 prompts failed.*number 2.*the reward of 'bb' is") as failed:
        search(TinyGenerator(), NotFinite(margin), PROMPTS, budget="samples=3")
    found, whole = failed.value.results, search(TinyGenerator(), Bright(), PROMPTS, budget="samples=3")
    assert isinstance(found[1], RewardError) and failed.value.__cause__ is found[1]
    for place in (0, 2, 3, 4):
        assert torch.equal(found[place].winner.pixels, whole[place].winner.pixels)
    with pytest.raises(RewardError, match="the reward of 'bb' is"):
        search(TinyGenerator(), NotFinite(margin), ["bb"], budget="samples=3")


def test_a_function_that_is_wrong_whatever_it_is_asked_ends_the_search_early_and_says_where_it_failed():
    asked = []

    class Broken(Bright):
        def __call__(self, questions):
            asked.append(len(questions))
            raise ZeroDivisionError("a slip")

    with pytest.raises(RewardError, match="ZeroDivisionError: a slip") as failed:
        search(TinyGenerator(), Broken(), PROMPTS, budget="samples=1", prompts_at_once=1)
    assert len(asked) == 2 and isinstance(failed.value.__cause__, ZeroDivisionError)


class TooFewMargins(Bright):
    """Leaves the last question unanswered."""

    def __call__(self, questions):
        return Verdict(torch.zeros(len(questions) - 1))


def test_a_reward_with_too_few_margins_is_refused():
    with pytest.raises(RewardError, match=r"answered 3 questions with margins of the shape \[2\]"):
        search(TinyGenerator(), TooFewMargins(), PROMPTS, budget="samples=3")


@pytest.mark.parametrize("method", METHODS)
def test_a_kept_candidate_holds_no_other_memory_of_its_batch(method):
    for result in search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16", batch_size=40):
        for candidate in (*result.pictures, result.first):
            assert candidate.pixels.untyped_storage().nbytes() == candidate.pixels.nbytes
            assert candidate.latent.untyped_storage().nbytes() == candidate.latent.nbytes


def test_a_held_out_reward_chooses_and_costs_nothing_and_rates_the_winner():
    plain = search(TinyGenerator(8), Bright(), PROMPTS, budget="samples=6")
    rated = search(TinyGenerator(8), Bright(), PROMPTS, budget="samples=6", held_out=Bright(bias=0.3))
    for a, b in zip(plain, rated, strict=True):
        assert a.held_out is None and a.winner.origin == b.winner.origin and a.spent[:3] == b.spent[:3]
        difference = b.winner.pixels.mean() - b.first.pixels.mean()
        assert b.held_out == pytest.approx(difference.item(), abs=1e-6)  # both orders: its bias is gone
    (result,) = search(TinyGenerator(), Bright(), ["a"], budget="samples=1", held_out=Bright())
    assert result.held_out == 0


@pytest.mark.parametrize("judging", JUDGING)
def test_a_reward_is_never_asked_about_nothing(judging):
    class Reward(Bright):
        def __call__(self, questions):
            assert questions
            return super().__call__(questions)

    (result,) = search(TinyGenerator(), Reward(), ["a"], budget="samples=1", judging=judging)
    assert len(result.pictures) == 1
