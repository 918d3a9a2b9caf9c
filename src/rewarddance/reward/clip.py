"""The CLIP-style reward, the oldest baseline: how near a picture and its prompt lie in a dual encoder's space."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from rewarddance.errors import InputError, first_line
from rewarddance.reward.families.pixels import normalised, resized
from rewarddance.reward.families.processor_files import copy_processor, image_config, read_object
from rewarddance.reward.judge import Kind, RewardConfig
from rewarddance.reward.pointwise import PointwiseJudge
from rewarddance.runtime.checkpoint import find_checkpoint, let_others_read
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.weights import LOAD_ERRORS, library_warnings, load_module
from rewarddance.types import Pixels, Question

DUAL_ENCODERS = ("align", "altclip", "chinese_clip", "clip", "metaclip_2", "siglip")
"""`model_type`s of transformers that give a text and a picture a vector each, and answer no question."""
BICUBIC = 3
"""Pillow's number of that filter."""


def untrained_kind(folder: Path) -> Kind:
    """How a checkpoint without a reward_config.json is asked: "clip" for a dual encoder, by its config.json, else
    "pairwise"."""
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError):  # what is wrong with it is said where it is loaded
        return "pairwise"
    return "clip" if config.get("model_type") in DUAL_ENCODERS else "pairwise"


class ClipReward(PointwiseJudge):
    """s = scale cos(picture, prompt) + bias, the model's own logit of the pair; the bias is SigLIP's, CLIP has none.

    Any dual encoder of transformers with get_text_features, get_image_features and logit_scale. A video's cosine is the
    mean of its frames'. By itself a CLIP margin is far from calibrated (its P is near 1 for every picture); against a
    reference it is PickScore's reward. It reads no instruction.

    Raises InputError where the folder is no such model, or its image processor does what is not known here.
    Source: CLIP (2103.00020); Bradley-Terry on it as in PickScore (2305.01569).
    """

    def __init__(
        self, name: str, config: RewardConfig, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.folder, self.config, self.is_checking = find_checkpoint(name), config, False
        what = f"the CLIP judge {name!r}"
        remedy = "Give a save_pretrained folder with weights, tokenizer and preprocessor_config.json."
        model: Any = load_module(AutoModel, self.folder, what, remedy, dtype=dtype)
        try:
            with library_warnings(what):
                self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
            self._picture = Preprocessing(image_config(self.folder))
        except LOAD_ERRORS as error:
            raise InputError(f"{what} cannot be loaded: {first_line(error)}.", remedy) from error
        for part in ("get_text_features", "get_image_features", "logit_scale"):
            if not hasattr(model, part) or model.config.model_type == "siglip2":  # whose pictures come in patches
                raise InputError(
                    f"the judge {name!r} is of {type(model).__name__}, which is no dual encoder of kind 'clip'.",
                    "Give a CLIP or SigLIP checkpoint, or choose another kind.",
                )
        self.model = model.eval()
        self.model.to(device)

    def scores(self, questions: Sequence[Question]) -> Float[Tensor, " K"]:
        """The margins [K]; each distinct picture and each distinct prompt is encoded once."""
        prompts: dict[str, int] = {}
        pictures: dict[int, tuple[int, Pixels]] = {}
        questions = self.as_read(questions)
        for number, question in enumerate(questions):
            if question.instruction is not None or question.prompt.image is not None:
                what = "an instruction" if question.prompt.image is None else "an image in its prompt"
                raise InputError(
                    f"question {number} ({question.prompt.text!r}) has {what}, but a CLIP judge reads none.",
                    "Leave it out, or choose a kind that reads one.",
                )
            prompts.setdefault(question.prompt.text, len(prompts))
            pictures.setdefault(id(question.candidate), (len(pictures), question.candidate))
        texts = self.text_features(list(prompts))
        frames = self.image_features([pixels for _, pixels in pictures.values()])
        rows = [(pictures[id(question.candidate)][0], prompts[question.prompt.text]) for question in questions]
        cosine = torch.stack([(frames[picture] @ texts[prompt]).mean() for picture, prompt in rows])
        bias = getattr(self.model, "logit_bias", None)
        margin = self.model.logit_scale.float().exp() * cosine
        return margin if bias is None else margin + bias.float()

    def text_features(self, prompts: Sequence[str]) -> Float[Tensor, "P D"]:
        """Prompts as unit vectors, float32, in the graph.

        Raises InputError naming a prompt that is longer than the model reads: it is never cut off silently.
        """
        ids = [self.tokenizer(prompt).input_ids for prompt in prompts]
        max_tokens = self.model.config.text_config.max_position_embeddings
        for prompt, tokens in zip(prompts, ids, strict=True):
            special = next((token for token in self._special_tokens if token in prompt), None)
            if special:
                raise InputError(f"the text {prompt!r} contains the token {special!r}.", "Remove it from the prompt.")
            if len(tokens) > max_tokens:
                raise InputError(
                    f"the prompt {prompt!r} has {len(tokens)} tokens, and this CLIP judge reads {max_tokens}.",
                    "Shorten it, or choose a kind that reads long prompts.",
                )
        if self.is_checking:
            return torch.ones(len(prompts), 1, device=self.model.device)
        # SigLIP has learned to read prompts that are filled up to the end, without a mask.
        is_filled = self.model.config.model_type == "siglip"
        length = max_tokens if is_filled else max(map(len, ids))
        pad, device = self._pad_token, self.model.device
        padded_ids = torch.tensor([tokens + [pad] * (length - len(tokens)) for tokens in ids])
        inputs = {"input_ids": on_device(padded_ids, device)}
        if not is_filled:
            mask = [[1] * len(tokens) + [0] * (length - len(tokens)) for tokens in ids]
            inputs["attention_mask"] = on_device(torch.tensor(mask), device)
        return F.normalize(pooled(self.model.get_text_features(**inputs)).float(), dim=-1)

    @property
    def _pad_token(self) -> int:
        """What fills prompts up behind their end; behind a mask, so a tokenizer without one takes its last."""
        tokenizer = self.tokenizer
        token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return 0 if token is None else token

    @functools.cached_property
    def _special_tokens(self) -> tuple[str, ...]:
        """Special tokens that no prompt may hold; a pad of one plain character, as OpenCLIP's "!", is text as well."""
        return tuple(token for token in self.tokenizer.all_special_tokens if len(token) > 1)

    def image_features(self, pictures: Sequence[Tensor]) -> list[Tensor]:
        """Each frame of each picture [T, C, H, W] as a unit vector, [T, D] float32, in the graph; encoded together.

        Pictures may differ in size and length, so their shapes are not in the signature.
        """
        if self.is_checking:
            return [torch.ones(len(pixels), 1, device=self.model.device) for pixels in pictures]
        values = torch.cat([self.preprocess(pixels) for pixels in pictures])
        features = pooled(self.model.get_image_features(pixel_values=values.to(self.model.dtype)))
        return list(F.normalize(features.float(), dim=-1).split([len(pixels) for pixels in pictures]))

    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        """As the model's own image processor does it, differentiably, in float32."""
        return self._picture(on_device(pixels, self.model.device).float())

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        let_others_read(folder.glob("model*.safetensors"))
        copy_processor(self.folder, folder)
        self._save_config(folder)


def _height_and_width(size: int | dict[str, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size["height"], size["width"])


class Preprocessing:
    """What a preprocessor_config.json of the CLIP kind asks for, in torch: bicubic resize, centre crop, normalise.

    size: of the shortest edge, or height and width. Raises ValueError naming a key whose value is not known here.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        size = content["size"]
        self.shortest: int | None = size if isinstance(size, int) else size.get("shortest_edge")
        self.size = _height_and_width(self.shortest or size)
        self.crop = _height_and_width(content["crop_size"]) if content.get("do_center_crop") else None
        known = {
            "do_resize": content.get("do_resize", True),
            "do_normalize": content.get("do_normalize", True),
            "resample": content.get("resample", BICUBIC) == BICUBIC,
            "do_center_crop": self.crop or not self.shortest,  # else pictures would keep different shapes
            "crop_size": not self.crop or all(a <= b for a, b in zip(self.crop, self.size, strict=True)),
        }
        for key, good in known.items():
            if not good:
                raise ValueError(f"its preprocessor_config.json has {key} = {content.get(key)!r}, which is not known")
        self.mean, self.deviation = content["image_mean"], content["image_std"]

    def __call__(self, pixels: Float[Tensor, "T C H W"]) -> Float[Tensor, "T C h w"]:
        height, width = self.resized_to(*pixels.shape[-2:])
        pixels = resized(pixels, height, width)
        if self.crop:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            pixels = pixels[..., top : top + self.crop[0], left : left + self.crop[1]]
        return normalised(pixels, self.mean, self.deviation)

    def resized_to(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize: where the shortest edge is given, the other is rounded down."""
        if self.shortest is None:
            return self.size
        longer = int(self.shortest * max(height, width) / min(height, width))
        return (self.shortest, longer) if height <= width else (longer, self.shortest)


def pooled(features: Any) -> Tensor:
    """The vector of each text or picture [N, D]: newer models wrap it, older ones return it bare."""
    return features if isinstance(features, Tensor) else features.pooler_output
