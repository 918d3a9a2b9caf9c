"""The plan of an alignment: the references' making and ReFL's own step, on shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.references import References, candidate_seeds
from rewarddance.alignment.refl import ReflRecipe, refl_step
from rewarddance.data.prompts import read_prompts
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.sampling import rollout
from rewarddance.planning.counting import Counting, counting
from rewarddance.planning.hardware import CONTEXT, GIB, LOST
from rewarddance.planning.meta_generator import meta_generator
from rewarddance.planning.meta_judge import meta_reward
from rewarddance.planning.plan import Change, Part, Plan, PlanOptions, Tries, tried, with_losses, words
from rewarddance.reward.judge import Judge
from rewarddance.reward.ranking import tournament
from rewarddance.runtime.devices import find_dtype
from rewarddance.types import Prompt

OPTIMISER = 8
"""Bytes of AdamW's two averages for each trained weight."""
WORST = "worst moment"


@dataclass(frozen=True)
class Models:
    """A generator that is being trained and a frozen judge, both on the meta device; trained: the generator's."""

    generator: PipelineGenerator
    judge: Judge
    trained: list[nn.Parameter]

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The pipeline's parts by name."""
        found = self.generator.pipeline.components
        return {name: part for name, part in found.items() if isinstance(part, nn.Module)}

    def tensors(self) -> list[Tensor]:
        """All that is there before a step: weights, buffers, gradients, and the weights that training began from."""
        modules = [*self.parts.values(), self.judge.model]
        found = [one for module in modules for one in (*module.parameters(), *module.buffers())]
        initial = self.generator.initial_weights or {}
        return [*found, *(w.grad for w in self.trained if w.grad is not None), *initial.values()]


class AlignmentPlanner:
    """Plans runs of `rewarddance align`."""

    def __init__(self, options: PlanOptions) -> None:
        self.options, self.gpu = options, options.hardware

    def plan(self, run: AlignRun) -> Plan:
        """Raises InputError for what the run itself would refuse, and for models of which no figures are known."""
        if run.algorithm != "refl":
            raise InputError(
                f"plans are made of ReFL, not of {run.algorithm}.", "There is none for policy gradients yet."
            )
        apart = _apart(run)
        if self.options.gpus > 1 + apart:
            raise InputError(
                "rewarddance align runs in one process.",
                "Give --gpus 1, or 2 with judge_device=cuda:1 in the recipe.",
            )
        prompts, told = self._prompts(run)
        models = sketch(run)
        step = _step(models, run.refl, prompts)
        sampling, bank = _sampling(models, run.refl, prompts), _references(models, run, prompts)
        low, high = run.refl.first_grad_steps(models.generator.num_steps)
        flops = {
            "sampling": sampling.flops["sampling"] * (low + high) / 2,
            **{name: float(count) for name, count in step.flops.items()},
        }
        seconds = sum(self._seconds(run, name, count) for name, count in flops.items())
        n, together = run.references.candidates, len(_first_of_bank(run, prompts)[: run.references.batch_size])
        drawn = bank.flops["references: sampling"] * models.generator.num_steps * n * len(prompts) / together
        ranked = float(bank.flops["references: tournament"] * len(prompts))
        first = self._seconds(run, "sampling", drawn) + self._seconds(run, "judge", ranked)
        memory, moments, beside = _memory(models, run, [step, sampling, bank])
        plan = Plan(
            job="align",
            sources={
                "generator": run.generator,
                "judge": run.judge,
                **models.judge.vlm.sources._asdict(),  # type: ignore[attr-defined]
                "prompts": told,
            },
            parameters={
                **{name: _count(part.parameters()) for name, part in models.parts.items()},
                "judge": _count(models.judge.model.parameters()),
                "trained": _count(models.trained),
            },
            tokens={"of a question, longest": float(max(models.judge.vlm.lengths))},  # type: ignore[attr-defined]
            memory=memory,
            moments=moments,
            beside=beside,
            flops=flops,
            gpu=self.gpu,
            gpus=1 + apart,
            utilisation=self.options.utilisation,
            seconds=seconds,
            steps=run.refl.steps,
            notes=(
                f"Before the first step: references for {len(prompts)} prompts, {first / 3600:.2g} hours.",
                "Probes and files come on top.",
            ),
        )
        return plan if plan.fits else replace(plan, changes=self.changes(run, prompts, plan))

    def changes(self, run: AlignRun, prompts: Sequence[str], plan: Plan) -> tuple[Change, ...]:
        """The first change that fits and teaches the same; where there is none, one that teaches otherwise."""
        before: dict[tuple[Any, ...], list[Counting]] = {}

        def of(changed: AlignRun) -> int:
            models = sketch(changed)
            key = (changed.dtype, changed.judge_dtype, changed.refl.lora_rank, changed.references.batch_size)
            if key not in before:
                before[key] = [_sampling(models, changed.refl, prompts), _references(models, changed, prompts)]
            first, _, beside = _memory(models, changed, before[key])
            if (size := with_losses(max(sum(part.size for part in first), beside))) > self.gpu.memory * GIB:
                return size  # too much already, whatever a step holds
            memory, _, beside = _memory(models, changed, [*before[key], _step(models, changed.refl, prompts)])
            return with_losses(max(sum(part.size for part in memory), beside))

        first, room = max(plan.size, with_losses(plan.beside)), self._room(plan)
        for tries, end in ((_same(run, plan, room), "; the result is the same"), (_other(run, plan, room), "")):
            if found := tried(run, first, tries, of, self.gpu.memory):
                return (Change(found.keys, plan.gpus + _apart_by(found.keys), found.size, found.told + end),)
        return ()

    def _room(self, plan: Plan) -> float:
        """Bytes that are left for the worst moment beside what is always there."""
        always = sum(part.size for part in plan.memory if part.name != WORST)
        return (self.gpu.memory - CONTEXT) * GIB / (1 + LOST) - always

    def _seconds(self, run: AlignRun, phase: str, flops: float) -> float:
        half = (run.judge_dtype if phase == "judge" else run.dtype) == "bfloat16"
        return self.gpu.seconds(flops, half, self.options.utilisation)

    def _prompts(self, run: AlignRun) -> tuple[list[str], str]:
        if run.prompts.is_file():
            found = list(dict.fromkeys(prompt.text for prompt in read_prompts(run.prompts)))
            return sorted(found, key=len, reverse=True), f"{len(found)} of {run.prompts}"
        n = run.refl.prompts_per_step
        told = f"made up, for {run.prompts} is not here: {n} of {self.options.prompt_words} words"
        return [words(self.options.prompt_words)] * n, told


def sketch(run: AlignRun) -> Models:
    """Generator and judge as `rewarddance align` would load them, and what it would train."""
    drawing = {"guidance_scale": run.guidance_scale, **run.generator_options}
    generator = meta_generator(run.generator, run.num_inference_steps, find_dtype(run.dtype), **drawing)
    judge = meta_reward(run.judge, None, find_dtype(run.judge_dtype)).freeze()
    if judge.config.reasoning == "before":
        raise InputError(
            f"the judge {run.judge!r} thinks before it answers, and nobody can say for how long.",
            "Plan with one that answers first.",
        )
    refl = run.refl
    with torch.device("meta"):
        if refl.lora_rank:
            trained = generator.add_lora(refl.lora_rank, refl.lora_alpha, refl.lora_targets)
        else:
            trained = generator.train_all()
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    return Models(generator, judge, trained)


def _step(models: Models, refl: ReflRecipe, prompts: Sequence[str]) -> Counting:
    """ReFL's own step, begun from the noise: what is sampled before is counted by itself."""
    now = refl.model_copy(update={"grad_step_range": (0.0, 1e-9)})
    refl.first_grad_steps(models.generator.num_steps)
    bank = [_bank_of(models.generator, prompts[i % len(prompts)], i) for i in range(refl.prompts_per_step)]
    with counting() as counted:
        counted.known([*models.tensors(), *(picture for one in bank for picture in one.pictures)])
        counted.known(one.latents for one in bank)
        watched = _Watched(models, counted, refl.last_steps)
        refl_step(watched, watched.judge, bank, now, seed=0, step=0)  # type: ignore[arg-type]
    return counted


def _sampling(models: Models, refl: ReflRecipe, prompts: Sequence[str]) -> Counting:
    """One step of sampling of a step's samples."""
    n = refl.prompts_per_step * refl.group_size
    with counting() as counted:
        counted.known(models.tensors())
        counted.begin("sampling")
        drawn = _with_picture(models.generator, [prompts[i % len(prompts)] for i in range(n)])
        rollout(models.generator, drawn, list(range(n)), 1)
    return counted


def _first_of_bank(run: AlignRun, prompts: Sequence[str]) -> list[str]:
    """The prompt of each picture that `build_references` has judged together first."""
    return [prompt for prompt in prompts[: run.references.prompts_at_once] for _ in range(run.references.candidates)]


def _references(models: Models, run: AlignRun, prompts: Sequence[str]) -> Counting:
    """As `build_references` makes a part of the bank: one step of sampling, decoding, and a tournament.

    Of the batches that are drawn one after the other, one is drawn here; of the tournaments, which are asked together,
    one is asked, while the pictures of all are kept as the judge has encoded them.
    """
    n = run.references.candidates
    texts = _first_of_bank(run, prompts)
    drawn = _with_picture(models.generator, texts[: run.references.batch_size])
    with counting() as counted, torch.no_grad():
        counted.known(models.tensors())
        counted.begin("references: sampling")
        latents = rollout(models.generator, drawn, candidate_seeds(0, 0, len(drawn)), 1).x_t
        counted.begin("references: decoding")
        pictures = models.generator.decode(latents)
        if len(drawn) < len(texts):
            pictures = torch.empty(len(texts), *pictures.shape[1:], device="meta")
        counted.begin("references: encoding")
        kept = models.judge.vlm.encode(list(pictures))  # type: ignore[attr-defined]
        counted.begin("references: tournament")
        tournament(models.judge, drawn[:1], [list(pictures[:n])])
        del kept
    return counted


class _Watched:
    """The generator, which says what is being done with it; and the judge beside it.

    last_steps: where they are several, the sampler has no others.
    """

    def __init__(self, models: Models, counted: Counting, last_steps: int) -> None:
        self._models, self._counted = models, counted
        self.num_steps = last_steps if last_steps > 1 else models.generator.num_steps
        self.judge = _CountedJudge(models.judge, counted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models.generator, name)

    def predict(self, x_t: Tensor, step: int, condition: Any) -> Tensor:
        self._counted.begin("generator")
        return self._models.generator.predict(x_t, step, condition)

    def decode(self, x_0: Tensor) -> Tensor:
        self._counted.begin("decoder")
        return self._models.generator.decode(x_0)


class _CountedJudge:
    """The judge, which says when it is asked."""

    def __init__(self, judge: Judge, counted: Counting) -> None:
        self._judge, self._counted = judge, counted
        self.vlm = judge.vlm  # type: ignore[attr-defined]

    def __call__(self, questions: Any) -> Any:
        self._counted.begin("judge")
        return self._judge(questions)


def _bank_of(generator: PipelineGenerator, prompt: str, number: int) -> References:
    """Two references as shapes."""
    shape = generator.init_noise([0]).shape[1:]
    frames = generator._option("num_frames") if "num_frames" in generator.uses else 1
    pictures = tuple(torch.empty(frames, 3, generator.height, generator.width, device="meta") for _ in range(2))
    latents = torch.empty(2, *shape, device="meta")
    (asked,) = _with_picture(generator, [prompt])
    return References(asked, pictures, (2 * number, 2 * number + 1), (1.0, 0.0), latents)


def _with_picture(generator: PipelineGenerator, texts: Sequence[str]) -> list[Prompt]:
    """Prompts, with one picture of the video's size where the generator needs it."""
    image = torch.zeros(1, 3, generator.height, generator.width) if generator.needs_image else None
    return [Prompt(text, image=image) for text in texts]


def _memory(models: Models, run: AlignRun, counted: Sequence[Counting]) -> tuple[tuple[Part, ...], dict[str, int], int]:
    """What the generator's GPU holds, what comes and goes by moment, and what a GPU of the judge's own holds."""
    trained, apart = models.trained, _apart(run)
    whole = {name: sum(weight.nbytes for weight in part.parameters()) for name, part in models.parts.items()}
    judge = sum(weight.nbytes for weight in models.judge.model.parameters())
    moments: dict[str, int] = {}
    for one in counted:
        for phase, size in one.peaks.items():
            moments[phase] = max(size, moments.get(phase, 0))
    beside = ("judge", "references: encoding", "references: tournament") if apart else ()
    name, worst = max(((k, v) for k, v in moments.items() if k not in beside), key=lambda one: one[1])
    weights = sum(weight.numel() for weight in trained)
    before = sum(one.nbytes for one in (models.generator.initial_weights or {}).values())
    parts = [
        *(Part(part, size, run.dtype) for part, size in whole.items()),
        *([] if apart else [Part("judge", judge, run.judge_dtype)]),
        Part("gradients", sum(weight.nbytes for weight in trained), "of what is trained, float32"),
        Part("optimiser", OPTIMISER * weights, "AdamW, float32"),
        Part("average", 4 * weights, "EMA, float32"),
        *([Part("before training", before, "the weights that training began from")] if before else []),
        Part(WORST, worst, f"{name}; others hold less, and not at the same time"),
    ]
    return tuple(parts), moments, judge + max(moments[key] for key in beside) if beside else 0


def _apart(run: AlignRun) -> bool:
    """Has the judge a GPU of its own?"""
    return run.judge_device is not None and run.judge_device != (run.device or "cuda")


def _count(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


def _apart_by(keys: Sequence[str]) -> int:
    return int(any(key.startswith("judge_device=") for key in keys))


def _same(run: AlignRun, plan: Plan, room: float) -> Tries:
    """What makes each moment that is too large smaller, all together, and then all as small as can be.

    What a run learns stays the same but for rounding. Nothing where a moment that is too large cannot be split.
    """
    keys: dict[str, Any] = {}
    for moment, (key, now, _) in _split(run).items():
        if plan.moments[moment] > room:
            fewer = max(1, int(now * 0.9 * max(room, 0) / plan.moments[moment]))
            keys[key] = min(fewer, keys.get(key, fewer))
    if not keys or any(size > room for moment, size in plan.moments.items() if moment not in _split(run)):
        return []
    least = {key: 1 for key, now, _ in _split(run).values() if now > 1}
    told = ", ".join(dict.fromkeys(words for key, _, words in _split(run).values() if key in keys))
    return [(keys, f"fewer at once {told}"), (least, "one at a time")]


def _split(run: AlignRun) -> dict[str, tuple[str, int, str]]:
    """Moments that can be split: the key that says how many go through at once, how many that is, through what."""
    samples, refl = run.refl.prompts_per_step * run.refl.group_size, run.refl
    drawn = ("references.batch_size", run.references.batch_size, "drawn for the references")
    network = ("refl.generator_batch", refl.generator_batch or samples, "through the generator")
    return {
        "decoder": ("refl.decode_batch", refl.decode_batch or samples, "through the decoder"),
        "judge": ("refl.judge_batch", refl.judge_batch, "before the judge"),
        "generator": network,
        "backward": network,
        "references: sampling": drawn,
        "references: decoding": drawn,
    }


def _other(run: AlignRun, plan: Plan, room: float) -> Tries:
    """Changes of what is computed or learned, the gentlest first, each with all batches as small as can be."""
    tries: Tries = []
    least = {key: 1 for moment, (key, now, _) in _split(run).items() if now > 1 and plan.moments[moment] > room}
    if run.judge_dtype == "float32":
        tries.append(({**least, "judge_dtype": "bfloat16"}, "the judge in bfloat16"))
    if run.dtype == "float32":
        tries.append(({**least, "dtype": "bfloat16"}, "the generator in bfloat16"))
    if run.refl.lora_rank == 0:
        keys = {**least, "refl.lora_rank": 32, "refl.lora_alpha": 32}
        tries.append((keys, "LoRA instead of all weights: raise learning_rate"))
    if run.judge_device is None:
        tries.append(({**least, "judge_device": "cuda:1"}, "a second GPU for the judge"))
    return tries
