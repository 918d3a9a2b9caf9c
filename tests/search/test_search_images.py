"""A prompt's picture, and no other, reaches generator and judge, in every method and kind of judging."""

from __future__ import annotations

import json

import pytest
import torch
from gaussian import Bright
from tiny import TinyGenerator, command, generator_folder, judge_folder

from rewarddance.data.media import write_picture
from rewarddance.search.best_of_n import best_of_n
from rewarddance.search.judging import JUDGING
from rewarddance.search.run import METHODS, read_method, search
from rewarddance.types import Prompt

PICTURES = [torch.full((1, 3, 4, 4), value) for value in (0.1, 0.2, 0.3)]
PROMPTS = [Prompt(text, image=picture) for text, picture in zip(("a", "bb", "a"), PICTURES, strict=True)]


class FromPicture(TinyGenerator):
    """Draws as bright as the prompt's picture; keeps the text and the picture of each row."""

    def __init__(self) -> None:
        super().__init__(6)
        self.rows = []

    def encode(self, prompts):
        self.rows += [(prompt.text.split(".")[0], id(prompt.image)) for prompt in prompts]
        return torch.stack([prompt.image.mean() for prompt in prompts])[:, None, None, None]


EXPECTED = {(prompt.text, id(prompt.image)) for prompt in PROMPTS}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("judging", JUDGING)
def test_every_row_and_every_question_has_its_prompts_picture(method, judging):
    generator, judge = FromPicture(), Bright()
    options = {"paths": {"paths": 1, "copies": 2}}.get(method, {})
    search(generator, judge, PROMPTS, read_method(method, options), "samples=30", judging=judging)
    assert set(generator.rows) == EXPECTED
    assert {(question.prompt.text, id(question.prompt.image)) for question in judge.questions} == EXPECTED


def test_best_of_n_over_given_seeds_passes_the_pictures_on_too():
    generator, judge = FromPicture(), Bright()
    best_of_n(generator, judge, PROMPTS, [[1, 2]] * 3, prompts_at_once=2)
    assert (
        set(generator.rows)
        == {(question.prompt.text, id(question.prompt.image)) for question in judge.questions}
        == EXPECTED
    )


def test_pictures_are_refused_at_once_where_the_generator_takes_none(tmp_path):
    write_picture(PICTURES[0], tmp_path / "first.png")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "a red circle", "image": "first.png"}))
    done = command(
        "search", str(tmp_path / "prompts.jsonl"), "--generator", str(generator_folder()), "--judge",
        str(judge_folder()), "--method", "best_of_n", "--budget", "samples=2", "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.code == 2 and "takes no picture" in done.err and "a red circle" in done.err
    assert not (tmp_path / "out" / "results.jsonl").exists()
