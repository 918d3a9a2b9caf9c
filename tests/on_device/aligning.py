"""A step of each algorithm, and the reference bank, on the pretend device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import generator_folder, judge_folder

from rewarddance.alignment.algorithms import algorithm_of
from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.policy import against_base
from rewarddance.alignment.references import ReferenceBank, ReferenceRecipe, build_references
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Alignment, TrainRecipe, TrainState, _take_step
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.align import keep_off
from rewarddance.reward.loading import load_reward
from tests.on_device.ground import DEVICE, seen_by, waits_of

PROMPTS = ("a red circle", "two small blue crosses")
ASKED = {
    "reward/judge.py checked": "a margin that is not finite is an error before anything is done with it",
    "alignment/group_rewards.py scores": "the same; advantages are made on the host",
    "alignment/picture_loss.py held_out_margins.ask": "the same of a held-out judge",
    "reward/pixel_gradient.py pixel_gradient": "the same of a gradient; and the loss, which is logged",
    "protocols.py margins_on_host": "the order is made on the host, from all margins at once",
    "reward/ranking.py knockout": "who goes on is decided on the host, once a round",
}
LOGGED = {
    "alignment/train.py read_together": "the step's figures",
    "alignment/relay.py LastSteps.backward": "the distance to the base, after the last backward pass",
    "alignment/denoising.py denoise": "the loss on the references, after its last backward pass",
    "alignment/picture_loss.py _mean": "figures of the held-out judge",
    "alignment/picture_loss.py judge_batch": "whose gradient the held-out judge stops",
    "data/image_stats.py step_image_stats": "figures of the pictures",
    "data/image_stats.py luma": "three constants",
    "data/image_stats.py blurred": "three constants",
    "alignment/train.py TrainState.apply_gradient": "a norm that is not finite is an error before a step is taken",
    "runtime/sharding.py all_finite.<genexpr>": "a weight that is not finite is one before a checkpoint is written",
}
CONDITIONING = {
    "generators/families/cogview4.py CogView4Generator._text": "the tokenizer is on the host",
    "generators/families/cogview4.py CogView4Generator._at_one_length": "sizes that the network takes as tensors",
    "generators/finetuning.py FinetunedPipeline._forward": "diffusers makes CogView4's rotary factors on the host",
    "generators/text_memory.py rows_of": "which rows of a conditioning that is not kept by text",
    "elsewhere": "the same, in a layer that is computed again",
}
MOVED = {
    "runtime/memory.py modules_on": "parts that are off the device while unused come to it and go",
    "generators/text_memory.py TextMemory._read_or_made": "a text's conditioning is written down",
}
ALLOWED = ASKED | LOGGED | CONDITIONING
SIZE = {"prompts_per_step": 2, "group_size": 2, "lora_rank": 2, "lora_alpha": 2}
RECIPES: dict[str, TrainRecipe] = {
    "refl": ReflRecipe(**SIZE, reference_mse=0.1, jitter_copies=2, jitter_shift=1, jitter_noise=0.05),
    "refl-in-parts": ReflRecipe(
        **SIZE, judge_batch=2, decode_batch=2, generator_batch=2, last_steps=2, reference_mse=0.1,
        checkpointing=("generator", "decoder", "judge"),
    ),
    "refl-all-weights": ReflRecipe(**SIZE | {"lora_rank": 0, "lora_alpha": None}),
    "grpo": GrpoRecipe(**SIZE, generator_batch=2),
    "grpo-keep-graph": GrpoRecipe(**SIZE, keep_graph=True),
    "nft": NftRecipe(**SIZE, generator_batch=2),
}  # fmt: skip


def parts_of_a_run(folder: Path, kind: str = "pairwise"):
    """A generator, a judge and a bank of references, all on the device."""
    judge = load_reward(judge_folder(), DEVICE, "bfloat16", kind=kind)
    generator = load_generator(str(generator_folder()), 3, device=DEVICE, dtype="bfloat16")
    return generator, judge


@pytest.mark.parametrize("name", RECIPES)
def test_a_step_waits_for_what_it_says_only(name, tmp_path):
    recipe = RECIPES[name]
    generator, judge = parts_of_a_run(tmp_path)
    references = build_references(
        generator, judge, PROMPTS, ReferenceRecipe(candidates=2), folder=tmp_path / "bank", seed=0
    )
    held_out = judge if name == "refl" else None
    run = Alignment(
        generator, [Reward(judge, "references")], PROMPTS, recipe, bank=ReferenceBank(references), held_out=held_out
    )
    state, updates, steps = TrainState.begin(run, tmp_path), algorithm_of(recipe).updates, iter(range(9))
    with seen_by(generator.network.transformer_blocks) as seen:
        assert not waits_of(lambda: _take_step(run, updates, name, state, next(steps)), ALLOWED)
    assert {device for device, _ in seen} == {DEVICE}
    assert torch.bfloat16 in {dtype for _, dtype in seen}
    assert {(str(w.device), w.dtype) for w in state.weights} == {(DEVICE, torch.float32)}
    assert any(weight.abs().sum() > 0 for weight in state.weights)


@pytest.mark.parametrize("name", ["refl-in-parts", "grpo", "nft"])
def test_parts_that_are_offloaded_are_on_the_device_while_in_use(name, tmp_path):
    recipe, how = RECIPES[name], "references" if name.startswith("refl") else "group"
    generator, judge = parts_of_a_run(tmp_path)
    generator.offload(["text_encoders", "vae"])
    generator.keep_texts(tmp_path / "texts")
    keep_off(judge, DEVICE)
    bank = None
    if how == "references":
        settings = ReferenceRecipe(candidates=2)
        bank = ReferenceBank(build_references(generator, judge, PROMPTS, settings, folder=tmp_path / "bank", seed=0))
    run = Alignment(generator, [Reward(judge, how)], PROMPTS, recipe, bank=bank)
    state, updates, steps = TrainState.begin(run, tmp_path), algorithm_of(recipe).updates, iter(range(9))
    parts = [generator.pipeline.vae, generator.pipeline.text_encoder, judge.model]
    with seen_by([parts[0].decoder]) as decoding, seen_by(judge.model.get_decoder().layers) as judging:
        assert not waits_of(lambda: _take_step(run, updates, name, state, next(steps)), ALLOWED | MOVED)
    assert {device for device, _ in decoding} == {device for device, _ in judging} == {DEVICE}
    assert {weight.device.type for part in parts for weight in part.parameters()} == {"cpu"}
    assert {str(weight.device) for weight in state.weights} == {DEVICE}
    assert any(weight.abs().sum() > 0 for weight in state.weights)


def test_samples_compared_within_their_group_are_asked_once(tmp_path):
    generator, judge = parts_of_a_run(tmp_path)
    run = Alignment(generator, [Reward(judge, "group")], PROMPTS, RECIPES["grpo"])
    state, steps = TrainState.begin(run, tmp_path), iter(range(9))
    updates = algorithm_of(run.recipe).updates
    assert not waits_of(lambda: _take_step(run, updates, "grpo", state, next(steps)), ALLOWED)
    probe = against_base(run)
    read = {"alignment/policy.py against_base.probe": "the figure of a probe"}
    assert not waits_of(probe, ALLOWED | read)


def test_references_come_to_the_host_to_be_written(tmp_path):
    generator, judge = parts_of_a_run(tmp_path)
    written = {"data/media.py as_images": "pictures", "alignment/references.py _keep": "latents, and which are best"}
    folders = iter([tmp_path / "first", tmp_path / "second"])

    def build():
        build_references(generator, judge, PROMPTS, ReferenceRecipe(candidates=2), folder=next(folders), seed=0)

    assert not waits_of(build, ASKED | CONDITIONING | written)
