"""Any callable as a reward: `(images, prompts, metadata) -> scores`, the form that flow_grpo and DiffusionNFT call."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rewarddance.data.media import as_images
from rewarddance.errors import InputError, NoGradient, RewardDanceError, RewardError, WrongScoreCount, first_line, shown
from rewarddance.protocols import RewardModel, is_elsewhere
from rewarddance.runtime.files import is_there
from rewarddance.types import Pixels, Prompt, Question, Verdict

ImageForm = Literal["tensor", "pil"]
ScoreFunction = Callable[[Any, list[str], list[dict[str, Any]]], Any]
"""images, prompts and metadata of B samples -> B scores, or (scores, info)."""
_FACTORY = re.compile(r"(?!\w+://)(?P<module>[\w./\\-]+|.+\.py):(?P<name>[A-Za-z_]\w*)")


class Sample(NamedTuple):
    """One picture or video and the prompt that it was made for."""

    prompt: Prompt
    pixels: Pixels


class FunctionReward:
    """A RewardModel whose margin is what a function says of each candidate by itself.

    A question with a reference is answered by the difference of the two scores (Bradley-Terry), so tournaments, ReFL,
    search and evaluation work with it as with a pointwise judge. Scores have no set scale: `Verdict.probability` is
    their sigmoid. A function that asks a server may say so by an attribute `elsewhere = True` (`is_elsewhere`).
    """

    needs_reference = False

    def __init__(
        self, function: ScoreFunction, images: ImageForm = "tensor", batch_size: int = 64, videos: bool | None = None
    ) -> None:
        self.function, self.images, self.batch_size, self.videos = function, images, batch_size, videos

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"FunctionReward({name}, images={self.images!r})"

    @property
    def elsewhere(self) -> bool:
        return is_elsewhere(self.function)

    @property
    def differentiable(self) -> bool | None:
        """False where the function sees PIL pictures, which carry no gradient; None where only a call can tell."""
        return False if self.images == "pil" else None

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B]: the candidate's score, less the reference's where there is one.

        Raises RewardError naming the first sample whose score is missing or not finite, or whose scores lost the graph
        where a gradient is wanted; whatever the function itself raises comes as a RewardError, too.
        """
        if not questions:
            return Verdict(torch.zeros(0))
        samples = {
            (question.prompt, id(pixels)): Sample(question.prompt, pixels)
            for question in questions
            for pixels in (question.candidate, question.reference)
            if pixels is not None
        }
        scores = dict(zip(samples, self._scores(list(samples.values())), strict=True))
        margins = [scores[q.prompt, id(q.candidate)] for q in questions]
        references = [0.0 if q.reference is None else scores[q.prompt, id(q.reference)] for q in questions]
        return Verdict(torch.stack([score - other for score, other in zip(margins, references, strict=True)]))

    def _scores(self, samples: Sequence[Sample]) -> list[Float[Tensor, ""]]:
        """The function's score of each sample; pictures of one shape go to it together."""
        shapes: dict[tuple[int, ...], list[int]] = {}
        for number, sample in enumerate(samples):
            shapes.setdefault(tuple(sample.pixels.shape), []).append(number)
        scores: dict[int, Tensor] = {}
        for numbers in shapes.values():
            for start in range(0, len(numbers), self.batch_size):
                batch = numbers[start : start + self.batch_size]
                scores |= zip(batch, self._batch([samples[number] for number in batch]), strict=True)
        return [scores[number] for number in range(len(samples))]

    def _batch(self, samples: Sequence[Sample]) -> list[Float[Tensor, ""]]:
        texts = [sample.prompt.text for sample in samples]
        pixels = torch.stack([sample.pixels for sample in samples])
        wants_graph = torch.is_grad_enabled() and pixels.requires_grad
        with torch.set_grad_enabled(wants_graph):
            answer = self._call(pixels, texts, [dict(sample.prompt.metadata) for sample in samples])
        scores = _as_scores(answer, texts, repr(self))
        if wants_graph and not scores.requires_grad:
            raise NoGradient(
                f"{self!r} gives no gradient: its scores do not depend on the pixels in the autograd graph.",
                "Return a tensor computed by torch from the images, or align with algorithm grpo or nft.",
            )
        return list(scores.to(pixels.device).unbind())

    def _call(self, pixels: Float[Tensor, "B T C H W"], prompts: list[str], metadata: list[dict[str, Any]]) -> Any:
        pictures = pixels.shape[1] == 1 and not self.videos
        if self.images == "pil":
            frames = [as_images(video.detach()) for video in pixels]
            images: Any = [video[0] for video in frames] if pictures else frames
        else:
            images = pixels[:, 0] if pictures else pixels
        try:
            answer = self.function(images, list(prompts), metadata)
        except RewardDanceError:
            raise
        except (Exception, SystemExit) as error:  # a function of somebody's does not end the run
            raise RewardError(
                f"{self!r} failed on {len(prompts)} pictures, the first for {prompts[0]!r}: "
                f"{type(error).__name__}: {error}.",
                "Correct the function.",
            ) from error
        return answer


def _as_scores(answer: Any, prompts: list[str], name: str) -> Float[Tensor, " B"]:
    """What a function returned as float32 scores [B].

    Raises RewardError naming the sample whose score cannot be had.
    """
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        answer = answer[0]  # (scores, info), as flow_grpo's rewards return
    if isinstance(answer, Mapping):
        raise RewardError(f"{name} returned a {type(answer).__name__}.", "Return one score for each image.")
    if isinstance(answer, bytes | bytearray | memoryview):
        raise RewardError(f"{name} returned bytes, {shown(bytes(answer))}, and no scores.", "Return floats.")
    if isinstance(answer, np.ma.MaskedArray):
        answer = answer.tolist()  # what is masked is None
    if isinstance(answer, np.ndarray):
        answer = np.atleast_1d(answer)
    if isinstance(answer, Tensor):
        if answer.is_complex() or answer.is_meta or answer.layout != torch.strided:
            kind = "complex" if answer.is_complex() else "meta" if answer.is_meta else "sparse"
            raise RewardError(f"{name} returned a {kind} tensor of scores.", "Return a dense one of floats.")
        scores = answer.float().reshape(-1) if answer.ndim < 2 or answer.shape[1:].numel() == 1 else answer
    else:
        values = list(answer) if isinstance(answer, Sequence | np.ndarray) and not isinstance(answer, str) else [answer]
        missing = [number for number, value in enumerate(values) if value is None or value is np.ma.masked]
        if missing and missing[0] < len(prompts):
            raise RewardError(
                f"{name} returned no score for sample {missing[0]} ({prompts[missing[0]]!r}).",
                "A reward that cannot be had is an error: raise one, or return a number.",
            )
        if len(values) != len(prompts):
            raise WrongScoreCount(
                f"{name} returned scores of shape [{len(values)}] for {len(prompts)} images.",
                "Return one score for each image.",
            )
        try:
            scores = torch.stack([torch.as_tensor(value, dtype=torch.float32).reshape(()) for value in values])
        except (TypeError, ValueError, RuntimeError) as error:
            raise RewardError(f"{name} returned scores that are no numbers: {error}.", "Return floats.") from error
    if scores.ndim != 1 or len(scores) != len(prompts):
        raise WrongScoreCount(
            f"{name} returned scores of shape {list(scores.shape)} for {len(prompts)} images.",
            "Return one score for each image.",
        )
    for number, value in enumerate(scores.tolist()):
        if not math.isfinite(value):
            raise RewardError(
                f"{name} gave sample {number} ({prompts[number]!r}) the score {value}.", "Return finite numbers."
            )
    return scores


def as_reward(reward: Any, images: str = "tensor", batch_size: int = 64, videos: bool | None = None) -> RewardModel:
    """A reward from any callable `(images, prompts, metadata) -> scores`; a judge is returned as it is.

    images: what the callable is given: "tensor", float [B, 3, H, W] in [0, 1] (videos [B, T, 3, H, W]), or "pil", a
    list of B pictures (videos are lists of frames). prompts: B texts. metadata: B dicts, what stood beside each prompt
    in its file. It returns B scores (a list, an array or a tensor), or (scores, info). A tensor that keeps its graph
    gives ReFL its gradient. batch_size: images that go to it together. videos: whether what has one frame is a video of
    one, and no picture; by default it is a picture. Raises InputError for what cannot be called.

    >>> def brightness(images, prompts, metadata):
    ...     return images.mean((1, 2, 3))
    >>> reward = as_reward(brightness)
    """
    if not callable(reward) or inspect.isclass(reward):
        raise InputError(f"{reward!r} is no reward.", "Give a judge, or a function (images, prompts, metadata).")
    if hasattr(reward, "needs_reference"):
        return reward  # type: ignore[return-value]
    if images not in ("tensor", "pil"):
        raise InputError(f"there is no form of images named {images!r}.", "Say tensor or pil.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"the batch_size {shown(batch_size)} is no number of images.", "Give 1 or more.")
    if videos is not None and not isinstance(videos, bool):
        raise InputError(f"videos is {shown(videos)}, which is neither.", "Say true or false.")
    return FunctionReward(reward, images, batch_size, videos)  # type: ignore[arg-type]


def is_factory(name: str) -> bool:
    """Whether `name` has the form package.module:factory or path/to/file.py:factory."""
    return _FACTORY.fullmatch(name) is not None and not is_there(Path(name))


def code_digest(name: str) -> str:
    """Of the file that a factory's name leads to; of the name where it leads to none."""
    match = _FACTORY.fullmatch(name)
    assert match is not None, name
    place = match["module"]
    try:
        found = None if place.endswith(".py") else importlib.util.find_spec(place)
        file = Path(place) if found is None else Path(found.origin or "")
        content = file.read_bytes()
    except (ImportError, OSError, ValueError):
        content = name.encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def load_function(name: str, device: str = "cpu", **options: Any) -> RewardModel:
    """The reward that a factory makes, by `package.module:factory` or `path/to/file.py:factory`.

    The factory is called with `options`, and with `device` if it takes one; it returns a function
    `(images, prompts, metadata) -> scores` or any RewardModel. Raises InputError naming a module, a factory or an
    option that there is not, or what the factory returned where it is no reward.
    """
    match = _FACTORY.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} names no reward.", "Write package.module:factory, or path/to/file.py:factory.")
    factory = getattr(import_module(match["module"], f"the reward {name!r}"), match["name"], None)
    if not callable(factory):
        raise InputError(f"there is no factory {match['name']!r} in {match['module']}.", "Correct the name.")
    parameters = inspect.signature(factory).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    form = {name: options.pop(name) for name in ("images", "batch_size", "videos") if name in options}
    unknown = sorted(set(options) - set(parameters))
    if unknown and not takes_all:
        raise InputError(
            f"the factory {name} takes no option {unknown[0]!r}.", f"It takes: {', '.join(parameters) or 'none'}."
        )
    device_option = {"device": device} if "device" in parameters or takes_all else {}
    try:
        inspect.signature(factory).bind(**device_option, **options)
    except TypeError as error:
        raise InputError(f"the factory {name} cannot be called: {error}.", "Give the options it needs.") from error
    try:
        reward = factory(**device_option, **options)
    except RewardDanceError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"the factory {name} failed: {type(error).__name__}: {error}.", "Correct it.") from error
    if not callable(reward):
        raise InputError(
            f"the factory {name} returned {reward!r}, which is no reward.",
            "Let it return a function (images, prompts, metadata) -> scores.",
        )
    return as_reward(reward, **form)


def import_module(place: str, what: str) -> Any:
    """The module of a dotted name, found from the current directory too, or of a .py file.

    Raises InputError beginning with `what` where there is none.
    """
    try:
        if place.endswith(".py"):
            return _run_file(Path(place))
        if (folder := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, folder)
        return importlib.import_module(place)
    except (ImportError, FileNotFoundError) as error:
        raise InputError(
            f"{what} cannot be imported: {error}.", "Correct its name, or start where it is found."
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{what} cannot be imported: {type(error).__name__}: {first_line(error)}.",
            'Correct it; what a script does stands below `if __name__ == "__main__":`.',
        ) from error


def _run_file(path: Path) -> Any:
    """The module of a file. It is known to Python while it lives, as dataclasses want, under a name that hides none."""
    name = f"{path.stem}_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
