"""Diffusion-DPO learns from votes on pictures, without a judge."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from several import in_processes
from test_refl_training import brightness
from tiny import BrightnessJudge, TinyGenerator, command, generator_folder, pictures
from tiny_alignment import assert_same_run, moved
from tiny_pipelines import fresh
from torch import Tensor
from torch.nn import functional as F

from rewarddance.alignment.algorithms import AlgorithmConfig, align_generator, prepare_alignment
from rewarddance.alignment.dpo import DpoRecipe, dpo_updates, vote_logit, votes_loss
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Alignment
from rewarddance.data.media import write_picture
from rewarddance.data.preferences import keep_preferences
from rewarddance.errors import InputError
from rewarddance.generators.adapter import covering
from rewarddance.runtime.config import parse_recipe
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Preference, Prompt

PROMPTS = ["a red circle", "two crosses", "a star", "a cross"]
RECIPE = DpoRecipe(
    steps=8, prompts_per_step=4, learning_rate=0.1, lora_rank=2, lora_alpha=2, ema_decay=0.5, save_every=3,
    beta=20.0, levels=2,
)  # fmt: skip


def votes(share: float = 1.0, side: int = 4) -> list[Preference]:
    """Grey pictures of which the second is the brighter one."""
    return [
        Preference(Prompt(text), torch.full((1, 3, side, side), 0.35), torch.full((1, 3, side, side), 0.65), share)
        for text in PROMPTS
    ]


class Interrupted(list):
    """Pairs, until so many have been read."""

    def __init__(self, pairs: list[Preference], reads: int) -> None:
        super().__init__(pairs)
        self.reads = reads

    def __getitem__(self, index):
        self.reads -= 1
        if self.reads < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def train(folder: Path, pairs=None, **changes) -> TinyGenerator:
    generator = TinyGenerator(num_steps=5)
    recipe = RECIPE.model_copy(update={"preferences": Path("votes.jsonl"), **changes})
    run = Alignment(generator, [], PROMPTS, recipe, 3, preferences=votes() if pairs is None else pairs)
    align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"))
    return generator


def gain(generator: TinyGenerator) -> float:
    return brightness(generator) - brightness(TinyGenerator(num_steps=5))


def test_the_loss_is_diffusion_dpos_where_all_votes_agree_and_its_mean_where_they_do_not():
    fall, beta = torch.randn(6, 2), 3.0
    logit = vote_logit(fall, beta)
    by_hand = -F.logsigmoid(beta / 2 * (fall[:, 1] - fall[:, 0])).mean()
    torch.testing.assert_close(votes_loss(logit, torch.ones(6)), by_hand)
    split = 0.3 * votes_loss(logit, torch.ones(6)) + 0.7 * votes_loss(logit, torch.zeros(6))
    torch.testing.assert_close(votes_loss(logit, torch.full((6,), 0.3)), split)


def test_the_optimum_on_a_gaussian_is_the_shift_that_the_votes_call_for():
    """Shares sigmoid(k (e_2 - e_1)) of e = x_0 - E[x_0 | x_t], and a prediction shifted by k sigma^2 / beta."""
    sigma, k, beta, e = 0.6, 2.0, 4.0, torch.randn(500, 2)
    shift = torch.tensor(k * sigma**2 / beta, requires_grad=True)
    fall = (e.square() - (e - shift).square()) / sigma**2
    (slope,) = torch.autograd.grad(votes_loss(vote_logit(fall, beta), (k * (e[:, 1] - e[:, 0])).sigmoid()), shift)
    assert abs(slope.item()) < 1e-6


def test_what_was_voted_for_becomes_likelier_and_its_opposite_less_likely(tmp_path):
    slow = {"learning_rate": 0.02, "steps": 16}
    assert gain(train(tmp_path / "for", **slow)) > 0.003
    assert gain(train(tmp_path / "against", votes(0.0), **slow)) < -0.002
    rows = [json.loads(line) for line in (tmp_path / "for" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "step"]
    assert steps[0]["reward"] == pytest.approx(0.5) and steps[-1]["velocity_mse"] > 0
    assert sum(row["reward"] for row in steps[-4:]) / 4 > 0.6


def test_the_alarm_of_distance_rings(tmp_path):
    train(tmp_path, alarms=RECIPE.alarms.model_copy(update={"window": 4, "most_distance": 1e-6}))
    rows = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert "distance" in [row["name"] for row in rows]


def test_the_norm_guard_adds_its_own_gradient_where_the_norm_is_above_the_bases():
    def gradient(**changes) -> tuple[Tensor, dict[str, float]]:
        generator = TinyGenerator(num_steps=5)
        torch.manual_seed(0)
        weights = moved(generator.add_lora(2, 2))
        run = Alignment(generator, [], PROMPTS, RECIPE.model_copy(update=changes), 3)
        (figures,) = dpo_updates(Alignment(**{**vars(run), "preferences": votes()}), 1, Ema(weights, 0.5))
        return torch.cat([weight.grad.flatten() for weight in weights]), figures

    (free, figures), (one, _), (two, _) = gradient(), gradient(norm_guard=1.0), gradient(norm_guard=2.0)
    assert figures["velocity_norm"] != 1 and (one - free).abs().max() > 0
    torch.testing.assert_close(two - free, 2 * (one - free), rtol=1e-3, atol=1e-7)


def test_even_votes_teach_to_tell_no_one_apart(tmp_path):
    assert abs(gain(train(tmp_path, votes(0.5)))) < 1e-3


def test_a_gradient_in_parts_is_that_of_the_whole():
    gradients = []
    for at_once in (None, 2):
        generator = TinyGenerator(num_steps=5)
        torch.manual_seed(0)
        weights = moved(generator.add_lora(2, 2))
        run = Alignment(generator, [], PROMPTS, RECIPE.model_copy(update={"generator_batch": at_once}), 3)
        run = Alignment(**{**vars(run), "preferences": votes()})
        list(dpo_updates(run, 1, Ema(weights, 0.5)))
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights]))
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


def test_an_interrupted_run_ends_as_the_whole_one(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", Interrupted(votes(), 18))
    assert (tmp_path / "cut" / "checkpoint-3" / "complete").exists()
    train(tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_two_processes_learn_as_one_does(tmp_path):
    train(tmp_path / "one")
    in_processes(2, lambda: train(tmp_path / "two"))
    weights = [load_file(tmp_path / name / "lora" / "lora.safetensors") for name in ("one", "two")]
    ours, theirs = (torch.cat([weight.flatten() for weight in own.values()]) for own in weights)
    assert (ours - theirs).square().mean().sqrt() < 1e-6


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "sd15-ddim", "sdxl-euler", "z-image"])
def test_an_update_of_a_pipeline_learns_what_its_vae_encodes(family):
    generator = fresh(family)
    weights = moved(generator.add_lora(2, 2))
    picture = torch.rand(1, 3, generator.height, generator.width, generator=torch.Generator().manual_seed(0))
    latents = generator.encode_pictures([picture])
    assert latents.shape == generator.init_noise([0]).shape
    with torch.no_grad():
        mean = generator.pipeline.vae.encode(2 * picture[:1] - 1).latent_dist.mode()
    torch.testing.assert_close(generator._unscaled(latents), mean, rtol=1e-4, atol=1e-4)
    run = Alignment(generator, [], PROMPTS, RECIPE.model_copy(update={"prompts_per_step": 2}), 3)
    run = Alignment(**{**vars(run), "preferences": votes(side=48)})
    (figures,) = dpo_updates(run, 0, Ema(weights, 0.5))
    gradient = torch.cat([weight.grad.flatten() for weight in weights])
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0 and figures["velocity_mse"] > 0


def test_pictures_are_encoded_in_float32_where_an_offloaded_vae_is_brought(monkeypatch):
    generator, brought = fresh("sd3"), list[str]()
    monkeypatch.setattr(generator, "_present", lambda part: brought.append(part) or nullcontext())
    generator.network.to(torch.bfloat16)
    latents = generator.encode_pictures([torch.rand(1, 3, generator.height, generator.width)])
    assert brought == ["vae"] and latents.dtype == torch.float32


def test_pictures_are_scaled_to_cover_the_size_and_cut_to_their_middle():
    wide = torch.zeros(1, 3, 8, 32)
    wide[..., 12:20] = 1
    assert covering(wide, 8, 8).min() == 1 and covering(wide, 16, 16).shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="a video of 3 frames"):
        covering(torch.zeros(3, 3, 8, 8), 8, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator_batch": 3}, "pairs go together"),
        ({"group_size": 3}, "group_size"),
        ({"sharded": True}, "sharded is not for dpo"),
        ({"level_range": [0.5, 0.2]}, "level_range must be two shares"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(DpoRecipe, changes, "recipe.yaml")


def test_a_judge_no_votes_and_families_without_an_encoder_are_refused(tmp_path):
    config = AlgorithmConfig(algorithm="dpo", dpo=RECIPE)
    with pytest.raises(InputError, match="learns from votes, and there are none"):
        prepare_alignment(config, TinyGenerator(), None, PROMPTS, references_folder=tmp_path)
    recipe = RECIPE.model_copy(update={"preferences": tmp_path / "votes.jsonl"})
    config = AlgorithmConfig(algorithm="dpo", dpo=recipe)
    with pytest.raises(InputError, match="asks no judge"):
        prepare_alignment(config, TinyGenerator(), BrightnessJudge(), PROMPTS, references_folder=tmp_path)
    with pytest.raises(InputError, match="pictures are not encoded for a WanPipeline"):
        recipe.check_votes(fresh("wan"), None)
    with pytest.raises(InputError, match="no judge is given"):
        prepare_alignment(AlgorithmConfig(), TinyGenerator(), None, PROMPTS, references_folder=tmp_path)
    base = {"generator": "g", "prompts": "p.txt", "output": "run"}
    with pytest.raises(InputError, match="the key judge is missing, which refl asks"):
        parse_recipe(AlignRun, base, "recipe.yaml")
    with pytest.raises(InputError, match=r"dpo learns from dpo\.preferences and asks no judge"):
        parse_recipe(AlignRun, base | {"algorithm": "dpo", "judge": "j"}, "recipe.yaml")


def test_the_command_aligns_from_votes_alone_and_goes_on(tmp_path):
    keep_preferences(votes(side=48), tmp_path / "votes.jsonl")
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    content = {
        "generator": str(generator_folder()), "num_inference_steps": 4, "prompts": str(tmp_path / "prompts.txt"),
        "output": str(tmp_path / "run"), "algorithm": "dpo",
        "dpo": {"preferences": str(tmp_path / "votes.jsonl"), "steps": 2, "prompts_per_step": 2, "lora_rank": 2},
    }  # fmt: skip
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(content))
    done = command("align", tmp_path / "align.yaml")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["phase"] for row in rows} == {"dpo"} and (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "lora" / "pytorch_lora_weights.safetensors").exists()
    assert command("align", tmp_path / "align.yaml").code == 0


def test_votes_that_cannot_be_learned_are_found_before_the_first_step(tmp_path):
    keep_preferences(votes(side=48), tmp_path / "votes.jsonl")
    row = json.loads((tmp_path / "votes.jsonl").read_text().splitlines()[0])
    rows = [dict(row) for _ in range(6)]
    (tmp_path / "none.png").write_text("no picture")
    rows[0]["media_a"] = "none.png"
    rows[1]["prompt"] = "a red circle " * 1000
    for frame in range(2):
        write_picture(pictures(1)[0], tmp_path / "video" / f"{frame}.png")
    rows[2]["media_b"] = "video"
    rows[3]["media_b"] = "gone.png"
    rows[4]["prompt"] = " "
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    content = {
        "generator": str(generator_folder()), "num_inference_steps": 4, "prompts": str(tmp_path / "prompts.txt"),
        "output": str(tmp_path / "run"), "algorithm": "dpo", "grid_prompts": 0,
        "dpo": {"preferences": str(tmp_path / "votes.jsonl"), "steps": 1, "prompts_per_step": 1, "lora_rank": 2},
    }  # fmt: skip
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(content))
    refused = command("align", tmp_path / "align.yaml")
    assert refused.code == 2 and "line 4 of" in refused.err and not (tmp_path / "run").exists()
    done = command("align", tmp_path / "align.yaml", "--skip-faulty")
    assert done.code == 1, done.err
    listed = [json.loads(line) for line in (tmp_path / "run" / "faulty.jsonl").read_text().splitlines()]
    assert sorted(row["where"].split(" of ")[0] for row in listed) == [f"line {n}" for n in range(1, 6)]
