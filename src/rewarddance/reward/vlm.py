"""A vision-language model of transformers, wrapped so that pixels stay in the autograd graph.

Only its tokenizer and image-processor config are read: preprocessing is our own few lines of torch, because the
libraries' processors go through uint8 or need torchvision. Now: the InternVL family (`-hf` checkpoints).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForImageTextToText, AutoTokenizer, InternVLForConditionalGeneration

from rewarddance.errors import InputError
from rewarddance.reward.instructions import Picture
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.types import Pixels


class Asked(NamedTuple):
    """One user turn, and what the assistant has said so far of its answer.

    parts: text and `Picture` places in order. pictures: the pixels of those places. said: the answer's beginning.
    """

    parts: tuple[str, ...]
    pictures: tuple[Tensor, ...]
    said: str = ""


class VisionLanguageModel:
    """Model, tokenizer and preprocessing of one checkpoint.

    Raises InputError where the folder is no checkpoint, or of a family that is not wrapped here.
    """

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        folder = find_checkpoint(name)
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self._image = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"the judge {name!r} cannot be loaded: {error}.",
                "Give a save_pretrained folder with weights, tokenizer and preprocessor_config.json.",
            ) from error
        if not isinstance(model, InternVLForConditionalGeneration):
            raise InputError(f"the judge {name!r} is a {type(model).__name__}.", "InternVL (-hf) checkpoints are read.")
        self.folder = folder
        self.model: Any = model.eval()
        self.model.to(device)
        self._placeholder = self.tokenizer.context_image_token
        self._sequence = functools.lru_cache(maxsize=65_536)(self._tokenise)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        """Resize (bicubic, antialiased) and normalise as the family's own image processor does, differentiably."""
        size = (self._image["size"]["height"], self._image["size"]["width"])
        pixels = pixels.to(self.device, torch.float32)
        if pixels.shape[-2:] != size:  # rows, then columns, clamped after each as Pillow does
            rows = F.interpolate(pixels, size=(pixels.shape[-2], size[1]), mode="bicubic", antialias=True).clamp(0, 1)
            pixels = F.interpolate(rows, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        mean = torch.tensor(self._image["image_mean"], device=self.device)[:, None, None]
        deviation = torch.tensor(self._image["image_std"], device=self.device)[:, None, None]
        return (pixels - mean) / deviation

    def encode(self, pictures: Sequence[Pixels]) -> list[Float[Tensor, "tokens D"]]:
        """Encode pictures (or frame stacks) together; one [T * tokens, D] a picture, in the graph."""
        frames = [len(pixels) for pixels in pictures]
        values = torch.cat([self.preprocess(pixels) for pixels in pictures])
        features = self.model.model.get_image_features(
            pixel_values=values,
            vision_feature_layer=self.model.config.vision_feature_layer,
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            return_dict=True,
        ).pooler_output
        return [part.flatten(0, 1) for part in features.split(frames)]

    def sequence(self, parts: Sequence[str], frames: int = 1) -> tuple[int, ...]:
        """Token ids of one user turn, up to where the answer begins; each `Picture` has `frames` frames.

        Raises InputError where a text part contains one of the tokenizer's special tokens.
        """
        return self._sequence(tuple((isinstance(part, Picture), str(part)) for part in parts), frames)

    def _tokenise(self, parts: tuple[tuple[bool, str], ...], frames: int) -> tuple[int, ...]:
        content = []
        for is_picture, text in parts:
            found = next((token for token in self.tokenizer.all_special_tokens if token in text), None)
            if found and not is_picture:
                raise InputError(f"the text {text!r} contains the token {found!r}.", "Remove it from the prompt.")
            content.append({"type": "image"} if is_picture else {"type": "text", "text": text})
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        one = self.tokenizer.start_image_token + self._placeholder * self.model.config.image_seq_length
        one += self.tokenizer.end_image_token
        text = re.sub(re.escape(self._placeholder), lambda _: "\n".join([one] * frames), text)
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def read(self, asked: Sequence[Asked]) -> Float[Tensor, "B D"]:
        """The hidden state where each answer begins (or goes on after `said`); each distinct tensor is encoded once."""
        place: dict[int, int] = {}
        pictures, rows = [], []
        for one in asked:
            for pixels in one.pictures:
                if id(pixels) not in place:
                    place[id(pixels)] = len(pictures)
                    pictures.append(pixels)
            rows.append([place[id(pixels)] for pixels in one.pictures])
        encoded = self.encode(pictures)
        sequences = [self.sequence(one.parts, frames=len(one.pictures[0])) for one in asked]
        return self.last_hidden(sequences, [[encoded[at] for at in row] for row in rows])

    def last_hidden(
        self, sequences: Sequence[Sequence[int]], features: Sequence[Sequence[Float[Tensor, "tokens D"]]]
    ) -> Float[Tensor, "B D"]:
        """The hidden state where each sequence's answer begins. `features[b]` are the pictures of sequence b in order.

        Sequences are padded on the right: under causal attention no real token sees the padding, so the result does
        not depend on what else is in the batch.
        """
        lengths = torch.tensor([len(ids) for ids in sequences], device=self.device)
        padded = [[*ids, *[0] * (int(lengths.max()) - len(ids))] for ids in sequences]
        input_ids: Int[Tensor, "B L"] = torch.tensor(padded, device=self.device)
        embeds = self.model.get_input_embeddings()(input_ids)
        here = (input_ids == self.model.config.image_token_id).unsqueeze(-1)
        flat = torch.cat([one for row in features for one in row]).to(embeds.dtype)
        if int(here.sum()) != len(flat):
            raise InputError(
                f"the question has places for {int(here.sum())} picture tokens, but {len(flat)} were given.",
                "Give each question the pictures that its instruction names.",
            )
        embeds = embeds.masked_scatter(here, flat)
        hidden = self.model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        return hidden[torch.arange(len(lengths), device=self.device), lengths - 1]

    def answer_tokens(self, words: Sequence[str]) -> list[int]:
        """Ids of the spellings that are one token. Raises InputError where none is: such a model cannot answer."""
        ids = {tuple(self.tokenizer(word, add_special_tokens=False).input_ids) for word in words}
        single = sorted(only[0] for only in ids if len(only) == 1)
        if not single:
            raise InputError(
                f"the tokenizer of {self.folder} has no single token for any of {', '.join(map(repr, words))}.",
                "Choose a model whose tokenizer can answer in one token.",
            )
        return single

    def margin(self, hidden: Float[Tensor, "B D"], yes: Sequence[int], no: Sequence[int]) -> Float[Tensor, " B"]:
        """log of yes odds minus log of no odds, float32: in half precision most margins would tie. In the graph."""
        rows = self.model.get_output_embeddings().weight[torch.tensor([*yes, *no], device=self.device)].float()
        logits = hidden.float() @ rows.T
        return logits[:, : len(yes)].logsumexp(-1) - logits[:, len(yes) :].logsumexp(-1)

    def save(self, folder: Path) -> None:
        """Write a plain save_pretrained folder: weights, tokenizer, and the image-processor configs as they came."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for name in ("preprocessor_config.json", "processor_config.json"):
            source = self.folder / name
            if source.is_file():
                (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
