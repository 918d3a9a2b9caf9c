"""How the small CLIP base is made: a CLIPModel trained from scratch on ShapeWorld's scenes and their captions.

Every caption stands in the batch with a near miss of it, and both are drawn: what tells the two apart (a count, a
colour, who is left of whom) is what it must learn. It never sees a preference.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import CANVAS, PREFIXES, Scene, Spec, holds, near_miss, sample_scene, sample_spec
from rewarddance.shapeworld.training.patch_heads import PatchHeads, patch_labels
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own."""
PATCH, TEXT_LENGTH = 4, 64
STEPS, PAIRS = 3_700, 32
"""Steps, and pairs of a caption and its near miss in each, that the base is made with."""
START, END = "<|startoftext|>", "<|endoftext|>"


def build_clip_base(seed: int = 0) -> tuple[Any, Any]:
    """The model with random weights (0.7M parameters) and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer: Any = train_tokenizer(
        prompt_corpus(),
        [START, END],
        bos=START,
        eos=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        padding_side="right",
        model_max_length=TEXT_LENGTH,
    )
    tower = {"hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 4, "projection_dim": 96}
    config = CLIPConfig(
        vision_config=tower | {"num_hidden_layers": 4, "image_size": CANVAS, "patch_size": PATCH},
        text_config=tower
        | {
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=96,
    )
    model = CLIPModel(config)
    return model, tokenizer


def save_clip_base(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the standard folder: weights, tokenizer and image-processor config."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": CANVAS},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": CANVAS, "width": CANVAS},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(DEVIATION),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2) + "\n")


def shows(scene: Scene, spec: Spec) -> bool:
    """Does the scene show exactly what a caption says: every object that it names, placed so, and no other?"""
    if len(scene) != spec.total:
        return False
    if len(spec.objects) == 1:
        return all(map(spec.objects[0].fits, scene))
    first, second = spec.objects
    numbers = range(len(scene))
    for chosen in itertools.combinations(numbers, first.count):
        ours, others = [scene[i] for i in chosen], [scene[i] for i in numbers if i not in chosen]
        fits = all(map(first.fits, ours)) and all(map(second.fits, others))
        if fits and (
            not spec.relation
            or all(holds(spec.relation, a.centre, b.centre) for a, b in itertools.product(ours, others))
        ):
            return True
    return False


class Captioned(NamedTuple):
    """N pictures and their captions; 2k and 2k + 1 are near misses of each other.

    captions: N texts. pixel_values [N, 3, H, W], normalised. true [N, N]: does picture (row) show caption (column)?
    patches [N, 64, 4]: see `patch_labels`.
    """

    captions: list[str]
    pixel_values: Tensor
    true: Tensor
    patches: Tensor


def captioned_batch(pairs: int, rng: np.random.Generator) -> Captioned:
    """`pairs` captions and their near misses, each drawn; some by another hand, some with a light defect."""
    specs = [spec for _ in range(pairs) for spec in _with_near_miss(rng)]
    scenes = [sample_scene(spec, rng) for spec in specs]
    pictures = []
    for scene in scenes:
        picture = render(scene, "sketch" if rng.random() < 0.15 else "flat", rng)
        if rng.random() < 0.25:
            picture = spoil(picture, DEFECTS[int(rng.integers(len(DEFECTS)))], float(rng.uniform(0.1, 0.45)), rng)
        grain = rng.normal(0, rng.uniform(0, 0.05), picture.shape)
        pictures.append(np.clip(picture + grain, 0, 1).astype(np.float32))
    captions = [PREFIXES[int(rng.integers(len(PREFIXES)))] + spec.text for spec in specs]
    true = torch.tensor([[shows(scene, spec) for spec in specs] for scene in scenes])
    patches = torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes]))
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return Captioned(captions, (to_pixels(pictures)[:, 0] - mean) / deviation, true, patches)


def _with_near_miss(rng: np.random.Generator) -> Sequence[Spec]:
    spec = sample_spec(rng)
    if len(spec.objects) == 1 and rng.random() < 0.7:  # one object is soon learned, two and their bindings are not
        spec = sample_spec(rng)
    return spec, near_miss(spec, rng)


def contrastive_loss(logits: Float[Tensor, "N N"], true: Bool[Tensor, "N N"]) -> Float[Tensor, ""]:
    """The mean of both cross-entropies: each picture picks its own caption, each caption its own picture.

    logits: scaled cosines, picture by caption. true: pairs that match; those off the diagonal are no negatives and are
    left out. Source: CLIP (2103.00020); leaving out what also matches is ours.
    """
    own = torch.arange(len(logits), device=logits.device)
    also = true & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(also, -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train_clip_base(
    model: Any,
    tokenizer: Any,
    steps: int,
    seed: int,
    say: Callable[[str], None],
    snapshot: Callable[[float], None] = lambda done: None,
    learning_rate: float = 1e-3,
    pairs: int = PAIRS,
) -> None:
    """Contrastive loss on captioned scenes; heads that are dropped at the end name what each patch shows.

    `say` is told every 100 steps how often a picture is nearer to its caption than to the near miss.
    """
    rng = np.random.default_rng([seed, 11])
    eyes = PatchHeads(model.config.vision_config.hidden_size)
    weights = [*model.parameters(), *eyes.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
    model.train()
    running, right = 0.0, 0.5
    for step in range(1, steps + 1):
        done = step / steps
        rate = learning_rate * min(1.0, step / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = captioned_batch(pairs, rng)
        seen = model.get_image_features(pixel_values=batch.pixel_values)
        read = model.get_text_features(**tokenizer(batch.captions, padding=True, return_tensors="pt"))
        cosine = F.normalize(seen.pooler_output, dim=-1) @ F.normalize(read.pooler_output, dim=-1).T
        logits = model.logit_scale.exp() * cosine
        loss = contrastive_loss(logits, batch.true)
        patches = seen.last_hidden_state[:, 1:]
        optimiser.zero_grad()
        (loss + 0.2 * eyes.loss(patches, batch.patches)).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP does
            own = torch.arange(len(logits))
            told = (logits[own, own] > logits[own, own ^ 1])[~batch.true[own, own ^ 1]].float().mean().item()
        running = loss.item() if step == 1 else 0.98 * running + 0.02 * loss.item()
        right = 0.98 * right + 0.02 * told
        if step % 100 == 0:
            sight = eyes.accuracy(patches, batch.patches)
            say(f"clip step {step} loss {running:.4f} near misses {right:.3f} patches {sight:.3f} done {done:.3f}")
        if step % math.ceil(steps / 10) == 0 or step == steps:
            snapshot(done)
    model.eval()


def make_clip_base(
    folder: Path, steps: int = STEPS, seed: int = 0, say: Callable[[str], None] = print, pairs: int = PAIRS
) -> None:
    """Make the CLIP base and save it as a standard transformers folder; ten snapshots go beside it."""
    model, tokenizer = build_clip_base(seed)

    def snapshot(done: float) -> None:
        save_clip_base(model, tokenizer, folder.with_name(f"{folder.name}-snapshots") / f"{done:.2f}")

    train_clip_base(model, tokenizer, steps, seed, say, snapshot, pairs=pairs)
    save_clip_base(model.to(torch.float16), tokenizer, folder)
