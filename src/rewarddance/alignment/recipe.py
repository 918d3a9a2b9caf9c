"""What a run of `rewarddance align` is given: a generator, a judge, prompts, and which algorithm with its keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from rewarddance.alignment.alarms import EARLY, RING_BY, AlarmName
from rewarddance.alignment.algorithms import AlgorithmConfig
from rewarddance.errors import InputError
from rewarddance.runtime import process_group
from rewarddance.runtime.config import GeneratorOptions, Recipe, Seed, changed
from rewarddance.runtime.devices import find_device

OffloadedPart = Literal["text_encoders", "vae", "judge"]
NAME = r"\w[\w-]*"
"""What a reward may be called: its figures are logged under it."""


class NamedReward(Recipe):
    """One of several rewards of an alignment.

    judge: as in `AlignRun`; by default the run's own, which is loaded once for all that ask it.
    criteria: a tree of criteria or one criterion of it, such as edit#keeping, asked in place of the one question.
    criteria_average: "margin" or "probability" (`CriteriaReward`).
    options: of `load_reward` for a judge of its own.
    weight: among the rewards, whatever their scales; one of 0 is asked and logged, and not learned from.
    """

    judge: str | None = None
    criteria: str | None = None
    criteria_average: Literal["margin", "probability"] = "margin"
    options: dict[str, Any] = Field(default_factory=dict)
    weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _is_of_a_judge(self) -> NamedReward:
        if self.options and self.judge is None:
            raise ValueError("options are of a judge of its own: name it, or set judge_options of the run's")
        if {"criteria", "criteria_average"} & self.options.keys():
            raise ValueError("criteria stand beside options, not among them")
        if self.criteria is None and (given := changed(self, "criteria_average")):
            raise ValueError(f"{given} is of criteria, and there are none: leave it out")
        return self


class AlignRun(AlgorithmConfig):
    """`rewarddance align`: a generator, a judge and prompts (and `AlgorithmConfig`: the algorithm with its keys).

    generator_options, guidance_scale: of `load_generator`, which knows what each family does with them.
    dtype: what the generator computes in; judge_dtype: of the judge's weights. auto: bfloat16 on a GPU, else float32.
    device, judge_device: cpu, cuda or cuda:1; by default cuda where there is one, and for the judge the generator's. Of
        several processes each has its own GPU for both.
    judge_sharded: the weights of all judges are split over the processes, for one that is larger than a device; of what
        has no vision-language model here, only beside the first judge, each process then has a whole one.
    offload: parts that are on the CPU while they are not in use: text_encoders, vae, judge (all judges); each use moves
        them to the device and back. Encoded texts are kept in `output`/texts.
    judge: a trained reward's folder or name, `package.module:factory`, or the address of a server (http://...; chat+,
    decisions+ and systemone+http://... for all but refl); held_out and those of rewards likewise. None for dpo, which
        learns from votes.
    judge_options: of `load_reward` for the judge, such as kind or criteria, or of the factory or the address.
    rewards: several by name, in place of the judge alone; judge is then whom those ask that name no other. Each is
        normalised by itself, so that the scale of none decides: see `combine` and `blend`.
    held_out: another trained reward, which gates ReFL's gradient and is watched. held_out_options: of `load_reward`.
    begin_with: the folder of a LoRA that training goes on from; distances are still from the generator without it.
    prompts: a .txt, .jsonl, .json, .csv, .tsv or .parquet file.
    skip_faulty: leave out prompts that cannot be used, and list them in faulty.jsonl.
    grid_prompts: how many prompts are drawn at each probe for a grid of samples (`with_grids`); 0 for none.
    report_to: trackers, by accelerate's names, beside metrics.jsonl.
    """

    generator: str
    num_inference_steps: int = Field(default=28, ge=2)
    guidance_scale: float | None = Field(default=None, ge=0)
    generator_options: GeneratorOptions = Field(default_factory=dict)
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str | None = None
    judge: str = ""
    judge_options: dict[str, Any] = Field(default_factory=dict)
    judge_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    judge_device: str | None = None
    judge_sharded: bool = False
    offload: tuple[OffloadedPart, ...] = ()
    rewards: dict[str, NamedReward] = Field(default_factory=dict)
    held_out: str | None = None
    held_out_options: dict[str, Any] = Field(default_factory=dict)
    begin_with: Path | None = None
    prompts: Path
    output: Path
    seed: Seed = 0
    grid_prompts: int = Field(default=4, ge=0)
    report_to: tuple[str, ...] = ()
    skip_faulty: bool = Field(default=False, exclude=True)

    @model_validator(mode="after")
    def _packed_weights_stay_as_they_are(self) -> AlignRun:
        precision = self.generator_options.get("base_precision", "none")
        if precision != "none" and not self.chosen.lora_rank:
            raise ValueError(f"weights in {precision} cannot be trained: set lora_rank, or base_precision to none")
        if precision != "none" and self.chosen.sharded:
            raise ValueError("weights in base_precision are packed, and cannot be sharded: leave one of them out")
        if self.judge_sharded and self.judge_options.get("base_precision", "none") != "none":
            raise ValueError("a judge in base_precision is packed, and cannot be sharded: leave one of them out")
        if "judge" in self.offload and (self.judge_sharded or self.judge_options.get("base_precision") == "int8"):
            raise ValueError("a judge that is sharded, or in int8, stays on its device: leave judge out of offload")
        return self

    @model_validator(mode="after")
    def _judges_are_of_the_algorithm(self) -> AlignRun:
        if self.algorithm == "dpo" and (self.judge or self.rewards):
            raise ValueError("dpo learns from dpo.preferences and asks no judge: leave judge and rewards out")
        of_judges = ("judge_options", "judge_dtype", "judge_device", "judge_sharded")
        if self.algorithm == "dpo" and (given := changed(self, *of_judges)):
            raise ValueError(f"dpo asks no judge, so {given} says nothing: leave it out")
        if self.algorithm == "dpo" and "judge" in self.offload:
            raise ValueError("dpo asks no judge: leave judge out of offload")
        if self.algorithm != "dpo" and not (self.judge or self.rewards):
            raise ValueError(f"the key judge is missing, which {self.algorithm} asks; or give several rewards")
        if self.held_out and self.algorithm != "refl":
            raise ValueError("held_out gates the gradient of refl; elsewhere it is one of rewards, of weight 0")
        if self.held_out_options and not self.held_out:
            raise ValueError("held_out_options are of a held-out judge, and there is none (held_out): leave them out")
        if not self.held_out and not self.refl.gate:
            raise ValueError("refl.gate is of a held-out judge, and there is none (held_out): leave it out")
        return self

    @model_validator(mode="after")
    def _alarms_that_are_set_can_ring(self) -> AlignRun:
        alarms = self.chosen.alarms
        cannot: dict[str, str] = {}
        if not self.held_out:
            cannot["held_out"] = "there is no held-out judge (held_out)"
        if len(self.rewards) < 2:
            cannot["traded"] = "there are not several rewards (rewards)"
        if self.algorithm == "grpo" and not self.grpo.kl:
            cannot["distance"] = "grpo measures it for a kl above 0 only"
        if self.chosen.steps < 2 * alarms.window:
            short = f"it compares two windows of {alarms.window} steps, and there are {self.chosen.steps}"
            cannot |= dict.fromkeys({*get_args(AlarmName)} - {*EARLY}, short)
        if self.chosen.group_size == 1:
            cannot |= dict.fromkeys(("spread_within", "diversity_within", "collapse"), "group_size is 1")
        if self.chosen.prompts_per_step == 1:
            cannot |= dict.fromkeys(("spread_across", "diversity_across"), "prompts_per_step is 1")
        if self.algorithm == "dpo":
            cannot |= dict.fromkeys({*get_args(AlarmName)} - {"distance"}, "dpo draws and judges nothing")
        for name in alarms.stop_on if changed(alarms, "stop_on") else ():
            if name in cannot:
                raise ValueError(
                    f"{self.algorithm}.alarms.stop_on names {name}, which cannot ring here: {cannot[name]}"
                )
        for key, names in RING_BY.items():
            if changed(alarms, key) and {*names} <= cannot.keys():
                raise ValueError(
                    f"{self.algorithm}.alarms.{key} is of {' and '.join(names)}, which cannot ring here: "
                    f"{cannot[names[0]]}"
                )
        return self

    @model_validator(mode="after")
    def _rewards_add_up(self) -> AlignRun:
        if self.algorithm == "online_dpo" and len(self.rewards) < 2 and changed(self.online_dpo, "spread"):
            raise ValueError("online_dpo.spread says nothing with one reward, whose order counts: leave it out")
        return self

    @model_validator(mode="after")
    def _rewards_can_be_told_apart(self) -> AlignRun:
        for name, reward in self.rewards.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"a reward is named {name!r}; use letters, digits, '-' and '_'")
            if reward.judge is None and not self.judge:
                raise ValueError(f"the reward {name} has no judge: name one in it, or one for all (judge)")
        if len(self.rewards) == 1 and changed(only := next(iter(self.rewards.values())), "weight") and only.weight:
            raise ValueError("one reward alone is normalised, so its weight says nothing: leave it out")
        if self.rewards and not any(reward.weight for reward in self.rewards.values()):
            raise ValueError("all rewards have the weight 0, so there is nothing to learn")
        if self.judge and self.rewards and all(reward.judge for reward in self.rewards.values()):
            raise ValueError("every reward names a judge of its own, so judge is asked nothing: leave it out")
        if not self.judge and self.judge_options:
            raise ValueError("judge_options are of the judge that rewards share, and there is none (judge)")
        return self

    def check_processes(self, processes: int, device: str) -> None:
        """Raises InputError where so many processes, each on its own `device` (cuda or cpu), cannot do this run."""
        self.chosen.check_processes(processes)
        if self.judge_sharded and processes == 1:
            raise InputError(
                "a sharded judge needs several processes.",
                "Start it with torchrun --nproc-per-node N -m rewarddance align RECIPE, or set judge_sharded to false.",
            )
        for key, name in (("device", self.device), ("judge_device", self.judge_device)):
            if processes > 1 and name not in (None, device, "cpu"):
                raise InputError(
                    f"{key} is {name}, and each of {processes} processes computes on its own ({device}).",
                    f"Leave {key} out.",
                )

    def devices(self) -> tuple[str, str]:
        """The generator's and the judge's, of this process. Raises InputError where one is not there."""
        several = process_group.world_size() > 1
        generator = find_device(self.device or (process_group.device().type if several else None))
        judge = find_device(self.judge_device or generator)
        for part in self.offload:
            if (judge if part == "judge" else generator) == "cpu":
                raise InputError(f"{part} cannot be moved off the CPU.", "Leave it out of offload.")
        return generator, judge
