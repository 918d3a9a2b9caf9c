"""A generator without weights: its pipeline's real classes on torch's meta device, for `rewarddance plan`.

The adapter of its family drives it (within `planning.counting.counting`), so what is counted is what a generator of
that size would take.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rewarddance.errors import InputError, first_line
from rewarddance.generators.adapter import GeneratorOptions, PipelineGenerator
from rewarddance.generators.families.qwen_image_edit import PictureProcessor
from rewarddance.generators.pipelines import adapter_class, adapter_of
from rewarddance.planning.meta_judge import PIECES
from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.runtime.config import parse_recipe

_GENERATORS = Path(__file__).parent / "generators.yaml"
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def meta_generator(
    name: str,
    num_inference_steps: int,
    dtype: torch.dtype = torch.float32,
    pipeline: str | None = None,
    **options: Any,
) -> PipelineGenerator:
    """The pipeline of a diffusers folder, from its configs, tokenizers and scheduler alone, or of a public generator.

    name: weights may be missing in the folder; a public generator (`known_generators`) needs none. pipeline: as in
    `load_generator`. options: the other fields of `GeneratorOptions`. Raises InputError for a name that is neither,
    where one of the folder's configs is missing, and as `load_generator` does.
    """
    options = {"num_inference_steps": num_inference_steps, **options, "compile": False}  # nothing is run
    parsed = parse_recipe(GeneratorOptions, options, "the options of the generator")
    folders = [path for path in (Path(name), BUNDLED / name) if (path / "model_index.json").is_file()]
    if not folders and name in known_generators():
        whole = _from_table(name, pipeline, dtype)
        adapter = adapter_class(name, type(whole).__name__, pipeline)
    elif folders:
        disable_progress_bar()
        adapter = adapter_of(name, folders[0], pipeline)
        whole = _from_folder(name, folders[0], pipeline, dtype, adapter.own_parts)
    else:
        raise InputError(
            f"the architecture of the generator {name!r} is not known here.",
            f"Give one of {', '.join(known_generators())}, or a diffusers folder; its configs, tokenizers and "
            "scheduler are enough: hf download NAME --include '*.json' '*.txt' '*.model' --local-dir FOLDER.",
        )
    device = property(lambda self: torch.device("cpu"), doc="The device of integers and schedules, which are real.")
    return type(adapter.__name__, (adapter,), {"device": device})(whole, parsed)


def known_generators() -> list[str]:
    """The public generators whose architecture is known without their folder, by their hub name."""
    return list(_table())


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(_GENERATORS.read_text(encoding="utf-8"))["generators"]


def _from_table(name: str, pipeline: str | None, dtype: torch.dtype) -> Any:
    """The pipeline of a public generator, with networks on the meta device and stand-ins for its tokenizers."""
    entry = dict(_table()[name])
    kind: Any = getattr(diffusers, pipeline or entry.pop("pipeline"))
    entry.pop("pipeline", None)
    parts: dict[str, Any] = entry.pop("settings", {})
    for part, facts in entry.items():
        parts[part] = _known_part(part, dict(facts), dtype)
    return kind(**parts)


def _known_part(part: str, facts: dict[str, Any], dtype: torch.dtype) -> Any:
    """A network, a scheduler, a tokenizer or an image processor from the table's facts."""
    if "tokens" in facts:
        return _stand_in_tokenizer(facts["tokens"], facts.get("chat", False))
    if "side" in facts:
        side = facts["side"]
        return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    if "picture_token" in facts:
        return _stand_in_processor(facts["picture_token"])
    model_class: Any = getattr(diffusers, facts["class"], None) or getattr(transformers, facts["class"])
    settings = {key: value for key, value in facts.items() if key != "class"}
    if part == "scheduler":
        return model_class(**settings)
    of_transformers = issubclass(model_class, transformers.PreTrainedModel)
    with torch.device("meta"):
        if of_transformers:
            config: Any = getattr(model_class, "config_class")(**settings)  # noqa: B009 (its stub may be None)
            return model_class._from_config(config, dtype=dtype).eval()
        return _cast(model_class(**settings), dtype)


def _stand_in_processor(token: int) -> Any:
    """A processor of Qwen2.5-VL's pictures, whose places in a text are this token, in front of a stand-in tokenizer."""
    tokenizer = _stand_in_tokenizer(131072, True, {"<|image_pad|>": token, "<|video_pad|>": token + 1})
    return PictureProcessor(Qwen2VLImageProcessorPil(), tokenizer)


def _stand_in_tokenizer(length: int, chat: bool, further: dict[str, int] | None = None) -> Any:
    """One token for each word, digit and run of signs, as nearly all English words have; the last one ends a text.

    further: tokens that are known by themselves, with their numbers.
    """
    vocab = {"<unk>": 0, "<end>": 1, **(further or {})}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(further or ()))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    stand_in = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>", model_max_length=length
    )
    if chat:
        stand_in.chat_template = _CHAT
    return stand_in


def _from_folder(
    name: str,
    folder: Path,
    pipeline: str | None,
    dtype: torch.dtype,
    own_parts: Callable[[Path], dict[str, Any]],
) -> Any:
    """The pipeline of a diffusers folder. own_parts: what its family loads itself.

    Raises InputError where a config is missing or cannot be read.
    """
    kind: Any = getattr(diffusers, pipeline) if pipeline else DiffusionPipeline
    try:
        parts = {part: _component(folder / part, *kind, dtype) for part, kind in _components(folder).items()}
        return kind.from_pretrained(folder, **parts, **own_parts(folder))
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"the generator {name!r} cannot be planned: {first_line(error)}.",
            "Its folder needs the config of every part, and its tokenizers' and scheduler's files.",
        ) from error


def _components(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of the parts that have weights."""
    config: Any = DiffusionPipeline.load_config(folder)
    return {
        part: (kind[0], kind[1])
        for part, kind in config.items()
        if isinstance(kind, list | tuple) and len(kind) == 2 and _has_weights(part, *kind)
    }


def _has_weights(part: str, library: str | None, kind: str | None) -> bool:
    model_class = _class(library or "", kind or "")
    return part == "safety_checker" or (isinstance(model_class, type) and issubclass(model_class, torch.nn.Module))


def _class(library: str, kind: str) -> Any:
    return getattr(_LIBRARIES.get(library), kind, None)


def _component(folder: Path, library: str, kind: str, dtype: torch.dtype) -> Any:
    """One part on the meta device; None for a safety checker, which no adapter uses."""
    if folder.name == "safety_checker":
        return None
    model_class = _class(library, kind)
    with torch.device("meta"):
        if library == "transformers":
            return model_class._from_config(model_class.config_class.from_pretrained(folder), dtype=dtype).eval()
        return _cast(model_class.from_config(model_class.load_config(folder)), dtype)


def _cast(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A network of diffusers in a precision, but for what its class keeps in float32 when it loads weights."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    torch.nn.Module.to(network, dtype)  # the class's own would warn that it casts what it would keep
    for name, module in network.named_modules():
        if kept.intersection(name.split(".")):
            torch.nn.Module.to(module, torch.float32)
    return network.eval()
