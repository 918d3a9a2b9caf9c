"""FLUX.1 (dev and schnell), and FLUX.1-Kontext."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from rewarddance.generators.families.conditioned import Conditioned, EditGenerator
from rewarddance.generators.families.packed import PackedGenerator


class FluxGenerator(PackedGenerator):
    """A FLUX.1 pipeline."""

    shared_conditioning = frozenset({"txt_ids"})
    lora_targets = (
        *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    )

    def _text(self, texts: list[str]) -> dict[str, Tensor]:
        text, pooled, places = self.pipeline.encode_prompt(
            texts, device=self.device, max_sequence_length=self._option("max_sequence_length")
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled, "txt_ids": places}

    def _network(self, x_t: Tensor, step: int, condition: dict[str, Tensor]) -> Tensor:
        return self._forward(
            hidden_states=x_t.to(self.dtype),
            timestep=self._time(x_t, step) / 1000,
            guidance=self._tell(x_t),
            img_ids=self._places(),
            **condition,
        )

    def _places(self) -> Tensor:
        """Where the picture's tokens are, [L, 3]."""
        rows, columns = self._latent_shape[1] // 2, self._latent_shape[2] // 2
        return self.pipeline._prepare_latent_image_ids(1, rows, columns, self.device, self.dtype)

    def _unscaled(self, x_0: Tensor) -> Tensor:
        return super()._unscaled(self._unpack(x_0))


class FluxKontextGenerator(EditGenerator, FluxGenerator):
    """A FLUX.1-Kontext pipeline, called with `_auto_resize=False` and as its `max_area` the area that is drawn: the
    source keeps its size. Its tokens are told apart by the first of their places."""

    def _picture(self, image: Image.Image) -> dict[str, Tensor]:
        pixels = self.pipeline.image_processor.preprocess(image, self.height, self.width)
        latents = self.pipeline._encode_vae_image(pixels.to(self.device, self.pipeline.vae.dtype), None)
        return {"latents": self._pack(latents)}

    def _places(self) -> Tensor:
        noisy = super()._places()
        source = noisy.clone()
        source[:, 0] = 1
        return torch.cat([noisy, source])

    def _network(self, x_t: Tensor, step: int, condition: Conditioned) -> Tensor:
        return super()._network(self._with_source(x_t, condition), step, condition.text)[:, : x_t.shape[1]]
