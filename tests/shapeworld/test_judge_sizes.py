"""Judge bases of several sizes, with a few steps in place of thousands."""

import json
from functools import partial

import pytest
import torch
from tiny import killed_after_save
from transformers import InternVLForConditionalGeneration

from rewarddance.errors import InputError
from rewarddance.reward.loading import load_reward
from rewarddance.shapeworld.oracle import score_picture
from rewarddance.shapeworld.render import render
from rewarddance.shapeworld.training import judge_sizes
from rewarddance.shapeworld.training.exam import LAYOUTS, Exam
from rewarddance.shapeworld.training.growing import widened
from rewarddance.shapeworld.training.judge import build_judge_base, picture_features
from rewarddance.shapeworld.training.judge_sizes import SIZES, make_judge_sizes
from rewarddance.types import Question

TWO = ("shapeworld-judge-0.5m", "shapeworld-judge-0.7m")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(judge_sizes, "Exam", partial(Exam, pairs=2, batches=1))
    monkeypatch.setattr(judge_sizes, "BATCH", 4)
    monkeypatch.setattr(judge_sizes, "SAVE_EVERY", 8)


make = partial(make_judge_sizes, sizes=TWO, steps=12, last_steps=2, log=lambda line: None)


@pytest.mark.parametrize("name", SIZES)
def test_a_size_has_about_the_parameters_of_its_name(name):
    model, _ = SIZES[name].build(0)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert millions == pytest.approx(float(name.removeprefix("shapeworld-judge-").removesuffix("m")), rel=0.1)


@torch.no_grad()
def test_a_wider_judge_computes_the_same_and_its_copies_can_part():
    base, _ = SIZES["shapeworld-judge-1.4m"].build(0)
    wide = widened(base, 2)
    pixels, input_ids = torch.randn(2, 3, 32, 32), torch.randint(10, 700, (2, 20))
    seen, again = (picture_features(model, pixels).pooler_output for model in (base, wide))
    torch.testing.assert_close(again, seen.repeat(1, 1, 2), atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(wide(input_ids=input_ids).logits, base(input_ids=input_ids).logits, atol=1e-4, rtol=1e-4)
    first, second = wide.model.language_model.layers[0].mlp.gate_proj.weight.chunk(2)
    assert (first - second).abs().max() > 0.1 * first.std(), "equal copies would stay equal while they learn"


def test_sizes_are_loaded_by_their_folders_and_tested_on_the_way(tmp_path):
    make(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["size"] for row in rows] == list(TWO) * (len(rows) // 2)
    assert {row["stage"] for row in rows} == {"begin", "judge", "last"}
    assert [row["conversations"] for row in rows if row["stage"] == "judge"][
        -1
    ] == 4 * 6  # every batch is learned twice
    assert all(0 < row["loss"] < 10 and set(row["pairs"]) == set(LAYOUTS) for row in rows)
    question = Question("a circle", torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    for name in TWO:
        assert torch.isfinite(load_reward(str(tmp_path / name), instruction="t2i-brief")([question]).margin).all()
    assert not (tmp_path / "training.pt").exists()


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    make(tmp_path / "whole")
    with killed_after_save(1), pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    make(tmp_path / "killed")
    for name in TWO:
        whole, again = (
            InternVLForConditionalGeneration.from_pretrained(tmp_path / folder / name).state_dict()
            for folder in ("whole", "killed")
        )
        assert all(torch.equal(whole[key], again[key]) for key in whole)
    curves = [(tmp_path / folder / "curve.jsonl").read_text() for folder in ("whole", "killed")]
    assert curves[0] == curves[1]


def test_a_folder_of_another_training_is_refused_by_its_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_sizes._Training, "_test", lambda self, stage, step: None)
    with killed_after_save(1), pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    with pytest.raises(InputError, match="steps"):
        make(tmp_path, steps=16)
    with pytest.raises(InputError, match=r"judge-3m"):
        make(tmp_path, sizes=("judge-3m",))


def test_the_exams_pairs_are_right_and_wrong_by_the_oracle():
    _, tokenizer = build_judge_base()
    exam = Exam(tokenizer, 16, 0, pairs=3, batches=1)
    for chosen in exam.pairs.values():
        for spec, right, wrong in chosen:
            assert score_picture(render(right), spec).correct
            assert not score_picture(render(wrong), spec).correct
