"""A vision-language model of transformers as a judge reads with it: how it is loaded, its words, and its head.

Of families that have code of their own here only tokenizer and image-processor config are read: the libraries'
processors go through uint8 or need torchvision. Any other family is read through its own processor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rewarddance.errors import InputError, first_line
from rewarddance.reward.families.any import AnyFamily, drawn
from rewarddance.reward.families.family import Family, Parts, Sizes
from rewarddance.reward.families.internvl import check_format
from rewarddance.reward.families.processor_files import chat_template_file, copy_processor, has_processor, image_config
from rewarddance.reward.families.registry import FAMILIES
from rewarddance.reward.instructions import Picture
from rewarddance.reward.prefill import JudgeInput, Prefill, Tokens, parts_of
from rewarddance.reward.prefix_cache import Prefix
from rewarddance.runtime.checkpoint import find_checkpoint, let_others_read
from rewarddance.runtime.compilation import compile_layers
from rewarddance.runtime.devices import on_device
from rewarddance.runtime.quantised import BasePrecision, quantise
from rewarddance.runtime.weights import ADAPTER_CONFIG, LOAD_ERRORS, adapter_base, library_warnings, load_module
from rewarddance.types import Pixels

_REMEDY = (
    "Give a save_pretrained folder with weights, tokenizer and its processor's files. "
    "A dual encoder such as CLIP is of kind clip."
)
ATTENTION, COMPILED = "rewarddance_prefix", "rewarddance_prefix_compiled"
"""Names of our attention; by the second one it stays outside of what is compiled."""


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Ordinary attention, except where a `prefix` is handed down: it is filled first, and attended to afterwards.

    Rows that come with a prefix are padded on the right only, so that causal attention needs no mask beside.
    """
    prefix: Prefix | None = kwargs.pop("prefix", None)
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if prefix.complete:
        return prefix.attend(module.layer_idx, query, key, value, kwargs["scaling"]), None
    prefix.keep(module.layer_idx, key, value)
    kwargs["is_causal"] = True
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


for _name, _function in ((ATTENTION, _attend), (COMPILED, torch.compiler.disable(_attend))):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)

_UNREADABLE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What models raise that were not made for what they are given."""


class VisionLanguageModel(Prefill):
    """Model, tokenizer and preprocessing of one checkpoint.

    is_checking: questions are made and measured, and not read: every answer is 0.

    max_pixels: of a frame after resizing, for families that keep a picture's shape. max_batch_tokens, checkpointing:
    see `Prefill`. base_precision: see `quantise`. compile_text: see `RewardOptions.compile`. Of a LoRA's folder without
    a processor's files those of its base are read. Raises InputError where the folder is no checkpoint, or of a model
    that cannot be asked.
    """

    def __init__(
        self,
        name: str,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        max_pixels: int | None = None,
        *,
        max_batch_tokens: int = 16_384,
        checkpointing: bool = False,
        base_precision: BasePrecision = "none",
        compile_text: bool = False,
    ) -> None:
        self.folder, self.is_checking = find_checkpoint(name), False
        self.max_batch_tokens, self.checkpointing = max_batch_tokens, checkpointing
        check_format(self.folder, name)
        model = load_module(AutoModelForImageTextToText, self.folder, f"the judge {name!r}", _REMEDY, dtype=dtype)
        self.base_precision = base_precision
        self.model: Any = quantise(model.eval(), base_precision, dtype).to(device)
        self._processor_folder = self.folder
        if (self.folder / ADAPTER_CONFIG).is_file() and not has_processor(self.folder):
            self._processor_folder = adapter_base(self.folder, f"the judge {name!r}", _REMEDY)
        try:
            with library_warnings(f"the judge {name!r}"):
                self.family = self._family(name, max_pixels)
        except LOAD_ERRORS as error:
            raise InputError(f"the judge {name!r} cannot be loaded: {first_line(error)}.", _REMEDY) from error
        self.tokenizer = self.family.tokenizer
        self.family.chat.check_kept(self.folder)
        _keep_rotary_factors(self._language_model)
        self._ids = functools.lru_cache(maxsize=1024)(self._tokenise)
        if isinstance(self.family, AnyFamily):
            self._check_prefill(name, self.family)
        elif not _looks_back_over_all(self._language_model.config):
            self.family.caches_prefix = False
        if self.family.caches_prefix:
            self._language_model.config._attn_implementation = COMPILED if compile_text else ATTENTION
        if compile_text:
            compile_layers(self._language_model.layers)
            self.is_compiled = True

    def _family(self, name: str, max_pixels: int | None) -> Family:
        kind = self.model.config.model_type
        if kind in FAMILIES:
            tokenizer = AutoTokenizer.from_pretrained(self._processor_folder)
            tokenizer.chat_template = tokenizer.chat_template or chat_template_file(self._processor_folder)
            return FAMILIES[kind](self.model, tokenizer, image_config(self._processor_folder), max_pixels)
        if max_pixels is not None:
            raise InputError(f"the judge {name!r} prepares pictures in its own way.", "Leave max_pixels out.")
        if self.model.config.is_encoder_decoder or not hasattr(self.model, "model"):
            raise InputError(
                f"the judge {name!r} (family {kind}) does not answer a conversation token by token.",
                "Choose a model that chats about pictures, such as InternVL, Qwen3-VL or LLaVA.",
            )
        try:
            processor = AutoProcessor.from_pretrained(self._processor_folder)
            reason = "" if hasattr(processor, "image_processor") else "it has none of pictures"
        except (ImportError, OSError, TypeError, ValueError) as error:
            reason = first_line(error)
        if reason:
            raise InputError(
                f"the processor of the judge {name!r} (family {kind}) cannot be loaded: {reason}.",
                "Add processor_config.json or preprocessor_config.json and the tokenizer's files to its folder. "
                "Families that take videos, too, need torchvision of the same build as torch.",
            )
        return AnyFamily(self.model, processor)

    @torch.no_grad()
    def _check_prefill(self, name: str, family: AnyFamily) -> None:
        """Ask the same two questions by the model's own forward and with their beginning shared; share if it is right.

        Raises InputError where the model cannot read two pictures in a question, or where its logits do not follow from
        its last state.
        """
        reference, *candidates = (drawn(48, 64, seed) for seed in range(3))
        parts = ("Reference:", Picture("reference"), "Candidate:", Picture("candidate"), "Answer yes or no.")
        judge_inputs = [JudgeInput(parts, (reference, candidate)) for candidate in candidates]
        family.caches_prefix = False
        try:
            unshared = torch.cat(self.response_states(judge_inputs))
            model_inputs = family.model_inputs(parts_of(judge_inputs[0]), judge_inputs[0].pictures, ())
            logits = self.model(**model_inputs).logits[0, -1]
        except _UNREADABLE as error:
            raise InputError(
                f"the judge {name!r} cannot read a question about two pictures: {error}.",
                "Choose a model that chats about several pictures, such as InternVL, Qwen3-VL or LLaVA.",
            ) from error
        distances = []
        for family.scales in (False, True):  # some models leave out what their text model's config says of logits
            distances.append(_distance(self.head(unshared[0]), logits))
        family.scales = distances[1] < distances[0]
        if min(distances) > self._tolerance:
            raise InputError(
                f"the logits of the judge {name!r} do not follow from its last state.",
                "Choose a model of another family.",
            )
        config = self._language_model.config
        own_attention = config._attn_implementation
        if not _looks_back_over_all(config):
            return
        try:
            family.caches_prefix, config._attn_implementation = True, ATTENTION
            shared = torch.cat(self.response_states(judge_inputs, sharing="before"))
            family.caches_prefix = _distance(shared, unshared) < self._tolerance
        except (InputError, *_UNREADABLE):
            family.caches_prefix = False
        if not family.caches_prefix:
            config._attn_implementation = own_attention

    @property
    def _tolerance(self) -> float:
        exact = self.model.dtype == torch.float32 and self.base_precision == "none"
        return 1e-4 if exact else 0.05

    def preprocess(self, pixels: Pixels) -> Float[Tensor, "T C h w"]:
        """Resize (antialiased) and normalise as the family's own image processor does, differentiably."""
        return self.family.preprocess(pixels)

    # -- words ---------------------------------------------------------------------------------------------------------

    def _sequence(self, judge_input: JudgeInput, numbers: tuple[int, ...]) -> Tokens:
        sizes = tuple((len(p), p.shape[-2], p.shape[-1]) for p in judge_input.pictures)
        prefix_tokens = self.response_prefix_tokens(judge_input.response_prefix)
        ids = (*self._ids(parts_of(judge_input), sizes), *prefix_tokens)
        self._check_length(judge_input, len(ids))
        return Tokens(ids, numbers, len(prefix_tokens))

    def lengths_of(self, judge_inputs: Sequence[JudgeInput]) -> list[int]:
        """Tokens of each question, with what begins its answer."""
        return [len(self._sequence(judge_input, ()).ids) for judge_input in judge_inputs]

    def last_states(self, judge_inputs: Sequence[JudgeInput]) -> Float[Tensor, "B D"]:
        if not self.is_checking:
            return super().last_states(judge_inputs)
        for judge_input in judge_inputs:
            self._sequence(judge_input, ())
        return torch.zeros(len(judge_inputs), self.model.get_output_embeddings().weight.shape[1], device=self.device)

    def _tokenise(self, parts: Parts, sizes: Sizes) -> tuple[int, ...]:
        return tuple(self.family.ids(parts, sizes))

    def answer_tokens(self, words: Sequence[str]) -> list[int]:
        """Ids of the spellings that are one token. Raises InputError where none is: such a model cannot answer."""
        ids = {tuple(self.tokenizer(word, add_special_tokens=False).input_ids) for word in words}
        # Where a tokenizer has a token for all that it does not know, it would stand for yes and for no alike.
        single = sorted(only[0] for only in ids if len(only) == 1 and only[0] != self.tokenizer.unk_token_id)
        if not single:
            raise InputError(
                f"the tokenizer of {self.folder} has no single token for any of {', '.join(map(repr, words))}.",
                "Choose a model whose tokenizer can answer in one token.",
            )
        return single

    def response_prefix_tokens(self, text: str) -> list[int]:
        """The tokens of a response's beginning."""
        return self.tokenizer(text, add_special_tokens=False).input_ids if text else []

    # -- answers -------------------------------------------------------------------------------------------------------

    def head(self, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
        """Logits of all tokens, float32, in the graph."""
        return self._logits(hidden, slice(None))

    def margin(
        self, hidden: Float[Tensor, "B D"], yes: Sequence[int], no: Sequence[int], among: str = "answers"
    ) -> Float[Tensor, " B"]:
        """log of yes odds minus log of no odds, float32: in half precision most margins would tie. In the graph.

        among: "answers", or "vocabulary": the odds of yes are then against all other tokens, not against no alone.
        """
        if self.is_checking:  # the head may be in pieces over several processes
            return hidden.new_zeros(len(hidden))
        if among == "vocabulary":
            all_logits = self.head(hidden)
            others = all_logits.index_fill(-1, on_device(torch.tensor([*yes]), self.device), -torch.inf)
            return all_logits[:, list(yes)].logsumexp(-1) - others.logsumexp(-1)
        logits = self._logits(hidden, on_device(torch.tensor([*yes, *no]), self.device))
        return logits[:, : len(yes)].logsumexp(-1) - logits[:, len(yes) :].logsumexp(-1)

    def _logits(self, hidden: Float[Tensor, "... D"], rows: Tensor | slice) -> Float[Tensor, "... V"]:
        head = self.model.get_output_embeddings()
        logits = hidden.float() @ head.weight[rows].float().T
        if getattr(head, "bias", None) is not None:
            logits = logits + head.bias[rows].float()
        return self.family.scaled(logits)

    @torch.no_grad()
    def write(
        self, judge_inputs: Sequence[JudgeInput], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """How each answer goes on, as text, by transformers' own generate; greedy at temperature 0, else seeded.

        Of the whole distribution, whatever else the checkpoint's generation_config.json says than which tokens end a
        text: with its top_k of 1 all samples would be one.
        """
        if self.is_checking:
            for judge_input in judge_inputs:
                self._sequence(judge_input, ())
            return ["" for _ in judge_inputs]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        sampling: dict[str, Any] = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": pad}
        if temperature:
            sampling |= {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        one_at_a_time = self.family.one_at_a_time
        batches = [[judge_input] for judge_input in judge_inputs] if one_at_a_time else [judge_inputs]
        texts: list[str] = []
        with torch.random.fork_rng(), self._plain_generation():
            torch.manual_seed(seed)
            for batch in batches:
                inputs = self._generation_inputs(batch, pad)
                output_ids = self.model.generate(**inputs, **sampling)
                written = output_ids[:, inputs["input_ids"].shape[1] :]
                texts += [text.strip() for text in self.tokenizer.batch_decode(written, skip_special_tokens=True)]
        return texts

    @contextmanager
    def _plain_generation(self) -> Iterator[None]:
        """Within the block of the checkpoint's generation_config.json the tokens alone stand, which begin and end."""
        model: Any = self.model
        own = model.generation_config
        tokens = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
        model.generation_config = type(own)(**{name: getattr(own, name, None) for name in tokens})
        try:
            yield
        finally:
            model.generation_config = own

    def _generation_inputs(self, judge_inputs: Sequence[JudgeInput], pad: int) -> dict[str, Tensor]:
        """What `generate` takes for questions and how their answers begin, padded on the left."""
        if self.family.one_at_a_time:
            (judge_input,) = judge_inputs
            prefix_tokens = self.response_prefix_tokens(judge_input.response_prefix)
            return self.family.model_inputs(parts_of(judge_input), judge_input.pictures, prefix_tokens)
        sequences = [
            self._sequence(judge_input, tuple(range(len(judge_input.pictures)))) for judge_input in judge_inputs
        ]
        longest = max(len(sequence.ids) for sequence in sequences)
        ids = torch.tensor(
            [[pad] * (longest - len(sequence.ids)) + [*sequence.ids] for sequence in sequences], device=self.device
        )
        mask = torch.tensor([[0] * (longest - len(sequence.ids)) + [1] * len(sequence.ids) for sequence in sequences])
        inputs = {"input_ids": ids, "attention_mask": mask.to(self.device)}
        pictures = [pixels for judge_input in judge_inputs for pixels in judge_input.pictures]
        inputs |= self.family.picture_inputs(pictures) if pictures else {}
        if "image_grid_thw" in inputs:
            inputs["mm_token_type_ids"] = (ids == self._image_token).int()
        return inputs

    def save(self, folder: Path) -> None:
        """Write a plain save_pretrained folder: weights, tokenizer, and the processor's files.

        The image processor's config says what others need to see the same pixels (`Family.image_settings`). Of a
        quantised base the folder must hold the LoRA on it already, and no weights are written.
        """
        if self.base_precision == "none":
            self.model.save_pretrained(folder)
        elif not (folder / ADAPTER_CONFIG).is_file():
            raise InputError(
                f"a judge in {self.base_precision} is not saved: its weights are rounded.",
                "Load it with base_precision none.",
            )
        self.family.chat.keep(folder)
        settings = self.family.image_settings()
        if isinstance(self.family, AnyFamily):
            for name, value in settings.items():
                setattr(self.family.processor.image_processor, name, value)
            self.family.processor.save_pretrained(folder)
        else:
            self.tokenizer.save_pretrained(folder)
            copy_processor(self._processor_folder, folder, settings)
        let_others_read(folder.glob("model*.safetensors"))


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Length of the difference by the length of theirs."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def _keep_rotary_factors(decoder: Any) -> None:
    """Dynamic rotary factors stay as they were learned; `_check_length` refuses what would stretch them.

    Transformers stretches them to a batch's longest row, which changes the answers of the others, and the host waits
    for that length in every forward.
    """
    rotary: Any = getattr(decoder, "rotary_emb", None)
    if getattr(rotary, "rope_type", None) == "dynamic":
        rotary.rope_type = "default"


def _looks_back_over_all(config: Any) -> bool:
    """Does the language model attend to all that came before, and in the usual way, by its config?"""
    kinds = getattr(config, "layer_types", None)
    windowed = getattr(config, "sliding_window", None) if kinds is None else set(kinds) != {"full_attention"}
    otherwise = any(getattr(config, name, None) for name in ("attention_chunk_size", "attn_logit_softcapping"))
    return not (windowed or otherwise)
