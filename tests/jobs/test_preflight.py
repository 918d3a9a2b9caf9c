"""What a run will read is looked at before it begins: all faults at once, each with its row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sets import write_video
from tiny import align_recipe, colour_preferences, command, generator_folder, judge_folder

from rewarddance import load_generator, load_reward
from rewarddance.data.media import media_size
from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.jobs.preflight import blank
from rewarddance.jobs.quickstart import QuickstartRecipe, preflight, start_run
from rewarddance.runtime.lock import locked
from rewarddance.types import Prompt, Question

TURN = "a <|im_end|> mark"


def rows(path: Path, *changes: tuple[int, dict]) -> Path:
    """A preferences file of eight pairs, some rows changed."""
    write_preferences(colour_preferences(8), path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, change in changes:
        lines[number - 1] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def training(tmp_path: Path, *changes: tuple[int, dict]) -> Path:
    judge = {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 4}
    content = {
        "preferences": str(rows(tmp_path / "p.jsonl", *changes)),
        "output": str(tmp_path / "run"),
        "judge": judge,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "train.yaml"


def test_train_names_all_rows_that_cannot_be_read_and_takes_no_step(tmp_path):
    recipe = training(tmp_path, (2, {"prompt": TURN}), (5, {"media_a": "gone.png"}), (7, {"prompt": "a" * 70_000}))
    done = command("train", recipe)
    assert done.code == 2 and not (tmp_path / "run" / "metrics.jsonl").exists()
    assert all(f"line {number} of the preferences file" in done.err for number in (2, 5, 7)), done.err
    assert "--skip-faulty" in done.err
    done = command("train", recipe, "--skip-faulty")
    assert done.code == 1 and json.loads(done.out)["skipped"] == 3, done.err
    listed = [json.loads(line) for line in (tmp_path / "run" / "faulty.jsonl").read_text().splitlines()]
    assert sorted(fault["where"].split()[1] for fault in listed) == ["2", "5", "7"]


def test_evaluate_refuses_a_set_with_faulty_rows_or_leaves_them_out(tmp_path):
    tests = rows(tmp_path / "t.jsonl", (3, {"prompt": TURN}), (4, {"share": 7}))
    options = ["--tests", f"id={tests}", "--instruction", "t2i-brief", "--output", tmp_path / "out", "exam.probes=2"]
    done = command("evaluate", judge_folder(), *options)
    assert done.code == 2 and "line 3 " in done.err and "line 4 " in done.err, done.err
    done = command("evaluate", judge_folder(), *options, "--skip-faulty")
    assert done.code == 1 and json.loads(done.out)["skipped"] == 2, done.err


def test_a_video_whose_own_rate_is_another_is_refused_before_it_is_judged(tmp_path):
    load_reward(str(judge_folder()), instruction="t2v-brief", frames=4, fps=8.0).save(tmp_path / "reward")
    noise = [np.random.default_rng(i).integers(0, 255, (32, 32, 3)) for i in range(8)]
    for name, rate in (("right", 8), ("fast", 24)):
        write_video(tmp_path / f"{name}.mp4", noise, rate=rate)
    pairs = [
        {"prompt": "a circle", "media_a": "right.mp4", "media_b": f"{name}.mp4", "share": 1}
        for name in ("right", "fast")
    ]
    tests = tmp_path / "videos.jsonl"
    tests.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    done = command("evaluate", tmp_path / "reward", "--tests", f"id={tests}", "--output", tmp_path / "out")
    assert done.code == 2 and "line 2 " in done.err and "line 1 " not in done.err
    assert "has 24 frames a second, and this judge knows videos of 8" in " ".join(done.err.split())


@pytest.mark.parametrize("prompt", ["", " \t\n", "\u3000"])
def test_a_blank_prompt_is_no_question(tmp_path, prompt):
    done = command("data", "check", rows(tmp_path / "p.jsonl", (3, {"prompt": prompt})))
    assert done.code == 1 and "1 rows are broken" in done.err
    with pytest.raises(InputError, match="is blank"):
        Question(prompt, torch.zeros(1, 3, 8, 8))


def test_score_reads_all_rows_before_it_asks(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    texts = ["a circle", TURN, "a cross"]
    lines = [{"prompt": text, "candidate": "a.png"} for text in texts] + [{"prompt": "b", "candidate": "gone.png"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["score", tmp_path / "rows.jsonl", "--judge", judge_folder(), "--kind", "pointwise"]
    asked += ["--output", tmp_path / "out.jsonl"]
    done = command(*asked)
    assert done.code == 2 and "line 2 " in done.err and "line 4 " in done.err and not (tmp_path / "out.jsonl").exists()
    done = command(*asked, "--skip-faulty")
    assert done.code == 1 and json.loads(done.out)["scored"] == 2, done.err


@pytest.fixture
def prompts(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text(f"a red circle\n{TURN}\na blue square\nhalf of one\0\n")
    return tmp_path / "prompts.txt"


def test_search_refuses_faulty_prompts_or_leaves_them_out(tmp_path, prompts):
    words = [
        "search",
        prompts,
        "--generator",
        generator_folder(),
        "--num-inference-steps",
        "2",
        "--budget",
        "samples=1",
    ]
    words += ["--judge", judge_folder(), "--kind", "pointwise", "--output", tmp_path / "found"]
    done = command(*words)
    assert done.code == 2 and "<|im_end|>" in done.err and "line 4 " in done.err, done.err
    done = command(*words, "--skip-faulty")
    assert done.code == 1 and json.loads(done.out)["skipped"] == 2, done.err


def test_align_refuses_a_prompt_of_many_before_its_first_step(tmp_path, prompts):
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 2,
        "judge": str(judge_folder()),
        "judge_options": {"kind": "pointwise", "instruction": "t2i-brief"},
        "prompts": str(prompts),
        "output": str(tmp_path / "run"),
        "algorithm": "nft",
        "nft": {"steps": 1, "prompts_per_step": 2, "group_size": 2, "probe_every": 1, "probe_prompts": 1, "levels": 1},
    }
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(content))
    done = command("align", tmp_path / "align.yaml")
    assert done.code == 2 and "<|im_end|>" in done.err and "line 4 " in done.err, done.err
    assert not (tmp_path / "run").exists()
    done = command("align", tmp_path / "align.yaml", "--skip-faulty")
    assert done.code == 1 and json.loads(done.out)["prompts"] == 2, done.err
    listed = (tmp_path / "run" / "faulty.jsonl").read_text()
    with locked(tmp_path / "run"):  # the folder of a run that goes on is left alone by one that is refused
        prompts.write_text("a red circle\na blue square\n")
        done = command("align", tmp_path / "align.yaml", "--skip-faulty")
    assert done.code == 2 and (tmp_path / "run" / "faulty.jsonl").read_text() == listed, done.err


def test_an_alarm_of_edits_cannot_stop_a_run_without_any(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    done = command("align", align_recipe(tmp_path, {"steps": 32}), "refl.alarms.stop_on=[repainted]")
    assert done.code == 2 and "stop_on names repainted" in done.err and not (tmp_path / "run").exists()


def test_quickstart_refuses_a_key_before_it_draws_a_picture(tmp_path):
    for number, (key, value, said) in enumerate(
        [("judge", {"base": "shapeworld-nothing"}, "shapeworld-nothing"), ("refl", {"lora_targets": ["to_x"]}, "to_x")]
    ):
        run = start_run(QuickstartRecipe(**{key: value}), tmp_path / str(number))
        with pytest.raises(InputError, match=said):
            preflight(run)
        assert not (run.folder / "preferences").exists()


def test_the_bundled_quickstarts_recipe_passes(tmp_path):
    preflight(start_run(QuickstartRecipe(refl_prompts=8), tmp_path / "run"))


@pytest.mark.parametrize(("name", "reads"), [("shapeworld-unet", 22), ("shapeworld-generator", 1023)])
def test_a_prompt_beyond_the_text_encoder_is_named_with_what_is_cut(name, reads):
    generator = load_generator(name, 2)
    ((tokenizer, limit),) = generator._text_limits
    assert limit == reads
    words = "a " * 5000
    longest = tokenizer.decode(tokenizer(words, add_special_tokens=False).input_ids[:limit])
    generator.check_prompts([Prompt(longest)])
    with pytest.raises(InputError, match=f"reads {reads}") as caught:
        sample(generator, [longest + " red circle cross"], seeds=[0])
    assert "cross" in caught.value.what and "cut_prompts" in caught.value.remedy
    cutting = load_generator(name, 2, cut_prompts=True)
    assert sample(cutting, [longest + " red circle cross"], seeds=[0]).isfinite().all()


@pytest.mark.parametrize(("base", "kind"), [("shapeworld-judge-small", "regressive"), ("shapeworld-clip", "clip")])
def test_every_kind_of_judge_says_what_it_cannot_be_asked(base, kind, tmp_path):
    if kind == "regressive":
        from rewarddance.reward.judge import RewardConfig
        from rewarddance.reward.loading import build_reward

        judge = build_reward(base, RewardConfig(kind="regressive"))
    else:
        judge = load_reward(base, kind=kind)
    picture = blank(1, 32, 32)
    good, long = judge.faults([Question("a circle", picture), Question("circle " * 5000, picture)])
    assert good is None and "tokens" in long.what
    assert judge([Question("a circle", torch.rand(1, 3, 32, 32))]).margin.isfinite().all()


def test_the_size_of_a_picture_is_read_from_its_header(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 24)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (40, 24)).save(tmp_path / "plain.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "plain.png").read_bytes()[:-20])
    sizes = [media_size(tmp_path / name) for name in ("turned.jpg", "plain.png", "cut.png")]
    assert sizes == [(1, 40, 24), (1, 24, 40), (1, 24, 40)]
    with pytest.raises(InputError, match=r"gone\.png"):
        media_size(tmp_path / "gone.png")
