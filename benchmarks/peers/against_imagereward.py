"""A step of ReFL: ImageReward's own against ours, on Stable Diffusion 1.5's classes, all weights of the UNet trained.

The text of its `ImageReward/ReFL.py` from the texts to the optimiser's step. Changed: the latents' 64x64 are the tiny
UNet's own; DDIM stands for the random DDPM, so that both sides draw the same; the step is the one that our recipe
draws; torchvision's transforms let pictures pass, and the reward is a small random ViT on both sides.
"""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peers.clones import clone_of, lines_between
from peers.comparison import Comparison, Work
from peers.pipelines import PROMPTS, RandomViT, away, gradients_of, sd15
from torch import Tensor, nn
from torch.nn import functional as F

from rewarddance.alignment.references import References
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_batch import draw_batch
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.generators.adapter import GeneratorOptions
from rewarddance.generators.families.stable_diffusion import StableDiffusionGenerator
from rewarddance.types import Prompt, Question, Verdict

STEPS, STOP, SIDE, TARGET = 40, 35, 8, 2.0
"""Their number of steps, one of those at which they take the gradient, and the reward above which there is none."""


class ReFL:
    """ImageReward's step. gradients: what its optimiser was given last. noise: where it begins, if not at random."""

    def __init__(self, folder: Path, reward: RandomViT) -> None:
        script, pipeline = folder / "ImageReward" / "ReFL.py", sd15(SIDE)
        self.unet = pipeline.unet.requires_grad_(True)
        self.gradients, self.noise = dict[str, Tensor](), None
        self.optimiser = torch.optim.AdamW(self.unet.parameters(), lr=0.0, weight_decay=0.0)
        self.tokenizer, self.vae = pipeline.tokenizer, pipeline.vae
        trainer = types.SimpleNamespace(
            text_encoder=pipeline.text_encoder, accelerator=Accelerator(cpu=True), unet=self.unet, vae=pipeline.vae,
            noise_scheduler=copy.deepcopy(pipeline.scheduler), weight_dtype=torch.float32, optimizer=self,
            reward_model=types.SimpleNamespace(score_gard=lambda ids, mask, image: reward(image)),
            lr_scheduler=types.SimpleNamespace(step=lambda: None),
        )  # fmt: skip
        args = types.SimpleNamespace(
            train_batch_size=len(PROMPTS), grad_scale=1.0, gradient_accumulation_steps=1, max_grad_norm=1e9
        )
        listening: Any = types.SimpleNamespace(**vars(torch))
        listening.randn = lambda *shape, **named: torch.randn(*shape) if self.noise is None else self.noise.clone()
        self.names: dict[str, Any] = {
            "torch": listening, "F": F, "self": trainer, "args": args, "train_loss": 0.0, "BICUBIC": None,
            "random": types.SimpleNamespace(randint=lambda low, high: STOP),
            "Compose": lambda steps: lambda image: image, "Resize": lambda *args, **named: None,
            "CenterCrop": lambda size: None, "Normalize": lambda mean, deviation: None,
        }  # fmt: skip
        self.read(PROMPTS)
        loop = lines_between(script, "encoder_hidden_states = self.text_encoder(batch", "# Checks if the self.acc")
        self.loop = compile(loop.replace("4, 64, 64", f"4, {SIDE}, {SIDE}"), str(script), "exec")

    def read(self, prompts: Sequence[str]) -> None:
        """The batch of its loader."""
        ids = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        self.names["batch"] = {"input_ids": ids, "rm_input_ids": None, "rm_attention_mask": None}

    def step(self) -> None:
        """In place of the optimiser's."""
        self.gradients = gradients_of(self.unet)
        self.optimiser.step()

    def zero_grad(self) -> None:
        self.optimiser.zero_grad()

    def training_step(self) -> None:
        exec(self.loop, self.names)


class Judge:
    """The random ViT as a reward model of ours. References go with the questions, and it does not look at them."""

    needs_reference = False

    def __init__(self, reward: RandomViT) -> None:
        self.reward = reward

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        return Verdict(self.reward(torch.cat([question.candidate for question in questions])))


class Ours:
    """The same on our side."""

    def __init__(self, reward: RandomViT) -> None:
        self.judge = Judge(reward)
        self.generator = StableDiffusionGenerator(sd15(SIDE), GeneratorOptions(num_inference_steps=STEPS))
        self.weights = self.generator.train_all()
        self.optimiser = torch.optim.AdamW(self.weights, lr=0.0, weight_decay=0.0)
        picture = torch.rand(1, 3, 8 * SIDE, 8 * SIDE)
        latent = self.generator.init_noise([0])
        self.bank = [References(Prompt(prompt), (picture,), (-1,), (1.0,), latent) for prompt in PROMPTS]

    def gradients(self, recipe: ReflRecipe) -> dict[str, Tensor]:
        refl_step(self.generator, self.judge, self.bank, recipe, seed=0, step=0)
        return gradients_of(self.generator.network)

    def training_step(self, recipe: ReflRecipe) -> Work:
        def step() -> None:
            refl_step(self.generator, self.judge, self.bank, recipe, seed=0, step=0)
            torch.nn.utils.clip_grad_norm_(self.weights, 1e9)
            self.optimiser.step()
            self.optimiser.zero_grad()

        return step


def recipe_of(**keys: Any) -> ReflRecipe:
    """Its loss is max(0, 2 - reward) at its step, without a distance to the base."""
    step = STOP / (STEPS - 1)
    alone = {"velocity_mse": 0.0, "alarms": {"off": ("distance",)}}
    return ReflRecipe(
        prompts_per_step=len(PROMPTS), group_size=1, lora_rank=0, grad_step_range=(step - 1e-3, step + 1e-3),
        loss="margin", cap=1 / (1 + math.exp(-TARGET)), **{**alone, **keys},
    )  # fmt: skip


WAYS = {
    "ours, the same work": recipe_of(),
    "ours, the distance to the base too (our default)": recipe_of(velocity_mse=0.1, alarms={}),
    "ours, checkpointed, one picture at a time": recipe_of(
        checkpointing=("generator", "decoder"), generator_batch=1, decode_batch=1, judge_batch=1
    ),
}


def difference(peer: ReFL, ours: Ours) -> dict[str, float]:
    """How far our gradients are from ImageReward's, of all the UNet's weights, from the same noises."""
    batch = draw_batch(ours.bank, recipe_of(), ours.generator, seed=0, step=0)
    assert batch.first == STOP, batch.first
    peer.noise = ours.generator.init_noise(batch.seeds)
    peer.read([prompt.text for prompt in batch.prompts])
    peer.training_step()
    peer.noise, found = None, {}
    for name, recipe in WAYS.items():
        if not recipe.velocity_mse:
            found[f"gradient, {name}"] = away(ours.gradients(recipe), peer.gradients)
            ours.optimiser.zero_grad()
    return found


def comparison(peers: Path) -> Comparison:
    reward = RandomViT()
    peer, ours = ReFL(clone_of("ImageReward", peers), reward), Ours(reward)
    works: dict[str, Work] = {"ImageReward's ReFL": peer.training_step}
    works |= {name: ours.training_step(recipe) for name, recipe in WAYS.items()}
    models = nn.ModuleList([peer.unet, peer.vae, ours.generator.network, ours.generator.pipeline.vae, reward])
    return Comparison(works, difference(peer, ours), models)
