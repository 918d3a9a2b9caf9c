"""Wan 2.1 and the dense Wan 2.2, text to video and image to video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from PIL import Image
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.adapter import GeneratorOptions
from rewarddance.generators.families.conditioned import Conditioned
from rewarddance.generators.families.video import ImageToVideoGenerator, VideoGenerator, given_first_frame
from rewarddance.types import PixelBatch


class WanGenerator(VideoGenerator):
    """A Wan pipeline with one transformer. Its latents are normalised by channel; texts are padded with zeros.

    The released folders name a multi-step scheduler, whose steps need those before: the option scheduler
    FlowMatchEulerDiscreteScheduler takes over its flow_shift.
    """

    uses = frozenset({"negative_prompt", "max_sequence_length", "num_frames", "scheduler"})
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        if pipeline.transformer is None or pipeline.transformer_2 is not None:
            raise InputError(
                f"this {type(pipeline).__name__} has two transformers, one for the early and one for the late steps.",
                "Give a Wan with one: Wan 2.1, or the 5B of Wan 2.2.",
            )
        super().__init__(pipeline, options)

    def _multiple(self) -> int:
        return self._ratios()[1] * self.network.config.patch_size[1]

    def _noise_shape(self) -> tuple[int, ...]:
        """Raises InputError for a video with more places along an axis than the network has positions."""
        shape = super()._noise_shape()
        config = self.network.config
        places = [size // patch for size, patch in zip(shape[1:], config.patch_size, strict=True)]
        if max(places) > config.rope_max_seq_len:
            video = f"{self.num_frames} frames of {self.height} x {self.width}"
            raise InputError(
                f"this {self.kind} has {config.rope_max_seq_len} positions along an axis, and a video of {video} takes "
                f"{max(places)}.",
                "Give it fewer num_frames, or less height and width, such as those that it was trained on.",
            )
        return shape

    def _set_schedule(self) -> None:
        name = self.options.scheduler
        if name is not None:
            if name != "FlowMatchEulerDiscreteScheduler":
                raise InputError(f"a {self.kind} has no use for a {name}.", "Use FlowMatchEulerDiscreteScheduler.")
            config = self._scheduler.config
            shift = config.get("flow_shift") or config.get("shift") or 1.0
            self._scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
            self.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        elif not isinstance(self._scheduler, FlowMatchEulerDiscreteScheduler):
            raise InputError(
                f"the {self.kind} has a {type(self._scheduler).__name__}, whose steps need those before.",
                "Set the option scheduler to FlowMatchEulerDiscreteScheduler, which takes over its flow_shift.",
            )
        super()._set_schedule()

    def _spacing(self) -> dict[str, Any]:
        return {"num_inference_steps": self.options.num_inference_steps}

    def _text(self, texts: list[str]) -> Tensor:
        text, _ = self.pipeline.encode_prompt(
            texts,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self._option("max_sequence_length"),
        )
        return text.to(self.dtype)

    def _network(self, x_t: Tensor, step: int, condition: Tensor) -> Tensor:
        time = self._time(x_t, step)
        if self.pipeline.config.expand_timesteps:  # a time for each token, all the same without a first picture
            time = time.unsqueeze(1).expand(-1, x_t[0, 0, :, ::2, ::2].numel())
        return self._forward(hidden_states=x_t.to(self.dtype), timestep=time, encoder_hidden_states=condition)

    def decode_frames(self, x_0: Tensor, numbers: Sequence[int]) -> PixelBatch:
        """This decoder looks back only, so what comes after the last of the frames is not decoded."""
        needed = -(-max(numbers) // self._ratios()[0]) + 1
        return super().decode_frames(x_0[:, :, :needed], numbers)

    def _unscaled(self, x_0: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        mean, std = (x_0.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return x_0 * std + mean


class WanImageToVideoGenerator(WanGenerator, ImageToVideoGenerator):
    """Wan 2.1 is given the first frame as channels beside the latents, and as CLIP sees it where it has that encoder;
    the 5B of Wan 2.2 as the latents' first frame, which it is told is free of noise (`expand_timesteps`)."""

    lora_targets = (*WanGenerator.lora_targets, "add_k_proj", "add_v_proj")

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        super().__init__(pipeline, options)
        if self.network.config.image_dim is not None and self._option("max_sequence_length") != 512:
            raise InputError(
                f"a {self.kind} that sees its picture with CLIP takes texts of 512 tokens, and no other number.",
                "Leave out max_sequence_length.",
            )

    @property
    def _keeps_first(self) -> bool:
        return self.pipeline.config.expand_timesteps

    def _channels(self) -> int:
        return self.pipeline.vae.config.z_dim

    def _text(self, texts: list[str]) -> Tensor:
        length = self._option("max_sequence_length")  # by WanPipeline, whose like does not work without ftfy
        embeddings = WanPipeline._get_t5_prompt_embeds(self.pipeline, texts, 1, length, self.device)  # type: ignore[arg-type]
        return embeddings.to(self.dtype)

    def _picture(self, image: Image.Image) -> dict[str, Tensor]:
        _, first_latents, *_ = self.pipeline.prepare_latents(
            self._pixels(image).float(), 1, self._channels(), self.height, self.width, self.num_frames,
            torch.float32, self.device, latents=torch.zeros(1),
        )  # fmt: skip
        seen = {"latents": first_latents}
        if self.network.config.image_dim is not None:
            seen["clip"] = self.pipeline.encode_image(image, self.device).to(self.dtype)
        return seen

    def _network(self, x_t: Tensor, step: int, condition: Conditioned) -> Tensor:
        time, given = self._time(x_t, step), condition.picture["latents"]
        if self._keeps_first:
            first, _ = given_first_frame(x_t[:, :, :1], given, 0.0, self.sigmas[step])
            latents = torch.cat([first, x_t[:, :, 1:]], 2)
            is_free = torch.ones_like(latents[:, 0, :, ::2, ::2])
            is_free[:, 0] = 0
            time = (is_free * time.view(-1, 1, 1, 1)).flatten(1)
        else:
            latents = torch.cat([x_t, given], 1)
        return self._forward(
            hidden_states=latents.to(self.dtype),
            timestep=time,
            encoder_hidden_states=condition.text,
            encoder_hidden_states_image=condition.picture.get("clip"),
        )

    def predict(self, x_t: Tensor, step: int, condition: Conditioned) -> Tensor:
        v = super().predict(x_t, step, condition)
        if not self._keeps_first:
            return v
        given = condition.picture["latents"][: len(x_t)]
        _, first = given_first_frame(x_t[:, :, :1], given, 0.0, self.sigmas[step])
        return torch.cat([first, v[:, :, 1:]], 2)
