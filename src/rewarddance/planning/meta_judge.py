"""A judge without weights: the real class on torch's meta device, for `rewarddance plan`.

It is asked and trained by the code of a judge with weights (within `planning.counting.counting`), so what is counted
is what a judge of that size would take.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast

from rewarddance.errors import InputError
from rewarddance.planning.counting import Counting, counting
from rewarddance.reward.clip import untrained_kind
from rewarddance.reward.families.family import Encoded
from rewarddance.reward.families.internvl import check_format
from rewarddance.reward.families.processor_files import image_config
from rewarddance.reward.families.registry import FAMILIES
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.judge import CONFIG_FILE, NO, YES, Judge, RewardConfig
from rewarddance.reward.pointwise import PointwiseReward
from rewarddance.reward.prefill import JudgeInput, Tokens
from rewarddance.reward.prefix_cache import Prefix, Sharing
from rewarddance.reward.regressive import RegressiveReward
from rewarddance.reward.remote.addresses import is_address
from rewarddance.reward.vlm_judge import ATTENTION, VisionLanguageModel
from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.runtime.config import parse_recipe
from rewarddance.types import Preference

KINDS: dict[str, Any] = {"pairwise": PairwiseReward, "pointwise": PointwiseReward, "regressive": RegressiveReward}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_ARCHITECTURES = Path(__file__).parent / "architectures.yaml"
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the tokenizers of all families split text into words before they look for tokens."""


class Sources(NamedTuple):
    """Where the facts about a judge without weights come from, in words."""

    architecture: str
    tokenizer: str
    pictures: str


class MetaModel(VisionLanguageModel):
    """A `VisionLanguageModel` of which only shapes are known.

    lengths: tokens of each sequence that it read. counting_only: sequences are counted and not read. counts: what
    counts it, if forwards of one shape without a gradient are to be run once.

    Raises InputError for a name that is neither a folder with config.json nor in the table, and for a family that has
    no code of its own here.
    """

    def __init__(
        self, name: str, dtype: torch.dtype, max_pixels: int | None = None, checkpointing: bool = False
    ) -> None:
        config, self.folder, architecture = read_architecture(name)
        kind = config.model_type
        if kind not in FAMILIES:
            raise InputError(
                f"the judge {name!r} is of the family {kind}, whose questions cannot be planned without its weights.",
                f"Plan one of {', '.join(FAMILIES)}.",
            )
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        self.model, self.max_batch_tokens, self.checkpointing = model.eval(), 16_384, checkpointing
        self.tokenizer, tokenizer = _tokenizer(self.folder, config)
        pictures, picture_source = _picture_config(self.folder, kind)
        self.family = FAMILIES[kind](self.model, self.tokenizer, pictures, max_pixels)
        self._ids = functools.lru_cache(maxsize=65_536)(self._tokenise)
        self._language_model.config._attn_implementation = ATTENTION
        self.is_checking = False
        self.sources = Sources(architecture, tokenizer, picture_source)
        self.lengths, self.counting_only = list[int](), False
        self.counts: Counting | None = None
        self._kept_shapes: dict[Any, dict[int, torch.Size]] = {}

    @property
    def device(self) -> torch.device:
        """The device of integers, which have real values."""
        return torch.device("cpu")

    def response_states(self, judge_inputs: Sequence[JudgeInput], sharing: Sharing | None = None) -> list[Tensor]:
        if not self.counting_only:
            return super().response_states(judge_inputs, sharing)
        width = self.model.get_output_embeddings().weight.shape[1]
        sequences = [
            self._sequence(judge_input, tuple(range(len(judge_input.pictures)))) for judge_input in judge_inputs
        ]
        return [torch.empty(tokens.response_length + 1, width, device="meta") for tokens in sequences]

    def _language_model_forward(
        self,
        sequences: Sequence[Tokens],
        spans: Sequence[tuple[int, int]],
        pictures: Sequence[Tensor],
        encoded: Sequence[Encoded],
        prefix: Prefix,
        wanted: Sequence[int] = (),
    ) -> Tensor:
        def read() -> Tensor:
            forward = VisionLanguageModel._language_model_forward
            return forward(self, sequences, spans, pictures, encoded, prefix, wanted)

        if self.counts is None or torch.is_grad_enabled():
            return read()
        ids = [sequence.ids[start:end] for sequence, (start, end) in zip(sequences, spans, strict=True)]
        image_tokens = sum(row.count(self._image_token) for row in ids)
        key = len(ids), max(map(len, ids)), prefix.lengths, prefix.complete, image_tokens, sum(wanted)
        hidden = self.counts.repeated(("text", id(self), *key), read)
        if prefix.lengths and not prefix.complete:  # it leaves keys and values behind
            shapes = self._kept_shapes.setdefault(key, {n: layer[0].shape for n, layer in prefix.layers.items()})
            for number, shape in shapes.items():
                if number not in prefix.layers:
                    prefix.keep(number, *(torch.empty(shape, dtype=hidden.dtype, device="meta") for _ in range(2)))
        return hidden

    def _sequence(self, judge_input: JudgeInput, numbers: tuple[int, ...]) -> Tokens:
        tokens = super()._sequence(judge_input, numbers)
        self.lengths.append(len(tokens.ids))
        return tokens


def meta_reward(name: str, config: RewardConfig | None, dtype: torch.dtype) -> Judge:
    """A judge on the meta device. config: None takes that of the trained reward in the folder `name`, else defaults."""
    if is_address(name):
        raise InputError(f"the judge at {name} takes its own memory.", "Plan with the judge's folder, or without it.")
    config = config or saved_config(name)
    if config.kind not in KINDS:
        raise InputError(
            f"a plan is made of judges that read questions, and {name!r} is of kind {config.kind}.",
            "Such a reward is small: it fits wherever its pictures do.",
        )
    vlm = MetaModel(name, dtype, config.max_pixels, config.checkpointing)
    reward = KINDS[config.kind](vlm, config)
    reward.model.to("meta")  # a regressive head is made on `device`
    return reward


def tokens_of(reward: Judge, pair: Preference) -> tuple[int, int]:
    """How many tokens the language model reads in all questions of a pair in training, and how many picture tokens the
    vision tower makes, each picture once."""
    vlm: MetaModel = reward.vlm  # type: ignore[attr-defined]
    vlm.lengths.clear()
    vlm.counting_only = True
    try:
        with counting():
            reward.loss([pair])
    finally:
        vlm.counting_only = False
    pictures = [pixels for pixels in (pair.first, pair.second, pair.prompt.image) if pixels is not None]
    return sum(vlm.lengths), sum(len(pixels) * vlm.family.tokens(*pixels.shape[-2:]) for pixels in pictures)


def read_architecture(name: str) -> tuple[Any, Path, str]:
    """The config of a folder or of the table, its folder (which for the table need not exist), and its source in words.

    A folder that is not here is looked up by its own name, with or without `-hf`: models/InternVL3-38B-hf is
    OpenGVLab/InternVL3-38B-hf.

    Raises InputError for a name that is neither, and naming a config.json that cannot be read.
    """
    for folder in (Path(name), BUNDLED / name):
        if (folder / "config.json").is_file():
            check_format(folder, name)
            try:
                return AutoConfig.from_pretrained(folder), folder, f"{folder / 'config.json'}"
            except (OSError, ValueError, KeyError) as error:
                raise InputError(
                    f"{folder / 'config.json'} cannot be read: {error}.", "Restore it from the model's page."
                ) from error
    table = _table()["judges"]
    own_name = Path(name).name.removesuffix("-hf")
    same_name = (key for key in table if Path(key).name.removesuffix("-hf") == own_name)
    known = name if name in table else next(same_name, None)
    if known is None:
        raise InputError(
            f"the architecture of {name!r} is not known here.",
            "Give a folder with its config.json (no weights are needed), also in place of a function or a server; or "
            f"one of {', '.join(table)}.",
        )
    config = dict(table[known])
    kind = config.pop("model_type")
    family = _table()["families"][kind]["config"]
    text = {"text_config": {**family["text_config"], **config["text_config"]}}
    return (
        AutoConfig.for_model(kind, **{**family, **config, **text}),
        Path(name),
        f"the table of public judges: {known}",
    )


@functools.cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(_ARCHITECTURES.read_text(encoding="utf-8"))


def saved_config(name: str) -> RewardConfig:
    for path in (Path(name) / CONFIG_FILE, BUNDLED / name / CONFIG_FILE):
        if path.is_file():
            try:
                return parse_recipe(RewardConfig, dict(json.loads(path.read_text(encoding="utf-8"))), str(path))
            except (TypeError, ValueError) as error:
                raise InputError(f"{path} is no JSON object: {error}.", "Restore it or train again.") from error
    folder = next((place for place in (Path(name), BUNDLED / name) if place.is_dir()), Path(name))
    return RewardConfig(kind=untrained_kind(folder))


def _picture_config(folder: Path, kind: str) -> tuple[dict[str, Any], str]:
    try:
        return image_config(folder), f"{folder}"
    except OSError:
        return _table()["families"][kind]["pictures"], f"the defaults of {kind}"


def _tokenizer(folder: Path, config: Any) -> tuple[Any, str]:
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(folder), f"{folder}"
    return stand_in_tokenizer(config), "a stand-in: one token for each word, digit and run of signs"


def stand_in_tokenizer(config: Any) -> Any:
    """Splits text as the families' tokenizers do and makes each piece one token, as nearly all English words are."""
    picture, start, end, text = _table()["families"][config.model_type]["tokens"]
    words = ["<unk>", "<|im_start|>", "<|im_end|>", start, end, *YES, *NO]
    vocabulary = {word: number for number, word in enumerate(words)} | {picture: config.image_token_id}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", picture, start, end])
    names: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    if config.model_type == "internvl":
        names |= {"context_image_token": picture, "start_image_token": start, "end_image_token": end}
    stand_in = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    stand_in.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ picture }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ).replace("{{ picture }}", f"{{{{ {text!r} }}}}")
    return stand_in
