"""A judge of edits is shown the source, and following, keeping and quality are asked apart."""

from __future__ import annotations

import pytest
import torch
from tiny import judge_folder, pictures

from rewarddance.errors import InputError
from rewarddance.reward.criteria import CriteriaReward
from rewarddance.reward.instructions import load_instruction, load_tree, pictures_of
from rewarddance.reward.loading import load_reward
from rewarddance.types import Prompt, Question

LEAVES = [f"edit#{leaf}" for leaf in load_tree("edit").leaves]


def asked(source: int = 3) -> list[Question]:
    shown = pictures(5)
    prompt = Prompt("make the circle red", image=shown[source])
    return [Question(prompt, shown[i], shown[i + 1]) for i in range(2)]


@pytest.mark.parametrize("name", ["edit", "edit-bare", "edit-brief", *LEAVES])
@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_every_question_about_an_edit_shows_the_source_first(name, kind):
    instruction, (question, _) = load_instruction(name), asked()
    parts = list((instruction.question if kind == "pairwise" else instruction.pointwise_question)("make it red"))
    shown = pictures_of(parts, question)
    assert shown[0] is question.prompt.image and shown[-1] is question.candidate
    assert any(one is question.reference for one in shown) == (kind == "pairwise")
    with pytest.raises(InputError, match=r"make it red.* has no image"):
        pictures_of(parts, Question("make it red", question.candidate, question.reference))
    video = Prompt("make it red", image=question.candidate.expand(3, -1, -1, -1))
    with pytest.raises(InputError, match=r"make it red.* a video of 3 frames"):
        pictures_of(parts, Question(video, question.candidate, question.reference))


def test_a_question_about_a_picture_of_nothing_refuses_a_source():
    judge = load_reward(str(judge_folder()))
    with pytest.raises(InputError, match=r"make the circle red.* has an image, but its instruction has no place"):
        judge([Question(q.prompt, q.candidate, q.reference, "t2i") for q in asked()])


def test_another_source_is_another_answer_of_judge_and_tree():
    judge = load_reward(str(judge_folder()), instruction="edit")
    reward = CriteriaReward(judge, "edit")
    for ask in (judge, reward):
        one, other = ask(asked(3)).margin, ask(asked(4)).margin
        assert (one - other).abs().max() > 1e-4


def test_following_keeping_and_quality_are_verdicts_of_their_own():
    reward = CriteriaReward(load_reward(str(judge_folder()), instruction="edit"), "edit")
    parts = reward.by_criterion(asked())
    top = {name: parts[name].margin for name in ("following", "keeping", "quality")}
    whole = (2 * top["following"] + 2 * top["keeping"] + top["quality"]) / 5
    torch.testing.assert_close(reward(asked()).margin, whole, atol=1e-5, rtol=1e-5)
    assert (top["following"] - top["keeping"]).abs().max() > 1e-4


def test_a_gradient_reaches_the_edit_and_not_the_source():
    reward = CriteriaReward(load_reward(str(judge_folder()), instruction="edit"), "edit")
    question, _ = asked()
    candidate = question.candidate.clone().requires_grad_()
    reward([Question(question.prompt, candidate, question.reference)]).margin.sum().backward()
    assert candidate.grad is not None and candidate.grad.abs().sum() > 0
