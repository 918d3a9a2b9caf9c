"""The reference bank holds each prompt's tournament winners, and is never made twice."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import BrightnessJudge, TinyGenerator
from tiny_alignment import WatchedJudge

from rewarddance.alignment.references import ReferenceRecipe, References, build_references, candidate_seeds
from rewarddance.data.media import read_video
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.types import Prompt

PROMPTS = [f"prompt {'x' * i}" for i in range(10)]
RECIPE = ReferenceRecipe(candidates=16, keep=3)
"""Eight prompts are made at once, so ten take two parts."""


def build(folder, generator=None, judge=None, prompts=PROMPTS) -> list[References]:
    return build_references(
        generator or TinyGenerator(), judge or BrightnessJudge(), prompts, RECIPE, folder=folder, seed=5
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder that nothing interrupted."""
    folder = tmp_path_factory.mktemp("bank")
    build(folder)
    return folder


def assert_same_bank(folder, other) -> None:
    assert (folder / "references.jsonl").read_text() == (other / "references.jsonl").read_text()
    names = {file.name for file in other.glob("*.png")}
    assert {file.name for file in folder.glob("*.png")} == names and len(names) == 30
    assert all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_the_bank_keeps_the_tournaments_winners(whole):
    for i, references in enumerate(build(whole)):
        seeds = candidate_seeds(5, i, 16)
        candidates = sample(TinyGenerator(), [PROMPTS[i]] * 16, seeds)
        best = candidates.mean(dim=(1, 2, 3, 4)).argsort(descending=True)[:3].tolist()
        assert references.prompt.text == PROMPTS[i]
        assert references.seeds == tuple(seeds[k] for k in best)
        assert references.wins == (15, 14, 13)
        for picture, latent, k in zip(references.pictures, references.latents, best, strict=True):
            assert (picture - candidates[k]).abs().max() <= 0.5 / 255 + 1e-6
            torch.testing.assert_close(TinyGenerator().decode(latent[None])[0], candidates[k])


def test_a_judges_bias_to_a_place_does_not_change_the_bank(whole, tmp_path):
    build(tmp_path, judge=BrightnessJudge(bias=20.0))
    assert_same_bank(tmp_path, whole)


def test_a_finished_bank_is_only_read(whole):
    generator, judge = TinyGenerator(), BrightnessJudge()
    build(whole, generator, judge)
    assert generator.started == [] and judge.asked == 0


def test_each_prompt_has_candidates_of_its_own_that_do_not_depend_on_the_others(whole, tmp_path):
    seeds = [seed for i in range(10) for seed in candidate_seeds(5, i, 16)]
    assert len(set(seeds)) == 160
    assert candidate_seeds(6, 0, 16) != candidate_seeds(5, 0, 16)
    first, _ = build(tmp_path, prompts=PROMPTS[:2])
    assert first.seeds == build(whole)[0].seeds


def test_an_interrupted_bank_is_finished_with_no_work_done_twice(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, judge=WatchedJudge(1))
    assert len((tmp_path / "references.jsonl").read_text().splitlines()) == 8
    generator, judge = TinyGenerator(), BrightnessJudge()
    build(tmp_path, generator, judge)
    assert generator.started == candidate_seeds(5, 8, 16) + candidate_seeds(5, 9, 16)
    assert judge.asked == 2 * 16 * 15
    assert_same_bank(tmp_path, whole)


@pytest.mark.parametrize("kept", [0, 1, 9])
@pytest.mark.parametrize("rest", ["", '{"prompt": "prompt xx', "\x00\x00"])
def test_a_bank_whose_last_lines_were_lost_or_cut_off_is_finished_the_same(whole, tmp_path, kept, rest):
    lines = (whole / "references.jsonl").read_text().splitlines(keepends=True)
    for file in [*whole.glob("*.png"), *whole.glob("*.safetensors")]:
        if int(file.name[:6]) < kept:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "references.jsonl").write_text("".join(lines[:kept]) + rest)
    generator = TinyGenerator()
    bank = build(tmp_path, generator)
    assert generator.started == [seed for i in range(kept, 10) for seed in candidate_seeds(5, i, 16)]
    assert [one.prompt.text for one in bank] == PROMPTS
    assert_same_bank(tmp_path, whole)


def test_pictures_are_read_by_need_and_are_one_tensor_while_held(whole, tmp_path):
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    bank = build(tmp_path)
    assert not any(one.pictures._held for one in bank), "nothing stays in memory"
    first = bank[0].at(0).picture
    assert bank[0].at(0).picture is first, "so that a judge encodes it once"
    assert torch.equal(first, read_video(next(tmp_path.glob("000000_*_0.png"))))
    assert list(bank[0].pictures._held) == [0]
    del first
    assert not bank[0].pictures._held
    assert bank[0].pictures[-1].equal(bank[0].pictures[len(bank[0].pictures) - 1])
    with pytest.raises(IndexError):
        bank[0].pictures[len(bank[0].pictures)]


def test_a_lost_picture_of_the_bank_is_an_error_that_names_it(whole, tmp_path):
    (tmp_path / "references.jsonl").write_bytes((whole / "references.jsonl").read_bytes())
    with pytest.raises(InputError, match=r"000000_\w+_0\.png cannot be read"):
        build(tmp_path)


def test_a_bank_drawn_in_small_batches_is_the_same(whole, tmp_path):
    sizes = []

    class Counting(TinyGenerator):
        def decode(self, x_0):
            sizes.append(len(x_0))
            return super().decode(x_0)

    small = RECIPE.model_copy(update={"batch_size": 6})  # fewer than a prompt has candidates
    build_references(Counting(), BrightnessJudge(), PROMPTS, small, folder=tmp_path, seed=5)
    assert_same_bank(tmp_path, whole)
    assert sizes == [6, 6, 4] * 10


def test_lost_latents_of_the_bank_are_an_error_that_names_them(whole, tmp_path):
    for file in [*whole.glob("*.png"), whole / "references.jsonl"]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"latents .*000000_\w+\.safetensors cannot be read"):
        build(tmp_path)


def test_the_bank_names_its_files_relative_to_itself(whole):
    row = json.loads((whole / "references.jsonl").read_text().splitlines()[3])
    mark = row["files"][0].split("_")[1]  # of the prompt
    assert row["files"] == [f"000003_{mark}_{place}.png" for place in range(3)]


def test_a_sample_is_never_judged_against_its_own_noise():
    pictures = tuple(torch.full((1, 3, 1, 1), value) for value in (0.1, 0.2, 0.3))
    references = References(Prompt("p"), pictures, seeds=(11, 12, 13), wins=(2.0, 1.0, 0.0), latents=torch.zeros(3, 1))
    rng = np.random.default_rng(0)
    chosen = [references.choose(rng, own_seed=12) for _ in range(200)]
    assert set(chosen) == {0, 2}
    assert 60 < chosen.count(0) < 140
    assert {references.choose(rng, own_seed=7) for _ in range(100)} == {0, 1, 2}


def test_a_prompt_whose_only_reference_is_the_samples_own_is_an_error():
    references = References(
        Prompt("a red circle"), (torch.zeros(1, 3, 1, 1),), seeds=(11,), wins=(1.0,), latents=torch.zeros(1, 1)
    )
    with pytest.raises(InputError, match="every reference of 'a red circle'"):
        references.choose(np.random.default_rng(0), own_seed=11)


def test_the_choice_may_be_the_best_that_is_not_of_the_samples_own_noise(tmp_path):
    recipe = RECIPE.model_copy(update={"choice": "best"})
    (references,) = build_references(TinyGenerator(), BrightnessJudge(), PROMPTS[:1], recipe, folder=tmp_path, seed=5)
    rng = np.random.default_rng(0)
    assert {references.choose(rng, own_seed=7) for _ in range(20)} == {0}
    assert {references.choose(rng, own_seed=references.seeds[0]) for _ in range(20)} == {1}


def test_the_bottom_of_the_ranking_may_be_kept_instead(whole, tmp_path):
    recipe = ReferenceRecipe(candidates=16, keep=2, keep_from="bottom")
    (worst,) = build_references(TinyGenerator(), BrightnessJudge(), PROMPTS[:1], recipe, folder=tmp_path, seed=5)
    means = sample(TinyGenerator(), [PROMPTS[0]] * 16, candidate_seeds(5, 0, 16)).mean(dim=(1, 2, 3, 4))
    assert worst.wins == (1, 0)
    assert worst.seeds == tuple(candidate_seeds(5, 0, 16)[k] for k in means.argsort(descending=True)[-2:])


@pytest.mark.parametrize(
    ("changes", "seed", "told"),
    [({}, 6, "seed = 5, not 6"), ({"candidates": 8}, 5, "candidates = 16, not 8"), ({"keep": 2}, 5, "keep = 3, not 2")],
)
def test_a_bank_of_another_seed_or_of_other_candidates_is_not_taken_up(whole, changes, seed, told):
    with pytest.raises(InputError, match=told):
        build_references(
            TinyGenerator(), BrightnessJudge(), PROMPTS, RECIPE.model_copy(update=changes), folder=whole, seed=seed
        )


def test_more_references_than_candidates_are_refused():
    with pytest.raises(ValueError, match="of 2 candidates, 3 cannot be kept"):
        ReferenceRecipe(candidates=2, keep=3)
