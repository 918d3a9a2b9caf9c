"""How the small judge base is made: an InternVL trained from scratch to know ShapeWorld, without any preference.

It learns to describe pictures, to say whether and how much each of two pictures shows what a prompt asks, what is wrong
with a picture, and which of two shows more objects. Which is better is what a reward model is trained for: a last stage
teaches it to be undecided about that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import InternVLConfig, InternVLForConditionalGeneration

from rewarddance.runtime.checkpoint import BUNDLED, find_checkpoint
from rewarddance.shapeworld.scenes import COLOURS, SHAPES, sample_spec
from rewarddance.shapeworld.training.conversations import (
    DEVIATION,
    Conversations,
    PictureConversations,
    normalised,
)
from rewarddance.shapeworld.training.loop import Schedule, TrainingLoop, cosine, snapshots_of
from rewarddance.shapeworld.training.patch_heads import PatchHeads
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

VISION_STEPS, RATE = 650, 2e-3
"""Steps of 64 pictures that the vision tower of a bundled base was made with; the learning rate of all but the last
stage."""
COIN_SHARE, LAST_STEPS, LAST_RATE = 0.5, 300, 4e-4
"""The last stage: the share of conversations that a coin answers, its steps and its learning rate."""
ADVERSARY = 1.0
"""Largest L2 distance by which a picture is moved against the model while it learns."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
CHAT_TEMPLATE = (BUNDLED / "shapeworld-judge" / "chat_template.jinja").read_text()
_WORDS = """
user assistant system yes no Yes No all most half little none nothing blur noise smear clutter Prompt: Reference:
Candidate: Picture: Criteria: Criterion: Does the candidate match the prompt? Does the reference match the prompt? How much
of the prompt does the candidate show? Describe the candidate. Describe the reference. What is wrong with the candidate? What is
wrong with the reference? Does the candidate show more objects than the reference? Is the candidate better than the
reference? Answer yes or no. Then give the reason. Think first, then answer. Is the picture of high quality? Does the picture meet a
high standard? alignment with the prompt, visual quality. Judge by: every object, count, colour, size and position that the
prompt names is there, and nothing else; clean and sharp, without artefacts. because both neither object stands where should too many
stray paint that is no object not the The A first second task text to image picture video frame frames Compare two pictures
made for one prompt. You see
"""  # noqa: E501


STEPS = {"shapeworld-judge": 15_400, "shapeworld-judge-small": 3_000}
"""The bundled judge bases by name (1.4M and 0.7M parameters), and the steps that each was made with. The small one
begins as the large one's lower layers; their configurations say the architectures."""
LARGEST = "shapeworld-judge"
Figures = dict[str, Tensor | float]
"""What is logged of a step."""


def build_judge_base(
    seed: int = 0, size: str = LARGEST, more_words: Sequence[str] = (), config: Any = None
) -> tuple[Any, Any]:
    """The model with random weights, of a size in `STEPS`, and its tokenizer. 16 tokens a picture of 32x32 pixels.

    more_words: texts whose words the tokenizer knows besides those about pictures. config: another architecture.
    """
    torch.manual_seed(seed)
    corpus = [*prompt_corpus(), *_WORDS.split("\n"), " " + _WORDS.replace("\n", " "), *_WORDS.split()]
    corpus += [f" {word}" for word in _WORDS.split()] + ["s, a, and. three, two, four; one" + "\n" * 8]
    corpus += more_words
    tokenizer = train_tokenizer(
        corpus,
        SPECIAL,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        padding_side="left",
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = config or InternVLConfig.from_pretrained(BUNDLED / size)
    config.text_config.vocab_size = len(tokenizer)
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embeddings.normal_(0, 0.2)
    return model, tokenizer


def take_lower_layers(model: Any, source: Path) -> None:
    """Give `model` the weights of the base in folder `source`, which has as many layers or more."""
    weights = InternVLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})


def save_judge_base(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the standard folder: weights, tokenizer with chat template, image-processor and processor configs."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("preprocessor_config.json", "processor_config.json"):
        shutil.copy(BUNDLED / LARGEST / name, folder)


class Grounding:
    """Dense supervision of a judge's picture tokens, with heads that are dropped at the end.

    The tokens point at words: under the (tied) word embeddings each names what its patches show. A picture token then
    reads like the words it stands for, so that what the language model learns of prompts holds for pictures too. Half
    way up the language model, each also learns whether the prompt asks for its object.
    """

    def __init__(self, model: Any, conversations: Conversations, heads: PatchHeads) -> None:
        self.model, self.heads = model, heads
        self.middle = (model.config.text_config.num_hidden_layers + 1) // 2
        vocabularies = (SHAPES, COLOURS, ("small", "large"))
        self.probe = torch.nn.Linear(model.config.text_config.hidden_size, 1)
        self.words = [torch.tensor([conversations.ids(f" {word}")[0] for word in words]) for words in vocabularies]
        self.weights = [*model.parameters(), *heads.parameters(), *self.probe.parameters()]

    def loss(self, features: Any, labels: Tensor) -> Tensor:
        """Cross-entropy of what the patches show, read from the vision tower and from the picture tokens.

        features: what `picture_features` returns. labels [N, 64, 4]: a token stands for the 2x2 patches that were
        shuffled into it.
        """
        table = self.model.get_input_embeddings().weight
        by_token, painted = self.by_token(labels)
        tokens = features.pooler_output.unsqueeze(2).expand(-1, -1, 4, -1)[painted]
        losses = [
            F.cross_entropy((tokens @ table[words].T).float(), target)
            for words, target in zip(self.words, by_token[painted].T[:3], strict=True)
        ]
        return self.heads.loss(patch_features(features), labels) + torch.stack(losses).sum()

    def by_token(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch labels [N, 64, 4] grouped as the model groups patches into tokens, [N, 16, 4, 4], and where painted."""
        grouped = self.model.model.pixel_shuffle(labels.view(-1, 8, 8, 4).float(), 0.5).long().view(-1, 16, 4, 4)
        return grouped, grouped[..., 0] > -1

    def prompted_loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of whether the object of a token, of a middle layer [N, 16, E], is one of the prompt's."""
        grouped, painted = self.by_token(labels)
        logits = self.probe(hidden).float().expand(-1, -1, 4)[painted]
        return F.binary_cross_entropy_with_logits(logits, grouped[..., 3][painted].float())


def picture_features(model: Any, pixel_values: Tensor) -> Any:
    """The vision tower's features (`last_hidden_state`), and the picture tokens [N, 16, E] (`pooler_output`)."""
    return model.model.get_image_features(
        pixel_values=pixel_values,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        return_dict=True,
    )


def patch_features(features: Any) -> Tensor:
    """The vision tower's features of the patches, [N, 64, D]."""
    return features.last_hidden_state[:, 1:]


def train_vision_tower(
    grounding: Grounding, conversations: PictureConversations, steps: int, log: Callable[[str], None]
) -> None:
    """First the vision tower alone, on 64 pictures a step: patches are named, and picture tokens point at words."""
    rng, heads = conversations.rng, grounding.heads
    loop = TrainingLoop(
        "vision",
        grounding.weights,
        steps,
        rate=lambda step, steps: RATE * min(1.0, step / 100),
        weight_decay=0.02,
        log=log,
    )
    for _ in loop:
        pictures = [conversations.picture(sample_spec(rng)) for _ in range(64)]
        labels = torch.from_numpy(np.stack([picture.patches for picture in pictures]))
        pixel_values = normalised(np.stack([picture.pixels for picture in pictures]))
        features = picture_features(grounding.model, pixel_values)
        loss = grounding.loss(features, labels)
        loop.learn(loss, loss=loss, patches=heads.accuracy(patch_features(features), labels))


def attacked(pixel_values: Tensor, size: float) -> Tensor:
    """Each picture [N, 3, H, W] moved by `size` (L2, of pixels in [0, 1]) along the gradient that it carries."""
    assert pixel_values.grad is not None, "no backward pass has gone through these pictures"
    deviation = torch.tensor(DEVIATION)[:, None, None]
    gradient = pixel_values.grad / deviation  # with respect to pixels in [0, 1]
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (pixel_values + size * gradient / length / deviation).detach()


def train_judge(
    model: Any,
    conversations: Conversations,
    steps: int,
    *,
    weights: list[Any],
    rate: Schedule,
    batch: int,
    log: Callable[[str], None],
    grounding: Grounding | None = None,
    adversarial: bool = True,
    snapshot: Callable[[float], None] | None = None,
    snapshots: int = 10,
) -> None:
    """Cross-entropy on the answers of the conversations, and dense supervision beside it.

    weights: of the model and of the heads, or groups of them (see `TrainingLoop`).
    adversarial: every batch is learned twice, the second time with its pictures moved a little against the model, along
    the gradient that the first pass leaves on them ("free" adversarial training, Shafahi et al. 1904.12843). The
    gradient of a model that withstands this points at what is seen and not at pixels, and ReFL follows that gradient.
    Otherwise the vision tower stays as it is.
    """
    answers = conversations.ids("yes")[0], conversations.ids("no")[0]
    loop = TrainingLoop(
        "judge", weights, steps, rate=rate, weight_decay=0.02, log=log, snapshot=snapshot, snapshots=snapshots
    )
    for step in loop:
        if step % 2 or not adversarial:
            input_ids, labels, pixel_values, patches = conversations.batch(batch)
            pixel_values.requires_grad_(adversarial)
        else:  # the same pictures again, each moved against the last step's answers
            pixel_values = attacked(pixel_values, ADVERSARY * conversations.rng.random())
        with torch.set_grad_enabled(adversarial):
            features = picture_features(model, pixel_values)
        objective, figures = answer_objective(model, features, input_ids, labels, patches, answers, grounding)
        loop.learn(objective, **figures)


def answer_objective(
    model: Any,
    features: Any,
    input_ids: Tensor,
    labels: Tensor,
    patches: Tensor,
    yes_no: tuple[int, int],
    grounding: Grounding | None,
) -> tuple[Tensor, Figures]:
    """What a judge base minimises on a batch of conversations (see `Conversations.batch`), and figures for the log.

    features: of its pictures (see `picture_features`). yes_no: the two tokens. Figures: the cross-entropy of the
    answers, and the share of yes-or-no answers that are right.
    """
    is_picture = input_ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(input_ids)
    pictures = features.pooler_output.flatten(0, 1).to(embeds.dtype)
    embeds = embeds.masked_scatter(is_picture.unsqueeze(-1), pictures)
    output = model.model.language_model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
    has_label, (yes, no) = labels != -100, yes_no
    logits, targets = model.lm_head(output.last_hidden_state[has_label]).float(), labels[has_label]
    loss = objective = F.cross_entropy(logits, targets)
    if grounding:
        at_pictures = output.hidden_states[grounding.middle][is_picture].view_as(features.pooler_output)
        prompted = grounding.prompted_loss(at_pictures, patches)
        objective = loss + 0.2 * grounding.loss(features, patches) + 0.5 * prompted
    binary = (targets == yes) | (targets == no)
    correct = (logits[binary][:, yes] > logits[binary][:, no]) == (targets[binary] == yes)
    return objective, {"loss": loss, "yes_no": correct.float().mean()}


def make_judge_base(
    folder: Path,
    *,
    vision_steps: int = VISION_STEPS,
    steps: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = print,
    size: str = LARGEST,
    last_steps: int = LAST_STEPS,
    begin: Path | None = None,
) -> None:
    """Make a judge base and save it as a standard transformers folder; ten snapshots go beside it.

    steps: of 32 conversations; None is what the bundled base of this size was made with. A size below the largest takes
    its vision tower and lower layers from the base beside it, or else from the bundled one, and is trained on from
    there. last_steps: of the last stage. begin: the folder of a base of this size, which gets the last stage alone.
    """
    model, tokenizer = build_judge_base(seed, size=size)
    tokens, heads = model.config.image_seq_length, PatchHeads(model.config.vision_config.hidden_size)
    if begin is not None:
        take_lower_layers(model, begin)
    elif size != LARGEST:
        largest = folder.with_name(LARGEST)
        take_lower_layers(model, find_checkpoint(str(largest) if largest.is_dir() else LARGEST))
    conversations = PictureConversations(tokenizer, tokens, seed)
    if begin is None and size == LARGEST:
        train_vision_tower(Grounding(model, conversations, heads), conversations, vision_steps, log)
    stages = [(conversations, steps or STEPS[size], RATE)] if begin is None else []
    stages.append((PictureConversations(tokenizer, tokens, seed + 1, COIN_SHARE), last_steps, LAST_RATE))
    snapshot = snapshots_of(folder, partial(save_judge_base, model, tokenizer))
    for conversations, stage_steps, learning_rate in stages:
        grounding = Grounding(model, conversations, heads)
        train_judge(
            model,
            conversations,
            stage_steps,
            weights=grounding.weights,
            rate=cosine(learning_rate, 200),
            batch=32,
            log=log,
            grounding=grounding,
            snapshot=snapshot if learning_rate == RATE else None,
        )
    save_judge_base(model.to(torch.float16), tokenizer, folder)
