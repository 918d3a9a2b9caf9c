"""The public names: objects or names everywhere, a function as a reward everywhere, and errors that name the option."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import colour_preferences, command, generator_folder, judge_folder, picture_folder, pictures

import rewarddance
from rewarddance import (
    Prompt,
    align,
    as_pixels,
    as_reward,
    bench,
    evaluate,
    load_generator,
    load_reward,
    score,
    search,
    train_reward,
)
from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError, RewardDanceError
from rewarddance.evaluation.findings import StressFigures
from rewarddance.types import Preference, Verdict

PROMPTS = ["a red circle", "a blue cross"]


def brightness(images, prompts, metadata):
    return 10 * images.mean((1, 2, 3))


def make_brightness(weight: float = 1.0):
    return lambda images, prompts, metadata: weight * images.mean((1, 2, 3))


PAIRS = colour_preferences(1)


class Says:
    """A reward of somebody else's that answers with these margins, or with no verdict."""

    needs_reference = False

    def __init__(self, margin):
        self.margin = margin

    def __call__(self, questions):
        return None if self.margin is None else Verdict(self.margin)


class Never:
    """A reward that must not be asked."""

    needs_reference = False

    def __call__(self, questions):
        raise AssertionError("it was asked")


def tiny_generator():
    return load_generator(str(generator_folder()), num_inference_steps=3)


@pytest.fixture
def folder(tmp_path) -> Path:
    return picture_folder(tmp_path / "pictures")


def test_every_public_name_is_there_and_search_is_the_function():
    assert dir(rewarddance) == sorted([*rewarddance.__all__, "__version__"])
    assert all(getattr(rewarddance, name) for name in dir(rewarddance))
    assert rewarddance.InputError is InputError
    code = (
        "import rewarddance.search.run; from rewarddance import search; assert search.__module__ == 'rewarddance.api'"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_score_takes_pictures_in_memory_one_or_many():
    judge = load_reward(str(judge_folder()))
    a, b, reference = pictures(3)
    rows = score(judge, [a, b], PROMPTS, reference=reference)
    direct = judge.compare(PROMPTS[1], b, reference=reference)
    assert [row["prompt"] for row in rows] == PROMPTS and rows[1]["margin"] == pytest.approx(direct.margin.item())
    (one,) = score(judge, a, "a red circle", reference=reference)
    assert one["probability"] == pytest.approx(rows[0]["probability"])
    (bright,) = score(brightness, a, Prompt("a dog", metadata={"tag": 1}))
    assert bright["margin"] == pytest.approx(10 * float(as_pixels(a).mean()))


def test_score_takes_a_folder_and_writes_it_where_it_is_told(folder, tmp_path):
    rows = score(str(judge_folder()), folder, kind="pointwise", output=tmp_path / "scores.jsonl")
    assert [row["candidate"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 3
    assert score(brightness, folder, output=tmp_path / "out.jsonl") == score(
        brightness, folder, output=tmp_path / "out.jsonl"
    )  # it goes on, which here is nothing
    assert score(brightness, folder)[0]["margin"] == pytest.approx(10 * float(as_pixels(folder / "0.png").mean()))


def test_a_judge_is_trained_on_preferences_in_memory_and_evaluated(tmp_path):
    keys = {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 4, "epochs": 1}
    pairs = colour_preferences(8)
    judge = train_reward(pairs, output=tmp_path / "run", **keys)
    assert repr(judge).startswith("PairwiseReward(kind='pairwise'") and str(tmp_path) in repr(judge)
    assert train_reward(pairs, output=tmp_path / "run", **keys).config == judge.config  # it is done
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert train_reward(pairs, output=tmp_path / "moved", **keys).config == judge.config
    with pytest.raises(InputError, match="holds other preferences"):
        train_reward(colour_preferences(8, seed=3), output=tmp_path / "run", **keys)
    write_preferences(colour_preferences(6, seed=1), tmp_path / "held.jsonl")
    found = evaluate(judge, {"id": tmp_path / "held.jsonl"}, exam={"probes": 2}, output=tmp_path / "evaluation")
    assert found.tests["id"].accuracy.n == 6 and (tmp_path / "evaluation" / "evaluation.html").is_file()
    with pytest.raises(InputError, match="holds a run with judge"):  # before anything is asked
        evaluate(Never(), {"id": tmp_path / "held.jsonl"}, exam={"probes": 2}, output=tmp_path / "evaluation")
    memory = evaluate(judge, colour_preferences(6, seed=1), exam={"probes": 2})
    assert memory.tests["test"].accuracy == found.tests["id"].accuracy
    for _ in range(2):  # a function has a name, and no place in memory
        again = evaluate(make_brightness(), colour_preferences(6, seed=1), exam={"probes": 2}, output=tmp_path / "own")
    assert again.judge.kind == "function" and " at 0x" not in (tmp_path / "own" / "evaluation.yaml").read_text()


def test_a_test_set_that_is_trained_on_is_said_to_be(tmp_path, capfd):
    write_preferences(colour_preferences(4), tmp_path / "votes.jsonl")
    keys = {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 4, "epochs": 1}
    tests = {"id": tmp_path / "votes.jsonl"}
    train_reward(tmp_path / "votes.jsonl", output=tmp_path / "run", tests=tests, exam={"probes": 2}, **keys)
    assert "4 of 4 pairs of the test set id have a picture" in " ".join(capfd.readouterr().err.split())


def test_a_function_of_another_number_of_scores_is_not_asked_again(folder):
    asked = []

    def mean_of_all(images, prompts, metadata):
        asked.append(len(images))
        return images.mean()

    with pytest.raises(RewardDanceError, match=r"\[1\] for 3 images"):
        score(mean_of_all, pictures(3), "a red circle")
    with pytest.raises(RewardDanceError, match=r"\[1\] for 3 images"):
        score(mean_of_all, folder)
    assert asked[0] == 3 and set(asked) == {3}


def test_an_instruction_beside_criteria_and_an_unknown_option_are_refused():
    with pytest.raises(InputError, match="criteria are asked in place of the instruction"):
        load_reward(str(judge_folder()), criteria="t2i", instruction="t2i-brief")
    with pytest.raises(InputError, match="no option 'batchsize' here for a reward that is loaded"):
        score(brightness, pictures(1), "a red circle", batchsize=1)


def test_a_function_is_stressed_with_preferences_in_memory():
    found = evaluate(brightness, colour_preferences(4), exam={"probes": 2}, stress=True, stress_options={"steps": 1})
    stress = found.tests["test"].stress
    assert isinstance(stress, StressFigures) and isinstance(stress.pixels, dict)
    assert stress.pixels[8].margin.mean == pytest.approx(10 * 8 / 255, rel=0.05)  # a few values are at their ends
    assert evaluate(brightness, colour_preferences(4), exam={"probes": 2}).tests["test"].stress is None
    with pytest.raises(InputError, match="stress_options"):
        evaluate(brightness, colour_preferences(4), stress_options={"steps": 1})


@pytest.mark.parametrize("algorithm", ["refl", "grpo", "nft"])
def test_a_function_aligns_a_generator_by_every_algorithm(algorithm, tmp_path):
    keys = {"steps": 1, "prompts_per_step": 2, "group_size": 2, "lora_rank": 2, "lora_alpha": 2}
    if algorithm == "refl":
        keys["references"] = {"candidates": 3}
    generator = align(tiny_generator(), brightness, PROMPTS, output=tmp_path, algorithm=algorithm, **keys)
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert any(weight.abs().sum() > 0 for name, weight in generator.network.named_parameters() if "lora_B" in name)
    align(tiny_generator(), brightness, PROMPTS, output=tmp_path, algorithm=algorithm, **keys)  # again: it is done


CRITERIA = {"a": {"criteria": "t2i"}}


def dark(images, prompts, metadata):
    return -3 * images.mean((1, 2, 3))


@pytest.mark.parametrize("algorithm", ["refl", "nft"])
def test_several_rewards_are_given_by_name_or_in_a_row(algorithm, tmp_path):
    keys = {"steps": 1, "prompts_per_step": 2, "group_size": 2, "lora_rank": 2, "lora_alpha": 2, "grid_prompts": 0}
    if algorithm == "refl":
        keys["references"] = {"candidates": 3}
    named = {"light": brightness, "judge": str(judge_folder()), "dark": {"judge": dark, "weight": 0.5}}
    align(tiny_generator(), named, PROMPTS, output=tmp_path / "named", algorithm=algorithm, **keys)
    text = (tmp_path / "named" / "metrics.jsonl").read_text()
    assert all(f"margin/{name}" in text for name in named)
    align(tiny_generator(), [brightness, dark], PROMPTS, output=tmp_path / "row", algorithm=algorithm, **keys)
    assert "margin/reward_2" in (tmp_path / "row" / "metrics.jsonl").read_text()
    config = (tmp_path / "named" / "config.yaml").read_text()
    assert "weight: 0.5" in config and "FunctionReward(dark" in config and " at 0x" not in config


def test_names_and_objects_align_alike(tmp_path):
    keys = {"steps": 1, "prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "references": {"candidates": 3}}
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    names = str(generator_folder()), str(judge_folder()), tmp_path / "prompts.txt"
    first = align(*names, output=tmp_path / "names", num_inference_steps=3, **keys)
    second = align(tiny_generator(), load_reward(str(judge_folder())), PROMPTS, output=tmp_path / "objects", **keys)
    weights = [[w for n, w in g.network.named_parameters() if "lora" in n] for g in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_script_that_was_started_several_times_is_refused_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="several were started") as caught:
        align(tiny_generator(), brightness, PROMPTS, output=tmp_path / "run", algorithm="nft", steps=1)
    assert "torchrun" in caught.value.remedy and not (tmp_path / "run").exists()


def test_a_reward_without_gradient_is_refused_for_refl_before_anything_is_done(tmp_path):
    def counted(images, prompts, metadata):
        return [0.5] * len(prompts)

    keys = {"steps": 1, "prompts_per_step": 1, "group_size": 2, "references": {"candidates": 3}}
    with pytest.raises(RewardDanceError, match="gives no gradient"):
        align(tiny_generator(), counted, PROMPTS, output=tmp_path / "run", **keys)


def test_search_takes_names_functions_and_the_methods_options():
    found = search(tiny_generator(), brightness, PROMPTS, budget="samples=3", runners_up=2)
    scores = [[candidate.score for candidate in one.pictures] for one in found]
    assert all(row == sorted(row, reverse=True) and len(row) == 3 for row in scores)
    named = search(
        str(generator_folder()), str(judge_folder()), PROMPTS[:1], num_inference_steps=2, budget="samples=2", n=2
    )
    assert named[0].winner.pixels.shape[1] == 3


def test_media_are_asked_about_in_batches_of_the_size_given():
    asked = []

    def counting(images, prompts, metadata):
        asked.append(len(images))
        return images.mean((1, 2, 3))

    rows = score(counting, pictures(5), "a dog", batch_size=2)
    assert asked == [2, 2, 1] and [row["margin"] for row in rows] == [float(each.mean()) for each in pictures(5)]


def test_of_a_video_file_at_most_max_frames_are_read(tmp_path):
    from rewarddance.data.media import write_picture

    for number, picture in enumerate(pictures(6)):
        write_picture(picture, tmp_path / "film" / f"{number}.png")
    seen = []

    class Frames(Never):
        def __call__(self, questions):
            seen.extend(len(question.candidate) for question in questions)
            return Verdict(torch.zeros(len(questions)))

    score(Frames(), [tmp_path / "film"], "a dog", max_frames=4)
    assert seen == [4]


def test_one_pair_bounds_nothing(tmp_path):
    """A mean of one is no certain mean: its interval has no ends, and JSON says null."""
    found = evaluate(brightness, PAIRS, output=tmp_path / "out", stress=True, stress_options={"questions": 1})
    noise = found.tests["test"].stress.disturbances["contrast"]
    assert noise.margin.low == -math.inf and noise.margin.high == math.inf and noise.beats.low >= 0
    written = (tmp_path / "out" / "evaluation.json").read_text()
    assert '"low":null' in written.replace(" ", "") and type(found).model_validate_json(written) == found
    assert "∞" in (tmp_path / "out" / "evaluation.html").read_text()


def test_a_reward_of_ones_own_is_named_in_recipes_with_its_options():
    reward = load_reward("test_public_face:make_brightness", weight=3.0)
    (row,) = score(reward, pictures(1), "a dog")
    assert row["margin"] == pytest.approx(3 * float(pictures(1)[0].mean()))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda out: align(tiny_generator(), brightness, PROMPTS, output=out, stepz=3), "stepz"),
        (lambda out: align(tiny_generator(), brightness, PROMPTS, output=out, algorithm="dpo"), "dpo"),
        (lambda out: align(tiny_generator(), {}, PROMPTS, output=out), "no rewards"),
        (lambda out: align(tiny_generator(), {"a": {"judge": dark, "weigth": 1}}, PROMPTS, output=out), "weigth"),
        (lambda out: align(tiny_generator(), {"a": {"judge": dark, "weight": 0}}, PROMPTS, output=out), "weight 0"),
        (lambda out: align(tiny_generator(), {"a": {"judge": dark, "options": {"x": 1}}}, [], output=out), "options"),
        (lambda out: align(tiny_generator(), dark, PROMPTS, output=out, algorithm="nft", window=2), "a key of grpo"),
        (lambda out: align(tiny_generator(), [dark], PROMPTS, output=out, rewards={"a": {}}), "given twice"),
        (lambda out: align(tiny_generator(), dark, PROMPTS, output=out, rewards=CRITERIA), "reward a"),
        (lambda out: align(tiny_generator(), brightness, PROMPTS, output=out, num_inference_steps=4), "num_inference"),
        (lambda out: search(tiny_generator(), brightness, PROMPTS, copies=3), "copies"),
        (lambda out: search(tiny_generator(), brightness, PROMPTS, method="beam"), "beam"),
        (lambda out: train_reward(out / "none.jsonl", output=out, learning_rat=1), "learning_rat"),
        (lambda out: score(brightness, pictures(2), ["one", "two", "three"]), "3 prompts for 2 candidates"),
        (lambda out: score(brightness, pictures(1), "a dog", kind="clip"), "kind"),
        (lambda out: score(str(judge_folder()), pictures(1), "a dog"), "pairwise judge cannot score"),
        (lambda out: evaluate(brightness, out / "none.jsonl"), "none.jsonl"),
        (lambda out: evaluate(brightness, []), "no preferences of test"),
        (lambda out: evaluate(brightness, None), "None is no list of preferences"),
        (lambda out: evaluate(brightness, PAIRS, exam=3), "exam"),
        (lambda out: evaluate(brightness, [*PAIRS, "a.jsonl"]), "number 2 of the preferences of test is 'a.jsonl'"),
        (lambda out: evaluate(brightness, {1: PAIRS}), "a test set has the name 1"),
        (lambda out: evaluate(brightness, {" ": PAIRS}), "a test set has the name ' '"),
        (lambda out: score(brightness, pictures(1), "a dog", batch_size=0), "batch_size"),
        (lambda out: score(brightness, pictures(1), "a dog", max_frames=0), "max_frames"),
        (lambda out: score(brightness, {"a": pictures(1)[0]}, "a dog"), "no list of pictures"),
        (lambda out: search(tiny_generator(), brightness, b"a dog"), "no list of prompts"),
        (lambda out: evaluate(Says(None), PAIRS), "answered 2 questions with None"),
        (lambda out: evaluate(Says(torch.zeros(1)), PAIRS), "margins of the shape [1]"),
        (lambda out: evaluate(Says(torch.full((2,), torch.nan)), PAIRS), "is nan"),
        (lambda out: score(Says(torch.full((1,), torch.nan)), pictures(1), "a dog"), "is nan"),
        (lambda out: score(brightness, pictures(1), 3), "3 is no list of prompts"),
        (lambda out: train_reward([], output=out / "run"), "no preferences"),
        (lambda out: train_reward(None, output=out / "run"), "None is no list of preferences"),
        (lambda out: train_reward(PAIRS, output=None), "output"),
        (lambda out: train_reward(PAIRS, output=out / "run", tests=["held.jsonl"]), "tests"),
        (lambda out: search(tiny_generator(), brightness, None), "None is no list of prompts"),
        (lambda out: search(tiny_generator(), brightness, []), "no prompts"),
        (lambda out: search(3, brightness, PROMPTS), "3 is no generator"),
        (lambda out: search(tiny_generator(), brightness, PROMPTS, budget=3), "3 is no budget"),
        (lambda out: search(tiny_generator(), brightness, PROMPTS, judging="best"), "judging named 'best'"),
        (lambda out: search(tiny_generator(), brightness, PROMPTS, seed=-1), "seed -1"),
        (
            lambda out: search(tiny_generator(), brightness, PROMPTS, method=["paths"]),
            "no search method named ['paths']",
        ),
        (lambda out: align(3, brightness, PROMPTS, output=out, algorithm=["nft"]), "no algorithm named ['nft']"),
        (lambda out: align(3, brightness, PROMPTS, output=out), "3 is no generator"),
        (lambda out: align(tiny_generator(), brightness, [], output=out), "no prompts"),
        (lambda out: bench("geneval", "a.jsonl", generator=3, output=out), "3 is no generator"),
        (lambda out: load_generator(None, 2), "None names no checkpoint"),
        (lambda out: load_generator(" ", 2), "' ' names no checkpoint"),
        (lambda out: load_generator(str(generator_folder()), 2, device="tpu"), "no device 'tpu'"),
        (lambda out: as_reward(brightness, batch_size=0), "batch_size 0"),
        (lambda out: score(brightness, pictures(2), ["a dog", ""]), "prompt 2 is empty"),
        (lambda out: search(tiny_generator(), brightness, ["a dog", " \n"]), "prompt 2 is empty"),
        (lambda out: align(tiny_generator(), brightness, ["", "a dog"], output=out), "prompt 1 is empty"),
        (lambda out: Preference("a dog", *pictures(2), float("nan")), "the share nan"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(call, named, tmp_path):
    with pytest.raises(RewardDanceError) as caught:
        call(tmp_path)
    assert named in f"{caught.value.what} {caught.value.remedy}"


NO_PIXELS = """
import torch
from rewarddance.types import Preference, Prompt, Question

for make in (
    lambda: Preference("a dog", "a.png", "b.png", 1.0),
    lambda: Prompt("a dog", image="a.png"),
    lambda: Question("a dog", torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),
    lambda: Question("a dog", torch.zeros(3, 4, 4)),
):
    try:
        make()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_paths_and_bytes_in_the_place_of_pixels_are_refused():
    """In a process of its own, where no checks of types but the library's are on."""
    done = subprocess.run([sys.executable, "-c", NO_PIXELS], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(line.startswith("InputError") and "as_pixels" in line for line in lines), done
    named = ("first picture of a preference is a str", "picture of a prompt is a str", "torch.uint8", "[3, 4, 4]")
    assert all(name in line for name, line in zip(named, lines, strict=True))


def test_iterators_are_taken_as_lists_are():
    assert len(score(brightness, iter(pictures(2)), iter(["one", "two"]))) == 2
    assert evaluate(brightness, iter(PAIRS), exam={"probes": 1}).tests["test"].pairs == 1
    assert len(search(tiny_generator(), brightness, iter(PROMPTS), budget="samples=1")) == len(PROMPTS)


def test_preferences_are_not_kept_where_an_option_is_refused(tmp_path):
    with pytest.raises(InputError, match="epoch"):
        train_reward(PAIRS, output=tmp_path / "run", epoch=1)
    assert not (tmp_path / "run").exists()


def test_a_score_goes_on_by_the_command_and_not_with_another_judge(tmp_path, monkeypatch):
    folder, own = picture_folder(tmp_path / "pictures"), tmp_path / "judge"
    shutil.copytree(judge_folder(), own)
    out = tmp_path / "scores.jsonl"
    rows = score(str(own), folder, kind="pointwise", output=out)
    done = command("score", folder, "--judge", own, "--kind", "pointwise", "--output", out)
    assert done.code == 0 and len(rows) == 3, done.err
    with pytest.raises(InputError, match=r"max_pixels"):
        score(str(own), folder, kind="pointwise", max_pixels=99999, output=out)
    os.utime(own / "config.json", (0, 0))
    with pytest.raises(InputError, match="not begin with the same judge"):
        score(str(own), folder, kind="pointwise", output=out)
    second = tmp_path / "second.jsonl"
    score(load_reward(own, kind="pointwise"), folder, output=second)
    with pytest.raises(InputError, match="judge"):
        score(load_reward(own, kind="pointwise", among="vocabulary"), folder, output=second)


def test_prompts_are_equal_either_way_round():
    image = torch.zeros(1, 3, 4, 4)
    a, b = Prompt("a", image=image), Prompt("a", image=image, image_path=Path("x.png"))
    assert (a == b) == (b == a) and (a != b or hash(a) == hash(b))
