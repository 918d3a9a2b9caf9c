"""How questions go through a vision-language model: exact, differentiable, nothing computed twice.

A family whose language model looks back only, over everything that came before, is read with what questions share
computed once. Any other is read question by question, by its own forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewarddance.data.fields import short
from rewarddance.errors import InputError, RewardError
from rewarddance.reward.families.family import Encoded, Family, Parts
from rewarddance.reward.instructions import Picture
from rewarddance.reward.lockstep import Lockstep
from rewarddance.reward.prefix_cache import Batch, Prefix, Row, Sharing, padded, plan
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.memory import checkpointed, is_out_of_memory


class JudgeInput(NamedTuple):
    """One user turn, and how the assistant's answer begins.

    parts: text and `Picture` places in order.
    pictures: the pixels of those places.
    response_prefix: the answer's beginning.
    """

    parts: tuple[str, ...]
    pictures: tuple[Tensor, ...]
    response_prefix: str = ""


class Tokens(NamedTuple):
    """A tokenised question.

    ids: all tokens.
    pictures: numbers of its pictures.
    response_length: how many of the tokens begin the answer.
    """

    ids: tuple[int, ...]
    pictures: tuple[int, ...]
    response_length: int


def parts_of(one: JudgeInput) -> Parts:
    """Raises InputError where the question has more or fewer pictures than places."""
    parts = tuple((isinstance(part, Picture), str(part)) for part in one.parts)
    if sum(is_picture for is_picture, _ in parts) != len(one.pictures):
        raise InputError(
            f"a question names {sum(p for p, _ in parts)} pictures, and {len(one.pictures)} were given.",
            "Give each question the pictures that its instruction names.",
        )
    return parts


def _within(pictures: Sequence[Encoded], low: int, high: int) -> list[Encoded]:
    """What tokens low .. high of pictures laid end to end are, by picture."""
    found, start = [], 0
    for one in pictures:
        first, last = max(low - start, 0), min(high - start, len(one.tokens))
        if first < last:
            found.append(Encoded(one.tokens[first:last], tuple(layer[first:last] for layer in one.deep)))
        start += len(one.tokens)
    return found


class Reading(ABC):
    """A model and the family it is of, and how much it reads at once.

    tokens_at_once: padded tokens of a forward, halved for good when memory runs out. checkpointing: where a gradient is
    wanted, keep each layer's input only and compute it again on the way back: far less memory, a third more time.
    """

    model: Any
    family: Family
    tokens_at_once: int
    checkpointing: bool
    steady = False  # True where processes hold the weights in pieces, so that all must make the same forwards
    lockstep: Lockstep | None = None  # the turn that they then take together, where they do not read equally much

    @abstractmethod
    def _sequence(self, one: JudgeInput, numbers: tuple[int, ...]) -> Tokens:
        """The question's tokens; its pictures have these numbers."""

    @abstractmethod
    def response_prefix_tokens(self, text: str) -> list[int]:
        """The tokens of a response's beginning."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def _text(self) -> Any:
        return self.model.get_decoder()

    @property
    def _vision_layers(self) -> nn.ModuleList:
        return self.family.layers

    @cached_property
    def _image_token(self) -> int:
        return self.model.config.image_token_id  # the library looks this up slowly, and every token asks

    def read(self, asked: Sequence[JudgeInput]) -> Float[Tensor, "B D"]:
        """The hidden state where each answer begins, or goes on after `response_prefix`; in the graph.

        Each distinct tensor is encoded once; what questions share before they part is computed once where no gradient
        reaches it. Raises InputError for a text that contains one of the tokenizer's special tokens.
        """
        return torch.stack([states[-1] for states in self.states(asked)])

    def states(self, asked: Sequence[JudgeInput], sharing: Sharing | None = None) -> list[Float[Tensor, "S D"]]:
        """The states from which each token of `response_prefix` is predicted, and the one after the last.

        S = 1 + tokens of the prefix.

        sharing: as in `plan`; what costs least, if None.
        """
        if not self.family.caches_prefix:
            return [self._whole(one) for one in asked]
        if self.lockstep is not None:
            before_last = (pixels for one in asked for pixels in one.pictures[:-1])
            early = torch.is_grad_enabled() and any(pixels.requires_grad for pixels in before_last)
            _, early = self.lockstep.any_process(True, early)
            sharing = "nothing" if early else sharing
        return self.states_in_step(asked, sharing)

    def states_in_step(self, asked: Sequence[JudgeInput], sharing: Sharing | None = None) -> list[Float[Tensor, "S D"]]:
        """`states` once all processes have said that they read; one that has no questions only goes along."""
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
        sharing = sharing or ("nothing" if trained else "before" if differentiated else "most")
        found: dict[int, Tensor] = {}
        left, batches = list(range(len(rows))), []
        while self._any_process(bool(left)):
            if not left:
                self._blank_forward()
                continue
            if not batches:
                planned = plan([rows[i] for i in left], self.tokens_at_once, sharing)
                batches = [(batch, [left[i] for group in batch.groups for i in group.members]) for batch in planned]
            batch, members = batches.pop(0)
            try:
                states = self._forward(batch, [sequences[i] for i in members], pictures, encoded)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._use_less_memory(error, max(len(rows[i].signature) for i in left))
                batches = []
                continue
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
            while self._any_process(start < len(group)):
                if start == len(group) and self.lockstep is not None:
                    self.lockstep.blank_picture(self, wanted)
                    continue
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

    def _any_process(self, flag: bool) -> bool:
        """The flag itself, or whether any process has it set where they read in step."""
        return flag if self.lockstep is None else self.lockstep.any_process(flag)[0]

    def _blank_forward(self) -> None:
        """`_forward` of a process that has nothing left to read."""
        assert self.lockstep is not None
        if self._any_process(False):
            self.lockstep.blank_text(self, wanted=False)
        self.lockstep.blank_text(self, wanted=True)

    def _whole(self, one: JudgeInput) -> Float[Tensor, "S D"]:
        """The wanted states of one question by the model's own forward."""
        said = self.response_prefix_tokens(one.response_prefix)
        inputs = self.family.whole(parts_of(one), one.pictures, said)
        self._check_length(one, inputs["input_ids"].shape[1])
        try:
            with self._checkpoints(self._vision_layers), self._checkpoints(self._text.layers):
                states = self.model.model(**inputs, use_cache=False).last_hidden_state[0]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _too_large(error, inputs["input_ids"].shape[1]) from error
        return states[len(states) - 1 - len(said) :]

    def _check_length(self, one: JudgeInput, tokens: int) -> None:
        """Raises InputError where the question has more tokens than the model has learned to read: what it would say
        then means nothing, and nobody would see it."""
        text = self.model.config.get_text_config()
        longest, rope = getattr(text, "max_position_embeddings", None), getattr(text, "rope_parameters", None) or {}
        if longest is None or tokens <= longest * max(rope.get("factor") or 1, 1):
            return
        asked = "".join(part for part in one.parts if not isinstance(part, Picture))
        raise InputError(
            f"the question {short(asked)} has {tokens} tokens, and this judge reads {longest}.",
            "Shorten the prompt, show fewer or smaller frames, or choose a judge that reads more.",
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
            return Row(signature, 0, 0, sequence.response_length + 1)
        return Row(signature, image[-counts[-1]], image[-1] + 1, sequence.response_length + 1)

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
        cuts, prefix = [0] * len(sequences), Prefix()
        if self._any_process(shared) and not shared and self.lockstep is not None:
            self.lockstep.blank_text(self, wanted=False)
        if shared:
            size = len(batch.groups[0].members)
            first = sequences[::size]
            prefix = Prefix([group.prefix for group in batch.groups])
            self._through_text(first, [(0, group.prefix) for group in batch.groups], pictures, encoded, prefix)
            prefix.complete = True
            cuts = [group.prefix for group in batch.groups for _ in range(size)]
        spans = [(cut, len(sequence.ids)) for cut, sequence in zip(cuts, sequences, strict=True)]
        with self._checkpoints(self._text.layers):
            hidden = self._through_text(sequences, spans, pictures, encoded, prefix)
        return [
            states[end - start - 1 - sequence.response_length : end - start]
            for states, (start, end), sequence in zip(hidden, spans, sequences, strict=True)
        ]

    def _through_text(
        self,
        sequences: Sequence[Tokens],
        spans: Sequence[tuple[int, int]],
        pictures: Sequence[Tensor],
        encoded: Sequence[Encoded],
        prefix: Prefix,
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
        input_ids = padded(ids)
        real = torch.tensor([end - start for start, end in spans])
        here = (input_ids == self._image_token) & (torch.arange(input_ids.shape[1]) < real[:, None])
        input_ids = input_ids.masked_fill(here, 0)  # the token may be beyond the vocabulary
        input_ids, position_ids = (on_device(x, self.device) for x in (input_ids, padded(positions)))
        embeds = self.model.get_input_embeddings()(input_ids)
        # A mask that is given is not made: the library's own would look for packed sequences, and the host wait for it.
        extra: dict[str, Any] = {"prefix": prefix, "attention_mask": embeds.new_zeros(1, 1, 1, 1)}
        if tokens:
            places = on_device(here.flatten().nonzero()[:, 0], self.device)
            flat = embeds.flatten(0, 1).index_copy(0, places, torch.cat(tokens).to(embeds.dtype))
            embeds = flat.view_as(embeds)
            if deep[0]:
                layers = [torch.cat(layer) for layer in zip(*deep, strict=True)]
                extra |= {"visual_pos_masks": on_device(here, self.device), "deepstack_visual_embeds": layers}
        axes = position_ids.permute(2, 0, 1)
        return self._text(
            inputs_embeds=embeds, position_ids=axes if len(axes) > 1 else axes[0], use_cache=False, **extra
        ).last_hidden_state

    def _checkpoints(self, layers: nn.ModuleList) -> Any:
        return checkpointed(layers) if self.checkpointing and torch.is_grad_enabled() else nullcontext()

    def _use_less_memory(self, error: RuntimeError, least: int) -> None:
        """Halve the budget. Raises RewardError where it is down to one row already, or has to stay."""
        if self.steady:
            raise RewardError(
                f"memory ran out: {error}.", "Ask less at once (gradient_accumulation_steps), or use checkpointing."
            ) from error
        if self.tokens_at_once <= least:
            raise _too_large(error, least) from error
        self.tokens_at_once = max(least, self.tokens_at_once // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _too_large(error: RuntimeError, tokens: int) -> RewardError:
    return RewardError(
        f"memory ran out on a single question of {tokens} tokens: {error}.",
        "Use a smaller judge or pictures, checkpointing for gradients, or half precision.",
    )
