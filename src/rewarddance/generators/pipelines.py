"""diffusers pipelines as Generators: one adapter a pipeline class.

An adapter reproduces its pipeline's own `__call__` step for step (tested to 1e-4 from the same noise), with gradients
where the pipeline has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import CogView4Pipeline, DiffusionPipeline
from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift, retrieve_timesteps
from diffusers.utils.logging import disable_progress_bar
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor, nn

from rewarddance.errors import InputError
from rewarddance.generators.flow import euler_step, predicted_x_0
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.types import PixelBatch, Scales


class Condition(NamedTuple):
    """Text embeddings [B, L, D] of the prompts, and of the negative prompts where guidance is on."""

    text: Tensor
    negative: Tensor | None


class CogView4Generator:
    """A CogView4 pipeline as a Generator.

    num_inference_steps, guidance_scale: as in the pipeline's `__call__`; guidance above 1 costs a second forward.
    """

    adapted = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
    """Where LoRA goes."""

    def __init__(self, pipeline: CogView4Pipeline, num_inference_steps: int, guidance_scale: float = 1.0) -> None:
        self.pipeline = pipeline
        self.guidance_scale = guidance_scale
        self.transformer: nn.Module = pipeline.transformer
        for part in (pipeline.transformer, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        side = pipeline.transformer.config.sample_size
        self._latent_shape = (pipeline.transformer.config.in_channels, side, side)
        self._size = float(side * pipeline.vae_scale_factor)
        self._set_schedule(num_inference_steps)

    def _set_schedule(self, num_inference_steps: int) -> None:
        """The pipeline's own timesteps and sigmas, in its own words."""
        scheduler, config = self.pipeline.scheduler, self.pipeline.scheduler.config
        tokens = self._latent_shape[1] * self._latent_shape[2] // self.pipeline.transformer.config.patch_size**2
        timesteps = (
            np.linspace(config.num_train_timesteps, 1.0, num_inference_steps).astype(np.int64).astype(np.float32)
        )
        shift = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("base_shift", 0.25),
            config.get("max_shift", 0.75),
        )
        sigmas = timesteps / config.num_train_timesteps
        found: Any = retrieve_timesteps(scheduler, num_inference_steps, self.device, timesteps, sigmas, mu=shift)
        self.timesteps: Tensor = found[0]
        self.sigmas: list[float] = scheduler.sigmas.tolist()

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        guided = self.guidance_scale > 1
        text, negative = self.pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=guided)
        return Condition(text, negative)

    def start(self, seeds: Sequence[int]) -> Tensor:
        noises = [torch.randn(self._latent_shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return torch.stack(noises).to(self.device)

    def predict(self, x_t: Tensor, step: int, condition: Condition) -> Tensor:
        v = self._velocity(x_t, step, condition.text)
        if condition.negative is None:
            return v
        away = self._velocity(x_t, step, condition.negative)
        return away + self.guidance_scale * (v - away)

    def _velocity(self, x_t: Tensor, step: int, text: Tensor) -> Tensor:
        size = x_t.new_full((len(x_t), 2), self._size)
        return self.transformer(
            hidden_states=x_t,
            encoder_hidden_states=text,
            timestep=self.timesteps[step].expand(len(x_t)),
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            return_dict=False,
        )[0]

    def advance(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return euler_step(x_t, prediction, self.sigmas[step], self.sigmas[step + 1])

    def clean(self, x_t: Tensor, prediction: Tensor, step: int) -> Tensor:
        return predicted_x_0(x_t, prediction, self.sigmas[step])

    def scales(self, step: int) -> Scales:
        return Scales(1 - self.sigmas[step], self.sigmas[step])

    def decode(self, x_0: Tensor) -> PixelBatch:
        vae = self.pipeline.vae
        picture = vae.decode(x_0.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (picture / 2 + 0.5).clamp(0, 1).unsqueeze(1)

    # -- what training needs ------------------------------------------------------------------------------------

    def add_lora(self, rank: int, alpha: int) -> list[nn.Parameter]:
        """Put a LoRA on the transformer; returns its weights, the only ones that train."""
        self.pipeline.transformer.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=True, target_modules=list(self.adapted))
        )
        return [weight for weight in self.transformer.parameters() if weight.requires_grad]

    @contextmanager
    def as_before_training(self) -> Iterator[None]:
        """Within the block the generator is the one that training began from."""
        self.pipeline.transformer.disable_adapters()
        try:
            yield
        finally:
            self.pipeline.transformer.enable_adapters()

    def save_lora(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors`, which plain diffusers loads with `load_lora_weights`."""
        transformer = self.pipeline.transformer
        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=dict(get_peft_model_state_dict(transformer)),  # type: ignore[arg-type]
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )

    def load_lora(self, folder: Path) -> None:
        """Load what `save_lora`, or any diffusers trainer, wrote. Raises InputError where there is none."""
        try:
            self.pipeline.load_lora_weights(str(folder))
        except (OSError, ValueError) as error:
            raise InputError(f"no LoRA can be loaded from {folder}: {error}.", "Give a folder of save_lora.") from error


ADAPTERS: dict[str, Any] = {"CogView4Pipeline": CogView4Generator}
"""A new generator is one adapter and one line here."""


def load_generator(
    name: str, num_inference_steps: int, guidance_scale: float = 1.0, device: str = "cpu"
) -> CogView4Generator:
    """Load a diffusers folder, or a bundled one by name, in float32.

    Raises InputError where there is no such checkpoint, or no adapter for its pipeline class.
    """
    folder = find_checkpoint(name)
    disable_progress_bar()  # a bar for five files stands in the way of ours
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the generator {name!r} cannot be loaded: {error}.", "Give a diffusers folder.") from error
    kind = type(pipeline).__name__
    if kind not in ADAPTERS:
        raise InputError(f"the generator {name!r} is a {kind}.", f"There are adapters for: {', '.join(ADAPTERS)}.")
    pipeline.set_progress_bar_config(disable=True)
    return ADAPTERS[kind](pipeline.to(device), num_inference_steps, guidance_scale)
