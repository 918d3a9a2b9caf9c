"""The main job, end to end: preferences -> judge -> references -> ReFL -> best of N -> report.

Each stage leaves its result in the run folder and is not done again when the run is resumed; the two long stages also
go on from their own checkpoints. Every random draw depends on the seed and on its place in the run, so a resumed run
ends with the same figures.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from rewarddance.alignment.references import ReferenceRecipe, build_references, redrawing
from rewarddance.alignment.refl_step import ReflRecipe, train_refl
from rewarddance.data.media import write_picture
from rewarddance.data.preferences import PreferenceSet, write_preferences
from rewarddance.errors import InputError
from rewarddance.evaluation.agreement import accuracy
from rewarddance.evaluation.compositional import by_category
from rewarddance.evaluation.examine import ExamRecipe
from rewarddance.evaluation.hacking import diversity, hacking_verdict
from rewarddance.evaluation.report import write_report
from rewarddance.evaluation.run_folder import read_alarms
from rewarddance.evaluation.statistics import Interval, interval
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.lab.evaluate import document, training_facts
from rewarddance.lab.grids import with_grids
from rewarddance.protocols import RewardModel
from rewarddance.reward.judge import Judge, RewardConfig
from rewarddance.reward.kinds import build_reward, load_reward
from rewarddance.reward.train import JudgeRecipe, train_judge
from rewarddance.runtime.checkpoint import writable_folder, write_text_atomically
from rewarddance.runtime.config import Recipe, load_recipe, save_recipe
from rewarddance.runtime.trackers import check_trackers, reporting
from rewarddance.runtime.tracking import Metrics, console, machine, peak_memory_gib, progress_bar
from rewarddance.search.best_of_n import best_of_n
from rewarddance.shapeworld.oracle import Score, judge_pixels
from rewarddance.shapeworld.preferences import PreferenceRecipe, generate, pair_up
from rewarddance.shapeworld.scenes import Spec, prompt_set
from rewarddance.types import Question

CONFIG, STAGES, SUMMARY = "config.yaml", "stages.json", "summary.json"
EXAM = ExamRecipe(probes=60, groups=12, pictures=4)
"""How thoroughly the judge is examined for its card: a few seconds of a run of minutes."""


class EvaluationRecipe(Recipe):
    """prompts: held-out prompts of the final table, the six categories in turn. n: candidates of best-of-N, and
    samples a prompt of the base; refl_samples: of the aligned generator, from the same noises. probe_prompts,
    probe_samples: what ReFL is watched on while it runs. grid_prompts: how many of them are drawn then for a grid of
    samples, 0 for none. shown: prompts in the report's gallery.
    """

    prompts: int = Field(default=96, ge=6)
    n: int = Field(default=16, ge=2)
    refl_samples: int = Field(default=8, ge=2)
    probe_prompts: int = Field(default=24, ge=6)
    probe_samples: int = Field(default=2, ge=2)
    grid_prompts: int = Field(default=4, ge=0)
    shown: int = Field(default=12, ge=1)


class QuickstartRecipe(Recipe):
    """The whole run. generator, judge.base: bundled names or folders; refl_prompts: training prompts of ReFL.

    report_to: trackers of ReFL, by accelerate's names; the judge's training has its own key.
    """

    seed: int = 0
    report_to: tuple[str, ...] = ()
    generator: str = "shapeworld-generator"
    num_inference_steps: int = Field(default=10, ge=2)
    guidance_scale: float = Field(default=1.0, ge=1)
    preferences: PreferenceRecipe = PreferenceRecipe()
    judge: JudgeRecipe = JudgeRecipe()
    references: ReferenceRecipe = ReferenceRecipe()
    refl_prompts: int = Field(default=64, ge=1)
    refl: ReflRecipe = ReflRecipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()


class Run:
    """A run folder and its record of finished stages."""

    def __init__(self, folder: Path, recipe: QuickstartRecipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.metrics = Metrics(folder / "metrics.jsonl")
        path = folder / STAGES
        self.stages: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Do a stage once; returns its result, from the record where it is done."""
        if name not in self.stages:
            began = time.monotonic()
            result = work()
            figures = {"seconds": round(time.monotonic() - began, 1), "peak_memory_gib": round(peak_memory_gib(), 2)}
            self.stages[name] = {"result": result, **figures}
            write_text_atomically(self.folder / STAGES, json.dumps(self.stages, indent=2))
        return self.stages[name]["result"]

    def generator(self) -> PipelineGenerator:
        return load_generator(self.recipe.generator, self.recipe.num_inference_steps, self.recipe.guidance_scale)

    def judge(self) -> Judge:
        return load_reward(str(self.folder / "judge" / "reward"))


def start_run(recipe: QuickstartRecipe, folder: Path) -> Run:
    """A new run folder with its config. Raises InputError where it holds a run already, or cannot be written."""
    if (folder / CONFIG).exists():
        raise InputError(f"{folder} holds a run already.", "Give --resume to finish it, or another --name.")
    writable_folder(folder)
    save_recipe(recipe, folder / CONFIG)
    return Run(folder, recipe)


def resume_run(folder: Path) -> Run:
    """The run of a folder with the config it began with. Raises InputError where there is none."""
    if not (folder / CONFIG).exists():
        raise InputError(f"there is no run to resume in {folder}.", "Start one without --resume.")
    return Run(writable_folder(folder), load_recipe(QuickstartRecipe, folder / CONFIG))


def quickstart(run: Run) -> dict[str, Any]:
    """Do what is left of a run; returns its summary, which is also in summary.json beside report.html."""
    check_trackers(run.recipe.report_to)
    torch.manual_seed(run.recipe.seed)
    run.stage("preferences", lambda: gather_preferences(run))
    run.stage("judge", lambda: fit_judge(run))
    run.stage("references", lambda: gather_references(run))
    run.stage("refl", lambda: align(run))
    run.stage("evaluation", lambda: evaluate(run))
    summary = summarise(run)
    write_text_atomically(run.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    write_report(run.folder)
    return summary


# -- stages ------------------------------------------------------------------------------------------------------------


def gather_preferences(run: Run) -> dict[str, Any]:
    """Training pairs voted on by annotators, and three test sets in the oracle's own order.

    id and ood hold pictures that people could vote on; early holds one-step predictions, as ReFL shows them.
    """
    recipe, seed = run.recipe.preferences, run.recipe.seed
    folder = run.folder / "preferences"
    shutil.rmtree(folder, ignore_errors=True)
    generator = run.generator()
    counts = {"train": recipe.train_prompts, "held_out": recipe.id_prompts, "unseen": recipe.ood_prompts}
    pools = {split: generate(generator, split, n, recipe.samples, seed) for split, n in counts.items()}
    tests = recipe.test_pairs
    sets = {
        "train": pair_up(pools["train"], "train", recipe.pairs, recipe, seed, exact=False, early="some"),
        "id": pair_up(pools["held_out"], "held_out", tests, recipe, seed, exact=True),
        "early": pair_up(pools["held_out"], "held_out", tests, recipe, seed, exact=True, early="all"),
        "ood": pair_up(pools["unseen"], "unseen", tests, recipe, seed, exact=True),
    }
    return {name: write_preferences(pairs, folder / f"{name}.jsonl") for name, pairs in sets.items()}


def fit_judge(run: Run) -> dict[str, Any]:
    """Train the judge and write its model card; its accuracy and the untrained base's against the oracle's order, in
    and out of domain."""
    recipe, folder = run.recipe.judge, run.folder
    tests = {name: folder / "preferences" / f"{name}.jsonl" for name in ("id", "early", "ood")}
    sets = {name: list(PreferenceSet(path)) for name, path in tests.items()}
    few = {name: pairs[:: max(1, len(pairs) // 75)] for name, pairs in sets.items()}

    def watch(judge: RewardModel) -> dict[str, float]:
        return {f"accuracy_{name}": accuracy(judge, pairs).mean for name, pairs in few.items()}

    untrained = build_reward(recipe.base, RewardConfig(kind=recipe.kind, instruction=recipe.instruction)).freeze()
    before = {f"untrained_{name}": accuracy(untrained, pairs) for name, pairs in sets.items()}
    training = PreferenceSet(folder / "preferences" / "train.jsonl")
    judge = train_judge(recipe, training, folder / "judge", run.metrics, run.recipe.seed, watch)
    facts = training_facts(recipe, training.path, len(training), run.recipe.seed)
    told = document(judge, folder / "judge" / "reward", facts, tests, EXAM)
    after = {f"accuracy_{name}": told[f"accuracy_{name}"] for name in tests}
    return after | {name: figure._asdict() for name, figure in before.items()}


def gather_references(run: Run) -> dict[str, Any]:
    """The reference bank of ReFL's training prompts."""
    prompts = refl_prompts(run.recipe)
    folder = run.folder / "references"
    bank = build_references(run.generator(), run.judge(), prompts, run.recipe.references, folder, run.recipe.seed)
    return {"prompts": len(bank)}


def refl_prompts(recipe: QuickstartRecipe) -> list[str]:
    """Distinct training prompts of ReFL, the categories in turn."""
    texts = [text for text, _ in prompt_set("train", 4 * recipe.refl_prompts, recipe.seed)]
    return list(dict.fromkeys(texts))[: recipe.refl_prompts]


def align(run: Run) -> dict[str, Any]:
    """ReFL; while it runs, the oracle watches the averaged generator on prompts that it is not trained on."""
    recipe, seed = run.recipe, run.recipe.seed
    generator, judge = run.generator(), run.judge()
    prompts = refl_prompts(recipe)
    bank = build_references(generator, judge, prompts, recipe.references, run.folder / "references", seed)
    probes = prompt_set("held_out", recipe.evaluation.probe_prompts, seed + 10_000)

    def probe() -> dict[str, float]:
        pictures, scores = sampled(generator, probes, recipe.evaluation.probe_samples, seed, stream=8)
        oracle = interval([float(np.mean([score.alignment for score in row])) for row in scores])
        figures = {"oracle": oracle.mean, "oracle_low": oracle.low, "oracle_high": oracle.high}
        return figures | {"diversity": float(diversity(pictures).mean())}

    redraw = redrawing(generator, judge, prompts, recipe.references, run.folder / "references", seed)
    texts, shown = [text for text, _ in probes], recipe.evaluation.grid_prompts
    with reporting(recipe.report_to, run.folder, recipe) as trackers:
        metrics = Metrics(run.metrics.path, trackers)
        watched = with_grids(probe, generator, texts, shown, run.folder, metrics, "refl", seed, batch_size=96)
        train_refl(generator, judge, bank, recipe.refl, run.folder / "refl", metrics, seed, watched, redraw=redraw)
    return {"steps": recipe.refl.steps}


def evaluate(run: Run) -> dict[str, Any]:
    """The final table on held-out prompts: base, best of N, and the aligned generator from the same noises."""
    recipe, generator, judge = run.recipe, run.generator(), run.judge()
    prompts = prompt_set("held_out", recipe.evaluation.prompts, recipe.seed)
    seeds = noise_seeds(recipe.seed, len(prompts), recipe.evaluation.n, stream=9)
    with progress_bar(f"best of {recipe.evaluation.n}", len(prompts)) as bar:
        search = best_of_n(generator, judge, [text for text, _ in prompts], seeds, tick=bar.advance)
    generator.load_lora(run.folder / "refl" / "lora")
    count = recipe.evaluation.refl_samples
    refl_pictures, refl_scores = sampled(generator, prompts, count, recipe.seed, stream=9, title="samples after ReFL")
    base_scores = scored(search.pictures, prompts)
    rows = range(len(prompts))
    scores: dict[str, list[list[Score]]] = {
        "sft": base_scores,
        "best_of_n": [[base_scores[i][int(search.chosen[i])]] for i in rows],
        "refl": refl_scores,
    }
    table = {arm: tabulate(found, [spec.category for _, spec in prompts]) for arm, found in scores.items()}
    result: dict[str, Any] = {
        figure: {arm: table[arm][figure] for arm in table} for figure in ("oracle", "quality", "correct")
    }
    sft, bon, refl = (np.array([np.mean([s.alignment for s in row]) for row in scores[arm]]) for arm in scores)
    paired = np.array([np.mean([s.alignment for s in row[:count]]) for row in base_scores])
    result["oracle"]["gain_best_of_n"] = interval(bon - sft)._asdict()
    result["oracle"]["gain_refl"] = interval(refl - paired)._asdict()
    result["by_category"] = {
        category: {arm: table[arm]["by_category"][category] for arm in table}
        for category in table["sft"]["by_category"]
    }
    spreads = {"sft": diversity(search.pictures[:, :count]), "refl": diversity(refl_pictures)}
    result["diversity"] = {arm: interval(values.numpy())._asdict() for arm, values in spreads.items()}
    reward = proxy(judge, prompts, {"sft": search.pictures[:, :count], "refl": refl_pictures}, search.pictures)
    result["reward"] = {arm: interval(values)._asdict() for arm, values in reward.items()}
    verdict = hacking_verdict(
        interval(reward["refl"] - reward["sft"]),
        Interval(**result["oracle"]["gain_refl"]),
        result["diversity"]["sft"]["mean"],
        result["diversity"]["refl"]["mean"],
    )
    result["hacking"] = verdict._asdict()
    shown = {"sft": search.pictures[:, 0], "best_of_n": search.pictures[torch.arange(len(prompts)), search.chosen]}
    shown["refl"] = refl_pictures[:, 0]
    first = {"sft": [r[0] for r in base_scores], "best_of_n": [r[0] for r in scores["best_of_n"]]}
    first["refl"] = [r[0] for r in refl_scores]
    _gallery(run.folder, prompts[: recipe.evaluation.shown], seeds, shown, first)
    return result


# -- what the stages share ---------------------------------------------------------------------------------------------


def noise_seeds(seed: int, n_prompts: int, n: int, stream: int) -> list[list[int]]:
    """Noise seeds [P][N]: sample k of prompt i begins from the same noise in every arm of a comparison."""
    return [np.random.SeedSequence([seed, stream, i]).generate_state(n).tolist() for i in range(n_prompts)]


def sampled(
    generator: PipelineGenerator,
    prompts: Sequence[tuple[str, Spec]],
    n: int,
    seed: int,
    stream: int,
    title: str | None = None,
) -> tuple[Tensor, list[list[Score]]]:
    """`n` pictures a prompt [P, N, T, C, H, W] and the oracle's scores of them [P][N]; with a title, under a bar."""
    seeds = noise_seeds(seed, len(prompts), n, stream)
    texts = [text for text, _ in prompts for _ in range(n)]
    flat = [s for row in seeds for s in row]
    if title is None:
        pictures = sample(generator, texts, flat, batch_size=96)
    else:
        with progress_bar(title, len(texts)) as bar:
            pictures = sample(generator, texts, flat, batch_size=96, tick=bar.advance)
    groups = pictures.unflatten(0, (len(prompts), n))
    return groups, scored(groups, prompts)


def scored(groups: Tensor, prompts: Sequence[tuple[str, Spec]]) -> list[list[Score]]:
    """The oracle on pictures [P, N, T, C, H, W]."""
    return [judge_pixels(group, [text] * len(group)) for group, (text, _) in zip(groups, prompts, strict=True)]


def tabulate(scores: Sequence[Sequence[Score]], categories: Sequence[str]) -> dict[str, Any]:
    """Means over each prompt's pictures, with intervals over prompts: alignment, quality, correctness, categories."""
    alignment = [float(np.mean([score.alignment for score in row])) for row in scores]
    quality = [float(np.mean([score.quality for score in row])) for row in scores]
    correct = [float(np.mean([score.correct for score in row])) for row in scores]
    by = {category: figure._asdict() for category, figure in by_category(alignment, categories).items()}
    figures = {"oracle": alignment, "quality": quality, "correct": correct}
    return {name: interval(values)._asdict() for name, values in figures.items()} | {"by_category": by}


def proxy(
    judge: RewardModel, prompts: Sequence[tuple[str, Spec]], arms: dict[str, Tensor], base: Tensor
) -> dict[str, np.ndarray]:
    """Mean P(yes) a prompt [P] of each arm's pictures [P, N, ...] against the base's picture of the next noise."""
    found = {}
    for arm, pictures in arms.items():
        n = pictures.shape[1]
        questions = [
            Question(text, pictures[i, k], base[i, (k + 1) % base.shape[1]])
            for i, (text, _) in enumerate(prompts)
            for k in range(n)
        ]
        found[arm] = judge(questions).probability.cpu().numpy().reshape(len(prompts), n).mean(1)
    return found


def _gallery(
    folder: Path,
    prompts: Sequence[tuple[str, Spec]],
    seeds: Sequence[Sequence[int]],
    shown: dict[str, Tensor],
    scores: dict[str, list[Score]],
) -> None:
    rows = []
    for i, (text, spec) in enumerate(prompts):
        files = {arm: f"samples/{i:03d}_{arm}.png" for arm in shown}
        for arm, name in files.items():
            write_picture(shown[arm][i], folder / name)
        oracle = {arm: scores[arm][i].alignment for arm in shown}
        row = {"prompt": text, "category": spec.category, "seed": seeds[i][0], "pictures": files, "oracle": oracle}
        rows.append(row)
    write_text_atomically(folder / "samples.json", json.dumps(rows, indent=2))


def summarise(run: Run) -> dict[str, Any]:
    """Everything that was measured, in the form of summary.json."""
    stages = run.stages
    return {
        "name": run.folder.name,
        "seed": run.recipe.seed,
        "task": "t2i",
        "machine": machine(),
        "n": run.recipe.evaluation.n,
        "judge": stages["judge"]["result"],
        **stages["evaluation"]["result"],
        "alarms": read_alarms(run.folder),
        "seconds": round(sum(stage["seconds"] for stage in stages.values()), 1),
        "seconds_by_stage": {name: stage["seconds"] for name, stage in stages.items()},
        "peak_memory_gib": max(stage["peak_memory_gib"] for stage in stages.values()),
    }


def announce(run: Run) -> None:
    """Say where things are."""
    console.print(f"report: {(run.folder / 'report.html').resolve()}", soft_wrap=True)
