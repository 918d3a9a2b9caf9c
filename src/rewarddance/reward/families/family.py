"""What differs between families of vision-language models: how a picture is prepared, written and placed in a question.

Everything else (templates, sharing, answers) is written once in `prefill` and `vlm_judge`. Frames of a video are given
to every family as pictures in their order.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rewarddance.errors import InputError
from rewarddance.reward.families.chat_template import ChatTemplate, Parts
from rewarddance.reward.families.pixels import normalised, resized
from rewarddance.runtime.devices import on_device
from rewarddance.types import Pixels

Sizes = tuple[tuple[int, int, int], ...]
"""Frames, height and width of each picture."""


class Encoded(NamedTuple):
    """A picture as the language model reads it: tokens [n, D], and what is added to its first layers, each [n, D]."""

    tokens: Float[Tensor, "n D"]
    deep: tuple[Float[Tensor, "n D"], ...] = ()


class Family(ABC):
    """One loaded model, seen through what its family has of its own.

    caches_prefix: whether what questions have in common can be computed once; otherwise each is a forward of its own.
    one_at_a_time: whether the model writes one answer at a time.
    """

    caches_prefix = True
    one_at_a_time = False

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @abstractmethod
    def ids(self, parts: Parts, sizes: Sizes) -> list[int]:
        """The tokens of a user's turn with pictures of these sizes, up to where the answer begins."""

    @abstractmethod
    def tokens(self, height: int, width: int) -> int:
        """How many tokens the language model reads of a frame of this size."""

    @abstractmethod
    def picture_inputs(self, frames: Sequence[Tensor]) -> dict[str, Tensor]:
        """The model's own keyword arguments for pictures or frame stacks in order, in the autograd graph."""

    @abstractmethod
    def model_inputs(self, parts: Parts, pictures: Sequence[Tensor], prefix_tokens: Sequence[int]) -> dict[str, Tensor]:
        """All that `model(**inputs)` takes for one question, `prefix_tokens` of its answer included; in the graph."""

    @abstractmethod
    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        """Each picture or frame stack once through the vision tower, together, in the graph."""

    @abstractmethod
    def positions(self, ids: Sequence[int], pictures: Sequence[Tensor]) -> Int[Tensor, "axes L"]:
        """Rotary positions of a whole sequence: one axis, or three where the family counts time, rows and columns."""

    @abstractmethod
    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        """Resize and normalise as the family's own image processor does, differentiably, in float32."""

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The layers of the vision tower."""

    @property
    def marks(self) -> tuple[str, ...]:
        """The texts by which a picture's place is marked."""
        return ()

    @functools.cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """What no text may hold: the tokenizer's special tokens, those that it does not list among them too, and what
        begins or ends a turn in the chat template's plain text."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(dict.fromkeys((*self.marks, *self.tokenizer.all_special_tokens, *added, *self.chat.turn_marks)))

    @functools.cached_property
    def chat(self) -> ChatTemplate:
        """How a user's turn is written, and where the answer begins. Raises InputError as `ChatTemplate` does."""
        placeholder = self.marks[0] if self.marks else None
        judge = f"{self.model.config.model_type} judge"
        exact = isinstance(self, KnownFamily)
        return ChatTemplate(judge, self.chat_source, self.tokenizer.special_tokens_map, placeholder, exact)

    @property
    def chat_source(self) -> Any:
        """The chat template as it came, or None."""
        return self.tokenizer.chat_template

    def checked_parts(self, parts: Parts) -> Parts:
        """The same parts. Raises InputError naming a text that holds one of `special_tokens`."""
        for is_picture, text in parts:
            if is_picture:
                continue
            if token := next((token for token in self.special_tokens if token in text), None):
                start = text.index(token)
                excerpt = text[max(start - 40, 0) : start + len(token) + 40]
                raise InputError(f"the text {excerpt!r} contains the token {token!r}.", "Remove it from the prompt.")
        return parts

    def image_settings(self) -> dict[str, Any]:
        """What its image processor's file must say for other programs to see the pixels that are seen here."""
        return {}

    def scaled(self, logits: Float[Tensor, "... V"]) -> Float[Tensor, "... V"]:
        """What the family still does to the products of the last state with the head's rows: mostly nothing."""
        return logits


class KnownFamily(Family):
    """A family whose processor is written anew here in a few lines of torch; a new one is one class and one line in
    `known`.

    image: its image processor's config. max_pixels: pixels of a frame after resizing, at most.
    """

    def __init__(self, model: Any, tokenizer: Any, image: dict[str, Any], max_pixels: int | None) -> None:
        super().__init__(model, tokenizer)
        self.image, self.max_pixels = image, max_pixels
        self._mean, self._deviation = tuple(image["image_mean"]), tuple(image["image_std"])

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches (before merging) of a frame of this size."""

    @abstractmethod
    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing."""

    @abstractmethod
    def written(self, frames: Sequence[int]) -> str:
        """What the chat template's picture placeholder is replaced by: `frames` are the tokens of each frame."""

    @property
    @abstractmethod
    def placeholder(self) -> str:
        """The text by which the chat template marks a picture."""

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.placeholder,)

    def ids(self, parts: Parts, sizes: Sizes) -> list[int]:
        between = self.chat.render(self.checked_parts(parts)).split(self.placeholder)
        written = [*(self.written((self.tokens(high, wide),) * count) for count, high, wide in sizes), ""]
        text = "".join(a + b for a, b in zip(between, written, strict=True))
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def model_inputs(self, parts: Parts, pictures: Sequence[Tensor], prefix_tokens: Sequence[int]) -> dict[str, Tensor]:
        ids = self.ids(parts, tuple((len(p), p.shape[-2], p.shape[-1]) for p in pictures))
        inputs = {"input_ids": torch.tensor([[*ids, *prefix_tokens]], device=self.model.device)}
        return inputs | (self.picture_inputs(pictures) if pictures else {})

    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        pixels = on_device(pixels, self.model.device).float()
        pixels = resized(pixels, *self.size(pixels.shape[-2], pixels.shape[-1]))
        return normalised(pixels, self._mean, self._deviation)
