"""Z-Image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor

from rewarddance.generators.steps import FlowGenerator


class ZImageGenerator(FlowGenerator):
    """A Z-Image pipeline: time runs the other way, and guidance_scale counts from 0, which is none."""

    uses = frozenset({"negative_prompt", "max_sequence_length"})

    def _default_size(self) -> tuple[int, int]:
        return 1024, 1024

    def _branch_scale(self) -> float | None:
        return self.options.guidance_scale or None

    def _guided(self, toward: Tensor, away: Tensor, scale: float) -> Tensor:
        return toward + scale * (toward - away)

    def _spacing(self) -> dict[str, Any]:
        """In float32 from the start, as the pipeline has it."""
        return {**super()._spacing(), "sigmas": get_default_z_image_sigmas(self.options.num_inference_steps)}

    def _text(self, texts: list[str]) -> list[Tensor]:
        return self.pipeline.encode_prompt(
            list(texts),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._option("max_sequence_length"),
        )[0]

    def _network(self, x_t: Tensor, step: int, condition: list[Tensor]) -> Tensor:
        frames = list(x_t.to(self.dtype).unsqueeze(2).unbind())
        predictions = self._forward(frames, (1000 - self._time(x_t, step)) / 1000, condition)
        return -torch.stack(predictions).squeeze(2)
