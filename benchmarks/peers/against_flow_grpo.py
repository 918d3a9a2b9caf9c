"""An iteration of Flow-GRPO: flow_grpo's own against ours, on Stable Diffusion 3's classes.

The text of its `scripts/train_sd3.py` from sampling to the optimiser's step, with its pipeline, random step, statistics
and average, in one process. Changed: `transformer.module`, DDP's wrapper, is the transformer itself; loaders, the
reward and wandb are stand-ins. It detaches the unconditional branch of guidance, which ours does not: gradients with
guidance are compared without that line. Its KL lacks the step dt, so ours is multiplied with it for the comparison.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
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

from rewarddance.alignment.flow_grpo import GrpoRecipe, Rollouts, grpo_updates, part_loss
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.random_steps import RandomWindow
from rewarddance.alignment.train import Alignment
from rewarddance.generators.adapter import GeneratorOptions
from rewarddance.generators.families.stable_diffusion_3 import SD3Generator

STEPS, GROUP, TEXT = 10, 4, 128
DETACHED = "noise_pred_uncond = noise_pred_uncond.detach()"


class FlowGrpo:
    """flow_grpo's iteration. gradients: what its optimiser was given last, by layer. names: its script's variables."""

    def __init__(self, folder: Path, guidance: float, kl: float, detached: bool = True) -> None:
        script = folder / "scripts" / "train_sd3.py"
        tracking, pipelines, steps, texts, average = package_of(
            "flow_grpo_of_flow_grpo", folder / "flow_grpo", "stat_tracking",
            *(f"diffusers_patch.{name}" for name in (
                "sd3_pipeline_with_logprob", "sd3_sde_with_logprob", "train_dreambooth_lora_sd3"
            )),
            "ema",
        )  # fmt: skip
        pipeline, self.gradients = sd3(), dict[str, Tensor]()
        torch.manual_seed(5)
        network: Any = get_peft_model(
            pipeline.transformer, LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=TARGETS)
        )
        stirred(network)
        pipeline.transformer = self.network = network
        network.__dict__["module"] = network
        config = _config(pipeline, guidance, kl)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=STEPS - 1)
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0)
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
        tokenizers = [pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3]
        self.names: dict[str, Any] = {
            "torch": torch, "np": np, "random": random, "tempfile": tempfile, "time": time, "defaultdict": defaultdict,
            "tqdm": lambda items, **named: items, "wandb": Silent(), "print": lambda *args: None,
            "autocast": contextlib.nullcontext, "executor": futures.ThreadPoolExecutor(1), "reward_fn": brightness_of,
            "pipeline_with_logprob": pipelines.pipeline_with_logprob, "encode_prompt": texts.encode_prompt,
            "sde_step_with_logprob": steps.sde_step_with_logprob,
            "stat_tracker": tracking.PerPromptStatTracker(False), "pipeline": pipeline, "config": config,
            "ema": average.EMAModuleWrapper(weights, decay=0.9, update_step_interval=8, device="cpu"),
            "accelerator": self.accelerator, "transformer": network, "optimizer": self,
            "transformer_trainable_parameters": weights, "text_encoders": encoders, "tokenizers": tokenizers,
            "train_sampler": Silent(), "train_iter": self, "num_train_timesteps": STEPS - 1, "global_step": 0,
        }  # fmt: skip
        functions = definitions(script, ["compute_text_embeddings", "calculate_zero_std_ratio", "compute_log_prob"])
        exec(functions if detached else functions.replace(DETACHED, "pass"), self.names)
        rows = len(PROMPTS) * GROUP
        away_text, away_pooled = self.names["compute_text_embeddings"]([""], encoders, tokenizers, TEXT, "cpu")
        for stage in ("sample", "train"):
            self.names[f"{stage}_neg_prompt_embeds"] = away_text.repeat(rows, 1, 1)
            self.names[f"{stage}_neg_pooled_prompt_embeds"] = away_pooled.repeat(rows, 1)
        self.loop = compile(lines_between(script, "#### SAMPLING", "epoch+=1"), str(script), "exec")

    def __next__(self) -> tuple[list[str], list[dict]]:
        """A batch of its loader."""
        prompts = [prompt for prompt in PROMPTS for _ in range(GROUP)]
        return prompts, [{}] * len(prompts)

    def step(self) -> None:
        """In place of the optimiser's, which it asks after each timestep; accelerate lets the last one pass."""
        if self.accelerator.sync_gradients:
            self.gradients = by_layer(gradients_of(self.network).items())
            self.optimiser.step()

    def zero_grad(self) -> None:
        if self.accelerator.sync_gradients:
            self.optimiser.zero_grad()

    def iteration(self) -> None:
        self.names["epoch"] = 1
        exec(self.loop, self.names)


def _config(pipeline: Any, guidance: float, kl: float) -> Any:
    """What its script reads of a config; the values of its SD3 recipes, but for sizes and clipping of the gradient."""
    rows = len(PROMPTS) * GROUP
    return types.SimpleNamespace(
        resolution=pipeline.default_sample_size * pipeline.vae_scale_factor,
        per_prompt_stat_tracking=True,
        sample=types.SimpleNamespace(
            num_steps=STEPS, guidance_scale=guidance, train_batch_size=rows, num_batches_per_epoch=1, noise_level=0.7
        ),
        train=types.SimpleNamespace(
            cfg=guidance > 1, num_inner_epochs=1, beta=kl, adv_clip_max=5, clip_range=1e-4, max_grad_norm=1e9, ema=True
        ),
    )


def generator_of(guidance: float, text: int = TEXT) -> SD3Generator:
    """Ours on the same pipeline, with the same LoRA's places."""
    options = GeneratorOptions(
        num_inference_steps=STEPS, guidance_scale=guidance if guidance > 1 else None, max_sequence_length=text
    )
    generator = SD3Generator(sd3(), options)
    generator.add_lora(LORA_RANK, LORA_ALPHA, TARGETS)
    return generator


def iteration_of(generator: SD3Generator, recipe: GrpoRecipe) -> Work:
    """Our iteration, and an optimiser's step that changes nothing."""
    run = Alignment(generator, [Reward(brightness, "alone")], PROMPTS, recipe)
    weights = [weight for weight in generator.network.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=0.0, weight_decay=0.0)

    def iteration() -> None:
        for _ in grpo_updates(run, step=0):
            torch.nn.utils.clip_grad_norm_(weights, 1e9)
            optimiser.step()
            optimiser.zero_grad()

    return iteration


def recipe_of(kl: float, window: int = STEPS - 1, begin: float = 0.0, **keys: Any) -> GrpoRecipe:
    """All 9 steps, or a window that begins at `begin`."""
    keys = {"shared_prefix": window < STEPS - 1, **keys}
    return GrpoRecipe(
        prompts_per_step=len(PROMPTS), group_size=GROUP, window=window, window_range=(begin, begin), kl=kl, **keys
    )


def gradient_on(
    generator: SD3Generator, rollouts: Rollouts, advantage: Tensor, kl: Callable[[int], float]
) -> dict[str, Tensor]:
    """Our gradient on somebody's rollouts. kl: its weight at each step of the window."""
    for k in range(rollouts.window.length):
        loss, _ = part_loss(generator, rollouts, 0, k, advantage, recipe_of(kl(k)))
        (loss / rollouts.window.length).backward()
    return gradients_of(generator.network)


def difference(folder: Path, guidance: float, kl: float) -> dict[str, float]:
    """How far our log-probabilities and gradient are from flow_grpo's, on its own latents and noises."""
    peer, generator = FlowGrpo(folder, guidance, kl, detached=False), generator_of(guidance)
    copy_lora(peer.network, generator.network)
    peer.iteration()
    samples, window = peer.names["samples"], RandomWindow("flow", 0.7, 0, STEPS - 1)
    names = {"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"}
    condition = {
        ours: torch.cat([samples[name], peer.names[f"train_neg_{name}"]]) if guidance > 1 else samples[name]
        for name, ours in names.items()
    }
    x = torch.cat([samples["latents"], samples["next_latents"][:, -1:]], 1).transpose(0, 1)[:STEPS]
    log_probs, rows, none = samples["log_probs"].T[: STEPS - 1], torch.arange(x.shape[1]), torch.empty(0)
    rollouts = Rollouts(window, [rows], [condition], x, log_probs, none, none, [[] for _ in window.steps])
    found = gradient_on(
        generator, rollouts, samples["advantages"][:, 0].clamp(-5, 5).float(),
        lambda k: kl * (generator.scales(k).sigma - generator.scales(k + 1).sigma),
    )  # fmt: skip
    return {f"gradient, guidance {guidance:g}, KL {kl:g}": away(found, peer.gradients)}


def without_guidance(peers: Path) -> Comparison:
    folder, generator = clone_of("flow_grpo", peers), generator_of(1.0)
    works: dict[str, Work] = {"flow_grpo, 9 of 10 steps": FlowGrpo(folder, 1.0, 0.0).iteration}
    works["ours, the same work"] = iteration_of(generator, recipe_of(0.0))
    works["ours, the graph kept"] = iteration_of(generator, recipe_of(0.0, keep_graph=True))
    works["ours, a window of 2, prefix shared, the graph kept"] = iteration_of(
        generator, recipe_of(0.0, 2, 0.25, keep_graph=True)
    )
    return Comparison(works, difference(folder, 1.0, 0.0))


def with_guidance(peers: Path) -> Comparison:
    folder, guided, free = clone_of("flow_grpo", peers), generator_of(4.5), generator_of(1.0)
    works: dict[str, Work] = {"flow_grpo's recipe: guidance 4.5, KL": FlowGrpo(folder, 4.5, 0.04).iteration}
    works["ours, the same work"] = iteration_of(guided, recipe_of(0.04))
    works["ours with guidance and KL, a window of 2, prefix shared, the graph kept"] = iteration_of(
        guided, recipe_of(0.04, 2, 0.25, keep_graph=True)
    )
    works["ours with KL, no guidance, a window of 2, prefix shared"] = iteration_of(free, recipe_of(0.04, 2, 0.25))
    return Comparison(works, difference(folder, 4.5, 0.04) | difference(folder, 1.0, 0.04))
