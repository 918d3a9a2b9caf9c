"""A generator without weights: its pipeline's real classes on torch's meta device, for `rewarddance plan`.

The adapter that would drive the pipeline drives this one (within `runtime.counting.counting`), so what is counted of
it is what a generator of that size would do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar

from rewarddance.errors import InputError
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
    given = {"num_inference_steps": num_inference_steps, **options}
    parsed = parse_recipe(GeneratorOptions, given, "the options of the generator")
    folder = next((one for one in (Path(name), BUNDLED / name) if (one / "model_index.json").is_file()), None)
    if folder is None:
        raise InputError(
            f"the architecture of the generator {name!r} is not known here.",
            "Give a diffusers folder; its configs, tokenizers and scheduler are enough: hf download NAME --include "
            "'*.json' '*.txt' '*.model' --local-dir FOLDER.",
        )
    disable_progress_bar()
    adapter = adapter_of(name, folder, pipeline)
    kind: Any = getattr(diffusers, pipeline) if pipeline else DiffusionPipeline
    try:
        parts = {part: _component(folder / part, *kind, dtype) for part, kind in _components(folder).items()}
        whole = kind.from_pretrained(folder, **parts)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"the generator {name!r} cannot be sketched: {str(error).splitlines()[0]}.",
            "Its folder needs the config of every part, and its tokenizers' and scheduler's files.",
        ) from error
    here = property(lambda self: torch.device("cpu"), doc="Of whole numbers and schedules, which are real.")
    return type(adapter.__name__, (adapter,), {"device": here})(whole, parsed)


def _components(folder: Path) -> dict[str, tuple[str, str]]:
    """Library and class of the parts that have weights."""
    config: Any = DiffusionPipeline.load_config(folder)
    return {
        part: (kind[0], kind[1])
        for part, kind in config.items()
        if isinstance(kind, list | tuple) and len(kind) == 2 and _has_weights(part, *kind)
    }


def _has_weights(part: str, library: str | None, kind: str | None) -> bool:
    found = _class(library or "", kind or "")
    return part == "safety_checker" or (isinstance(found, type) and issubclass(found, torch.nn.Module))


def _class(library: str, kind: str) -> Any:
    return getattr(_LIBRARIES.get(library), kind, None)


def _component(folder: Path, library: str, kind: str, dtype: torch.dtype) -> Any:
    """One part on the meta device; no safety checker, which an adapter would not ask."""
    if folder.name == "safety_checker":
        return None
    made = _class(library, kind)
    with torch.device("meta"):
        if library == "transformers":
            return made._from_config(made.config_class.from_pretrained(folder), dtype=dtype).eval()
        return made.from_config(made.load_config(folder)).to(dtype).eval()
