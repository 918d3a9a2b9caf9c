"""`rewarddance export`: a judge as a folder that `vllm serve`, `transformers serve` and `pipeline("decision")` take."""

from __future__ import annotations

from typing import Any

from rewarddance.errors import InputError
from rewarddance.jobs.recipes import ExportRun
from rewarddance.reward.decision_files import decision_files
from rewarddance.reward.loading import load_reward
from rewarddance.runtime.checkpoint import check_replaceable, find_checkpoint, replacing
from rewarddance.runtime.devices import find_dtype
from rewarddance.runtime.weights import ADAPTER_CONFIG, merge_adapter


def run_export(run: ExportRun) -> dict[str, Any]:
    """Write the folder; returns where it is, how the judge is asked, and whether its P("yes") is then exact.

    Raises InputError where the judge cannot be asked by others (`decision_files`), where it is a LoRA that is not to be
    merged, or none that is, and where the output is a folder with anything in it: it may be a trained reward.
    """
    check_replaceable(run.output)
    if run.output.exists() and any(run.output.iterdir()):
        raise InputError(f"{run.output} is there already, and is not written over.", "Move it away, or choose another.")
    is_adapter = (find_checkpoint(run.judge) / ADAPTER_CONFIG).is_file()
    if is_adapter != run.merge:
        raise InputError(
            f"{run.judge!r} is a LoRA on another checkpoint, which servers do not find."
            if is_adapter
            else f"{run.judge!r} is no LoRA.",
            "Say --merge." if is_adapter else "Leave out --merge.",
        )
    changes = {"base_precision": "none", **run.changes}  # rounded weights are not written, and take no LoRA
    judge = load_reward(run.judge, run.device or "cpu", find_dtype(run.dtype), **changes)
    files = decision_files(judge)
    if run.one_spelling and not files.exact:
        config = judge.config.model_copy(update={"yes": files.yes[:1], "no": files.no[:1]})
        judge = type(judge)(judge.vlm, config)
        files = decision_files(judge)
    if run.merge:
        merge_adapter(judge.model)
    with replacing(run.output) as folder:
        judge.save(folder)
    facts = {"folder": str(run.output), "kind": judge.config.kind, "instruction": judge.config.instruction}
    return facts | {"yes": list(files.yes), "no": list(files.no), "noul_is_exact": files.exact}
