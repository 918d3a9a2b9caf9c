"""Stable Diffusion 1.5 and SDXL: UNets that predict the noise or v."""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import torch
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.adapter import GeneratorOptions
from rewarddance.generators.steps import DiffusionGenerator
from rewarddance.types import Prompt, as_prompts


class StableDiffusionGenerator(DiffusionGenerator):
    """A Stable Diffusion 1.x or 2.x pipeline. Its safety checker is not asked: it would blacken pictures."""

    uses = frozenset({"negative_prompt", "scheduler"})
    component = "unet"

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        if pipeline.unet.config.time_cond_proj_dim is not None:
            raise InputError(
                f"the UNet of this {type(pipeline).__name__} is told its guidance, as a latent consistency model is.",
                "Give the model that it was distilled from.",
            )
        super().__init__(pipeline, options)

    def _default_size(self) -> tuple[int, int]:
        side, scale = self.network.config.sample_size, self.pipeline.vae_scale_factor
        height, width = (side, side) if isinstance(side, int) else side
        return height * scale, width * scale

    def _multiple(self) -> int:
        return lcm(8, self.pipeline.vae_scale_factor)

    def _text(self, texts: list[str]) -> dict[str, Any]:
        return {"encoder_hidden_states": self.pipeline.encode_prompt(texts, self.device, 1, False)[0]}

    def _network(self, x_t: Tensor, step: int, condition: dict[str, Any]) -> Tensor:
        return self._forward(self._seen(x_t, step), self.timesteps[step], **condition)


class SDXLGenerator(StableDiffusionGenerator):
    """An SDXL pipeline. Without a negative prompt the second branch is zeros where the checkpoint says so."""

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        super().__init__(pipeline, options)
        if pipeline.vae.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.float()  # it overflows in half precision; the pipeline does so too

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Prompt]) -> dict[str, Any]:
        zeros = self.options.negative_prompt is None and self.pipeline.config.force_zeros_for_empty_prompt
        if self.branch_scale is None or not zeros:
            return super().encode(prompts)
        prompts = as_prompts(prompts)
        self.check_prompts(prompts)
        encoded = self._encoded([prompt.text for prompt in prompts])
        text, added = encoded["encoder_hidden_states"], encoded["added_cond_kwargs"]
        pooled, sizes = added["text_embeds"], added["time_ids"]
        away_text, away_pooled = torch.zeros_like(text), torch.zeros_like(pooled)
        if rows := [row for row, prompt in enumerate(prompts) if prompt.negative]:
            away = self._encoded([prompts[row].negative for row in rows])
            away_text[rows] = away["encoder_hidden_states"]
            away_pooled[rows] = away["added_cond_kwargs"]["text_embeds"]
        return {
            "encoder_hidden_states": torch.cat([text, away_text]),
            "added_cond_kwargs": {
                "text_embeds": torch.cat([pooled, away_pooled]),
                "time_ids": torch.cat([sizes, sizes]),
            },
        }

    def _text(self, texts: list[str]) -> dict[str, Any]:
        text, _, pooled, _ = self.pipeline.encode_prompt(texts, device=self.device, do_classifier_free_guidance=False)
        sizes = text.new_tensor([[self.height, self.width, 0, 0, self.height, self.width]]).expand(len(text), 6)
        return {"encoder_hidden_states": text, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}

    def _unscaled(self, x_0: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return super()._unscaled(x_0)
        mean, std = (x_0.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return x_0 * std / config.scaling_factor + mean

    def _scaled(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return super()._scaled(latents)
        mean, std = (
            latents.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        return (latents - mean) * config.scaling_factor / std
