"""A judge whose taste is known is examined: what the figures must be, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny import BrightnessJudge

from rewarddance.errors import InputError, RewardError
from rewarddance.evaluation.answers import Candidates, ask, groups_of, of_most_prompts
from rewarddance.evaluation.examine import examine
from rewarddance.evaluation.findings import Evaluation, JudgeFacts, SetFindings
from rewarddance.evaluation.recipe import ExamRecipe
from rewarddance.types import Preference, Prompt, Question, Verdict

PAIRWISE, REGRESSIVE = (JudgeFacts(name="judge", kind=kind) for kind in ("pairwise", "regressive"))
RECIPE = ExamRecipe(batch_size=7, probes=20, groups=6, pictures=4)


class OwnScores:
    """Scores a picture by 8 times its mean; an answer on a pair is the difference. Prompts of more words please it."""

    needs_reference = False

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        own = [8 * q.candidate.mean() + len(q.prompt.text.split()) for q in questions]
        other = [0 if q.reference is None else 8 * q.reference.mean() + len(q.prompt.text.split()) for q in questions]
        return Verdict(torch.stack([a - b for a, b in zip(own, other, strict=True)]))


def made(prompts: int = 10, each: int = 4, noise: float = 0.05, ties: bool = True) -> list[Preference]:
    """Pairs of nearly flat pictures, four pictures a prompt; the brighter is voted for, every fourth pair is a tie."""
    rng = torch.Generator().manual_seed(2)
    pairs = []
    for i in range(prompts):
        shown = 0.2 + 0.6 * torch.rand(4, 1, 1, 1, 1, generator=rng) + noise * torch.rand(4, 1, 3, 4, 4, generator=rng)
        for k in range(each):
            first, second = shown[k % 4], shown[(k + 1) % 4]
            share = float(second.mean() > first.mean())
            tie = ties and k == 3
            prompt = f"{'very ' * (i % 3)}bright {i}"
            pairs.append(Preference(prompt, first, second, 0.5 if tie else share, ("x/y", "y/x")[k % 2]))
    return pairs


def examined(judge=None, facts: JudgeFacts = PAIRWISE, pairs: Sequence[Preference] | None = None) -> SetFindings:
    pairs = made() if pairs is None else pairs
    findings, failed = examine(judge or BrightnessJudge(1.0), facts, pairs, RECIPE, name="id", file="id.jsonl")
    assert findings.failed == len(failed) == 0
    return findings


@pytest.fixture(scope="module")
def whole() -> SetFindings:
    return examined()


def test_a_judge_of_the_voters_taste_is_always_right(whole):
    assert (whole.pairs, whole.prompts, whole.ties) == (40, 10, 10)
    assert tuple(whole.accuracy) == pytest.approx((1, 0.8865, 1, 30), abs=1e-4)  # Wilson's of 30 of 30
    assert {name: figure.mean for name, figure in whole.by_source.items()} == {"x/y": 1, "y/x": 1}
    assert whole.by_criterion == {}


def test_an_opposite_judge_is_always_wrong_and_no_temperature_helps_it():
    turned = [Preference(p.prompt, p.second, p.first, p.share, criterion="beauty") for p in made()]
    found = examined(pairs=turned)
    assert found.accuracy.mean == 0  # type: ignore[union-attr]
    assert found.by_criterion["beauty"].mean == 0 and found.by_source == {}
    assert "No temperature helps" in found.calibration.temperature  # type: ignore[operator]


def test_ties_that_look_alike_no_more_than_others_cost_their_share(whole):
    assert 0.5 <= whole.with_ties.accuracy.mean <= 1 and whole.with_ties.accuracy.n == 40
    assert examined(pairs=made(ties=False)).with_ties == "No pair is a tie."


def test_a_liking_for_the_candidate_shows_as_pull_and_yes_to_both_orders(whole):
    assert whole.order.pull.mean == pytest.approx(1.0, abs=1e-5)
    assert whole.order.no_twice.mean == 0
    assert whole.order.consistent.mean == pytest.approx(1 - whole.order.yes_twice.mean)
    gaps = [8 * abs(float(p.second.mean() - p.first.mean())) for p in made()]
    assert whole.order.yes_twice.mean == pytest.approx(np.mean([gap < 1 for gap in gaps]))


def test_what_a_judge_cannot_contradict_is_a_sentence():
    found = examined(OwnScores(), REGRESSIVE)
    assert isinstance(found.order, str) and "by construction" in found.order
    assert isinstance(found.transitivity, str) and "no cycles" in found.transitivity
    both = examined(BrightnessJudge(), JudgeFacts(name="judge", kind="pairwise", orders="both"))
    assert "asks both orders itself" in both.order and "asks both orders itself" in both.bias.length.level


def test_an_order_by_brightness_has_no_cycles(whole):
    assert whole.transitivity.cyclic.mean == 0
    assert whole.transitivity.triples == 6 * 4 and whole.transitivity.cyclic.n == 6


def test_a_probe_moves_a_judge_of_brightness_by_brightness_alone(whole):
    brightness, *others = whole.bias.image_stats.values()
    assert (brightness.more.mean, brightness.less.mean) == pytest.approx((0.4, -0.4), abs=1e-4)
    assert all(abs(stat.more.mean) < 0.02 and abs(stat.less.mean) < 0.02 for stat in others)
    assert whole.bias.probed == 20 and brightness.amount == 0.05


def test_what_a_judge_sees_beyond_the_votes_is_found_over_the_pairs(whole):
    assert whole.bias.image_stats["brightness"].beyond_votes.mean > 0.95
    flat = examined(pairs=made(noise=0.0))
    assert flat.bias.image_stats["contrast"].beyond_votes == "It does not vary beyond the votes."


def test_a_judge_that_likes_long_prompts_is_found_out():
    found = examined(OwnScores(), REGRESSIVE).bias.length
    assert found.level.mean > 0.5  # type: ignore[union-attr]
    assert [(low, high) for low, high, _ in found.thirds] == [(2, 2), (3, 3), (4, 4)]  # type: ignore[misc]
    assert all(figure.mean == 1 for _, _, figure in found.thirds)  # type: ignore[misc]


def test_prompts_of_one_length_have_no_figure_by_length():
    pairs = [Preference("two words", p.first, p.second, p.share) for p in made(4)]
    found = examined(pairs=pairs)
    assert found.bias.length.thirds == "All prompts have the same number of words."
    assert found.bias.length.level == "Its prompts are all of one length, or its answers all at one level."
    assert "one prompt" in found.calibration.temperature  # type: ignore[operator]
    assert "of one prompt" in found.with_ties  # type: ignore[operator]


def test_ties_alone_have_no_accuracy_and_are_said_so():
    pairs = [Preference(f"p {i}", p.first, p.second, 0.5) for i, p in enumerate(made(4))]
    found = examined(pairs=pairs)
    assert found.accuracy == "All pairs are ties: none has an order." and found.by_source == {}
    assert found.order.one_order == "All pairs are ties."  # type: ignore[union-attr]
    assert found.with_ties.accuracy.mean >= 0.5  # type: ignore[union-attr]


class Broken:
    """Test pairs of which some cannot be read, and some make a judge fail."""

    def __init__(self, unreadable: set[int], unanswerable: set[int]) -> None:
        self.pairs, self.unreadable = made(), unreadable
        for number in unanswerable:
            pair = self.pairs[number]
            self.pairs[number] = Preference(pair.prompt, pair.first, torch.full((1, 3, 4, 4), torch.nan), pair.share)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index):
        assert isinstance(index, int | np.integer)
        if index in self.unreadable:
            raise InputError(f"the picture {index}.png cannot be read.", "Replace it.")
        return self.pairs[index]


class Particular(BrightnessJudge):
    """A judge that refuses pixels that are not finite, as real ones do."""

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        if any(not bool(torch.isfinite(q.candidate).all()) for q in questions):
            raise RewardError("the judge gave no finite margin.", "Look at its picture.")
        return super().__call__(questions)


def test_the_size_of_a_batch_changes_nothing_and_pairs_are_read_one_by_one():
    judge, other = BrightnessJudge(1.0), BrightnessJudge(1.0)
    findings, _ = examine(judge, PAIRWISE, Broken(set(), set()), RECIPE, name="id")
    again, _ = examine(other, PAIRWISE, made(), RECIPE.model_copy(update={"batch_size": 100}), name="id")
    assert findings == again
    assert judge.asked == other.asked == 2 * 40 + 8 * 20 + 6 * 4 * 3


def test_pairs_that_fail_have_a_reason_and_take_no_other_with_them():
    pairs = Broken({2, 11}, {5, 20, 39})
    found, failed = examine(Particular(1.0), PAIRWISE, pairs, RECIPE, name="id")
    assert {failure.pair: failure.reason for failure in failed if failure.pair in (2, 5)} == {
        2: "the picture 2.png cannot be read.",
        5: "the judge gave no finite margin.",
    }
    assert [failure.pair for failure in failed] == [2, 5, 11, 20, 39] and (found.pairs, found.failed) == (35, 5)
    others = [pair for number, pair in enumerate(made()) if number not in (2, 5, 11, 20, 39)]
    without, _ = examine(BrightnessJudge(1.0), PAIRWISE, others, RECIPE, name="id")
    assert found.accuracy == without.accuracy and found.by_source == without.by_source


def test_where_no_pair_can_be_judged_the_first_reason_is_the_error():
    with pytest.raises(InputError, match=r"none of the 40 pairs can be judged; the first: the picture 0\.png"):
        examine(Particular(), PAIRWISE, Broken(set(range(40)), set()), RECIPE, name="id")


def test_halves_probes_and_groups_depend_on_the_seed_alone(whole):
    assert examined() == whole
    recipe = RECIPE.model_copy(update={"seed": 1})
    other, _ = examine(BrightnessJudge(1.0), PAIRWISE, made(), recipe, name="id", file="id.jsonl")
    assert other.accuracy == whole.accuracy and other.bias != whole.bias


def grouped(pairs: list[Preference]) -> list[list[tuple[int, int]]]:
    answers, _ = ask(BrightnessJudge(), pairs, 8, [0])
    return groups_of(answers, 10, 10, np.random.default_rng(0))


def test_the_same_picture_in_two_pairs_meets_the_others_once():
    pairs = made(3)
    groups = grouped(pairs)
    assert [len(group) for group in groups] == [4, 4, 4]
    two = [Preference(p.prompt, pairs[0].first, pairs[0].second, p.share) for p in pairs]
    assert grouped(two) == []


def test_pictures_made_from_different_conditions_do_not_meet():
    pairs = [
        Preference(Prompt("p", image=torch.full((1, 3, 2, 2), (i % 2) / 2)), p.first, p.second, p.share)
        for i, p in enumerate(made(1))
    ]
    groups = grouped(pairs)
    assert [len(group) for group in groups] == [4, 4]
    assert {number % 2 for number, _ in groups[0]} == {0}


def test_an_evaluation_is_read_as_it_was_written(whole):
    evaluation = Evaluation(judge=PAIRWISE, tests={"id": whole}, seed=0, machine="m", version="0.1", seconds=1.5)
    text = evaluation.model_dump_json(indent=2)
    assert Evaluation.model_validate_json(text) == evaluation and '"accuracy": {\n' in text


def test_pairs_to_stress_are_of_as_many_prompts_as_there_are():
    pairs = made(prompts=6, each=4)
    answers, _ = ask(BrightnessJudge(), pairs, 8, [])
    for n in (3, 6, 8):
        chosen = of_most_prompts(answers, n, np.random.default_rng(0))
        prompts = [pairs[number].prompt.text for number in chosen]
        assert len(chosen) == n and len(set(prompts)) == min(n, 6) and chosen == sorted(set(chosen))
    assert of_most_prompts(answers, 99, np.random.default_rng(0)) == list(range(24))
    question = Candidates(pairs, [5, 2])[1]
    assert question.candidate is pairs[2].second and question.reference is pairs[2].first


def test_where_no_changed_pair_can_be_judged_the_others_are_examined():
    pairs = made()
    chosen = pairs[int(np.random.default_rng(0).permutation(len(pairs))[0])].prompt.text

    class Silent(BrightnessJudge):
        def __call__(self, questions):
            if any(question.prompt.text == chosen for question in questions):
                raise RewardError("not this prompt.", "")
            return super().__call__(questions)

    found, failed = examine(Silent(), PAIRWISE, pairs, ExamRecipe(probes=1), name="test")
    assert failed and found.pairs == len(pairs) - len(failed) and found.bias.image_stats == {}
    assert "can be judged" in str(found.bias.length.level) and found.bias.spread == 0
