"""Two processes align as one does at the same number of samples, with all weights on each or in pieces over both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from several import command_in_processes, in_processes
from tiny import BrightnessJudge, TinyGenerator, command, comparing, generator_folder, judge_folder
from tiny_alignment import WatchedJudge
from tiny_pipelines import fresh

from rewarddance.alignment.algorithms import align_generator
from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.references import ReferenceBank, ReferenceRecipe, bank_refresher, build_references
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Alignment
from rewarddance.errors import InputError
from rewarddance.generators.sampling import sample
from rewarddance.protocols import RewardModel
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import Question, Verdict

PROMPTS = ["a red circle", "two crosses", "a star", "a blue square left of a circle", "a cross"]
BANK = ReferenceRecipe(candidates=3, keep=2, batch_size=6)
LOOP = {"steps": 3, "prompts_per_step": 4, "lora_rank": 2, "lora_alpha": 2, "ema_decay": 0.5, "save_every": 2}
LOOP |= {"probe_every": 2}
RECIPES = {
    "refl": ReflRecipe(
        **LOOP,
        group_size=3,
        learning_rate=0.05,
        grad_step_range=(0.3, 1.0),
        loss="margin",
        velocity_mse=0.3,
        reference_mse=0.2,
        reference_batch=6,
        jitter_copies=2,
        jitter_shift=1,
        jitter_noise=0.05,
        generator_batch=4,
        decode_batch=4,
        refresh_every=2,
    ),
    "grpo": GrpoRecipe(**LOOP, group_size=4, learning_rate=0.05, updates=2, generator_batch=3, kl=0.1, clip_range=0.1),
    "nft": NftRecipe(**LOOP, group_size=4, learning_rate=0.05, updates=2, generator_batch=3, velocity_mse=0.1),
}


def dark(questions: Sequence[Question]) -> Verdict:
    """The opposite of `BrightnessJudge`, three times as loud, but of the red alone."""
    return Verdict(torch.stack([24 * (q.reference[:, 0].mean() - q.candidate[:, 0].mean()) for q in questions]))


def align(
    algorithm: str, folder: Path, family: str = "", judge: RewardModel | None = None, several: bool = False, **changes
) -> None:
    """On the tiny generator, or a family's random checkpoint. judge: in training; the bank has one of its own. several:
    another reward pulls the other way."""
    generator = fresh(family) if family else TinyGenerator(num_steps=5)
    making, place = (generator, BrightnessJudge(), PROMPTS, BANK), {"folder": folder / "references", "seed": 3}
    bank = ReferenceBank(build_references(*making, **place), bank_refresher(*making, **place))
    recipe, judge = RECIPES[algorithm].model_copy(update=changes), judge or BrightnessJudge()

    def probe() -> dict[str, float]:
        return {"brightness": sample(generator, PROMPTS[:3], [1, 2, 3]).mean().item()}

    held_out = judge if algorithm == "refl" else None
    rewards = [Reward(judge, "references")]
    if several:
        rewards = [Reward(judge, "references", 1.0, "light"), Reward(comparing(dark), "references", 0.7, "dark")]
    run = Alignment(generator, rewards, PROMPTS, recipe, 3, bank, held_out)
    align_generator(run, folder=folder, metrics=Metrics(folder / "metrics.jsonl"), probe=probe)


def logged(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: figure for name, figure in row.items() if name not in ("phase", "kind")} for row in rows]


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(
        folder / "generator" / "transformer" / "diffusion_pytorch_model.safetensors"
        if (folder / "generator").exists()
        else next((folder / "lora").glob("*.safetensors"))
    )


def assert_alike(folder: Path, other: Path, figure: float = 2e-5, weight: float = 1e-6) -> None:
    """The banks, all figures and the weights."""
    assert sorted(one.name for one in folder.rglob("*")) == sorted(one.name for one in other.rglob("*"))
    for index in other.rglob("references.jsonl"):
        assert (folder / index.relative_to(other)).read_text() == index.read_text()
    for ours, theirs in zip(logged(folder), logged(other), strict=True):
        assert ours == pytest.approx(theirs, rel=figure, abs=figure)
    found, expected = trained(folder), trained(other)
    assert found.keys() == expected.keys()
    away = torch.cat([(found[name] - expected[name]).flatten() for name in found])
    assert away.square().mean().sqrt() < weight  # not the largest: AdamW begins with the sign of mere rounding, too


@pytest.mark.parametrize("algorithm", ["refl", "grpo", "nft"])
def test_two_processes_align_as_one_does(tmp_path, algorithm):
    align(algorithm, tmp_path / "one")
    in_processes(2, align, algorithm, tmp_path / "two")
    assert_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("algorithm", ["refl", "grpo", "nft"])
def test_two_processes_align_by_several_rewards_as_one_does(tmp_path, algorithm):
    align(algorithm, tmp_path / "one", several=True)
    in_processes(2, partial(align, several=True), algorithm, tmp_path / "two")
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert "margin/dark" in logged(tmp_path / "one")[1]


SMALL = {"prompts_per_step": 2, "group_size": 2, "steps": 2, "save_every": 2, "learning_rate": 1e-3}
PIECES = {
    "refl, lora": ("refl", {"checkpointing": ("generator",), "refresh_every": 1}),
    "refl, all weights": ("refl", {"lora_rank": 0, "last_steps": 2, "generator_batch": 1, "refresh_every": 1}),
    "grpo, all weights": ("grpo", {"lora_rank": 0, "updates": 1, "steps": 1}),
    "nft, lora": ("nft", {"updates": 1}),
}


@pytest.mark.parametrize(("algorithm", "changes"), PIECES.values(), ids=PIECES)
def test_two_processes_with_the_weights_in_pieces_align_as_one_does(tmp_path, algorithm, changes):
    changes = SMALL | changes

    def sharded() -> None:
        align(algorithm, tmp_path / "two", "sd3", sharded=True, **changes)

    align(algorithm, tmp_path / "one", "sd3", **changes)
    in_processes(2, sharded)
    assert_alike(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    "changes",
    [{}, {"sharded": True, "lora_rank": 0, **SMALL, "steps": 3, "refresh_every": None}],
    ids=["whole", "pieces"],
)
def test_an_interrupted_run_of_two_processes_ends_with_the_very_same_weights(tmp_path, changes):
    family = "sd3" if changes else ""

    def both() -> None:
        align("refl", tmp_path / "whole", family, **changes)
        with pytest.raises(KeyboardInterrupt):
            align("refl", tmp_path / "again", family, WatchedJudge(5), **changes)  # two calls a step: within the third
        assert (tmp_path / "again" / "checkpoint-2" / "complete").exists()
        align("refl", tmp_path / "again", family, **changes)

    in_processes(2, both)
    assert_alike(tmp_path / "again", tmp_path / "whole", 0, 1e-12)


def test_a_run_of_one_process_goes_on_in_two(tmp_path):
    align("nft", tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        align("nft", tmp_path / "two", judge=WatchedJudge(2))
    assert (tmp_path / "two" / "checkpoint-2").exists()
    in_processes(2, align, "nft", tmp_path / "two")
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_what_several_processes_cannot_share_is_refused_in_words(tmp_path):
    with pytest.raises(InputError, match="a sharded generator needs several processes") as caught:
        align("refl", tmp_path, sharded=True)
    assert "torchrun" in caught.value.remedy
    with pytest.raises(InputError, match=r"5 processes cannot share 12 samples .*group_size 3"):
        RECIPES["refl"].check_processes(5)
    with pytest.raises(InputError, match="4 processes cannot share 4 prompts equally in each of 2 updates") as caught:
        RECIPES["grpo"].check_processes(4)
    assert "multiple of 8" in caught.value.remedy


@pytest.fixture
def recipe(tmp_path) -> Path:
    """With the weights in pieces, and one text that is so long that CogView4 reads it in a forward of its own."""
    (tmp_path / "prompts.txt").write_text("\n".join([f"{' and '.join(PROMPTS)} {PROMPTS[0]}", *PROMPTS]))
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 4,
        "judge": str(judge_folder()),
        "prompts": str(tmp_path / "prompts.txt"),
        "output": str(tmp_path / "two"),
        "references": {"candidates": 3},
        "refl": {**SMALL, "sharded": True},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "recipe.yaml"


def test_torchrun_aligns_from_a_recipe_and_one_process_speaks(tmp_path, recipe):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, "-m", "rewarddance", "align", str(recipe)],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"lora": str(tmp_path / "two" / "lora"), "prompts": 6, "alarms": 0}
    assert done.stderr.count("ReFL (2 to do)") == 1
    one = command("align", recipe, f"output={tmp_path / 'one'}", "refl.sharded=false")
    assert one.code == 0, one.err
    assert_alike(tmp_path / "two", tmp_path / "one", 1e-4)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("refl.group_size=3", "2 processes cannot share 3 samples equally"),
        ("judge_device=cuda:1", "judge_device is cuda:1, and each of 2 processes computes on its own"),
        ("refl.cap=2", "refl.cap"),
    ],
)
def test_one_process_says_what_is_wrong_before_the_folder_is_claimed(tmp_path, recipe, key, message):
    done = command_in_processes(2, "align", recipe, "refl.prompts_per_step=1", key)
    assert [one.code for one in done] == [2, 2]
    said = [one.err for one in done]
    assert sum(message in one for one in said) == 1 and "" in said
    assert not (tmp_path / "two").exists()
