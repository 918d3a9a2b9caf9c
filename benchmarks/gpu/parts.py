"""What is measured on a card. Each part says what it found as it finds it: what stops it costs only the rest of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from card import GIB, Card, Peak
from judges import flops, naive
from models import PROMPT, bank_of, pictures, random_generator, random_judge
from sizes import Sizes

from rewarddance.alignment.algorithms import algorithm_of
from rewarddance.alignment.flow_grpo import GrpoRecipe
from rewarddance.alignment.group_rewards import Reward
from rewarddance.alignment.references import ReferenceBank
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.train import Alignment, TrainRecipe, TrainState
from rewarddance.reward.batches import MicroBatch
from rewarddance.reward.pixel_gradient import checkpointing, pixel_gradient
from rewarddance.reward.prefix_attention import ScoreMatrix, kernel_for, prefix_attention
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import accumulate_gradient, build_optimiser, clip_gradient, take_step
from rewarddance.reward.trainable import Trainable
from rewarddance.types import Preference, Question

Found = Callable[..., None]
"""Is told figures by name."""


class Part(NamedTuple):
    """A measurement. seconds: what it may take."""

    run: Callable[[Card, Sizes, Found], None]
    seconds: float


def _gib(peak: Peak) -> dict[str, float]:
    """Of a run: the most that was held, and how much of it the run itself added; nothing where nobody says."""
    if peak.peak is None or peak.before is None:
        return {}
    return {"peak_gib": peak.peak / GIB, "added_gib": (peak.peak - peak.before) / GIB}


def _named(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}_{figure}": value for figure, value in figures.items()}


def product(card: Card, sizes: Sizes, found: Found) -> None:
    """What the card reaches in one large product of bfloat16."""
    a, b = (torch.randn(sizes.product, sizes.product, device=card.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = card.seconds(lambda: a @ b, rounds=10)
    found(tflops=2 * sizes.product**3 / seconds / 1e12)


def attention(card: Card, sizes: Sizes, found: Found) -> None:
    """Attention to a prefix at the heads of an 8B judge, one layer, against the scores written out."""
    (heads, kv), width = sizes.heads, sizes.width
    shapes = [(sizes.rows, n, sizes.own, width) for n in (heads, kv, kv)] + [(1, kv, sizes.prefix, width)] * 2
    rng = torch.Generator().manual_seed(0)
    exact = [torch.randn(shape, generator=rng).to(card.device) for shape in shapes]
    leaves = [x.to(torch.bfloat16).requires_grad_() for x in exact]

    def attend(given: Any, kernel: Any = None) -> torch.Tensor:
        return prefix_attention(*given[:3], tuple(given[3:]), [sizes.prefix], width**-0.5, kernel)

    def gradients(kernel: Any = None) -> Any:
        return torch.autograd.grad(attend(leaves, kernel).float().square().mean(), leaves)

    found(kernel=kernel_for(leaves[0]).__name__, kernels=card.kernels(gradients))
    with torch.no_grad():
        plain = attend(exact, ScoreMatrix)
        found(away_from_float32=float((attend(leaves).float() - plain).norm() / plain.norm()))
    for name, kernel in (("", None), ("matrix_", ScoreMatrix)):
        with torch.no_grad():
            found(**{f"{name}forward_ms": 1e3 * card.seconds(lambda kernel=kernel: attend(leaves, kernel))})
        found(**{f"{name}gradient_ms": 1e3 * card.seconds(lambda kernel=kernel: gradients(kernel))})
        found(**_named(f"{name}gradient", _gib(card.peak_of(lambda kernel=kernel: gradients(kernel)))))


def _group(card: Card, count: int, side: int) -> list[Question]:
    reference, *candidates = pictures(count + 1, side, card.device)
    return [Question(PROMPT, candidate, reference) for candidate in candidates]


def scoring(card: Card, sizes: Sizes, found: Found) -> None:
    """Candidates under one reference, each judge's prefill: pairs a second, and the share of the card's peak."""
    for label, name in sizes.judges.items():
        judge, asked = random_judge(name, card.device).freeze(), _group(card, sizes.candidates, sizes.scored_side)
        with torch.no_grad():
            seconds = card.seconds(lambda judge=judge, asked=asked: judge(asked))
            figures = {"pairs_a_second": len(asked) / seconds}
            found(**_named(label, figures))
            operations = flops(lambda judge=judge, asked=asked: judge(asked))
            found(**_named(label, {"utilisation": card.utilisation(operations, seconds)}))
            theirs = card.seconds(lambda judge=judge, asked=asked: naive(judge, asked[:4]), rounds=2, warm=1)
            found(**_named(label, {"naive_pairs_a_second": len(asked[:4]) / theirs}))
        del judge


def kernels(card: Card, sizes: Sizes, found: Found) -> None:
    """Which kernels a judge's forward is made of."""
    judge, asked = random_judge(sizes.judge, card.device).freeze(), _group(card, sizes.candidates, sizes.scored_side)
    with torch.no_grad():
        judge(asked)
        names = card.kernels(lambda: judge(asked))
    found(names=names)
    if names:
        found(flash=any("flash" in name.lower() for name in names))


def gradient(card: Card, sizes: Sizes, found: Found) -> None:
    """The reward's gradient in pixels: time, and memory beside the weights."""
    judge, asked = random_judge(sizes.judge, card.device).freeze(), _group(card, sizes.differentiated, sizes.side)

    def work() -> None:
        pixel_gradient(judge, asked, lambda margin: -margin.mean())

    for name, kept in (("", nullcontext()), ("checkpointed_", checkpointing(judge))):
        with kept:
            found(**{f"{name}seconds": card.seconds(work, rounds=3, warm=1)})
            found(**{f"{name}{figure}": value for figure, value in _gib(card.peak_of(work)).items()})


def training_recipe(sizes: Sizes) -> JudgeRecipe:
    """LoRA on a judge in bfloat16, layers' inputs kept; the same for what is measured and for what is planned."""
    options: dict[str, Any] = {"dtype": "bfloat16", "lora_rank": 64, "lora_alpha": 64, "checkpointing": True}
    return JudgeRecipe(base=sizes.judge, batch_size=sizes.pairs, gradient_accumulation_steps=4, **options)


def training(card: Card, sizes: Sizes, found: Found) -> None:
    """A judge's training step: forward and backward of all parts, clipping and the optimiser."""
    recipe = training_recipe(sizes)
    student = Trainable(lambda dtype: random_judge(recipe.base, card.device, dtype, checkpointing=True), recipe)
    model, reward = student.reward.model.to(card.device), student.reward
    optimiser = build_optimiser(model, recipe)
    shown = pictures(2 * sizes.pairs, sizes.side, card.device)
    pairs = [Preference(PROMPT, shown[2 * k], shown[2 * k + 1], 1.0) for k in range(sizes.pairs)]
    share = sizes.pairs // recipe.gradient_accumulation_steps
    parts = [
        MicroBatch(tuple(pairs[start : start + share]), 1, start, is_whole_batch=False)
        for start in range(0, sizes.pairs, share)
    ]

    def step() -> None:
        accumulate_gradient(student.module, reward, parts)
        clip_gradient(model, recipe.max_grad_norm, 1)
        take_step(optimiser, model, 1)

    step()
    found(**_gib(card.peak_of(step)))
    seconds = card.seconds(step, rounds=3, warm=0)
    found(seconds=seconds, pairs_a_second=sizes.pairs / seconds)


SPARING: dict[str, Any] = {"checkpointing": ("generator", "decoder", "judge"), "decode_batch": 1, "generator_batch": 1}


def refl_recipe(sizes: Sizes) -> ReflRecipe:
    """ReFL of a LoRA, all parts computed again; the same for what is measured and for what is planned."""
    return ReflRecipe(prompts_per_step=1, group_size=sizes.group, lora_rank=32, lora_alpha=32, judge_batch=2, **SPARING)


def grpo_recipe(sizes: Sizes) -> GrpoRecipe:
    """Flow-GRPO of a LoRA with its defaults, one sample at a time."""
    return GrpoRecipe(
        prompts_per_step=1, group_size=sizes.group, lora_rank=32, lora_alpha=32, generator_batch=1,
        checkpointing=("generator",),
    )  # fmt: skip


def _alignment(card: Card, sizes: Sizes, recipe: TrainRecipe, judging: Any, found: Found) -> None:
    """A step of an alignment with its optimiser's: the rollout, the judge, the update."""
    judge = random_judge(sizes.judge, card.device).freeze()
    generator = random_generator(sizes.generator, card.device, **sizes.options)
    bank = ReferenceBank(bank_of(generator, 2))
    prompts = [references.prompt for references in bank.references]
    run = Alignment(generator, [Reward(judge, judging)], prompts, recipe, bank=bank)
    with TemporaryDirectory() as folder:
        state = TrainState.begin(run, Path(folder))
    numbers = iter(range(100))

    def step() -> None:
        for _ in algorithm_of(recipe).updates(run, next(numbers), state.ema):
            state.apply_gradient(recipe.learning_rate, recipe.max_grad_norm)

    step()
    peak = card.peak_of(step)
    found(seconds=peak.seconds, seconds_a_sample=peak.seconds / sizes.group, **_gib(peak))
    found(seconds_again=card.seconds(step, rounds=1, warm=0))


def refl(card: Card, sizes: Sizes, found: Found) -> None:
    """A step of ReFL of a LoRA on a generator with a judge, on one card."""
    _alignment(card, sizes, refl_recipe(sizes), "references", found)


def grpo(card: Card, sizes: Sizes, found: Found) -> None:
    """A step of Flow-GRPO of the same."""
    _alignment(card, sizes, grpo_recipe(sizes), "group", found)


def planned(card: Card, sizes: Sizes, found: Found) -> None:
    """What `rewarddance plan` says of the two steps above. No card is needed for it."""
    from rewarddance.alignment.recipe import AlignRun
    from rewarddance.planning.alignment import plan_alignment
    from rewarddance.planning.alignment_memory import ACTIVATIONS
    from rewarddance.planning.recipe import PlanOptions
    from rewarddance.planning.training import plan_training

    options = PlanOptions(gpu="h200", picture=(sizes.side, sizes.side), prompt_words=len(PROMPT.split()))
    plan = plan_training(training_recipe(sizes), Path("none.jsonl"), options)
    found(training_gib=sum(part.size for part in plan.memory) / GIB, training_tflop=sum(plan.flops.values()) / 1e12)
    sampling = {key: sizes.options[key] for key in ("num_inference_steps", "guidance_scale") if key in sizes.options}
    others = {key: value for key, value in sizes.options.items() if key not in sampling}
    run = AlignRun(
        generator=sizes.generator, judge=sizes.judge, generator_options=others, prompts=Path("none.txt"),
        output=Path("none"), dtype="bfloat16", judge_dtype="bfloat16", refl=refl_recipe(sizes), **sampling,
    )  # fmt: skip
    plan = plan_alignment(run, options)
    weights = sum(part.size for part in plan.memory if part.name != ACTIVATIONS)
    step = max(size for phase, size in plan.peaks.items() if not phase.startswith("references"))  # these come before
    found(refl_gib=(weights + step) / GIB, refl_tflop=sum(plan.flops.values()) / 1e12)


PARTS = {
    "product": Part(product, 20),
    "attention": Part(attention, 40),
    "kernels": Part(kernels, 40),
    "scoring": Part(scoring, 150),
    "gradient": Part(gradient, 50),
    "training": Part(training, 70),
    "refl": Part(refl, 110),
    "grpo": Part(grpo, 100),
    "planned": Part(planned, 300),
}
"""In this order; what takes longest and matters least stands last."""
