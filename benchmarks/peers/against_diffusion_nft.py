"""An iteration of DiffusionNFT: its own against ours, on Stable Diffusion 3's classes.

The text of its `scripts/train_nft_sd3.py` from sampling to the optimiser's step, with its pipeline, solver (dpm2) and
statistics, in one process. Changed: DDP's wrapper and collectives are stand-ins, and so are loaders, the reward and
wandb. Its loss is advantage_clip / beta times ours, and it asks the base at all levels, ours at one.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
import types
from collections import defaultdict
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.against_flow_grpo import GROUP, STEPS, TEXT, generator_of
from peers.clones import Silent, clone_of, definitions, lines_between, package_of
from peers.comparison import Comparison, Work
from peers.pipelines import (
    LORA_ALPHA,
    LORA_RANK,
    PROMPTS,
    TARGETS,
    away,
    brightness,
    brightness_of,
    by_layer,
    copy_lora,
    gradients_of,
    sd3,
    stirred,
)
from peft import LoraConfig, get_peft_model
from torch import Tensor

from rewarddance.alignment.forward_process import Learned, forward_updates
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.safeguards import Ema, velocity_mse
from rewarddance.alignment.train import Alignment
from rewarddance.generators.families.stable_diffusion_3 import SD3Generator

KL, BETA, CLIP, LEVELS = 1e-4, 1.0, 5.0, STEPS - 1


class _Process:
    """In place of DDP's wrapper and of `torch.distributed`, in one process."""

    ReduceOp = types.SimpleNamespace(AVG=None)

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.module(*args, **named)

    def train(self) -> None:
        self.module.train()

    def all_reduce(self, *args: Any, **named: Any) -> None:
        """One process has the mean already."""


class DiffusionNft:
    """DiffusionNFT's iteration. gradients: what its optimiser was given last, by layer. noises: that it drew last."""

    def __init__(self, folder: Path) -> None:
        script = folder / "scripts" / "train_nft_sd3.py"
        tracking, pipelines, texts = package_of(
            "flow_grpo_of_diffusion_nft", folder / "flow_grpo", "stat_tracking",
            "diffusers_patch.pipeline_with_logprob", "diffusers_patch.train_dreambooth_lora_sd3",
        )  # fmt: skip
        pipeline, lora = sd3(), LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=TARGETS)
        torch.manual_seed(5)
        network: Any = get_peft_model(pipeline.transformer, lora)
        network.add_adapter("old", lora)
        network.set_adapter("default")
        stirred(network)
        pipeline.transformer = self.network = network
        self.gradients, self.noises = dict[str, Tensor](), list[Tensor]()
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0)
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
        tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3]
        listening: Any = types.SimpleNamespace(**vars(torch))
        listening.randn_like = self._randn_like
        self.names: dict[str, Any] = {
            "torch": listening, "np": np, "random": random, "tempfile": tempfile, "time": time,
            "defaultdict": defaultdict, "tqdm": lambda items, **named: items, "wandb": Silent(),
            "print": lambda *args: None, "logger": logging.getLogger("DiffusionNFT"), "dist": _Process(None),
            "torch_autocast": lambda **named: torch.autocast("cpu", enabled=False), "enable_amp": False,
            "mixed_precision_dtype": torch.float32, "executor": futures.ThreadPoolExecutor(1),
            "reward_fn": brightness_of, "pipeline_with_logprob": pipelines.pipeline_with_logprob,
            "encode_prompt": texts.encode_prompt, "stat_tracker": tracking.PerPromptStatTracker(True),
            "pipeline": pipeline, "config": _config(pipeline), "transformer_ddp": _Process(network), "ema": None,
            "optimizer": self, "transformer_trainable_parameters": weights, "text_encoders": encoders,
            "tokenizers": tokenizers, "train_sampler": None, "DistributedKRepeatSampler": type(None),
            "train_iter": self, "device": "cpu", "rank": 0, "world_size": 1, "is_main_process": lambda rank: True,
            "gather_tensor_to_all": lambda tensor, world_size: tensor.detach(), "num_train_timesteps": LEVELS,
            "global_step": 0,
        }  # fmt: skip
        exec(definitions(script, ["compute_text_embeddings", "calculate_zero_std_ratio"]), self.names)
        text, pooled = self.names["compute_text_embeddings"]([""], encoders, tokenizers, TEXT, "cpu")
        rows = len(PROMPTS) * GROUP
        self.names["sample_neg_prompt_embeds"] = text.repeat(rows, 1, 1)
        self.names["sample_neg_pooled_prompt_embeds"] = pooled.repeat(rows, 1)
        loop = lines_between(script, "        # SAMPLING", "        if world_size > 1:")
        self.loop = compile(loop, str(script), "exec")

    def __next__(self) -> tuple[list[str], list[dict]]:
        """A batch of its loader."""
        prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
        return prompts, [{}] * len(prompts)

    def _randn_like(self, *args: Any) -> Tensor:
        self.noises.append(torch.randn_like(*args))
        return self.noises[-1]

    def step(self) -> None:
        """In place of the optimiser's."""
        self.gradients = by_layer(gradients_of(self.network).items())
        self.optimiser.step()

    def zero_grad(self) -> None:
        self.optimiser.zero_grad()

    def iteration(self) -> None:
        self.names["epoch"] = 1
        self.noises.clear()
        exec(self.loop, self.names)


def _config(pipeline: Any) -> Any:
    """What its script reads of a config; the values of its SD3 recipes, but for sizes and clipping of the gradient."""
    rows = len(PROMPTS) * GROUP
    return types.SimpleNamespace(
        resolution=pipeline.default_sample_size * pipeline.vae_scale_factor,
        per_prompt_stat_tracking=True, use_lora=True, debug=True, eval_freq=10**9, save_freq=10**9, beta=BETA,
        sample=types.SimpleNamespace(
            num_steps=STEPS, guidance_scale=1.0, train_batch_size=rows, num_batches_per_epoch=1, noise_level=0.7,
            deterministic=True, solver="dpm2",
        ),
        train=types.SimpleNamespace(
            batch_size=rows, num_inner_epochs=1, beta=KL, adv_clip_max=CLIP, max_grad_norm=1e9,
            gradient_accumulation_steps=1, ema=False, adv_mode="all",
        ),
    )  # fmt: skip


def iteration_of(generator: SD3Generator, recipe: NftRecipe) -> Work:
    """Our iteration, and an optimiser's step that changes nothing."""
    run = Alignment(generator, [Reward(brightness, "alone")], PROMPTS, recipe)
    weights = [weight for weight in generator.network.parameters() if weight.requires_grad]
    optimiser, ema = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0), Ema(weights, recipe.ema_decay)

    def iteration() -> None:
        for _ in forward_updates(run, 0, ema):
            torch.nn.utils.clip_grad_norm_(weights, 1e9)
            optimiser.step()
            optimiser.zero_grad()

    return iteration


def recipe_of(levels: int, **keys: Any) -> NftRecipe:
    return NftRecipe(
        prompts_per_step=len(PROMPTS), group_size=GROUP, levels=levels, beta=BETA, rollout_forwards=STEPS, **keys
    )


def difference(folder: Path) -> dict[str, float]:
    """How far our gradient is from DiffusionNFT's, on its own samples, levels and noises; its KL at each level."""
    peer, generator, recipe = DiffusionNft(folder), generator_of(1.0), recipe_of(LEVELS)
    peer.iteration()
    batch, given = peer.names["train_sample_batch"], generator_of(1.0)
    copy_lora(peer.network, generator.network)
    copy_lora(peer.network, given.network, "old")
    x_0, advantage = batch["latents_clean"], batch["advantages"][:, 0].float()
    for level, noise in enumerate(peer.noises):
        times = batch["timesteps"][:, level]
        for step, time_of_step in enumerate(generator.timesteps):
            rows = (times == time_of_step).nonzero()[:, 0]
            if not len(rows):
                continue
            alpha, sigma = generator.scales(step)
            x_t = alpha * x_0[rows] + sigma * noise[rows]
            condition = {
                "encoder_hidden_states": batch["prompt_embeds"][rows],
                "pooled_projections": batch["pooled_prompt_embeds"][rows],
            }
            v = generator.predict(x_t, step, condition)
            with torch.no_grad():
                v_old = given.predict(x_t, step, condition)
                with generator.as_before_training():
                    v_base = generator.predict(x_t, step, condition)
            x_0_hat, x_0_old = (generator.predict_x0(x_t, one, step) for one in (v, v_old))
            learned = Learned(x_0[rows], x_0_hat, x_0_old, None, advantage[rows], rows, sigma)
            loss = CLIP / BETA * recipe.loss(learned) + KL * velocity_mse(v, v_base)
            (loss * len(rows) / (len(x_0) * LEVELS)).backward()
    return {"gradient": away(gradients_of(generator.network), peer.gradients)}


def comparison(peers: Path) -> Comparison:
    folder, generator = clone_of("DiffusionNFT", peers), generator_of(1.0)
    works: dict[str, Work] = {"DiffusionNFT's recipe, 9 levels": DiffusionNft(folder).iteration}
    works["ours, 9 levels"] = iteration_of(generator, recipe_of(LEVELS))
    works["ours, 2 levels (our default)"] = iteration_of(generator, recipe_of(2))
    return Comparison(works, difference(folder))
