"""The quickstart: preferences -> judge -> references -> ReFL -> DiffusionNFT -> best of N -> report.

Of pictures, of videos or of edits; DiffusionNFT goes on from what ReFL made, where the recipe has it.

Each stage leaves its result in the run folder and is not done again when the run is resumed; the two long stages also
go on from their own checkpoints. Every random draw depends on the seed and on its place in the run, so a resumed run
ends with the same figures.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator

from rewarddance.alignment.algorithms import AlgorithmConfig, align_generator, prepare_alignment
from rewarddance.alignment.nft import NftRecipe
from rewarddance.alignment.references import ReferenceRecipe, build_references
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.errors import InputError
from rewarddance.evaluation.agreement import accuracy
from rewarddance.evaluation.hacking import diversity, hacking_verdict
from rewarddance.evaluation.recipe import ExamRecipe
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.evaluate import document, training_facts
from rewarddance.jobs.preflight import checked_prompts
from rewarddance.jobs.quickstart_figures import (
    gallery,
    good_same_bad,
    noise_seeds,
    probe_figures,
    proxy,
    sampled,
    scored,
    tables,
)
from rewarddance.jobs.sample_grids import with_grids
from rewarddance.protocols import RewardModel
from rewarddance.report.alignment_page import ALGORITHMS
from rewarddance.report.progress import Progress, ProgressPage
from rewarddance.report.run_folder import read_alarms
from rewarddance.report.run_page import write_progress, write_report
from rewarddance.reward.judge import Judge, RewardConfig
from rewarddance.reward.loading import build_reward, load_reward
from rewarddance.reward.recipe import JudgeRecipe
from rewarddance.reward.train import check_training, train_judge
from rewarddance.runtime.checkpoint import BUNDLED, read_run_json, writable_folder, write_text_atomically
from rewarddance.runtime.config import MOST, GeneratorOptions, Recipe, Seed, load_recipe, save_recipe
from rewarddance.runtime.files import read_text
from rewarddance.runtime.lock import locked
from rewarddance.runtime.trackers import check_trackers, reporting
from rewarddance.runtime.tracking import Metrics, console, machine, peak_memory_gib, progress_bar, stage_lines
from rewarddance.search.best_of_n import best_of_n
from rewarddance.shapeworld.tasks import TaskRecipe, parse_preferences, task_of
from rewarddance.types import Prompt

CONFIG, STAGES, SUMMARY = "config.yaml", "stages.json", "summary.json"


class EvaluationRecipe(Recipe):
    """What the run is evaluated on.

    prompts: held-out prompts of the final table, distinct in content, the six categories in turn.
    n: candidates of best of N, and samples a prompt of the base.
    aligned_samples: samples a prompt of each aligned generator, from the same noises, so at most n.
    probe_prompts, probe_samples: what alignment is evaluated on while it runs.
    grid_prompts: how many of the probe's prompts are drawn as a grid of samples, 0 for none.
    gallery_prompts: prompts in the report's gallery.
    exam: of the judge's card, a few seconds of a run of minutes.
    """

    prompts: int = Field(default=96, ge=6, le=MOST)
    n: int = Field(default=16, ge=2, le=MOST)
    aligned_samples: int = Field(default=8, ge=2, le=MOST)
    probe_prompts: int = Field(default=24, ge=6, le=MOST)
    probe_samples: int = Field(default=2, ge=2, le=MOST)
    grid_prompts: int = Field(default=4, ge=0, le=MOST)
    gallery_prompts: int = Field(default=12, ge=1, le=MOST)
    exam: ExamRecipe = ExamRecipe(probes=60, groups=12, pictures=4)

    @model_validator(mode="after")
    def _samples_are_paired(self) -> EvaluationRecipe:
        if self.aligned_samples > self.n:
            raise ValueError(
                f"aligned_samples ({self.aligned_samples}) are paired with the base's of the same noises, of which "
                f"there are n ({self.n}): lower aligned_samples or raise n"
            )
        return self


class QuickstartRecipe(Recipe):
    """The whole run.

    task: pictures ("t2i"), videos ("t2v"), videos that begin with a picture ("i2v"), or edits of one ("edit").
    report_to: trackers of ReFL, by accelerate's names; the judge's training has its own key.
    generator: a bundled name or a folder, as judge.base is.
    guidance_scale: of the generator; none where its network is not told one.
    generator_options: of `load_generator`.
    preferences: the task's own, `PreferenceRecipe`, `MotionRecipe` or `EditRecipe`.
    refl_prompts: training prompts of ReFL.
    nft: DiffusionNFT, which goes on from ReFL's LoRA; none if it is left out.
    nft_prompts: training prompts of DiffusionNFT, which needs no references and so can have many.
    """

    task: Literal["t2i", "t2v", "i2v", "edit"] = "t2i"
    seed: Seed = 0
    report_to: tuple[str, ...] = ()
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=10, ge=2)
    guidance_scale: float | None = Field(default=1.0, ge=1)
    generator_options: GeneratorOptions = Field(default_factory=dict)
    preferences: TaskRecipe = Field(default_factory=dict, validate_default=True)  # type: ignore[arg-type]
    judge: JudgeRecipe = JudgeRecipe()
    references: ReferenceRecipe = ReferenceRecipe()
    refl_prompts: int = Field(default=64, ge=1, le=MOST)
    refl: ReflRecipe = ReflRecipe()
    nft: NftRecipe | None = None
    nft_prompts: int = Field(default=256, ge=1, le=MOST)
    evaluation: EvaluationRecipe = EvaluationRecipe()

    @model_validator(mode="after")
    def _nft_goes_on_from_a_lora_of_its_own_form(self) -> QuickstartRecipe:
        if self.nft is None:
            return self
        forms = [(recipe.lora_rank, recipe.alpha, recipe.lora_targets) for recipe in (self.refl, self.nft)]
        if not self.refl.lora_rank or forms[0] != forms[1]:
            raise ValueError("nft goes on from refl's LoRA: give both the same lora_rank, lora_alpha and lora_targets")
        return self

    @property
    def algorithms(self) -> tuple[Literal["refl", "nft"], ...]:
        """The algorithms of the run, each of which goes on from the one before."""
        return ("refl",) if self.nft is None else ("refl", "nft")

    @field_validator("preferences", mode="before")
    @classmethod
    def _of_the_task(cls, content: Any, info: Any) -> Any:
        return parse_preferences(info.data.get("task", "t2i"), content)


class Run:
    """A run folder and its record of finished stages."""

    def __init__(self, folder: Path, recipe: QuickstartRecipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.task = task_of(recipe.task, recipe.preferences)
        path = folder / STAGES
        self.stages: dict[str, dict[str, Any]] = _read_stages(path) if path.exists() else {}
        resume = f"rewarddance quickstart --resume --output {folder.parent} --name {folder.name}"
        self.page = ProgressPage(folder, Progress("", resume), write_progress)
        self.metrics = Metrics(folder / "metrics.jsonl", watch=self.page.renew)

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a stage once; returns its result, from the record where it is finished."""
        if name not in self.stages:
            began, cpu = time.monotonic(), time.process_time()
            result = work()
            seconds = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
            figures = {key: round(value, 1) for key, value in seconds.items()}
            figures["peak_memory_gib"] = round(peak_memory_gib(), 2)
            self.stages[name] = {"result": result, **figures}
            write_text_atomically(self.folder / STAGES, json.dumps(self.stages, indent=2))
        return self.stages[name]["result"]

    def generator(self, name: str = "") -> PipelineGenerator:
        """The base, or the checkpoint `name` under the base's settings."""
        recipe = self.recipe
        name = name or recipe.generator
        return load_generator(name, recipe.num_inference_steps, recipe.guidance_scale, **recipe.generator_options)

    def aligned_generator(self, algorithm: str) -> PipelineGenerator:
        """The base with an algorithm's LoRA, or a whole generator where all weights were trained."""
        if not self.recipe.refl.lora_rank:
            return self.generator(str(self.folder / algorithm / "generator"))
        generator = self.generator()
        generator.load_lora(self.folder / algorithm / "lora")
        return generator

    def judge(self) -> Judge:
        return load_reward(str(self.folder / "judge" / "reward"))


def start_run(recipe: QuickstartRecipe, folder: Path) -> Run:
    """A new run folder with its config.

    Raises InputError where it holds a run already or cannot be written.
    """
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds a run already.", "Give --resume to finish it, or another --name.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} holds files that are of no run.", "Give another --name, or move them away.")
    writable_folder(folder)
    save_recipe(recipe, folder / CONFIG)
    return Run(folder, recipe)


def _read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """The record of finished stages. Raises InputError where it is none."""
    stages = read_run_json(path)
    for stage in stages.values():
        kept = stage if isinstance(stage, dict) else {}
        figures = [kept.get(name) for name in ("seconds", "cpu_seconds", "peak_memory_gib")]
        if not isinstance(kept.get("result"), dict) or not all(isinstance(figure, int | float) for figure in figures):
            raise InputError(f"{path} is not what a run writes there.", "Restore it, or begin a run anew.")
    return stages


def resume_run(folder: Path) -> Run:
    """The run of a folder with the config it began with. Raises InputError where there is none."""
    if not (folder / CONFIG).exists():
        raise InputError(f"there is no run to resume in {folder}.", "Start one without --resume.")
    recipe = load_recipe(QuickstartRecipe, folder / CONFIG)
    if "task:" not in read_text(folder / CONFIG):  # an emptied file would be a recipe of defaults
        raise InputError(f"{folder / CONFIG} is not what a run writes there.", "Restore it, or begin a run anew.")
    return Run(writable_folder(folder), recipe)


def quickstart(run: Run) -> dict[str, Any]:
    """Do what is left of a run; returns its summary, which is also in summary.json beside report.html."""
    check_trackers(run.recipe.report_to)
    with locked(run.folder):
        if "judge" not in run.stages:
            try:
                preflight(run)
            except InputError:
                if not run.stages:  # nothing was done: the corrected run may have the same name
                    (run.folder / CONFIG).unlink()
                raise
        console.print(f"report, while it runs too: {(run.folder / 'report.html').resolve()}", soft_wrap=True)
        torch.manual_seed(run.recipe.seed)
        work: dict[str, tuple[str, Callable[[Run], dict[str, Any]]]] = {
            "preferences": ("drawing pairs and letting annotators vote", gather_preferences),
            "judge": ("training the judge on the votes", fit_judge),
            "references": ("choosing the references of ReFL", gather_references),
        }
        for algorithm in run.recipe.algorithms:
            work[algorithm] = (
                f"aligning the generator by {ALGORITHMS[algorithm]}",
                partial(align, algorithm=algorithm),
            )
        work["evaluation"] = ("asking the oracle about held-out prompts", evaluate)
        for number, (name, (title, do)) in enumerate(work.items(), start=1):
            if name in run.stages:
                continue
            seconds = {each: run.stages[each]["seconds"] if each in run.stages else None for each in work}
            run.page.renew(doing=f"{title} (stage {number} of {len(work)})", stages=seconds)
            with stage_lines(f"stage {number} of {len(work)}: {title}", name):
                run.stage(name, partial(do, run))
        summary = summarise(run)
        write_text_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
        write_report(run.folder)
    return summary


def preflight(run: Run) -> None:
    """Every key of the recipe is put to what it is for before a picture is drawn. Raises InputError naming what fails.

    So it is with prompts: all that will be drawn are read by the generator's tokenizers and by the judge's.
    """
    recipe, evaluation = run.recipe, run.recipe.evaluation
    check_base(recipe.task, recipe.judge)
    check_training(recipe.judge, is_evaluated=True)
    figures = [f"accuracy_{name}" for name in ("id", "early", "ood")]
    if recipe.judge.keep_best not in (None, *figures):
        raise InputError(f"there is no figure {recipe.judge.keep_best!r} to keep the best by.", f"Say {figures[0]}.")
    generator = run.generator()
    for chosen in filter(None, (recipe.refl, recipe.nft)):
        generator.check_lora(chosen.lora_targets)
    judge = build_reward(recipe.judge.base, recipe.judge.reward_config()).freeze()
    for chosen in filter(None, (recipe.refl, recipe.nft)):
        chosen.check(generator, judge)
        chosen.judging_of(judge)
    count = max(recipe.refl_prompts, recipe.nft_prompts if recipe.nft else 0)
    held_out = [*run.task.prompts("held_out", evaluation.prompts, recipe.seed)]
    held_out += run.task.prompts("held_out", evaluation.probe_prompts, recipe.seed + 10_000)
    prompts = [*training_prompts(recipe, count), *held_out]
    checked_prompts(generator, [judge], prompts, [], source="the task", skip=False)


def check_base(task: str, judge: JudgeRecipe) -> None:
    """Raises InputError where the judge's base is a bundled one of another task: it can be asked, and has learned to
    read none of what the task shows."""
    own = {"edit": "shapeworld-edit-judge", "t2v": "shapeworld-video-judge", "i2v": "shapeworld-video-judge"}
    base = own.get(task, "shapeworld-judge")
    is_bundled = Path(judge.base).name == judge.base and (BUNDLED / judge.base).is_dir()
    if is_bundled and judge.kind != "clip" and not judge.base.startswith(base):
        raise InputError(
            f"the base {judge.base} (judge.base) was not made for the task {task}.",
            f"Take {base}, or one of your own by its folder.",
        )


# -- stages ------------------------------------------------------------------------------------------------------------


def gather_preferences(run: Run) -> dict[str, Any]:
    """Training pairs voted on by annotators, and three test sets in the oracle's own order.

    id and ood hold pictures that people could vote on; early holds one-step predictions, as ReFL shows them.
    """
    folder = run.folder / "preferences"
    shutil.rmtree(folder, ignore_errors=True)
    seed = run.recipe.seed
    sets = run.task.preferences(run.task.pools(run.generator(), seed), seed)
    return {name: write_preferences(pairs, folder / f"{name}.jsonl") for name, pairs in sets.items()}


def fit_judge(run: Run) -> dict[str, Any]:
    """Train the judge and write its model card.

    Returns its accuracy and the untrained base's against the oracle's order, in and out of domain.
    """
    recipe, folder = run.recipe.judge, run.folder
    tests = {name: folder / "preferences" / f"{name}.jsonl" for name in ("id", "early", "ood")}
    sets = {name: list(PreferenceSet(path)) for name, path in tests.items()}
    subsets = {name: pairs[:: max(1, len(pairs) // 75)] for name, pairs in sets.items()}

    def evaluate_judge(judge: RewardModel) -> dict[str, float]:
        return {f"accuracy_{name}": accuracy(judge, pairs).mean for name, pairs in subsets.items()}

    options = {"kind": recipe.kind, "instruction": recipe.instruction, "frames": recipe.frames, "fps": recipe.fps}
    base = build_reward(recipe.base, RewardConfig(**options)).freeze()
    untrained = {f"untrained_{name}": accuracy(base, pairs).as_json() for name, pairs in sets.items()}
    training = PreferenceSet(folder / "preferences" / "train.jsonl")
    judge = train_judge(recipe, training, folder / "judge", run.metrics, run.recipe.seed, evaluate_judge)
    facts = training_facts(recipe, training.path, len(training), run.recipe.seed)
    figures = document(judge, folder / "judge" / "reward", facts, tests, run.recipe.evaluation.exam)
    return {f"accuracy_{name}": figures[f"accuracy_{name}"] for name in tests} | untrained


def gather_references(run: Run) -> dict[str, Any]:
    """The reference bank of ReFL's training prompts."""
    recipe, folder = run.recipe, run.folder / "references"
    prompts = training_prompts(recipe, recipe.refl_prompts)
    generator, judge = run.generator(), run.judge()
    bank = build_references(generator, judge, prompts, recipe.references, folder=folder, seed=recipe.seed)
    return {"prompts": len(bank)}


def training_prompts(recipe: QuickstartRecipe, n: int) -> list[Prompt]:
    """Distinct training prompts of alignment, at most `n`, the categories in turn."""
    distinct: dict[str, Prompt] = {}
    for prompt in task_of(recipe.task, recipe.preferences).prompts("train", 4 * n, recipe.seed):
        distinct.setdefault(prompt.text, prompt)
    return list(distinct.values())[:n]


def align(run: Run, algorithm: Literal["refl", "nft"]) -> dict[str, Any]:
    """ReFL, or DiffusionNFT from where ReFL ended; the judge is the same.

    While it runs the oracle scores the averaged generator on prompts that it is not trained on.
    """
    recipe, seed = run.recipe, run.recipe.seed
    generator = run.generator()
    if algorithm == "refl":
        config, n, begin_with = (
            AlgorithmConfig(references=recipe.references, refl=recipe.refl),
            recipe.refl_prompts,
            None,
        )
    else:
        config, n = AlgorithmConfig(algorithm="nft", nft=recipe.nft or NftRecipe()), recipe.nft_prompts
        begin_with = run.folder / "refl" / "lora"
    alignment = prepare_alignment(
        config,
        generator,
        run.judge(),
        training_prompts(recipe, n),
        references_folder=run.folder / "references",
        seed=seed,
        begin_with=begin_with,
    )
    probes = run.task.prompts("held_out", recipe.evaluation.probe_prompts, seed + 10_000)

    def probe() -> dict[str, float]:
        pictures, scores = sampled(generator, probes, recipe.evaluation.probe_samples, seed, stream=8, task=run.task)
        return probe_figures(pictures, scores, run.task.parts)

    with reporting(recipe.report_to, run.folder, recipe) as trackers:
        metrics = Metrics(run.metrics.path, trackers, run.metrics.watch)
        count = recipe.evaluation.grid_prompts
        watched = with_grids(
            probe,
            generator,
            probes,
            metrics,
            count=count,
            phase=algorithm,
            seed=seed,
            batch_size=96,
            steps_before=recipe.refl.steps if algorithm == "nft" else 0,
        )
        align_generator(alignment, folder=run.folder / algorithm, metrics=metrics, probe=watched)
    return {"steps": config.chosen.steps}


def evaluate(run: Run) -> dict[str, Any]:
    """The final table on held-out prompts: base, best of N, and the aligned generators from the same noises."""
    recipe, task, generator, judge = run.recipe, run.task, run.generator(), run.judge()
    prompts = task.prompts("held_out", recipe.evaluation.prompts, recipe.seed)
    seeds = noise_seeds(recipe.seed, len(prompts), recipe.evaluation.n, stream=9)
    with progress_bar(f"best of {recipe.evaluation.n}", len(prompts)) as bar:
        search = best_of_n(generator, judge, prompts, seeds, tick=bar.advance)
    del generator
    count, last = recipe.evaluation.aligned_samples, recipe.algorithms[-1]
    pictures, scores = {"sft": search.pictures[:, :count]}, {}
    for name in recipe.algorithms:
        pictures[name], scores[name] = sampled(
            run.aligned_generator(name), prompts, count, recipe.seed, stream=9, title=f"samples after {name}", task=task
        )
    base_scores = scored(search.pictures, prompts, task)
    best = [[row[int(best)]] for row, best in zip(base_scores, search.chosen, strict=True)]
    scores = {"sft": base_scores, "best_of_n": best, **scores}
    result = tables(scores, prompts, count, task.parts)
    paired = [row[:count] for row in base_scores]
    result["aligned"] = last
    result["gsb"] = good_same_bad(scores[last], paired, prompts, recipe.preferences.least_difference)
    result["diversity"] = {arm: interval(diversity(samples).numpy()).as_json() for arm, samples in pictures.items()}
    reward = proxy(judge, prompts, pictures, search.pictures)
    result["reward"] = {arm: interval(values, share=True).as_json() for arm, values in reward.items()}
    result["hacking"] = hacking_verdict(
        interval(reward[last] - reward["sft"]),
        Interval(**result["oracle"][f"gain_{last}"]),
        result["diversity"]["sft"]["mean"],
        result["diversity"][last]["mean"],
    )._asdict()
    winners = search.pictures[torch.arange(len(prompts)), search.chosen]
    gallery_pictures = {"sft": search.pictures[:, 0], "best_of_n": winners}
    gallery_pictures |= {name: pictures[name][:, 0] for name in recipe.algorithms}
    gallery_scores = {arm: [row[0] for row in rows] for arm, rows in scores.items()}
    gallery(run.folder, prompts[: recipe.evaluation.gallery_prompts], seeds, gallery_pictures, gallery_scores)
    return result


def summarise(run: Run) -> dict[str, Any]:
    """Everything that was measured, in the form of summary.json."""
    stages = run.stages
    return {
        "name": run.folder.name,
        "seed": run.recipe.seed,
        "task": run.recipe.task,
        "machine": machine(),
        "n": run.recipe.evaluation.n,
        "judge": stages["judge"]["result"],
        **stages["evaluation"]["result"],
        "alarms": read_alarms(run.folder),
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "seconds_by_stage": {name: stage["seconds"] for name, stage in stages.items()},
        "cpu_seconds_by_stage": {name: stage["cpu_seconds"] for name, stage in stages.items()},
        "peak_memory_gib": max(stage["peak_memory_gib"] for stage in stages.values()),
    }


def announce(run: Run) -> None:
    """Say where things are."""
    console.print(f"report: {(run.folder / 'report.html').resolve()}", soft_wrap=True)
