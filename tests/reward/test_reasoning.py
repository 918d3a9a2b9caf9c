"""Chain of thought in both forms: what it may change, what it may not, and that a judge learns to say why.

Of a pair the pairwise kind gives a reason in each order; of the pointwise kind each picture has its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import colour_preferences, deep_judge_folder, judge_folder, pictures
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoTokenizer

from rewarddance.errors import InputError
from rewarddance.reward.averages import mean_margin, mean_probability
from rewarddance.reward.generative import PairwiseReward, swapped
from rewarddance.reward.instructions import Picture, load_instruction
from rewarddance.reward.judge import Judge, RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.objectives import (
    both_orders_cross_entropy,
    bradley_terry,
    pairwise_cross_entropy,
    reason_cross_entropy,
)
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import train_judge
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Pixels, Preference, Prompt, Question

PROMPTS = ("a red circle", "two small blue crosses", "a large green square")
WHY = "The candidate is better: visual quality."
WHY_NOT = "The reference is better: visual quality."
KINDS = pytest.mark.parametrize("kind", ["pairwise", "pointwise"])


def load(base: Path | None = None, **changes: object) -> Judge:
    options = {"instruction": "t2i-brief", "max_reason_tokens": 8}
    return load_reward(str(base or judge_folder()), **(options | changes))


@pytest.fixture(scope="module")
def after() -> Judge:
    return load(reasoning="after")


@pytest.fixture(scope="module")
def before() -> Judge:
    return load(reasoning="before", reasons=3)


def questions(n: int, seed: int = 0) -> list[Question]:
    shown = pictures(2 * n, seed)
    return [Question(PROMPTS[i % 3], shown[2 * i], shown[2 * i + 1]) for i in range(n)]


def preferences(n: int, reason: str = WHY, swapped: str = WHY_NOT) -> list[Preference]:
    shown = pictures(2 * n, 5)
    return [
        Preference(PROMPTS[i % 3], shown[2 * i], shown[2 * i + 1], 1.0, reason=reason, reason_swapped=swapped)
        for i in range(n)
    ]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# -- averages ----------------------------------------------------------------------------------------------------------

margins = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=5)


@given(margins)
def test_the_mean_probability_is_the_mean_of_the_probabilities(values):
    found = mean_probability(torch.tensor(values)[:, None], torch.ones(len(values)))
    expected = torch.tensor(values, dtype=torch.float64).sigmoid().mean()
    assert found.double().sigmoid().item() == pytest.approx(expected.item(), rel=1e-4)
    assert (1 - expected).item() == pytest.approx(found.double().neg().sigmoid().item(), rel=1e-4)


@given(margins, st.floats(0.1, 10))
def test_only_the_ratio_of_weights_matters_and_one_verdict_is_its_own_mean(values, scale):
    rows, weights = torch.tensor(values)[:, None], torch.arange(1.0, len(values) + 1)
    for mean in (mean_margin, mean_probability):
        torch.testing.assert_close(mean(rows, weights), mean(rows, scale * weights), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mean(rows[:1], weights[:1]), rows[0], atol=1e-4, rtol=1e-4)
        assert min(values) - 1e-3 <= mean(rows, weights).item() <= max(values) + 1e-3


def test_a_weight_of_two_is_being_asked_twice():
    once, twice = torch.tensor([[2.0], [-1.0]]), torch.tensor([[2.0], [2.0], [-1.0]])
    for mean in (mean_margin, mean_probability):
        close(mean(once, torch.tensor([2.0, 1.0])), mean(twice, torch.ones(3)))


def test_certain_verdicts_that_agree_stay_finite_and_certain():
    found = mean_probability(torch.tensor([[80.0, -80.0], [90.0, -90.0]]), torch.ones(2))
    assert torch.isfinite(found).all()
    close(found, torch.tensor([80 + math.log(2), -80 - math.log(2)]))


# -- the loss ----------------------------------------------------------------------------------------------------------


def test_a_judge_that_knows_no_words_pays_the_log_of_the_vocabulary_for_each():
    assert reason_cross_entropy(torch.zeros(5, 32), torch.arange(5)).item() == pytest.approx(math.log(32))
    assert reason_cross_entropy(torch.zeros(0, 32), torch.zeros(0, dtype=torch.long)).item() == 0


def test_the_gradient_of_the_reasons_is_the_probability_minus_the_word_said():
    logits = torch.randn(4, 7, requires_grad=True)
    tokens = torch.tensor([1, 6, 0, 3])
    reason_cross_entropy(logits, tokens).backward()
    close(logits.grad, (logits.detach().softmax(-1) - F.one_hot(tokens, 7)) / 4)


def answers_loss(judge: Judge, second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Of margins in the pair's two orders, or of its two pictures; the second is better."""
    better = torch.ones(len(second))
    if judge.config.kind == "pairwise":
        return pairwise_cross_entropy(second, first, better, judge.config.difference_weight)
    return bradley_terry(second - first, better) + 0.1 * both_orders_cross_entropy(second, first, better)


def asked_of(judge: Judge, pair: Preference) -> tuple[tuple[Pixels, ...], tuple[Pixels, ...]]:
    """The pictures of the question that the reason belongs to, and of the other one, in the order they are shown."""
    pairwise = judge.config.kind == "pairwise"
    return ((pair.first, pair.second), (pair.second, pair.first)) if pairwise else ((pair.second,), (pair.first,))


@KINDS
@pytest.mark.parametrize("form", ["after", "before"])
def test_the_loss_is_that_of_the_plain_model_on_the_whole_text(kind, form):
    """One forward of transformers' own on each written conversation, its logits shifted by one."""
    judge = load(kind=kind, reasoning=form, reason_weight=0.7)
    (pair,) = preferences(1)
    model = AutoModelForImageTextToText.from_pretrained(judge_folder()).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(judge_folder())
    picture = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>\n"
    instruction = load_instruction("t2i-brief")
    question = instruction.question if kind == "pairwise" else instruction.pointwise_question
    turn = "".join(picture if isinstance(part, Picture) else part for part in question(pair.prompt.text, form))
    yes, no = judge.vlm.answer_tokens(judge.config.yes), judge.vlm.answer_tokens(judge.config.no)
    margins, costs = [], []
    for word, reason, shown in zip(("yes", "no"), (WHY, WHY_NOT), asked_of(judge, pair), strict=True):
        said = f"{word}. {reason}" if form == "after" else f"{reason}\nAnswer: {word}"
        start = tokenizer(f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n").input_ids
        ids = torch.tensor([start + tokenizer(f"{said}<|im_end|>").input_ids])
        pixels = torch.cat([judge.vlm.preprocess(one) for one in shown])
        logits = model(input_ids=ids, pixel_values=pixels).logits[0, len(start) - 1 : -1]
        targets = ids[0, len(start) :]
        answer = 0 if form == "after" else len(targets) - 2
        margins.append(logits[answer, yes].logsumexp(0) - logits[answer, no].logsumexp(0))
        told = [i for i in range(len(targets)) if i != answer]
        costs.append(F.cross_entropy(logits[told], targets[told], reduction="none"))
    expected = answers_loss(judge, margins[0][None], margins[1][None]) + 0.7 * torch.cat(costs).mean()
    assert judge.loss([pair]).item() == pytest.approx(expected.item(), abs=1e-4)


@KINDS
def test_pairs_without_reasons_train_on_the_answers_alone(kind):
    judge, pairs = load(kind=kind, reasoning="after"), preferences(3, "", "")
    turned = [replace(p, first=p.second, second=p.first) for p in pairs]
    second, first = (judge(question_of(judge, batch)).margin for batch in (pairs, turned))
    close(judge.loss(pairs), answers_loss(judge, second, first))


def question_of(judge: Judge, pairs: list[Preference]) -> list[Question]:
    """The question that each pair's reason belongs to."""
    return [Question(p.prompt, p.second, p.first if judge.config.kind == "pairwise" else None) for p in pairs]


def test_the_losses_of_a_batchs_parts_add_up_to_its_own():
    judge, one = load(kind="pointwise", reasoning="after"), preferences(1)[0]
    pairs = [one, replace(one, share=0.0, reason_swapped=""), replace(one, share=0.5, reason="", reason_swapped="")]
    whole = judge.loss_normalizer(pairs)
    assert whole.pairs == 3 and whole.tokens > 0
    close(judge.loss(pairs[:1], whole) + judge.loss(pairs[1:], whole), judge.loss(pairs))


def test_in_the_form_after_a_reason_leaves_the_answer_alone():
    pairs, plain = preferences(3), preferences(3, "", "")
    weightless = load(reasoning="after", reason_weight=0.0)
    close(weightless.loss(pairs), weightless.loss(plain))


def test_the_reasons_weight_is_a_weight():
    losses = [load(reasoning="after", reason_weight=weight).loss(preferences(2)).item() for weight in (0.0, 1.0, 3.0)]
    assert losses[1] > losses[0]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


@pytest.mark.parametrize(("kind", "form"), [("pairwise", "after"), ("pairwise", "before"), ("pointwise", "after")])
def test_each_order_or_picture_learns_its_own_reason(kind, form):
    """A pair turned round with its reasons is the same pair; with its reasons left where they were it is another."""
    judge = load(kind=kind, reasoning=form)
    (pair,) = preferences(1)
    wrong = replace(pair, first=pair.second, second=pair.first, share=0.0)
    close(judge.loss([pair]), judge.loss([replace(wrong, reason=WHY_NOT, reason_swapped=WHY)]))
    assert abs(judge.loss([pair]) - judge.loss([wrong])) > 1e-3


@KINDS
def test_a_judge_learns_to_answer_and_to_say_why(kind):
    def with_reasons(seed: int) -> list[Preference]:
        reasons = {0.0: (WHY_NOT, WHY), 1.0: (WHY, WHY_NOT)}
        pairs = [(pair, reasons[pair.share]) for pair in colour_preferences(4, seed)]
        return [replace(pair, reason=mine, reason_swapped=other) for pair, (mine, other) in pairs]

    config = RewardConfig(kind=kind, instruction="t2i-brief", reasoning="after", max_reason_tokens=16)
    judge = build_reward(str(judge_folder()), config)
    optimiser = torch.optim.AdamW(judge.model.parameters(), lr=2e-3)
    for _ in range(25):
        optimiser.zero_grad()
        judge.loss(with_reasons(0)).backward()
        optimiser.step()
    tested = with_reasons(1)
    found = judge.freeze().explain(question_of(judge, tested))
    assert (found.margin > 0).tolist() == [p.share > 0.5 for p in tested]
    assert found.reasons == tuple(p.reason for p in tested)


def test_a_reason_with_one_of_the_models_own_tokens_is_refused(after):
    with pytest.raises(InputError, match=r"contains the token '<\|im_end\|>'"):
        after.loss(preferences(1, "It is.<|im_end|>"))


@KINDS
def test_a_training_recipe_records_how_its_judge_reasons(tmp_path, kind):
    options = {"instruction": "t2i-brief", "reasoning": "before", "reason_weight": 0.3}
    recipe = JudgeRecipe(base=str(judge_folder()), kind=kind, batch_size=2, epochs=1, **options)
    train_judge(recipe, preferences(2), tmp_path, Metrics(tmp_path / "metrics.jsonl"))
    config = load_reward(str(tmp_path / "reward")).config
    assert (config.kind, config.reasoning, config.reason_weight) == (kind, "before", 0.3)
    assert config.instruction_version == 1


# -- answers -----------------------------------------------------------------------------------------------------------


def test_the_form_after_asks_for_a_reason_and_reads_the_first_position(after):
    asked = [one._replace(response_prefix="") for one in after._judge_inputs(questions(3), "after")]
    assert asked[0].parts[-1].endswith("Then give the reason.")
    vlm, config = after.vlm, after.config
    expected = vlm.margin(vlm.last_states(asked), vlm.answer_tokens(config.yes), vlm.answer_tokens(config.no))
    close(after(questions(3)).margin, expected)
    assert (after(questions(3)).margin - load()(questions(3)).margin).abs().max() > 1e-3


def says(monkeypatch: pytest.MonkeyPatch, judge: PairwiseReward, *texts: str) -> None:
    """The judge's samples, whatever it is asked."""
    monkeypatch.setattr(judge.vlm, "write", lambda asked, n, temperature=0.0, seed=0: list(texts[: len(asked)]))


@KINDS
def test_reasons_before_the_answer_average_the_probabilities_read_after_each(kind, monkeypatch):
    judge = load(kind=kind, reasoning="before", reasons=3)
    says(monkeypatch, judge, "The candidate is sharp.", "nothing wrong\nAnswer: no", "")
    shown = questions(2) if kind == "pairwise" else [replace(question, reference=None) for question in questions(2)]
    asked, vlm = judge._judge_inputs(shown, *(["before"] if kind == "pairwise" else [])), judge.vlm
    assert "Think first" in asked[0].parts[-1]
    yes, no = vlm.answer_tokens(judge.config.yes), vlm.answer_tokens(judge.config.no)
    each = [
        vlm.margin(
            torch.cat([vlm.last_states([one._replace(response_prefix=said)]) for one in asked]), yes, no
        ).sigmoid()
        for said in ("The candidate is sharp.\nAnswer:", "nothing wrong\nAnswer:", "Answer:")
    ]
    close(judge(shown).probability, torch.stack(each).mean(0))


def test_one_and_the_same_thought_many_times_is_that_thought_once(before, monkeypatch):
    says(monkeypatch, before, *["no circle is there"] * 3)
    single = load(reasoning="before")
    says(monkeypatch, single, "no circle is there")
    close(before(questions(3)).margin, single(questions(3)).margin)


def test_sampled_verdicts_are_seeded_and_do_not_depend_on_what_else_is_asked(before):
    asked = questions(4)
    together = before(asked).margin
    close(before(asked).margin, together)
    close(torch.cat([before([one]).margin for one in asked]), together)
    assert (together - load(reasoning="before", reasons=2)(asked).margin).abs().max() > 1e-3


def test_samples_differ_whatever_the_checkpoint_generates_by_default(before, monkeypatch):
    asked, own = questions(2), before.vlm.model.generation_config
    together = before(asked).margin
    shaping = {"top_k": 1, "top_p": 1e-3, "min_p": 0.999, "typical_p": 0.01, "epsilon_cutoff": 0.5}
    shaping |= {"repetition_penalty": 3.0, "num_beams": 2, "no_repeat_ngram_size": 1}
    for name, value in shaping.items():
        monkeypatch.setattr(own, name, value)
    close(before(asked).margin, together)


def test_the_gradient_reaches_the_pixels_through_the_answer_after_a_thought(before, monkeypatch):
    says(monkeypatch, before, "a", "the circle is red", "no")
    (question,) = questions(1)
    candidate = question.candidate.clone().requires_grad_()
    before([Question(question.prompt, candidate, question.reference)]).margin.sum().backward()
    along = candidate.grad / candidate.grad.norm()
    up, down = (
        before([Question(question.prompt, question.candidate + s * 0.01 * along, question.reference)]).margin
        for s in (1, -1)
    )
    assert float(up - down) / 0.02 == pytest.approx(float(candidate.grad.norm()), rel=2e-2)


# -- explaining --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["none", "after", "before"])
@pytest.mark.parametrize("orders", ["forward", "both"])
def test_explaining_gives_the_verdicts_of_asking_and_a_text_for_each(form, orders):
    judge = load(reasoning=form, orders=orders, batch_size=2)
    found = judge.explain(questions(3))
    close(found.margin, judge(questions(3)).margin)
    assert not found.margin.requires_grad
    assert found.reasons is not None and len(found.reasons) == 3 and all(isinstance(one, str) for one in found.reasons)
    assert judge.explain([]).reasons == ()


def test_a_reason_is_written_behind_the_verdicts_own_answer(monkeypatch):
    after = load(base=deep_judge_folder(), reasoning="after")
    monkeypatch.setattr(after.vlm, "write", lambda asked, n: [one.response_prefix for one in asked])
    verdict = after.explain([*questions(6), *map(swapped, questions(6))])
    assert verdict.reasons == tuple("yes." if margin > 0 else "no." for margin in verdict.margin)
    assert len(set(verdict.reasons)) == 2


def test_of_pictures_by_themselves_each_candidate_has_its_own_reason(monkeypatch):
    judge, (reference,) = load(kind="pointwise", reasoning="after"), pictures(1, seed=9)
    monkeypatch.setattr(judge.vlm, "write", lambda asked, n: [one.response_prefix for one in asked])
    alone = [replace(question, reference=None) for question in questions(6)]
    asked = [*alone, *(replace(question, reference=reference) for question in questions(6, 3))]
    own = judge([replace(question, reference=None) for question in asked]).margin
    assert judge.explain(asked).reasons == tuple("yes." if margin > 0 else "no." for margin in own)


@pytest.mark.parametrize("form", ["none", "after", "before"])
def test_a_reference_changes_the_margin_and_not_a_pictures_own_reason(form):
    judge, (reference,) = load(kind="pointwise", reasoning=form, batch_size=2), pictures(1, seed=9)
    against = [replace(question, reference=reference) for question in questions(3)]
    alone = [replace(question, reference=None) for question in against]
    found, compared = judge.explain(alone), judge.explain(against)
    close(found.margin, judge(alone).margin)
    close(compared.margin, judge(against).margin)
    assert found.reasons == compared.reasons and len(found.reasons or ()) == 3
    assert not found.margin.requires_grad and judge.explain([]).reasons == ()


def test_of_many_thoughts_the_one_that_argues_most_for_the_verdict_explains_it(before, monkeypatch):
    thoughts = ("The candidate is sharp.", "the circle is red, not blue", "no")
    says(monkeypatch, before, *thoughts)
    asked = questions(6)
    each = torch.stack([_alone(before, monkeypatch, asked, thought) for thought in thoughts])
    says(monkeypatch, before, *thoughts)
    found = before.explain(asked)
    best = torch.where(found.margin > 0, each, -each).argmax(0)
    assert found.reasons == tuple(thoughts[k] for k in best)


def _alone(judge: PairwiseReward, monkeypatch, asked: list[Question], thought: str) -> torch.Tensor:
    says(monkeypatch, judge, *[thought] * 3)
    return judge(asked).margin


def test_compare_rank_and_score_explain_where_they_are_asked_to(after):
    shown = list(pictures(4))
    compared = after.compare("a red circle", shown[1:], shown[0], explain=True)
    assert len(compared.reasons or ()) == 3
    assert after.compare("a red circle", shown[1:], shown[0]).reasons is None
    ranking = after.rank("a red circle", shown, explain=True)
    assert ranking.order.tolist() == after.rank("a red circle", shown).order.tolist()
    assert after.rank("a red circle", shown).reasons is None
    first, second = ranking.order.tolist()[:2]
    against = [second if i == first else first for i in range(4)]
    expected = after.explain([Question("a red circle", shown[i], shown[against[i]]) for i in range(4)])
    assert ranking.reasons == expected.reasons
    scored = after.score("a red circle", shown, explain=True)
    close(scored.margin, after.score("a red circle", shown).margin)
    assert len(scored.reasons or ()) == 4


def test_pictures_by_themselves_are_scored_and_ranked_with_the_same_reasons():
    judge, shown = load(kind="pointwise", reasoning="after"), list(pictures(3))
    scored = judge.score(PROMPTS[0], shown, explain=True)
    close(scored.margin, judge.score(PROMPTS[0], shown).margin)
    ranked = judge.rank(PROMPTS[0], shown, explain=True)
    assert ranked.reasons == scored.reasons and len(scored.reasons or ()) == 3


def test_a_kind_that_gives_no_reasons_says_so():
    judge: Judge = build_reward(str(judge_folder()), RewardConfig(kind="regressive"))
    with pytest.raises(InputError, match="a regressive reward gives no reasons"):
        judge.compare("a red circle", list(pictures(2)), pictures(1)[0], explain=True)


# -- what is recorded and refused --------------------------------------------------------------------------------------


def test_the_form_of_reasoning_is_kept_with_the_reward(tmp_path, before):
    before.save(tmp_path)
    again = load_reward(str(tmp_path))
    assert again.config == before.config
    assert (again.config.reasoning, again.config.reasons) == ("before", 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reasons": 3}, "with reasoning 'before' only"),
        ({"reasoning": "after", "reason_temperature": 0.5}, "with reasoning 'before' only"),
        ({"reasoning": "before", "reasons": 2, "reason_temperature": 0}, "all reasons are the same"),
        ({"reasoning": "during"}, "'during'"),
        ({"kind": "regressive", "reasoning": "after"}, "only rewards of kind pairwise or pointwise use it"),
    ],
)
def test_options_that_would_do_nothing_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        load(**changes)


def test_a_question_that_cannot_be_answered_with_reasons_is_named(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text('name: short\nversion: 1\npointwise: "{prompt}{candidate}Is it good? Yes or no."\n')
    judge = load(kind="pointwise", reasoning="after", instruction=str(path))
    with pytest.raises(InputError, match="pointwise question of the instruction 'short' cannot be answered"):
        judge([replace(question, reference=None) for question in questions(1)])


def test_a_condition_is_shown_before_the_two_pictures_in_both_orders():
    judge = load(instruction="edit", orders="both")
    a, b, source = pictures(3)
    edit = Prompt("make it red", image=source)
    found = judge([Question(edit, a, b)]).margin
    close(found, -judge([Question(edit, b, a)]).margin)
    other = judge([Question(Prompt("make it red", image=pictures(1, seed=9)[0]), a, b)]).margin
    assert abs(found - other) > 1e-4
    close(found, judge.compare(edit, [a], b).margin)
    with pytest.raises(InputError, match="has no image"):
        judge([Question("make it red", a, b)])
