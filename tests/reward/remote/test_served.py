"""A judge at the other end of a connection is the judge itself: its margins, its gradients, its errors."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BrightnessJudge, generator_folder, judge_folder, pictures
from torch import Tensor

from rewarddance import align, as_reward, evaluate, load_generator, load_reward, score, search
from rewarddance.data.media import write_picture
from rewarddance.errors import InputError, RewardError
from rewarddance.protocols import RewardModel
from rewarddance.reward.identity import reward_digest
from rewarddance.reward.judge import Judge
from rewarddance.reward.remote.served import ServedReward
from rewarddance.serve.judge import mark_of
from rewarddance.serve.server import serving
from rewarddance.types import Preference, Prompt, Question, Verdict


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_reward(judge_folder(), instruction="t2i-brief")


@pytest.fixture(scope="module")
def served(judge: Judge) -> Iterator[ServedReward]:
    with serving(judge) as address:
        yield ServedReward(address, retries=1, backoff=0.05)


def test_its_margins_are_the_judges(judge, served):
    reference, *shown = pictures(6)
    shown[4] = torch.rand(1, 3, 32, 32)  # between the 8-bit values
    questions = [Question("a red circle", picture, reference) for picture in shown]
    questions += [Question("two blue crosses", shown[0], shown[1])]
    torch.testing.assert_close(served(questions).margin, judge(questions).margin, rtol=1e-6, atol=2e-6)
    assert served([]).margin.shape == (0,)


def test_in_which_orders_it_is_asked_is_known_here(tmp_path, judge):
    """In one order its leaning to a place counts; what it is asked in both is level by construction."""
    for name, pixels in zip(("a", "b"), pictures(2), strict=True):
        write_picture(pixels, tmp_path / f"{name}.png")
    for orders in ("forward", "both"):
        asked = load_reward(judge_folder(), instruction="t2i-brief", orders=orders)
        with serving(asked) as address:
            (row,) = score(address, tmp_path / "a.png", "a red circle", reference=tmp_path / "b.png")
            assert ServedReward(address).config.orders == orders == row["orders"]
            assert reward_digest(address) == ServedReward(address).info.mark
    with serving(as_reward(lambda images, *_: images.mean((1, 2, 3)))) as address:
        assert ServedReward(address).config.orders is None


def gradients(judge: RewardModel, shown: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss that weighs the margins: one reference that two questions share, one picture in both places."""
    leaves = [picture.clone().requires_grad_() for picture in shown]
    a, b, reference = leaves
    margin = judge([Question("a circle", a, reference), Question("a circle", b, reference), Question("x", a, b)]).margin
    return torch.autograd.grad((margin.sigmoid() * torch.tensor([1.0, -2.0, 3.0])).sum(), leaves)


def test_its_gradients_are_the_judges(judge, served):
    shown = [torch.rand(1, 3, 32, 32) for _ in range(3)]
    for ours, theirs in zip(gradients(served, shown), gradients(judge, shown), strict=True):
        assert theirs.abs().max() > 1e-5
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6)


def test_questions_with_and_without_a_gradient_may_be_mixed(judge, served):
    a, b = (pixels.clone() for pixels in pictures(2))
    a.requires_grad_()
    questions = [Question("a circle", a, b), Question("a circle", b, b)]
    found, theirs = served(questions).margin, judge(questions).margin
    torch.testing.assert_close(found, theirs, rtol=1e-6, atol=2e-6)
    (ours,) = torch.autograd.grad(found.sum(), a)
    torch.testing.assert_close(ours, torch.autograd.grad(theirs.sum(), a)[0], rtol=1e-6, atol=2e-6)


def test_a_gradient_in_half_precision_comes_back_so(served):
    pixels = pictures(1)[0].bfloat16().requires_grad_()
    served([Question("a circle", pixels, pictures(2)[1])]).probability.sum().backward()
    assert pixels.grad is not None and pixels.grad.dtype == torch.bfloat16


def test_many_questions_go_in_parts_and_keep_their_order(judge):
    reference, *shown = pictures(12)
    questions = [Question("a circle", picture, reference) for picture in shown]
    with serving(judge, max_questions=5) as address:
        parts = ServedReward(address, batch_size=3)
        torch.testing.assert_close(parts(questions).margin, judge(questions).margin, rtol=1e-6, atol=2e-6)


def test_a_question_that_fails_is_named_with_its_reason(served):
    a, b = pictures(2)
    with pytest.raises(InputError, match=r"question 1 \(prompt 'a blue cross'\).*reference"):
        served([Question("a circle", a, b), Question("a blue cross", a)])
    with pytest.raises(InputError, match=r"question 0 \(prompt .a circle.\).*candidate has values that are not finite"):
        served([Question("a circle", torch.full((1, 3, 32, 32), float("nan")), b)])
    with pytest.raises(InputError, match="no instruction of this server"):
        served([Question("a circle", a, b, instruction="/etc/passwd")])


def test_it_says_what_it_is_and_goes_to_other_processes(served):
    assert served.needs_reference is True and "http://127.0.0.1" in repr(served) and "pairwise" in repr(served)
    again = pickle.loads(pickle.dumps(served))
    assert again.options == served.options and repr(again) == repr(served)


def test_another_judge_at_the_same_address_is_noticed():
    a, b = pictures(2)
    with serving(BrightnessJudge()) as address:
        reward = ServedReward(address)
    with serving(BrightnessJudge(), port=int(address.rpartition(":")[2])), pytest.raises(RewardError, match="another"):
        reward([Question("a circle", a, b)])


def test_a_function_is_served_with_what_its_prompts_carry_along():
    @as_reward
    def wanted(images: Any, prompts: list[str], metadata: list[dict[str, Any]]) -> list[float]:
        return [float(row["wanted"]) for row in metadata]

    with serving(wanted) as address:
        reward = ServedReward(address)
        assert reward.needs_reference is False
        question = Question(Prompt("a circle", metadata={"wanted": 0.75}), pictures(1)[0])
        assert reward([question]).margin.tolist() == [0.75]


def test_a_reward_without_gradients_says_so():
    with serving(as_reward(lambda images, prompts, metadata: [0.5] * len(images), images="pil")) as address:
        reward = ServedReward(address)
        assert reward.differentiable is False
        with pytest.raises(RewardError, match="no gradient"):
            reward([Question("a circle", pictures(1)[0].requires_grad_())])


@pytest.mark.parametrize("options", [{"batchsize": 3}, {"batch_size": 0}])
def test_an_option_that_is_none_is_named(options):
    with pytest.raises(InputError, match="batch"):
        ServedReward("http://127.0.0.1:9", **options)


def test_score_evaluate_and_search_take_it_as_they_take_the_judge(judge, served, tmp_path):
    a, b, c, d = pictures(4)
    for number, pixels in enumerate((a, b)):
        write_picture(pixels, tmp_path / "shown" / f"{number}.png")
        (tmp_path / "shown" / f"{number}.txt").write_text("a red circle")
    pairs = [Preference("a red circle", a, b, 1.0), Preference("a blue cross", c, d, 0.0)]
    generator = load_generator(str(generator_folder()), num_inference_steps=2)

    def figures(reward: Any) -> list[float]:
        write_picture(c, tmp_path / "c.png")
        rows = score(reward, tmp_path / "shown", reference=tmp_path / "c.png")
        test = evaluate(reward, {"id": pairs}, exam={"probes": 1}).tests["id"]
        (found,) = search(generator, reward, ["a red circle"], budget="samples=2")
        return [*(row["margin"] for row in rows), test.accuracy.mean, found.winner.score]

    assert figures(served) == pytest.approx(figures(judge), abs=1e-5)


def test_a_step_of_refl_moves_the_same_weights_to_the_same_place(judge, served, tmp_path):
    def trained(name: str, reward: Any) -> dict[str, Tensor]:
        generator = load_generator(str(generator_folder()), num_inference_steps=2)
        options: dict[str, Any] = {"steps": 1, "prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "lora_alpha": 2}
        align(generator, reward, ["a red circle"], output=tmp_path / name, references={"candidates": 2}, **options)
        from safetensors.torch import load_file

        return load_file(Path(tmp_path / name / "lora" / "pytorch_lora_weights.safetensors"))

    ours, theirs = trained("served", served), trained("local", judge)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], rtol=0, atol=1e-5) for key in ours)


def test_questions_go_in_parts_of_as_many_pixels_as_the_server_takes():
    with serving(BrightnessJudge(), max_pixels=4 * 32 * 32) as address:
        shown = pictures(9)
        questions = [Question("a circle", picture, shown[8]) for picture in shown[:8]]
        assert ServedReward(address)(questions).margin.shape == (8,)


def test_a_judge_elsewhere_ranks_and_is_a_function_of_trainers(judge, served):
    a, b, c = pictures(3)
    assert served.rank("a red circle", [a, b, c]).order.tolist() == judge.rank("a red circle", [a, b, c]).order.tolist()
    ours, theirs = (one.reward_fn()(torch.cat([a, b, c]), ["x"] * 3) for one in (served, judge))
    assert ours[0] == pytest.approx(theirs[0]) and ours[1]["margins"] == pytest.approx(theirs[1]["margins"], abs=1e-5)


def test_an_answer_of_the_wrong_length_is_said_in_words():
    class Short(BrightnessJudge):
        def __call__(self, questions):
            return Verdict(torch.zeros(len(questions) + 1))

    a, b = pictures(2)
    with serving(Short()) as address, pytest.raises(RewardError, match="one margin for each question"):
        ServedReward(address)([Question("a circle", a, b)])


def test_the_mark_of_a_folder_is_not_its_name(judge, tmp_path):
    judge.save(tmp_path)
    first, second = (mark_of(load_reward(path), tmp_path) for path in (tmp_path, f"{tmp_path}/../{tmp_path.name}"))
    assert first == second != mark_of(load_reward(tmp_path, dtype="bfloat16"), tmp_path)
