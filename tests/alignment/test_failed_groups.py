"""A group that has no reward costs itself alone, in all processes alike; where most have none the run stops by name."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from several import in_processes
from test_alignment_processes import PROMPTS, SMALL, assert_alike
from test_alignment_processes import align as align_shared
from test_policy_training import GRPO, NFT
from test_refl_training import BANK, RECIPE
from tiny import BrightnessJudge, TinyGenerator, command, generator_folder
from tiny_alignment import assert_same_run, logged, with_lora
from torch import Tensor

from rewarddance.alignment.algorithms import algorithm_of, align_generator, prepare_alignment
from rewarddance.alignment.failed_groups import FailedGroup, FailedGroups, NothingLeft, read_failed_groups
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank, ReferenceRecipe, bank_refresher, build_references
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.safeguards import Ema
from rewarddance.alignment.train import Alignment, TrainRecipe, prompts_of_step
from rewarddance.errors import InputError, RewardError
from rewarddance.runtime.tracking import Metrics
from rewarddance.types import PixelBatch, Question, Verdict, as_prompts

RECIPES: dict[str, TrainRecipe] = {"refl": RECIPE, "grpo": GRPO, "nft": NFT}
each = pytest.mark.parametrize("algorithm", RECIPES)
BAD = BANK[2].prompt.text


class Failing(BrightnessJudge):
    """Has no answer about some prompts: raises, or answers NaN. May be cut off at a call."""

    def __init__(self, *bad: str, how: str = "raise", calls: int = 10**6) -> None:
        super().__init__()
        self.bad, self.how, self.calls = bad, how, calls

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        bad = [question.prompt.text in self.bad for question in questions]
        if self.how == "raise" and any(bad):
            raise ValueError("the server has no answer")
        margins, instead = super().__call__(questions).margin, {"constant": (0.0, 0.7), "nan": (math.nan, 0.0)}
        factor, more = instead.get(self.how, (1.0, 0.0))
        told = [factor * margin + more if is_bad else margin for margin, is_bad in zip(margins, bad, strict=True)]
        return Verdict(torch.stack(told))


class Blind(TinyGenerator):
    """Draws what is not finite for one prompt, or cannot read it where `raises` says so."""

    def __init__(self, num_steps: int = 5, bad: str = BAD, raises: bool = False) -> None:
        super().__init__(num_steps)
        self.bad, self.raises = bad, raises

    def encode(self, prompts: Sequence[Any]) -> Tensor:
        bad = torch.tensor([prompt.text == self.bad for prompt in as_prompts(prompts)])
        if self.raises and bad.any():
            raise RuntimeError("no such token")
        return torch.where(bad & (not self.raises), math.nan, super().encode(prompts).flatten())[:, None, None, None]

    def decode(self, x_0: Tensor) -> PixelBatch:
        return super().decode(x_0)


def run(algorithm: str, folder: Path, judge: Any = None, generator: Any = None, **changes: Any) -> TinyGenerator:
    generator = generator or TinyGenerator(num_steps=5)
    recipe, prompts = RECIPES[algorithm].model_copy(update=changes), [one.prompt for one in BANK]
    reward = Reward(judge or Failing(BAD), "references")
    alignment = Alignment(generator, [reward], prompts, recipe, 3, ReferenceBank(BANK))
    align_generator(alignment, folder=folder, metrics=Metrics(folder / "metrics.jsonl"))
    return generator


@each
@pytest.mark.parametrize("how", ["raise", "nan"])
def test_a_group_without_a_reward_is_left_out_and_named(tmp_path, algorithm, how):
    run(algorithm, tmp_path, Failing(BAD, how=how))
    recipe = RECIPES[algorithm]
    numbers = {step: prompts_of_step(6, recipe.prompts_per_step, 3, step).count(2) for step in range(recipe.steps)}
    expected = [step + 1 for step, count in numbers.items() for _ in range(count)]
    failed = read_failed_groups(tmp_path)
    assert [row["step"] for row in failed] == expected and {row["prompt"] for row in failed} == {BAD}
    assert ("has no answer" if how == "raise" else "not finite") in failed[0]["reason"]
    steps = [row for row in logged(tmp_path) if row["kind"] == "step"]
    assert [row.get("failed_groups", 0) for row in steps] == list(numbers.values())
    assert all(math.isfinite(value) for row in steps for value in row.values() if isinstance(value, float))


def gradient(judge: Any, recipe: TrainRecipe, generator_: Any = TinyGenerator) -> tuple[Tensor, Alignment]:
    """Of a step in which one of three groups is BAD."""
    step = next(s for s in range(99) if prompts_of_step(6, 3, 3, s).count(2) == 1)
    generator, weights = with_lora(generator_, 5)
    made = Alignment(generator, [Reward(judge, "references")], [one.prompt for one in BANK], recipe, 3)
    made = Alignment(**{**vars(made), "bank": ReferenceBank(BANK)})
    (figures,) = algorithm_of(recipe).updates(made, step, Ema(weights, 0.5))
    assert all(math.isfinite(figure) for figure in figures.values())
    return torch.cat([weight.grad.flatten() for weight in weights]), made


ALONE = {"prompts_per_step": 3, "generator_batch": 4}
SPLIT = {
    "refl": RECIPE.model_copy(update={**ALONE, "last_steps": 2, "decode_batch": 2}),
    "refl, one part": RECIPE.model_copy(update={"prompts_per_step": 3}),
    "grpo": GRPO.model_copy(update=ALONE),
    "grpo, kept graph": GRPO.model_copy(update={"keep_graph": True}),
}


@pytest.mark.parametrize("recipe", SPLIT.values(), ids=SPLIT)
def test_the_gradient_is_the_mean_of_the_groups_that_are_left(recipe):
    """A constant reward of a group gives it no gradient, so that two of three groups give two thirds of theirs."""
    with_constant, _ = gradient(Failing(BAD, how="constant"), recipe)
    without, _ = gradient(Failing(BAD), recipe)
    torch.testing.assert_close(without, 1.5 * with_constant, rtol=1e-4, atol=1e-6)


FAR = {"refl": {"velocity_mse": 0.3}, "grpo": {"kl": 0.3}, "nft": {"velocity_mse": 0.3}}


@each
@pytest.mark.parametrize("at_once", [None, 3])
def test_pictures_that_are_not_finite_leave_the_gradient_as_a_judge_does(algorithm, at_once):
    changes = {"prompts_per_step": 3, "generator_batch": at_once, **FAR[algorithm]}
    recipe = RECIPES[algorithm].model_copy(update=changes)
    found, _ = gradient(BrightnessJudge(), recipe, Blind)
    expected, _ = gradient(Failing(BAD), recipe)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@each
def test_a_prompt_that_cannot_be_read_late_costs_its_group(tmp_path, algorithm):
    generator = Blind()
    generator.bad = ""

    class Late(Metrics):
        def log(self, phase: str, step: int, kind: str = "step", **figures: Any) -> None:
            super().log(phase, step, kind, **figures)
            if step == 1:  # from the second step on
                generator.bad, generator.raises = BAD, True

    recipe, prompts = RECIPES[algorithm], [one.prompt for one in BANK]
    made = Alignment(generator, [Reward(BrightnessJudge(), "references")], prompts, recipe, 3, ReferenceBank(BANK))
    align_generator(made, folder=tmp_path, metrics=Late(tmp_path / "metrics.jsonl"))
    failed = read_failed_groups(tmp_path)
    assert failed and all(row["prompt"] == BAD and "no such token" in row["reason"] for row in failed)
    assert failed[0]["step"] > 1 and logged(tmp_path)[-1]["kind"] == "probe"


def test_a_held_out_judge_without_an_answer_costs_the_group_too(tmp_path):
    generator, prompts = TinyGenerator(num_steps=5), [one.prompt for one in BANK]
    reward = Reward(BrightnessJudge(), "references")
    made = Alignment(generator, [reward], prompts, RECIPE, 3, ReferenceBank(BANK), Failing(BAD, how="nan"))
    align_generator(made, folder=tmp_path, metrics=Metrics(tmp_path / "metrics.jsonl"))
    assert {row["prompt"] for row in read_failed_groups(tmp_path)} == {BAD}


@each
def test_a_run_with_failed_groups_goes_on_as_if_it_had_not_been_cut_off(tmp_path, algorithm):
    run(algorithm, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(algorithm, tmp_path / "cut", Failing(BAD, calls=17))
    run(algorithm, tmp_path / "cut")
    assert_same_run(tmp_path / "cut", tmp_path / "whole")
    assert read_failed_groups(tmp_path / "cut") == read_failed_groups(tmp_path / "whole")


@each
def test_a_run_stops_by_name_where_most_of_a_step_have_no_reward(tmp_path, algorithm):
    with pytest.raises(RewardError, match=r"stopped at step \d+: .* groups have no reward; .*has no answer"):
        run(algorithm, tmp_path, Failing(*[one.prompt.text for one in BANK[:4]]))
    assert read_failed_groups(tmp_path)


@each
def test_a_step_of_one_group_may_be_lost_and_two_in_a_row_stop(tmp_path, algorithm):
    run(algorithm, tmp_path, prompts_per_step=1)
    rows = [row for row in logged(tmp_path) if row["kind"] == "failed"]
    assert rows and all(row["failed_groups"] == 1 for row in rows)
    assert len(rows) + sum(row["kind"] == "step" for row in logged(tmp_path)) == RECIPES[algorithm].steps
    with pytest.raises(RewardError, match="two steps in a row"):
        run(algorithm, tmp_path / "all", Failing(*[one.prompt.text for one in BANK]), prompts_per_step=1)


def test_a_run_that_was_cut_off_between_two_lost_steps_stops_as_well(tmp_path):
    lost = [FailedGroup(0, "a prompt", "no answer", "Ask again.")]
    failed = FailedGroups()
    failed.begin(tmp_path, 4)
    with pytest.raises(NothingLeft):
        failed.add(4, lost, 1)  # the fifth step
    again = FailedGroups()
    again.begin(tmp_path, 5)
    with pytest.raises(RewardError, match="two steps in a row"):
        again.add(5, lost, 1)


def test_memory_that_runs_out_is_no_matter_of_a_group(tmp_path):
    class Full(BrightnessJudge):
        def __call__(self, questions):
            raise torch.OutOfMemoryError("out of memory: 3 GiB")

    with pytest.raises(InputError, match="memory ran out in the judge"):
        run("refl", tmp_path, Full())
    assert not read_failed_groups(tmp_path)


# -- several processes -------------------------------------------------------------------------------------------------


def shared(algorithm: str, folder: Path, **changes: Any) -> None:
    align_shared(algorithm, folder, judge=Failing(PROMPTS[1]), **changes)


@each
def test_two_processes_leave_the_same_groups_out_as_one_does(tmp_path, algorithm):
    """ReFL's groups of four lie over both processes where three prompts are shared."""
    changes = {"prompts_per_step": 3, "group_size": 4} if algorithm == "refl" else {}
    if algorithm == "refl":
        changes |= {"reference_batch": None, "refresh_every": None}
    shared(algorithm, tmp_path / "one", **changes)
    in_processes(2, lambda: shared(algorithm, tmp_path / "two", **changes))
    assert read_failed_groups(tmp_path / "two") == read_failed_groups(tmp_path / "one") != []
    assert_alike(tmp_path / "two", tmp_path / "one")


WHOLE = SMALL | {"steps": 3, "lora_rank": 0, "generator_batch": 1}
PIECES = {
    "refl": WHOLE | {"refresh_every": None, "reference_mse": 0.0, "reference_batch": None, "last_steps": 2},
    "grpo": WHOLE | {"updates": 1},
}


@pytest.mark.parametrize("algorithm", PIECES)
def test_a_process_whose_groups_all_fail_goes_along_with_sharded_weights(tmp_path, algorithm):
    changes = PIECES[algorithm]
    shared(algorithm, tmp_path / "one", family="sd3", **changes)
    in_processes(2, lambda: shared(algorithm, tmp_path / "two", family="sd3", sharded=True, **changes))
    assert read_failed_groups(tmp_path / "two") == read_failed_groups(tmp_path / "one") != []
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_two_processes_stop_together_where_one_of_them_has_no_reward(tmp_path):
    def both() -> str:
        with pytest.raises(RewardError) as caught:
            align_shared("grpo", tmp_path, judge=Failing(*PROMPTS))
        return caught.value.what

    first, second = in_processes(2, both)
    assert first == second and "4 of the step's 4 groups have no reward" in first


# -- before the first step ---------------------------------------------------------------------------------------------


def test_a_prompt_without_references_is_left_out_and_not_asked_again(tmp_path, capfd):
    judge, prompts = Failing("bad"), ["a", "bad", "ccc", "dddd"]
    parts = {"references_folder": tmp_path / "references", "seed": 1}
    refl = ReflRecipe(steps=2, prompts_per_step=2, group_size=2, lora_rank=2, lora_alpha=2)

    class Config:
        chosen, references = refl, ReferenceRecipe(candidates=3)

    made = [prepare_alignment(Config, TinyGenerator(), judge, prompts, **parts) for _ in range(2)]  # type: ignore[arg-type]
    assert all([prompt.text for prompt in one.prompts] == ["a", "ccc", "dddd"] for one in made)
    assert capfd.readouterr().err.count("'bad' has no references and is left out:") == 1
    asked = judge.asked
    align_generator(made[1], folder=tmp_path, metrics=Metrics(tmp_path / "metrics.jsonl"))
    (failed,) = read_failed_groups(tmp_path)
    assert failed["step"] == 0 and failed["prompt"] == "bad" and "no answer" in failed["reason"]
    assert asked == 3 * 6  # those that have references, once
    with pytest.raises(RewardError, match="3 of 3 prompts have no references; 'x'"):
        parts["references_folder"] = tmp_path / "others"
        prepare_alignment(Config, TinyGenerator(), Failing("x", "y", "z"), ["x", "y", "z"], **parts)  # type: ignore[arg-type]


def test_a_bank_made_anew_keeps_the_first_references_of_a_prompt_that_fails(tmp_path):
    made = (TinyGenerator(), ["a", "bad", "ccc"], ReferenceRecipe(candidates=3))
    place = {"folder": tmp_path, "seed": 1}
    first = build_references(made[0], BrightnessJudge(), *made[1:], **place)
    later = bank_refresher(made[0], Failing("bad"), *made[1:], **place, first=first)
    for now in (True, False):  # made, and read
        bank = later(4, now)
        assert [references.prompt.text for references in bank] == made[1]
        assert bank[1] is first[1] and bank[0].seeds != first[0].seeds


def test_the_command_lists_failed_groups_and_ends_with_one(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def make():\n"
        "    def score(images, prompts, metadata):\n"
        "        if any('cross' in prompt for prompt in prompts):\n"
        "            raise RuntimeError('the detector found nothing')\n"
        "        return images.mean((1, 2, 3))\n"
        "    return score\n"
    )
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\na star\n")
    loop = {"steps": 2, "prompts_per_step": 3, "group_size": 2, "lora_rank": 2, "lora_alpha": 2, "probe_prompts": 3}
    content = {
        "generator": str(generator_folder()), "num_inference_steps": 4, "judge": f"{tmp_path / 'mine.py'}:make",
        "prompts": str(tmp_path / "prompts.txt"), "output": str(tmp_path / "run"), "algorithm": "nft", "nft": loop,
    }  # fmt: skip
    (tmp_path / "align.yaml").write_text(yaml.safe_dump(content))
    done = command("align", tmp_path / "align.yaml")
    assert done.code == 1, done.err
    told = json.loads(done.out)
    assert told["failed"] == 2 and told["failures"] == str(tmp_path / "run" / "failed_groups.jsonl")
    assert "the detector found nothing" in done.err and "'a blue cross'" in done.err
    probes = [row for row in logged(tmp_path / "run") if row["kind"] == "probe"]
    assert [row["failed_prompts"] for row in probes] == [1, 1]
    assert done.err.count("probes leave out 'a blue cross'") == 1
