"""The oracle of videos says what a careful person would: what happens as asked is right, and no trick pays."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_videos import DARK, drawn, frames_of, looks_the_same_backwards, prompts_and_scripts

from rewarddance.errors import InputError
from rewarddance.shapeworld.motion.oracle import VideoScore, judge_videos, score_video
from rewarddance.shapeworld.motion.scripts import changed_identity, scenes_of
from rewarddance.shapeworld.motion.specs import (
    MotionSpec,
    Role,
    motion_near_miss,
    motion_prompts,
    parse_motion,
    sample_motion,
)
from rewarddance.shapeworld.motion.tracks import track_objects
from rewarddance.shapeworld.motion.videos import VIDEO_DEFECTS, render_video, spoil_video, video_pixels
from rewarddance.shapeworld.render import render, spoil
from rewarddance.shapeworld.scenes import CANVAS, ObjectSpec, Thing
from rewarddance.types import Prompt

RNG = np.random.default_rng(0)
EXAMPLES = prompts_and_scripts(RNG)


def video_for(text: str, frames: int = 12, seed: int = 0) -> np.ndarray:
    return frames_of(drawn(parse_motion(text), frames, np.random.default_rng(seed)))


def score(frames: np.ndarray, text: str) -> VideoScore:
    return score_video(frames, parse_motion(text))


def test_every_clean_video_is_right_in_every_figure():
    rng = np.random.default_rng(1)
    for _ in range(500):
        spec = sample_motion(rng)
        frames = frames_of(drawn(spec, int(rng.integers(8, 17)), rng))
        found = score_video(frames, spec, frames[0])
        assert found.correct and not found.reasons and found.category == spec.category, (spec.text, found)
        figures = (found.objects, found.motion, found.order, found.consistency, found.quality, found.fidelity)
        assert figures == (1, 1, 1, 1, 1, 1) and found.overall == pytest.approx(1), (spec.text, found)


def test_a_clean_video_is_read_as_its_script_though_one_object_hides_another():
    rng = np.random.default_rng(2)
    for number in range(60):
        spec = (
            EXAMPLES[number % len(EXAMPLES)][0]
            if number % 2
            else parse_motion("a red circle passes behind a blue cross")
        )
        script = drawn(spec, 10, rng)
        for seen, shown in zip(track_objects(frames_of(script)).scenes, scenes_of(script), strict=True):
            if any(a.x < b.x + b.side and b.x < a.x + a.side for a, b in itertools.combinations(shown, 2)):
                # hidden as a whole, it may be a pixel off; the frame looks the same
                assert len(seen) == len(shown) and (render(seen) == render(shown)).all()
            else:
                assert set(seen) == set(shown)


def test_another_hand_is_read_the_same():
    rng = np.random.default_rng(3)
    scores = []
    for spec, script in EXAMPLES:
        scores.append(score_video(render_video(script, style="sketch", seed=int(rng.integers(99))).frames, spec))
    assert np.mean([found.alignment for found in scores]) > 0.95
    assert 0.6 < np.mean([found.quality for found in scores]) < 0.95
    assert np.mean([found.consistency for found in scores]) > 0.9


def test_it_does_not_matter_which_object_the_prompt_names_first():
    rng = np.random.default_rng(4)
    for spec, script in EXAMPLES:
        if spec.category == "two_motions":
            turned, missed = MotionSpec(spec.category, spec.roles[::-1]), motion_near_miss(spec, rng)
            for frames in (frames_of(script), frames_of(drawn(missed, 9, rng))):
                assert score_video(frames, spec).overall == pytest.approx(score_video(frames, turned).overall)


@pytest.mark.parametrize(
    ("shown", "asked", "low"),
    [
        ("a red circle moves right", "a red circle moves left", "order"),
        ("a red circle moves up", "a red circle moves left", "motion"),
        ("a red circle grows", "a red circle shrinks", "order"),
        ("a red circle grows", "a red circle moves down", "motion"),
        ("a red circle disappears", "a red circle appears", "order"),
        ("a red circle moves left", "a red circle disappears", "motion"),
        ("a blue circle turns red", "a red circle turns blue", "order"),
        ("a red circle passes in front of a blue square", "a red circle passes behind a blue square", "motion"),
        ("a blue square passes behind a red circle", "a red circle passes behind a blue square", "motion"),
        ("a red circle moves left and a blue cross grows", "a red circle grows and a blue cross moves left", "motion"),
    ],
)
def test_the_right_objects_with_the_wrong_motion_are_not_the_right_video(shown: str, asked: str, low: str):
    for seed in range(4):
        frames = video_for(shown, seed=seed)
        assert score(frames, shown).correct
        found = score(frames, asked)
        figures = {"motion": found.motion, "order": found.order}
        assert figures[low] <= 0.3 and found.overall <= 0.5 and found.reasons, (shown, asked, found)
        assert found.consistency > 0.3 and found.quality == 1


@pytest.mark.parametrize(
    ("shown", "asked", "left"),
    [
        ("a blue circle moves left", "a red circle moves left", 0.4),
        ("a red square moves left", "a red circle moves left", 0.4),
        ("a small red circle moves left", "a large red circle moves left", 0.7),
        ("a red circle turns green", "a red circle turns blue", None),
        ("a red circle moves left and a blue cross moves up", "a red circle moves left", 0.5),
        ("a red circle moves left", "a red circle moves left and a blue cross moves up", 0.5),
    ],
)
def test_the_right_motion_of_the_wrong_objects_costs_as_in_pictures(shown: str, asked: str, left: float | None):
    found = score(video_for(shown), asked)
    assert found.reasons and not found.correct
    if left is None:
        assert found.objects < 0.9
    else:
        assert found.objects == pytest.approx(left)


def test_what_the_prompt_does_not_ask_for_costs_more_the_more_of_it_there_is():
    circle = Thing("circle", "red", 8, 22, 2)
    steps = range(12)
    plain = [replace(circle, x=22 - i) for i in steps]
    down = [replace(thing, y=2 + i) for thing, i in zip(plain, steps, strict=True)]
    growing = [replace(thing, side=8 + i // 3) for thing, i in zip(down, steps, strict=True)]
    coloured = [replace(thing, colour="red" if i < 6 else "blue") for thing, i in zip(growing, steps, strict=True)]
    overall = [
        score(frames_of((tuple(path),)), "a circle moves left").overall for path in (plain, down, growing, coloured)
    ]
    assert overall[0] == pytest.approx(1) and (np.diff(overall) < -0.02).all()
    assert overall[1] < 0.75 and overall[-1] < 0.5


def test_a_jump_is_no_motion():
    circle = Thing("circle", "red", 8, 22, 12)
    jumped = (circle,) * 6 + (replace(circle, x=2),) * 6
    found = score(frames_of((jumped,)), "a red circle moves left")
    assert found.motion == 0 and found.consistency == 0.5 and found.overall < 0.4


def test_what_goes_back_and_forth_goes_half_the_right_way():
    path = tuple(Thing("circle", "red", 8, 2 + abs(8 - i), 12) for i in range(16))
    found = score(frames_of((path,)), "a red circle moves left")
    assert found.motion == 1 and found.order == pytest.approx(8 / 15)


def test_an_object_that_blinks_out_beside_another_is_not_hidden_by_it():
    script = drawn(parse_motion("a red circle passes behind a blue square"), 12, np.random.default_rng(0))
    moving, still = script
    touching = [a and b and max(abs(a.x - b.x), abs(a.y - b.y)) < 9 for a, b in zip(moving, still, strict=True)]
    gone = tuple(None if near else thing for thing, near in zip(moving, touching, strict=True))
    found = score(frames_of((gone, still)), "a red circle passes behind a blue square")
    assert not found.correct and found.consistency < 1
    assert score(frames_of(script), "a red circle passes behind a blue square").correct


def test_the_reasons_say_what_is_wrong():
    frames = video_for("a red circle moves left")

    def reasons(prompt: str) -> tuple[str, ...]:
        return score(frames, prompt).reasons

    assert reasons("a red circle moves right") == ("the circle does the opposite of what it should: moves right",)
    assert reasons("a blue circle moves left") == ("the circle is not a blue circle throughout",)
    assert reasons("a red circle turns blue")[0] == "the circle does not do what it should: turns blue"
    two = reasons("a red circle moves left and a square grows")
    assert two == ("no square is there",)
    assert score(np.tile(DARK, (8, CANVAS, CANVAS, 1)), "a red circle grows").reasons == ("no red circle is there",)


@pytest.mark.parametrize("defect", ("identity", *VIDEO_DEFECTS))
def test_the_more_of_a_defect_the_lower_the_score(defect: str):
    levels = (0.0, 0.3, 0.6, 1.0)
    overall = []
    for number, (spec, script) in enumerate(EXAMPLES):
        if defect == "reverse" and looks_the_same_backwards(spec):
            continue
        video, row = render_video(script), []
        for level in levels:
            if defect == "identity":
                spoiled = render_video(changed_identity(script, level, np.random.default_rng([5, number])))
            else:
                spoiled = spoil_video(video, defect, level, number)
            row.append(score_video(spoiled.frames, spec).overall)
        overall.append(row)
    steps = np.diff(overall, axis=1)
    assert np.allclose([row[0] for row in overall], 1) and np.max(overall) <= 1 + 1e-9
    assert (steps.mean(axis=0) < 0).all(), np.mean(overall, axis=0)
    assert (steps > 0.02).mean() < 0.1
    assert np.mean([row[-1] for row in overall]) < 0.65


def test_flicker_and_noise_cost_consistency_and_a_lasting_defect_hardly_does():
    means = {}
    for defect in ("flicker", "noise", "blur", "clutter"):
        scores = [
            score_video(spoil_video(render_video(script), defect, 0.25, 0).frames, spec)
            for spec, script in EXAMPLES[:12]
            if spec.category in ("presence", "colour_change")
        ]
        means[defect] = np.mean([found.consistency for found in scores])
        assert np.mean([found.quality for found in scores]) < 0.97
    assert means["noise"] < means["flicker"] < means["blur"] and means["flicker"] < 0.95 and means["clutter"] > 0.9


def test_a_jump_of_identity_costs_consistency_wherever_it_comes():
    for spec, script in EXAMPLES:
        if spec.category == "direction":
            for level in (0.3, 0.6, 0.9):
                changed = changed_identity(script, level, np.random.default_rng(0))
                assert score_video(frames_of(changed), spec).consistency == pytest.approx(0.5)


def test_a_video_that_begins_with_another_picture_is_not_made_from_its_own():
    rng = np.random.default_rng(7)
    for spec, script in EXAMPLES:
        if spec.begins_empty:
            continue
        frames, other = frames_of(script), frames_of(drawn(spec, 9, rng))[0]
        right, wrong, without = (score_video(frames, spec, picture) for picture in (frames[0], other, None))
        assert right.fidelity == 1 and right.correct and without.fidelity is None and without.correct
        assert wrong.fidelity is not None and wrong.fidelity < 0.7 and wrong.overall < 0.8
        assert "it does not begin with the given picture" in wrong.reasons or wrong.fidelity >= 0.5


def test_fidelity_falls_as_the_first_frame_departs_from_the_picture():
    spec = parse_motion("a red circle moves left")
    frames = video_for(spec.text)
    for defect in ("blur", "noise", "smear"):
        spoiled = [spoil(frames[0], defect, level, np.random.default_rng(0)) for level in (0.0, 0.1, 0.15, 0.2)]
        found = [score_video(np.concatenate([first[None], frames[1:]]), spec, frames[0]) for first in spoiled]
        fidelity = [one.fidelity or 0.0 for one in found]
        assert fidelity[0] == 1 and (np.diff(fidelity) < 0).all()
        assert (np.diff([one.overall for one in found]) < 0).all()


def test_a_batch_is_judged_as_its_videos_are():
    prompts = [text for text, _ in motion_prompts("held_out", 6, 1, "i2v")]
    videos = [render_video(drawn(parse_motion(text), 9, RNG)) for text in prompts]
    pixels = torch.stack([video_pixels(video) for video in videos])
    begun = [Prompt(text, image=video[:1]) for text, video in zip(prompts, pixels, strict=True)]
    apart = [
        score_video(video.frames, parse_motion(text), video.first) for video, text in zip(videos, prompts, strict=True)
    ]
    assert judge_videos(pixels.requires_grad_(), begun) == apart
    assert [found.fidelity for found in judge_videos(list(pixels), prompts)] == [None] * 6


def test_videos_of_another_shape_or_length_are_refused():
    for shape in ((7, 3, CANVAS, CANVAS), (17, 3, CANVAS, CANVAS), (8, 3, 64, 64), (8, 1, CANVAS, CANVAS)):
        with pytest.raises(InputError, match=r"video 0 \('a circle grows'\) of shape"):
            judge_videos([torch.zeros(shape)], ["a circle grows"])
    video = torch.zeros(8, 3, CANVAS, CANVAS)
    with pytest.raises(InputError, match="image of shape"):
        judge_videos([video], [Prompt("a circle grows", image=video)])
    with pytest.raises(InputError, match="1 videos and 2 prompts"):
        judge_videos([video], ["a circle grows"] * 2)


def test_pixels_that_are_not_finite_and_foreign_prompts_are_refused_by_name():
    video = torch.zeros(8, 3, CANVAS, CANVAS)
    video[3, 2, 5, 5] = float("nan")
    with pytest.raises(InputError, match=r"not finite, in video 1 \('a square grows'\)"):
        judge_videos([torch.zeros_like(video), video], ["a circle grows", "a square grows"])
    with pytest.raises(InputError, match="not ShapeWorld English"):
        judge_videos([torch.zeros_like(video)], ["a dog barks"])


def test_an_object_that_stands_by_is_no_demand_but_must_keep_still():
    spec = MotionSpec("two_motions", (Role(ObjectSpec("circle"), "moves left"), Role(ObjectSpec("square"))))
    square = Thing("square", "blue", 8, 2, 22)
    circle = tuple(Thing("circle", "red", 8, 22 - i, 2) for i in range(9))
    still_by = score_video(frames_of((circle, (square,) * 9)), spec)
    moving = score_video(frames_of((circle, tuple(replace(square, x=2 + 2 * i) for i in range(9)))), spec)
    assert still_by.correct and moving.motion < 0.5 and moving.objects == 1
