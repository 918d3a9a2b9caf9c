"""A prompt's picture, and no other's, reaches the generator and every judge, in the bank and in each algorithm."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import BrightnessJudge, TinyGenerator

from rewarddance.alignment.grpo_step import GrpoRecipe, grpo_updates
from rewarddance.alignment.nft_step import NftRecipe, nft_updates
from rewarddance.alignment.policy import against_base
from rewarddance.alignment.references import ReferenceRecipe, bank_refresher, build_references
from rewarddance.alignment.refl_step import ReflRecipe, refl_step
from rewarddance.alignment.rewards import Reward
from rewarddance.alignment.safeguards import Ema

PROMPTS = ["a", "bb", "a"]
PICTURES = [torch.full((1, 3, 4, 4), value) for value in (0.1, 0.2, 0.3)]
OWN = {(text, id(picture)) for text, picture in zip(PROMPTS, PICTURES, strict=True)}
BANK = ReferenceRecipe(candidates=4, keep=2)


class Given(TinyGenerator):
    """Draws as bright as its picture; keeps which picture each row was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given = []
        self.weights = self.add_lora(2, 2)

    def encode(self, prompts, conditions=None):
        self.given += [(text, id(one)) for text, one in zip(prompts, conditions, strict=True)]
        return torch.stack([one.mean() for one in conditions])[:, None, None, None]


class Hearing(BrightnessJudge):
    """Keeps each question's prompt and picture."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = set()

    def __call__(self, questions):
        self.heard |= {(question.prompt, id(question.condition)) for question in questions}
        return super().__call__(questions)


def test_the_same_text_with_another_picture_has_references_of_its_own(tmp_path):
    made, judge = Given(), Hearing()
    bank = build_references(made, judge, PROMPTS, BANK, tmp_path, 0, conditions=PICTURES)
    assert set(made.given) == judge.heard == OWN
    assert [one.condition is picture for one, picture in zip(bank, PICTURES, strict=True)] == [True] * 3
    rows = [json.loads(line) for line in (tmp_path / "references.jsonl").read_text().splitlines()]
    assert len({(row["prompt"], row["condition"]) for row in rows}) == 3
    made.given.clear()
    again = build_references(made, judge, PROMPTS[::-1], BANK, tmp_path, 0, conditions=PICTURES[::-1])
    assert not made.given and [one.seeds for one in again] == [one.seeds for one in bank[::-1]]
    bank_refresher(made, judge, PROMPTS, BANK, tmp_path / "later", 0, PICTURES)(4, True)
    bank_refresher(made, judge, PROMPTS, BANK, tmp_path / "later", 0, PICTURES)(4, False)
    assert set(made.given) == OWN


def test_a_bank_without_pictures_says_nothing_of_them(tmp_path):
    (one, _) = build_references(TinyGenerator(), BrightnessJudge(), ["a", "bb"], BANK, tmp_path, 0)
    assert one.condition is None and "condition" not in (tmp_path / "references.jsonl").read_text()


def test_refl_gives_every_picture_to_the_generator_the_judge_and_the_one_held_out(tmp_path):
    made, judge, held_out = Given(), Hearing(), Hearing()
    bank = build_references(made, judge, PROMPTS, BANK, tmp_path, 0, conditions=PICTURES)
    made.given.clear()
    judge.heard.clear()
    recipe = ReflRecipe(prompts_per_step=3, group_size=2, reference_mse=0.1, generator_batch=4)
    refl_step(made, judge, bank, recipe, 0, 0, held_out)
    assert set(made.given) == judge.heard == held_out.heard == OWN
    assert all(weight.grad is not None for weight in made.weights)


@pytest.mark.parametrize("prefix", [True, False])
def test_flow_grpo_gives_every_picture_to_the_generator_and_the_judge(prefix):
    made, judge = Given(), Hearing()
    recipe = GrpoRecipe(prompts_per_step=3, group_size=2, window=1, shared_prefix=prefix, generator_batch=4)
    list(grpo_updates(made, [Reward(judge, "group")], PROMPTS, recipe, 0, 0, conditions=PICTURES))
    assert set(made.given) == judge.heard == OWN


def test_diffusion_nft_and_the_probe_give_every_picture_to_the_generator_and_the_judge():
    made, judge = Given(), Hearing()
    recipe = NftRecipe(prompts_per_step=3, group_size=2, generator_batch=4)
    reward, ema = Reward(judge, "group"), Ema(made.weights, 0.5)
    list(nft_updates(made, [reward], PROMPTS, recipe, 0, 0, ema, conditions=PICTURES))
    assert set(made.given) == judge.heard == OWN
    made.given.clear()
    judge.heard.clear()
    assert against_base(made, reward, PROMPTS, recipe, 0, PICTURES)()["preferred_to_base"] == 0.5
    assert set(made.given) == judge.heard == OWN
