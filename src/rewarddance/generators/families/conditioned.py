"""What the families that are given a picture share: image to video, and edits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from rewarddance.data.media import as_images
from rewarddance.errors import InputError, shown
from rewarddance.generators.steps import FlowGenerator
from rewarddance.types import Prompt, as_prompts


class Conditioned(NamedTuple):
    """What a network is given: the texts' conditioning, and tensors of the pictures, row by row; none of no picture."""

    text: Any
    picture: dict[str, Tensor]


class ImageConditioned(FlowGenerator):
    """A flow pipeline whose prompts come with a picture. It reaches the pipeline as a PIL one."""

    needs_image = True

    @abstractmethod
    def _picture(self, image: Image.Image) -> dict[str, Tensor]:
        """What the network is told of a picture: tensors [1, ...] by name."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """As every family's, and raises InputError naming a prompt that comes with a video, or alone with nothing."""
        super().check_prompts(prompts)
        given = [prompt for prompt in prompts if prompt.image is not None]
        for prompt in prompts:
            if prompt.image is None and given:
                raise InputError(
                    f"the prompt {shown(prompt.text)} comes with no picture, and others beside it do.",
                    "Give each prompt one, or none.",
                )
            if prompt.image is not None and len(prompt.image) != 1:
                raise InputError(
                    f"the prompt {shown(prompt.text)} comes with a video of {len(prompt.image)} frames.",
                    "Give one picture, such as its first frame.",
                )

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Prompt]) -> Conditioned:
        """Each distinct picture is encoded once; both branches of guidance are given it, as in the pipelines."""
        prompts = as_prompts(prompts)
        return Conditioned(super().encode(prompts), self._pictures(prompts))

    def _pictures(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """`_picture` of the prompts' pictures, row by row, and again for the second branch; empty where there are none.

        The prompts have passed `check_prompts`.
        """
        encoded: dict[int, dict[str, Tensor]] = {}
        for prompt in prompts:
            if prompt.image is not None and id(prompt.image) not in encoded:
                with self.decoding():  # the VAE is there while it encodes, too
                    encoded[id(prompt.image)] = self._picture(as_images(prompt.image)[0])
        if not encoded:
            return {}
        rows = [encoded[id(prompt.image)] for prompt in prompts] * (1 if self.branch_scale is None else 2)
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


class EditGenerator(ImageConditioned):
    """A flow pipeline that edits a source picture: its clean tokens stand after the noisy ones, and stay as they are.

    The source has the size that is drawn, so that what had to stay can be compared place by place.
    """

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """As of every picture, and raises InputError naming a prompt whose source has another size."""
        super().check_prompts(prompts)
        for prompt in prompts:
            if prompt.image is not None and prompt.image.shape[2:] != (self.height, self.width):
                height, width = prompt.image.shape[2:]
                raise InputError(
                    f"the source of the prompt {shown(prompt.text)} is {height} x {width}, and the {self.kind} draws "
                    f"{self.height} x {self.width} (height x width).",
                    "Crop or resize the sources to it, or set the options height and width.",
                )

    def _with_source(self, x_t: Tensor, condition: Conditioned) -> Tensor:
        """The network's tokens [B, L + S, C]: the noisy ones, and the source's where there is one."""
        source = condition.picture.get("latents")
        return x_t if source is None else torch.cat([x_t, source.to(x_t.dtype)], 1)
