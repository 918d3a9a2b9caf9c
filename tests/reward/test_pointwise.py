"""The pointwise reward: each picture's own margin is one plain forward's, and pairs are compared by Bradley-Terry."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tiny import (
    FAMILIES,
    colour_preferences,
    family_folder,
    judge_folder,
    pictures,
    pointwise_inputs,
    train_colours,
    trained_folder,
    training_recipe,
)
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer

from rewarddance.errors import InputError
from rewarddance.reward.judge import NO, YES, RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.objectives import both_orders_cross_entropy, bradley_terry, win_tie_bradley_terry
from rewarddance.reward.pointwise import PointwiseReward
from rewarddance.reward.ranking import tournament
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.config import parse_recipe
from rewarddance.types import Preference, Prompt, Question

PROMPTS = ("a red circle", "two small blue crosses", "a picture of a large green square left of a triangle")


@pytest.fixture(scope="module")
def judge() -> PointwiseReward:
    return load_reward(str(judge_folder()), kind="pointwise", instruction="t2i-brief")


def questions(n: int, seed: int = 0, references: bool = True) -> list[Question]:
    shown = pictures(2 * n, seed)
    return [Question(PROMPTS[i % 3], shown[2 * i], shown[2 * i + 1] if references else None) for i in range(n)]


@pytest.fixture(scope="module")
def naive_margin() -> Callable[[str, Tensor], Tensor]:
    """(prompt, pixels) -> margin by the model's own forward with its whole head; nothing of ours but the template."""
    model = AutoModelForImageTextToText.from_pretrained(judge_folder()).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(judge_folder())
    found = [[tokenizer(word, add_special_tokens=False).input_ids for word in words] for words in (YES, NO)]
    yes, no = (sorted({ids[0] for ids in group if len(ids) == 1}) for group in found)

    def margin(prompt: str, pixels: Tensor) -> Tensor:
        logits = model(**pointwise_inputs(tokenizer, prompt, pixels)).logits[0, -1]
        return logits[yes].logsumexp(0) - logits[no].logsumexp(0)

    return margin


# -- the margin --------------------------------------------------------------------------------------------------------


def test_without_a_reference_the_margin_is_that_of_one_plain_forward(judge, naive_margin):
    asked = questions(4, references=False)
    naive = torch.stack([naive_margin(q.prompt.text, q.candidate) for q in asked])
    found = judge(asked).margin
    assert found.std() > 0.05
    torch.testing.assert_close(found, naive, atol=1e-5, rtol=0)


def test_with_a_reference_it_is_the_difference_of_two_plain_forwards(judge, naive_margin):
    asked = questions(4)
    naive = [naive_margin(q.prompt.text, q.candidate) - naive_margin(q.prompt.text, q.reference) for q in asked]
    torch.testing.assert_close(judge(asked).margin, torch.stack(naive), atol=1e-5, rtol=0)


def test_swapping_candidate_and_reference_negates_the_margin_exactly(judge):
    asked = questions(4)
    turned = [replace(q, candidate=q.reference, reference=q.candidate) for q in asked]
    both = judge([*asked, *turned]).margin
    assert torch.equal(both[:4], -both[4:])
    assert judge([replace(asked[0], reference=asked[0].candidate)]).margin.item() == 0


def test_questions_with_and_without_references_are_asked_together(judge):
    with_one, without = questions(3), questions(3, references=False)
    mixed = [question for pair in zip(with_one, without, strict=True) for question in pair]
    found = judge(mixed).margin
    torch.testing.assert_close(found[::2], judge(with_one).margin, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1::2], judge(without).margin, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_each_distinct_picture_is_read_once_in_a_call_whatever_the_batch_size(monkeypatch, batch_size, judge):
    small = load_reward(str(judge_folder()), kind="pointwise", instruction="t2i-brief", batch_size=batch_size)
    rows, read = [], small.vlm.last_states
    monkeypatch.setattr(small.vlm, "last_states", lambda asked: rows.append(len(asked)) or read(asked))
    shown = pictures(4)
    asked = [Question("a red circle", a, b) for a in shown for b in shown]
    asked = [Question(q.prompt, shown[i // 4], shown[i % 4]) for i, q in enumerate(asked)]  # the very same tensors
    assert len({id(q.candidate) for q in asked}) > 4  # indexing makes new tensors: these are distinct
    kept = list(shown)
    found = small([Question("a red circle", a, b) for a in kept for b in kept]).margin
    assert sum(rows) == 4 and max(rows) <= batch_size
    torch.testing.assert_close(found, judge(asked).margin, atol=1e-5, rtol=0)


def test_a_picture_under_another_prompt_or_instruction_is_another_question(judge):
    (shown,) = list(pictures(1))
    asked = [Question("a red circle", shown), Question("a blue cross", shown)]
    asked.append(Question("a red circle", shown, instruction="t2i"))
    found = judge(asked).margin
    assert len(set(found.tolist())) == 3
    torch.testing.assert_close(found[2], judge([asked[2]]).margin[0], atol=1e-5, rtol=0)


def test_the_score_of_a_candidate_is_its_own_margin_and_one_alone_has_one(judge):
    shown = list(pictures(3))
    found = judge.score("a red circle", shown).margin
    torch.testing.assert_close(found, judge([Question("a red circle", one) for one in shown]).margin)
    torch.testing.assert_close(judge.score("a red circle", shown[1:2]).margin, found[1:2], atol=1e-5, rtol=0)


def test_a_prompts_picture_goes_with_every_candidate(judge):
    shown = list(pictures(2))
    edit, another = (Prompt("make it red", image=pictures(1, seed=seed)[0]) for seed in (5, 6))
    found = judge.score(edit, shown, "edit").margin
    asked = [Question(edit, one, None, "edit") for one in shown]
    torch.testing.assert_close(found, judge(asked).margin, atol=1e-5, rtol=0)
    other = judge.score(another, shown, "edit").margin
    assert (found - other).abs().min() > 1e-4


def test_a_tournament_orders_candidates_by_their_scores(judge):
    shown = list(pictures(5))
    (ranking,) = tournament(judge, ["a red circle"], [shown])
    scores = judge.score("a red circle", shown).margin
    assert ranking.order.tolist() == scores.argsort(descending=True).tolist()
    torch.testing.assert_close(ranking.margins, scores[:, None] - scores[None], atol=1e-5, rtol=0)


def test_a_tournament_asks_about_each_candidate_once(judge, monkeypatch):
    groups, asked = [list(pictures(5)), list(pictures(3, seed=1))], []
    answer = type(judge).__call__

    def counting(self, questions):
        asked.extend(questions)
        return answer(self, questions)

    monkeypatch.setattr(type(judge), "__call__", counting)
    together = tournament(judge, ["a red circle", "a blue square"], groups)
    assert [id(question.candidate) for question in asked] == [id(one) for group in groups for one in group]
    assert all(question.reference is None for question in asked)
    for ranking, prompt, group in zip(together, ("a red circle", "a blue square"), groups, strict=True):
        (alone,) = tournament(judge, [prompt], [group])
        torch.testing.assert_close(ranking.margins, alone.margins, atol=1e-5, rtol=0)
        asking_pairs = judge([Question(prompt, group[0], group[1])]).margin
        torch.testing.assert_close(ranking.margins[0, 1:2], asking_pairs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_a_verdict_does_not_depend_on_what_else_is_asked(family):
    judge = load_reward(str(family_folder(family)), kind="pointwise")
    asked = [*questions(3), *questions(2, seed=1, references=False)]
    together = judge(asked).margin
    assert together.std() > 1e-3
    torch.testing.assert_close(together, torch.cat([judge([q]).margin for q in asked]), atol=1e-5, rtol=1e-5)


# -- the gradient ------------------------------------------------------------------------------------------------------


def test_the_pixel_gradient_is_that_of_the_plain_forward_for_both_pictures(judge, naive_margin):
    question = questions(1)[0]
    ours, theirs = ([p.clone().requires_grad_() for p in (question.candidate, question.reference)] for _ in range(2))
    judge([Question(question.prompt, *ours)]).margin.sum().backward()
    (naive_margin(question.prompt.text, theirs[0]) - naive_margin(question.prompt.text, theirs[1])).backward()
    for own, naive in zip(ours, theirs, strict=True):
        assert naive.grad.norm() > 1e-2
        assert (own.grad - naive.grad).norm() / naive.grad.norm() < 1e-4


def test_the_pixel_gradient_is_the_slope_of_the_margin(judge):
    (picture,) = list(pictures(1))
    candidate = picture.clone().requires_grad_()
    judge([Question("a red circle", candidate)]).margin.sum().backward()
    along = candidate.grad / candidate.grad.norm()
    up, down = (Question("a red circle", picture + sign * 0.02 * along) for sign in (1, -1))
    margin = judge([up, down]).margin
    assert float(margin[0] - margin[1]) / 0.04 == pytest.approx(float(candidate.grad.norm()), rel=1e-2)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs() -> list[Preference]:
    shares = (1.0, 0.0, 0.5, 0.8)
    return [replace(pair, share=share) for pair, share in zip(colour_preferences(4), shares, strict=True)]


@pytest.mark.parametrize("options", [{}, {"answer_weight": 0.7}, {"answer_weight": 0.0}, {"tie_threshold": 1.5}])
def test_the_loss_is_bradley_terry_and_weighted_cross_entropy_of_answers(judge, pairs, options):
    share = torch.tensor([pair.share for pair in pairs])
    second = judge([Question(p.prompt, p.second) for p in pairs]).margin
    first = judge([Question(p.prompt, p.first) for p in pairs]).margin
    answers = both_orders_cross_entropy(second, first, share)
    threshold = options.get("tie_threshold")
    compared = win_tie_bradley_terry(second - first, share, threshold) if threshold else None
    compared = bradley_terry(second - first, share) if compared is None else compared
    asking = load_reward(str(judge_folder()), kind="pointwise", instruction="t2i-brief", **options)
    expected = compared + options.get("answer_weight", 0.1) * answers
    torch.testing.assert_close(asking.loss(pairs), expected, atol=1e-5, rtol=1e-5)


def test_changing_first_and_second_over_with_the_votes_leaves_the_loss(judge, pairs):
    turned = [replace(p, first=p.second, second=p.first, share=1 - p.share) for p in pairs]
    torch.testing.assert_close(judge.loss(pairs), judge.loss(turned), atol=1e-5, rtol=1e-5)


def test_the_folder_says_how_it_was_trained_and_one_picture_is_compared_with_another():
    folder = trained_folder("pointwise") / "reward"
    trained = load_reward(str(folder))
    assert isinstance(trained, PointwiseReward)
    assert (trained.config.kind, trained.config.answer_weight) == ("pointwise", 0.1)
    red = torch.zeros(1, 3, 32, 32)
    red[:, 0] = 0.8
    assert trained([Question("a small circle", red, red.flip(1))]).margin > 0
    saved = json.loads((folder / "reward_config.json").read_text())
    assert saved["answer_weight"] == 0.1 and "orders" not in saved


# -- its folder and its options ----------------------------------------------------------------------------------------


def test_a_saved_reward_gives_the_same_margins(tmp_path, judge):
    judge.save(tmp_path / "reward")
    again = load_reward(str(tmp_path / "reward"))
    assert again.config == judge.config
    assert torch.equal(again(questions(2)).margin, judge(questions(2)).margin)


def test_both_generative_kinds_may_be_asked_of_each_others_folders(tmp_path, judge):
    judge.save(tmp_path / "pointwise")
    pairwise = load_reward(str(tmp_path / "pointwise"), kind="pairwise")
    assert pairwise.config == RewardConfig(kind="pairwise", instruction="t2i-brief")
    pairwise = load_reward(str(judge_folder()), instruction="t2i-brief", orders="both")
    pairwise.save(tmp_path / "pairwise")
    back = load_reward(str(tmp_path / "pairwise"), kind="pointwise")
    assert back.config == judge.config
    assert torch.equal(back(questions(2)).margin, judge(questions(2)).margin)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("pairwise", "answer_weight", 0.1),
        ("pairwise", "tie_threshold", 1.0),
        ("regressive", "answer_weight", 0.1),
        ("clip", "answer_weight", 0.1),
        ("clip", "instruction", "t2i-brief"),
        ("pointwise", "orders", "both"),
        ("regressive", "orders", "both"),
        ("clip", "orders", "both"),
        ("clip", "yes", ("yes",)),
        ("regressive", "no", ("no",)),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_by_name(kind, name, value):
    kinds = [RewardConfig] if name in ("orders", "yes", "no") else [RewardConfig, JudgeRecipe]
    for recipe in kinds:
        with pytest.raises(InputError, match=rf"the key '{name}' in here .*only rewards of kind .*not {kind}"):
            parse_recipe(recipe, {"kind": kind, name: value}, "here")


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "regressive", "clip"])
def test_a_recipe_and_a_config_read_back_what_they_write(kind):
    for recipe in (JudgeRecipe(kind=kind), RewardConfig(kind=kind)):
        assert parse_recipe(type(recipe), recipe.model_dump(), "here") == recipe
        assert recipe.answer_weight == (0.1 if kind == "pointwise" else None)


def test_an_untrained_judge_loses_what_its_margins_say_and_a_tie_can_be_learned(tmp_path):
    tied = [replace(pair, share=0.5) for pair in colour_preferences(8)]
    recipe = training_recipe("pointwise", tie_threshold=math.log(5), epochs=5.0)
    before = build_reward(str(judge_folder()), RewardConfig(kind="pointwise", instruction="t2i-brief"))
    asked = [Question(p.prompt, p.second, p.first) for p in tied]
    apart = train_colours(tmp_path, recipe, preferences=tied)(asked).margin.abs().mean()
    assert apart < 0.5 * before(asked).margin.abs().mean()
    assert load_reward(str(tmp_path / "reward")).config.tie_threshold == pytest.approx(math.log(5))
