"""Preferences about videos of ShapeWorld: a generator's own, its early predictions, and drawn ones.

From text, or from a picture and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from rewarddance.generators.sampling import predictions
from rewarddance.protocols import Generator
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.tracking import progress_bar
from rewarddance.shapeworld.annotators import AnnotatorRecipe, voted
from rewarddance.shapeworld.motion.oracle import VideoScore, score_video
from rewarddance.shapeworld.motion.scripts import (
    FPS,
    FRAMES,
    MAX_FRAMES,
    MIN_FRAMES,
    Script,
    changed_identity,
    first_of,
    sample_script,
)
from rewarddance.shapeworld.motion.specs import MotionSpec, motion_near_miss, motion_prompts, sample_motion
from rewarddance.shapeworld.motion.videos import VIDEO_DEFECTS, Video, render_video, spoil_video, video_of, video_pixels
from rewarddance.shapeworld.preferences import Early
from rewarddance.shapeworld.render import to_pixels
from rewarddance.shapeworld.scenes import SPLITS
from rewarddance.types import Pixels, Preference, Prompt

_MOVING = ("flicker", "freeze", "reverse")
"""The defects that only a video can have; half of the spoiled videos have one of them."""


class MotionRecipe(Recipe):
    """How many preferences about videos are gather_full_tensors.

    task: "t2v", or "i2v", where both videos of a pair were made from one picture, the prompts' image. frames, fps: of
    every video. train_prompts, id_prompts, ood_prompts: prompts of a split. drawn: drawn videos a prompt. samples: a
    generator's videos a prompt, where there is one (each also gives one early prediction). overlaid: training videos a
    prompt that show what two of these show, and as both were foreseen. pairs: training pairs a prompt; test_pairs: of
    the test sets, which are judged by the oracle without noise. least_difference: test pairs closer than this in the
    oracle's overall score have no order worth testing and are not drawn.
    """

    task: Literal["t2v", "i2v"] = "t2v"
    frames: int = Field(default=FRAMES, ge=MIN_FRAMES, le=MAX_FRAMES)
    fps: float = Field(default=FPS, gt=0)
    train_prompts: int = Field(default=300, ge=1)
    drawn: int = Field(default=8, ge=2)
    samples: int = Field(default=6, ge=2)
    overlaid: int = Field(default=2, ge=0)
    pairs: int = Field(default=14, ge=1)
    id_prompts: int = Field(default=100, ge=1)
    ood_prompts: int = Field(default=100, ge=1)
    test_pairs: int = Field(default=6, ge=1)
    least_difference: float = Field(default=0.05, ge=0)
    annotators: AnnotatorRecipe = AnnotatorRecipe()


class ShownVideo(NamedTuple):
    """A video, where it comes from, and the oracle's verdict on it."""

    video: Video
    source: str
    seen: VideoScore


class VideoPool(NamedTuple):
    """The videos that were made for one prompt, and the picture [H, W, 3] that they were made from, or None.

    shown: drawn ones. final, early: a generator's, and a one-step prediction of each, which has its score: nobody can
    vote on a blur.
    """

    prompt: str
    spec: MotionSpec
    image: np.ndarray | None
    shown: list[ShownVideo]
    final: tuple[ShownVideo, ...] = ()
    early: tuple[ShownVideo, ...] = ()


def draw_pools(split: str, recipe: MotionRecipe, seed: int) -> list[VideoPool]:
    """Drawn videos of every quality for the prompts of a split, in the order of `motion_prompts`.

    In domain (train, held_out) they are flat; out of domain (unseen) they show combinations and actions that no
    training pair shows, in another hand ("sketch").
    """
    counts = {"train": recipe.train_prompts, "held_out": recipe.id_prompts, "unseen": recipe.ood_prompts}
    prompts = motion_prompts(split, counts.get(split, 1), seed, recipe.task)
    rng = np.random.default_rng([seed, 12, SPLITS.index(split)])
    style = "sketch" if split == "unseen" else "flat"
    pools = []
    for prompt, spec in prompts:
        hand = int(rng.integers(2**31))
        right = _certain(spec, recipe.frames, rng)
        image = render_video(right, recipe.fps, style, hand).first if recipe.task == "i2v" else None
        shown = []
        for _ in range(recipe.drawn):
            video = draw_video(spec, right, recipe, style, hand, rng)
            shown.append(ShownVideo(video, style, score_video(video.frames, spec, image)))
        pools.append(VideoPool(prompt, spec, image, shown))
    return pools


def draw_video(
    spec: MotionSpec, right: Script, recipe: MotionRecipe, style: str, hand: int, rng: np.random.Generator
) -> Video:
    """A drawn video for a prompt: right, with another action, another object or another identity, or with too much.

    right: a script that shows it; for "i2v" most videos begin as it does, the others with another picture. hand: the
    seed of the style. Half of all are spoiled.
    """
    begins = recipe.task == "i2v" and rng.random() < 0.85
    kind = rng.random()
    if kind < 0.3:
        script = _like(spec, right, begins, rng)
    elif kind < 0.6:
        script = _like(motion_near_miss(spec, rng, appearance=not begins), right, begins, rng)
    elif kind < 0.75:
        script = changed_identity(_like(spec, right, begins, rng), float(rng.uniform(0.2, 1)), rng)
    elif kind < 0.85:
        other = sample_script(sample_motion(rng), recipe.frames, rng, beside=(right := _like(spec, right, begins, rng)))
        script = right + (other or ())
    else:
        script = _like(sample_motion(rng), right, False, rng)
    video = render_video(script, recipe.fps, style, hand)
    if rng.random() < 0.5:
        defects = _MOVING if rng.random() < 0.5 else tuple(name for name in VIDEO_DEFECTS if name not in _MOVING)
        defect = defects[int(rng.integers(len(defects)))]
        video = spoil_video(video, defect, float(rng.uniform(0.1, 0.9)), int(rng.integers(2**31)))
    return video


def _like(spec: MotionSpec, right: Script, begins: bool, rng: np.random.Generator) -> Script:
    """A script for `spec` as long as `right`; where it `begins` as that does, from the same objects if they have room.

    Where they have none, the video of the same length begins somewhere else, as a generator's may.
    """
    frames = len(right[0])
    if begins:
        looks = {first_of(path).shape: first_of(path) for path in right}
        things = [looks[role.noun.shape] for role in spec.roles]
        script = sample_script(spec, frames, rng, things)
        if script:
            return script
    return _certain(spec, frames, rng)


def _certain(spec: MotionSpec, frames: int, rng: np.random.Generator) -> Script:
    script = sample_script(spec, frames, rng)
    assert script is not None, "without given objects there is always a script, or an error"
    return script


def video_samples(
    generator: Generator, pools: Sequence[VideoPool], split: str, recipe: MotionRecipe, seed: int
) -> list[VideoPool]:
    """The pools with `recipe.samples` videos of a generator each, and their one-step predictions at random steps."""
    rng = np.random.default_rng([seed, 15, SPLITS.index(split)])
    n, found = recipe.samples, []
    at_once = max(1, 48 // n)
    with progress_bar(f"videos ({split.replace('_', ' ')})", len(pools)) as bar:
        for start in range(0, len(pools), at_once):
            part = pools[start : start + at_once]
            prompts = [prompt for prompt in map(prompt_of, part) for _ in range(n)]
            stops = rng.integers(0, generator.num_steps, size=len(prompts)).tolist()
            seeds = rng.integers(2**31, size=len(prompts)).tolist()
            early, final = predictions(generator, prompts, seeds, stops, batch_size=48)
            for k, pool in enumerate(part):
                own = range(k * n, (k + 1) * n)
                finished, foreseen = ([video_of(videos[i], recipe.fps) for i in own] for videos in (final, early))
                seen = [score_video(video.frames, pool.spec, pool.image) for video in finished]
                whole, half = (
                    [ShownVideo(video, source, score) for video, score in zip(videos, seen, strict=True)]
                    for videos, source in ((finished, "sample"), (foreseen, "prediction"))
                )
                found.append(pool._replace(final=tuple(whole), early=tuple(half)))
            bar.advance(len(part))
    return found


def prompt_of(pool: VideoPool) -> Prompt:
    """What the pool's videos were made for."""
    return Prompt(pool.prompt, image=None if pool.image is None else to_pixels([pool.image])[0])


def pair_videos(
    pools: Sequence[VideoPool],
    split: str,
    pairs: int,
    recipe: MotionRecipe,
    seed: int,
    exact: bool,
    early: Early = "none",
) -> list[Preference]:
    """`pairs` pairs of different videos for each pool, with their rates, and with the picture that they were made from.

    exact: shares are the oracle's own order (0 or 1) and pairs without one are left out; else the annotators' votes;
    where those are a crowd each vote is a preference of its own, a pair's one after the other.
    early: whether "some" pairs have a generator's one-step predictions (and overlaid videos) among theirs, or "all"
    have them in place of its finished videos. A pair's source names where both come from.
    """
    rng = np.random.default_rng([seed, 13, SPLITS.index(split)])
    found = []
    for pool in pools:
        shown = [*pool.shown, *(pool.final if early != "all" else ()), *(pool.early if early != "none" else ())]
        if early == "some" and pool.final:
            for _ in range(recipe.overlaid):
                shown += overlaid_videos(pool, pools[int(rng.integers(len(pools)))], rng)
        found += [one for _ in range(pairs) for one in _pair(pool, shown, recipe, rng, exact)]
    return found


def overlaid_videos(own: VideoPool, other: VideoPool, rng: np.random.Generator) -> list[ShownVideo]:
    """All that a video of the prompt and one of another (or the same) prompt show, in one; and as both were foreseen.

    A generator that is rewarded for missing objects learns to draw too many: without these no judge would know.
    """
    source = own if rng.random() < 0.5 else other
    i, j = int(rng.integers(len(own.final))), int(rng.integers(len(source.final)))
    rate = own.final[i].video.fps
    both, foreseen = (
        Video(np.maximum(a[i].video.frames, b[j].video.frames), rate)
        for a, b in ((own.final, source.final), (own.early, source.early))
    )
    seen = score_video(both.frames, own.spec, own.image)
    return [ShownVideo(both, "overlaid", seen), ShownVideo(foreseen, "overlaid prediction", seen)]


def _pair(
    pool: VideoPool, shown: Sequence[ShownVideo], recipe: MotionRecipe, rng: np.random.Generator, exact: bool
) -> list[Preference]:
    """Two different videos of a prompt with their share, or with each vote of a crowd; none where there are no two, or
    none with an order."""
    prompt = prompt_of(pool)
    for _ in range(50):
        first, second = (shown[i] for i in rng.choice(len(shown), size=2, replace=False))
        if np.array_equal(
            first.video.frames, second.video.frames
        ):  # from one picture the same video can be drawn twice
            continue
        difference = second.seen.overall - first.seen.overall
        if exact and abs(difference) < recipe.least_difference:
            continue
        a, b = first.video, second.video
        votes = [(float(difference > 0), "")]
        if not exact:
            votes = voted(a.frames, b.frames, difference, recipe.annotators, rng)
        videos = video_pixels(a), video_pixels(b)
        source = f"{first.source}/{second.source}"
        return [
            Preference(prompt, *videos, share, source, annotator=annotator, fps=(a.fps, b.fps))
            for share, annotator in votes
        ]
    return []


def motion_preferences(recipe: MotionRecipe, split: str, seed: int) -> list[Preference]:
    """Pairs of drawn videos of a split: votes for training, the oracle's own order for the two test sets."""
    exact = split != "train"
    pools = draw_pools(split, recipe, seed)
    return pair_videos(pools, split, recipe.test_pairs if exact else recipe.pairs, recipe, seed, exact)


def motion_tasks(split: str, n: int, recipe: MotionRecipe, seed: int) -> list[tuple[str, MotionSpec, Pixels | None]]:
    """`n` prompts of a split as `motion_prompts` gives them, each with the picture that its videos are to begin
    with."""
    found = []
    for number, (text, spec) in enumerate(motion_prompts(split, n, seed, recipe.task)):
        rng = np.random.default_rng([seed, 14, SPLITS.index(split), number])
        first = None
        if recipe.task == "i2v":
            script, hand = _certain(spec, recipe.frames, rng), int(rng.integers(2**31))
            first = to_pixels([render_video(script, recipe.fps, "flat", hand).first])[0]
        found.append((text, spec, first))
    return found
