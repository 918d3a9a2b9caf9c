"""The tutorial of a public model runs from its first command to its last, with small models of the same classes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml
from snippets import ROOT, command_lines, snippets
from tiny import command, family_folder, judge_folder
from tiny_pipelines import options, pipeline_folder

PAGE = "docs/tutorials/public_model.md"
SERVING = "annotate"
"""The command that waits for people, and so is not run."""
TINY_TRAINING = {"batch_size": 4, "gradient_accumulation_steps": 2, "workers": 0, "save_every": 2}
TINY_ALIGNMENT = {
    "steps": 1,
    "prompts_per_step": 2,
    "learning_rate": 0.1,
    "lora_rank": 2,
    "lora_alpha": 2,
    "save_every": 1,
}


def small_recipe(name: str, to: Path, model: dict[str, Any], **parts: dict[str, Any]) -> None:
    """A recipe of the project with another model, and smaller numbers in some of its parts."""
    recipe = yaml.safe_load((ROOT / "recipes" / name).read_text()) | model
    for part, keys in parts.items():
        recipe[part] = recipe.get(part, {}) | keys
    (to / "recipes" / name).parent.mkdir(parents=True, exist_ok=True)
    (to / "recipes" / name).write_text(yaml.safe_dump(recipe))


def test_a_stranger_gets_from_votes_to_pictures_of_the_lora(files: Path, tmp_path: Path, monkeypatch):
    here = tmp_path / "here"
    shutil.copytree(files, here, ignore=shutil.ignore_patterns("recipes", "benchmarks", "examples"))
    monkeypatch.chdir(here)
    (here / "unseen_prompts.txt").write_text("a red square\n")
    generator, first, second = pipeline_folder("sd3"), judge_folder(), family_folder("qwen3_vl")
    small_recipe("judges/internvl3-2b.yaml", here, {}, judge={"base": str(first), **TINY_TRAINING})
    small_recipe("judges/qwen3-vl-2b.yaml", here, {}, judge={"base": str(second), **TINY_TRAINING})
    small_recipe(
        "generators/sd3.5-medium.yaml",
        here,
        {"generator": str(generator), "num_inference_steps": 3, "generator_options": options("sd3")},
        references={"candidates": 3},
        refl=TINY_ALIGNMENT,
    )
    instead = {
        "stabilityai/stable-diffusion-3.5-medium": str(generator),
        "OpenGVLab/InternVL3-2B-hf": str(first),
        "judge.lora_rank=32": "judge.lora_rank=2",
        "num_inference_steps=28": "num_inference_steps=3, height=32, width=32",
        "samples=8": "samples=2 --num-inference-steps 3 --generator-options height=32 --generator-options width=32",
        '.to("cuda")': "",
    }
    run = []
    for snippet in snippets(PAGE):
        text = snippet.text
        for said, small in instead.items():
            text = text.replace(said, small)
        if snippet.language == "python":
            exec(compile("\n" * (snippet.line - 1) + text, PAGE, "exec"), {"__name__": "__main__"})
            continue
        for words in command_lines(text):
            if words[0] == "rewarddance" and words[1] not in (SERVING, "votes"):
                done = command(*words[1:])
                assert done.code == 0, f"{snippet}: {' '.join(words)}\n{done.err}"
                run.append(words[1])
    assert run == ["data", "plan", "plan", "train", "evaluate", "search", "train", "align"]
    assert (here / "runs/judge/evaluation/evaluation.html").is_file()
    assert (here / "runs/sd35/report.html").is_file()
    old, new = ((here / "pictures" / name / "0.png").read_bytes() for name in ("old", "new"))
    assert old != new
