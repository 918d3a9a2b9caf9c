"""A judge of about 100M random parameters with the proportions of a real one, and how it is asked the naive way."""

from __future__ import annotations

import ctypes
import gc
import tempfile
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import InternVLConfig, InternVLForConditionalGeneration

from rewarddance.reward.generative import PairwiseReward
from rewarddance.reward.instructions import load_instruction
from rewarddance.reward.judge import RewardConfig
from rewarddance.reward.prefill import parts_of
from rewarddance.reward.prefix_attention import ScoreMatrix
from rewarddance.reward.vlm_judge import JudgeInput, VisionLanguageModel
from rewarddance.shapeworld.training.judge import build_judge_base, save_judge_base
from rewarddance.types import Question

SIDE, PATCH = 280, 14
PROMPT = (
    "A wide shot of a lighthouse on a cliff at dusk, a red boat with two fishermen below it on the left, three white "
    "gulls above the water, soft light from the right, video grain, the name of the harbour painted on the boat's bow"
)


def build_judge(kept: Path | None = None) -> PairwiseReward:
    """InternVL's class: a tower of 8 layers of 512, a Qwen2 text model of 10 layers of 768, 100 tokens a picture.

    kept: a folder that holds the checkpoint afterwards.
    """
    _, tokenizer = build_judge_base(0)
    torch.manual_seed(0)
    config = InternVLConfig(
        vision_config={
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
            "image_size": (SIDE, SIDE),
            "patch_size": (PATCH, PATCH),
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": 32_000,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 10,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.vocab["<IMG_CONTEXT>"],
        image_seq_length=(SIDE // PATCH) ** 2 // 4,
        downsample_ratio=0.5,
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = kept or Path(scratch)
        save_judge_base(InternVLForConditionalGeneration(config), tokenizer, folder)
        processor = folder / "preprocessor_config.json"
        processor.write_text(
            processor.read_text()
            .replace('"height": 32', f'"height": {SIDE}')
            .replace('"width": 32', f'"width": {SIDE}')
        )
        vlm = VisionLanguageModel(str(folder))
    return PairwiseReward(vlm, RewardConfig()).freeze()


def candidates(n: int, seed: int = 0) -> list[Tensor]:
    """Random pictures [1, 3, H, W] of the judge's own size."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.rand(1, 3, SIDE, SIDE, generator=rng) for _ in range(n)]


def naive_inputs(judge: PairwiseReward, question: Question) -> dict[str, Any]:
    """What the family's own processor would give `model(**inputs)` for one question, on the judge's device."""
    parts = tuple(load_instruction(judge.config.instruction).question(question.prompt.text))
    assert question.reference is not None
    pictures = (question.reference, question.candidate)
    return judge.vlm.family.model_inputs(parts_of(JudgeInput(parts, pictures)), pictures, ())


def naive_margin(judge: PairwiseReward, question: Question) -> Tensor:
    """One forward of the whole model for one question, logits at all positions, read at the last."""
    logits = judge.model(**naive_inputs(judge, question)).logits[0, -1]
    yes, no = judge.vlm.answer_tokens(judge.config.yes), judge.vlm.answer_tokens(judge.config.no)
    return logits[yes].logsumexp(0) - logits[no].logsumexp(0)


def naive(judge: PairwiseReward, questions: Sequence[Question]) -> Tensor:
    return torch.stack([naive_margin(judge, question) for question in questions])


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, attention's included (as plain products)."""
    written_out = patch("rewarddance.reward.prefix_attention.kernel_for", lambda query: ScoreMatrix)
    with sdpa_kernel(SDPBackend.MATH), written_out, FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def saved(model: torch.nn.Module, work: Callable[[], Any]) -> float:
    """MB that autograd keeps for the backward pass of `work`, the model's own weights apart."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, Tensor] = {}  # held, so that no other tensor takes a place that is counted

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own) / 2**20


class _Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_at_once(model: torch.nn.Module, work: Callable[[], Any]) -> float:
    """The most MB that autograd keeps at any moment of `work`, backward passes included; the model's weights apart."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    holders: Counter[int] = Counter()
    held = {"now": 0, "most": 0}

    def free(place: int, size: int) -> None:
        holders[place] -= 1
        held["now"] -= 0 if holders[place] else size

    def keep(tensor: Tensor) -> _Kept:
        kept, storage = _Kept(tensor), tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in own:
            held["now"] += 0 if holders[place] else size
            held["most"] = max(held.values())
            holders[place] += 1
            weakref.finalize(kept, free, place, size)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
        work()
    return held["most"] / 2**20


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    work()
    return clock() - began


def interleaved(
    works: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The best of `rounds` times of each, run in turn: on a shared machine one run alone says nothing.

    clock: `time.process_time` counts the processor's seconds of this process in all its threads.
    """
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(best[name], seconds(work, clock))
    return best


@contextmanager
def peak_rss() -> Iterator[list[float]]:
    """Yields a list that gets one number at the end: MB by which resident memory rose at most within the block."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc: what was freed before is given back, so that it is not used again
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    page, found, stop = 4096, [], threading.Event()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    before = peak = resident()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        peak = max(peak, resident())
        stop.set()
        watcher.join()
        found.append((peak - before) / 2**20)
