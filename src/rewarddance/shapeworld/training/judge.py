"""How the small judge base is made: an InternVL trained from scratch to know ShapeWorld, without any preference.

It learns to describe pictures, to say whether and how much each of two pictures shows what a prompt asks, what is wrong
with a picture, and which of two shows more objects. Which is better is what a reward model is trained for: a last stage
teaches it to be undecided about that.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from rewarddance.runtime.checkpoint import find_checkpoint
from rewarddance.shapeworld.scenes import CANVAS, COLOURS, SHAPES, sample_spec
from rewarddance.shapeworld.training.lessons import DEVIATION, MEAN, Lesson, normalised
from rewarddance.shapeworld.training.patch_heads import PatchHeads
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

VISION_STEPS = 650
"""Steps of 64 pictures that the eyes of a bundled base were made with."""
TOSSED, LAST_STEPS, LAST_RATE = 0.5, 300, 4e-4
"""The last stage: the share of tossed conversations, its steps and its learning rate."""
ADVERSARY = 1.0
"""Largest L2 distance by which a picture is moved against the model while it learns."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
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


class Size(NamedTuple):
    """Layers of the vision tower and of the language model, and the steps that a bundled base is made with."""

    vision_layers: int
    layers: int
    steps: int


SIZES = {"shapeworld-judge": Size(3, 5, steps=15_400), "shapeworld-judge-small": Size(2, 2, steps=3_000)}
"""The bundled judge bases by name: 1.4M and 0.7M parameters. The small one begins as the large one's lower layers."""


def build_judge_base(
    seed: int = 0, image_tokens: int = 16, size: str = "shapeworld-judge", more_words: Sequence[str] = ()
) -> tuple[Any, Any]:
    """The model with random weights, of a size in `SIZES`, and its tokenizer. 16 tokens a picture of 32x32 pixels.

    more_words: texts whose words the tokenizer knows besides those about pictures.
    """
    torch.manual_seed(seed)
    deep = SIZES[size]
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
    config = InternVLConfig(
        vision_config={
            "hidden_size": 96,
            "num_hidden_layers": deep.vision_layers,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "attention_bias": True,
            "image_size": (CANVAS, CANVAS),
            "patch_size": (4, 4),
            "layer_scale_init_value": 1.0,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": deep.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.vocab["<IMG_CONTEXT>"],
        image_seq_length=image_tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embeddings.normal_(0, 0.2)
    return model, tokenizer


def take_lower_layers(model: Any, source: Path) -> None:
    """Give `model` the weights of the base in folder `source`, which has as many layers or more."""
    theirs = InternVLForConditionalGeneration.from_pretrained(source, dtype=torch.float32).state_dict()
    model.load_state_dict({name: theirs[name] for name in model.state_dict()})


def save_judge_base(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the standard folder: weights, tokenizer with chat template, image-processor and processor configs."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 1,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(DEVIATION),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": CANVAS, "width": CANVAS},
    }
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": model.config.image_seq_length}
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2) + "\n")
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


class Grounding:
    """Teaches the picture tokens to point at words: under the (tied) word embeddings each names what its patches show.

    A picture token then reads like the words it stands for, so that what the language model learns of prompts holds
    for pictures too. Half way up the language model, each also learns whether the prompt asks for its object.
    """

    def __init__(self, model: Any, lesson: Lesson) -> None:
        self.model = model
        self.middle = (model.config.text_config.num_hidden_layers + 1) // 2
        kinds = (SHAPES, COLOURS, ("small", "large"))
        self.probe = torch.nn.Linear(model.config.text_config.hidden_size, 1)
        self.words = [torch.tensor([lesson.ids(f" {word}")[0] for word in kind]) for kind in kinds]

    def see(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Patch features [N, 64, D] of the tower, and picture tokens [N, 16, E] as the language model gets them."""
        seen = self.model.model.get_image_features(
            pixel_values=pixel_values,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            return_dict=True,
        )
        return seen.last_hidden_state[:, 1:], seen.pooler_output

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """tokens [N, 16, E], labels [N, 64, 4]: a token stands for the 2x2 patches that were shuffled into it."""
        table = self.model.get_input_embeddings().weight
        by_token, painted = self.by_token(labels)
        wide = tokens.unsqueeze(2).expand(-1, -1, 4, -1)[painted]
        losses = [
            torch.nn.functional.cross_entropy(wide @ table[words].T, target)
            for words, target in zip(self.words, by_token[painted].T[:3], strict=True)
        ]
        return torch.stack(losses).sum()

    def by_token(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Patch labels [N, 64, 4] grouped as the model groups patches into tokens, [N, 16, 4, 4], and where painted."""
        grouped = self.model.model.pixel_shuffle(labels.view(-1, 8, 8, 4).float(), 0.5).long().view(-1, 16, 4, 4)
        return grouped, grouped[..., 0] > -1

    def asked_loss(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Does a picture token of a middle layer [N, 16, E] know whether its object is one that the prompt asks for?

        Returns the cross-entropy of a probe that is dropped at the end, and the share that it has right.
        """
        grouped, painted = self.by_token(labels)
        said = self.probe(hidden).expand(-1, -1, 4)[painted]
        asked = grouped[..., 3][painted].float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(said, asked)
        return loss, ((said > 0) == (asked > 0)).float().mean().item()


def train_vision_tower(
    model: Any,
    eyes: PatchHeads,
    lesson: Lesson,
    steps: int,
    say: Callable[[str], None],
    learning_rate: float = 2e-3,
    batch: int = 64,
) -> None:
    """First the eyes alone: patches are named, and picture tokens point at words."""
    grounding = Grounding(model, lesson)
    weights = [*model.parameters(), *eyes.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    right = 0.0
    for step in range(1, steps + 1):
        rate = learning_rate * min(1.0, step / 100)
        for group in optimiser.param_groups:
            group["lr"] = rate
        drawn = [lesson.picture(sample_spec(lesson.rng)) for _ in range(batch)]
        labels = torch.from_numpy(np.stack([one[4] for one in drawn]))
        patches, tokens = grounding.see(normalised(np.stack([one[0] for one in drawn])))
        named = grounding.loss(tokens, labels)
        optimiser.zero_grad()
        (eyes.loss(patches, labels) + named).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        right = 0.98 * right + 0.02 * eyes.accuracy(patches, labels) if step > 1 else 0.0
        if step % 100 == 0:
            say(f"vision step {step} words {named.item():.4f} patches {right:.3f}")


def attacked(pixel_values: Tensor, size: float) -> Tensor:
    """Each picture [N, 3, H, W] moved by `size` (L2, of pixels in [0, 1]) along the gradient that it carries."""
    assert pixel_values.grad is not None, "no backward pass has gone through these pictures"
    deviation = torch.tensor(DEVIATION)[:, None, None]
    gradient = pixel_values.grad / deviation  # by pixels in [0, 1]
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (pixel_values + size * gradient / length / deviation).detach()


def train_judge_base(
    model: Any,
    eyes: PatchHeads,
    lesson: Lesson,
    steps: int,
    say: Callable[[str], None],
    snapshot: Callable[[float], None] = lambda done: None,
    learning_rate: float = 2e-3,
    batch: int = 32,
) -> None:
    """Cross-entropy on the answers of the lesson's conversations; the eyes go on learning beside it.

    Every batch is learned twice, the second time with its pictures moved a little against the model, along the
    gradient that the first pass leaves on them ("free" adversarial training, Shafahi et al. 1904.12843): the gradient
    of a model that withstands this points at what is seen and not at pixels, and ReFL follows that gradient.
    Batches are padded on the right: under causal attention no label sees the padding.
    """
    grounding = Grounding(model, lesson)
    yes, no = lesson.ids("yes")[0], lesson.ids("no")[0]
    weights = [*model.parameters(), *eyes.parameters(), *grounding.probe.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    running, right = 0.0, 0.5
    for step in range(1, steps + 1):
        done = step / steps
        rate = learning_rate * min(1.0, step / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        if step % 2:
            input_ids, labels, pixel_values, patch_kinds = lesson.batch(batch)
            pixel_values.requires_grad_(True)
        else:  # the same pictures again, each moved against the last step's answers
            pixel_values = attacked(pixel_values, ADVERSARY * lesson.rng.random())
        patches, tokens = grounding.see(pixel_values)
        embeds = model.get_input_embeddings()(input_ids)
        here = (input_ids == model.config.image_token_id).unsqueeze(-1)
        embeds = embeds.masked_scatter(here, tokens.flatten(0, 1))
        read = model.model.language_model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True)
        hidden, half_way = read.last_hidden_state, read.hidden_states[grounding.middle]
        known, knows = grounding.asked_loss(half_way[here.squeeze(-1)].view_as(tokens), patch_kinds)
        asked = labels != -100
        logits, targets = model.lm_head(hidden[asked]), labels[asked]
        loss = torch.nn.functional.cross_entropy(logits, targets)
        optimiser.zero_grad()
        dense = eyes.loss(patches, patch_kinds) + grounding.loss(tokens, patch_kinds)
        (loss + 0.2 * dense + 0.5 * known).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        with torch.no_grad():
            binary = (targets == yes) | (targets == no)
            share = ((logits[binary][:, yes] > logits[binary][:, no]) == (targets[binary] == yes)).float().mean().item()
        keep = 0.99 if step > 1 else 0.0
        running, right = keep * running + (1 - keep) * loss.item(), keep * right + (1 - keep) * share
        if step % 50 == 0:
            sight = eyes.accuracy(patches, patch_kinds)
            say(f"judge step {step} loss {running:.4f} yes/no {right:.3f} patches {sight:.3f} asked {knows:.3f}")
        if step % math.ceil(steps / 10) == 0 or step == steps:
            snapshot(done)


def make_judge_base(
    folder: Path,
    vision_steps: int = VISION_STEPS,
    steps: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    size: str = "shapeworld-judge",
    last_steps: int = LAST_STEPS,
    begin: Path | None = None,
) -> None:
    """Make a judge base and save it as a standard transformers folder; ten snapshots go beside it.

    steps: of 32 conversations; None is what the bundled base of this size was made with. A size below the largest takes
    its eyes and lower layers from the base beside it, or else from the bundled one, and is trained on from there.
    last_steps: of the last stage. begin: the folder of a base of this size, which gets the last stage alone.
    """
    model, tokenizer = build_judge_base(seed, size=size)
    tokens, eyes = model.config.image_seq_length, PatchHeads(model.config.vision_config.hidden_size)
    last = Lesson(tokenizer, tokens, seed + 1, TOSSED)
    if begin is not None:
        take_lower_layers(model, begin)
        train_judge_base(model, eyes, last, last_steps, say, learning_rate=LAST_RATE)
        save_judge_base(model.to(torch.float16), tokenizer, folder)
        return
    if size != (largest := next(iter(SIZES))):
        beside = folder.with_name(largest)
        take_lower_layers(model, find_checkpoint(str(beside) if beside.is_dir() else largest))

    def snapshot(done: float) -> None:
        save_judge_base(model, tokenizer, folder.with_name(f"{folder.name}-snapshots") / f"{done:.2f}")

    lesson = Lesson(tokenizer, tokens, seed)
    if size == next(iter(SIZES)):
        train_vision_tower(model, eyes, lesson, vision_steps, say)
    train_judge_base(model, eyes, lesson, steps or SIZES[size].steps, say, snapshot)
    train_judge_base(model, eyes, last, last_steps, say, learning_rate=LAST_RATE)
    save_judge_base(model.to(torch.float16), tokenizer, folder)
