"""FLUX.2-klein, which draws and edits."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from PIL import Image
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.families.conditioned import Conditioned, EditGenerator


class Flux2KleinGenerator(EditGenerator):
    """A FLUX.2-klein pipeline: its VAE's latents are patchified and normalised by a batch norm's statistics.

    Prompts with a picture are edits of it, and those without are drawn from nothing.
    """

    needs_image, takes_image = False, True
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

    def _picture(self, image: Image.Image) -> dict[str, Tensor]:
        processor, multiple = self.pipeline.image_processor, self._multiple()
        image = processor._resize_if_exceeds_area(image, 1024 * 1024)
        width, height = (side // multiple * multiple for side in image.size)
        pixels = processor.preprocess(image, height=height, width=width, resize_mode="crop")
        latents = self.pipeline._encode_vae_image(pixels.to(self.device, self.pipeline.vae.dtype), None)
        places = self.pipeline._prepare_image_ids([torch.empty(latents.shape, device="meta")])
        return {"latents": self._pack(latents), "places": places.to(self.device)}

    def _network(self, x_t: Tensor, step: int, condition: Conditioned) -> Tensor:
        places = self.pipeline._prepare_latent_ids(torch.empty(len(x_t), *self._latent_shape, device="meta"))
        places = places.to(self.device)
        if condition.picture:
            places = torch.cat([places, condition.picture["places"]], 1)
        prediction = self._forward(
            hidden_states=self._with_source(x_t, condition).to(self.dtype),
            timestep=self._time(x_t, step) / 1000,
            guidance=None,
            img_ids=places,
            **condition.text,
        )
        return prediction[:, : x_t.shape[1]]

    def _unscaled(self, x_0: Tensor) -> Tensor:
        vae = self.pipeline.vae
        mean, variance = (values.view(1, -1, 1, 1).to(x_0) for values in (vae.bn.running_mean, vae.bn.running_var))
        patches = x_0.transpose(1, 2).unflatten(2, self._latent_shape[1:])
        return self.pipeline._unpatchify_latents(patches * torch.sqrt(variance + vae.config.batch_norm_eps) + mean)
