"""A judge as a reward function of other people's loops: flow_grpo's convention, in every form of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import judge_folder, pictures

from rewarddance.errors import InputError
from rewarddance.reward.loading import load_reward
from rewarddance.reward.ranking import tournament, win_rates
from rewarddance.types import Question

PROMPTS = ["a red circle", "two crosses", "a red circle", "two crosses", "a red circle"]
ARRAY = (pictures(5)[:, 0].permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
FORMS = {
    "tensor": torch.from_numpy(ARRAY).permute(0, 3, 1, 2) / 255,
    "array": ARRAY,
    "PIL": [Image.fromarray(picture) for picture in ARRAY],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pointwise_judge_gives_p_yes_of_each_image_in_every_form(form):
    judge = load_reward(str(judge_folder()), kind="pointwise")
    scores, info = judge.reward_fn()(FORMS[form], PROMPTS, [{}] * 5)
    asked = [Question(text, image[None]) for text, image in zip(PROMPTS, FORMS["tensor"], strict=True)]
    verdict = judge(asked)
    np.testing.assert_allclose(scores, verdict.probability, atol=1e-5)
    np.testing.assert_allclose(info["margins"], verdict.margin, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_pairwise_judge_gives_the_win_rate_among_a_prompts_images(form):
    judge = load_reward(str(judge_folder()))
    scores, info = judge.reward_fn()(FORMS[form], PROMPTS, None)
    assert scores.dtype == np.float32 and scores.mean() == pytest.approx(0.5) and info["margins"].sum() < 1e-4
    of_prompt = [0, 2, 4]
    (ranking,) = tournament(judge, ["a red circle"], [[FORMS["tensor"][number][None] for number in of_prompt]])
    np.testing.assert_allclose(scores[of_prompt], win_rates(ranking.margins[None])[0], atol=1e-5)
    assert (scores > 0.5).tolist() == (info["margins"] > 0).tolist() or scores.std() < 0.1


def test_what_a_loop_gives_wrong_is_said_in_its_words():
    pairwise = load_reward(str(judge_folder())).reward_fn()
    with pytest.raises(InputError, match="'a blue cross' comes with one image") as caught:
        pairwise(FORMS["array"][:3], ["a red circle", "a red circle", "a blue cross"], None)
    assert "two or more" in caught.value.remedy and "pointwise" in caught.value.remedy
    with pytest.raises(InputError, match="3 images and 2 prompts"):
        pairwise(FORMS["array"][:3], PROMPTS[:2], None)
    with pytest.raises(InputError, match="image 1"):
        pairwise([ARRAY[0], np.zeros((4, 4))], PROMPTS[:2], None)


def test_repr_says_kind_base_instruction_and_where_a_judge_is():
    said = repr(load_reward(str(judge_folder()), instruction="t2i-brief"))
    for part in (
        "PairwiseReward",
        "kind='pairwise'",
        "base='internvl'",
        "instruction='t2i-brief'",
        str(judge_folder()),
    ):
        assert part in said
