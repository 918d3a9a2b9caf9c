"""Wan 2.1 and the dense Wan 2.2, text to video."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from rewarddance.errors import InputError
from rewarddance.generators.adapter import GeneratorOptions
from rewarddance.generators.families.video import VideoGenerator


class WanGenerator(VideoGenerator):
    """A Wan pipeline with one transformer. Its latents are normalised by channel; texts are padded with zeros.

    The released folders name a multi-step scheduler, whose steps need those before: the option scheduler
    FlowMatchEulerDiscreteScheduler takes over its flow_shift.
    """

    uses = frozenset({"negative_prompt", "max_sequence_length", "num_frames", "scheduler"})
    adapted = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")

    def __init__(self, pipeline: Any, options: GeneratorOptions) -> None:
        if pipeline.transformer is None or pipeline.transformer_2 is not None:
            raise InputError(
                f"this {type(pipeline).__name__} has two transformers, one for the early and one for the late steps.",
                "Give a Wan with one: Wan 2.1, or the 5B of Wan 2.2.",
            )
        super().__init__(pipeline, options)

    def _multiple(self) -> int:
        return self._ratios()[1] * self.network.config.patch_size[1]

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
            max_sequence_length=self._own("max_sequence_length"),
        )
        return text.to(self.dtype)

    def _network(self, x_t: Tensor, step: int, condition: Tensor) -> Tensor:
        time = self._time(x_t, step)
        if self.pipeline.config.expand_timesteps:  # a time for each token, all the same without a first picture
            time = time.unsqueeze(1).expand(-1, x_t[0, 0, :, ::2, ::2].numel())
        return self._forward(hidden_states=x_t.to(self.dtype), timestep=time, encoder_hidden_states=condition)

    def _unscaled(self, x_0: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        mean, std = (x_0.new_tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
        return x_0 * std + mean
