"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rewarddance.generators.steps import FlowGenerator


class SD3Generator(FlowGenerator):
    """A Stable Diffusion 3 or 3.5 pipeline, without its skip-layer guidance."""

    uses = frozenset({"negative_prompt", "max_sequence_length"})
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

    def _multiple(self) -> int:
        return self.pipeline.vae_scale_factor * self.network.config.patch_size

    def _spacing(self) -> dict[str, Any]:
        """The pipeline leaves the sigmas to its scheduler, and gives a shift only where that asks for one."""
        steps = {"num_inference_steps": self.options.num_inference_steps}
        return {**steps, "mu": super()._spacing()["mu"]} if self._scheduler.config.use_dynamic_shifting else steps

    def _text(self, texts: list[str]) -> dict[str, Tensor]:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            texts,
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._option("max_sequence_length"),
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def _network(self, x_t: Tensor, step: int, condition: dict[str, Tensor]) -> Tensor:
        return self._forward(hidden_states=x_t.to(self.dtype), timestep=self._time(x_t, step), **condition)
