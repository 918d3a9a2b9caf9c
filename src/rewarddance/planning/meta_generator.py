"""A generator without weights: its pipeline's real classes on torch's meta device, for `rewarddance plan`.

The adapter of its family drives it (within `planning.counting.counting`), so what is counted is what a generator of
that size would take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar

from rewarddance.errors import InputError, first_line
from rewarddance.generators.adapter import GeneratorOptions, PipelineGenerator
from rewarddance.generators.pipelines import adapter_of
from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.runtime.config import parse_recipe

_LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def meta_generator(
    name: str,
    num_inference_steps: int,
    dtype: torch.dtype = torch.float32,
    pipeline: str | None = None,
    **options: Any,
) -> PipelineGenerator:
    """A diffusers folder's pipeline from its configs, tokenizers and scheduler alone; weights may be missing.

    pipeline: as in `load_generator`. options: the other fields of `GeneratorOptions`. Raises InputError where there is
    no such folder, where one of its configs is missing, and as `load_generator` does.
    """
    options = {"num_inference_steps": num_inference_steps, **options}
    parsed = parse_recipe(GeneratorOptions, options, "the options of the generator")
    folders = [path for path in (Path(name), BUNDLED / name) if (path / "model_index.json").is_file()]
    if not folders:
        raise InputError(
            f"the architecture of the generator {name!r} is not known here.",
            "Give a diffusers folder; its configs, tokenizers and scheduler are enough: hf download NAME --include "
            "'*.json' '*.txt' '*.model' --local-dir FOLDER.",
        )
    folder = folders[0]
    disable_progress_bar()
    adapter = adapter_of(name, folder, pipeline)
    kind: Any = getattr(diffusers, pipeline) if pipeline else DiffusionPipeline
    try:
        parts = {part: _component(folder / part, *kind, dtype) for part, kind in _components(folder).items()}
        whole = kind.from_pretrained(folder, **parts)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"the generator {name!r} cannot be planned: {first_line(error)}.",
            "Its folder needs the config of every part, and its tokenizers' and scheduler's files.",
        ) from error
    device = property(lambda self: torch.device("cpu"), doc="The device of integers and schedules, which are real.")
    return type(adapter.__name__, (adapter,), {"device": device})(whole, parsed)


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
        return model_class.from_config(model_class.load_config(folder)).to(dtype).eval()
