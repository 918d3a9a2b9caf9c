"""The kinds of reward model by name, and how one is loaded. A new kind is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rewarddance.errors import InputError
from rewarddance.reward.clip import ClipReward, untrained_kind
from rewarddance.reward.criteria import CriteriaReward
from rewarddance.reward.function_reward import is_factory, load_function
from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.instructions import check_version, load_instruction
from rewarddance.reward.judge import CONFIG_FILE, CRITERIA_FILE, INSTRUCTION_FILE, USED_BY, Judge, RewardConfig
from rewarddance.reward.pointwise import PointwiseReward
from rewarddance.reward.regressive import RegressiveReward, has_head
from rewarddance.reward.remote.addresses import is_address, load_remote
from rewarddance.reward.vlm_judge import VisionLanguageModel
from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.runtime.config import Precision, parse_recipe
from rewarddance.runtime.devices import check_device, find_dtype
from rewarddance.runtime.files import parse_json, read_text


def _vlm(name: str, config: RewardConfig, device: str, dtype: torch.dtype) -> VisionLanguageModel:
    return VisionLanguageModel(
        name,
        dtype,
        device,
        config.max_pixels,
        checkpointing=config.checkpointing,
        base_precision=config.base_precision,
        compile_text=config.compile,
    )


KINDS: dict[str, Callable[[str, RewardConfig, str, torch.dtype], Judge]] = {
    "pairwise": lambda name, config, *where: PairwiseReward(_vlm(name, config, *where), config),
    "pointwise": lambda name, config, *where: PointwiseReward(_vlm(name, config, *where), config),
    "regressive": lambda name, config, *where: RegressiveReward(_vlm(name, config, *where), config),
    "clip": lambda name, config, *where: ClipReward(name, config, *where),
}


def build_reward(name: str, config: RewardConfig, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Judge:
    """A checkpoint as the kind of reward that `config` says, its weights trainable."""
    judge = KINDS[config.kind](name, config, device, dtype)
    judge.name_or_path = name
    return judge if config.criteria is None else CriteriaReward(judge, config.criteria, config.criteria_average)


def load_reward(
    name: str | Path, device: str = "cpu", dtype: torch.dtype | Precision = "auto", **changes: object
) -> Any:
    """Load a trained reward, or any vision-language model or dual encoder (CLIP) zero-shot; frozen.

    name: a folder, an id of the model hub, a bundled checkpoint's name, or `package.module:factory`, a function of your
    own that makes a reward. Or an address: of `rewarddance serve` (http://...), which also gives gradients, or of
    another program (chat+, decisions+ or systemone+http://...), which is only asked.
    device: "cpu", "cuda" or "cuda:1". A factory gets it where it takes a device; a server has its own.
    dtype: of the weights; auto is bfloat16 on a GPU, float32 elsewhere. The margin is always taken in float32. A
    factory and a server choose their own.
    changes: keys of the folder's reward_config.json to set differently, such as kind ("pairwise", "pointwise",
    "regressive" or "clip"), instruction, orders="both", or criteria="t2i" for a tree of criteria in place of the one
    question ("edit#keeping" is one criterion of a tree); or the options of the factory or of the address. Without a
    reward_config.json a dual encoder is of kind "clip", any other model "pairwise".

    Returns a judge, which is called with questions and has score, compare and rank; of a factory what it made.

    Raises InputError naming an unknown field, a missing checkpoint or device, a broken reward_config.json, weights that
    cannot answer as the kind asked, or an instruction that is another version than the one trained with; one named in
    `changes` is taken as it is here.
    """
    name = str(name)
    if is_address(name):
        return load_remote(name, **changes)
    if is_factory(name):
        return load_function(name, device, **changes)
    if changes.get("instruction") and changes.get("criteria"):
        raise InputError("criteria are asked in place of the instruction.", "Leave one of them out.")
    folder = find_checkpoint(name)
    check_device(device)
    path = folder / CONFIG_FILE
    saved: dict = {}
    if "kind" not in changes and not path.is_file():
        saved["kind"] = untrained_kind(folder)
    if path.is_file():
        try:
            saved = dict(parse_json(read_text(path)))
        except (OSError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no JSON object: {error}.", "Restore it or train the reward again.") from error
    for key, file in (("instruction", INSTRUCTION_FILE), ("criteria", CRITERIA_FILE)):
        if str(saved.get(key)).partition("#")[0] == file:
            saved[key] = str(folder / saved[key])
    kind = changes.get("kind")
    if kind in KINDS:
        saved = as_kind(saved, str(kind), name)
    config = parse_recipe(RewardConfig, saved | changes, f"the options for {name!r}" if changes else str(path))
    if config.kind in USED_BY["instruction"]:
        if "instruction" in changes or "instruction_version" not in saved:
            version = load_instruction(config.instruction).version
            config = config.model_copy(update={"instruction_version": version})
        check_version(config.instruction, config.instruction_version)
    if config.kind == "regressive" and not has_head(folder):
        raise InputError(
            f"{name!r} has no reward head, so it gives no regressive reward.",
            "Train one (kind: regressive), or ask the model zero-shot with kind 'pairwise' or 'pointwise'.",
        )
    return build_reward(name, config, device, find_dtype(dtype, device)).freeze()


def with_criteria(judge: Any, criteria: str, average: str = "margin") -> CriteriaReward:
    """A judge that is loaded, asked by a tree of criteria or by one of them; several may ask the same one.

    Raises InputError for what is no pairwise or pointwise judge with its weights here.
    """
    kind = getattr(getattr(judge, "config", None), "kind", None)
    if not isinstance(judge, Judge) or isinstance(judge, CriteriaReward) or kind not in USED_BY["criteria"]:
        raise InputError(
            f"{judge!r} cannot be asked by the criteria {criteria!r}.",
            "They are for a pairwise or pointwise judge whose weights are here and that has no criteria yet.",
        )
    return CriteriaReward(judge, criteria, average)


def as_kind(saved: dict, kind: str, name: str) -> dict:
    """A folder's saved config as that of another kind: without the kind and the options that only its own uses.

    Raises InputError where its weights have learned to answer otherwise: both generative kinds say yes or no with the
    same head, while a regressive or a CLIP reward answers for itself alone.
    """
    trained_kind = saved.get("kind", "pairwise")
    if not saved or kind == trained_kind:
        return saved
    if {trained_kind, kind} != {"pairwise", "pointwise"}:
        raise InputError(
            f"{name!r} was trained as a {trained_kind} reward and cannot be asked as a {kind} one.",
            f"Leave kind out, or train a {kind} reward from it.",
        )
    return {key: value for key, value in saved.items() if key != "kind" and kind in USED_BY.get(key, (kind,))}
