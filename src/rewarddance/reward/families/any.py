"""Any other family, read through its own processor: its words and places always, its pixels where they are not ours.

What it can is found out when it is loaded, not looked up. Where its image processor makes one frame of fixed size of
any picture, and `pixels` does the same to two 255ths, pictures are prepared in torch and keep their graph. Where it
does not (tiles, padding), they go through the processor itself, in 8 bits and without a graph.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from rewarddance.errors import InputError
from rewarddance.reward.families.family import Encoded, Family, Parts, Sizes
from rewarddance.reward.families.pixels import BICUBIC, Preparation, preparation_of
from rewarddance.types import Pixels

ONE_FRAME = ("crop_to_patches", "do_image_splitting", "do_pan_and_scan")
"""Options of image processors that cut a picture into many. They are off: judging two pictures cannot afford it."""
CLOSE = 2 / 255
_PIXELS = "pixel_values"
_RESPONSE_MARKS = {("paligemma", "token_type_ids"): 1}
"""What marks the tokens of an answer, where it is not what marks the question's last: PaliGemma's look back only."""


class AnyFamily(Family):
    """processor: its own, of tokenizer, image processor and chat template. scales: whether `scaled` does anything."""

    one_at_a_time = True
    scales = False

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor.tokenizer)
        self.processor = processor
        image = processor.image_processor
        self._options = {name: False for name in ONE_FRAME if hasattr(image, name)}
        self.preparation = self._checked_preparation()
        self._tokens = functools.lru_cache(maxsize=4096)(self._count)

    # -- words ---------------------------------------------------------------------------------------------------------

    @property
    def marks(self) -> tuple[str, ...]:
        mark = getattr(self.processor, "image_token", None)
        return (mark,) if isinstance(mark, str) else ()

    @property
    def chat_source(self) -> Any:
        return self.processor.chat_template or self.tokenizer.chat_template

    def ids(self, parts: Parts, sizes: Sizes) -> list[int]:
        return self._processed(parts, [blank(*size) for size in sizes])["input_ids"][0].tolist()

    def tokens(self, height: int, width: int) -> int:
        return self._tokens(*((1, 1) if self.preparation else (height, width)))

    def _count(self, height: int, width: int) -> int:
        return self.ids(((True, ""),), ((1, height, width),)).count(self.model.config.image_token_id)

    def positions(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Int[Tensor, "axes L"]:
        return torch.arange(len(ids)).unsqueeze(0)

    def scaled(self, logits: Float[Tensor, "... V"]) -> Float[Tensor, "... V"]:
        """Cohere's and Granite's scale, and Gemma's soft cap."""
        if not self.scales:
            return logits
        text = self.model.config.get_text_config()
        logits = logits * (getattr(text, "logit_scale", None) or 1) / (getattr(text, "logits_scaling", None) or 1)
        cap = getattr(text, "final_logit_softcapping", None)
        return cap * (logits / cap).tanh() if cap else logits

    # -- pictures ------------------------------------------------------------------------------------------------------

    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        if self.preparation is None:
            raise InputError(
                f"a {self.model.config.model_type} judge prepares pictures in its own processor, which keeps no graph.",
                "For a gradient, choose another family (docs/guides/judges.md lists them).",
            )
        return self.preparation(pixels.to(self.model.device, torch.float32))

    def image_settings(self) -> dict[str, Any]:
        image = self.processor.image_processor
        return self._options | {name: 1 for name in ("min_patches", "max_patches") if hasattr(image, name)}

    def picture_inputs(self, frames: Sequence[Tensor]) -> dict[str, Tensor]:
        inputs = self._with_pixels(tuple((True, "") for _ in frames), frames)
        return {name: value for name, value in inputs.items() if name in self._of_pictures}

    def model_inputs(self, parts: Parts, pictures: Sequence[Tensor], prefix_tokens: Sequence[int]) -> dict[str, Tensor]:
        inputs = self._with_pixels(parts, pictures)
        length = inputs["input_ids"].shape[1]
        for name, value in inputs.items():
            if prefix_tokens and name == "input_ids":
                inputs[name] = torch.cat([value, torch.tensor([[*prefix_tokens]], device=value.device)], 1)
            elif prefix_tokens and name not in self._of_pictures and value.shape[:2] == (1, length):
                # masks, kinds of tokens
                mark = _RESPONSE_MARKS.get((self.model.config.model_type, name))
                last = value[:, -1:] if mark is None else torch.full_like(value[:, -1:], mark)
                inputs[name] = torch.cat([value, *[last] * len(prefix_tokens)], 1)
        return inputs

    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        if self.preparation is None:  # each by itself: processors pad pictures of several sizes to one
            return [Encoded(self._features([pixels])) for pixels in pictures]
        counts = [len(pixels) * self.tokens(1, 1) for pixels in pictures]
        return [Encoded(tokens) for tokens in self._features(pictures).split(counts)]

    @property
    def layers(self) -> nn.ModuleList:
        """The longest list of modules in the tower."""
        tower = self.model.get_encoder(modality="image")
        return max((part for part in tower.modules() if isinstance(part, nn.ModuleList)), key=len)

    @functools.cached_property
    def _of_pictures(self) -> dict[str, Any]:
        """What the model's method for picture features takes, with the config's values of its options."""
        body = self.model.model
        taken = inspect.signature(body.get_image_features).parameters if hasattr(body, "get_image_features") else ()
        return {name: getattr(self.model.config, name, None) for name in taken}

    def _features(self, pictures: Sequence[Tensor]) -> Float[Tensor, "n D"]:
        inputs = self.picture_inputs(pictures)
        options = {name: value for name, value in self._of_pictures.items() if value is not None}
        features = self.model.model.get_image_features(**(options | inputs), return_dict=True).pooler_output
        parts = [features] if isinstance(features, Tensor) else features
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])

    def _with_pixels(self, parts: Parts, pictures: Sequence[Tensor]) -> dict[str, Tensor]:
        """The processor's output for a question, its pixels replaced by ours, in the graph, where we have them."""
        device, dtype = self.model.device, self.model.dtype
        if self.preparation is None:
            if torch.is_grad_enabled() and any(pixels.requires_grad for pixels in pictures):
                self.preprocess(pictures[0])  # says why there is no gradient
            inputs = self._processed(parts, [as_images(pixels) for pixels in pictures])
        else:
            inputs = self._processed(parts, [blank(len(pixels), 1, 1) for pixels in pictures])
            if pictures:
                ours = torch.cat([self.preprocess(pixels) for pixels in pictures])
                inputs[_PIXELS] = ours.reshape(inputs[_PIXELS].shape)
        return {
            name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }

    def _processed(self, parts: Parts, pictures: Sequence[Sequence[Image.Image]]) -> dict[str, Tensor]:
        """What the processor makes of a user's turn; frames of a video are pictures in their order."""
        repeated, images, remaining = [], [], iter(pictures)
        for part in self.checked_parts(parts):
            frames = next(remaining) if part[0] else ()
            images += frames
            repeated += [part] * (len(frames) if part[0] else 1)
        text = self.chat.render(tuple(repeated))
        has_bos = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        outputs = self.processor(
            text=[text],
            images=[images] if images else None,
            add_special_tokens=not has_bos,
            return_tensors="pt",
            **(self._options if images else {}),
        )
        return {name: value for name, value in outputs.items() if isinstance(value, Tensor) and name != "labels"}

    def _checked_preparation(self) -> Preparation | None:
        """What the image processor does, where we can do it: tried on pictures larger, smaller and of other shapes."""
        from_config = preparation_of(self.processor.image_processor.to_dict())
        if from_config is None:
            return None
        trials = [drawn(*size) for size in ((700, 500), (40, 90))]
        outputs = [self._processed(((True, ""),), [as_images(pixels)]) for pixels in trials]
        fixed = self._processed(((True, ""),), [blank(1, 1, 1)])
        for theirs in outputs:
            if any(not torch.equal(value, fixed[name]) for name, value in theirs.items() if name != _PIXELS):
                return None
        # torchvision has no Lanczos: processors built on it take the bicubic filter instead, without a word
        for preparation in (from_config, from_config._replace(resample=BICUBIC)):
            if all(
                _close(preparation, preparation(pixels), theirs[_PIXELS])
                for pixels, theirs in zip(trials, outputs, strict=True)
            ):
                return preparation
        return None


def _close(preparation: Preparation, ours: Tensor, theirs: Tensor) -> bool:
    if ours.numel() != theirs.numel():
        return False
    error = (ours - theirs.reshape(ours.shape)).abs().amax((0, 2, 3))
    return bool((error * torch.tensor(preparation.deviation) < CLOSE).all())


def as_images(pixels: Pixels) -> list[Image.Image]:
    """Frames as Pillow's pictures, in 8 bits."""
    frames = (pixels.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(frame) for frame in frames]


def blank(frames: int, height: int, width: int) -> list[Image.Image]:
    """Black frames, where only their size matters."""
    return [Image.fromarray(np.zeros((height, width, 3), np.uint8))] * frames


def drawn(height: int, width: int, seed: int = 0) -> Pixels:
    """A random picture [1, 3, height, width] with large shapes and fine grain, values whole 255ths.

    None is near 0 or 1, so that no filter overshoots: where one does, Pillow clips it between its two passes, in an
    order that differs by version.
    """
    rng = torch.Generator().manual_seed(seed)
    large = nn.functional.interpolate(torch.rand(1, 3, 7, 7, generator=rng), size=(height, width), mode="nearest")
    grain = torch.rand(large.shape, generator=rng)
    return ((0.3 + 0.3 * large + 0.1 * grain) * 255).round() / 255
