"""What an alignment or a search loads, on the meta device: a generator, frozen judges, prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewarddance.alignment.algorithms import as_rewards
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.judges import load_judges
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import References
from rewarddance.data.prompts import read_prompts
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.planning.meta_generator import meta_generator
from rewarddance.planning.meta_judge import meta_reward, saved_config
from rewarddance.planning.plan import PlanOptions, prompt_of_words
from rewarddance.reward.judge import Judge, RewardConfig
from rewarddance.runtime.devices import find_dtype
from rewarddance.types import Prompt, Question


@dataclass(frozen=True)
class Models:
    """A generator that is trained, its trained weights, and frozen judges with the rewards that ask them, on the meta
    device. judges: each once, with the options it is loaded with. held_out: another, which chooses no references."""

    generator: PipelineGenerator
    trained: list[nn.Parameter]
    judges: list[tuple[Judge, Mapping[str, Any]]]
    rewards: list[Reward]
    held_out: tuple[Judge, Mapping[str, Any]] | None = None

    @property
    def all_judges(self) -> list[tuple[Judge, Mapping[str, Any]]]:
        return self.judges if self.held_out is None else [*self.judges, self.held_out]

    @property
    def lengths(self) -> list[int]:
        """Tokens of the questions that were asked."""
        return [length for judge, _ in self.all_judges for length in judge.vlm.lengths]  # type: ignore[attr-defined]

    @property
    def components(self) -> dict[str, nn.Module]:
        """The pipeline's networks by name."""
        components = self.generator.pipeline.components
        return {name: part for name, part in components.items() if isinstance(part, nn.Module)}

    @property
    def base_weights(self) -> list[Tensor]:
        """The initial weights, which training of all weights keeps."""
        return list((self.generator.initial_weights or {}).values())

    def tensors(self) -> list[Tensor]:
        """All that is in memory before a step: weights, buffers and gradients."""
        modules = [*self.components.values(), *(judge.model for judge, _ in self.all_judges)]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return [*tensors, *(w.grad for w in self.trained if w.grad is not None), *self.base_weights]


def meta_judge(name: str, dtype: str, options: Mapping[str, Any]) -> Judge:
    """A frozen judge. options: of `load_reward`, by which it is asked otherwise than its folder says.

    Raises InputError for a tree of criteria, and for a judge whose answers take as long as it likes.
    """
    if options.get("criteria"):
        raise InputError("a plan is made with one question, not with a tree of criteria.", "Leave criteria out.")
    changes = {key: value for key, value in options.items() if key in RewardConfig.model_fields}
    config = RewardConfig(**(saved_config(name).model_dump() | changes)) if changes else None
    judge = meta_reward(name, config, find_dtype(dtype)).freeze()
    if judge.config.reasoning == "before":
        raise InputError(
            f"the judge {name!r} thinks before it answers, and nobody can say for how long.",
            "Plan with one that answers first.",
        )
    return judge


def judge_to_plan_with(name: str, options: PlanOptions) -> tuple[str, str]:
    """The judge's name, or another one's where a training has yet to make it; and where it comes from."""
    if Path(name).name == "reward" and not Path(name).is_dir():
        return options.judge_base, f"made up, for {name} is not here: {options.judge_base}"
    return name, name


def meta_judge_of(
    generator: PipelineGenerator, name: str, dtype: str, options: PlanOptions, changes: Mapping[str, Any]
) -> Judge:
    """The judge `name` of a run, or what is planned in its place, asked as this generator's samples need it.

    changes: options of `load_reward`. Raises InputError for a judge that the run would refuse with this generator.
    """
    known, _ = judge_to_plan_with(name, options)
    if known != name and generator.needs_image:  # a training would give it an instruction that shows the picture
        changes = {"instruction": "i2v" if generator.num_frames > 1 else "edit", **changes}
    judge = meta_judge(known, dtype, changes)
    drawn = torch.zeros(1, 1, 1, 1).expand(generator.num_frames, 3, generator.height, generator.width)
    reference = drawn if judge.needs_reference else None
    for fault in judge.faults([Question(with_picture(generator, ["a prompt"])[0], drawn, reference)]):
        if fault is not None:
            raise InputError(f"the judge {name!r} cannot be asked: {fault.what}", fault.remedy)
    judge.vlm.lengths.clear()  # type: ignore[attr-defined]
    return judge


def meta_models(run: AlignRun, options: PlanOptions) -> Models:
    """Generator and judges as `rewarddance align` would load them, and what it would train."""
    drawing = {"guidance_scale": run.guidance_scale, **run.generator_options}
    generator = meta_generator(run.generator, run.num_inference_steps, find_dtype(run.dtype), **drawing)
    judges: list[tuple[Judge, Mapping[str, Any]]] = []

    def load(name: str, **changes: Any) -> Judge:
        judge = meta_judge_of(generator, name, run.judge_dtype, options, changes)
        judges.append((judge, changes))
        return judge

    asked, recipe = load_judges(run, load, load), run.chosen
    if run.held_out:
        load(run.held_out, **run.held_out_options)
    held_out = judges.pop() if run.held_out else None
    assert asked is not None, "the run asks a judge"
    rewards = as_rewards(recipe, generator, asked)
    with torch.device("meta"):
        if recipe.lora_rank:
            trained = generator.add_lora(recipe.lora_rank, recipe.alpha, recipe.lora_targets)
        else:
            trained = generator.train_all()
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    return Models(generator, trained, judges, rewards, held_out)


def meta_references(generator: PipelineGenerator, text: str, number: int) -> References:
    """Two references of a prompt on the meta device."""
    shape = generator.init_noise([0]).shape[1:]
    pictures = tuple(
        torch.empty(generator.num_frames, 3, generator.height, generator.width, device="meta") for _ in range(2)
    )
    latents = torch.empty(2, *shape, device="meta")
    (prompt,) = with_picture(generator, [text])
    return References(prompt, pictures, (2 * number, 2 * number + 1), (1.0, 0.0), latents)


def with_picture(generator: PipelineGenerator, texts: Sequence[str]) -> list[Prompt]:
    """Prompts, with one picture of the video's size where the generator needs it."""
    image = torch.zeros(1, 3, generator.height, generator.width) if generator.needs_image else None
    return [Prompt(text, image=image) for text in texts]


def count_of(weights: Iterable[Tensor]) -> int:
    return sum(weight.numel() for weight in weights)


def planning_prompts(file: Path, count: int, options: PlanOptions) -> tuple[list[str], str]:
    """Texts, the longest first, and where they come from; where there is no file, so many made-up ones."""
    if file.is_file():
        texts = dict.fromkeys(prompt.text for prompt in read_prompts(file))
        return sorted(texts, key=len, reverse=True), f"{len(texts)} of {file}"
    source = f"made up, for {file} is not here: {count} of {options.prompt_words} words"
    return [prompt_of_words(options.prompt_words)] * count, source
