"""Qwen-Image-Edit, and Qwen-Image-Edit-Plus (2509 and later)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from rewarddance.data.media import as_images
from rewarddance.generators.families.conditioned import Conditioned, EditGenerator
from rewarddance.generators.families.qwen_image import QwenImageGenerator
from rewarddance.types import Pixels, Prompt, as_prompts


class QwenImageEditGenerator(EditGenerator, QwenImageGenerator):
    """A Qwen-Image-Edit pipeline: the text's encoder sees the source too, and the VAE's view of it stands beside the
    latents. Both see it at about a megapixel, as the pipeline resizes it, whatever size is drawn."""

    uses = frozenset({"true_cfg_scale", "negative_prompt"})

    @classmethod
    def own_parts(cls, folder: Path) -> dict[str, Any]:
        return {"processor": PictureProcessor.of_folder(folder / "processor")}

    def _check_length(self, text: str) -> None:
        """The encoder cuts no text off."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | Prompt]) -> Conditioned:
        """Each distinct text beside each distinct picture is encoded once, by itself, and padded to the longest."""
        prompts = as_prompts(prompts)
        self.check_prompts(prompts)
        asked = [(prompt.text, prompt.image) for prompt in prompts]
        if self.branch_scale is not None:
            asked += zip(self._negatives(prompts), [prompt.image for prompt in prompts], strict=True)
        return Conditioned(self._read(asked), self._pictures(prompts))

    def _read(self, asked: Sequence[tuple[str, Pixels | None]]) -> dict[str, Tensor | None]:
        """The conditioning of texts beside their pictures: encodings [B, L, D], and a mask [B, L] where they differ."""
        known: dict[tuple[str, int], Tensor] = {}
        for text, image in asked:
            if image is not None and (text, id(image)) not in known:
                known[text, id(image)] = self._text_beside(as_images(image)[0], text)
        rows = [known[text, id(image)] for text, image in asked]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(int(lengths.max()), device=self.device) < lengths.unsqueeze(1)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {
            "encoder_hidden_states": padded,
            "encoder_hidden_states_mask": None if mask.all() else mask.long(),
        }

    def _text_beside(self, image: Image.Image, text: str) -> Tensor:
        """The encoding of a text beside a picture [L, D]."""
        return self.pipeline.encode_prompt([text], image=self._shown(image), device=self.device)[0][0]

    def _shown(self, image: Image.Image) -> Any:
        """The source as the text's encoder is shown it."""
        width, height = self._source_size()
        return self.pipeline.image_processor.resize(image, height, width)

    def _source_size(self) -> tuple[int, int]:
        """Width and height of the source as the VAE sees it."""
        ratio = self.width / self.height
        width, height, _ = pipeline_qwenimage_edit.calculate_dimensions(1024 * 1024, ratio)
        return width, height

    def _picture(self, image: Image.Image) -> dict[str, Tensor]:
        width, height = self._source_size()
        pixels = self.pipeline.image_processor.preprocess(image, height, width).unsqueeze(2)
        latents = self.pipeline._encode_vae_image(pixels.to(self.device, self.pipeline.vae.dtype), None)
        return {"latents": self._pack(latents.squeeze(2))}

    def _shapes(self) -> list[tuple[int, int, int]]:
        width, height = self._source_size()
        return [*super()._shapes(), (1, height // self._multiple(), width // self._multiple())]

    def _network(self, x_t: Tensor, step: int, condition: Conditioned) -> Tensor:
        return super()._network(self._with_source(x_t, condition), step, condition.text)[:, : x_t.shape[1]]


class QwenImageEditPlusGenerator(QwenImageEditGenerator):
    """A Qwen-Image-Edit-Plus pipeline with one source, which the text's encoder sees at a seventh of a megapixel."""

    def _shown(self, image: Image.Image) -> Any:
        plus = pipeline_qwenimage_edit_plus
        width, height = plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, self.width / self.height)
        return [self.pipeline.image_processor.resize(image, height, width)]

    def _source_size(self) -> tuple[int, int]:
        plus = pipeline_qwenimage_edit_plus
        width, height = plus.calculate_dimensions(plus.VAE_IMAGE_SIZE, self.width / self.height)
        return width, height


class PictureProcessor(Qwen2VLProcessor):
    """The pipelines' processor without its part for videos, which needs torchvision and which no edit asks for."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def of_folder(cls, folder: Path) -> PictureProcessor:
        """The one of a pipeline's folder `processor`, its pictures resized by Pillow."""
        tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        return cls(Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, tokenizer.chat_template)
