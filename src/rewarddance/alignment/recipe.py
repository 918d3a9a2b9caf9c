"""What a run of `rewarddance align` is given: a generator, a judge, prompts, and which algorithm with its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from rewarddance.alignment.grpo_step import GrpoRecipe
from rewarddance.alignment.nft_step import NftRecipe
from rewarddance.alignment.references import ReferenceRecipe
from rewarddance.alignment.refl_step import ReflRecipe
from rewarddance.errors import InputError
from rewarddance.runtime import process_group
from rewarddance.runtime.config import Recipe, Seed
from rewarddance.runtime.devices import find_device


class AlignRun(Recipe):
    """`rewarddance align`: prompts is a .txt or .jsonl file; judge is a trained reward's folder.

    algorithm: ReFL goes through the judge's gradient; Flow-GRPO ("grpo") and DiffusionNFT ("nft") only ask it, and
    further judges, if any are in `more_judges`, each with its weight beside the first one's 1. refl, grpo, nft: of the
    algorithm. held_out: folder of another trained reward, which gates ReFL's gradient and is watched.
    references: of the bank, which ReFL and `judging: references` need.
    guidance_scale, generator_options: of `load_generator`, which knows what each family does with them. dtype: what the
    generator computes in; judge_dtype: of the judge's weights. device, judge_device: cpu, cuda or cuda:1; by default
    cuda where there is one, and for the judge the generator's. Of several processes each has its own GPU for both.
    grid_prompts: how many prompts are drawn at each probe for a grid of samples (`with_grids`); 0 for none. report_to:
    trackers, by accelerate's names, beside metrics.jsonl.
    """

    generator: str
    num_inference_steps: int = Field(default=28, ge=2)
    guidance_scale: float | None = Field(default=None, ge=0)
    generator_options: dict[str, Any] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    judge: str
    judge_dtype: Literal["float32", "bfloat16"] = "float32"
    judge_device: str | None = None
    more_judges: dict[str, float] = Field(default_factory=dict)
    held_out: str | None = None
    prompts: Path
    output: Path
    seed: Seed = 0
    grid_prompts: int = Field(default=4, ge=0)
    report_to: tuple[str, ...] = ()
    references: ReferenceRecipe = ReferenceRecipe()
    algorithm: Literal["refl", "grpo", "nft"] = "refl"
    refl: ReflRecipe = ReflRecipe()
    grpo: GrpoRecipe = GrpoRecipe()
    nft: NftRecipe = NftRecipe()

    @model_validator(mode="after")
    def _only_what_is_used(self) -> AlignRun:
        for name, default in (("refl", ReflRecipe()), ("grpo", GrpoRecipe()), ("nft", NftRecipe())):
            if name != self.algorithm and getattr(self, name) != default:
                raise ValueError(f"algorithm is {self.algorithm}, so {name} says nothing: leave it out")
        if self.more_judges and self.algorithm == "refl":
            raise ValueError("more_judges are for grpo and nft; ReFL follows one judge's gradient")
        if self.held_out and self.algorithm != "refl":
            raise ValueError("held_out gates the gradient of refl; of grpo and nft it is one of more_judges")
        if any(weight <= 0 for weight in self.more_judges.values()):
            raise ValueError("more_judges have weights above 0")
        return self

    @property
    def policy(self) -> GrpoRecipe | NftRecipe | None:
        """The policy gradient's recipe, if it is one that runs."""
        return {"refl": None, "grpo": self.grpo, "nft": self.nft}[self.algorithm]

    def check_processes(self, processes: int, device: str) -> None:
        """Raises InputError where so many processes, each on its own `device` (cuda or cpu), cannot do this run."""
        (self.policy or self.refl).check_processes(processes)
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
        return generator, find_device(self.judge_device or generator)
