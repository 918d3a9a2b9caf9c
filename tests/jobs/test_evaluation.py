"""`rewarddance evaluate` on random checkpoints of every kind: what it leaves, and what it refuses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from page_content import words
from PIL import Image
from tiny import BrightnessJudge, clip_folder, colour_preferences, command, judge_folder, video_judge_folder

from rewarddance import evaluate, train_reward
from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError
from rewarddance.evaluation.findings import Evaluation, LatentFigures, SetFindings, StressFigures
from rewarddance.evaluation.recipe import ExamRecipe
from rewarddance.jobs.evaluate import document, name_of, run_evaluation, training_facts
from rewarddance.jobs.recipes import EvaluateRun, named_tests
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.loading import build_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.runtime.lock import locked
from rewarddance.types import Preference

EXAM = ExamRecipe(probes=3, groups=2, pictures=3)


@pytest.fixture(scope="module")
def tests(tmp_path_factory) -> dict[str, Path]:
    """Two test sets: red against blue with ties, and the same with sources and criteria."""
    folder = tmp_path_factory.mktemp("tests")
    pairs = [replace(p, share=0.5) if i % 4 == 3 else p for i, p in enumerate(colour_preferences(12))]
    named = [replace(p, source="s", criterion=("colour", "")[i % 2]) for i, p in enumerate(colour_preferences(6, 1))]
    sets = {"id": pairs, "ood": named}
    for name, own in sets.items():
        write_preferences(own, folder / f"{name}.jsonl")
    return {name: folder / f"{name}.jsonl" for name in sets}


def reward(folder: Path, kind: str) -> Path:
    """A folder as training leaves it: an untrained reward of a kind, in runs/NAME/reward."""
    base = clip_folder() if kind == "clip" else judge_folder()
    options = {} if kind == "clip" else {"instruction": "t2i-brief"}
    own = folder / f"a-{kind}" / "reward"
    build_reward(str(base), RewardConfig(kind=kind, **options)).freeze().save(own)  # type: ignore[arg-type]
    return own


def arguments(tests: dict[str, Path]) -> list[str]:
    return [word for name, path in tests.items() for word in ("--tests", f"{name}={path}")] + ["exam.probes=3"]


def read_evaluation(path: Path | str) -> Evaluation:
    return Evaluation.model_validate_json(Path(path).read_bytes())


def sets_of(path: str) -> dict[str, SetFindings]:
    return read_evaluation(path).tests


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "regressive", "clip"])
def test_every_kind_is_examined_and_what_it_cannot_be_asked_is_a_sentence(kind, tests, tmp_path):
    folder = reward(tmp_path, kind)
    done = command("evaluate", folder, *arguments(tests), "--card", "--device", "cpu")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["evaluation"] == str(folder.parent / "evaluation" / "evaluation.json")
    evaluation = read_evaluation(result["evaluation"])
    assert (evaluation.judge.name, evaluation.judge.kind) == (f"a-{kind}", kind)
    assert evaluation.judge.instruction == (None if kind == "clip" else "t2i-brief")
    test = evaluation.tests["id"]
    assert (test.pairs, test.ties, test.prompts, test.failed) == (12, 3, 2, 0)
    assert result["accuracy_id"] == test.accuracy._asdict() and test.accuracy.n == 9  # type: ignore[union-attr]
    assert isinstance(test.order, str) == isinstance(test.transitivity, str) == (kind != "pairwise")
    assert set(evaluation.tests["ood"].by_criterion) == {"colour", ""} and set(evaluation.tests["ood"].by_source) == {
        "s"
    }
    card = (folder / "README.md").read_text()
    assert f"# a-{kind}" in card and ("```\nPrompt: {prompt}" in card) == (kind != "clip")
    assert (folder.parent / "evaluation" / "evaluation.html").stat().st_size > 10_000
    assert not (folder.parent / "evaluation" / "evaluation.failed.jsonl").exists()


def test_the_same_command_gives_the_same_figures_and_other_tests_fail(tests, tmp_path):
    folder = reward(tmp_path, "clip")
    first = sets_of(json.loads(command("evaluate", folder, *arguments(tests)).out)["evaluation"])
    again = sets_of(json.loads(command("evaluate", folder, *arguments(tests)).out)["evaluation"])
    assert first == again
    done = command("evaluate", folder, "--tests", f"id={tests['id']}", "exam.probes=3")
    assert done.code == 2 and "holds a run with tests.ood =" in done.err and "Choose another output" in done.err
    assert command("evaluate", folder, "--tests", tests["id"], "--output", tmp_path / "other").code == 0


def test_an_examination_that_never_began_binds_nobody(tests, tmp_path):
    folder = reward(tmp_path, "pairwise")
    out = ("--output", tmp_path / "out")
    done = command("evaluate", folder, "--tests", tests["id"], "--instruction", "t2x", *out)
    assert done.code == 2 and "t2x" in done.err
    done = command("evaluate", folder, "--tests", tests["id"], "--dtype", "float8", *out)
    assert done.code == 2 and "dtype" in done.err and "bfloat16" in done.err
    assert command("evaluate", folder, "--tests", tests["id"], "exam.probes=2", "--dtype", "bfloat16", *out).code == 0


def test_a_pair_that_cannot_be_judged_takes_no_other_with_it(tests, tmp_path):
    folder = reward(tmp_path, "clip")
    write_preferences(colour_preferences(8), tmp_path / "set.jsonl")
    broken = tmp_path / "set_media" / "000002_b.png"
    broken.write_bytes(broken.read_bytes()[:90])  # its header is whole
    asked = ("evaluate", folder, "--tests", f"ood={tmp_path / 'set.jsonl'}", "exam.batch_size=3")
    assert command(*asked).code == 2
    done = command(*asked, "--skip-faulty")
    assert done.code == 1, done.err
    result = json.loads(done.out)
    assert result["skipped"] == 1 and sets_of(result["evaluation"])["ood"].pairs == 7
    (row,) = [json.loads(line) for line in Path(result["faulty"]).read_text().splitlines()]
    assert "line 3 of the preferences file" in row["where"] and "000002_b.png" in row["what"]
    assert "were left out" in done.err and "faulty.jsonl says why" in done.err


def test_a_judge_asked_in_both_orders_says_so_and_gets_no_card(tests, tmp_path):
    folder = reward(tmp_path, "pairwise")
    one = command("evaluate", folder, *arguments(tests), "--orders", "both", "--output", tmp_path / "both")
    assert "asks both orders itself" in sets_of(json.loads(one.out)["evaluation"])["id"].order  # type: ignore[operator]
    done = command("evaluate", folder, *arguments(tests), "--orders", "both", "--card", "--output", tmp_path / "card")
    assert done.code == 2 and "not with another orders" in done.err
    assert not (folder / "README.md").exists() and not (tmp_path / "card").exists()


@pytest.mark.parametrize(
    ("given", "message", "remedy"),
    [
        (["id"], "'id' is not of the form NAME=FILE", "ood=unseen.jsonl"),
        (["=x.jsonl"], "'=x.jsonl' is not of the form NAME=FILE", "ood=unseen.jsonl"),
        (["a=nowhere.jsonl"], "the preferences file nowhere.jsonl cannot be read", "Give a JSONL"),
        (["a=x.jsonl", "a=y.jsonl"], "two test sets named 'a'", "its own name"),
    ],
)
def test_a_test_set_that_cannot_be_used_is_refused_by_name(given, message, remedy, tmp_path):
    words = [word for test in given for word in ("--tests", test)]
    done = command("evaluate", judge_folder(), *words, "--output", tmp_path / "out")
    assert done.code == 2 and message in done.err and remedy in done.err and not (tmp_path / "out").exists()


def test_a_model_that_was_not_trained_here_is_examined_and_has_no_card(tests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = EvaluateRun(judge=str(judge_folder()), tests={"id": tests["id"]}, instruction="t2i-brief", exam=EXAM)
    found = run_evaluation(run)
    assert found is not None and Path(found["evaluation"]).parent.name.startswith("evaluation-")
    done = command("evaluate", judge_folder(), "--tests", tests["id"], "--card")
    assert done.code == 2 and "is no trained reward" in done.err and "Leave out --card" in done.err


def test_a_function_named_as_the_judge_is_examined(tests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "def redness():\n    return lambda images, prompts, metadata: images[:, 0].flatten(1).mean(1)\n"
    Path("rewards.py").write_text(source)
    done = command("evaluate", "rewards.py:redness", "--tests", tests["id"], "exam.probes=3")
    assert done.code == 0, done.err
    evaluation = read_evaluation(json.loads(done.out)["evaluation"])
    assert (evaluation.judge.name, evaluation.judge.kind) == ("redness", "function")
    assert Path("evaluation-redness/evaluation.html").is_file()
    assert "own" in evaluation.tests["id"].order  # type: ignore[operator]
    done = command("evaluate", "rewards.py:redness", "--tests", tests["id"], "--card")
    assert done.code == 2 and "is no trained reward" in done.err


def test_a_reward_is_stressed_by_command_and_its_figures_are_kept(tests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "def redness():\n    return lambda images, prompts, metadata: images[:, 0].flatten(1).mean(1)\n"
    Path("rewards.py").write_text(source)
    given = ["--stress", "stress_options.questions=5", "stress_options.steps=2"]
    given += ["stress_options.decoder=shapeworld-generator", "stress_options.batch_size=3"]
    done = command("evaluate", "rewards.py:redness", *arguments(tests), *given)
    assert done.code == 0, done.err
    evaluation = read_evaluation(json.loads(done.out)["evaluation"])
    for test in evaluation.tests.values():
        stress = test.stress
        assert isinstance(stress, StressFigures) and (stress.pictures, stress.prompts, stress.steps) == (5, 2, 2)
        assert isinstance(stress.pixels, dict) and isinstance(stress.latent, LatentFigures)
        assert 0 < stress.pixels[2].margin.mean <= 2 / 255 + 1e-6 and stress.latent.decoder == "shapeworld-generator"
        assert stress.disturbances["text_alone"].margin.n == 5 and "frozen_frames" in stress.left_out
    page = words(Path("evaluation-redness/evaluation.html").read_text())
    assert "2 of 255 along the gradient +0.01" in page and "reconstruction by shapeworld-generator" in page
    assert re.search(r"one colour .0\.00 \[", page) and "Left out is frozen frames: A picture has one frame." in page
    assert "2 of 255 along its gradient win +0.01" in page and "Whether an optimiser finds what wins" in page


def test_a_reward_that_breaks_under_stress_keeps_its_examination(tests, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flat = "[1 / int(p[0].max() > p[0].min()) for p in images]"  # it cannot look at one colour
    Path("rewards.py").write_text(f"def fussy():\n    return lambda images, prompts, metadata: {flat}\n")
    done = command("evaluate", "rewards.py:fussy", "--tests", f"id={tests['id']}", "exam.probes=1", "--stress")
    assert done.code == 1, done.err
    result = json.loads(done.out)
    stress = sets_of(result["evaluation"])["id"].stress
    assert isinstance(stress, str) and "ZeroDivisionError" in stress
    (row,) = [json.loads(line) for line in Path(result["failures"]).read_text().splitlines()]
    assert row["test"] == "id" and row["pair"] is None and row["reason"] == stress


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["stress_options.steps=2"], "stress_options are given"),
        (["--stress", "stress_options.decoder=nowhere"], "'nowhere'"),
        (["--stress", "stress_options.decoder=shapeworld-judge"], "'shapeworld-judge' is a None"),
        (["--stress", "stress_options.steps=0"], "stress_options.steps"),
    ],
)
def test_a_stress_that_cannot_be_done_is_refused_before_anything(given, said, tests, tmp_path):
    out = tmp_path / "out"
    done = command("evaluate", clip_folder(), "--kind", "clip", "--tests", tests["id"], *given, "--output", out)
    assert done.code == 2 and re.search(said, done.err), done.err
    assert not (out / "evaluation.json").exists()


def test_a_decoder_is_refused_that_draws_no_such_size_or_has_no_gradient(tests, tmp_path):
    pairs = [Preference("a red circle", torch.rand(1, 3, 32, 34), torch.rand(1, 3, 32, 34), 1.0) for _ in range(2)]
    write_preferences(pairs, tmp_path / "wide.jsonl")
    (tmp_path / "rewards.py").write_text(
        "def size():\n    return lambda images, prompts, metadata: [1.0] * len(images)\n"
    )
    asked = ("evaluate", f"{tmp_path / 'rewards.py'}:size", "--stress", "stress_options.decoder=shapeworld-generator")
    asked += ("--output", tmp_path / "out")
    done = command(*asked, "--tests", tmp_path / "wide.jsonl")
    assert done.code == 2 and "line 1 of the preferences file" in done.err and "32×34" in done.err
    done = command(*asked, "--tests", tests["id"], "--judge-options", "images=pil")
    assert done.code == 2 and "gives none" in done.err and "Leave out stress_options.decoder" in done.err
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_a_judge_of_videos_is_not_stressed_with_videos_of_one_frame(tmp_path):
    write_preferences(colour_preferences(4), tmp_path / "still.jsonl")
    asked = ("evaluate", video_judge_folder(), "--instruction", "t2v-brief", "--judge-options", "frames=4")
    done = command(*asked, "--tests", tmp_path / "still.jsonl", "--stress", "--output", tmp_path / "out")
    assert done.code == 2 and "frame" in done.err and "line 1 of the preferences file" in done.err


def test_a_trained_reward_is_documented_with_what_it_was_trained_on(tests, tmp_path):
    folder = reward(tmp_path, "clip")
    judge = build_reward(str(clip_folder()), RewardConfig(kind="clip")).freeze()
    facts = training_facts(JudgeRecipe(base="org/base", kind="clip", epochs=2.5), Path("data/votes.jsonl"), 70, 4)
    without = document(judge, folder, facts, {}, EXAM)
    assert without == {"card": str(folder / "README.md")} and "It was not tested" in (folder / "README.md").read_text()
    result = document(judge, folder, facts, tests, EXAM)
    text = (folder / "README.md").read_text()
    assert "70 pairs of `votes.jsonl`, seed 4" in text and "epochs: 2.5" in text and "learning_rate" not in text
    assert "trained from `org/base`" in text and "## How good it is\n\nIn points" in text
    assert read_evaluation(folder / "evaluation.json").judge.base == "org/base"
    assert Path(result["page"]) == folder / "evaluation.html"
    assert command("evaluate", folder, "--tests", tests["id"], "--card").code == 0  # its own place: beside the folder
    assert "epochs: 2.5" in (folder / "README.md").read_text()


def test_a_reward_is_called_by_its_runs_name():
    assert name_of(Path("/x/runs/first/reward")) == name_of(Path("/x/runs/first/judge/reward")) == "first"
    assert name_of(Path("/models/InternVL3-8B-hf")) == "InternVL3-8B-hf"


def test_a_file_without_a_name_is_called_by_its_own(tests):
    assert named_tests([str(tests["id"]), f"new={tests['ood']}"]) == {"id": tests["id"], "new": tests["ood"]}


def test_a_folder_that_another_evaluation_works_in_is_refused_and_left_as_it_is(tests, tmp_path):
    folder = reward(tmp_path, "pairwise")
    output = folder.parent / "evaluation"
    output.mkdir()
    with locked(output):
        done = command("evaluate", folder, *arguments(tests), "--device", "cpu")
        assert done.code == 2 and f"{output} is in use by another run (process {os.getpid()}" in done.err
        assert [path.name for path in output.iterdir()] == [".lock"]


def cut(path: Path) -> Path:
    """A picture whose header is sound and whose rest is gone."""
    Image.effect_noise((64, 64), 80).convert("RGB").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def rows_with(folder: Path, tests: dict[str, Path], broken: Sequence[int]) -> Path:
    """The rows of a sound test set, of which some have a picture that is cut off."""
    cut(folder / "cut.jpg")
    rows = [json.loads(line) for line in tests["id"].read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {key: str(tests["id"].parent / row[key]) for key in ("media_a", "media_b")}
        if number in broken:
            row["media_a"] = str(folder / "cut.jpg")
    path = folder / "rows.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_set_of_which_nothing_can_be_judged_leaves_the_others_their_figures(tests, tmp_path):
    bad = rows_with(tmp_path, tests, range(99))
    line = ["evaluate", str(judge_folder()), "--kind", "pointwise", "--tests", f"id={tests['id']}"]
    done = command(*line, "--tests", f"ood={bad}", "--output", tmp_path / "out", "exam.probes=1")
    assert done.code == 1 and [*sets_of(str(tmp_path / "out" / "evaluation.json"))] == ["id"]
    assert "cut.jpg" in (tmp_path / "out" / "evaluation.failed.jsonl").read_text()
    alone = command(*line[:-1], f"id={bad}", "--output", tmp_path / "alone", "exam.probes=1")
    assert alone.code == 2 and "none of the" in alone.err


def test_python_finds_a_pair_that_cannot_be_asked_before_any_is_and_names_its_line(tests, tmp_path):
    rows = rows_with(tmp_path, tests, [])
    lines = rows.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {"prompt": "a <|im_end|>"})
    rows.write_text("\n".join(lines))
    asked = []

    class Counted(BrightnessJudge):
        def faults(self, questions):
            yield from (InputError("a token.", "") if "<|" in q.prompt.text else None for q in questions)

        def __call__(self, questions):
            asked.append(len(questions))
            return super().__call__(questions)

    with pytest.raises(InputError, match="line 3"):
        evaluate(Counted(), rows)
    assert not asked
    with pytest.raises(InputError, match=f"line 4 of .*{rows.name}.*cut.jpg"):
        evaluate(BrightnessJudge(), rows_with(tmp_path, tests, [2]))
    with pytest.raises(InputError, match="number 1 of the preferences of test is"):
        evaluate(BrightnessJudge(), [{"prompt": "x"}])


def test_a_broken_picture_is_named_by_its_line_and_a_tests_one_before_the_training(tests, tmp_path):
    rows = rows_with(tmp_path, tests, [1])
    options = {"base": str(judge_folder()), "kind": "pointwise", "batch_size": 2, "epochs": 1.0}
    with pytest.raises(InputError, match=r"line 3 of .*cut.jpg"):
        train_reward(tests["id"], tests={"id": rows}, output=tmp_path / "tested", **options)
    assert not [*(tmp_path / "tested").glob("checkpoint-*")] and not (tmp_path / "tested" / "metrics.jsonl").exists()
    with pytest.raises(InputError, match=r"line 3 of .*cut.jpg.*goes on"):
        train_reward(rows, output=tmp_path / "out", save_every=1, **options)
    (tmp_path / "cut.jpg").unlink()
    with pytest.raises(InputError, match="usable pairs"):
        train_reward(rows, output=tmp_path / "out", save_every=1, skip_faulty=True, **options)
    Image.new("RGB", (32, 32)).save(tmp_path / "cut.jpg")
    train_reward(rows, output=tmp_path / "out", save_every=1, **options)
    assert json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])["step"] > 0
