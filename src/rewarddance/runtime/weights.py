"""Weights are read in one place, which says what was missing, left over, of another shape, or not finite.

The libraries fill what they do not find with random numbers and pass over what they cannot place, with a warning at
most. A judge of random weights scores as readily as any other, so here both are errors that name the weights. What a
class itself declares tied or optional (`_tied_weights_keys`, `_keys_to_ignore_on_load_*`) is neither.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rewarddance.errors import InputError, RewardDanceError, RewardError, first_line
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.sharding import all_finite

LIBRARIES = ("transformers", "diffusers", "peft")
ADAPTER_CONFIG = "adapter_config.json"
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
LOAD_ERRORS = (AttributeError, ImportError, KeyError, NotImplementedError, OSError, RuntimeError, SafetensorError)
LOAD_ERRORS += (TypeError, ValueError)
"""What the libraries raise of folders that are cut off, of another kind, or edited by hand."""
_CONVERT = (
    "Convert it once: load it where you trust it with from_pretrained(..., use_safetensors=False), then call "
    "save_pretrained(folder, safe_serialization=True)."
)
_SHOWN = 4
_OPTIONS = {"use_safetensors": True, "ignore_mismatched_sizes": True}
"""Weights of another shape come into the library's report, and `check_report` names them."""


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, which is another one in every process, so that the same weights
    are the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        written = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(written) <= size:  # the rest of a header is spaces
            file.seek(8)
            file.write(written.ljust(size))


def load_module(kind: Any, folder: Path, what: str, remedy: str, **options: Any) -> Any:
    """`kind.from_pretrained(folder, **options)`, with every weight of the module read from the folder.

    kind: a class of transformers or diffusers. what: names the thing in errors, such as "the judge 'x'".
    Raises InputError naming weights that are missing, unexpected, of another shape or not finite, a folder that has
    pickled weights only, and whatever else the library could not do.
    """
    check_is_safe(folder, what)
    if (folder / ADAPTER_CONFIG).is_file():
        return _with_adapter(kind, folder, what, remedy, options)
    try:
        with library_warnings(what):
            module, report = kind.from_pretrained(folder, output_loading_info=True, **(_OPTIONS | options))
    except MemoryError as error:
        raise InputError(f"{what} does not fit into memory.", "Choose a smaller one, or half precision.") from error
    except LOAD_ERRORS as error:
        raise InputError(f"{what} cannot be loaded: {_reason(error, folder)}.", remedy) from error
    check_report(module, report, what, remedy)
    check_finite(module, what)
    return module


def adapter_base(folder: Path, what: str, remedy: str) -> Path:
    """The folder of the model that an adapter of PEFT's is for. Raises InputError where it is not there."""
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        return find_checkpoint(str(base))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{what} is an adapter whose base is not said: {first_line(error)}.", remedy) from error


def merge_adapter(module: Any) -> None:
    """Add the adapter that `load_module` has put on a module to its weights; what is left is a plain module."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # heavy, and seldom needed

    for name, layer in [*module.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, layer.get_base_layer())
    # save_pretrained would write the adapter alone, and under PEFT's names
    module._hf_peft_config_loaded = False
    module._weight_conversions = module._base_weight_conversions


def _with_adapter(kind: Any, folder: Path, what: str, remedy: str, options: Mapping[str, Any]) -> Any:
    """A folder of PEFT's two files: its base, whole, and the adapter on it, whole."""
    place = adapter_base(folder, what, remedy)
    module = load_module(kind, place, f"{str(place)!r}, the base of {what},", remedy, **options)
    module._base_weight_conversions = getattr(module, "_weight_conversions", None)
    try:
        with library_warnings(what):
            report = module.load_adapter(str(folder), use_safetensors=True)
    except LOAD_ERRORS as error:
        raise InputError(f"the adapter of {what} cannot be loaded: {first_line(error)}.", remedy) from error
    check_report(module, report.to_dict(), f"the adapter of {what}", remedy)
    check_finite(module, what)
    return module


def check_report(module: nn.Module, report: Mapping[str, Any], what: str, remedy: str) -> None:
    """Raises InputError unless a library's loading info says that names and shapes all fit.

    A missing weight that shares its memory with one that is there is tied; an unexpected one by the name of a buffer is
    of a version that still saved it.
    """
    missing = sorted(set(report.get("missing_keys") or ()) - _tied(module, report))
    buffers = {name for name, _ in module.named_buffers()}
    unexpected = sorted(set(report.get("unexpected_keys") or ()) - buffers)
    mismatched = sorted(
        str(key[0]) if isinstance(key, tuple) else str(key) for key in report.get("mismatched_keys") or ()
    )
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    problems = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if problems:
        raise InputError(f"the weights of {what} do not fit a {type(module).__name__}: {'; '.join(problems)}.", remedy)


def check_finite(module: nn.Module, what: str) -> None:
    """Raises InputError naming the first weight that holds a NaN or an infinite value."""
    check_values(module.named_parameters(), what)


def check_values(weights: Any, what: str) -> None:
    """`check_finite` of pairs of names and tensors."""
    for name, weight in weights:
        if weight.is_meta or not weight.numel() or not weight.is_floating_point():
            continue
        values = weight.detach()
        least, most = (values.float() if values.element_size() < 2 else values).aminmax()
        if not (torch.isfinite(least) and torch.isfinite(most)):
            raise InputError(
                f"the weights of {what} are not finite: {name} holds NaN or infinity.",
                "Take an earlier checkpoint, or download it again.",
            )


def step_finitely(optimiser: torch.optim.Optimizer, weights: Sequence[Tensor]) -> None:
    """Take the optimiser's step and forget the gradients. Raises RewardError where a weight is not finite after it."""
    remedy = "Lower learning_rate; the last checkpoint is kept."
    try:
        optimiser.step()
    except RuntimeError as error:  # a rate that the weights' own type cannot hold
        if "overflow" not in str(error):
            raise
        raise RewardError("the learning rate is no finite number in the weights' precision.", remedy) from error
    optimiser.zero_grad()
    if not all_finite(weights):
        raise RewardError("the weights are not finite after the step.", remedy)


def read_tensors(path: Path, what: str, expected: Mapping[str, Tensor], remedy: str) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises InputError where names or shapes are not just the expected ones, or a
    value is not finite."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{what} cannot be read: {path}: {first_line(error)}.", remedy) from error
    compare_names(tensors, expected, what, remedy)
    check_values(tensors.items(), what)
    return tensors


def compare_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Raises InputError where tensors are not just the expected ones by name and shape."""
    wrong = sorted(name for name in tensors if name in expected and tensors[name].shape != expected[name].shape)
    faults = {
        "missing": sorted(set(expected) - set(tensors)),
        "unexpected": sorted(set(tensors) - set(expected)),
        "of another shape": wrong,
    }
    problems = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if problems:
        raise InputError(f"the weights of {what} do not fit: {'; '.join(problems)}.", remedy)


def check_is_safe(folder: Path, what: str) -> None:
    """Raises InputError where a folder has no safetensors file: pickled weights can run any code when read."""
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise InputError(f"{what} has its weights as pickle only ({pickled[0]}), which could run any code.", _CONVERT)


def variant_of(folder: Path) -> str | None:
    """The variant, such as fp16, of a folder that has its weights in that form only; None where it has the plain one.

    `model.fp16.safetensors`, or of several files `model.fp16-00001-of-00002.safetensors` and
    `model-00001-of-00002.fp16.safetensors`.
    """
    variants = set()
    for path in folder.glob("*.safetensors"):
        parts = path.name.removesuffix(".safetensors").split(".")
        variants.add(parts[1].split("-")[0] if len(parts) > 1 else None)
    return None if None in variants or not variants else sorted(variants)[0]


@contextmanager
def library_warnings(what: str) -> Iterator[None]:
    """What the libraries warn of within the block is said once, with `what` it is about, instead of switched off.

    Their reports of weights are left out: `check_report` has refused what they tell of. What they raise that is none of
    LOAD_ERRORS (their parts in Rust raise plain exceptions, or panic) is raised as a ValueError.
    """
    heard = _Heard()
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [heard]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield
    except (RewardDanceError, MemoryError, *LOAD_ERRORS):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(first_line(error)) from error
        raise
    finally:
        for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
    for message in dict.fromkeys(heard.said):
        logging.getLogger("rewarddance").warning("%s: %s", what, message)


class _Heard(logging.Handler):
    """Keeps the first line of each warning that is about more than names of weights."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().strip()
        if text and not any(part in text for part in _ANSWERED):
            self.said.append(text.splitlines()[0])


_ANSWERED = (
    "LOAD REPORT",  # of weights: refused by name
    "This checkpoint seem corrupted",
    "Loading adapter weights from state_dict led to",
    "No LoRA keys associated to",
    "were not used when initializing",
    "newly initialized",
    "fast path is not available",  # of speed
    "Using a slow",
    "use_fast",
    "is deprecated",
    "was not found in config. Values will be initialized to default values",
)
"""Parts of the libraries' warnings that `check_report` answers, or that are of no result."""


def _tied(module: nn.Module, report: Mapping[str, Any]) -> set[str]:
    """Missing names whose memory is that of a weight that was there."""
    missing = set(report.get("missing_keys") or ())
    if not missing:
        return set()
    places: dict[int, set[str]] = {}
    for name, weight in module.state_dict().items():
        if not weight.is_meta and weight.numel():
            places.setdefault(weight.data_ptr(), set()).add(name)
    return {name for names in places.values() if names - missing for name in names & missing}


def _reason(error: BaseException, folder: Path) -> str:
    """The library's sentence, without the marks of its report."""
    text = first_line(error)
    return text or f"{type(error).__name__} in {folder}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
