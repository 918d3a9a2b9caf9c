"""Chain of thought of the pointwise generative kind: each picture answers, and gives its reason, by itself."""

from __future__ import annotations

import pytest
import torch
from tiny import colour_preferences, judge_folder, pictures
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoTokenizer

from rewarddance.errors import InputError
from rewarddance.reward.instructions import Picture, load_instruction
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.objectives import both_orders_cross_entropy, bradley_terry
from rewarddance.reward.pointwise import PointwiseReward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Preference, Question

PROMPTS = ("a red circle", "two small blue crosses", "a large green square")
GOOD, BAD = "visual quality.", "Two large green triangles."


def load(**changes: object) -> PointwiseReward:
    options = {"kind": "pointwise", "instruction": "t2i-brief", "max_reason_tokens": 8}
    return load_reward(str(judge_folder()), **(options | changes))  # type: ignore[return-value]


def questions(n: int, seed: int = 0) -> list[Question]:
    return [Question(PROMPTS[i % 3], pixels) for i, pixels in enumerate(pictures(n, seed))]


def pair(share: float = 1.0, reason: str = GOOD, swapped: str = BAD) -> Preference:
    first, second = pictures(2, 5)
    return Preference(PROMPTS[0], first, second, share, reason=reason, reason_swapped=swapped)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["after", "before"])
def test_the_loss_is_that_of_the_plain_model_on_the_whole_text(form):
    """One forward of transformers' own on each picture's written conversation, its logits shifted by one."""
    judge = load(reasoning=form, reason_weight=0.7)
    model = AutoModelForImageTextToText.from_pretrained(judge_folder()).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(judge_folder())
    yes, no = judge.vlm.answer_tokens(judge.config.yes), judge.vlm.answer_tokens(judge.config.no)
    one, margins, costs = pair(), [], []
    for word, reason, shown in (("yes", GOOD, one.second), ("no", BAD, one.first)):
        parts = load_instruction("t2i-brief").pointwise_question(one.prompt.text, form)
        written = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>\n"
        turn = "".join(written if isinstance(part, Picture) else part for part in parts)
        said = f"{word}. {reason}" if form == "after" else f"{reason}\nAnswer: {word}"
        start = tokenizer(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n").input_ids
        ids = torch.tensor([start + tokenizer(f"{said}<|im_end|>").input_ids])
        logits = model(input_ids=ids, pixel_values=judge.vlm.preprocess(shown)).logits[0, len(start) - 1 : -1]
        targets = ids[0, len(start) :]
        answer = 0 if form == "after" else len(targets) - 2
        margins.append(logits[answer, yes].logsumexp(0) - logits[answer, no].logsumexp(0))
        told = [i for i in range(len(targets)) if i != answer]
        costs.append(F.cross_entropy(logits[told], targets[told], reduction="none"))
    second, first = (margin[None] for margin in margins)
    answers = bradley_terry(second - first, torch.ones(1)) + 0.1 * both_orders_cross_entropy(
        second, first, torch.ones(1)
    )
    assert judge.loss([one]).item() == pytest.approx((answers + 0.7 * torch.cat(costs).mean()).item(), abs=1e-4)


def test_a_pair_turned_round_with_its_reasons_is_the_same_pair():
    judge, one = load(reasoning="after"), pair()
    turned = Preference(one.prompt, one.second, one.first, 0.0, reason=BAD, reason_swapped=GOOD)
    wrong = Preference(one.prompt, one.second, one.first, 0.0, reason=GOOD, reason_swapped=BAD)
    close(judge.loss([one]), judge.loss([turned]))
    assert abs(judge.loss([one]) - judge.loss([wrong])) > 1e-3


def test_pairs_without_reasons_train_on_the_answers_alone():
    judge = load(reasoning="after")
    asked = [Question(PROMPTS[0], pixels) for pixels in (pair().second, pair().first)]
    second, first = judge(asked).margin.split(1)
    answers = bradley_terry(second - first, torch.ones(1)) + 0.1 * both_orders_cross_entropy(
        second, first, torch.ones(1)
    )
    close(judge.loss([pair(reason="", swapped="")]), answers)


def test_the_losses_of_a_batchs_parts_add_up_to_its_own():
    judge = load(reasoning="after")
    pairs = [pair(), pair(0.0, "visual quality.", ""), pair(0.5, "", "")]
    whole = judge.loss_normalizer(pairs)
    assert whole.pairs == 3 and whole.tokens > 0
    parts = judge.loss(pairs[:1], whole) + judge.loss(pairs[1:], whole)
    close(parts, judge.loss(pairs))


def test_reasons_before_the_answer_average_the_probabilities_read_after_each(monkeypatch):
    judge = load(reasoning="before", reasons=2)
    monkeypatch.setattr(judge.vlm, "write", lambda asked, n, t=0.0, s=0: ["it is red", "no\nAnswer: no"][: len(asked)])
    asked, vlm = judge._asked(questions(2)), judge.vlm
    yes, no = vlm.answer_tokens(judge.config.yes), vlm.answer_tokens(judge.config.no)
    each = [
        vlm.margin(torch.cat([vlm.read([one._replace(response_prefix=said)]) for one in asked]), yes, no).sigmoid()
        for said in ("it is red\nAnswer:", "no\nAnswer:")
    ]
    close(judge(questions(2)).probability, torch.stack(each).mean(0))


@pytest.mark.parametrize("form", ["none", "after", "before"])
def test_explaining_gives_the_verdicts_of_asking_and_each_candidates_own_reason(form):
    judge = load(reasoning=form, batch_size=2)
    alone, (reference,) = questions(3), pictures(1, seed=9)
    against = [Question(q.prompt, q.candidate, reference) for q in alone]
    found, compared = judge.explain(alone), judge.explain(against)
    close(found.margin, judge(alone).margin)
    close(compared.margin, judge(against).margin)
    assert found.reasons == compared.reasons and len(found.reasons or ()) == 3
    assert not found.margin.requires_grad and judge.explain([]).reasons == ()


def test_a_reason_is_written_behind_the_pictures_own_answer(monkeypatch):
    judge = load(reasoning="after")
    monkeypatch.setattr(judge.vlm, "write", lambda asked, n: [one.response_prefix for one in asked])
    (reference,) = pictures(1, seed=9)
    asked = [*questions(6), *(Question(q.prompt, q.candidate, reference) for q in questions(6, 3))]
    own = judge([Question(q.prompt, q.candidate) for q in asked]).margin
    assert judge.explain(asked).reasons == tuple("yes." if margin > 0 else "no." for margin in own)


def test_score_and_rank_explain_where_they_are_asked_to():
    judge, shown = load(reasoning="after"), list(pictures(3))
    scored = judge.score(PROMPTS[0], shown, explain=True)
    close(scored.margin, judge.score(PROMPTS[0], shown).margin)
    ranked = judge.rank(PROMPTS[0], shown, explain=True)
    assert ranked.reasons == scored.reasons and len(scored.reasons or ()) == 3


def test_it_learns_to_answer_and_to_say_why():
    def with_reasons(seed: int) -> list[Preference]:
        return [
            Preference(p.prompt, p.first, p.second, p.share, reason=mine, reason_swapped=other)
            for p in colour_preferences(4, seed)
            for mine, other in [(GOOD, BAD) if p.share else (BAD, GOOD)]
        ]

    config = RewardConfig(kind="pointwise", instruction="t2i-brief", reasoning="after", max_reason_tokens=16)
    judge = build_reward(str(judge_folder()), config)
    optimiser = torch.optim.AdamW(judge.model.parameters(), lr=2e-3)
    for _ in range(25):
        optimiser.zero_grad()
        judge.loss(with_reasons(0)).backward()
        optimiser.step()
    tested = with_reasons(1)
    found = judge.freeze().explain([Question(p.prompt, p.second) for p in tested])
    assert found.reasons == tuple(p.reason for p in tested)


def test_a_training_recipe_records_how_its_judge_reasons(tmp_path):
    recipe = JudgeRecipe(
        base=str(judge_folder()),
        kind="pointwise",
        instruction="t2i-brief",
        reasoning="before",
        reason_weight=0.3,
        batch_size=2,
        epochs=1,
    )
    train_judge(recipe, [pair(), pair(0.0)], tmp_path, Metrics(tmp_path / "metrics.jsonl"))
    config = load_reward(str(tmp_path / "reward")).config
    assert (config.kind, config.reasoning, config.reason_weight) == ("pointwise", "before", 0.3)


def test_a_question_that_cannot_be_answered_with_reasons_is_named(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text('name: short\nversion: 1\npointwise: "{prompt}{candidate}Is it good? Yes or no."\n')
    with pytest.raises(InputError, match="pointwise question of the instruction 'short' cannot be answered"):
        load(reasoning="after", instruction=str(path))(questions(1))
