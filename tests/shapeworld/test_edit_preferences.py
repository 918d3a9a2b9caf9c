"""Pairs of edits hold what a judge of edits needs: the source, edits of every kind, and an honest order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.errors import InputError
from rewarddance.runtime.config import parse_recipe
from rewarddance.shapeworld.annotators import AnnotatorRecipe
from rewarddance.shapeworld.edits.oracle import judge_edits, score_edit
from rewarddance.shapeworld.edits.preferences import (
    EDITED,
    EditRecipe,
    draw_edit_pools,
    drawn_scene,
    edit_prompts,
    pair_edits,
)
from rewarddance.shapeworld.edits.scenes import source_scene
from rewarddance.shapeworld.edits.specs import KINDS, edit_specs, parse_edit
from rewarddance.shapeworld.oracle import read
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.scenes import split_of

SMALL = EditRecipe(train_prompts=12, id_prompts=12, ood_prompts=12, drawn=6, pairs=3, test_pairs=3)


def test_every_pair_is_of_two_edits_of_the_prompts_source():
    pairs = pair_edits(draw_edit_pools("train", SMALL, 0), "train", 3, SMALL, 0, exact=False)
    assert len(pairs) == 12 * 3
    for pair in pairs:
        assert pair.prompt.image is not None and pair.prompt.image.shape == (1, 3, 32, 32)
        assert pair.first.shape == pair.second.shape == (1, 3, 32, 32) and not torch.equal(pair.first, pair.second)
        assert split_of(parse_edit(pair.prompt.text)) == "train"


@pytest.mark.parametrize("split", ["held_out", "unseen"])
def test_a_test_set_has_the_oracle_s_own_order_on_instructions_of_its_split(split: str):
    pairs = pair_edits(draw_edit_pools(split, SMALL, 0), split, 3, SMALL, 0, exact=True)
    assert len(pairs) >= 30 and {pair.share for pair in pairs} == {0.0, 1.0}
    assert {pair.source for pair in pairs} == {"sketch/sketch" if split == "unseen" else "flat/flat"}
    for pair in pairs[::4]:
        assert split_of(parse_edit(pair.prompt.text)) == split
        if split == "held_out":
            edits = torch.stack([pair.first, pair.second])
            first, second = (score.overall for score in judge_edits(edits, [pair.prompt] * 2))
            assert (second > first) == (pair.share == 1) and abs(second - first) >= 0.04


def test_quiet_annotators_vote_as_the_oracle_orders():
    quiet = SMALL.model_copy(update={"annotators": AnnotatorRecipe(noise=0.0, careless=0.0, tie_within=0.0)})
    pools = draw_edit_pools("train", SMALL, 1)
    scores = {
        (pool.prompt.text, (shown.frames[0] * 255).round().tobytes()): shown.score.overall
        for pool in pools
        for shown in pool.drawn
    }
    for pair in pair_edits(pools, "train", 3, quiet, 0, exact=False):
        first, second = (
            scores[pair.prompt.text, (side[0].permute(1, 2, 0).numpy() * 255).round().tobytes()]
            for side in (pair.first, pair.second)
        )
        assert (pair.share - 0.5) * (second - first) > 0 or abs(second - first) < 1e-9


@pytest.mark.parametrize("score", ["following", "keeping"])
def test_votes_on_one_property_know_nothing_of_the_other(score: str):
    recipe = SMALL.model_copy(update={"ordered_by": score})
    pairs = pair_edits(draw_edit_pools("held_out", recipe, 0), "held_out", 3, recipe, 0, exact=True)
    differences = []
    for pair in pairs:
        first, second = judge_edits(torch.stack([pair.first, pair.second]), [pair.prompt] * 2)
        sign = 1 if pair.share else -1
        assert sign * (getattr(second, score) - getattr(first, score)) > 0
        differences.append(sign * (second.overall - first.overall))
    assert min(differences) < 0 < max(differences)


def test_drawn_edits_of_each_kind_pull_following_and_keeping_apart():
    rng = np.random.default_rng(4)
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in EDITED}
    for _, spec in edit_specs("train", 18, 3):
        source, edited = source_scene(spec, rng)
        before = read(render(source)).things
        for kind in EDITED:
            score = score_edit(render(drawn_scene(kind, spec, source, edited, rng)), before, spec)
            found[kind].append((score.following, score.keeping))
    mean = {kind: np.mean(scores, axis=0) for kind, scores in found.items()}
    assert mean["right"].tolist() == [1, 1] and mean["untouched"].tolist() == [0, 1]
    assert mean["wrong"][0] < 0.5 and mean["over-edited"][0] > 0.9 and mean["repainted"][0] > 0.8
    assert mean["repainted"][1] < 0.5 < mean["over-edited"][1] < 0.9


def test_prompts_come_with_their_sources_and_say_their_kind():
    prompts = edit_prompts("held_out", 12, 0)
    assert [prompt.metadata["category"] for prompt in prompts] == [*KINDS, *KINDS]
    images = torch.stack([prompt.image for prompt in prompts if prompt.image is not None])
    assert len(images) == 12 and all(score.following == 0 for score in judge_edits(images, prompts))
    again = edit_prompts("held_out", 6, 0)
    assert [prompt.text for prompt in again] == [prompt.text for prompt in prompts[:6]]
    assert torch.equal(torch.stack([prompt.image for prompt in again if prompt.image is not None]), images[:6])


def test_one_seed_gives_one_set():
    tiny = SMALL.model_copy(update={"train_prompts": 6, "drawn": 3})
    one, same, other = (
        pair_edits(draw_edit_pools("train", tiny, s), "train", 2, tiny, s, exact=False) for s in (3, 3, 4)
    )
    assert all(torch.equal(a.first, b.first) and a.share == b.share for a, b in zip(one, same, strict=True))
    assert [pair.prompt.text for pair in one] != [pair.prompt.text for pair in other]


def test_edits_are_written_and_read_as_any_preferences(tmp_path: Path):
    pairs = pair_edits(draw_edit_pools("held_out", SMALL, 0), "held_out", 1, SMALL, 0, exact=True)[:4]
    write_preferences(pairs, tmp_path / "edits.jsonl")
    for pair, back in zip(pairs, PreferenceSet(tmp_path / "edits.jsonl"), strict=True):
        assert (back.prompt.text, back.share) == (pair.prompt.text, pair.share)
        assert back.prompt.image is not None and pair.prompt.image is not None
        assert (back.prompt.image - pair.prompt.image).abs().max() <= 0.5 / 255 + 1e-6


def test_a_recipe_with_another_task_is_refused():
    with pytest.raises(InputError, match="task"):
        parse_recipe(EditRecipe, {"task": "t2i"}, "the recipe")
