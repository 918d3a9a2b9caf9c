"""What every kind of reward model shares: batching, finiteness, pictures in any form, ranking, its folder."""

from __future__ import annotations

import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import yaml
from jaxtyping import Float
from pydantic import Field, field_validator
from safetensors.torch import save_file
from torch import Tensor

from rewarddance.errors import InputError, RewardDanceError, RewardError
from rewarddance.reward.asking import Asking
from rewarddance.reward.instructions import Instruction, Reasoning, is_ours, load_instruction, load_tree, split_tree
from rewarddance.reward.video_frames import as_read
from rewarddance.runtime.checkpoint import let_others_read
from rewarddance.runtime.config import Recipe
from rewarddance.runtime.quantised import BasePrecision
from rewarddance.runtime.weights import read_tensors
from rewarddance.types import Preference, Question, Verdict

YES = ("yes", "Yes", "YES", " yes", " Yes")
NO = ("no", "No", "NO", " no", " No")
CRITERIA_FILE = "criteria.yaml"
"""A user's own tree of criteria, beside the reward that is asked with it."""
CONFIG_FILE = "reward_config.json"
HEAD_FILE = "reward_head.safetensors"
INSTRUCTION_FILE = "instruction.yaml"
"""A user's own instruction, beside the reward that is asked with it."""
Kind = Literal["pairwise", "pointwise", "regressive", "clip"]
USED_BY: dict[str, tuple[Kind, ...]] = {
    "instruction": ("pairwise", "pointwise", "regressive"),
    "criteria": ("pairwise", "pointwise"),
    "criteria_average": ("pairwise", "pointwise"),
    "instruction_version": ("pairwise", "pointwise", "regressive"),
    "answer_weight": ("pointwise",),
    "difference_weight": ("pairwise",),
    "tie_threshold": ("pointwise", "regressive", "clip"),
    "orders": ("pairwise",),
    "yes": ("pairwise", "pointwise"),
    "no": ("pairwise", "pointwise"),
    "among": ("pairwise", "pointwise"),
    "max_pixels": ("pairwise", "pointwise", "regressive"),
    "checkpointing": ("pairwise", "pointwise", "regressive"),
    "base_precision": ("pairwise", "pointwise", "regressive"),
    "compile": ("pairwise", "pointwise", "regressive"),
    "reasoning": ("pairwise", "pointwise"),
    "reason_weight": ("pairwise", "pointwise"),
    "reasons": ("pairwise", "pointwise"),
    "reason_temperature": ("pairwise", "pointwise"),
    "max_reason_tokens": ("pairwise", "pointwise"),
}
"""The kinds that an option says something to; what is not listed is every kind's. Elsewhere it is refused."""
ANSWER_WEIGHT = 0.1
"""Default of `answer_weight`, ours: the paper does not publish its own."""
SomeJudge = TypeVar("SomeJudge", bound="Judge")


class RewardOptions(Recipe):
    """What a reward is and how it learns: the options that its folder and its training recipe have in common.

    kind: which question is asked and how it is answered. instruction: the template used where a question names none.
    yes, no: spellings of the two answers; those that are one token are summed. With one of each the P("yes") of other
    servers is exact (`decision_files`).
    answer_weight: weight of the answers' cross-entropy beside Bradley-Terry (pointwise only; None is 0.1).
    difference_weight: share of the loss that is on half the difference of the two orders' margins, the rest is on the
    answers themselves; 0 is the paper's objective (pairwise only; see `pairwise_cross_entropy`).
    tie_threshold: log of Rao and Kupper's theta, which makes Bradley-Terry win-tie: pictures whose margins differ by
    less are likely tied (not pairwise). None: plain Bradley-Terry, where a tie is half a win.
    frames: how many frames of a video are read, evenly from the first to the last, and fps: the rate of its videos; a
    video of fewer frames, or known to have another rate, is an error. None: all that are given, and any rate.
    max_pixels: of a frame after resizing, for families that keep a picture's shape (the pixel budget). checkpointing:
    where there is a gradient, keep each layer's input only and compute the rest again (not clip).
    base_precision: of the frozen weights of the layers: "nf4" or "int8", which need bitsandbytes, or "none", that of
    loading (not clip). What is trained on them is a LoRA. compile: the language model's layers are compiled when they
    first run (`compile_layers`; not clip, and not of a folder: it is of a run).
    reasoning: "after" the answer a reason is given, or "before" it, or "none". reason_weight: of the reasons' tokens
    beside the answers, in training (both for the kinds that say yes or no).
    """

    kind: Kind = "pairwise"
    instruction: str = "t2i"
    yes: tuple[str, ...] = Field(default=YES, min_length=1)
    no: tuple[str, ...] = Field(default=NO, min_length=1)
    answer_weight: float | None = Field(default=None, ge=0, validate_default=True)
    difference_weight: float = Field(default=0.5, ge=0, le=1)
    tie_threshold: float | None = Field(default=None, gt=0)
    frames: int | None = Field(default=None, ge=1)
    fps: float | None = Field(default=None, gt=0)
    max_pixels: int | None = Field(default=None, ge=1)
    checkpointing: bool = False
    base_precision: BasePrecision = "none"
    compile: bool = False
    reasoning: Reasoning = "none"
    reason_weight: float = Field(default=1.0, ge=0)

    @field_validator("reason_weight")
    @classmethod
    def _is_of_reasons(cls, value: float, info: Any) -> float:
        if info.data.get("reasoning") == "none" and value != cls.model_fields["reason_weight"].default:
            raise ValueError("reasons are learned with reasoning 'after' or 'before' only")
        return value

    @field_validator("*")
    @classmethod
    def _is_used(cls, value: Any, info: Any) -> Any:
        kind, name = info.data.get("kind"), info.field_name or ""
        if name == "answer_weight" and value is None and kind == "pointwise":
            return ANSWER_WEIGHT
        if kind and kind not in USED_BY.get(name, (kind,)) and value != cls.model_fields[name].default:
            raise ValueError(f"only rewards of kind {' or '.join(USED_BY[name])} use it, not {kind}")
        return value


class RewardConfig(RewardOptions):
    """What makes a checkpoint a reward; saved beside its weights as reward_config.json.

    criteria: a tree of criteria, by name or a YAML file's path, or one criterion of it (`edit#keeping`), whose
    questions are asked in place of the instruction's (see `CriteriaReward`).
    criteria_average: what is averaged over the tree, the "margin" or the "probability".
    instruction_version: the instruction's version at training time. orders: "forward" asks once; "both" also asks with
    the pictures swapped and averages, which cancels a bias to either place (pairwise only). among: P("yes") is
    its share among the "answers", or in the whole "vocabulary", where one that would say something else has a small P
    for every picture; it learns among the answers. batch_size: questions looked at together when no gradient is kept.
    reasons: how many are sampled, at reason_temperature, before the answer; the probabilities are averaged.
    max_reason_tokens: longest reason, also of `explain`.
    """

    criteria: str | None = None
    criteria_average: Literal["margin", "probability"] = "margin"
    instruction_version: int = 1
    orders: Literal["forward", "both"] = "forward"
    among: Literal["answers", "vocabulary"] = "answers"
    batch_size: int = Field(default=1024, ge=1)
    reasons: int = Field(default=1, ge=1)
    reason_temperature: float = Field(default=1.0, ge=0)
    max_reason_tokens: int = Field(default=128, ge=1)

    @field_validator("criteria_average")
    @classmethod
    def _is_of_criteria(cls, value: str, info: Any) -> str:
        if info.data.get("criteria") is None and value != cls.model_fields["criteria_average"].default:
            raise ValueError("it is an average over criteria, and there are none (criteria)")
        return value

    @field_validator("reasons", "reason_temperature")
    @classmethod
    def _is_sampled(cls, value: Any, info: Any) -> Any:
        if info.data.get("reasoning") != "before" and value != cls.model_fields[info.field_name or ""].default:
            raise ValueError("reasons are sampled with reasoning 'before' only")
        if info.field_name == "reason_temperature" and value == 0 and info.data.get("reasons", 1) > 1:
            raise ValueError("at temperature 0 all reasons are the same: set reasons to 1")
        return value


class LossNormalizer(NamedTuple):
    """What a batch's loss is a mean over: its pairs, and the tokens of its reasons."""

    pairs: int
    tokens: int = 0


class Judge(Asking, ABC):
    """A reward model. A kind says what its margin is and how it is trained; the rest is written once, here.

    model: the module whose weights are trained.
    config: see `RewardConfig`.
    needs_reference: see `RewardModel`.
    name_or_path: what it was loaded from, as the caller named it.
    """

    needs_reference: bool
    model: Any
    config: RewardConfig
    name_or_path: str | None = None

    def __repr__(self) -> str:
        """Its kind, base, instruction (or tree of criteria) and where it is."""
        fields = {"kind": self.config.kind, "base": self.model.config.model_type}
        if self.config.criteria:
            fields["criteria"] = self.config.criteria
        elif self.config.kind in USED_BY["instruction"]:
            fields["instruction"] = self.config.instruction
        fields["name_or_path"] = self.name_or_path
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in fields.items())})"

    @functools.cached_property
    def instruction(self) -> Instruction:
        """Its own, as it stood when it was first asked: a run's words do not change under it.

        Raises InputError as `load_instruction` does.
        """
        return load_instruction(self.config.instruction)

    @abstractmethod
    def margin(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        """Margins [B], float32, always in the graph; each distinct tensor is encoded once."""

    @abstractmethod
    def loss(self, pairs: Sequence[Preference], normalizer: LossNormalizer | None = None) -> Float[Tensor, ""]:
        """The training loss on pairs, in the graph.

        normalizer: of the whole batch that these pairs are a part of. The losses of its parts then add up to its own.
        """

    def loss_normalizer(self, pairs: Sequence[Preference]) -> LossNormalizer:
        """What the loss on these pairs is a mean over."""
        return LossNormalizer(len(pairs))

    def split_by_tokens(self, pairs: Sequence[Preference]) -> list[Sequence[Preference]]:
        """The pairs in parts that are each read in one forward, as the model's token budget has it; here all at once.

        A training step goes back through one part's graph before it begins the next.
        """
        return [pairs]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a plain save_pretrained folder plus reward_config.json."""

    def __call__(self, questions: Sequence[Question]) -> Verdict:
        """Margins [B], with a graph where a question's pixels require one.

        Raises InputError for a question that this kind cannot answer, and RewardError where a margin is not finite.
        """
        if not questions:
            return Verdict(torch.zeros(0))
        questions = self.as_read(questions)  # here a question has the caller's number
        wants_graph = torch.is_grad_enabled() and any(
            pixels.requires_grad
            for q in questions
            for pixels in (q.prompt.image, q.candidate, q.reference)
            if pixels is not None
        )
        if wants_graph:
            margin = self.margin(questions)
        else:
            with torch.no_grad():
                margin = self._in_batches(questions)
        return checked(margin, questions)

    def as_read(self, questions: Sequence[Question]) -> list[Question]:
        """The questions with those frames of their videos that the judge reads; raises as `video_frames.as_read`."""
        return as_read(questions, self.config.frames, self.config.fps)

    def faults(self, questions: Iterable[Question]) -> Iterator[RewardDanceError | None]:
        """Of each question why it cannot be asked, or None; nothing is computed of its pictures but their size.

        So pixels may be blank ones: `torch.zeros(1, 1, 1, 1).expand(T, 3, H, W)` takes no memory.
        """
        checker: Any = getattr(self, "vlm", self)
        for question in questions:
            checker.is_checking = True
            try:
                self([question])
                fault = None
            except RewardDanceError as error:
                fault = error
            finally:
                checker.is_checking = False
            yield fault

    def explain(self, questions: Sequence[Question]) -> Verdict:
        """As calling the judge, without a graph, and with a reason for each verdict in the judge's own words.

        Raises InputError where this kind of reward gives none.
        """
        raise InputError(
            f"a {self.config.kind} reward gives no reasons.", "Ask a pairwise or a pointwise one, or leave out explain."
        )

    def _in_batches(self, questions: Sequence[Question]) -> Float[Tensor, " B"]:
        size = self.config.batch_size
        return torch.cat([self.margin(questions[start : start + size]) for start in range(0, len(questions), size)])

    def freeze(self: SomeJudge) -> SomeJudge:
        """Weights take no gradient any more: it is asked, and differentiated in pixels, but not trained."""
        self.model.requires_grad_(False).eval()
        return self

    def own_weights(self) -> dict[str, Tensor]:
        """Weights that the model's own save_pretrained leaves out, by their names in its state_dict; mostly none."""
        return {}

    def save_own_weights(self, folder: Path) -> None:
        """Write them, if any, to a file beside the model's."""
        if own_weights := self.own_weights():
            save_file({name: weight.detach().cpu() for name, weight in own_weights.items()}, folder / HEAD_FILE)
            let_others_read([folder / HEAD_FILE])

    def read_own_weights(self, folder: Path) -> dict[str, Tensor]:
        """What `save_own_weights` wrote. Raises InputError naming a file that is missing, broken or another model's."""
        own_weights, path = self.own_weights(), folder / HEAD_FILE
        if not own_weights:
            return {}
        return read_tensors(path, f"the head {path}", own_weights, "Restore its own or train the reward again.")

    def _save_config(self, folder: Path) -> None:
        unused = {name for name, kinds in USED_BY.items() if self.config.kind not in kinds} | {"compile"}
        content = self.config.model_dump(exclude=unused)
        if "instruction" in content and not is_ours(content["instruction"]):
            instruction = self.instruction.model_dump(exclude_defaults=True)
            text = yaml.safe_dump(instruction, sort_keys=False, allow_unicode=True)
            (folder / INSTRUCTION_FILE).write_text(text, encoding="utf-8")
            content["instruction"] = INSTRUCTION_FILE
        if content.get("criteria") and not is_ours(content["criteria"]):
            name, criterion = split_tree(content["criteria"])
            tree = load_tree(name).model_dump(exclude_defaults=True)
            text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
            (folder / CRITERIA_FILE).write_text(text, encoding="utf-8")
            content["criteria"] = f"{CRITERIA_FILE}#{criterion}" if criterion else CRITERIA_FILE
        (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def checked(margin: Float[Tensor, " B"], questions: Sequence[Question]) -> Verdict:
    """The margins as a Verdict. Raises RewardError naming the first question whose margin is not finite."""
    if not torch.isfinite(margin).all():  # the one moment at which a GPU is waited for
        number = int((~torch.isfinite(margin)).nonzero()[0])
        raise RewardError(
            f"the judge gave no finite margin for question {number} (prompt {questions[number].prompt.text!r}).",
            "Look at its picture for values that are not finite, and at the judge's weights and precision.",
        )
    return Verdict(margin)
