"""A prompt's picture, and no other's, reaches the generator and every judge, in the bank and in each algorithm."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import BrightnessJudge, TinyGenerator
from tiny_alignment import updates_of

from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.policy import against_base
from rewarddance.alignment.references import ReferenceRecipe, bank_refresher, build_references
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Alignment
from rewarddance.types import Prompt

PICTURES = [torch.full((1, 3, 4, 4), value) for value in (0.1, 0.2, 0.3)]
PROMPTS = [Prompt(text, image=picture) for text, picture in zip(("a", "bb", "a"), PICTURES, strict=True)]
OWN = {(prompt.text, id(prompt.image)) for prompt in PROMPTS}
BANK = ReferenceRecipe(candidates=4, keep=2)


class Given(TinyGenerator):
    """Draws as bright as its picture; keeps which picture each row was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given = []
        self.weights = self.add_lora(2, 2)

    def encode(self, prompts):
        self.given += [(prompt.text, id(prompt.image)) for prompt in prompts]
        return torch.stack([prompt.image.mean() for prompt in prompts])[:, None, None, None]


class Hearing(BrightnessJudge):
    """Keeps each question's prompt and picture."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = set()

    def __call__(self, questions):
        self.heard |= {(question.prompt.text, id(question.prompt.image)) for question in questions}
        return super().__call__(questions)


def test_the_same_text_with_another_picture_has_references_of_its_own(tmp_path):
    made, judge = Given(), Hearing()
    bank = build_references(made, judge, PROMPTS, BANK, folder=tmp_path, seed=0)
    assert set(made.given) == judge.heard == OWN
    assert [one.prompt is prompt for one, prompt in zip(bank, PROMPTS, strict=True)] == [True] * 3
    rows = [json.loads(line) for line in (tmp_path / "references.jsonl").read_text().splitlines()]
    assert len({(row["prompt"], row["image"]) for row in rows}) == 3
    made.given.clear()
    again = build_references(made, judge, PROMPTS[::-1], BANK, folder=tmp_path, seed=0)
    assert not made.given and [one.seeds for one in again] == [one.seeds for one in bank[::-1]]
    bank_refresher(made, judge, PROMPTS, BANK, folder=tmp_path / "later", seed=0)(4, True)
    bank_refresher(made, judge, PROMPTS, BANK, folder=tmp_path / "later", seed=0)(4, False)
    assert set(made.given) == OWN


def test_a_bank_without_pictures_says_nothing_of_them(tmp_path):
    (one, _) = build_references(TinyGenerator(), BrightnessJudge(), ["a", "bb"], BANK, folder=tmp_path, seed=0)
    assert one.prompt.image is None and "image" not in (tmp_path / "references.jsonl").read_text()


def test_refl_gives_every_picture_to_the_generator_and_both_judges(tmp_path):
    made, judge, held_out = Given(), Hearing(), Hearing()
    bank = build_references(made, judge, PROMPTS, BANK, folder=tmp_path, seed=0)
    made.given.clear()
    judge.heard.clear()
    recipe = ReflRecipe(prompts_per_step=3, group_size=2, reference_mse=0.1, generator_batch=4)
    refl_step(made, judge, bank, recipe, seed=0, step=0, held_out=held_out)
    assert set(made.given) == judge.heard == held_out.heard == OWN
    assert all(weight.grad is not None for weight in made.weights)


@pytest.mark.parametrize("prefix", [True, False])
def test_flow_grpo_gives_every_picture_to_the_generator_and_the_judge(prefix):
    made, judge = Given(), Hearing()
    recipe = GrpoRecipe(prompts_per_step=3, group_size=2, window=1, shared_prefix=prefix, generator_batch=4)
    updates_of(made, [Reward(judge, "group")], PROMPTS, recipe, seed=0)
    assert set(made.given) == judge.heard == OWN


def test_nft_and_the_probe_give_every_picture_to_the_generator_and_the_judge():
    made, judge = Given(), Hearing()
    recipe = NftRecipe(prompts_per_step=3, group_size=2, generator_batch=4)
    reward = Reward(judge, "group")
    updates_of(made, [reward], PROMPTS, recipe, seed=0, weights=made.weights)
    assert set(made.given) == judge.heard == OWN
    made.given.clear()
    judge.heard.clear()
    assert against_base(Alignment(made, [reward], PROMPTS, recipe))()["preferred_to_base"] == 0.5
    assert set(made.given) == judge.heard == OWN
