"""Pairs of videos hold what a judge of videos needs: rates, the picture they were made from, and an honest order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.errors import InputError
from rewarddance.runtime.config import parse_recipe
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.motion.oracle import score_video
from rewarddance.shapeworld.motion.preferences import MotionRecipe, draw_pools, pair_videos
from rewarddance.shapeworld.motion.specs import parse_motion
from rewarddance.shapeworld.motion.videos import video_of
from rewarddance.shapeworld.scenes import split_of
from rewarddance.types import Preference

SMALL = MotionRecipe(train_prompts=12, id_prompts=12, ood_prompts=12, drawn=6, pairs=4, test_pairs=4, frames=9, fps=6.0)
FROM_PICTURE = SMALL.model_copy(update={"task": "i2v"})


def motion_preferences(recipe: MotionRecipe, split: str, seed: int) -> list[Preference]:
    """Pairs of drawn videos of a split: votes for training, the oracle's own order for the two test sets."""
    exact = split != "train"
    pools = draw_pools(split, recipe, seed)
    return pair_videos(pools, split, recipe.test_pairs if exact else recipe.pairs, recipe, seed, exact=exact)


def test_every_pair_has_its_rates_and_a_made_from_picture_where_there_is_one():
    for recipe in (SMALL, FROM_PICTURE):
        pairs = motion_preferences(recipe, "train", 0)
        assert len(pairs) == 12 * 4
        for pair in pairs:
            assert pair.fps == (6.0, 6.0) and pair.first.shape == pair.second.shape == (9, 3, 32, 32)
            assert (pair.prompt.image is None) == (recipe is SMALL)
            assert not torch.equal(pair.first, pair.second)
            if pair.prompt.image is not None:
                assert pair.prompt.image.shape == (1, 3, 32, 32)


def test_most_videos_made_from_a_picture_begin_with_it():
    pools = draw_pools("train", FROM_PICTURE.model_copy(update={"train_prompts": 40}), 0)
    fidelity = [shown.score.fidelity or 0.0 for pool in pools for shown in pool.drawn]
    assert 0.3 < np.mean(np.array(fidelity) > 0.99) < 0.9
    assert min(fidelity) < 0.3


@pytest.mark.parametrize("recipe", [SMALL, FROM_PICTURE])
@pytest.mark.parametrize("split", ["held_out", "unseen"])
def test_a_test_set_has_the_oracle_s_own_order_on_prompts_of_its_split(recipe: MotionRecipe, split: str):
    pairs = motion_preferences(recipe, split, 0)
    assert len(pairs) >= 40 and {pair.share for pair in pairs} == {0.0, 1.0}
    assert {pair.source for pair in pairs} == {"sketch/sketch" if split == "unseen" else "flat/flat"}
    for pair in pairs[::4]:
        spec = parse_motion(pair.prompt.text)
        assert split_of(spec) == split
        begin = None if pair.prompt.image is None else video_of(pair.prompt.image).first
        first, second = (
            score_video(video_of(video).frames, spec, begin).overall for video in (pair.first, pair.second)
        )
        assert (second > first) == (pair.share == 1) and abs(second - first) >= recipe.least_difference


def test_the_training_votes_follow_the_oracle_through_noise():
    pools = draw_pools("train", SMALL, 1)
    exact = pair_videos(pools, "train", 20, SMALL, 0, exact=True)
    quiet = SMALL.model_copy(update={"annotators": AnnotatorRecipe(noise=0.0, careless=0.0, tie_within=0.0)})
    assert len(exact) > 200
    for recipe, low, high in ((quiet, 0.99, 1.01), (SMALL, 0.8, 0.98)):
        voted = pair_videos(pools, "train", 20, recipe, 0, exact=False)
        videos = {
            (pool.prompt.text, shown.frames.tobytes()): shown.score.overall for pool in pools for shown in pool.drawn
        }
        agreed = []
        for pair in voted:
            first, second = (
                videos[pair.prompt.text, video_of(video).frames.tobytes(order="C")]
                for video in (pair.first, pair.second)
            )
            if abs(second - first) > 0.02:
                agreed.append((pair.share - 0.5) * (second - first) > 0)
        assert low <= np.mean(agreed) <= high


def test_the_pool_has_videos_of_every_quality_for_every_category():
    pools = draw_pools("train", SMALL.model_copy(update={"drawn": 16}), 2)
    for category in {pool.spec.category for pool in pools}:
        overall = [shown.score.overall for pool in pools if pool.spec.category == category for shown in pool.drawn]
        assert max(overall) > 0.95 and min(overall) < 0.4
        assert 0.1 < np.mean(np.array(overall) > 0.8) < 0.7


def test_one_seed_gives_one_set():
    one, same, other = (motion_preferences(SMALL, "train", seed) for seed in (3, 3, 4))
    assert all(torch.equal(a.first, b.first) and a.share == b.share for a, b in zip(one, same, strict=True))
    assert [pair.prompt for pair in one] != [pair.prompt for pair in other]


def test_videos_are_written_and_read_as_any_preferences(tmp_path: Path):
    pairs = motion_preferences(FROM_PICTURE, "held_out", 0)[:6]
    for name in ("videos.jsonl", "videos.parquet"):
        write_preferences(pairs, tmp_path / name)
        for pair, back in zip(pairs, PreferenceSet(tmp_path / name), strict=True):
            assert (back.prompt.text, back.share, back.fps) == (pair.prompt.text, pair.share, pair.fps)
            assert back.source == pair.source
            for mine, read in (
                (pair.first, back.first),
                (pair.second, back.second),
                (pair.prompt.image, back.prompt.image),
            ):
                assert mine is not None and read is not None
                assert read.shape == mine.shape and (read - mine).abs().max() <= 0.5 / 255 + 1e-6


def test_a_recipe_for_a_video_that_cannot_be_is_refused():
    for key, value in (("frames", 30), ("fps", 0.0), ("task", "v2v")):
        with pytest.raises(InputError, match=key):
            parse_recipe(MotionRecipe, {key: value}, "the recipe")
