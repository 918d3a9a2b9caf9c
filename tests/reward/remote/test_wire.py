"""Questions and answers survive the way over the wire to the bit, and what is none is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tiny import pictures
from torch import Tensor

from rewarddance.errors import InputError, RewardError
from rewarddance.reward.remote.wire import (
    Answer,
    read_header,
    read_questions,
    read_reply,
    write_questions,
    write_reply,
)
from rewarddance.types import Prompt, Question


def floats(tensor: Tensor, name: str) -> Tensor:
    return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()


def test_questions_arrive_as_they_were_sent():
    a, b, c = pictures(3)
    smooth = torch.rand(2, 3, 5, 7)
    prompt = Prompt("a red circle", metadata={"id": 3}, image=c)
    sent = [Question(prompt, a, smooth, "t2i", (8.0, None)), Question("two crosses", smooth, b)]
    asked = read_questions(write_questions(sent, with_metadata=True), floats)
    for before, after in zip(sent, asked.questions, strict=True):
        assert torch.equal(before.candidate, after.candidate)
        assert before.reference is not None and after.reference is not None
        assert torch.equal(before.reference, after.reference)
        assert (before.prompt.text, before.instruction, before.fps) == (after.prompt.text, after.instruction, after.fps)
    image = asked.questions[0].prompt.image
    assert image is not None and torch.equal(image, c) and asked.questions[0].prompt.metadata == {"id": 3}
    assert asked.questions[0].reference is asked.questions[1].candidate


def test_a_picture_of_many_questions_is_sent_once_and_in_8_bits():
    reference, *candidates = pictures(9, size=64)
    body = write_questions([Question("a circle", candidate, reference) for candidate in candidates])
    assert len(load(body)) == 9 and 9 * 3 * 64 * 64 < len(body) < 9 * 3 * 64 * 64 + 4000
    read = read_questions(body, floats).questions
    assert len({id(question.reference) for question in read}) == 1
    assert read_header(body).pixels == 9 * 64 * 64


def test_two_views_of_one_batch_are_two_pictures():
    batch = torch.rand(3, 3, 8, 8)
    body = write_questions([Question("a", batch[0:1], batch[1:2]), Question("a", batch[1:2], batch[0:1])])
    first, second = read_questions(body, floats).questions
    assert torch.equal(first.candidate, batch[0:1]) and torch.equal(second.candidate, batch[1:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pixels_between_the_8_bit_values_keep_their_precision(dtype):
    pixels = torch.rand(1, 3, 8, 8).to(dtype)
    (question,) = read_questions(write_questions([Question("a", pixels)]), floats).questions
    assert torch.equal(question.candidate, pixels.float())


def test_what_wants_a_gradient_is_told_by_role():
    a, b = (picture.clone().requires_grad_() for picture in pictures(2))
    body = write_questions([Question("x", a, b), Question("x", b, pictures(3)[2])], lambda p: p.requires_grad)
    assert read_questions(body, floats).wanted == [("candidate", "reference"), ("candidate",)]


def test_a_reply_has_margins_gradients_and_the_errors_of_single_questions():
    gradient = torch.rand(1, 3, 4, 4)
    failed = InputError("question 1 has no reference.", "Give one.")
    body = write_reply([Answer(0.25, {"candidate": gradient}), failed, Answer(-1.5)], "mark")
    reply = read_reply(body, 3)
    assert reply.margin[0] == 0.25 and reply.margin[2] == -1.5 and torch.isnan(reply.margin[1])
    assert torch.equal(reply.gradients[0, "candidate"], gradient) and reply.judge == "mark"
    assert type(reply.errors[1]) is InputError and "no reference" in str(reply.errors[1])


def test_a_margin_that_is_not_finite_is_an_error_whoever_wrote_it():
    body = save({"margin": torch.tensor([1.0, float("nan"), float("inf")])}, {"version": "1"})
    assert {number: type(error) for number, error in read_reply(body, 3).errors.items()} == {
        1: RewardError,
        2: RewardError,
    }


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff" * 40, save({"margin": torch.zeros(2)}, {"version": "1"})])
def test_a_reply_that_is_none_is_no_reply(body):
    with pytest.raises(ValueError):
        read_reply(body, 3)


def broken(**changes: Any) -> bytes:
    row = {"prompt": "a", "candidate": "p0"} | changes
    return save({"p0": torch.zeros(1, 3, 4, 4)}, {"version": "1", "questions": json.dumps([row])})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04\x95pickle",
        (10**15).to_bytes(8, "little") + b"{}",
        save({"p0": torch.zeros(1, 3, 4, 4)}),
        save({"p0": torch.zeros(1, 3, 4, 4)}, {"version": "2", "questions": "[]"}),
        save({"p0": torch.zeros(1, 3, 4, 4)}, {"version": "1", "questions": "[" * 500}),
        save({"p0": torch.zeros(1, 3, 4, 4)}, {"version": "1", "questions": "[]"}),
        broken()[:-30],
    ],
)
def test_a_request_that_is_none_is_an_input_error(body):
    with pytest.raises(InputError):
        read_questions(body, floats)


@pytest.mark.parametrize(
    "changes",
    [
        {"candidate": "p9"},
        {"candidate": None},
        {"candidate": ["p0"]},
        {"prompt": 7},
        {"instruction": []},
        {"fps": [1]},
        {"metadata": 3},
    ],
)
def test_a_question_that_is_none_takes_no_other_with_it(changes):
    sound = {"prompt": "a", "candidate": "p0"}
    rows = json.dumps([sound, sound | changes, sound])
    read = read_questions(save({"p0": torch.zeros(1, 3, 4, 4)}, {"version": "1", "questions": rows}), floats)
    assert [type(question) for question in read.questions] == [Question, InputError, Question]
    assert "cannot be read" in str(read.questions[1]) or "prompt" in str(read.questions[1])


def test_errors_of_a_reply_are_of_its_questions_and_a_gradient_is_finite():
    errors = json.dumps({"3": {"kind": "InputError", "message": "no", "remedy": ""}})
    with pytest.raises(ValueError, match="3 of 3"):
        read_reply(save({"margin": torch.zeros(3)}, {"version": "1", "errors": errors}), 3)
    content = {"margin": torch.zeros(2), "gradient.1.candidate": torch.full((1, 3, 2, 2), float("nan"))}
    assert [*read_reply(save(content, {"version": "1"}), 2).errors] == [1]


def test_metadata_that_json_cannot_hold_is_named():
    with pytest.raises(InputError, match="metadata"):
        write_questions([Question(Prompt("a", metadata={"x": object()}), pictures(1)[0])], with_metadata=True)
