"""What `rewarddance plan` says a run holds against what its process takes on the CPU, command by command.

python benchmarks/plan_check.py [NAME ...]      more than 15 minutes on a busy core; NAME: of some runs only, as "refl"

The last line is JSON, figure name to number. Random models of real classes: a judge of 115M parameters and a generator
of 40M, float32. Each command runs whole in a process of its own: models are loaded, two steps done, all files written.
Taken is by how much resident memory rose at most since the libraries were imported, until a judge's weights are written
(pages of that file would count); malloc gives back what is freed. Planned is the plan's sum of weights, of what
training keeps and of the worst phase's activations, without what it adds for a GPU's context and the allocator's gaps.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import transformers.modeling_utils
import yaml
from judges import PROMPT, build_judge, candidates, peak_rss
from refl_step import SIDE, STEPS, build_generator

from rewarddance.cli.app import app
from rewarddance.data.preferences import write_preferences
from rewarddance.jobs.plan import plan_recipe
from rewarddance.planning.recipe import PlanOptions
from rewarddance.types import Preference

POLICY = {"steps": 2, "prompts_per_step": 1, "group_size": 4, "lora_rank": 16, "probe_prompts": 0}
REFL = {"steps": 2, "prompts_per_step": 1, "group_size": 2, "lora_rank": 16, "grad_step_range": [0.5, 0.75]}
ALL = ("generator", "decoder", "judge")


def recipes(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of a run to its command and its recipe. The models and files that they name lie in `folder`."""
    precision = {"dtype": "float32", "judge_dtype": "float32"}
    align = {"generator": str(folder / "generator"), "judge": str(folder / "judge"), "num_inference_steps": STEPS}
    align |= {"prompts": str(folder / "prompts.txt"), **precision, "references": {"candidates": 2, "batch_size": 2}}
    align |= {"generator_options": {"height": SIDE, "width": SIDE}}
    asking = {key: value for key, value in align.items() if key != "references"}
    search = {key: value for key, value in asking.items() if key != "judge_dtype"}
    search |= {"method": "best_of_n", "budget": "samples=8", "batch_size": 8, "prompts_at_once": 1}
    train = {"preferences": str(folder / "pairs.jsonl"), "tests": {}}
    own = {"base": str(folder / "judge"), "batch_size": 2, "epochs": 1}
    return {
        "train": ("train", train | {"judge": own}),
        "train, checkpointed": ("train", train | {"judge": own | {"checkpointing": True}}),
        "train, in parts": (
            "train",
            train | {"judge": own | {"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 2}},
        ),
        "refl": ("align", align | {"refl": REFL}),
        "refl, checkpointed": (
            "align",
            align | {"refl": REFL | {"checkpointing": ALL, "decode_batch": 1, "judge_batch": 1}},
        ),
        "grpo": ("align", asking | {"algorithm": "grpo", "grpo": POLICY}),
        "nft": ("align", asking | {"algorithm": "nft", "nft": POLICY}),
        "search": ("search", search),
    }


def prepare(folder: Path) -> None:
    build_judge(folder / "judge")
    build_generator().pipeline.save_pretrained(folder / "generator")
    (folder / "prompts.txt").write_text(f"{PROMPT}\n{PROMPT} at night\n")
    shown = candidates(8, seed=1)
    pairs = [Preference(PROMPT, shown[2 * k], shown[2 * k + 1], 1.0) for k in range(4)]
    write_preferences(pairs, folder / "pairs.jsonl")


def taken(command: str, recipe: Path) -> float:
    """MB by which the process of a command rises at most, its libraries apart."""
    line = [sys.executable, __file__, "--alone", command, str(recipe)]
    gives_back = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(line, capture_output=True, text=True, env=gives_back)
    if done.returncode:
        raise SystemExit(f"{command} {recipe} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return float(done.stdout.splitlines()[-1])


def run_alone(command: str, recipe: str) -> None:
    """Do one command in this process, and print by how much it rose."""
    for library in ("peft", "rewarddance.jobs.align", "rewarddance.jobs.search", "rewarddance.jobs.train"):
        importlib.import_module(library)
    save_file = transformers.modeling_utils.safe_save_file
    with ExitStack() as working:
        rose = working.enter_context(peak_rss())

        def write(*args: Any, **options: Any) -> None:
            working.close()
            save_file(*args, **options)

        transformers.modeling_utils.safe_save_file = write
        app(arguments_of(command, Path(recipe)), standalone_mode=False)
    print(rose[0])


def arguments_of(command: str, recipe: Path) -> list[str]:
    """The command line; a search takes no recipe but options of the same names."""
    if command != "search":
        return [command, str(recipe)]
    content = yaml.safe_load(recipe.read_text())
    options = content.pop("generator_options")
    line = [command, content.pop("prompts")]
    for key, value in content.items():
        line += [f"--{key.replace('_', '-')}", str(value)]
    return [*line, *(word for key, value in options.items() for word in ("--generator-options", f"{key}={value}"))]


def main(names: Sequence[str]) -> None:
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        for name, (command, content) in recipes(folder).items():
            if names and name not in names:
                continue
            recipe = folder / f"{name.replace(', ', '-')}.yaml"
            recipe.write_text(yaml.safe_dump(content | {"output": str(recipe.with_suffix(""))}))
            plan = plan_recipe(recipe, [], PlanOptions(gpu_memory=64))
            planned, real = sum(part.size for part in plan.memory) / 2**20, taken(command, recipe)
            print(f"{name}: planned {planned:.0f} MB, taken {real:.0f} MB, {planned / real - 1:+.1%}", flush=True)
            figures |= {f"{name}_planned_mb": round(planned), f"{name}_taken_mb": round(real)}
    print(json.dumps(figures))


if __name__ == "__main__":
    run_alone(*sys.argv[2:]) if sys.argv[1:2] == ["--alone"] else main(sys.argv[1:])
