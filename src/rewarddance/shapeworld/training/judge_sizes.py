"""Judge bases of five sizes that saw the same lessons: what a study of reward scaling begins with.

All begin with what the bundled judge knows: smaller ones with its lower layers, a larger one as the same function with
twice the width (`growing.widened`), for none learns to see from nothing in less than hours. Then all are trained at
once, each batch of conversations being drawn once and learned by every size in turn. While they learn, a fixed test
says what each size knows after how many conversations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import InternVLConfig

from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import BUNDLED, write_text_atomically
from rewarddance.shapeworld.training.conversations import Conversations, PictureConversations
from rewarddance.shapeworld.training.exam import Exam
from rewarddance.shapeworld.training.growing import widened
from rewarddance.shapeworld.training.judge import (
    ADVERSARY,
    COIN_SHARE,
    LARGEST,
    LAST_RATE,
    Grounding,
    answer_objective,
    attacked,
    build_judge_base,
    picture_features,
    save_judge_base,
    take_lower_layers,
)
from rewarddance.shapeworld.training.loop import Schedule, TrainingFile, TrainingLoop, cosine, half_layers
from rewarddance.shapeworld.training.patch_heads import PatchHeads

BATCH, RATE = 32, 1.2e-3
SAVE_EVERY = 160
"""Steps between two checkpoints: a multiple of 8, after which no drawn conversation is left over."""
SHARES = (0.1, 0.3, 0.6, 1.0)
"""The shares of the main stage after which the sizes are tested."""


class JudgeSize(NamedTuple):
    """How a size differs from the bundled judge.

    layers, vision_layers: how many it has of the lowest; width: how many times as wide it is; rate: its learning rate,
    as a share.
    """

    layers: int
    vision_layers: int
    width: int = 1
    rate: float = 1.0

    def build(self, seed: int) -> tuple[Any, Any]:
        """The model as it begins, and its tokenizer."""
        config: Any = InternVLConfig.from_pretrained(BUNDLED / LARGEST)
        text, vision = config.text_config.to_dict(), config.vision_config.to_dict()
        text |= {"num_hidden_layers": self.layers, "layer_types": None, "max_window_layers": self.layers}
        vision |= {"num_hidden_layers": self.vision_layers}
        config = InternVLConfig.from_dict(config.to_dict() | {"text_config": text, "vision_config": vision})
        model, tokenizer = build_judge_base(seed, config=config)
        take_lower_layers(model, BUNDLED / LARGEST)
        return (model if self.width == 1 else widened(model, self.width, seed=seed)), tokenizer


SIZES = {
    "shapeworld-judge-0.5m": JudgeSize(1, 2),
    "shapeworld-judge-0.7m": JudgeSize(2, 2),
    "shapeworld-judge-1m": JudgeSize(3, 3),
    "shapeworld-judge-1.4m": JudgeSize(5, 3),
    "shapeworld-judge-5m": JudgeSize(5, 3, width=2, rate=0.6),
}
"""By the number of their parameters."""


class Stage(NamedTuple):
    """A part of the training. coin_share: see `Conversations`; rate: before each size's share."""

    name: str
    steps: int
    seed: int
    coin_share: float
    rate: Schedule


class _Learner:
    """A judge base while it is trained, through all stages."""

    def __init__(self, size: JudgeSize, seed: int) -> None:
        self.size = size
        self.model, self.tokenizer = size.build(seed)
        self.heads = PatchHeads(self.model.config.vision_config.hidden_size)
        self.grounding: Grounding
        self.loop: TrainingLoop
        self.pixels: Tensor | None = None

    def begin(self, stage: Stage, conversations: Conversations, log: Callable[[str], None]) -> None:
        self.grounding = Grounding(self.model, conversations, self.heads)
        self.loop = TrainingLoop(
            stage.name,
            self.grounding.weights,
            stage.steps,
            rate=lambda step, steps: self.size.rate * stage.rate(step, steps),
            weight_decay=0.02,
            log=log,
        )

    def learn(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], answers: tuple[int, int], attack: float) -> None:
        """One step. attack: by how much the pictures of the last step are moved, or 0 for pictures as they are."""
        input_ids, labels, pixel_values, patches = batch
        if attack:
            assert self.pixels is not None, "there was no step before this one"
            pixel_values = attacked(self.pixels, attack)
        else:
            pixel_values = self.pixels = pixel_values.clone().requires_grad_()
        with half_layers():
            features = picture_features(self.model, pixel_values)
            objective, figures = answer_objective(
                self.model, features, input_ids, labels, patches, answers, self.grounding
            )
        self.loop.learn(objective, **figures)


def make_judge_sizes(
    folder: Path,
    *,
    sizes: Sequence[str] = tuple(SIZES),
    steps: int = 1_600,
    last_steps: int = 160,
    seed: int = 0,
    log: Callable[[str], None] = print,
) -> None:
    """Make judge bases of some of the `SIZES` in `folder`, one standard transformers folder each; goes on after a kill.

    steps: of 32 conversations, every second batch being the one before it, moved against the model (see
    `judge.train_judge`); last_steps: of the stage that teaches to be undecided. Beside the folders is `curve.jsonl`:
    what each size knew of `Exam` after how many conversations. Raises InputError naming a size that is not known, and a
    folder that holds another training.
    """
    if unknown := [name for name in sizes if name not in SIZES]:
        raise InputError(f"there is no judge size named {unknown[0]!r}.", f"Say some of {', '.join(SIZES)}.")
    stages = [
        Stage("judge", steps, seed + 2, 0.0, cosine(RATE, 100)),
        Stage("last", last_steps, seed + 3, COIN_SHARE, cosine(LAST_RATE, 20)),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    _Training(folder, {name: _Learner(SIZES[name], seed) for name in sizes}, stages, seed, log).run()


class _Training:
    """All stages of all sizes, and the file that they go on from."""

    def __init__(
        self, folder: Path, learners: dict[str, _Learner], stages: list[Stage], seed: int, log: Callable[[str], None]
    ) -> None:
        self.folder, self.learners, self.stages, self.log = folder, learners, stages, log
        first = next(iter(learners.values()))
        self.tokenizer, self.tokens = first.tokenizer, first.model.config.image_seq_length
        self.exam = Exam(self.tokenizer, self.tokens, seed)
        self.plan = {"sizes": list(learners), "steps": [stage.steps for stage in stages], "seed": seed}
        self.file = TrainingFile(folder / "training.pt", self.plan)
        self.conversations: PictureConversations

    def run(self) -> None:
        saved = self.file.saved()
        if saved is None:
            self._test("begin", 0)
        for index, stage in enumerate(self.stages):
            if saved and index < saved["stage"]:
                continue
            self.conversations = PictureConversations(self.tokenizer, self.tokens, stage.seed, stage.coin_share)
            for name, learner in self.learners.items():
                learner.begin(stage, self.conversations, lambda line, name=name: self.log(f"{name} {line}"))
            if saved and index == saved["stage"]:
                self._restore(saved)
            self._train(index, stage)
        self._test("last", self.stages[-1].steps)
        for name, learner in self.learners.items():
            save_judge_base(learner.model.to(torch.float16), self.tokenizer, self.folder / name)
        self.file.remove()

    def _train(self, index: int, stage: Stage) -> None:
        answers = self.conversations.ids("yes")[0], self.conversations.ids("no")[0]
        tests = {max(1, round(share * stage.steps)) for share in SHARES} if stage.name == "judge" else set()
        batch: Any = None
        for steps in zip(*(learner.loop for learner in self.learners.values()), strict=True):
            step, attack = steps[0], 0.0
            if step % 2:
                batch = self.conversations.batch(BATCH)
            else:
                attack = ADVERSARY * self.conversations.rng.random()
            for learner in self.learners.values():
                learner.learn(batch, answers, attack)
                learner.loop.done = step
            if step in tests:
                self._test(stage.name, step)
            if step % SAVE_EVERY == 0 and step < stage.steps:
                self._save(index)

    def _test(self, stage: str, step: int) -> None:
        """Add a row for each size to `curve.jsonl`, once."""
        path = self.folder / "curve.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        for name, learner in self.learners.items():
            key = {"size": name, "stage": stage, "step": step}
            if any(all(row[field] == value for field, value in key.items()) for row in rows):
                continue
            parameters = sum(weight.numel() for weight in learner.model.parameters())
            seen = {"conversations": BATCH * ((step + 1) // 2) if stage == "judge" else 0}
            with torch.no_grad(), half_layers():
                figures = self.exam.figures(learner.model)
            lines.append(json.dumps({**key, "parameters": parameters, **seen, **figures}))
            write_text_atomically(path, "\n".join(lines) + "\n")

    def _save(self, index: int) -> None:
        assert not self.conversations.batches, "conversations that were drawn would be lost"
        self.file.save(
            stage=index,
            rng=self.conversations.rng.bit_generator.state,
            torch_rng=torch.get_rng_state(),
            learners={name: learner.loop.state_dict() for name, learner in self.learners.items()},
        )

    def _restore(self, saved: dict[str, Any]) -> None:
        for name, learner in self.learners.items():
            learner.loop.load_state_dict(saved["learners"][name])
        self.conversations.rng.bit_generator.state = saved["rng"]
        torch.set_rng_state(saved["torch_rng"])
