"""Each method of search on the pretend device, and the commands themselves from a recipe on."""

from __future__ import annotations

import pytest
import yaml
from tiny import align_recipe, colour_preferences, command, generator_folder, judge_folder, picture_folder

from rewarddance.data.preferences import write_preferences
from rewarddance.generators.pipelines import load_generator
from rewarddance.reward.loading import load_reward
from rewarddance.search.run import METHODS, read_method, search
from tests.on_device.aligning import ASKED, CONDITIONING, PROMPTS
from tests.on_device.ground import DEVICE, on_device, waits_of

ALLOWED = ASKED | CONDITIONING | {"protocols.py checked_verdict": "a score that is not finite is an error"}
OPTIONS = {"paths": {"paths": 1, "copies": 2}, "refine": {"samples": 2}}
WRITING = {
    "reward/vlm_judge.py VisionLanguageModel.write": "transformers looks after each token whether all answers end",
    "reward/vlm_judge.py VisionLanguageModel._generation_inputs": "the questions that answers are written to",
    "reward/reasoning.py Answers.reasons": "which answer each reason is of",
    "search/judging.py Alone._rank": "scores are compared on the host, once a round",
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_waits_once_a_round(method):
    kind = "pointwise" if method == "refine" else "pairwise"
    changes = {"max_reason_tokens": 3} if method == "refine" else {}
    judge = load_reward(judge_folder(), DEVICE, "bfloat16", kind=kind, **changes)
    generator = load_generator(str(generator_folder()), 4, device=DEVICE, dtype="bfloat16")
    recipe = read_method(method, OPTIONS.get(method, {}))
    allowed = ALLOWED | (WRITING if method == "refine" else {})
    budget = "samples=8" if method == "paths" else "samples=4"  # or it has no second round
    assert not waits_of(lambda: search(generator, judge, PROMPTS[:1], recipe, budget), allowed)


@pytest.mark.timeout(200)
def test_every_command_runs_from_its_recipe_to_its_files(tmp_path):
    on_device()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\ntwo small blue crosses\n")
    pictures = picture_folder(tmp_path / "pictures")
    pairs = tmp_path / "pairs.jsonl"
    write_preferences(colour_preferences(4), pairs)
    recipe = {"preferences": str(pairs), "output": str(tmp_path / "judge")}
    recipe["judge"] = {"base": str(judge_folder()), "instruction": "t2i-brief", "batch_size": 2, "epochs": 1}
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(recipe))
    judge, generator = str(judge_folder()), str(generator_folder())
    lines = [
        ["score", str(pictures), "--judge", judge, "--kind", "pointwise", "--output",
         str(tmp_path / "scores.jsonl")],
        ["search", str(prompts), "--generator", generator, "--judge", judge, "--method", "best_of_n", "--budget",
         "samples=2", "--num-inference-steps", "2", "--output", str(tmp_path / "found")],
        ["train", str(tmp_path / "judge.yaml"), "judge.dtype=bfloat16"],
        ["evaluate", str(tmp_path / "judge" / "reward"), "--tests", f"id={pairs}", "exam.probes=2"],
        ["references", str(align_recipe(tmp_path))],
        ["align", str(align_recipe(tmp_path))],
    ]  # fmt: skip
    for line in lines:
        done = command(*line)
        assert done.code == 0, f"{line[0]}: {done.err[-2000:]}"
