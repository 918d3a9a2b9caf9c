"""FLUX.2-klein."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.steps import FlowGenerator


class Flux2KleinGenerator(FlowGenerator):
    """A FLUX.2-klein pipeline: its VAE's latents are patchified and normalised by a batch norm's statistics."""

    uses = frozenset({"max_sequence_length"})

    @property
    def lora_targets(self) -> list[str]:  # type: ignore[override]
        """The attention of the double blocks, and of the single ones, where it is one layer with the feed-forward."""
        double = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
        single = range(len(self.network.single_transformer_blocks))
        return [*double, "to_qkv_mlp_proj", *(f"single_transformer_blocks.{i}.attn.to_out" for i in single)]

    def _branch_scale(self) -> float | None:
        scale = super()._branch_scale()
        if scale is not None and self.pipeline.config.is_distilled:
            raise InputError("this FLUX.2-klein is distilled and has no guidance.", "Leave guidance_scale out.")
        return scale

    def _noise_shape(self) -> tuple[int, ...]:
        return self.network.config.in_channels, self.height // self._multiple(), self.width // self._multiple()

    def _spacing(self) -> dict[str, Any]:
        return {**super()._spacing(), "mu": compute_empirical_mu(self._tokens(), self.options.num_inference_steps)}

    def _pack(self, noise: Tensor) -> Tensor:
        return self.pipeline._pack_latents(noise)

    def _text(self, texts: list[str]) -> dict[str, Tensor]:
        text, places = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=self._option("max_sequence_length")
        )
        return {"encoder_hidden_states": text, "txt_ids": places}

    def _network(self, x_t: Tensor, step: int, condition: dict[str, Tensor]) -> Tensor:
        places = self.pipeline._prepare_latent_ids(torch.empty(len(x_t), *self._latent_shape, device="meta"))
        return self._forward(
            hidden_states=x_t.to(self.dtype),
            timestep=self._time(x_t, step) / 1000,
            guidance=None,
            img_ids=places.to(self.device),
            **condition,
        )

    def _unscaled(self, x_0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, variance = (values.view(1, -1, 1, 1).to(x_0) for values in (vae.bn.running_mean, vae.bn.running_var))
        patches = x_0.transpose(1, 2).unflatten(2, self._latent_shape[1:])
        return self.pipeline._unpatchify_latents(patches * torch.sqrt(variance + vae.config.batch_norm_eps) + mean)
