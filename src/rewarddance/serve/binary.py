"""Our own form, `POST /questions` and `POST /gradient`: safetensors both ways (`reward.remote.wire`)."""

from __future__ import annotations

from collections.abc import Sequence

from rewarddance.errors import InputError
from rewarddance.reward.remote.wire import read_header, read_questions, write_reply
from rewarddance.serve.judge import ServedJudge
from rewarddance.serve.pictures import RequestPictures, TooLarge
from rewarddance.serve.protocol import Outcome, Protocol, Request, each
from rewarddance.types import Question


def _read(body: bytes, pictures: RequestPictures, judge: ServedJudge, most: int, gradient: bool) -> Request:
    if read_header(body).pixels > pictures.max_pixels:
        raise TooLarge(f"the pictures have more than {pictures.max_pixels:,} pixels.", "Ask in parts.")
    asked = read_questions(body, pictures.from_tensor, most, fatal=TooLarge)
    if gradient and not judge.differentiable:
        raise InputError("this reward gives no gradient.", "Ask /questions.")

    def known(question: Question | InputError) -> Question:
        if isinstance(question, InputError):
            raise question
        return judge.question(
            question.prompt, question.candidate, question.reference, question.instruction, question.fps
        )

    questions = each([lambda question=question: known(question) for question in asked.questions])
    return Request(questions, asked.wanted if gradient else ())


def _margins(body: bytes, pictures: RequestPictures, judge: ServedJudge, most: int) -> Request:
    return _read(body, pictures, judge, most, gradient=False)


def _gradients(body: bytes, pictures: RequestPictures, judge: ServedJudge, most: int) -> Request:
    return _read(body, pictures, judge, most, gradient=True)


def _write(request: Request, outcomes: Sequence[Outcome], judge: ServedJudge) -> bytes:
    return write_reply(outcomes, judge.mark)


QUESTIONS = Protocol("/questions", _margins, _write, "application/octet-stream")
GRADIENT = Protocol("/gradient", _gradients, _write, "application/octet-stream")
