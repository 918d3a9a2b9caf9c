"""Where a plan puts weights: packed, in shards, or on the GPU for some phases only."""

from __future__ import annotations

import functools

import pytest
from tiny import generator_folder, judge_folder

from rewarddance.alignment.recipe import AlignRun
from rewarddance.planning.alignment import plan_alignment
from rewarddance.planning.plan import Plan
from rewarddance.planning.recipe import PlanOptions
from rewarddance.reward.loading import load_reward

PARTS = ("text_encoder", "vae", "judge")


@functools.cache
def planned(gpus: int = 1, memory: float = 80.0, **keys: object) -> Plan:
    content = {
        "generator": str(generator_folder()),
        "num_inference_steps": 3,
        "judge": str(judge_folder()),
        "prompts": "nowhere.txt",
        "output": "nowhere",
        "dtype": "float32",
        "judge_dtype": "float32",
        "references": {"candidates": 2, "batch_size": 2},
        "refl": {"prompts_per_step": gpus, "group_size": 2, "lora_rank": 2},
    }
    content |= {key: {"base_precision": value} if key.endswith("_options") else value for key, value in keys.items()}
    options = PlanOptions(prompt_words=6, gpus=gpus, gpu_memory=memory)
    return plan_alignment(AlignRun.model_validate(content), options)


def parts_of(plan: Plan) -> dict[str, int]:
    return {part.name: part.size for part in plan.memory}


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_packed_judge_takes_the_bytes_that_it_holds(precision):
    pytest.importorskip("bitsandbytes")
    packed = load_reward(str(judge_folder()), base_precision=precision).model
    held = sum(weight.nbytes for weight in packed.parameters())
    unpacked = max(weight.numel() for weight in packed.parameters() if not weight.is_floating_point())
    unpacked *= 4 * (2 if precision == "nf4" else 1)
    assert parts_of(planned(judge_options=precision))["judge"] == pytest.approx(held + unpacked, rel=0.03)


def test_a_packed_generator_is_a_sixth_of_float32_or_little_more():
    whole, packed = (parts_of(planned(generator_options=precision))["transformer"] for precision in ("none", "nf4"))
    assert packed < 0.5 * whole, "in a network this small much stands outside of the blocks"


def test_a_judge_in_pieces_takes_its_share_and_what_is_gathered():
    whole, two = planned(2), planned(2, judge_sharded=True)
    assert parts_of(two)["judge"] == pytest.approx(parts_of(whole)["judge"] / 2, rel=0.01)
    assert 0 < parts_of(two)["judge, gathered"] < parts_of(whole)["judge"]
    assert two.flops == whole.flops


def test_what_is_offloaded_counts_in_its_own_phases_only():
    stays, moves = planned(), planned(offload=("text_encoders", "vae", "judge"))
    assert {*PARTS} <= parts_of(stays).keys() and not {*PARTS} & parts_of(moves).keys()
    of = parts_of(stays)
    added = {"judge": of["judge"], "decoder": of["vae"], "references: decoding": of["vae"], "generator": 0}
    assert all(moves.peaks[phase] == stays.peaks[phase] + size for phase, size in added.items())
    assert moves.peaks["encoding of texts"] == of["text_encoder"]
    assert moves.size <= stays.size


def test_a_run_that_does_not_fit_is_told_what_would_save_memory():
    needed = planned().size / 2**30
    told = planned(memory=needed * 0.99999).suggestions
    assert told, "less memory is enough with some change"
    assert any("offload" in key or "batch" in key for key in told[0].keys)
