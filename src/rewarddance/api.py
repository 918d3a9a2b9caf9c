"""The public functions: what the commands do, with objects in the place of names and files wherever you have them.

Options have the names and defaults of the recipes' keys; an unknown one is refused by name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rewarddance.alignment.algorithms import ALGORITHMS
from rewarddance.alignment.recipe import AlignRun
from rewarddance.data.faults import FaultyRow, FaultyRows
from rewarddance.data.media import Media
from rewarddance.data.preferences import PreferenceSet, keep_preferences
from rewarddance.data.prompts import read_prompts
from rewarddance.data.tables import open_table
from rewarddance.errors import InputError, shown
from rewarddance.evaluation.findings import Evaluation
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.align import Parts, run_alignment
from rewarddance.jobs.bench import BenchParts, run_bench
from rewarddance.jobs.evaluate import claimed, examine_sets, judge_facts, write_evaluation
from rewarddance.jobs.preflight import check_pairs
from rewarddance.jobs.recipes import BenchRun, EvaluateRun, ScoreOptions, ScoreRun
from rewarddance.jobs.score import run_scoring
from rewarddance.jobs.score_answers import score_media
from rewarddance.jobs.train import TrainRun, run_training
from rewarddance.protocols import Generator, RewardModel
from rewarddance.reward.asking import all_pixels
from rewarddance.reward.function_reward import ScoreFunction, as_reward
from rewarddance.reward.judge import Judge
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import find_checkpoint, writable_folder
from rewarddance.runtime.config import Precision, parse_recipe
from rewarddance.runtime.devices import find_device
from rewarddance.runtime.process_group import started_processes
from rewarddance.search.recipe import Budget
from rewarddance.search.run import METHODS, SearchResult, read_method
from rewarddance.search.run import search as search_prompts
from rewarddance.types import Preference, Prompt, as_prompts

SEARCH_OPTIONS = ("judging", "seed", "runners_up", "batch_size", "prompts_at_once", "held_out", "rewrite")
"""Options of `search` beside those of its method."""
GENERATOR_OPTIONS = ("num_inference_steps", "guidance_scale", "generator_options", "dtype", "device")
"""Keys of an align recipe that a generator which is given as an object has decided."""
AnyReward = RewardModel | ScoreFunction | str | Path
"""A judge, a function (images, prompts, metadata) -> scores, or a name that `load_reward` takes."""
SeveralRewards = Mapping[str, AnyReward | Mapping[str, Any]] | Sequence[AnyReward | Mapping[str, Any]]
"""Rewards by name, or in a row. Each is one of AnyReward, or the keys of a recipe's reward (`NamedReward`), of which
judge may be an object."""
AnyGenerator = PipelineGenerator | str | Path
"""What `load_generator` gave, or a name that it takes."""
AnyPrompts = Sequence[str | Prompt] | str | Path
"""Texts or Prompts, or a .txt or .jsonl file of them. A single text is a file's name."""


def train_reward(
    preferences: Sequence[Preference] | str | Path,
    *,
    output: str | Path,
    tests: Mapping[str, str | Path] | None = None,
    seed: int = 0,
    exam: Mapping[str, Any] | None = None,
    skip_faulty: bool = False,
    **options: Any,
) -> Judge:
    """Train a judge on preferences. Its folder is `output`/reward; called again, an interrupted run goes on.

    preferences: a file (JSONL or Parquet; docs/guides/data.md has its columns), or Preference objects, which are
        kept in `output`/preferences.
    output: a folder for checkpoints, metrics.jsonl and the trained judge.
    tests: further preferences by name: files only. The judge is examined on them at its checkpoints and for its card.
    seed: of the order of pairs, of pixel noise and of weights that are new.
    exam: how thoroughly the trained judge is examined: batch_size, probes (pairs that are asked again, changed), groups
        and pictures (of the test of contradictions), seed.
    skip_faulty: leave out pairs that cannot be used, and list them in `output`/faulty.jsonl; else they are an error.
    options: how it is trained: base (the model it begins from), kind ("pairwise", "pointwise", "regressive" or "clip"),
        instruction, learning_rate, epochs, batch_size, lora_rank and the other keys of `judge` in a recipe
        (docs/reference/recipes.md).

    Returns the trained judge, on a GPU where there is one.
    Raises InputError before anything is trained for an unknown option or a file that cannot be used.

    >>> judge = train_reward("votes.jsonl", output="runs/mine", base="shapeworld-judge", epochs=2)
    >>> judge.compare("a red circle", ["a.png", "b.png"], reference="c.png").probability
    """
    given = None if isinstance(preferences, str | Path) else _listed(preferences, "preferences", kind=Preference)
    content: dict[str, Any] = {"output": output, "seed": seed, "judge": options, "skip_faulty": skip_faulty}
    content |= {"tests": {} if tests is None else tests, "exam": {} if exam is None else exam}
    content["preferences"] = preferences if given is None else Path(str(output)) / "preferences" / "train.jsonl"
    run = parse_recipe(TrainRun, content, "the options of train_reward")
    if given is not None:
        writable_folder(run.preferences.parent)
        keep_preferences(given, run.preferences)
    run_training(run)
    return load_reward(run.output / "reward", find_device(None))


def align(
    generator: AnyGenerator,
    reward: AnyReward | SeveralRewards | None,
    prompts: AnyPrompts,
    *,
    output: str | Path,
    algorithm: str = "refl",
    **options: Any,
) -> PipelineGenerator:
    """Align a generator with a reward. Called again with the same arguments, an interrupted run goes on.

    generator: what `load_generator` gave, or a name that it takes: a folder, a bundled name or an id of the model hub.
    reward: what `load_reward` gave, a name that it takes, or a function (images, prompts, metadata) -> scores. Or
        several, as {"follow": judge, "keep": {"judge": other, "weight": 2}}, or a list of them; each is normalised by
        itself, so that the scale of none decides. Criteria of one judge are `rewards` beside it:
        rewards={"follow": {"criteria": "edit#following"}, "keep": {"criteria": "edit#keeping"}}. None for "dpo".
    prompts: texts or Prompts, or a file of them (.txt, .jsonl, .json, .csv, .tsv or .parquet).
    output: a folder for checkpoints, metrics.jsonl, references and samples, and the trained weights: `output`/lora, or
        `output`/generator where all weights are trained (lora_rank=0).
    algorithm: "refl" follows the reward's gradient (paper, section 3). "grpo" (Flow-GRPO), "nft" (DiffusionNFT), "awm",
        "dgpo", "crd" and "online_dpo" only ask the reward. "dpo" learns from votes alone: preferences="votes.jsonl".
    options: keys of the algorithm, such as steps, learning_rate, lora_rank, prompts_per_step, group_size, alarms; and
        those of the whole run: seed, references (how the pictures are made that a judge compares with), held_out,
        judge_options, grid_prompts, report_to, skip_faulty. For parts that are given by name also
        num_inference_steps (28), guidance_scale, generator_options, dtype and device of the generator, judge_dtype and
        judge_device of the judge. All stand in docs/reference/recipes.md.

    Returns the generator with the trained weights.
    Raises InputError before anything is computed for an unknown option, parts that do not go together, or where
    several processes were started: they align by the command. RewardError where most prompts got no reward.

    >>> generator = load_generator("shapeworld-generator", num_inference_steps=12)
    >>> aligned = align(generator, "runs/mine/reward", ["a red circle", "a blue cross"], output="runs/refl", steps=20)
    """
    if started_processes() > 1:
        raise InputError(
            "align trains in one process, and several were started.",
            "Start them with the command: torchrun -m rewarddance align RECIPE.",
        )
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise InputError(f"there is no algorithm named {algorithm!r}.", f"Say {', '.join(ALGORITHMS)}.")
    run = {name: value for name, value in options.items() if name in AlignRun.model_fields}
    loop = {name: value for name, value in options.items() if name not in AlignRun.model_fields}
    if loop and algorithm in run:
        raise InputError(f"{next(iter(loop))} and {algorithm} are both given.", "Give the algorithm's keys once.")
    parts: dict[str, Any] = {}
    if not isinstance(generator, str | Path):
        if taken := [name for name in GENERATOR_OPTIONS if name in run]:
            raise InputError(f"{taken[0]} is the generator's own.", "Give it to load_generator.")
        parts["generator"], run["num_inference_steps"] = generator, _checked_generator(generator).num_steps
    several = isinstance(reward, Mapping | list | tuple)
    if several and "rewards" in run:
        raise InputError("the rewards are given twice.", "Give them as the second argument, or one judge there.")
    if several:
        run["rewards"], parts["rewards"] = _several(reward)
        reward = None
    elif not isinstance(reward, str | Path | None):
        reward = parts["judge"] = as_reward(reward)
    if not isinstance(run.get("held_out"), str | Path | None):
        parts["held_out"] = as_reward(run["held_out"])
        run["held_out"] = _name(parts["held_out"])
    if not isinstance(prompts, str | Path):
        parts["prompts"], prompts = _asked(_listed(prompts, "prompts")), Path(str(output)) / "prompts.jsonl"
    content = run | {"generator": _name(generator), "prompts": prompts, "output": output}
    content |= {} if reward is None else {"judge": _name(reward)}
    content |= {"algorithm": algorithm} | ({algorithm: loop} if loop else {})
    aligned = run_alignment(parse_recipe(AlignRun, content, "the options of align"), Parts(**parts))
    assert aligned is not None, "one process has the result"
    return aligned.generator


def search(
    generator: AnyGenerator,
    reward: AnyReward,
    prompts: AnyPrompts,
    *,
    method: str = "best_of_n",
    budget: str | Budget = "samples=16",
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    dtype: Precision = "auto",
    device: str | None = None,
    judge_device: str | None = None,
    tick: Callable[[int], None] = lambda n: None,
    **options: Any,
) -> list[SearchResult]:
    """The best picture of each prompt within a budget, its runners-up, and what they cost.

    generator, reward, prompts: as in `align`, but one reward.
    method: "best_of_n" (the best of plain samples), "zero_order" (noises near the best noise so far), "paths" (noise is
        added again to the best pictures, and taken away anew), "pruning" (pictures that look poor early are given up)
        or "refine" (prompts are rewritten by the judge's reasons).
    budget: for each prompt: "evaluations=400" (steps of single pictures through the generator), "samples=16" (as many
        evaluations as 16 plain samples take), "questions=64" (put to the reward) or "seconds=30". Of several with
        commas between them the first that is used up ends the search.
    num_inference_steps, guidance_scale: of a generator that is given by name; 28 steps, and its family's guidance.
    dtype: "auto" (bfloat16 on a GPU, else float32), "float32" or "bfloat16"; of all parts that are given by name.
    device: "cpu", "cuda" or "cuda:1", of parts that are given by name; by default a GPU where there is one.
    judge_device: of judges that are given by name; by default `device`.
    tick: called after each batch with the number of prompts that it finished.
    options: the method's own, such as copies=8 of paths (docs/guides/search.md), and of all methods: seed; judging, how
        pictures are compared ("alone", "first", "knockout" or "tournament"); runners_up, how many are kept beside the
        winner; batch_size, pictures made together; prompts_at_once, prompts that share a batch; held_out, another
        reward that chooses nothing, and says how far it agrees; of refine alone rewrite, a function (prompt, reason)
        -> new text.

    Raises InputError for an unknown option or for parts that do not go together; RewardError where the reward could not
    be had for any prompt; and SearchIncomplete, once all other prompts were searched for, where some failed: its
    `results` has a SearchResult for each prompt, or its own error.

    >>> found = search("shapeworld-generator", "runs/mine/reward", ["a red circle"], budget="samples=8")
    >>> found[0].winner.pixels.shape
    """
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(f"there is no search method named {method!r}.", f"Say {', '.join(METHODS)}.")
    own = {name: value for name, value in options.items() if name in METHODS[method].options.model_fields}
    rest = {name: value for name, value in options.items() if name not in own}
    if unknown := sorted(set(rest) - set(SEARCH_OPTIONS)):
        known = [*METHODS[method].options.model_fields, *SEARCH_OPTIONS]
        raise InputError(f"{method} has no option {unknown[0]!r}.", f"Known are {', '.join(known)}.")
    if isinstance(generator, str | Path):
        place = find_device(device)
        steps = 28 if num_inference_steps is None else num_inference_steps
        generator = load_generator(str(generator), steps, guidance_scale, device=place, dtype=dtype)
    elif num_inference_steps is not None or guidance_scale is not None:
        raise InputError("the generator has its own steps and guidance.", "Give them to load_generator.")
    generator = _checked_generator(generator)
    is_file = isinstance(prompts, str | Path)
    asked = read_prompts(Path(prompts)) if is_file else _asked(_listed(prompts, "prompts"))
    if "held_out" in rest:
        rest["held_out"] = _reward(rest["held_out"], judge_device or device, dtype)
    chosen = read_method(method, own)
    judge = _reward(reward, judge_device or device, dtype)
    return search_prompts(generator, judge, asked, chosen, budget, tick=tick, **rest)


def score(
    reward: AnyReward,
    candidates: Sequence[Media] | Media,
    prompts: Sequence[str | Prompt] | str | Prompt | None = None,
    *,
    reference: Media | Sequence[Media] | None = None,
    output: str | Path | None = None,
    explain: bool = False,
    batch_size: int = 32,
    max_frames: int = 16,
    device: str | None = None,
    dtype: Precision = "auto",
    **options: Any,
) -> list[dict[str, Any]]:
    """Scores of pictures or videos: a row for each, with prompt, probability (P("yes")) and margin (its logit).

    reward: what `load_reward` gave, a name that it takes, or a function (images, prompts, metadata) -> scores.
    candidates: one picture or a list of them, in any form that `as_pixels` takes, with `prompts`. Or a folder, or a
        .jsonl or .parquet file of rows, as the command `rewarddance score` takes it (docs/guides/scoring.md).
    prompts: of pictures, one for each or one for all. Of a folder or file, one text for rows that have none.
    reference: what each candidate is compared with, one for all or a list; a pairwise judge needs it.
    output: where the rows of a folder or file are written, too; a run that was interrupted then goes on.
    explain: with a reason for each, in the judge's words; takes a vision-language model.
    batch_size: candidates that are asked about together.
    max_frames: frames read of a longer video's file, evenly spaced.
    device, dtype: of a reward that is given by name; as in `search`.
    options: of `load_reward`, where the reward is a name: kind, orders, instruction, criteria.

    Raises InputError or RewardError naming the first item that cannot be scored: nothing is skipped.

    >>> score("shapeworld-judge", "pictures/", kind="pointwise")[0]["probability"]
    >>> score(judge, [image_a, image_b], "a red circle", reference=image_c)
    """
    judge = _reward(reward, device, dtype, **options)
    if not _is_table(candidates):
        if output is not None:
            raise InputError("output is for a folder or a file of rows.", "Leave it out; the rows are returned.")
        fps = getattr(getattr(judge, "config", None), "fps", None)
        if isinstance(candidates, Mapping):
            raise InputError(
                f"{shown(candidates)} is no list of pictures.", "Give its values, in their prompts' order."
            )
        given_options = {"batch_size": batch_size, "max_frames": max_frames, "explain": explain}
        how = parse_recipe(ScoreOptions, given_options, "the options of score")
        pictures = all_pixels(candidates, fps=fps, max_frames=how.max_frames)
        given = [prompts] if isinstance(prompts, str | Prompt) else [] if prompts is None else prompts
        texts = _one_for_each(_listed(given, "prompts", empty=True), len(pictures), "prompts")
        others = [] if reference is None else all_pixels(reference, "reference", fps, how.max_frames)
        references = _one_for_each(others or [None], len(pictures), "references")
        return score_media(judge, pictures, _asked(texts), references, how.batch_size, how.explain)
    if not isinstance(prompts, str | None):
        raise InputError("a folder or file has its own prompts.", "Give one text for those that have none.")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "scores.jsonl" if output is None else Path(output)
        content = {
            "input": candidates,
            "output": place,
            "judge": _name(judge),
            "prompt": prompts,
            "device": device,
            "dtype": dtype,
        }
        content |= {"reference": reference, "batch_size": batch_size, "max_frames": max_frames, "explain": explain}
        is_named = isinstance(reward, str | Path)
        if is_named:
            own = {name: value for name, value in options.items() if name in ScoreRun.model_fields}
            others = {name: value for name, value in options.items() if name not in own}
            content |= own | {"judge": str(reward), "judge_options": others}
        run = parse_recipe(ScoreRun, content | {"strict": True}, "the options of score")
        try:
            run_scoring(run, judge, is_named)
        except FaultyRows as error:
            raise FaultyRows(error.faults) from None  # none can be skipped here
        return [row for _, row in open_table(place).rows() if isinstance(row, dict)]


def evaluate(
    reward: AnyReward,
    tests: Mapping[str, Sequence[Preference] | str | Path] | Sequence[Preference] | str | Path,
    *,
    output: str | Path | None = None,
    device: str | None = None,
    dtype: Precision = "auto",
    exam: Mapping[str, Any] | None = None,
    stress: bool = False,
    stress_options: Mapping[str, Any] | None = None,
    skip_faulty: bool = False,
    **options: Any,
) -> Evaluation:
    """How good a reward is on test sets: accuracy, calibration, contradictions and biases, with intervals over prompts.

    reward: what `load_reward` gave, a name that it takes, or a function (images, prompts, metadata) -> scores.
    tests: preferences files by name, one file, or Preference objects. A set called id counts as in domain, one called
        ood as out of domain.
    output: a folder for evaluation.json and evaluation.html.
    device, dtype: of a reward that is given by name; as in `search`.
    exam: how thoroughly: batch_size (32 pairs in memory together), probes (200 pairs that are asked again with the
        candidate changed), groups (50 prompts) and pictures (5 of each) that all meet, for contradictions; seed.
    stress: also measure what the reward pays for pictures that are no better: noise, crops, text, pixel gradients.
    stress_options: questions (64 pairs), steps (4, of the gradient within each radius), decoder (a generator or an
        autoencoder whose latent is moved too), batch_size (16).
    skip_faulty: leave out pairs of files that cannot be used, and list them in `output`/faulty.jsonl.
    options: of `load_reward`, where the reward is a name: kind, orders, instruction, criteria.

    Raises InputError naming a set that cannot be used, or a pair that cannot be judged where there is no output to keep
    it in.

    >>> evaluate("runs/mine/reward", {"id": "held_out.jsonl"}).tests["id"].accuracy.mean
    """
    named: Mapping[str, Any] = tests if isinstance(tests, Mapping) else {"test": tests}
    for name in named:
        if not (isinstance(name, str) and name.strip()):
            raise InputError(f"a test set has the name {shown(name)}.", "Name it with a text, such as id or ood.")
    faults: list[FaultyRow] = []
    sets = {
        name: PreferenceSet(Path(s), faults=faults)
        if isinstance(s, str | Path)
        else _listed(s, f"preferences of {name}", kind=Preference)
        for name, s in named.items()
    }
    judge = _reward(reward, device, dtype, **options)
    name = _name(reward if isinstance(reward, str | Path) else judge)
    content = {
        "judge": name,
        "exam": {} if exam is None else exam,
        "output": output,
        "dtype": dtype,
        "judge_options": options,
    }
    content |= {"device": device, "stress": stress, "stress_options": {} if stress_options is None else stress_options}
    content |= {"tests": {name: getattr(pairs, "path", Path(name)) for name, pairs in sets.items()}}
    run = parse_recipe(EvaluateRun, content, "the options of evaluate")
    folder = getattr(judge, "name_or_path", None)
    facts = judge_facts(judge, name, None if folder is None else find_checkpoint(folder))
    with nullcontext() if output is None else claimed(Path(output), run):
        files = [pairs for pairs in sets.values() if isinstance(pairs, PreferenceSet)]
        check_pairs(files, judge, faults, skip=skip_faulty, folder=None if output is None else Path(output))
        examined = examine_sets(run, judge, facts, sets)
        if output is not None:
            write_evaluation(examined, Path(output))
    if output is None and examined.failures:
        first = examined.failures[0]
        pairs, number = sets[first["test"]], first["pair"]
        what = f"the test set {first['test']}" if number is None else f"pair {number} of {first['test']}"
        if number is not None and isinstance(pairs, PreferenceSet):
            what = pairs.where(number)
        raise InputError(f"{what} cannot be judged: {first['reason']}", "Correct it.")
    return examined.evaluation


def bench(
    benchmark: str,
    prompts: str | Path,
    *,
    output: str | Path,
    pictures: str | Path | None = None,
    generator: AnyGenerator | None = None,
    judge: AnyReward | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Object-level scores of pictures: GenEval, GenEval 2 or TIFA. Called again, an interrupted run goes on.

    benchmark: "geneval", "geneval2" or "tifa".
    prompts: its published file: evaluation_metadata.jsonl, geneval2_data.jsonl or tifa_v1.0_question_answers.json.
    output: the folder of results.jsonl, scores.json and scores.md, and of pictures that are made.
    pictures: a folder or a .json file of them (docs/guides/benchmarks.md), where no generator makes them.
    generator: what `load_generator` gave, or a name that it takes; it makes the pictures first.
    judge: what `load_reward` gave, or a name that it takes. It answers the questions of geneval2 and tifa.
    options: samples (pictures of each prompt), detector and colours (of geneval), rules (which detections count),
        answers ("yes_no" or "first_token": how the judge answers), seed, batch_size, skip_faulty; ray and workers; and
        num_inference_steps, guidance_scale and generator_options of a generator, kind and judge_options of a judge,
        device and dtype of those that are given by name. All stand in docs/reference/recipes.md.

    Returns where the files are, how many pictures there were and how many failed, and the overall `figures`.
    Raises InputError before anything is asked for an unknown option, or files that cannot be used.

    >>> found = bench("geneval", "evaluation_metadata.jsonl", pictures="flux-pictures", output="runs/geneval")
    >>> found["figures"]["correct pictures"]
    """
    parts: dict[str, Any] = {}
    if generator is not None and not isinstance(generator, str | Path):
        taken = [name for name in GENERATOR_OPTIONS if name in options and name not in ("device", "dtype")]
        if taken:
            raise InputError(f"{taken[0]} is the generator's own.", "Give it to load_generator.")
        parts["generator"], options["num_inference_steps"] = generator, _checked_generator(generator).num_steps
    if judge is not None and not isinstance(judge, str | Path):
        if taken := [name for name in ("kind", "judge_options") if name in options]:
            raise InputError(f"{taken[0]} is an option of load_reward.", "Give it there, or name the judge.")
        judge = parts["judge"] = as_reward(judge)
    named = {"generator": generator, "judge": judge}
    content = options | {name: _name(part) for name, part in named.items() if part is not None}
    content |= {"benchmark": benchmark, "prompts": prompts, "pictures": pictures, "output": output}
    return run_bench(parse_recipe(BenchRun, content, "the options of bench"), BenchParts(**parts))


def _asked(prompts: Sequence[str | Prompt]) -> list[Prompt]:
    """The prompts. Raises InputError naming the first that says nothing, as a file of prompts does."""
    asked = as_prompts(prompts)
    for number, prompt in enumerate(asked, start=1):
        if not prompt.text.strip():
            raise InputError(f"prompt {number} is empty.", "Say what is wanted, or leave it out.")
    return asked


def _listed(items: Any, what: str, empty: bool = False, kind: type | None = None) -> Sequence[Any]:
    """Items that may be asked for by number; those of an iterator are kept. empty: there may be none.

    Raises InputError where there are none, it is nothing that holds any, or naming one of a list that is not of a
    `kind`; of what reads its items from files only the first is looked at.
    """
    if not isinstance(items, Iterable) or isinstance(items, bytes | bytearray | Mapping):
        raise InputError(f"{shown(items)} is no list of {what}.", "Give a list.")
    listed = items if isinstance(items, Sequence) else list(items)
    if not listed and not empty:
        raise InputError(f"there are no {what}.", "Give at least one.")
    if kind is None:
        return listed
    for number, item in enumerate(listed if isinstance(listed, list | tuple) else [listed[0]], start=1):
        if not isinstance(item, kind):
            what = f"number {number} of the {what} is {shown(item)}."
            raise InputError(what, f"Give a list of {kind.__name__}, or a file.")
    return listed


def _checked_generator(generator: Any) -> PipelineGenerator:
    """The generator. Raises InputError for what is none."""
    if not isinstance(generator, Generator):
        raise InputError(f"{shown(generator)} is no generator.", "Give what load_generator gave, or a name.")
    return generator  # type: ignore[return-value]


def _reward(reward: AnyReward, device: str | None = None, dtype: Precision = "auto", **options: Any) -> RewardModel:
    """A reward that is given by name, as a function or as an object. Raises InputError for options of an object."""
    if isinstance(reward, str | Path):
        return load_reward(reward, find_device(device), dtype, **options)
    if options:
        raise InputError(
            f"there is no option {next(iter(options))!r} here for a reward that is loaded already.",
            "Correct it; options of load_reward are given there.",
        )
    return as_reward(reward)


def _several(rewards: SeveralRewards) -> tuple[dict[str, dict[str, Any]], dict[str, RewardModel]]:
    """Several rewards as a recipe writes them, and those of their judges that are objects. A row is named by place."""
    named = rewards if isinstance(rewards, Mapping) else {f"reward_{k}": one for k, one in enumerate(rewards, start=1)}
    if not named:
        raise InputError("no rewards are given.", "Give one, or several by name.")
    content: dict[str, dict[str, Any]] = {}
    objects: dict[str, RewardModel] = {}
    for name, reward in named.items():
        keys = dict(reward) if isinstance(reward, Mapping) else {"judge": reward}
        judge = keys.get("judge")
        if judge is not None and not isinstance(judge, str | Path):
            if keys.get("options"):
                raise InputError(f"the reward {name} has options, which are load_reward's.", "Give them there.")
            objects[name] = as_reward(judge)
            judge = objects[name]
        content[name] = keys | ({} if judge is None else {"judge": _name(judge)})
    return content, objects


def _name(part: Any) -> str:
    """How a part is written down in a run's config: its name, or what it says of itself; no address in memory."""
    if isinstance(part, str | Path):
        return str(part)
    return type(part).__qualname__ if type(part).__repr__ is object.__repr__ else repr(part)


def _is_table(candidates: Any) -> bool:
    """Is it a folder of pictures or a file of rows, and not pictures themselves?"""
    return isinstance(candidates, str | Path) and (
        Path(candidates).is_dir() or Path(candidates).suffix in (".jsonl", ".parquet")
    )


def _one_for_each(items: Sequence[Any], count: int, name: str) -> list[Any]:
    """One for all, or one for each. Raises InputError naming how many there are."""
    if len(items) not in (1, count):
        raise InputError(f"there are {len(items)} {name} for {count} candidates.", "Give one for each, or one for all.")
    return list(items) * (count if len(items) == 1 else 1)
