"""How questions go through a vision-language model: exact, differentiable, nothing computed twice.

A family whose language model looks back only, over everything that came before, is read with what questions share
computed once. Any other is read question by question, by its own forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rewarddance.data.fields import short
from rewarddance.errors import InputError, RewardError
from rewarddance.reward.families.family import Encoded, Family, Parts
from rewarddance.reward.instructions import Picture
from rewarddance.reward.last_layer import mlp_at
from rewarddance.reward.lockstep import Lockstep
from rewarddance.reward.prefix_cache import (
    Batch,
    KnownPrefix,
    Prefix,
    PrefixKey,
    PrefixStore,
    Row,
    Sharing,
    joined_prefixes,
    padded,
    plan,
    shares_candidates,
    split_prefix,
)
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


def parts_of(judge_input: JudgeInput) -> Parts:
    """Raises InputError where the question has more or fewer pictures than places."""
    parts = tuple((isinstance(part, Picture), str(part)) for part in judge_input.parts)
    if sum(is_picture for is_picture, _ in parts) != len(judge_input.pictures):
        raise InputError(
            f"a question names {sum(p for p, _ in parts)} pictures, and {len(judge_input.pictures)} were given.",
            "Give each question the pictures that its instruction names.",
        )
    return parts


def _encoded_slice(pictures: Sequence[Encoded], start: int, end: int) -> list[Encoded]:
    """Tokens start .. end of pictures laid end to end, by picture."""
    slices, offset = [], 0
    for picture in pictures:
        first, last = max(start - offset, 0), min(end - offset, len(picture.tokens))
        if first < last:
            slices.append(Encoded(picture.tokens[first:last], tuple(layer[first:last] for layer in picture.deep)))
        offset += len(picture.tokens)
    return slices


_RELEASED = Encoded(torch.empty(0, 0))
"""Stands where a picture was whose last question is answered: encoded, a picture is larger than in pixels."""


class Prefill(ABC):
    """A model and the family it is of, and how many tokens of questions it computes hidden states of at once.

    max_batch_tokens: padded tokens of a forward, halved for good when memory runs out. checkpointing: where a gradient
    is wanted, keep each layer's input only and compute it again on the way back: far less memory, a third more time.
    prefix_store: keeps what stands before candidates for later questions, where no gradient is wanted.
    """

    model: Any
    family: Family
    max_batch_tokens: int
    checkpointing: bool
    prefix_store: PrefixStore | None = None
    is_compiled = False  # True where the language model's layers are
    fixed_budget = False  # True where weights are sharded: all processes must make the same forwards
    lockstep: Lockstep | None = None  # the turn that they then take together, where they do not read equally much

    @abstractmethod
    def _sequence(self, judge_input: JudgeInput, numbers: tuple[int, ...]) -> Tokens:
        """The question's tokens; its pictures have these numbers."""

    @abstractmethod
    def response_prefix_tokens(self, text: str) -> list[int]:
        """The tokens of a response's beginning."""

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def _language_model(self) -> Any:
        return self.model.get_decoder()

    @property
    def _vision_layers(self) -> nn.ModuleList:
        return self.family.layers

    @cached_property
    def _image_token(self) -> int:
        return self.model.config.image_token_id  # the library looks this up slowly, and every token asks

    def last_states(self, judge_inputs: Sequence[JudgeInput]) -> Float[Tensor, "B D"]:
        """The hidden state where each answer begins, or goes on after `response_prefix`; in the graph.

        Each distinct tensor is encoded once; what questions share before they part is computed once where no gradient
        reaches it. Raises InputError for a text that contains one of the tokenizer's special tokens.
        """
        return torch.stack([states[-1] for states in self.response_states(judge_inputs)])

    def response_states(
        self, judge_inputs: Sequence[JudgeInput], sharing: Sharing | None = None
    ) -> list[Float[Tensor, "S D"]]:
        """The states from which each token of `response_prefix` is predicted, and the one after the last.

        S = 1 + tokens of the prefix.

        sharing: as in `plan`; what costs least, if None.
        """
        if not self.family.caches_prefix:
            return [self._unshared_states(judge_input) for judge_input in judge_inputs]
        if self.lockstep is not None:
            before_last = (pixels for judge_input in judge_inputs for pixels in judge_input.pictures[:-1])
            early = torch.is_grad_enabled() and any(pixels.requires_grad for pixels in before_last)
            _, early = self.lockstep.any_process(True, early)
            sharing = "nothing" if early else sharing
        return self.states_in_lockstep(judge_inputs, sharing)

    def states_in_lockstep(
        self, judge_inputs: Sequence[JudgeInput], sharing: Sharing | None = None
    ) -> list[Float[Tensor, "S D"]]:
        """`response_states` once all processes have said that they read; one that has no questions only goes along."""
        sequences, pictures = self._tokenised(judge_inputs)
        rows = [self._plan_row(sequence, pictures) for sequence in sequences]
        known = self._known_prefixes(sequences, rows, pictures) if sharing in (None, "before") else None
        encoded = self._encode_unknown(sequences, rows, pictures, known)
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in self._language_model.parameters())
        differentiated = torch.is_grad_enabled() and any(pixels.requires_grad for pixels in pictures)
        held_apart = differentiated or known is not None
        sharing = sharing or ("nothing" if trained else "before" if held_apart else "most")
        states_of: dict[int, Tensor] = {}
        pending, batches = list(range(len(rows))), []
        waiting = Counter(number for sequence in sequences for number in sequence.pictures)
        while self._any_process(bool(pending)):
            if not pending:
                self._blank_forward()
                continue
            if not batches:
                planned = plan([rows[i] for i in pending], self.max_batch_tokens, sharing)
                batches = [(batch, [pending[i] for group in batch.groups for i in group.members]) for batch in planned]
            batch, members = batches.pop(0)
            try:
                states = self._forward(batch, [sequences[i] for i in members], pictures, encoded, known)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._use_less_memory(error, max(len(rows[i].signature) for i in pending))
                batches = []
                continue
            states_of |= dict(zip(members, states, strict=True))
            waiting.subtract(number for i in members for number in sequences[i].pictures)
            encoded = [picture if waiting[number] else _RELEASED for number, picture in enumerate(encoded)]
            pending = [i for i in pending if i not in states_of]
        return [states_of[i] for i in range(len(rows))]

    def _tokenised(self, judge_inputs: Sequence[JudgeInput]) -> tuple[list[Tokens], list[Tensor]]:
        """The questions' tokens, and their distinct pictures, by number."""
        pictures: list[Tensor] = []
        place: dict[int, int] = {}
        sequences = []
        for judge_input in judge_inputs:
            for pixels in judge_input.pictures:
                if id(pixels) not in place:
                    place[id(pixels)] = len(pictures)
                    pictures.append(pixels)
            numbers = tuple(place[id(pixels)] for pixels in judge_input.pictures)
            sequences.append(self._sequence(judge_input, numbers))
        return sequences, pictures

    def _known_prefixes(
        self, sequences: Sequence[Tokens], rows: Sequence[Row], pictures: Sequence[Tensor]
    ) -> dict[PrefixKey, KnownPrefix] | None:
        """What is kept of what stands before the rows' candidates; None where nothing is to be kept."""
        store = self.prefix_store
        if store is None or torch.is_grad_enabled() or self.lockstep is not None or shares_candidates(rows):
            return None
        store.check_weights(tuple(weight._version for weight in self.model.parameters()))
        keys = {_prefix_key(sequence, row.before, pictures) for sequence, row in zip(sequences, rows, strict=True)}
        found = ((key, store.find(key)) for key in keys if key.ids)
        return {key: prefix for key, prefix in found if prefix is not None}

    def _encode_unknown(
        self,
        sequences: Sequence[Tokens],
        rows: Sequence[Row],
        pictures: Sequence[Tensor],
        known: dict[PrefixKey, KnownPrefix] | None,
    ) -> list[Encoded]:
        """All pictures encoded, but those that stand in known prefixes only: of them their length alone is there."""
        if not known:
            return self.encode(pictures)
        wanted: set[int] = set()
        for sequence, row in zip(sequences, rows, strict=True):
            is_known = _prefix_key(sequence, row.before, pictures) in known
            wanted |= set(sequence.pictures[-1:] if is_known else sequence.pictures)
        order = sorted(wanted)
        encoded_of = dict(zip(order, self.encode([pictures[number] for number in order]), strict=True))
        return [
            encoded_of[number] if number in wanted else Encoded(torch.empty(self._token_count(pixels), 0))
            for number, pixels in enumerate(pictures)
        ]

    def encode(self, pictures: Sequence[Tensor]) -> list[Encoded]:
        """Encode pictures (or frame stacks) once each, as many together as the token budget allows, in the graph.

        Pictures that want a gradient are not mixed with others, so that nothing is kept for those.
        """
        encoded_of: dict[int, Encoded] = {}
        for with_graph in (False, True):
            group = [i for i, pixels in enumerate(pictures) if pixels.requires_grad == with_graph]
            start = 0
            while self._any_process(start < len(group)):
                if start == len(group) and self.lockstep is not None:
                    self.lockstep.blank_picture(self, with_graph)
                    continue
                part, tokens = [], 0
                for i in group[start:]:
                    high, wide = pictures[i].shape[-2:]
                    tokens += len(pictures[i]) * self.family.tokens(high, wide)
                    if part and tokens > self.max_batch_tokens:
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
                encoded_of |= dict(zip(part, encoded, strict=True))
                start += len(part)
        return [encoded_of[i] for i in range(len(pictures))]

    def _any_process(self, flag: bool) -> bool:
        """The flag itself, or whether any process has it set where they read in step."""
        return flag if self.lockstep is None else self.lockstep.any_process(flag)[0]

    def _blank_forward(self) -> None:
        """`_forward` of a process that has nothing left to read."""
        assert self.lockstep is not None
        if self._any_process(False):
            self.lockstep.blank_text(self, with_graph=False)
        self.lockstep.blank_text(self, with_graph=True)

    def _unshared_states(self, judge_input: JudgeInput) -> Float[Tensor, "S D"]:
        """The wanted states of one question by the model's own forward."""
        prefix_tokens = self.response_prefix_tokens(judge_input.response_prefix)
        inputs = self.family.model_inputs(parts_of(judge_input), judge_input.pictures, prefix_tokens)
        self._check_length(judge_input, inputs["input_ids"].shape[1])
        try:
            with self._checkpoints(self._vision_layers), self._checkpoints(self._language_model.layers):
                states = self.model.model(**inputs, use_cache=False).last_hidden_state[0]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _too_large(error, inputs["input_ids"].shape[1]) from error
        return states[len(states) - 1 - len(prefix_tokens) :]

    def _check_length(self, judge_input: JudgeInput, tokens: int) -> None:
        """Raises InputError where the question has more tokens than the model has learned to read: what it would say
        then means nothing, and nobody would see it."""
        config = self.model.config.get_text_config()
        max_tokens, rope = (
            getattr(config, "max_position_embeddings", None),
            getattr(config, "rope_parameters", None) or {},
        )
        stretched = 1 if rope.get("rope_type") == "dynamic" else max(rope.get("factor") or 1, 1)
        if max_tokens is None or tokens <= max_tokens * stretched:
            return
        question = "".join(part for part in judge_input.parts if not isinstance(part, Picture))
        raise InputError(
            f"the question {short(question)} has {tokens} tokens, and this judge reads {max_tokens}.",
            "Shorten the prompt, show fewer or smaller frames, or choose a judge that reads more.",
        )

    def _token_count(self, pixels: Tensor) -> int:
        return len(pixels) * self.family.tokens(*pixels.shape[-2:])

    def _plan_row(self, sequence: Tokens, pictures: Sequence[Tensor]) -> Row:
        """What `plan` needs to know."""
        counts = [self._token_count(pictures[n]) for n in sequence.pictures]
        ids = np.array(sequence.ids)
        picture_ids = [-1 - n * 2**24 - np.arange(count) for n, count in zip(sequence.pictures, counts, strict=True)]
        known = np.concatenate(picture_ids) if picture_ids else ids[:0]
        places = np.flatnonzero(ids == self._image_token)[: len(known)]
        ids[places] = known[: len(places)]
        signature = tuple(ids.tolist())
        if not len(places):
            return Row(signature, 0, 0, sequence.response_length + 1)
        return Row(signature, int(places[-counts[-1]]), int(places[-1]) + 1, sequence.response_length + 1)

    def _forward(
        self,
        batch: Batch,
        sequences: Sequence[Tokens],
        pictures: Sequence[Tensor],
        encoded: Sequence[Encoded],
        known: dict[PrefixKey, KnownPrefix] | None = None,
    ) -> list[Tensor]:
        """The wanted states of a batch's rows, in order: first the groups' prefixes, then what each row has of its own.

        Rows are padded on the right: under causal attention no real token sees the padding, so a row's states do not
        depend on what else is in the batch.
        """
        shared = batch.groups[0].prefix > 0
        starts, prefix = [0] * len(sequences), Prefix()
        if self._any_process(shared) and not shared and self.lockstep is not None:
            self.lockstep.blank_text(self, with_graph=False)
        if shared:
            size = len(batch.groups[0].members)
            lengths = [group.prefix for group in batch.groups]
            prefix = self._read_prefixes(sequences[::size], lengths, pictures, encoded, known)
            prefix.complete = True
            starts = [group.prefix for group in batch.groups for _ in range(size)]
        spans = [(start, len(sequence.ids)) for start, sequence in zip(starts, sequences, strict=True)]
        with self._checkpoints(self._language_model.layers):
            wanted = [sequence.response_length + 1 for sequence in sequences]
            hidden = self._language_model_forward(sequences, spans, pictures, encoded, prefix, wanted)
        return [
            states[end - start - 1 - sequence.response_length : end - start]
            for states, (start, end), sequence in zip(hidden, spans, sequences, strict=True)
        ]

    def _read_prefixes(
        self,
        first_rows: Sequence[Tokens],
        lengths: Sequence[int],
        pictures: Sequence[Tensor],
        encoded: Sequence[Encoded],
        known: dict[PrefixKey, KnownPrefix] | None,
    ) -> Prefix:
        """The first tokens of one row of each group. What was read before is not read again; what is new is kept."""
        keys = [_prefix_key(row, length, pictures) for row, length in zip(first_rows, lengths, strict=True)]
        missing = [n for n, key in enumerate(keys) if known is None or key not in known]
        fresh = Prefix([lengths[n] for n in missing])
        if missing:
            spans = [(0, length) for length in fresh.lengths]
            self._language_model_forward([first_rows[n] for n in missing], spans, pictures, encoded, fresh)
        if known is None or self.prefix_store is None:
            return fresh
        shown = [tuple(pictures[number] for number in first_rows[n].pictures[:-1]) for n in missing]
        for n, prefix in zip(missing, split_prefix(fresh, shown), strict=True):
            known[keys[n]] = prefix
            self.prefix_store.keep(keys[n], prefix)
        return fresh if len(missing) == len(keys) else joined_prefixes([known[key] for key in keys], lengths)

    def _language_model_forward(
        self,
        sequences: Sequence[Tokens],
        spans: Sequence[tuple[int, int]],
        pictures: Sequence[Tensor],
        encoded: Sequence[Encoded],
        prefix: Prefix,
        wanted: Sequence[int] = (),
    ) -> Float[Tensor, "B L D"]:
        """Tokens start .. end of each sequence through the language model, picture tokens put in their places.

        wanted: how many of each sequence's last states are right; none by default, where only keys and values are.
        """
        ids, positions, tokens, deep = [], [], [], []
        for sequence, (start, end) in zip(sequences, spans, strict=True):
            own_pictures = [pictures[number] for number in sequence.pictures]
            ids.append(torch.tensor(sequence.ids[start:end]))
            positions.append(self.family.positions(sequence.ids, own_pictures)[:, start:end].T)
            places = [i for i, token in enumerate(sequence.ids) if token == self._image_token]
            first, last = (sum(i < bound for i in places) for bound in (start, end))
            own_encoded = [encoded[number] for number in sequence.pictures]
            if (count := sum(len(picture.tokens) for picture in own_encoded)) != len(places):
                raise InputError(
                    f"a question has places for {len(places)} picture tokens, its pictures give {count}.",
                    "Give each question the pictures that its instruction names.",
                )
            # Sliced before they are joined: a reference's stay out of the graph.
            for picture in _encoded_slice(own_encoded, first, last):
                tokens.append(picture.tokens)
                deep.append(picture.deep)
        input_ids = padded(ids)
        lengths = torch.tensor([end - start for start, end in spans])
        is_image = (input_ids == self._image_token) & (torch.arange(input_ids.shape[1]) < lengths[:, None])
        input_ids = input_ids.masked_fill(is_image, 0)  # the token may be beyond the vocabulary
        input_ids, position_ids = (on_device(x, self.device) for x in (input_ids, padded(positions)))
        embeds = self.model.get_input_embeddings()(input_ids)
        # A mask that is given is not made: the library's own would look for packed sequences, and the host wait for it.
        extra: dict[str, Any] = {"prefix": prefix, "attention_mask": embeds.new_zeros(1, 1, 1, 1)}
        if tokens:
            image_places = on_device(is_image.flatten().nonzero()[:, 0], self.device)
            flat = embeds.flatten(0, 1).index_copy(0, image_places, torch.cat(tokens).to(embeds.dtype))
            embeds = flat.view_as(embeds)
            if deep[0]:
                layers = [torch.cat(layer) for layer in zip(*deep, strict=True)]
                extra |= {"visual_pos_masks": on_device(is_image, self.device), "deepstack_visual_embeds": layers}
        axes = position_ids.permute(2, 0, 1)
        with self._last_states_only(input_ids.shape[1], lengths.tolist(), wanted):
            return self._language_model(
                inputs_embeds=embeds, position_ids=axes if len(axes) > 1 else axes[0], use_cache=False, **extra
            ).last_hidden_state

    def _last_states_only(self, length: int, lengths: Sequence[int], wanted: Sequence[int]) -> Any:
        """Within the block the last layer's MLP is left out where nobody reads what it adds.

        Not where its forward is compiled, done again on the way back, or made in step with other processes.
        """
        repeated = self.checkpointing and torch.is_grad_enabled()
        if repeated or self.is_compiled or self.fixed_budget or self.lockstep is not None:
            return nullcontext()
        ends = zip(lengths, wanted or [0] * len(lengths), strict=True)
        places = [row * length + at for row, (end, n) in enumerate(ends) for at in range(end - n, end)]
        return mlp_at(self._language_model.layers[-1], on_device(torch.tensor(places, dtype=torch.long), self.device))

    def _checkpoints(self, layers: nn.ModuleList) -> Any:
        return checkpointed(layers) if self.checkpointing and torch.is_grad_enabled() else nullcontext()

    def _use_less_memory(self, error: RuntimeError, min_tokens: int) -> None:
        """Halve the budget. Raises RewardError where it is down to one row already, or has to stay."""
        if self.fixed_budget:
            raise RewardError(
                f"memory ran out: {error}.", "Ask less at once (gradient_accumulation_steps), or use checkpointing."
            ) from error
        if self.max_batch_tokens <= min_tokens:
            raise _too_large(error, min_tokens) from error
        self.max_batch_tokens = max(min_tokens, self.max_batch_tokens // 2)
        if self.prefix_store is not None:
            self.prefix_store.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _prefix_key(sequence: Tokens, length: int, pictures: Sequence[Tensor]) -> PrefixKey:
    """Of the tokens before the sequence's last picture."""
    return PrefixKey(sequence.ids[:length], tuple(id(pictures[number]) for number in sequence.pictures[:-1]))


def _too_large(error: RuntimeError, tokens: int) -> RewardError:
    return RewardError(
        f"memory ran out on a single question of {tokens} tokens: {error}.",
        "Use a smaller judge or pictures, checkpointing for gradients, or half precision.",
    )
