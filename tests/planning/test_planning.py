"""A plan says what the run then takes, against real runs of small judges and generators; and how it is printed."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from measured import measured_peak
from several import in_processes
from tiny import command, editor_folder, family_folder, pictures
from tiny import deep_generator_folder as generator_folder
from tiny import deep_judge_folder as judge_folder
from torch import distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.flop_counter import FlopCounterMode

from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import References
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.cli.app import recipe_file
from rewarddance.data.preferences import write_preferences
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.plan import plan_recipe
from rewarddance.planning.alignment import plan_alignment
from rewarddance.planning.hardware import GIB, GPUS
from rewarddance.planning.placement import judge_has_own_gpu
from rewarddance.planning.plan import Edit, Plan, on_meta, prompt_of_words, sample_pairs, suggestions
from rewarddance.planning.recipe import PlanOptions
from rewarddance.planning.training import flops_of, memory_of, meta_student
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.trainable import Trainable
from rewarddance.runtime.config import flatten
from rewarddance.runtime.sharding import to_local
from rewarddance.types import Preference, Prompt

JUDGES = recipe_file("quickstart.yaml").parent / "judges"
ACTIVATIONS = ("vision tower", "language model", "logits and loss", "backward pass")


def judge(**keys: object) -> JudgeRecipe:
    return JudgeRecipe.model_validate({"base": "shapeworld-judge", "instruction": "t2i", **keys})


def pairs(n: int, size: int = 32) -> list[Preference]:
    images = pictures(2 * n, size=size)
    return [Preference("a red circle", images[2 * i], images[2 * i + 1], float(i % 2)) for i in range(n)]


def trained(recipe: JudgeRecipe) -> Trainable:
    """What `train_judge` trains."""
    return Trainable(lambda dtype: build_reward(recipe.base, recipe.reward_config(), dtype=dtype), recipe)


def sizes(recipe: JudgeRecipe, gpus: int = 1) -> dict[str, int]:
    return {part.name: part.size for part in memory_of(recipe, gpus, on_meta(pairs(1)[0]))}


def activations(recipe: JudgeRecipe) -> int:
    return sum(size for name, size in sizes(recipe).items() if name in ACTIVATIONS)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", ["bundled", "qwen3_vl"])
def test_activations_are_those_of_a_real_step_to_five_percent(family: str, checkpointing: bool):
    base = "shapeworld-judge" if family == "bundled" else str(family_folder(family))
    recipe = judge(base=base, instruction="t2i-brief", batch_size=4, checkpointing=checkpointing)
    student, batch = trained(recipe), pairs(4)
    planned = activations(recipe) + sizes(recipe)["gradients"]
    assert planned == pytest.approx(measured_peak(lambda: student.reward.loss(batch).backward()), rel=0.05)
    parts = recipe.model_copy(update={"batch_size": 8, "gradient_accumulation_steps": 2})  # the second one is measured
    assert activations(parts) == pytest.approx(measured_peak(lambda: student.reward.loss(batch).backward()), rel=0.05)


@pytest.mark.parametrize("kind", ["pairwise", "pointwise", "regressive"])
def test_operations_are_those_of_a_real_step_to_three_percent(kind: str):
    recipe, (pair,) = judge(kind=kind), pairs(1)
    student = trained(recipe)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        student.reward.loss([pair]).backward()
    planned = flops_of(meta_student(recipe), on_meta(pair))
    assert sum(planned.values()) == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"dtype": "bfloat16"},
        {"lora_rank": 4},
        {"lora_rank": 4, "dtype": "bfloat16", "freeze_vision_tower": True},
        {"kind": "regressive", "lora_rank": 2},
    ],
    ids=["all", "bf16", "lora", "lora-bf16-frozen", "regressive-lora"],
)
def test_weights_gradients_and_optimiser_are_stored_as_in_a_real_run(keys: dict[str, object]):
    weights = list(trained(judge(**keys)).reward.model.parameters())
    optimiser = torch.optim.AdamW([weight for weight in weights if weight.requires_grad])
    for weight in optimiser.param_groups[0]["params"]:
        weight.grad = torch.zeros_like(weight)
    optimiser.step()
    averages = [s[name] for s in optimiser.state.values() for name in ("exp_avg", "exp_avg_sq")]
    planned = sizes(judge(**keys, gradient_accumulation_steps=2))  # of the first part's gradients the second finds all
    assert planned["weights"] == sum(weight.nbytes for weight in weights)
    assert planned["gradients"] == sum(weight.nbytes for weight in weights if weight.requires_grad)
    assert planned["optimiser"] == sum(average.nbytes for average in averages)


def test_shards_divide_what_is_kept_and_gather_a_few_layers():
    keys: dict[str, object] = {"batch_size": 8, "gradient_accumulation_steps": 2, "dtype": "bfloat16"}
    whole, sharded = sizes(judge(**keys)), sizes(judge(**keys, sharded=True), 4)
    for name in ("weights", "gradients", "optimiser"):
        assert sharded[name] == whole[name] // 4
    assert 0 < sharded["gathered"] < whole["weights"] * 4
    assert sizes(judge(**keys), 4)["DDP's buckets"] == whole["gradients"]


def test_fewer_pairs_at_once_need_less_and_checkpointing_too():
    at_once = activations(judge(batch_size=16))
    assert activations(judge(batch_size=16, gradient_accumulation_steps=4)) == pytest.approx(at_once / 4, rel=0.05)
    assert activations(judge(batch_size=16, checkpointing=True)) < 0.5 * at_once


def test_a_large_batch_is_held_as_far_as_the_judge_reads_at_once():
    assert activations(judge(batch_size=512)) == activations(judge(batch_size=1024))
    assert activations(judge(batch_size=512)) < 32 * activations(judge(batch_size=8))


def test_pairs_are_sampled_from_the_recipes_file_where_it_is_there(tmp_path: Path):
    rows = [replace(pair, prompt=prompt_of_words(3 + i)) for i, pair in enumerate(pairs(20))]
    write_preferences(rows, tmp_path / "p.jsonl")
    sample, total, source = sample_pairs(tmp_path / "p.jsonl", PlanOptions(), reasons=False)
    assert total == 20 and len(sample) == 16 and source.startswith("16 of the 20 pairs")
    assert all(pair.first.is_meta and pair.first.shape == (1, 3, 32, 32) for pair in sample)
    assert sample[0].prompt.text == prompt_of_words(3) and sample[-1].prompt.text == prompt_of_words(3 + 18)
    (pair,), total, source = sample_pairs(tmp_path / "no", PlanOptions(picture=(64, 96), prompt_words=5), reasons=True)
    assert total is None and "is not here" in source and pair.first.shape[-2:] == (64, 96)
    assert len(pair.prompt.text.split()) == len(pair.reason.split()) == 5


def test_a_recipe_for_a_public_judge_fits_the_hardware_in_its_head():
    path = JUDGES / "internvl3-1b.yaml"
    head = next(line for line in path.read_text().splitlines() if line.startswith("# hardware:"))
    plan = plan_recipe(path, [], PlanOptions(gpu_memory=float(head.partition(" of ")[2].split()[0])))
    assert plan.fits and plan.suggestions == () and plan.steps is None
    assert plan.parameters["model"] == 938_193_024


def training(folder: Path, **keys: object) -> Path:
    """A recipe of a judge's training."""
    path, recipe = folder / "recipe.yaml", {"base": "shapeworld-judge", "instruction": "t2i", **keys}
    path.write_text(yaml.safe_dump({"preferences": "no.jsonl", "output": "runs/x", "judge": recipe}))
    return path


def test_what_does_not_fit_is_changed_until_it_does_and_the_change_is_true(tmp_path: Path):
    path = training(tmp_path, batch_size=16)
    options = PlanOptions(gpu_memory=plan_recipe(path, [], PlanOptions()).size / GIB - 0.005)
    plan = plan_recipe(path, [], options)
    assert not plan.fits
    (suggestion,) = plan.suggestions
    assert suggestion.keys == ("judge.checkpointing=true",) and "the result is the same" in suggestion.effect
    again = plan_recipe(path, list(suggestion.keys), options)
    assert again.fits and again.size == suggestion.size


def test_where_nothing_helps_that_is_said(tmp_path: Path):
    done = command("plan", training(tmp_path), "--gpu-memory", "0.5")
    assert done.code == 1 and "Nothing that was tried makes it fit" in done.out


def test_the_command_says_what_fits_and_where_figures_are_from(tmp_path: Path):
    done = command("plan", training(tmp_path), "judge.lora_rank=4", "--gpu", "l40s", "--picture", "64x64")
    assert done.code == 0, done.err
    assert "of 45 on 1 x l40s: fits" in done.out and "LoRA" in done.out and "L40S datasheet" in done.out
    assert "shapeworld-judge/config.json" in done.out and "pictures of 64x64" in done.out


def test_json_has_bytes_and_seconds_that_follow_from_the_peak(tmp_path: Path):
    plan = json.loads(
        command("plan", training(tmp_path, dtype="bfloat16"), "--json-output", "--utilisation", "0.5").out
    )
    assert plan["seconds"] == pytest.approx(sum(plan["flops"].values()) / (0.5 * GPUS["h100"].bf16 * 1e12))
    assert plan["fits"] and plan["size"] > sum(part["size"] for part in plan["memory"])
    weights = load_reward("shapeworld-judge").model.parameters()
    assert plan["parameters"]["model"] == sum(weight.numel() for weight in weights)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["judge.sharded=true"], "a sharded judge needs several GPUs"),
        (["judge.gradient_accumulation_steps=64"], "a batch_size of 32 cannot be shared by 1 GPUs in 64 parts"),
        (["judge.base=someone/else"], "the architecture of 'someone/else' is not known"),
        (["judge.lora_rnak=3"], "unknown key"),
        (["--gpu", "abacus"], "there is no GPU named 'abacus'"),
        (["--picture", "wide"], "'wide': it is no height and width"),
        (["--picture", "512"], "'512': it is no height and width"),
        (["--picture", "0x512"], "the key 'picture.0'"),
    ],
)
def test_what_cannot_be_planned_is_refused_by_name(tmp_path: Path, keys: list[str], message: str):
    done = command("plan", training(tmp_path), *keys)
    assert done.code == 2 and message in done.err and "Traceback" not in done.err


def test_recipes_of_other_commands_are_refused():
    with pytest.raises(InputError, match=r"quickstart.yaml is a recipe neither of"):
        plan_recipe(recipe_file("quickstart.yaml"), [], PlanOptions())


# -- alignment ---------------------------------------------------------------------------------------------------------

REFL = {"prompts_per_step": 1, "group_size": 2, "lora_rank": 2, "judge_batch": 2}


def alignment(refl: dict[str, object] | None = None, **keys: object) -> AlignRun:
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judge": str(judge_folder()),
        "dtype": "float32",
        "judge_dtype": "float32",
        "prompts": "no.txt",
        "output": "runs/x",
        "references": {"candidates": 2},
        "refl": REFL | (refl or {}),
    }
    return AlignRun.model_validate(content | keys)


@functools.cache
def _aligned(run: str, gpus: int) -> Plan:
    return plan_alignment(AlignRun.model_validate_json(run), PlanOptions(prompt_words=6, gpus=gpus))


def aligned(refl: dict[str, object] | None = None, gpus: int = 1, **keys: object) -> Plan:
    return _aligned(alignment(refl, **keys).model_dump_json(), gpus)


@pytest.fixture
def small() -> Plan:
    return aligned()


def parts_of(plan: Plan) -> dict[str, int]:
    return {part.name: part.size for part in plan.memory}


def test_refl_needs_what_a_real_step_needs_to_five_percent(small: Plan):
    run = alignment()
    generator, judge = load_generator(run.generator, run.num_inference_steps), load_reward(run.judge)
    for weight in generator.add_lora(2, 16):
        weight.grad = torch.zeros_like(weight)
    bank = []
    for i in range(2):
        seeds = (90 + 2 * i, 91 + 2 * i)
        latents = generator.init_noise(seeds)
        bank.append(References(Prompt(prompt_of_words(6)), tuple(pictures(2, seed=i)), seeds, (1.0, 0.0), latents))
    refl: ReflRecipe = run.refl.model_copy(update={"grad_step_range": (0.0, 1e-9)})
    real = measured_peak(lambda: refl_step(generator, judge, bank, refl, seed=0, step=0))
    assert max(small.peaks[name] for name in ("generator", "decoder", "judge", "backward")) == pytest.approx(
        real, rel=0.05
    )


def test_checkpointing_and_several_last_steps_are_planned_as_they_are_done(small: Plan):
    phases = ("generator", "decoder", "judge")
    less = aligned({"checkpointing": phases})
    for phase in phases:
        assert less.peaks[phase] < 0.8 * small.peaks[phase]
    assert less.flops["backward"] > 1.2 * small.flops["backward"]
    more = aligned({"last_steps": 2})
    assert more.flops["sampling"] == small.flops["sampling"] / 1.5  # one step of three, and one or two
    back = more.flops["backward"] - small.flops["backward"]  # through the later step, whose latent has a gradient
    walk = more.flops["generator"] - 2 * small.flops["generator"]
    assert 0.9 * back < walk < back  # to that latent alone, for the distance says nothing to the step before
    unbound = aligned({"last_steps": 2, "velocity_mse": 0})
    assert unbound.flops["generator"] == 2 * small.flops["generator"]
    assert unbound.flops["backward"] == more.flops["backward"]
    assert more.peaks["generator"] > 1.3 * small.peaks["generator"]
    with pytest.raises(InputError, match="last_steps is 4, and the generator takes 3"):
        aligned({"last_steps": 4})


def test_a_surrogate_is_planned_with_its_whole_rollout(small: Plan):
    plan = aligned({"surrogate": {"like": "flowbp_sparse", "count": 2}})
    assert plan.flops["sampling"] == 0 and plan.flops["generator"] > 2 * small.flops["generator"]
    assert plan.flops["backward"] > small.flops["backward"]
    copies = aligned({"surrogate": "draft_lv"})
    assert copies.flops["judge"] > 2.5 * small.flops["judge"]
    with pytest.raises(InputError, match="wants 4 steps, and the generator takes 3"):
        aligned({"surrogate": "flowbp_sparse"})


def test_each_judge_of_several_rewards_is_counted_once(small: Plan):
    leaves = {"sharp": {"criteria": "t2i#quality/sharpness"}, "whole": {"criteria": "t2i#quality/artefacts"}}
    plan = aligned(rewards=leaves)
    assert plan.parameters["judge"] == small.parameters["judge"] and "judge 2" not in parts_of(plan)
    assert plan.flops["judge"] > 1.9 * small.flops["judge"] and plan.peaks["judge"] < 1.5 * small.peaks["judge"]
    own = aligned(rewards={"first": {}, "second": {"judge": str(judge_folder())}})
    assert own.parameters["judge"] == 2 * small.parameters["judge"]
    assert parts_of(own)["judge 2"] == parts_of(own)["judge"] == parts_of(small)["judge"]
    assert own.sources["judge of second"] == str(judge_folder())


def test_a_held_out_judge_is_held_and_asked_without_a_gradient(small: Plan):
    plan = aligned(held_out=str(judge_folder()))
    assert parts_of(plan)["judge 2"] == parts_of(plan)["judge"] == parts_of(small)["judge"]
    assert plan.parameters["judge"] == 2 * small.parameters["judge"]
    assert plan.sources["held-out judge"] == str(judge_folder())
    assert plan.flops["judge"] > 1.4 * small.flops["judge"] and plan.flops["backward"] == small.flops["backward"]


def test_references_that_are_made_anew_take_a_part_of_every_step(small: Plan):
    often, seldom = (aligned({"refresh_every": steps}) for steps in (2, 20))
    assert (often.seconds - small.seconds) == pytest.approx(10 * (seldom.seconds - small.seconds))
    assert often.seconds > 1.2 * small.seconds and often.notes[0].startswith(
        "Before the first step, and again every 2 steps"
    )


@pytest.mark.parametrize("command", ["align", "search"])
def test_a_judge_that_cannot_show_an_editors_source_is_refused_as_by_the_run(command: str, tmp_path: Path):
    recipe = {"generator": str(editor_folder()), "num_inference_steps": 3, "prompts": "no.jsonl", "output": "runs/x"}
    recipe |= {"judge": str(judge_folder())} | ({"budget": "samples=2"} if command == "search" else {})
    path = tmp_path / "edits.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(InputError, match=r"cannot be asked: .*has no place for one\. Choose an instruction that does"):
        plan_recipe(path, [], PlanOptions())
    instruction = "instruction=edit" if command == "search" else "judge_options.instruction=edit"
    for keys in ([instruction], ["judge=runs/y/reward"]):  # the latter has yet to be trained
        assert plan_recipe(path, keys, PlanOptions(judge_base=str(judge_folder()))).seconds > 0


def test_the_relay_holds_the_largest_of_its_phases_and_not_their_sum(small: Plan):
    parts = parts_of(small)
    assert parts["activations"] == max(small.peaks.values()) < sum(small.peaks.values())
    assert parts["average"] == 4 * small.parameters["trained"] == parts["optimiser"] / 2
    less = aligned({"judge_batch": 1, "decode_batch": 1, "generator_batch": 1})
    for phase in ("generator", "decoder", "judge", "backward"):
        assert less.peaks[phase] < 0.6 * small.peaks[phase]


def test_all_weights_of_a_generator_keep_what_they_were_before():
    plan = aligned({"prompts_per_step": 2, "group_size": 1, "lora_rank": 0}, dtype="bfloat16")
    assert plan.parameters["trained"] == plan.parameters["transformer"]
    parts = parts_of(plan)
    assert parts["before training"] == parts["transformer"] == 4 * plan.parameters["transformer"]


def test_a_judge_on_a_gpu_of_its_own_is_counted_there(small: Plan):
    apart = aligned(gpus=2, judge_device="cuda:1")
    assert "judge" in parts_of(small) and "judge" not in parts_of(apart)
    assert apart.gpus == 2 and apart.size < small.size
    assert apart.judge_gpu > 4 * apart.parameters["judge"]


@pytest.mark.parametrize(
    ("device", "judge_device", "own"),
    [
        (None, "cuda:0", False),
        ("cuda:0", "cuda", False),
        ("cuda:1", "cuda:1", False),
        (None, "cpu", False),
        (None, "cuda:1", True),
        ("cuda:1", "cuda", True),
    ],
)
def test_one_gpu_has_one_number_however_it_is_written(device, judge_device, own):
    assert judge_has_own_gpu(AlignRun.model_construct(device=device, judge_device=judge_device)) is own


@functools.cache
def on_two_gpus(**refl: object) -> Plan:
    """Twice the samples of the others, and references that are drawn prompt by prompt."""
    batches = {} if refl.get("lora_rank", 2) else {"judge_batch": 1, "decode_batch": 1, "generator_batch": 1}
    references = {"candidates": 2, "batch_size": 2}
    return aligned({"prompts_per_step": 2, **batches, **refl}, 2, references=references)


def test_processes_share_samples_and_each_has_all_weights(small: Plan):
    two = on_two_gpus(lora_rank=2)
    averaging = {"averaging of gradients": 2 * 4 * two.parameters["trained"]}
    assert two.peaks == pytest.approx(small.peaks | averaging, rel=1e-5)  # a number may be held a little longer
    parts = [{name: size for name, size in parts_of(plan).items() if name != "activations"} for plan in (two, small)]
    assert parts[0] == parts[1]
    assert two.flops == {name: 2 * count for name, count in small.flops.items()}
    assert two.seconds == pytest.approx(small.seconds) and two.gpus == 2
    hours = small.notes[0].partition("prompts, ")[2]
    assert two.notes[0] == f"Before the first step: references for 2 prompts, {hours}"  # one on each process


def _bytes_of_first_shards(lora_rank: int) -> tuple[int, int]:
    """Weights and gradients on the first of two processes. To be called in a process of its own: what torch remembers
    of this one's place among two would be wrong for other groups."""
    generator = load_generator(str(generator_folder()), 3)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    trained = generator.add_lora(2, 16, sharded=True) if lora_rank else generator.train_all(sharded=True)
    weights = sum(to_local(weight).nbytes for weight in generator.network.parameters())
    return weights, sum(to_local(weight).nbytes for weight in trained)


@pytest.mark.parametrize("lora_rank", [2, 0], ids=["lora", "all"])
def test_shards_are_those_of_a_real_sharded_generator(lora_rank: int):
    whole, plan = on_two_gpus(lora_rank=lora_rank), on_two_gpus(lora_rank=lora_rank, sharded=True)
    weights, gradients = in_processes(1, _bytes_of_first_shards, lora_rank, join=False)[0]
    parts = parts_of(plan)
    assert parts["transformer"] == weights < 0.6 * parts_of(whole)["transformer"]
    assert parts["gradients"] == parts["average"] == gradients == parts["optimiser"] / 2
    assert 0 < parts["gathered"] < 4 * parts_of(whole)["transformer"]
    assert ("averaging of gradients" in plan.peaks) == bool(lora_rank)  # FSDP averages what it shards
    for name in ("vae", "text_encoder", "judge"):
        assert parts[name] == parts_of(whole)[name]
    for phase in ("generator", "decoder", "judge", "backward", "sampling"):
        assert plan.peaks[phase] == pytest.approx(whole.peaks[phase], rel=1e-5)  # when garbage goes is not ours to say


def test_references_are_made_by_a_whole_generator_before_it_is_sharded():
    def at_peak(plan: Plan) -> int:
        kept = sum(part.size for part in plan.memory if part.name != "activations")
        return kept + plan.peaks["references: decoding"]

    whole, sharded = on_two_gpus(lora_rank=2), on_two_gpus(lora_rank=2, sharded=True)
    training = sum(parts_of(whole)[name] for name in ("gradients", "optimiser", "average"))
    assert at_peak(sharded) == at_peak(whole) - training - 4 * whole.parameters["trained"]


@pytest.mark.parametrize(
    ("gpus", "refl", "keys", "message"),
    [
        (3, {}, {}, "3 processes cannot share 2 samples"),
        (1, {"sharded": True}, {}, "a sharded generator needs several processes"),
        (2, {"reference_mse": 1.0, "reference_batch": 1}, {}, "2 processes cannot share 1 references"),
        (4, {"prompts_per_step": 2}, {"judge_device": "cuda:1"}, "judge_device is cuda:1, and each of 4 processes"),
        (1, {}, {"generator": "black-forest-labs/FLUX.1-x"}, r"'black-forest-labs/FLUX.1-x'.*hf download NAME"),
    ],
    ids=["samples", "sharded", "references", "judge", "generator"],
)
def test_an_alignment_that_cannot_be_is_refused_as_by_the_run(
    gpus: int, refl: dict[str, object], keys: dict[str, object], message: str
):
    with pytest.raises(InputError, match=message):
        aligned(refl, gpus, **keys)


def test_a_step_takes_no_less_than_memory_takes_to_be_read(small: Plan):
    of_products = sum(small.flops.values()) / (1e12 * small.utilisation * small.gpu.bf16)
    of_memory = sum(small.traffic.values()) / (1e9 * small.gpu.bandwidth)
    assert small.seconds >= 0.99 * max(of_products, of_memory)
    assert "generator" in small.bound_by_memory  # a tiny one


def test_an_alignment_that_does_not_fit_is_done_in_smaller_parts(tmp_path: Path, small: Plan):
    path, memory = tmp_path / "align.yaml", (small.size - 2**20) / GIB
    path.write_text(yaml.safe_dump(alignment().model_dump(mode="json")))
    done = command("plan", path, "--gpu-memory", str(memory), "--prompt-words", "6")
    assert done.code == 1 and "To make it fit:" in done.out
    keys = next(line for line in done.out.splitlines() if "->" in line).partition("->")[0].split()
    assert all(key.startswith("refl.") for key in keys)
    assert plan_recipe(path, keys, PlanOptions(gpu_memory=memory, prompt_words=6)).fits

    fitting = tmp_path / "made" / "fitting.yaml"
    options = ["--gpu-memory", str(memory), "--prompt-words", "6", "--output", fitting]
    assert command("plan", path, *options).code == 0
    before, after = (flatten(yaml.safe_load(file.read_text())) for file in (path, fitting))
    assert {key for key in after if after[key] != before[key]} == {key.partition("=")[0] for key in keys}
    assert command("plan", fitting, *options[:-2]).code == 0
    again = command("plan", path, *options)
    assert again.code == 2 and "fitting.yaml is there already" in again.err


def test_a_recipe_that_nothing_makes_fit_is_not_written(tmp_path: Path):
    done = command("plan", training(tmp_path), "--gpu-memory", "0.5", "--output", tmp_path / "fitting.yaml")
    assert done.code == 2 and "nothing was found" in done.err and not (tmp_path / "fitting.yaml").exists()


def test_sharding_is_suggested_where_it_makes_a_run_fit():
    whole, sharded = on_two_gpus(lora_rank=0), on_two_gpus(lora_rank=0, sharded=True)
    options = PlanOptions(prompt_words=6, gpus=2, gpu_memory=(whole.size + sharded.size) / 2 / GIB)
    batches = {"judge_batch": 1, "decode_batch": 1, "generator_batch": 1}
    run = alignment({"prompts_per_step": 2, "lora_rank": 0, **batches}, references={"candidates": 2, "batch_size": 2})
    (suggestion,) = plan_alignment(run, options).suggestions
    assert (suggestion.keys, suggestion.gpus, suggestion.size) == (("refl.sharded=true",), 2, sharded.size)


def test_suggestions_end_with_more_gpus_where_nothing_else_keeps_the_result():
    def size(gpus: int, recipe: JudgeRecipe) -> int:
        return (80 if recipe.checkpointing else 100) * GIB // (
            gpus if recipe.sharded else 1
        ) - 5 * recipe.lora_rank * GIB

    def suggested(memory: float) -> list[tuple[str, int]]:
        same = [Edit({"checkpointing": True}, "slower"), Edit({"sharded": True}, "shared")]
        other = [Edit({"lora_alpha": 4}, "impossible"), Edit({"lora_rank": 8}, "less", more_gpus=1)]
        options = PlanOptions(gpu_memory=memory)
        keys = {"sharded": True, "checkpointing": True}
        edits = suggestions(judge(), size, options, same=same, other=other, spread=lambda gpus: keys, prefix="judge.")
        return [(" ".join(suggestion.keys), suggestion.gpus) for suggestion in edits]

    assert suggested(85) == [("judge.checkpointing=true", 1)]
    everywhere = "judge.sharded=true judge.checkpointing=true"
    assert suggested(60) == [("judge.lora_rank=8", 2), (everywhere, 2)]
    assert suggested(21) == [(everywhere, 4)]
    assert suggested(0.2) == []
