"""A plan says what the run then takes: against real runs of small judges and generators, and what it tells the user."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from measured import measured_peak
from tiny import command, family_folder, generator_folder, judge_folder, pictures
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import References
from rewarddance.alignment.refl import ReflRecipe, refl_step
from rewarddance.cli.common import recipe_file
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.planning.alignment import AlignmentPlanner
from rewarddance.planning.hardware import GIB, find_gpu
from rewarddance.planning.plan import Plan, PlanOptions, looked_at, plan_recipe, shapes_of, words
from rewarddance.planning.training import flops_of, memory_of, sketch
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.trainable import Trainable
from rewarddance.types import Preference, Prompt

JUDGES = recipe_file("quickstart.yaml").parent / "judges"


def pairs(n: int, size: int = 32) -> list[Preference]:
    shown = pictures(2 * n, size=size)
    return [Preference("a red circle", shown[2 * i], shown[2 * i + 1], float(i % 2)) for i in range(n)]


def trained(recipe: JudgeRecipe) -> Trainable:
    """What `train_judge` trains."""
    return Trainable(lambda dtype: build_reward(recipe.base, recipe.reward_config(), dtype=dtype), recipe)


def sizes(recipe: JudgeRecipe, gpus: int, longest: Preference) -> dict[str, int]:
    return {part.name: part.size for part in memory_of(recipe, gpus, longest)}


ACTIVATIONS = ("vision tower", "language model", "logits and loss", "backward pass")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", ["bundled", "qwen3_vl"])
def test_activations_are_those_of_a_real_step_to_five_percent(family: str, checkpointing: bool):
    base = "shapeworld-judge" if family == "bundled" else str(family_folder(family))
    recipe = JudgeRecipe(base=base, instruction="t2i-brief", batch_size=4, checkpointing=checkpointing)
    student, shown = trained(recipe), pairs(4)
    for weight in student.reward.model.parameters():
        weight.grad = torch.zeros_like(weight)
    real = measured_peak(lambda: student.reward.loss(shown).backward())
    found = sizes(recipe, 1, shapes_of(shown[0]))
    assert sum(found[name] for name in ACTIVATIONS) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "regressive"])
def test_operations_are_those_of_a_real_step_to_three_percent(kind: str):
    recipe = JudgeRecipe(base="shapeworld-judge", instruction="t2i", kind=kind)
    student, (shown,) = trained(recipe), pairs(1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        student.reward.loss([shown]).backward()
    found = flops_of(sketch(recipe), shapes_of(shown))
    assert sum(found.values()) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"dtype": "bf16"},
        {"lora_rank": 4},
        {"lora_rank": 4, "dtype": "bf16", "freeze_vision_tower": True},
        {"kind": "regressive", "lora_rank": 2},
    ],
    ids=["all", "bf16", "lora", "lora-bf16-frozen", "regressive-lora"],
)
def test_weights_gradients_and_optimiser_are_stored_as_in_a_real_run(keys: dict[str, object]):
    recipe = JudgeRecipe.model_validate({"base": "shapeworld-judge", "instruction": "t2i", **keys})
    weights = list(trained(recipe).reward.model.parameters())
    optimiser = torch.optim.AdamW([weight for weight in weights if weight.requires_grad])
    for weight in optimiser.param_groups[0]["params"]:
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    averages = [s[name] for s in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    found = sizes(recipe, 1, shapes_of(pairs(1)[0]))
    assert found["weights"] == sum(weight.nbytes for weight in weights)
    assert found["gradients"] == sum(weight.nbytes for weight in weights if weight.requires_grad)
    assert found["optimiser"] == sum(average.nbytes for average in averages)


def test_pieces_share_what_is_kept_and_gather_a_few_layers():
    longest = shapes_of(pairs(1)[0])
    recipe = JudgeRecipe(base="shapeworld-judge", instruction="t2i", batch_size=4, dtype="bf16")
    whole, shared = sizes(recipe, 1, longest), sizes(recipe.model_copy(update={"sharded": True}), 4, longest)
    for name in ("weights", "gradients", "optimiser"):
        assert shared[name] == whole[name] // 4
    assert 0 < shared["gather_full_tensors"] < whole["weights"] * 4
    assert sizes(recipe, 4, longest)["DDP's buckets"] == whole["gradients"]


def test_fewer_pairs_at_once_need_less_and_checkpointing_too():
    longest = shapes_of(pairs(1)[0])
    recipe = JudgeRecipe(base="shapeworld-judge", instruction="t2i", batch_size=16)

    def activations(**keys: object) -> int:
        found = sizes(recipe.model_copy(update=keys), 1, longest)
        return sum(found[name] for name in ACTIVATIONS)

    assert activations(gradient_accumulation_steps=4) == pytest.approx(activations() / 4, rel=0.05)
    assert activations(checkpointing=True) < 0.5 * activations()


def test_the_pairs_of_the_recipe_are_looked_at_where_they_are(tmp_path: Path):
    from rewarddance.data.preferences import write_preferences

    write_preferences([replace(one, prompt=words(3 + i)) for i, one in enumerate(pairs(20))], tmp_path / "p.jsonl")
    found, total, told = looked_at(tmp_path / "p.jsonl", PlanOptions(), reasons=False)
    assert total == 20 and len(found) == 16 and told.startswith("16 of the 20 pairs")
    assert all(one.first.is_meta and one.first.shape == (1, 3, 32, 32) for one in found)
    assert found[0].prompt.text == words(3) and found[-1].prompt.text == words(3 + 18)
    made, total, told = looked_at(tmp_path / "no.jsonl", PlanOptions(picture=(64, 96), prompt_words=5), reasons=True)
    assert total is None and "is not here" in told and made[0].first.shape[-2:] == (64, 96)
    assert len(made[0].prompt.text.split()) == len(made[0].reason.split()) == 5


def test_a_recipe_for_a_public_judge_fits_the_hardware_in_its_head():
    path = JUDGES / "internvl3-1b.yaml"
    head = next(line for line in path.read_text().splitlines() if line.startswith("# hardware:"))
    memory = float(head.partition(" of ")[2].split()[0])
    plan = plan_recipe(path, [], PlanOptions(gpu_memory=memory))
    assert plan.fits and plan.changes == () and plan.steps is None
    assert plan.parameters["model"] == 938_193_024


def test_what_does_not_fit_is_changed_until_it_does_and_the_change_is_true(tmp_path: Path):
    path = recipe(tmp_path, batch_size=16)
    needs = plan_recipe(path, [], PlanOptions()).size / GIB
    options = PlanOptions(gpu_memory=needs - 0.005)
    plan = plan_recipe(path, [], options)
    assert not plan.fits
    (change,) = plan.changes
    assert change.keys == ("judge.checkpointing=true",) and "the result is the same" in change.told
    again = plan_recipe(path, list(change.keys), options)
    assert again.fits and again.size == change.size


def test_where_nothing_helps_that_is_said(tmp_path: Path):
    done = command("plan", recipe(tmp_path), "--gpu-memory", "0.5")
    assert done.code == 1 and "Nothing that was tried makes it fit" in done.out


def recipe(folder: Path, **keys: object) -> Path:
    judge = {"base": "shapeworld-judge", "instruction": "t2i", **keys}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"preferences": "no.jsonl", "output": "runs/x", "judge": judge}))
    return path


def test_the_command_says_what_fits_and_where_figures_are_from(tmp_path: Path):
    done = command("plan", recipe(tmp_path), "judge.lora_rank=4", "--gpu", "l40s", "--picture", "64x64")
    assert done.code == 0, done.err
    assert "of 45 on 1 x l40s: fits" in done.out and "LoRA" in done.out
    assert "shapeworld-judge/config.json" in done.out and "pictures of 64x64" in done.out


def test_json_has_bytes_and_seconds_that_follow_from_the_peak(tmp_path: Path):
    done = command("plan", recipe(tmp_path, dtype="bf16"), "--json", "--utilisation", "0.5")
    found = json.loads(done.out)
    gpu = find_gpu("h100")
    assert found["seconds"] == pytest.approx(sum(found["flops"].values()) / (0.5 * gpu.half * 1e12))
    assert found["fits"] and found["size"] > sum(part["size"] for part in found["memory"])
    assert found["parameters"]["model"] == sum(
        weight.numel() for weight in load_reward("shapeworld-judge").model.parameters()
    )


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (["judge.sharded=true"], "a sharded judge needs several GPUs"),
        (["judge.gradient_accumulation_steps=64"], "a batch_size of 32 cannot be shared by 1 GPUs in 64 parts"),
        (["judge.base=someone/else"], "the architecture of 'someone/else' is not known"),
        (["judge.lora_rnak=3"], "unknown key"),
        (["--gpu", "abacus"], "there is no GPU named 'abacus'"),
        (["--picture", "wide"], "--picture wide is no height and width"),
        (["--picture", "512"], "--picture 512 is no height and width"),
        (["--picture", "0x512"], "the key 'picture.0'"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(tmp_path: Path, keys: list[str], told: str):
    done = command("plan", recipe(tmp_path), *keys)
    assert done.code == 2 and told in done.err and "Traceback" not in done.err


def test_recipes_of_other_commands_are_refused():
    with pytest.raises(InputError, match="neither of `rewarddance train` nor of `rewarddance align`"):
        plan_recipe(recipe_file("quickstart.yaml"), [], PlanOptions())


# -- alignment ---------------------------------------------------------------------------------------------------------


def alignment(**keys: object) -> AlignRun:
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judge": str(judge_folder()),
        "prompts": "no.txt",
        "output": "runs/x",
        "references": {"candidates": 2},
        "refl": {"prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "judge_batch": 2},
    }
    return AlignRun.model_validate({**content, **keys})


@functools.cache
def aligned() -> Plan:
    return AlignmentPlanner(PlanOptions(prompt_words=6)).plan(alignment())


def test_refl_needs_what_a_real_step_needs_to_five_percent():
    run, plan = alignment(), aligned()
    generator = load_generator(run.generator, run.num_inference_steps)
    judge = load_reward(run.judge)
    for weight in generator.add_lora(2, 16):
        weight.grad = torch.zeros_like(weight)
    bank = []
    for i in range(2):
        seeds = (90 + 2 * i, 91 + 2 * i)
        shown = tuple(pictures(2, seed=i))
        bank.append(References(Prompt(words(6)), shown, seeds, (1.0, 0.0), generator.init_noise(seeds)))
    refl: ReflRecipe = run.refl.model_copy(update={"grad_step_range": (0.0, 1e-9)})
    real = measured_peak(lambda: refl_step(generator, judge, bank, refl, seed=0, step=0))
    found = max(plan.moments[name] for name in ("generator", "decoder", "judge", "backward"))
    assert found == pytest.approx(real, rel=0.05)


def test_checkpointing_and_several_last_steps_are_planned_as_they_are_done():
    small = {"prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "judge_batch": 2}
    parts = ("generator", "decoder", "judge")
    planner, plan = AlignmentPlanner(PlanOptions(prompt_words=6)), aligned()
    less = planner.plan(alignment(refl={**small, "checkpointing": parts}))
    for moment in parts:
        assert less.moments[moment] < 0.8 * plan.moments[moment]
    assert less.flops["backward"] > 1.2 * plan.flops["backward"]
    more = planner.plan(alignment(refl={**small, "last_steps": 2}))
    assert more.flops["sampling"] == plan.flops["sampling"] / 1.5  # one step of three, and one or two
    assert more.flops["generator"] == 2 * plan.flops["generator"]
    assert more.moments["generator"] > 1.3 * plan.moments["generator"]
    with pytest.raises(InputError, match="last_steps is 4, and the generator takes 3"):
        planner.plan(alignment(refl={**small, "last_steps": 4}))


def test_the_relay_holds_the_largest_of_its_moments_and_not_their_sum():
    plan = aligned()
    parts = {part.name: part.size for part in plan.memory}
    assert parts["worst moment"] == max(plan.moments.values()) < sum(plan.moments.values())
    assert parts["average"] == 4 * plan.parameters["trained"] == parts["optimiser"] / 2
    small = {"prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "judge_batch": 1, "decode_batch": 1}
    less = AlignmentPlanner(PlanOptions(prompt_words=6)).plan(alignment(refl={**small, "generator_batch": 1}))
    for moment in ("generator", "decoder", "judge", "backward"):
        assert less.moments[moment] < 0.6 * plan.moments[moment]


def test_all_weights_of_a_generator_keep_what_they_were_before():
    plan = AlignmentPlanner(PlanOptions(prompt_words=6)).plan(
        alignment(refl={"prompts_per_step": 2, "group_size": 1, "lora_rank": 0}, dtype="bfloat16")
    )
    parts = {part.name: part.size for part in plan.memory}
    assert plan.parameters["trained"] == plan.parameters["transformer"]
    assert parts["before training"] == parts["transformer"] == 4 * plan.parameters["transformer"]


def test_a_judge_on_a_gpu_of_its_own_is_counted_there():
    here = aligned()
    apart = AlignmentPlanner(PlanOptions(gpus=2, prompt_words=6)).plan(alignment(judge_device="cuda:1"))
    assert "judge" in {part.name for part in here.memory} and "judge" not in {part.name for part in apart.memory}
    assert apart.gpus == 2 and apart.size < here.size
    assert apart.beside > 4 * apart.parameters["judge"]
    with pytest.raises(InputError, match="runs in one process"):
        AlignmentPlanner(PlanOptions(gpus=4)).plan(alignment())


def test_an_alignment_that_does_not_fit_is_done_in_smaller_parts(tmp_path: Path):
    path, memory = tmp_path / "align.yaml", (aligned().size - 2**20) / GIB
    path.write_text(yaml.safe_dump(alignment().model_dump(mode="json")))
    done = command("plan", path, "--gpu-memory", str(memory), "--prompt-words", "6")
    assert done.code == 1 and "To make it fit:" in done.out
    keys = next(line for line in done.out.splitlines() if "->" in line).partition("->")[0].split()
    assert all(key.startswith("refl.") for key in keys)
    assert plan_recipe(path, keys, PlanOptions(gpu_memory=memory, prompt_words=6)).fits


def test_a_generator_without_configs_is_refused_with_the_way_to_get_them():
    with pytest.raises(InputError, match=r"'black-forest-labs/FLUX.1-x'.*hf download NAME"):
        AlignmentPlanner(PlanOptions()).plan(alignment(generator="black-forest-labs/FLUX.1-x"))
