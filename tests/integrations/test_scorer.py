"""What plug-ins share: every form of pictures, references from every place, groups, and failures that are raised."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from stand_ins import uint8, written
from tiny import BrightnessJudge, judge_folder, pictures

from rewarddance.alignment.references import ReferenceRecipe
from rewarddance.data.media import write_picture
from rewarddance.data.references import References
from rewarddance.errors import InputError, RewardError
from rewarddance.integrations.scorer import Scorer, channels_first
from rewarddance.reward.loading import load_reward
from rewarddance.types import Question, Verdict

SHOTS = pictures(4)
PROMPTS = ["a red circle", "two crosses", "a red circle", "two crosses"]
FORMS = {
    "floats NCHW": SHOTS[:, 0],
    "half floats": SHOTS[:, 0].bfloat16(),
    "8 bits NHWC": uint8(SHOTS),
    "8 bits NCHW": (SHOTS[:, 0] * 255).round().byte(),
    "PIL": [Image.fromarray(array) for array in uint8(SHOTS)],
    "videos": SHOTS,
    "3THW, 0..1": [channels_first(shot.transpose(0, 1)) for shot in SHOTS],
    "3THW, 0..255": [channels_first(255 * shot.transpose(0, 1)) for shot in SHOTS],
    "3THW, 8 bits": [channels_first((255 * shot.transpose(0, 1)).round().byte()) for shot in SHOTS],
}


def alone(questions: list[Question]) -> Verdict:
    """A judge that needs no reference: 8 times the mean, less 4."""
    return Verdict(torch.stack([8 * question.candidate.mean() - 4 for question in questions]))


alone.needs_reference = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", [*FORMS, "paths"])
def test_pictures_in_every_form_have_the_same_scores(form, tmp_path):
    images = written(tmp_path, SHOTS) if form == "paths" else FORMS[form]
    expected = alone([Question(text, shot) for text, shot in zip(PROMPTS, SHOTS, strict=True)]).probability
    assert Scorer(alone)(images, PROMPTS) == pytest.approx(
        expected.tolist(), abs=4e-3 if form == "half floats" else 1e-6
    )


def test_a_named_judge_is_asked_as_load_reward_asks_it():
    scorer = Scorer(str(judge_folder()), kind="pointwise", device="cpu")
    judge = load_reward(judge_folder(), kind="pointwise")
    asked = [Question(text, shot) for text, shot in zip(PROMPTS, SHOTS, strict=True)]
    assert scorer(SHOTS[:, 0], PROMPTS) == pytest.approx(judge(asked).probability.tolist(), abs=1e-6)


def bank(folder: Path) -> Path:
    """Two prompts with two references each, as `build_references` leaves them; the first of each counts."""
    rows = []
    for number, prompt in enumerate(("a red circle", "two crosses")):
        files = [f"{number:06d}_{place}.png" for place in range(ReferenceRecipe().keep)]
        for place, name in enumerate(files):
            write_picture(SHOTS[number + 2 * place], folder / name)
        rows.append({"prompt": prompt, "files": files, "seeds": [1, 2], "wins": [3.0, 2.0]})
    (folder / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def file_of_rows(folder: Path) -> Path:
    write_picture(SHOTS[0], folder / "red.png")
    write_picture(SHOTS[1], folder / "crosses.png")
    rows = [{"prompt": "a red circle", "reference": "red.png"}, {"prompt": "two crosses", "reference": "crosses.png"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def folder_with_texts(folder: Path) -> Path:
    for number, prompt in enumerate(("a red circle", "two crosses")):
        write_picture(SHOTS[number], folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(prompt + "\n")
    return folder


@pytest.mark.parametrize("made", [bank, file_of_rows, folder_with_texts])
def test_references_come_from_a_bank_a_file_or_a_folder(made, tmp_path):
    source = made(tmp_path)
    given = {"a red circle": SHOTS[0], "two crosses": SHOTS[1]}
    assert all(torch.equal(References(source).of(prompt), shot) for prompt, shot in given.items())
    judge = BrightnessJudge()
    expected = judge([Question(text, shot, given[text]) for text, shot in zip(PROMPTS, SHOTS, strict=True)])
    for references in (source, given):
        assert Scorer(judge, references)(SHOTS[:, 0], PROMPTS) == pytest.approx(expected.probability.tolist())


def test_one_prompts_questions_hold_the_very_same_reference(tmp_path):
    asked: list[Question] = []

    def judge(questions: list[Question]) -> Verdict:
        asked.extend(questions)
        return Verdict(torch.zeros(len(questions)))

    judge.needs_reference = True  # type: ignore[attr-defined]
    paths = written(tmp_path, SHOTS)
    Scorer(judge, file_of_rows(tmp_path))(SHOTS[:, 0], PROMPTS, sources=[paths[0], paths[1], paths[0], None])
    assert asked[0].reference is asked[2].reference and asked[0].reference is not asked[1].reference
    assert asked[0].prompt.image is asked[2].prompt.image and asked[3].prompt.image is None


def test_win_rates_of_a_group_ask_every_pair_in_both_orders():
    judge = BrightnessJudge(bias=1.5)  # leans to the candidate: what both orders take out
    scores = Scorer(judge, group=True)(SHOTS, PROMPTS)
    assert judge.asked == 4 and scores[0] + scores[2] == pytest.approx(1) and scores[1] + scores[3] == pytest.approx(1)
    together = Scorer(judge, group=True)(SHOTS, PROMPTS, groups=["g"] * 4)
    assert judge.asked == 4 + 12 and sum(together) == pytest.approx(2)
    brightness = SHOTS.mean((1, 2, 3, 4))
    assert torch.equal(torch.tensor(together).argsort(), brightness.argsort())


def test_a_failure_is_raised_and_names_the_item(tmp_path):
    with pytest.raises(InputError, match="compares with a reference"):
        Scorer(BrightnessJudge())
    with pytest.raises(InputError, match=r"image 1 .*alone"):
        Scorer(BrightnessJudge(), group=True)(SHOTS[:3], PROMPTS[:3])
    with pytest.raises(RewardError, match="'a dog'"):
        Scorer(BrightnessJudge(), {"a cat": SHOTS[0]})(SHOTS[:1], ["a dog"])
    with pytest.raises(InputError, match="image 1"):
        Scorer(alone)([SHOTS[0], torch.full((3, 4, 4), torch.nan)], PROMPTS[:2])
    with pytest.raises(InputError, match="3 images and 2 prompts"):
        Scorer(alone)(SHOTS[:3], PROMPTS[:2])
    with pytest.raises(InputError, match=r"sample 2 is \[4, 1, 8, 8\]"):
        channels_first(torch.zeros(4, 1, 8, 8), "sample 2")

    def broken(questions: list[Question]) -> Verdict:
        return Verdict(torch.tensor([0.0, torch.nan])[: len(questions)])

    broken.needs_reference = False  # type: ignore[attr-defined]
    with pytest.raises(RewardError, match="two crosses"):
        Scorer(broken)(SHOTS[:2], PROMPTS[:2])
    with pytest.raises(RewardError, match="a red circle"):
        Scorer(broken, group=True)(SHOTS[:2], ["a red circle"] * 2)


def test_a_prompt_that_a_bank_left_out_has_no_reference_and_the_others_do(tmp_path):
    source = bank(tmp_path)
    with (source / "references.jsonl").open("a") as file:
        file.write(
            json.dumps({"prompt": "a dark thing", "failed": "the judge gave no score", "remedy": "Look."}) + "\n"
        )
    references = References(source)
    assert torch.equal(references.of("two crosses"), SHOTS[1])
    with pytest.raises(RewardError, match="no reference for the prompt 'a dark thing'"):
        references.of("a dark thing")


def test_references_that_cannot_be_used_are_refused_at_the_start(tmp_path):
    rows = {
        "second": [{"prompt": "a", "reference": "0.png"}, {"prompt": "a", "reference": "1.png"}],
        "none.png": [{"prompt": "a", "reference": "none.png"}],
        "no prompt": [{"reference": "0.png"}],
    }
    written(tmp_path, SHOTS[:2])
    for fault, content in rows.items():
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        with pytest.raises(InputError, match=fault):
            References(tmp_path / "rows.jsonl")


def test_a_judge_in_this_process_answers_one_call_at_a_time():
    inside, most = [], []

    def judge(questions: list[Question]) -> Verdict:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.02)
        inside.pop()
        return Verdict(torch.zeros(len(questions)))

    judge.needs_reference = False  # type: ignore[attr-defined]
    scorer = Scorer(judge)
    threads = [threading.Thread(target=scorer, args=(SHOTS[:1], PROMPTS[:1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_server_is_asked_by_its_address_as_the_judge_here():
    pytest.importorskip("fastapi")
    from rewarddance.serve.server import serving

    judge, references = load_reward(judge_folder()), {"a red circle": SHOTS[3], "two crosses": SHOTS[2]}
    with serving(judge) as address:
        served = Scorer(address, references)(SHOTS[:, 0], PROMPTS)
        groups = Scorer(address, group=True)(SHOTS[:, 0], PROMPTS)
    assert served == pytest.approx(Scorer(judge, references)(SHOTS[:, 0], PROMPTS), abs=1e-5)
    assert groups == pytest.approx(Scorer(judge, group=True)(SHOTS[:, 0], PROMPTS), abs=1e-5)
