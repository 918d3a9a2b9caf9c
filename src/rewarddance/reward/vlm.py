"""A vision-language model of transformers as a judge reads with it: exact, differentiable, nothing computed twice.

Only its tokenizer and image-processor config are read: preprocessing is our own (see `families`), because the
libraries' processors go through uint8 or need torchvision.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForImageTextToText, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rewarddance.errors import InputError, RewardError
from rewarddance.reward.families import FAMILIES, Encoded
from rewarddance.reward.instructions import Picture
from rewarddance.reward.sharing import Batch, Prefix, Row, Sharing, checkpointed, is_out_of_memory, padded, plan
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.types import Pixels

ATTENTION = "rewarddance_prefix"


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Ordinary attention, except where a `prefix` is handed down: it is filled first, and attended to afterwards."""
    prefix: Prefix | None = kwargs.pop("prefix", None)
    if prefix is not None and prefix.complete:
        return prefix.attend(module.layer_idx, query, key, value, kwargs["scaling"]), None
    if prefix is not None:
        prefix.layers[module.layer_idx] = (key, value)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Asked(NamedTuple):
    """One user turn, and what the assistant has said so far of its answer.

    parts: text and `Picture` places in order. pictures: the pixels of those places. said: the answer's beginning.
    """

    parts: tuple[str, ...]
    pictures: tuple[Tensor, ...]
    said: str = ""


class Tokens(NamedTuple):
    """A tokenised question. ids: all tokens. pictures: numbers of its pictures. said: how many tokens were said."""

    ids: tuple[int, ...]
    pictures: tuple[int, ...]
    said: int


def _within(pictures: Sequence[Encoded], low: int, high: int) -> list[Encoded]:
    """What tokens low .. high of pictures laid end to end are, by picture."""
    found, start = [], 0
    for one in pictures:
        first, last = max(low - start, 0), min(high - start, len(one.tokens))
        if first < last:
            found.append(Encoded(one.tokens[first:last], tuple(layer[first:last] for layer in one.deep)))
        start += len(one.tokens)
    return found


class VisionLanguageModel:
    """Model, tokenizer and preprocessing of one checkpoint.

    max_pixels: of a frame after resizing, for families that keep a picture's shape. tokens_at_once: padded tokens of a
    forward, halved for good when memory runs out. checkpointing: where a gradient is wanted, keep each layer's input
    only and compute it again on the way back: far less memory, a third more time.

    Raises InputError where the folder is no checkpoint, or of a family that is not known.
    """

    def __init__(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        max_pixels: int | None = None,
        tokens_at_once: int = 16_384,
        checkpointing: bool = False,
    ) -> None:
        folder = find_checkpoint(name)
        try:
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            image = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise InputError(
                f"the judge {name!r} cannot be loaded: {error}.",
                "Give a save_pretrained folder with weights, tokenizer and preprocessor_config.json.",
            ) from error
        kind = model.config.model_type
        if kind not in FAMILIES:
            raise InputError(f"the judge {name!r} is of the family {kind!r}.", f"Known are {', '.join(FAMILIES)}.")
        self.folder = folder
        self.model: Any = model.eval().to(device)
        self.family = FAMILIES[kind](model, self.tokenizer, image, max_pixels)
        self.tokens_at_once, self.checkpointing = tokens_at_once, checkpointing
        self._text.config._attn_implementation = ATTENTION
        self._ids = functools.lru_cache(maxsize=65_536)(self._tokenise)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def _text(self) -> Any:
        return self.model.model.language_model

    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        """Resize (bicubic, antialiased) and normalise as the family's own image processor does, differentiably."""
        return self.family.preprocess(pixels)

    # -- reading -----------------------------------------------------------------------------------------------

    def read(self, asked: Sequence[Asked]) -> Float[Tensor, "B D"]:
        """The hidden state where each answer begins, or goes on after `said`; in the graph.

        Each distinct tensor is encoded once; what questions share before they part is computed once where no gradient
        reaches it. Raises InputError for a text that contains one of the tokenizer's special tokens.
        """
        return torch.stack([states[-1] for states in self.states(asked)])

    def states(self, asked: Sequence[Asked]) -> list[Float[Tensor, "S D"]]:
        """The states from which each token of `said` is predicted, and the one after the last: S = 1 + tokens said."""
        pictures: list[Tensor] = []
        place: dict[int, int] = {}
        sequences = []
        for one in asked:
            for pixels in one.pictures:
                if id(pixels) not in place:
                    place[id(pixels)] = len(pictures)
                    pictures.append(pixels)
            sequences.append(self._sequence(one, tuple(place[id(pixels)] for pixels in one.pictures)))
        encoded = self.encode(pictures)
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in self._text.parameters())
        rows = [self._row(sequence, pictures) for sequence in sequences]
        differentiated = torch.is_grad_enabled() and any(pixels.requires_grad for pixels in pictures)
        sharing: Sharing = "nothing" if trained else "before" if differentiated else "most"
        found: dict[int, Tensor] = {}
        left = list(range(len(rows)))
        while left:
            batches = plan([rows[i] for i in left], self.tokens_at_once, sharing)
            for batch in batches:
                try:
                    members = [left[i] for group in batch.groups for i in group.members]
                    states = self._forward(batch, [sequences[i] for i in members], pictures, encoded)
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    self._use_less_memory(error, max(len(rows[i].signature) for i in left))
                    break
                found |= dict(zip(members, states, strict=True))
            left = [i for i in left if i not in found]
        return [found[i] for i in range(len(rows))]

    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        """Encode pictures (or frame stacks) once each, as many together as the token budget allows, in the graph.

        Pictures that want a gradient are not mixed with others, so that nothing is kept for those.
        """
        found: dict[int, Encoded] = {}
        for wanted in (False, True):
            group = [i for i, pixels in enumerate(pictures) if pixels.requires_grad == wanted]
            start = 0
            while start < len(group):
                part, tokens = [], 0
                for i in group[start:]:
                    high, wide = pictures[i].shape[-2:]
                    tokens += len(pictures[i]) * self.family.tokens(high, wide)
                    if part and tokens > self.tokens_at_once:
                        break
                    part.append(i)
                try:
                    with self._checkpoints(self._vision_layers):
                        encoded = self.family.encode([pictures[i] for i in part])
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    self._use_less_memory(error, tokens if len(part) == 1 else 0)
                    continue
                found |= dict(zip(part, encoded, strict=True))
                start += len(part)
        return [found[i] for i in range(len(pictures))]

    def _forward(
        self,
        batch: Batch,
        sequences: Sequence[Tokens],
        pictures: Sequence[Tensor],
        encoded: Sequence[Encoded],
    ) -> list[Tensor]:
        """The wanted states of a batch's rows, in order: first the groups' prefixes, then what each row has of its own.

        Rows are padded on the right: under causal attention no real token sees the padding, so a row's states do not
        depend on what else is in the batch.
        """
        shared = batch.groups[0].prefix > 0
        cuts, prefix = [0] * len(sequences), None
        if shared:
            size = len(batch.groups[0].members)
            first = sequences[::size]
            prefix = Prefix(torch.tensor([group.prefix for group in batch.groups], device=self.device))
            self._through_text(first, [(0, group.prefix) for group in batch.groups], pictures, encoded, prefix)
            prefix.complete = True
            cuts = [group.prefix for group in batch.groups for _ in range(size)]
        spans = [(cut, len(sequence.ids)) for cut, sequence in zip(cuts, sequences, strict=True)]
        with self._checkpoints(self._text.layers):
            hidden = self._through_text(sequences, spans, pictures, encoded, prefix)
        return [
            states[end - start - 1 - sequence.said : end - start]
            for states, (start, end), sequence in zip(hidden, spans, sequences, strict=True)
        ]

    def _through_text(
        self,
        sequences: Sequence[Tokens],
        spans: Sequence[tuple[int, int]],
        pictures: Sequence[Tensor],
        encoded: Sequence[Encoded],
        prefix: Prefix | None,
    ) -> Float[Tensor, "B L D"]:
        """Tokens start .. end of each sequence through the language model, picture tokens put in their places."""
        ids, positions, tokens, deep = [], [], [], []
        for sequence, (start, end) in zip(sequences, spans, strict=True):
            shown = [pictures[number] for number in sequence.pictures]
            ids.append(torch.tensor(sequence.ids[start:end]))
            positions.append(self.family.positions(sequence.ids, shown)[:, start:end].T)
            image = [i for i, token in enumerate(sequence.ids) if token == self._image_token]
            low, high = (sum(i < bound for i in image) for bound in (start, end))
            own = [encoded[number] for number in sequence.pictures]
            if sum(len(one.tokens) for one in own) != len(image):
                raise InputError(
                    f"a question has places for {len(image)} picture tokens, its pictures give "
                    f"{sum(len(one.tokens) for one in own)}.",
                    "Give each question the pictures that its instruction names.",
                )
            for one in _within(own, low, high):  # sliced before they are joined: a reference's stay out of the graph
                tokens.append(one.tokens)
                deep.append(one.deep)
        input_ids, position_ids = padded(ids).to(self.device), padded(positions).to(self.device)
        embeds = self.model.get_input_embeddings()(input_ids)
        real = torch.tensor([end - start for start, end in spans], device=self.device)
        here = (input_ids == self._image_token) & (torch.arange(input_ids.shape[1], device=self.device) < real[:, None])
        extra: dict[str, Any] = {} if prefix is None else {"prefix": prefix}
        if tokens and here.any():
            embeds = embeds.masked_scatter(here.unsqueeze(-1), torch.cat(tokens).to(embeds.dtype))
            if deep[0]:
                layers = [torch.cat(layer) for layer in zip(*deep, strict=True)]
                extra |= {"visual_pos_masks": here, "deepstack_visual_embeds": layers}
        axes = position_ids.permute(2, 0, 1)
        return self._text(
            inputs_embeds=embeds, position_ids=axes if len(axes) > 1 else axes[0], use_cache=False, **extra
        ).last_hidden_state

    def _checkpoints(self, layers: nn.ModuleList) -> Any:
        return checkpointed(layers) if self.checkpointing and torch.is_grad_enabled() else nullcontext()

    @property
    def _vision_layers(self) -> nn.ModuleList:
        body = self.model.model
        return body.visual.blocks if hasattr(body, "visual") else body.vision_tower.encoder.layer

    def _use_less_memory(self, error: RuntimeError, least: int) -> None:
        """Halve the budget. Raises RewardError where it is down to one row already."""
        if self.tokens_at_once <= least:
            raise RewardError(
                f"memory ran out on a single question of {least} tokens: {error}.",
                "Use a smaller judge or pictures, checkpointing for gradients, or half precision.",
            ) from error
        self.tokens_at_once = max(least, self.tokens_at_once // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # -- words -------------------------------------------------------------------------------------------------

    @property
    def _image_token(self) -> int:
        return self.model.config.image_token_id

    def _sequence(self, one: Asked, numbers: tuple[int, ...]) -> Tokens:
        parts = tuple((isinstance(part, Picture), str(part)) for part in one.parts)
        if sum(is_picture for is_picture, _ in parts) != len(one.pictures):
            raise InputError(
                f"a question names {sum(p for p, _ in parts)} pictures, and {len(one.pictures)} were given.",
                "Give each question the pictures that its instruction names.",
            )
        counts = tuple((self.family.tokens(p.shape[-2], p.shape[-1]),) * len(p) for p in one.pictures)
        said = self.said_tokens(one.said)
        return Tokens((*self._ids(parts, counts), *said), numbers, len(said))

    def _tokenise(self, parts: tuple[tuple[bool, str], ...], counts: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        content = []
        for is_picture, text in parts:
            found = next((token for token in self.tokenizer.all_special_tokens if token in text), None)
            if found and not is_picture:
                raise InputError(f"the text {text!r} contains the token {found!r}.", "Remove it from the prompt.")
            content.append({"type": "image"} if is_picture else {"type": "text", "text": text})
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        between = text.split(self.family.placeholder)
        written = [*map(self.family.written, counts), ""]
        return tuple(
            self.tokenizer(
                "".join(a + b for a, b in zip(between, written, strict=True)), add_special_tokens=False
            ).input_ids
        )

    def _row(self, sequence: Tokens, pictures: Sequence[Tensor]) -> Row:
        """What `plan` needs to know."""
        counts = [len(pictures[n]) * self.family.tokens(*pictures[n].shape[-2:]) for n in sequence.pictures]
        marks = iter(
            [-1 - n * 2**24 - k for n, count in zip(sequence.pictures, counts, strict=True) for k in range(count)]
        )
        signature = tuple(next(marks, token) if token == self._image_token else token for token in sequence.ids)
        image = [i for i, mark in enumerate(signature) if mark < 0]
        if not image:
            return Row(signature, 0, 0, sequence.said + 1)
        return Row(signature, image[-counts[-1]], image[-1] + 1, sequence.said + 1)

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

    def said_tokens(self, text: str) -> list[int]:
        """The tokens of what the assistant says."""
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of all tokens, float32, in the graph."""
        return hidden.float() @ self.model.get_output_embeddings().weight.float().T

    def margin(self, hidden: Float[Tensor, "B D"], yes: Sequence[int], no: Sequence[int]) -> Float[Tensor, " B"]:
        """log of yes odds minus log of no odds, float32: in half precision most margins would tie. In the graph."""
        rows = self.model.get_output_embeddings().weight[torch.tensor([*yes, *no], device=self.device)].float()
        logits = hidden.float() @ rows.T
        return logits[:, : len(yes)].logsumexp(-1) - logits[:, len(yes) :].logsumexp(-1)

    @torch.no_grad()
    def write(self, asked: Sequence[Asked], max_new_tokens: int, temperature: float = 0.0, seed: int = 0) -> list[str]:
        """How each answer goes on, as text, by transformers' own generate; greedy at temperature 0, else seeded."""
        sequences = [self._sequence(one, tuple(range(len(one.pictures)))) for one in asked]
        longest = max(len(sequence.ids) for sequence in sequences)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        ids = torch.tensor([[pad] * (longest - len(one.ids)) + [*one.ids] for one in sequences], device=self.device)
        mask = torch.tensor([[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in sequences])
        shown = [pixels for one in asked for pixels in one.pictures]
        inputs: dict[str, Any] = self.family.inputs(shown) if shown else {}
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self._image_token).int()
        chosen = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found = self.model.generate(
                input_ids=ids,
                attention_mask=mask.to(self.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                **chosen,
                **inputs,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)]

    def save(self, folder: Path) -> None:
        """Write a plain save_pretrained folder: weights, tokenizer, and the image-processor configs as they came."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        for name in ("preprocessor_config.json", "processor_config.json"):
            source = self.folder / name
            if source.is_file():
                (folder / name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
