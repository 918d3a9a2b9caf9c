"""What `rewarddance align` does: load a generator and its rewards, make the references, and run the algorithm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from rewarddance.alignment.algorithms import (
    align_generator,
    as_rewards,
    check_beginning,
    check_parts,
    prepare_alignment,
    read_votes,
)
from rewarddance.alignment.failed_groups import FILE, read_failed_groups
from rewarddance.alignment.judges import Judges, listed, load_judges
from rewarddance.alignment.policy import PolicyRecipe, against_base
from rewarddance.alignment.recipe import AlignRun
from rewarddance.alignment.train import Alignment
from rewarddance.data.faults import FaultyRow, list_faulty, skipped
from rewarddance.data.preferences import PreferenceSet
from rewarddance.data.prompts import KEPT, check_not_replaced, keep_prompts, metadata_text, read_prompts
from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.jobs.preflight import FAULTY, check_gradient, checked_prompts, faulty_votes
from rewarddance.jobs.sample_grids import with_grids
from rewarddance.protocols import RewardModel
from rewarddance.report.alignment_page import ALGORITHMS, write_alignment_page
from rewarddance.report.progress import Progress, ProgressPage
from rewarddance.report.run_folder import read_alarms
from rewarddance.reward.identity import reward_digest
from rewarddance.reward.loading import load_reward
from rewarddance.reward.sharded import load_sharded
from rewarddance.runtime import process_group
from rewarddance.runtime.checkpoint import (
    check_is_folder,
    check_output,
    check_replaceable,
    checkpoint_digest,
    read_run_json,
    writable_folder,
    write_text_atomically,
)
from rewarddance.runtime.config import keep_recipe
from rewarddance.runtime.devices import digest_of
from rewarddance.runtime.lock import locked
from rewarddance.runtime.memory import modules_on
from rewarddance.runtime.process_group import init_process_group, is_main_process, main_process_first
from rewarddance.runtime.trackers import check_trackers, reporting
from rewarddance.runtime.tracking import Metrics, console
from rewarddance.types import Prompt

MAY_CHANGE = frozenset(
    {"generator_batch", "decode_batch", "judge_batch", "checkpointing", "offload", "device", "judge_device"}
    | {"report_to", "output", "prompts", "preferences"}
)
"""Keys of a recipe that a run may go on with others of: memory and reporting, and paths whose content is compared."""
_OF_REFERENCES = frozenset(
    {"generator", "num_inference_steps", "guidance_scale", "generator_options", "dtype", "seed", "references"}
    | {"judge", "judge_options", "judge_dtype", "rewards"}
)
"""Keys on which references depend: they bind a folder that has some before it has a step."""


INPUTS = "inputs.json"
"""What a run notes of the files that it reads (`keep_inputs`)."""


class Aligned(NamedTuple):
    """The end of an alignment: the generator with the trained weights, where they are, and what else is told."""

    generator: PipelineGenerator
    folder: Path
    prompts: int
    alarms: int

    def as_json(self) -> dict[str, Any]:
        """What the command prints: the folder under its name, lora or generator; how many groups had no reward; and the
        alarm that ended the run before its last step, with the step, where one did."""
        result = {self.folder.name: str(self.folder), "prompts": self.prompts, "alarms": self.alarms}
        if stops := [row for row in read_alarms(self.folder.parent) if row["stop"]]:
            result |= {"stopped_at": stops[0]["step"], "stopped_by": stops[0]["name"]}
        if failed := len(read_failed_groups(self.folder.parent)):
            result |= {"failed": failed, "failures": str(self.folder.parent / FILE)}
        return result | skipped(self.folder.parent / FAULTY)


class Parts(NamedTuple):
    """Objects in the place of what a run names; None is loaded by its name. rewards: judges of some of the rewards."""

    generator: PipelineGenerator | None = None
    judge: RewardModel | None = None
    prompts: Sequence[Prompt] | None = None
    held_out: RewardModel | None = None
    rewards: Mapping[str, RewardModel] | None = None


def run_alignment(recipe: AlignRun, parts: Parts | None = None) -> Aligned | None:
    """Align; an interrupted run goes on.

    The reference bank is built first where the algorithm judges against references. Several processes align together,
    and all but the first return None.
    """
    with init_process_group():
        return _align(recipe, parts or Parts())


class Ready(NamedTuple):
    """All that an alignment needs, found to fit together.

    votes: of dpo, which asks no judge. faults: of the rows that are left out.
    """

    generator: PipelineGenerator
    judges: Judges
    held_out: RewardModel | None
    votes: PreferenceSet | None
    prompts: list[Prompt]
    faults: list[FaultyRow]


def _align(recipe: AlignRun, parts: Parts) -> Aligned | None:
    check_trackers(recipe.report_to)
    recipe.check_processes(process_group.world_size(), process_group.device().type)
    check_output(recipe.output)
    if parts.prompts is None:
        check_not_replaced(recipe.prompts, recipe.output)
    ready = _made_ready(recipe, parts)
    folder = recipe.output
    with ExitStack() as held:
        with main_process_first():
            writable_folder(folder)
            if recipe.chosen.lora_rank:
                check_is_folder(folder / "lora")
            else:
                check_replaceable(folder / "generator")
            held.enter_context(locked(folder))
            begun = any(folder.glob("checkpoint-*")) or _has_rows(folder / "metrics.jsonl")
            made = begun or _has_rows(folder / "references" / "references.jsonl")
            only = None if begun else _OF_REFERENCES
            keep_recipe(recipe, folder / "config.yaml", binding=made, free=MAY_CHANGE, only=only)
            keep_inputs(recipe, parts, folder / INPUTS, binding=made, of_references=not begun, votes=ready.votes)
            if is_main_process():
                keep_prompts(ready.prompts, folder / KEPT, binding=made)
                list_faulty(ready.faults, folder / FAULTY)
        run = prepare_alignment(
            recipe,
            ready.generator,
            ready.judges,
            ready.prompts,
            references_folder=folder / "references",
            seed=recipe.seed,
            held_out=ready.held_out,
            begin_with=recipe.begin_with,
            preferences=ready.votes,
        )
        aligned = _train(recipe, run, ready.prompts)
        if not is_main_process():
            return None
        console.print(f"report: {write_alignment_page(folder).resolve()}", soft_wrap=True)
        return Aligned(ready.generator, aligned, len(ready.prompts), len(read_alarms(folder)))


def _made_ready(recipe: AlignRun, parts: Parts) -> Ready:
    """Load and read everything. What cannot be is refused here, before the folder is claimed."""
    device, judge_device = recipe.devices()
    faults: list[FaultyRow] = []
    prompts = distinct(read_prompts(recipe.prompts, faults) if parts.prompts is None else parts.prompts)
    generator = parts.generator or load_policy(recipe, device)
    generator.check_lora(recipe.chosen.lora_targets)
    if recipe.offload:
        generator.offload([part for part in recipe.offload if part != "judge"])
        generator.keep_texts(recipe.output / "texts" / _text_encoding(recipe, generator))
    asked, held_out = _judges(recipe, parts, judge_device)
    votes = None
    check_beginning(recipe.chosen, generator, recipe.begin_with)
    if asked is None:
        check_parts(recipe.chosen, generator, None)
        votes = read_votes(recipe.chosen, faults)
        faults += faulty_votes(votes, generator)
    else:
        as_rewards(recipe.chosen, generator, asked)
    judges = [*listed(asked), held_out]
    if "judge" in recipe.offload and not any([keep_off(judge, judge_device) for judge in judges]):
        raise InputError("no judge has weights here that could be offloaded.", "Leave judge out of offload.")
    where, skip = recipe.prompts if parts.prompts is None else "the list", recipe.skip_faulty
    prompts, faults = checked_prompts(generator, judges, prompts, faults, source=where, skip=skip)
    generator.check_prompts(prompts)  # any of them may share a batch
    check_alarms_of_edits(recipe, generator, prompts)
    if recipe.algorithm == "refl":
        check_gradient(generator, listed(asked), prompts[0])
    return Ready(generator, asked, held_out, votes, prompts, faults)


def _text_encoding(recipe: AlignRun, generator: PipelineGenerator) -> str:
    """What encoded texts depend on beside their words: the generator's weights, options and precision."""
    seen = [checkpoint_digest(recipe.generator), str(generator.dtype), generator.options.model_dump_json()]
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=8).hexdigest()


def check_alarms_of_edits(recipe: AlignRun, generator: PipelineGenerator, prompts: Sequence[Prompt]) -> None:
    """Raises InputError where an alarm that compares edits with their sources shall stop a run that has none."""
    if generator.num_frames == 1 and any(prompt.image is not None for prompt in prompts):
        return
    for name in {"untouched", "repainted"}.intersection(recipe.chosen.alarms.stop_on):
        raise InputError(
            f"{recipe.algorithm}.alarms.stop_on names {name}, which compares edits with their sources, and nothing is "
            "edited here.",
            "Leave it out.",
        )


def _judges(recipe: AlignRun, parts: Parts, device: str) -> tuple[Judges, RewardModel | None]:
    """The rewards that are asked, None for dpo, and the judge that is held out."""
    load = partial(load_reward, device=device, dtype=recipe.judge_dtype)
    beside = load
    if recipe.judge_sharded:
        load = partial(load_sharded, device=device, dtype=recipe.judge_dtype)
        beside = partial(load, or_whole=True)
    asked = load_judges(recipe, load, beside, judge=parts.judge, given=parts.rewards)
    return asked, parts.held_out or (beside(recipe.held_out, **recipe.held_out_options) if recipe.held_out else None)


def _train(recipe: AlignRun, run: Alignment, prompts: Sequence[Prompt]) -> Path:
    """Train with trackers, the page that is renewed, probes and grids; returns where the weights are."""
    folder, loop = recipe.output, run.recipe
    with reporting(recipe.report_to, folder, recipe) as trackers:
        progress = Progress(f"aligning by {ALGORITHMS[recipe.algorithm]}", "the same command")
        page = ProgressPage(folder, progress, write_alignment_page)
        metrics = Metrics(folder / "metrics.jsonl", trackers, page.renew)
        at_once = min(recipe.references.batch_size, loop.generator_batch or loop.prompts_per_step * loop.group_size)
        probe = with_grids(
            against_base(run) if isinstance(loop, PolicyRecipe) else dict,
            run.generator,
            prompts,
            metrics,
            count=recipe.grid_prompts,
            phase=recipe.algorithm,
            seed=recipe.seed,
            batch_size=at_once,
        )
        return align_generator(run, folder=folder, metrics=metrics, probe=probe)


def keep_off(judge: Any, device: str) -> bool:
    """Keep a judge's weights on the CPU; a block of `judging` moves them to the device. False: it has none here."""
    model = getattr(judge, "model", None)
    if not isinstance(model, nn.Module):
        return False
    model.to("cpu")
    judge.together = partial(modules_on, [model], device)
    return True


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts that differ in their text, their negative text, their picture or their metadata, each once."""
    keys = [
        (prompt.text, prompt.negative, prompt.image_path or id(prompt.image), metadata_text(prompt))
        for prompt in prompts
    ]
    return list(dict(zip(keys, prompts, strict=True)).values())


def _has_rows(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def keep_inputs(
    recipe: AlignRun,
    parts: Parts,
    path: Path,
    *,
    binding: bool,
    of_references: bool,
    votes: PreferenceSet | None = None,
) -> None:
    """Write down what a run reads beside its recipe and its prompts, or make sure that it is what it began with.

    Of rewards what `reward_digest` says. binding: something was made of what is written there. of_references: no more
    than references, so that only the generator and the judges bind. votes: those that dpo learns from. Raises
    InputError naming what has changed.
    """
    own, shared = (recipe.judge, recipe.judge_options), parts.judge
    judges = {"judge": (*own, shared), "held_out": (recipe.held_out, recipe.held_out_options, parts.held_out)}
    for name, reward in recipe.rewards.items():
        judge, options = (reward.judge, reward.options) if reward.judge else own
        criteria = {"criteria": reward.criteria} if reward.criteria else {}
        given = (parts.rewards or {}).get(name) if reward.judge else shared
        judges[f"reward {name}"] = (judge, options | criteria, given)
    now = {"generator": checkpoint_digest(recipe.generator)}
    for name, (judge, options, given) in judges.items():
        if judge:
            now[name] = reward_digest(judge, given, **options)
    if votes is not None:  # places among them say which come when
        now["number of usable votes"] = str(len(votes))
    if recipe.begin_with is not None:
        now["begin_with"] = digest_of(recipe.begin_with.rglob("*"))
    if recipe.algorithm == "dpo" and recipe.dpo.preferences is not None:
        with recipe.dpo.preferences.open("rb") as file:
            now["preferences"] = hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    before = read_run_json(path) if binding and path.exists() else now
    for name in now:
        is_bound = not of_references or name == "generator" or name.startswith(("judge", "reward "))
        if is_bound and before.get(name) != now[name]:
            raise InputError(
                f"{path.parent} holds a run whose {name} has changed since.",
                "Choose another output, or bring back what the run began with.",
            )
    if is_main_process():
        write_text_atomically(path, json.dumps(now, indent=2) + "\n")


def load_policy(recipe: AlignRun, device: str) -> PipelineGenerator:
    """The generator that a recipe begins with, and its sampling."""
    sampling = {"num_inference_steps": recipe.num_inference_steps, "guidance_scale": recipe.guidance_scale}
    sampling |= {"device": device, "dtype": recipe.dtype}
    return load_generator(recipe.generator, **{**sampling, **recipe.generator_options})
