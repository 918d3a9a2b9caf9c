"""The margin is the model's own, as one plain forward gives it, whatever the batch; its gradient reaches the pixels."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import drawing, judge_folder, normalised, photograph, pictures
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from rewarddance.data.media import write_picture
from rewarddance.errors import InputError, RewardError
from rewarddance.reward.generative import PairwiseReward, swapped
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import tournament
from rewarddance.types import Pixels, Question, Verdict

PROMPTS = ("a red circle", "two small blue crosses", "a picture of a large green square left of a triangle")


@pytest.fixture(scope="module")
def judge() -> PairwiseReward:
    return load_reward(str(judge_folder()))


def questions(n: int, seed: int = 0, instruction: str | None = None) -> list[Question]:
    shown = pictures(2 * n, seed)
    return [Question(PROMPTS[i % 3], shown[2 * i], shown[2 * i + 1], instruction) for i in range(n)]


# -- the naive path: nothing of ours in it -----------------------------------------------------------------------------


def written_out(prompt: str) -> str:
    """The t2i question as this checkpoint's processor would write it, 16 tokens a picture."""
    picture = "<img>" + "<IMG_CONTEXT>" * 16 + "</img>\n"
    return (
        "<|im_start|>user\nYou see two pictures made for one prompt.\n"
        f"Prompt: {prompt}\nJudge by:\n"
        "- alignment: every object, count, colour, size and position that the prompt names is there, and nothing else\n"
        "- quality: the picture is clean and sharp, without artefacts\n"
        f"Reference:{picture}Candidate:{picture}"
        "Is the candidate better than the reference? Answer yes or no.<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.fixture(scope="module")
def naive_margin() -> Callable[[str, Tensor], Tensor]:
    """(text, pixel_values of reference and candidate) -> margin, by one whole forward and its full logits."""
    folder = judge_folder()
    model = AutoModelForImageTextToText.from_pretrained(folder).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(words: tuple[str, ...]) -> list[int]:
        found = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
        return sorted({one[0] for one in found if len(one) == 1})

    yes, no = ids(("yes", "Yes", "YES", " yes", " Yes")), ids(("no", "No", "NO", " no", " No"))
    assert len(yes) >= 2 and len(no) >= 2 and not set(yes) & set(no)

    def margin(text: str, pixel_values: Tensor) -> Tensor:
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        logits = model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, pixel_values=pixel_values
        ).logits[0, -1]
        return logits[yes].logsumexp(0) - logits[no].logsumexp(0)

    return margin


def processed(pixels: Pixels) -> Tensor:
    """Pixels through transformers' own image processor, by way of Pillow."""
    processor = GotOcr2ImageProcessorPil.from_pretrained(judge_folder())
    array = (pixels[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return processor(Image.fromarray(array), return_tensors="pt").pixel_values


def test_the_margin_is_that_of_one_plain_forward_a_question(judge, naive_margin):
    asked = questions(6)
    naive = [
        naive_margin(written_out(q.prompt.text), torch.cat([processed(q.reference), processed(q.candidate)]))
        for q in asked
    ]
    found = judge(asked).margin
    assert found.dtype == torch.float32
    assert found.std() > 0.1  # the questions have different answers
    torch.testing.assert_close(found, torch.stack(naive), atol=1e-5, rtol=0)


def test_a_trained_reward_reads_the_reference_before_the_candidate(judge, naive_margin):
    question = questions(1)[0]
    turned = naive_margin(
        written_out(question.prompt.text), torch.cat([processed(question.candidate), processed(question.reference)])
    )
    found = judge([question, swapped(question)]).margin
    assert abs(found[0] - turned) > 1e-3
    assert abs(found[1] - turned) < 1e-5


def test_the_pixel_gradient_is_that_of_the_plain_forward(judge, naive_margin):
    question = questions(1)[0]
    ours, theirs = ([p.clone().requires_grad_() for p in (question.candidate, question.reference)] for _ in range(2))
    judge([Question(question.prompt, *ours)]).margin.sum().backward()
    naive_margin(
        written_out(question.prompt.text), torch.cat([normalised(theirs[1]), normalised(theirs[0])])
    ).backward()
    for own, naive in zip(ours, theirs, strict=True):
        assert naive.grad.norm() > 1e-2
        assert (own.grad - naive.grad).norm() / naive.grad.norm() < 1e-4


def test_the_pixel_gradient_is_the_slope_of_the_margin(judge):
    question = questions(1)[0]
    candidate = question.candidate.clone().requires_grad_()
    judge([Question(question.prompt, candidate, question.reference)]).margin.sum().backward()
    along = candidate.grad / candidate.grad.norm()
    up, down = (Question(question.prompt, question.candidate + s * 0.02 * along, question.reference) for s in (1, -1))
    margin = judge([up, down]).margin
    assert float(margin[0] - margin[1]) / 0.04 == pytest.approx(float(candidate.grad.norm()), rel=1e-2)


def test_no_graph_is_kept_where_no_pixel_asks_for_one(judge):
    assert not judge(questions(2)).margin.requires_grad
    wanting = [Question(q.prompt, q.candidate.clone().requires_grad_(), q.reference) for q in questions(2)]
    assert judge(wanting).margin.requires_grad
    with torch.no_grad():
        assert not judge(wanting).margin.requires_grad


# -- invariances -------------------------------------------------------------------------------------------------------


def test_a_verdict_does_not_depend_on_what_else_is_asked(judge):
    asked = questions(6)
    together = judge(asked).margin
    alone = torch.cat([judge([question]).margin for question in asked])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_verdict_does_not_depend_on_the_order_of_questions(judge):
    asked = questions(6)
    order = [3, 0, 5, 1, 4, 2]
    torch.testing.assert_close(judge([asked[i] for i in order]).margin, judge(asked).margin[order], atol=1e-5, rtol=0)


def test_a_verdict_does_not_depend_on_the_padding_beside_a_longer_prompt(judge):
    short = questions(1)[0]
    long = Question(" and ".join(["a large purple triangle"] * 20), short.candidate, short.reference)
    torch.testing.assert_close(judge([short, long]).margin[:1], judge([short]).margin, atol=1e-5, rtol=0)


def test_a_verdict_does_not_depend_on_the_batch_size():
    asked = questions(5)
    small, large = (load_reward(str(judge_folder()), batch_size=size)(asked).margin for size in (2, 128))
    torch.testing.assert_close(small, large, atol=1e-5, rtol=0)


def test_questions_that_share_a_tensor_get_the_verdicts_of_copies(judge):
    a, b, c = pictures(3)
    shared = [Question("a red circle", a, b), Question("a red circle", b, a), Question("a red circle", c, a)]
    copies = [Question(q.prompt, q.candidate.clone(), q.reference.clone()) for q in shared]
    torch.testing.assert_close(judge(shared).margin, judge(copies).margin, atol=1e-5, rtol=0)


def test_no_question_has_no_verdict(judge):
    assert judge([]).margin.shape == (0,)


def test_asking_both_orders_makes_swapping_negate_the_margin():
    both = load_reward(str(judge_folder()), orders="both")
    asked = questions(4)
    found, turned = both(asked).margin, both([swapped(question) for question in asked]).margin
    assert found.abs().max() > 0.05
    torch.testing.assert_close(found, -turned, atol=1e-5, rtol=0)
    same = asked[0].candidate
    assert both([Question("a red circle", same, same.clone())]).margin.abs() < 1e-5


def test_asking_both_orders_is_half_the_difference_of_the_two(judge):
    asked = questions(4)
    both = load_reward(str(judge_folder()), orders="both")
    difference = judge(asked).margin - judge([swapped(question) for question in asked]).margin
    torch.testing.assert_close(both(asked).margin, difference / 2, atol=1e-5, rtol=0)


def test_among_the_vocabulary_the_reward_is_the_softmax_over_all_tokens(judge):
    whole = PairwiseReward(judge.vlm, judge.config.model_copy(update={"among": "vocabulary"}))
    states = judge.vlm.last_states(judge._judge_inputs(questions(3)))
    yes = judge.vlm.answer_tokens(judge.config.yes)
    torch.testing.assert_close(
        whole(questions(3)).probability, judge.vlm.head(states).softmax(-1)[:, yes].sum(-1), atol=1e-7, rtol=1e-5
    )
    assert (whole(questions(3)).probability < judge(questions(3)).probability).all()


def test_the_reward_is_the_softmax_of_yes_against_no():
    margin = torch.tensor([-2.0, 0.0, 3.0])
    expected = torch.stack([margin, torch.zeros(3)]).softmax(0)[0]
    torch.testing.assert_close(Verdict(margin).probability, expected)


def test_a_questions_own_instruction_goes_before_the_judges(judge):
    brief = load_reward(str(judge_folder()), instruction="t2i-brief")
    own = judge(questions(3, instruction="t2i-brief")).margin
    torch.testing.assert_close(own, brief(questions(3)).margin, atol=1e-5, rtol=0)
    assert (own - judge(questions(3)).margin).abs().max() > 1e-3


# -- preprocessing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(96, 96), (75, 131), (20, 24), (448, 300), (300, 40), (90, 20)])
@pytest.mark.parametrize("picture", [photograph, drawing])
def test_resizing_is_within_one_and_a_half_steps_of_pillow(judge, picture, size):
    array = picture(*size)
    pillow = np.asarray(Image.fromarray(array).resize((32, 32), Image.Resampling.BICUBIC)) / 255
    ours = judge.vlm.preprocess(torch.from_numpy(array / 255).float().permute(2, 0, 1).unsqueeze(0))
    deviation, mean = (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None],
        torch.tensor([0.485, 0.456, 0.406])[:, None, None],
    )
    back = (ours * deviation + mean)[0].permute(1, 2, 0).numpy()
    assert np.abs(back - pillow).max() < 1.5 / 255


def test_a_picture_of_the_models_own_size_is_not_resampled(judge):
    (picture,) = pictures(1)
    assert torch.equal(judge.vlm.preprocess(picture), normalised(picture))


def test_the_gradient_passes_through_the_resize(judge):
    candidate = pictures(1, size=64)[0].requires_grad_()
    judge([Question("a red circle", candidate, pictures(1, seed=1, size=64)[0])]).margin.sum().backward()
    assert (candidate.grad != 0).float().mean() > 0.9


# -- what cannot be answered -------------------------------------------------------------------------------------------


def test_a_question_without_a_reference_is_refused_by_name(judge):
    (picture,) = pictures(1)
    with pytest.raises(InputError, match=r"question 1 \('a blue cross'\) has no reference"):
        judge([questions(1)[0], Question("a blue cross", picture)])
    with pytest.raises(InputError, match="'a blue cross' has no reference to swap"):
        swapped(Question("a blue cross", picture))


@pytest.mark.parametrize(
    ("prompt", "said"), [(None, "None is no text"), (["a circle"], "is no text"), ("a \ud800 circle", "is broken")]
)
def test_a_prompt_that_is_no_text_is_refused_and_not_written_out(prompt, said):
    jaxtyping.config.update("jaxtyping_disable", True)  # what checks all types in tests is not there for users
    try:
        with pytest.raises(InputError, match=said):
            Question(prompt, *pictures(2))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("token", ["<img>", "<IMG_CONTEXT>", "<|im_end|>"])
def test_a_prompt_with_one_of_the_models_own_tokens_is_refused(judge, token):
    first, second = pictures(2)
    with pytest.raises(InputError) as caught:
        judge([Question(f"a red {token} circle", first, second)])
    assert token in caught.value.what and "Remove it from the prompt" in caught.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_pixel_that_is_not_finite_is_an_error_that_names_the_question(judge, value):
    asked = questions(3)
    asked[2].candidate[0, 1, 5, 5] = value
    with pytest.raises(RewardError, match=f"question 2 .*{asked[2].prompt.text}"):
        judge(asked)


def test_compare_asks_of_each_candidate_in_any_form_what_a_question_asks(judge, tmp_path):
    first, second, reference = pictures(3)
    array = (second[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "b.png")
    exact = torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1).unsqueeze(0)
    expected = judge([Question("a red circle", first, reference), Question("a red circle", exact, reference)])
    for form in (array, tmp_path / "b.png", Image.fromarray(array)):
        found = judge.compare("a red circle", [first, form], reference)
        torch.testing.assert_close(found.margin, expected.margin, atol=1e-5, rtol=1e-5)
    assert judge.compare("a red circle", [], reference).margin.shape == (0,)
    with pytest.raises(InputError, match="candidate 1"):
        judge.compare("a red circle", [first, np.zeros((4, 4)), second], reference)


def test_a_single_picture_is_a_list_of_one(judge, tmp_path):
    first, second, third = pictures(3)
    path = tmp_path / "a.png"
    write_picture(first, path)
    expected = judge.compare("a red circle", [first], third).margin
    for single in (
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
        Image.open(path),
        first[0],
        first[0].permute(1, 2, 0).numpy(),
    ):
        torch.testing.assert_close(judge.compare("a red circle", single, third).margin, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="the candidate is an array"):
        judge.compare("a red circle", np.zeros((4, 4)), third)
    stacked = judge.compare("a red circle", torch.stack([first[0], second[0]]), third).margin
    assert torch.equal(stacked, judge.compare("a red circle", [first, second], third).margin)


def test_compare_carries_a_gradient_to_the_candidate(judge):
    candidate, reference = pictures(2)
    candidate.requires_grad_(True)
    judge.compare("a red circle", [candidate], reference).margin.sum().backward()
    assert candidate.grad is not None and candidate.grad.abs().sum() > 0


def test_rank_is_the_tournament_of_its_candidates(judge):
    shown = list(pictures(4))
    found = judge.rank("a red circle", [one[0] for one in shown])
    (expected,) = tournament(judge, ["a red circle"], [shown])
    other = judge.rank("a red circle", shown, instruction="t2i-bare")
    assert torch.equal(
        other.margins, load_reward(str(judge_folder()), instruction="t2i-bare").rank("a red circle", shown).margins
    )
    assert found.order.tolist() == expected.order.tolist()
    torch.testing.assert_close(found.margins, expected.margins, atol=1e-5, rtol=1e-5)


def test_an_encoded_picture_is_let_go_once_its_last_question_is_answered(monkeypatch):
    judge, (reference, *shown) = load_reward(judge_folder()), pictures(4)
    held: list[int] = []
    forward = judge.vlm._forward

    def watched(batch, sequences, given, encoded, known):
        held.append(sum(len(one.tokens) > 0 for one in encoded))
        return forward(batch, sequences, given, encoded, known)

    asked = [Question("a red circle", one, reference) for one in shown]
    expected = judge(asked).margin
    monkeypatch.setattr(judge.vlm, "_forward", watched)
    judge.vlm.max_batch_tokens = 1  # a question at a time
    torch.testing.assert_close(judge(asked).margin, expected, atol=1e-5, rtol=1e-5)
    assert held == [4, 3, 2]  # the reference is wanted until the end
