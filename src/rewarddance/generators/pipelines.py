"""Generators by the class of their diffusers pipeline, and how one is loaded. A new family is a file and a line."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar
from torch import nn

from rewarddance.errors import InputError, first_line
from rewarddance.generators.adapter import GeneratorOptions, PipelineGenerator
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.config import Precision, parse_recipe
from rewarddance.runtime.devices import check_device, find_dtype
from rewarddance.runtime.quantised import quantise
from rewarddance.runtime.weights import LOAD_ERRORS, library_warnings, load_module, variant_of

ADAPTERS = {
    "CogView4Pipeline": "cogview4.CogView4Generator",
    "Flux2KleinPipeline": "flux2_klein.Flux2KleinGenerator",
    "FluxKontextPipeline": "flux.FluxKontextGenerator",
    "FluxPipeline": "flux.FluxGenerator",
    "LTXImageToVideoPipeline": "ltx.LTXImageToVideoGenerator",
    "LTXPipeline": "ltx.LTXGenerator",
    "QwenImageEditPipeline": "qwen_image_edit.QwenImageEditGenerator",
    "QwenImageEditPlusPipeline": "qwen_image_edit.QwenImageEditPlusGenerator",
    "QwenImagePipeline": "qwen_image.QwenImageGenerator",
    "StableDiffusion3Pipeline": "stable_diffusion_3.SD3Generator",
    "StableDiffusionPipeline": "stable_diffusion.StableDiffusionGenerator",
    "StableDiffusionXLPipeline": "stable_diffusion.SDXLGenerator",
    "WanImageToVideoPipeline": "wan.WanImageToVideoGenerator",
    "WanPipeline": "wan.WanGenerator",
    "ZImagePipeline": "z_image.ZImageGenerator",
}
"""Pipeline class -> adapter in `families`, imported when it is asked for."""


def load_generator(
    name: str,
    num_inference_steps: int = 28,
    guidance_scale: float | None = None,
    device: str = "cpu",
    dtype: torch.dtype | Precision = "auto",
    pipeline: str | None = None,
    **options: Any,
) -> PipelineGenerator:
    """Load a diffusers pipeline as a generator; frozen.

    name: a folder, an id of the model hub, or a bundled generator's name.
    num_inference_steps: steps of each picture, here, in alignment and in search alike.
    guidance_scale: as the pipeline's own; None is its default where the network is told the scale (FLUX.1-dev), and
        elsewhere no guidance.
    device: "cpu", "cuda" or "cuda:1".
    dtype: what the networks compute in; auto is bfloat16 on a GPU and float32 elsewhere. Latents are float32.
    pipeline: the class of the pipeline, where it is not the one that the folder names: WanImageToVideoPipeline begins
        from a picture with the weights of Wan 2.2's 5B.
    options: height, width, num_frames, negative_prompt, true_cfg_scale, scheduler and the other fields of
        `GeneratorOptions`; docs/guides/generators.md says which a family takes.

    Returns a generator for `align`, `search` and `bench`.
    Raises InputError where there is no such checkpoint, no adapter for its pipeline class, an unknown option or one
    that the family does not use, or weights of a component that are missing, left over, misshapen or not finite.

    >>> generator = load_generator("shapeworld-generator", num_inference_steps=12)
    """
    given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **options}
    parsed = parse_recipe(GeneratorOptions, given, "the options of load_generator")
    check_device(device)
    dtype = find_dtype(dtype, device)
    disable_progress_bar()  # a bar for five files stands in the way of ours
    folder = find_checkpoint(name, _download)
    adapter = adapter_of(name, folder, pipeline)
    index: Any = DiffusionPipeline.load_config(folder)
    kind: Any = getattr(diffusers, pipeline or index["_class_name"])
    components = _components(name, folder, kind, index, dtype)
    try:
        with library_warnings(f"the generator {name!r}"):
            loaded = kind.from_pretrained(folder, dtype=dtype, **components, **adapter.own_parts(folder))
    except LOAD_ERRORS as error:
        what = f"the generator {name!r} cannot be loaded: {first_line(error)}."
        raise InputError(what, "Give a diffusers folder.") from error
    loaded.set_progress_bar_config(disable=True)
    quantise(getattr(loaded, adapter.component), parsed.base_precision, dtype)
    return adapter(loaded.to(device), parsed)


def _components(
    name: str, folder: Path, pipeline: Any, index: dict[str, Any], dtype: torch.dtype
) -> dict[str, nn.Module]:
    """The networks of a pipeline, each loaded by itself: the pipeline would not say which weights it did not find.

    Of a component that has its weights in one variant only (`.fp16.safetensors`), that one.
    """
    libraries: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}
    loaded: dict[str, nn.Module] = {}
    for component in inspect.signature(pipeline.__init__).parameters:
        library, kind = _library_and_class(index.get(component))
        known: Any = getattr(libraries.get(library), kind, None)
        if not (isinstance(known, type) and issubclass(known, nn.Module)):
            continue
        place = folder / component
        what = f"the {component} of the generator {name!r}"
        if not place.is_dir():
            raise InputError(f"{what} is missing: there is no {place}.", "Give a whole diffusers folder.")
        variant = variant_of(place)
        options = {} if variant is None else {"variant": variant}
        remedy = f"Save {component} again with save_pretrained, from the model itself and not from a wrapper of it."
        loaded[component] = load_module(known, place, what, remedy, dtype=dtype, **options)
    return loaded


def _library_and_class(entry: Any) -> tuple[str, str]:
    """What model_index.json says of a component; empty of one that is left out."""
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        return "", ""
    return entry[0], entry[1]


def adapter_of(name: str, source: str | Path, pipeline: str | None = None) -> type[PipelineGenerator]:
    """The adapter for the `_class_name` of a folder's, or a hub repository's, model_index.json.

    pipeline: of that class instead, which must be of the same family.
    """
    try:
        config: Any = DiffusionPipeline.load_config(source)
    except LOAD_ERRORS as error:
        what = f"the generator {name!r} cannot be loaded: {first_line(error)}."
        raise InputError(what, "Give a diffusers folder.") from error
    return adapter_class(name, config.get("_class_name"), pipeline)


def adapter_class(name: str, kind: Any, pipeline: str | None = None) -> type[PipelineGenerator]:
    """The adapter for a pipeline class, or for `pipeline` in its place. Raises InputError where there is none."""
    if pipeline is not None and (pipeline not in ADAPTERS or _family(pipeline) != _family(kind)):
        raise InputError(
            f"the generator {name!r} is a {kind}, which cannot be a {pipeline}.",
            f"Give one of its family: {', '.join(known for known in ADAPTERS if _family(known) == _family(kind))}.",
        )
    kind = pipeline or kind
    if kind not in ADAPTERS:
        raise InputError(f"the generator {name!r} is a {kind}.", f"There are adapters for: {', '.join(ADAPTERS)}.")
    module, _, adapter = ADAPTERS[kind].partition(".")
    return getattr(importlib.import_module(f"rewarddance.generators.families.{module}"), adapter)


def _family(kind: str) -> str:
    """The module of a pipeline's adapter, whose other pipelines are made of the same parts."""
    return ADAPTERS.get(kind, kind).partition(".")[0]


def _download(name: str) -> str:
    """Fetch only what the pipeline is made of: hub repositories also hold the same weights in other forms."""
    adapter_of(name, name)
    return str(DiffusionPipeline.download(name))
