"""A step's references are read while it draws its samples, each process its own, and a lost one is named."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BrightnessJudge, TinyGenerator
from tiny_alignment import updates_of, with_lora

from rewarddance.alignment import policy, references, refl_batch
from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.references import PicturesOnDisk, ReferenceRecipe, References, build_references
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.errors import InputError

PROMPTS = ["a red circle", "a blue square", "a green star"]
STEP: dict[str, Any] = {"prompts_per_step": 2, "group_size": 2}
RECIPES = {
    "refl": ReflRecipe(**STEP),
    "grpo": GrpoRecipe(**STEP, kind="ddim", window=2, window_range=(0.0, 0.0), kl=0.0, judging="references"),
    "nft": NftRecipe(**STEP, levels=1, judging="references"),
}


class PatientGenerator(TinyGenerator):
    """Begins only when a picture has been asked for."""

    asked = threading.Event()

    def init_noise(self, seeds: Sequence[int]) -> torch.Tensor:
        assert self.asked.wait(20), "no picture is read before or while the samples are drawn"
        return super().init_noise(seeds)


@pytest.fixture
def bank(tmp_path: Path) -> list[References]:
    recipe = ReferenceRecipe(candidates=4, keep=2)
    return build_references(TinyGenerator(), BrightnessJudge(), PROMPTS, recipe, folder=tmp_path, seed=0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The files that are read from now on, each with the thread that does."""
    seen, read_video = list[tuple[str, str]](), references.read_video

    def read(file: Path, *limits: int) -> torch.Tensor:
        seen.append((file.name, threading.current_thread().name.rpartition("_")[0]))
        PatientGenerator.asked.set()
        return read_video(file, *limits)

    monkeypatch.setattr(references, "read_video", read)
    PatientGenerator.asked.clear()
    return seen


def a_step(name: str, bank: Sequence[References], kind: type[TinyGenerator] = TinyGenerator) -> Any:
    """The figures and gradients of a step."""
    generator, weights = with_lora(kind)
    prompts = [of_prompt.prompt for of_prompt in bank]
    reward = Reward(BrightnessJudge(), "references")
    figures = updates_of(generator, [reward], prompts, RECIPES[name], bank=bank, weights=weights)
    return figures, [weight.grad for weight in weights]


@pytest.mark.parametrize("name", RECIPES)
def test_references_are_read_in_a_thread_while_samples_are_drawn(name, bank, reads):
    figures, gradients = a_step(name, bank, PatientGenerator)
    assert {thread for _, thread in reads} == {"references"}
    in_memory = [References(b.prompt, tuple(b.pictures), b.seeds, b.wins, b.latents) for b in bank]
    figures_in_memory, others = a_step(name, in_memory)
    assert figures == figures_in_memory
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients, others, strict=True))


@pytest.mark.parametrize("name", RECIPES)
def test_a_picture_that_is_lost_while_a_run_goes_on_is_named(name, bank):
    for file in (file for of_prompt in bank for file in of_prompt.pictures.files):
        file.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"00000\d_\w+_\d\.png cannot be read"):
        a_step(name, bank)


@pytest.mark.parametrize("name", RECIPES)
def test_a_process_reads_the_references_of_its_own_share_only(name, bank, reads, monkeypatch):
    def first_half(values: Any, parts: int = 1) -> Any:
        return values[: len(values) // 2]

    drawing = refl_batch if name == "refl" else policy
    monkeypatch.setattr(drawing, "local_shard", first_half)
    if name == "refl":
        batch = refl_batch.draw_batch(bank, RECIPES[name], TinyGenerator(), 1, 0)
        assert not reads and len({reference.prompt.text for reference in batch.references}) == 1
        references.ReadAhead(batch.references).pictures()
    else:
        draws = policy.sample_step(0, len(bank), RECIPES[name], 1)
        policy._choose_references(bank, draws, 1).pictures()
    assert reads and len({file.partition("_")[0] for file, _ in reads}) == 1


def test_two_threads_that_ask_for_a_picture_get_one_tensor(bank, reads):
    pictures: PicturesOnDisk = bank[0].pictures
    ahead = references.ReadAhead([bank[0].at(0)])
    here = pictures[0]
    assert ahead.pictures()[0] is here and len(reads) == 1
