"""`search`, any method: within its budget, the same whenever it is made again, each prompt from its own noises."""

from __future__ import annotations

import itertools

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator

from rewarddance.errors import InputError, RewardError
from rewarddance.generators.sampling import sample
from rewarddance.search.batch import noise_seed
from rewarddance.search.best_of_n import Random
from rewarddance.search.judging import JUDGING
from rewarddance.search.over_paths import Paths
from rewarddance.search.run import METHODS, search
from rewarddance.types import Verdict

PROMPTS = ["a", "bb", "ccc", "dddd", "eeeee"]
EVERY = [*itertools.product(METHODS, JUDGING)]


def widths(generator: TinyGenerator) -> list[int]:
    """Notes how many pictures are made together."""
    seen: list[int] = []
    own = generator.predict

    def predict(x_t, step, condition):
        seen.append(len(x_t))
        return own(x_t, step, condition)

    generator.predict = predict
    return seen


@pytest.mark.parametrize(("method", "judging"), EVERY)
def test_no_method_passes_its_budget_or_its_batch_and_every_one_gives_a_winner(method, judging):
    for budget in ("evaluations=150", "questions=61", "samples=20,questions=30"):
        made = TinyGenerator(8)
        seen = widths(made)
        found = search(made, Bright(), PROMPTS, method, budget, judging=judging, prompts_at_once=2, batch_size=10)
        assert [one.prompt.text for one in found] == PROMPTS
        assert max(seen) <= 10
        for one in found:
            spent = one.spent
            assert spent.evaluations <= {"e": 150, "q": 10**6, "s": 160}[budget[0]]
            assert spent.questions <= {"e": 10**6, "q": 61, "s": 30}[budget[0]]
            scores = [each.score for each in one.pictures]
            assert None not in scores
            if judging != "knockout":
                assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("method", METHODS)
def test_what_was_spent_is_what_was_asked_for(method):
    made, judge = TinyGenerator(8), Bright()
    seen = widths(made)
    found = search(made, judge, PROMPTS[:4], method, "samples=20", prompts_at_once=4, batch_size=32)
    extra = 0 if method in ("best_of_n", "zero_order", "refine") else 4 * 8  # the first samples, for comparison
    assert sum(seen) == 4 * found[0].spent.evaluations + extra
    assert len(judge.asked) == 4 * found[0].spent.questions


@pytest.mark.parametrize("method", METHODS)
def test_made_again_it_is_the_same(method):
    one, again = (search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16", seed=3) for _ in range(2))
    for a, b in zip(one, again, strict=True):
        assert [c.origin for c in a.pictures] == [c.origin for c in b.pictures]
        assert all(torch.equal(c.pixels, d.pixels) for c, d in zip(a.pictures, b.pictures, strict=True))
    other = search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16", seed=4)
    assert one[0].winner.origin != other[0].winner.origin


@pytest.mark.parametrize("method", METHODS)
def test_the_first_sample_is_the_same_in_every_method_and_costs_nothing_extra(method):
    found = search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16")
    for place, one in enumerate(found):
        seed = noise_seed(0, place, 0)
        assert one.first.origin["noise"] == seed
        torch.testing.assert_close(one.first.pixels, sample(TinyGenerator(8), [one.prompt], [seed])[0])
        assert one.spent.evaluations <= 16 * 8


def test_best_of_n_is_the_best_of_the_prompts_first_n_noises():
    found = search(TinyGenerator(), Bright(), PROMPTS, "best_of_n", "samples=11", prompts_at_once=3, batch_size=12)
    for place, one in enumerate(found):
        seeds = [noise_seed(0, place, number) for number in range(11)]
        own = sample(TinyGenerator(), [one.prompt] * 11, seeds)
        best = own.mean(dim=(1, 2, 3, 4)).argsort(descending=True)[:3].tolist()
        assert [each.origin["noise"] for each in one.pictures] == [seeds[i] for i in best]
        assert one.spent[:3] == (44, 11, 11)


def test_n_may_end_it_before_the_budget_does():
    (found,) = search(TinyGenerator(), Bright(), ["a"], Random(n=5), "samples=100")
    assert found.spent.pictures == 5


def test_a_knockout_and_a_tournament_agree_with_a_judge_that_orders_everything():
    chosen = [
        [one.winner.origin for one in search(TinyGenerator(), Bright(9.0), PROMPTS, budget="samples=9", judging=name)]
        for name in ("knockout", "tournament", "first", "alone")
    ]
    assert chosen[0] == chosen[1] == chosen[2] == chosen[3]


def test_seconds_end_it_soon_after_they_are_over():
    for method in METHODS:
        (found,) = search(TinyGenerator(8), Bright(), ["a"], method, "seconds=0.2")
        assert 0.05 < found.spent.seconds < 1.0
        assert found.spent.evaluations > 8
        assert found.spent.generator_seconds + found.spent.judge_seconds <= found.spent.seconds


def test_too_few_seconds_still_give_one_picture():
    for method in METHODS:
        (found,) = search(TinyGenerator(8), Bright(), ["a"], method, "seconds=0.000001")
        assert len(found.pictures) == 1 and found.spent.evaluations <= 8


def test_a_method_that_got_no_round_says_so():
    (found,) = search(TinyGenerator(20), Bright(), ["a"], Paths(), "seconds=0.000001")
    assert found.rounds == 0 and "renoised" not in found.winner.origin
    for method in METHODS:
        (found,) = search(TinyGenerator(20), Bright(), ["a"], method, "samples=30")
        assert found.rounds > 0, method


def test_finished_prompts_are_heard():
    heard: list[int] = []
    search(TinyGenerator(), Bright(), PROMPTS, budget="samples=2", prompts_at_once=2, tick=heard.append)
    assert heard == [2, 2, 1]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"method": "beam"}, "no search method named 'beam'"),
        ({"budget": "samples"}, "not of the form"),
        ({"prompts_at_once": 5, "batch_size": 4}, "5 prompts at once do not go into a batch of 4"),
        ({"runners_up": -1}, "-1 runners-up"),
        ({"method": Paths(copies=3), "budget": "samples=1"}, "one path with 3 copies takes"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(options, what):
    with pytest.raises(InputError, match=what):
        search(TinyGenerator(8), Bright(), PROMPTS, **options)


class Strange(Bright):
    """Gives `said` of every picture for the prompt "bb"."""

    def __init__(self, said: float) -> None:
        super().__init__()
        self.said = said

    def __call__(self, questions):
        margin = super().__call__(questions).margin
        return Verdict(torch.where(torch.tensor([q.prompt.text == "bb" for q in questions]), self.said, margin))


@pytest.mark.parametrize("said", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_never_ranked(said):
    with pytest.raises(RewardError, match="the reward of 'bb' is"):
        search(TinyGenerator(), Strange(said), PROMPTS, budget="samples=3")


class Short(Bright):
    """Leaves the last question unanswered."""

    def __call__(self, questions):
        return Verdict(torch.zeros(len(questions) - 1))


def test_a_reward_that_answers_something_else_than_was_asked_is_told_so():
    with pytest.raises(RewardError, match=r"answered 15 questions with margins of the shape \[14\]"):
        search(TinyGenerator(), Short(), PROMPTS, budget="samples=3")


@pytest.mark.parametrize("method", METHODS)
def test_what_is_kept_keeps_nothing_of_its_batch_in_memory(method):
    for one in search(TinyGenerator(8), Bright(), PROMPTS, method, "samples=16", batch_size=40):
        for each in (*one.pictures, one.first):
            assert each.pixels.untyped_storage().nbytes() == each.pixels.nbytes
            assert each.latent.untyped_storage().nbytes() == each.latent.nbytes


def test_a_held_out_reward_chooses_and_costs_nothing_and_rates_the_winner():
    plain = search(TinyGenerator(8), Bright(), PROMPTS, budget="samples=6")
    watched = search(TinyGenerator(8), Bright(), PROMPTS, budget="samples=6", held_out=Bright(bias=0.3))
    for one, same in zip(plain, watched, strict=True):
        assert one.held_out is None and one.winner.origin == same.winner.origin and one.spent[:3] == same.spent[:3]
        more = same.winner.pixels.mean() - same.first.pixels.mean()
        assert same.held_out == pytest.approx(more.item(), abs=1e-6)  # both orders: its bias is gone
    (one,) = search(TinyGenerator(), Bright(), ["a"], budget="samples=1", held_out=Bright())
    assert one.held_out == 0


@pytest.mark.parametrize("judging", JUDGING)
def test_a_reward_is_never_asked_about_nothing(judging):
    class Reward(Bright):
        def __call__(self, questions):
            assert questions
            return super().__call__(questions)

    (one,) = search(TinyGenerator(), Reward(), ["a"], budget="samples=1", judging=judging)
    assert len(one.pictures) == 1
