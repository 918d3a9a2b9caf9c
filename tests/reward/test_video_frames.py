"""Which frames of a video a judge reads, at which rate, and that what it cannot read is an error and no low score."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import clip_folder, judge_folder

from rewarddance.data.frame_sampling import frames_read, spread
from rewarddance.errors import InputError
from rewarddance.evaluation.agreement import both_orders
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.video_frames import as_read, check_rate
from rewarddance.types import Preference, Prompt, Question

KINDS = ("pairwise", "pointwise", "regressive", "clip")
PROMPT = "a red circle moves left"
rng = torch.Generator().manual_seed(0)
VIDEOS = [torch.rand(9, 3, 32, 32, generator=rng) for _ in range(3)]


def judge(kind: str = "pairwise", **options):
    """A random judge; a regressive one has a head that was drawn, too."""
    options |= {} if kind == "clip" else {"instruction": "t2v-brief"}
    made = build_reward(str(clip_folder() if kind == "clip" else judge_folder()), RewardConfig(kind=kind, **options))  # type: ignore[arg-type]
    if kind == "regressive":
        torch.nn.init.normal_(made.model.reward_head.weight, generator=torch.Generator().manual_seed(1))
    return made.freeze()


def test_frames_are_spread_from_the_first_to_the_last():
    assert spread(9, 4) == [0, 3, 5, 8] and spread(9, 9) == list(range(9))
    assert spread(8, 2) == [0, 7] and spread(9, 1) == [4] and spread(16, 5) == [0, 4, 8, 11, 15]


@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_of_four_frames_says_of_a_video_what_it_says_of_these_four(kind):
    reads, all_of = judge(kind, frames=4), judge(kind)
    whole = [Question(PROMPT, VIDEOS[0], VIDEOS[2]), Question(PROMPT, VIDEOS[1], VIDEOS[2])]
    cut = [Question(PROMPT, q.candidate[[0, 3, 5, 8]], q.reference[[0, 3, 5, 8]]) for q in whole]  # type: ignore[index]
    said = reads(whole).margin
    torch.testing.assert_close(said, all_of(cut).margin, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(said, all_of(whole).margin, atol=1e-5)


def test_what_is_not_read_has_no_gradient_and_what_is_read_has_one():
    video = VIDEOS[0].clone().requires_grad_()
    judge(frames=4)([Question(PROMPT, video, VIDEOS[2])]).margin.sum().backward()
    assert video.grad is not None
    assert [bool(frame.any()) for frame in video.grad] == [number in (0, 3, 5, 8) for number in range(9)]


def test_a_video_that_many_questions_share_is_one_tensor_still():
    found = as_read([Question(PROMPT, video, VIDEOS[2]) for video in VIDEOS[:2]], 4, None)
    assert found[0].reference is found[1].reference and found[0].candidate is not found[1].candidate
    same = as_read([Question(PROMPT, VIDEOS[0], VIDEOS[1])], 9, None)
    assert same[0].candidate is VIDEOS[0], "nothing is copied where nothing is left out"


def test_what_is_read_of_a_video_is_one_tensor_until_the_video_changes():
    video = VIDEOS[0].clone()
    asked = [Question(PROMPT, VIDEOS[1], video)]
    before = as_read(asked, 4, None)[0].reference
    assert as_read(asked, 4, None)[0].reference is before and len(as_read(asked, 3, None)[0].reference) == 3
    video[3] = 0
    after = as_read(asked, 4, None)[0].reference
    assert after is not before and not after[1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_video_of_a_question_is_named_by_the_questions_number_and_its_role(kind):
    asked = [Question(PROMPT, VIDEOS[0], VIDEOS[1]), Question(PROMPT, VIDEOS[0], VIDEOS[2][:1])]
    with pytest.raises(InputError, match=r"the reference of question 1 .* has 1 frame,"):
        judge(kind, frames=4)(asked)


def test_a_condition_is_shown_whole():
    picture = torch.rand(1, 3, 32, 32)
    (read,) = as_read([Question(Prompt(PROMPT, image=picture), VIDEOS[0], VIDEOS[1])], 4, None)
    assert read.prompt.image is picture


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 3])
def test_a_video_with_too_few_frames_is_an_error_and_no_low_score(kind, frames):
    asked = Question(PROMPT, VIDEOS[0], VIDEOS[1][:frames])
    with pytest.raises(InputError, match=f"has {frames} frame.* and this judge reads 4 of a video"):
        judge(kind, frames=4)([asked])


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_of_another_rate_is_an_error_and_one_of_an_unknown_rate_is_not(kind):
    asked = judge(kind, frames=4, fps=8)
    known = Question(PROMPT, VIDEOS[0], VIDEOS[1], fps=(8.0, None))
    torch.testing.assert_close(asked([known]).margin, asked([Question(PROMPT, VIDEOS[0], VIDEOS[1])]).margin)
    for fps in ((24.0, 8.0), (8.0, 24.0)):
        with pytest.raises(InputError, match="has 24 frames a second, and this judge knows videos of 8"):
            asked([Question(PROMPT, VIDEOS[0], VIDEOS[1], fps=fps)])


def test_rates_that_differ_by_rounding_are_one():
    check_rate(29.97, 30.0, "the video")
    check_rate(None, 30.0, "the video")
    check_rate(24.0, None, "the video")
    with pytest.raises(InputError, match="the video has 25 frames a second"):
        check_rate(25.0, 24.0, "the video")


@pytest.mark.parametrize("kind", KINDS)
def test_neither_training_nor_evaluation_takes_pairs_of_another_rate(kind):
    asked = judge(kind, frames=4, fps=8)
    right = Preference(PROMPT, VIDEOS[0], VIDEOS[1], 1.0, fps=(8.0, 8.0))
    assert torch.isfinite(asked.loss([right]))
    for fps in ((8.0, 12.0), (12.0, 8.0)):
        wrong = Preference(PROMPT, VIDEOS[0], VIDEOS[1], 1.0, fps=fps)
        for use in (lambda pair: asked.loss([pair]), lambda pair: both_orders(asked, [pair])):
            with pytest.raises(InputError, match="12 frames a second"):
                use(wrong)


def test_frames_and_rate_are_recorded_with_the_reward_and_read_again(tmp_path):
    judge(frames=4, fps=8).save(tmp_path)
    content = json.loads((tmp_path / "reward_config.json").read_text())
    assert (content["frames"], content["fps"]) == (4, 8.0)
    assert load_reward(str(tmp_path)).config.frames == 4


def test_a_video_is_named_by_what_was_asked():
    with pytest.raises(InputError, match="the video has 2 frames, and this judge reads 3"):
        frames_read(VIDEOS[0][:2], 3, "the video")
