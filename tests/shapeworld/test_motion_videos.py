"""Videos show what their script says, frame by frame, and a defect grows with its level and does nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rewarddance.errors import InputError
from rewarddance.shapeworld.motion.scripts import (
    MIN_DISTANCE,
    Script,
    changed_identity,
    first_of,
    hidden_share,
    sample_script,
    scenes_of,
)
from rewarddance.shapeworld.motion.specs import CROSSINGS, DIRECTIONS, MotionSpec, motion_prompts, parse_motion
from rewarddance.shapeworld.motion.videos import VIDEO_DEFECTS, Video, render_video, spoil_video, video_of, video_pixels
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.scenes import BACKGROUND, CANVAS

SPECS = [spec for split in ("train", "unseen") for _, spec in motion_prompts(split, 90, 0)]


def script_of(text: str, frames: int = 9, seed: int = 0) -> Script:
    script = sample_script(parse_motion(text), frames, np.random.default_rng(seed))
    assert script
    return script


def scripts() -> list[tuple[MotionSpec, Script]]:
    rng = np.random.default_rng(0)
    drawn = [(spec, sample_script(spec, int(rng.integers(8, 17)), rng)) for spec in SPECS]
    return [(spec, script) for spec, script in drawn if script]


def test_every_object_stays_on_the_canvas_and_moves_smoothly():
    for _, script in scripts():
        for path in script:
            for before, after in itertools.pairwise(path):
                if after:
                    assert min(after.x, after.y) >= 0 and max(after.x, after.y) + after.side <= CANVAS
                if before and after:
                    assert max(abs(after.x - before.x), abs(after.y - before.y), abs(after.side - before.side)) <= 4


def test_objects_keep_apart_unless_one_passes_the_other():
    for spec, script in scripts():
        least, most = sorted((script[0], script[-1]), key=lambda path: first_of(path).side)
        hidden = [hidden_share(a, b) for a, b in zip(least, most, strict=True) if a and b]
        if spec.category == "occlusion":
            assert max(hidden) >= 0.5 and hidden[0] == hidden[-1] == 0
        elif len(script) == 2:
            assert max(hidden, default=0) == 0


def test_what_moves_goes_straight_and_far_enough():
    for spec, script in scripts():
        for role, path in zip(spec.roles, script, strict=True):
            if role.action in DIRECTIONS:
                dx, dy = DIRECTIONS[role.action]
                start, end = path[0], path[-1]
                assert start and end
                way = ((end.x - start.x) * dx, (end.y - start.y) * dy)
                assert sum(way) >= MIN_DISTANCE and min(way) == 0
                assert {(t.side, t.colour, t.shape) for t in path if t} == {(start.side, start.colour, start.shape)}


def test_what_passes_behind_is_painted_first_and_ends_on_the_other_side():
    for crossing in CROSSINGS:
        script = script_of(f"a red circle {crossing} a blue square", 12)
        assert [first_of(path).shape for path in script] == (
            ["circle", "square"] if crossing == "passes behind" else ["square", "circle"]
        )
        circle, square = sorted(script, key=lambda path: first_of(path).shape)
        assert len(set(square)) == 1 and square[0] and circle[0] and circle[-1]
        sides = [np.sign(np.subtract(thing.centre, square[0].centre)).tolist() for thing in (circle[0], circle[-1])]
        assert any(a == -b != 0 for a, b in zip(*sides, strict=True))


def test_a_script_can_begin_with_given_objects_or_say_that_it_cannot():
    first = script_of("a red circle moves left")
    rng = np.random.default_rng(0)
    begin = [first_of(first[0])]
    for action in ("moves up", "moves down", "disappears", "turns blue"):
        other = sample_script(parse_motion(f"a red circle {action}"), 9, rng, begin)
        assert other is None or other[0][0] == begin[0]
    assert sample_script(parse_motion("a red circle moves left"), 9, rng, begin)
    edge = [type(begin[0])("circle", "red", 8, 1, 1)]
    assert sample_script(parse_motion("a red circle moves left"), 9, rng, edge) is None


def test_a_video_of_another_length_is_refused():
    for frames in (7, 17):
        with pytest.raises(InputError, match=f"a video of {frames} frames.*8 to 16"):
            sample_script(SPECS[0], frames, np.random.default_rng(0))


def test_an_identity_jumps_once_and_the_earlier_the_higher_the_level():
    script = script_of("a red circle moves left and a blue square grows", 16)
    shares = []
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        changed = changed_identity(script, level, np.random.default_rng(1))
        both = zip(scenes_of(script), scenes_of(changed), strict=True)
        differs = [before != after for before, after in both]
        assert differs == sorted(differs)  # once it has jumped it stays
        shares.append(sum(differs))
        assert [[t and (t.x, t.y, t.side) for t in path] for path in changed] == [
            [t and (t.x, t.y, t.side) for t in path] for path in script
        ]
    assert shares == [0, 3, 6, 9, 12]


def test_a_video_is_its_scenes_one_by_one():
    for _, script in scripts()[:20]:
        video = render_video(script, 12.0)
        assert video.fps == 12 and video.frames.dtype == np.float32
        assert all((frame == render(scene)).all() for frame, scene in zip(video.frames, scenes_of(script), strict=True))


def test_one_seed_gives_one_video_and_its_pixels_are_those_of_the_seams():
    one, same, other = (render_video(script_of("a cross grows", 11, seed)) for seed in (3, 3, 4))
    assert (one.frames == same.frames).all() and (one.frames != other.frames).any()
    pixels = video_pixels(one)
    assert pixels.shape == (11, 3, CANVAS, CANVAS) and pixels.dtype == torch.float32
    assert (video_of(pixels).frames == one.frames).all()


def test_a_sketched_video_does_not_flicker():
    script = script_of("a red circle disappears")
    video = render_video(script, style="sketch", seed=1)
    assert (video.frames[0] == video.frames[1]).all()
    assert (video.frames != render_video(script, style="sketch", seed=2).frames).any()


def test_a_rate_that_is_no_rate_is_refused():
    for fps in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="frames a second"):
            render_video(script_of("a cross grows"), fps)


@pytest.mark.parametrize("defect", VIDEO_DEFECTS)
def test_level_nothing_changes_nothing_and_one_seed_gives_one_defect(defect: str):
    video = render_video(script_of("a red circle moves left and a blue square grows", 12))
    assert (spoil_video(video, defect, 0.0, 1).frames == video.frames).all()
    spoiled = spoil_video(video, defect, 0.7, 1)
    assert (spoiled.frames == spoil_video(video, defect, 0.7, 1).frames).all() and spoiled.fps == video.fps
    assert spoiled.frames.shape == video.frames.shape and spoiled.frames.dtype == np.float32
    changes = [np.abs(spoil_video(video, defect, level, 1).frames - video.frames).mean() for level in (0.3, 1.0)]
    assert 0 < changes[0] < changes[1]


def test_reversed_whole_it_is_the_video_backwards_and_frozen_whole_one_picture():
    video = render_video(script_of("a red circle moves left", 12))
    assert (spoil_video(video, "reverse", 1.0, 0).frames == video.frames[::-1]).all()
    assert (spoil_video(video, "freeze", 1.0, 0).frames == video.first).all()
    half = spoil_video(video, "freeze", 0.5, 0).frames
    assert (half[:6] == video.frames[:6]).all() and (half[6:] == half[6]).all()


def test_flicker_is_of_the_whole_frame_and_noise_is_new_in_each():
    video = Video(np.full((8, CANVAS, CANVAS, 3), 0.5, dtype=np.float32))
    flicker = spoil_video(video, "flicker", 1.0, 0).frames
    assert np.ptp(flicker, axis=(1, 2, 3)).max() == 0 and np.ptp(flicker[:, 0, 0, 0]) > 0.1
    still = Video(np.tile(np.float32(BACKGROUND), (8, CANVAS, CANVAS, 1)))
    noise, clutter = (spoil_video(still, defect, 1.0, 0).frames for defect in ("noise", "clutter"))
    assert (noise[0] != noise[1]).any() and (clutter[0] == clutter[1]).all()


def test_an_unknown_defect_or_level_is_refused():
    video = render_video(script_of("a cross grows"))
    for defect, level in (("sepia", 0.5), ("flicker", 1.5)):
        with pytest.raises(InputError, match=defect):
            spoil_video(video, defect, level, 0)
