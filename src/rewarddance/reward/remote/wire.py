"""Questions and answers as bytes: safetensors both ways, raw pixels, nothing that runs when it is read.

A request is a safetensors file: the pictures under keys of the sender's choice, each [T, C, H, W] uint8
(= round(255 x)), float16, bfloat16 or float32, and in its metadata {"version": "1", "questions": a JSON list of
{"prompt", "candidate": key, "reference": key or null, "condition": key or null, "instruction", "fps", "metadata"},
"wanted": a JSON list of keys}. A picture that several questions hold is sent once, and is one tensor at the other end,
so that what stands before the candidate is computed once. "condition" is the picture that the prompt came with.

A reply holds "margin" [B] float32 and in its metadata {"version": "1", "judge": the server's mark of its judge,
"errors": JSON, number of a question -> {"kind", "message", "remedy"}}; the margin of such a question is NaN. Where keys
are wanted, it also holds "gradient.I.R" for each question I whose picture in the role R (candidate, reference,
condition) has one of them: d margin_I / d pixels, float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rewarddance.errors import InputError, RewardDanceError, RewardError, first_line, shown, without_frames
from rewarddance.runtime.files import parse_json
from rewarddance.types import Pixels, Prompt, Question

VERSION = "1"
ROLES = ("candidate", "reference", "condition")
_DTYPES = {"U8": 1, "F16": 2, "BF16": 2, "F32": 4}
"""What pixels may be, by safetensors' names, and the bytes of a value."""
_KINDS: dict[str, type[RewardDanceError]] = {"InputError": InputError, "RewardError": RewardError}
_REMEDY = "Send what the page on serving a judge describes, with the same version of RewardDance at both ends."


class Header(NamedTuple):
    """What stands before the tensors. shapes: of the tensors by their keys."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    @property
    def pixels(self) -> int:
        """Frames times height times width, of all pictures."""
        return sum(math.prod(shape) // 3 for shape in self.shapes.values())


class ReceivedQuestions(NamedTuple):
    """Questions as they came, or why one cannot be read. wanted: of each the roles whose gradient is asked for."""

    questions: list[Question | InputError]
    wanted: list[tuple[str, ...]]


class Answer(NamedTuple):
    """The answer to one question. gradients: d margin / d pixels by role, of those that were wanted."""

    margin: float
    gradients: Mapping[str, Tensor] = {}


# -- the asking end ----------------------------------------------------------------------------------------------------


def picture_of(question: Question, role: str) -> Pixels | None:
    return question.prompt.image if role == "condition" else getattr(question, role)


def write_questions(
    questions: Sequence[Question], wants: Callable[[Tensor], bool] = lambda pixels: False, with_metadata: bool = False
) -> bytes:
    """The request of these questions.

    wants: is the gradient of a picture asked for? with_metadata: send what the prompts carry along, for a reward that
    reads it. Raises InputError naming a question whose pixels or metadata cannot be sent.
    """
    keys: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    wanted: list[str] = []
    rows = []
    for number, question in enumerate(questions):
        row: dict[str, Any] = {"prompt": question.prompt.text, "instruction": question.instruction}
        row["fps"] = [*question.fps]
        if with_metadata and question.prompt.metadata:
            row["metadata"] = question.prompt.metadata
        for role in ROLES:
            pixels = picture_of(question, role)
            if pixels is not None and id(pixels) not in keys:
                key = keys[id(pixels)] = f"p{len(keys)}"
                tensors[key] = compact(pixels, f"the {role} of question {number}")
                wanted += [key] if wants(pixels) else []
            row[role] = None if pixels is None else keys[id(pixels)]
        rows.append(row)
    try:
        texts = {"questions": json.dumps(rows, allow_nan=False), "wanted": json.dumps(wanted)}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the metadata of a prompt cannot be sent: {first_line(error)}.", "Keep to texts and finite numbers."
        ) from error
    return save(tensors, {"version": VERSION} | texts)


@torch.no_grad()
def compact(pixels: Tensor, name: str) -> Tensor:
    """Pixels as they are sent: 8-bit values where that loses nothing, else as they are; in this machine's memory."""
    pixels = pixels.detach()
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise InputError(f"{name} has the shape {list(pixels.shape)}.", "Give [T, 3, H, W].")
    if pixels.dtype not in (torch.uint8, torch.float16, torch.bfloat16, torch.float32):
        pixels = pixels.float()
    if pixels.dtype == torch.float32:
        eight = (pixels * 255).round_().to(torch.uint8)
        if torch.equal(eight.float().div_(255), pixels):  # what lies outside of [0, 1], and NaN, is not equal
            pixels = eight
    # A copy: two views of one tensor, such as rows of a batch, cannot be written as they are.
    return pixels.cpu().clone(memory_format=torch.contiguous_format)


class Reply(NamedTuple):
    """judge: the server's mark of it. margin [B]. errors: by a question's number. gradients: by (number, role)."""

    judge: str
    margin: Float[Tensor, " B"]
    errors: dict[int, RewardDanceError]
    gradients: dict[tuple[int, str], Tensor]


def read_reply(reply: bytes, count: int) -> Reply:
    """What a server answered to `count` questions. Raises ValueError where it is no reply to so many."""
    tensors, metadata = _load(reply), read_header(reply, ValueError).metadata
    margin = tensors.pop("margin", torch.zeros(0))
    if metadata.get("version") != VERSION or margin.shape != (count,):
        raise ValueError(f"version {metadata.get('version')!r} with {list(margin.shape)} margins for {count} questions")
    errors = {}
    for number, fault in parse_json(metadata.get("errors", "{}")).items():
        kind = _KINDS.get(fault["kind"], RewardError)
        if not 0 <= int(number) < count:
            raise ValueError(f"an error of question {number} of {count}")
        errors[int(number)] = kind(str(fault["message"]), str(fault["remedy"]))
    for number in (~torch.isfinite(margin)).nonzero().flatten().tolist():
        errors.setdefault(number, RewardError("the server gave no finite margin.", "Look at its log."))
    gradients = {}
    for name, tensor in tensors.items():
        _, number, role = name.split(".")
        gradients[int(number), role] = tensor
        if not torch.isfinite(tensor).all():
            errors.setdefault(int(number), RewardError("the server gave no finite gradient.", "Look at its log."))
    return Reply(metadata.get("judge", ""), margin.float(), errors, gradients)


# -- the answering end -------------------------------------------------------------------------------------------------


def read_header(body: bytes, error: Callable[[str], Exception] = lambda why: InputError(why, _REMEDY)) -> Header:
    """The header alone: how many pixels there are is known before any is taken up.

    Raises what `error` makes of the reason where it is none.
    """
    try:
        length = int.from_bytes(body[:8], "little")
        if len(body) < 8 + length or length < 2:
            raise ValueError("it is cut off")
        content = parse_json(bytes(body[8 : 8 + length]))
        metadata = content.pop("__metadata__", {})
        shapes = {}
        for key, entry in content.items():
            shapes[key] = tuple(int(size) for size in entry["shape"])
        if not all(isinstance(text, str) for text in metadata.values()):
            raise TypeError("its metadata are no texts")
    except (AttributeError, KeyError, TypeError, ValueError) as why:
        raise error(f"the body is no safetensors file: {first_line(why)}.") from why
    return Header(metadata, shapes)


def read_questions(
    body: bytes,
    pixels_of: Callable[[Tensor, str], Pixels],
    most: int | None = None,
    fatal: type[InputError] | tuple[()] = (),
) -> ReceivedQuestions:
    """The questions of a request.

    pixels_of: what makes float pixels [T, C, H, W] of a tensor as it came, with its name for errors; of the same
    content the same tensor. An InputError that it raises is of the questions that hold the picture, unless `fatal`
    says that it is of the whole request. most: questions that are taken. Raises InputError saying what is wrong with
    the request.
    """
    header = read_header(body)
    if header.metadata.get("version") != VERSION:
        raise InputError(f"the request has version {shown(header.metadata.get('version'))}, not {VERSION!r}.", _REMEDY)
    rows, wanted = _texts(header.metadata)
    if not rows or (most is not None and len(rows) > most):
        raise InputError(f"the request has {len(rows)} questions, of 1 to {most} that it may have.", "Ask in parts.")
    try:
        tensors = _load(body)
    except ValueError as error:
        raise InputError(f"the body is no safetensors file: {first_line(error)}.", _REMEDY) from error
    pixels: dict[str, Pixels | InputError] = {}
    for key, tensor in tensors.items():
        try:
            pixels[key] = pixels_of(tensor, "the picture")
        except fatal:
            raise
        except InputError as error:
            pixels[key] = without_frames(error)
    prompts: dict[str, Prompt] = {}
    questions: list[Question | InputError] = []
    roles = []
    for row in rows:
        try:
            questions.append(_question(row, pixels, prompts))
            roles.append(tuple(role for role in ROLES if row.get(role) in wanted))
        except InputError as error:
            questions.append(without_frames(error))
            roles.append(())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            questions.append(InputError(f"it cannot be read: {first_line(error)}.", _REMEDY))
            roles.append(())
    return ReceivedQuestions(questions, roles)


def _texts(metadata: Mapping[str, str]) -> tuple[list[Any], set[str]]:
    try:
        rows, wanted = parse_json(metadata["questions"]), parse_json(metadata.get("wanted", "[]"))
        if not isinstance(rows, list) or not isinstance(wanted, list):
            raise TypeError("questions and wanted are lists")
        return rows, {str(key) for key in wanted}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the request's questions cannot be read: {first_line(error)}.", _REMEDY) from error


def _question(row: Any, pixels: Mapping[str, Pixels | InputError], prompts: dict[str, Prompt]) -> Question:
    pictures: dict[str, Pixels | None] = {}
    for role in ROLES:
        found = None if row.get(role) is None else pixels[row[role]]
        if isinstance(found, InputError):
            raise type(found)(found.what.replace("the picture", f"the {role}", 1), found.remedy)
        pictures[role] = found
    candidate, instruction = pictures["candidate"], row.get("instruction")
    if candidate is None:
        raise ValueError("it has no candidate")
    if not isinstance(instruction, str | None):
        raise TypeError("its instruction is no text")
    first, second = (None if rate is None else float(rate) for rate in row.get("fps") or (None, None))
    key = json.dumps([row["prompt"], row.get("condition"), row.get("metadata")])
    if key not in prompts:
        prompts[key] = Prompt(row["prompt"], metadata=dict(row.get("metadata") or {}), image=pictures["condition"])
    return Question(prompts[key], candidate, pictures["reference"], instruction, (first, second))


def write_reply(outcomes: Sequence[Answer | RewardDanceError], judge: str) -> bytes:
    """The reply with these answers, or the reasons why there is none."""
    tensors = {}
    margins, errors = [], {}
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, RewardDanceError):
            kind = type(outcome).__name__ if type(outcome) in _KINDS.values() else "RewardError"
            errors[number] = {"kind": kind, "message": outcome.what, "remedy": outcome.remedy}
            margins.append(math.nan)
            continue
        margins.append(outcome.margin)
        for role, gradient in outcome.gradients.items():
            tensors[f"gradient.{number}.{role}"] = gradient.float().cpu().contiguous()
    tensors["margin"] = torch.tensor(margins, dtype=torch.float32)
    return save(tensors, {"version": VERSION, "judge": judge, "errors": json.dumps(errors)})


def _load(body: bytes) -> dict[str, Tensor]:
    try:
        return load(body)
    except (SafetensorError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(first_line(error)) from error
