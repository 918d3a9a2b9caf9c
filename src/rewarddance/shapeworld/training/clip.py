"""How the small CLIP base is made: a CLIPModel trained from scratch on ShapeWorld's scenes and their captions.

Every caption stands in the batch with a near miss of it, and both are drawn: what tells the two apart (a count, a
colour, who is left of whom) is what it must learn. It never sees a preference.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from rewarddance.runtime.checkpoint import BUNDLED
from rewarddance.shapeworld.render import DEFECTS, render, spoil, to_pixels
from rewarddance.shapeworld.scenes import PREFIXES, Scene, Spec, holds, near_miss, sample_scene, sample_spec
from rewarddance.shapeworld.training.loop import TrainingLoop, cosine, snapshots_of
from rewarddance.shapeworld.training.patch_heads import PatchHeads, patch_labels
from rewarddance.shapeworld.training.tokenizer import prompt_corpus, train_tokenizer

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own."""
BASE = BUNDLED / "shapeworld-clip"
"""The bundled base, whose configuration says the architecture."""
TEXT_LENGTH = 64
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
    config: Any = CLIPConfig.from_pretrained(BASE)
    config.text_config.vocab_size = len(tokenizer)
    return CLIPModel(config), tokenizer


def save_clip_base(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the standard folder: weights, tokenizer and the configuration of the image processor."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copy(BASE / "preprocessor_config.json", folder)


def shows(scene: Scene, spec: Spec) -> bool:
    """Does the scene show exactly what a caption says: every object that it names, placed so, and no other?"""
    if len(scene) != spec.total:
        return False
    if len(spec.objects) == 1:
        return all(map(spec.objects[0].fits, scene))
    first, second = spec.objects
    numbers = range(len(scene))
    for chosen in itertools.combinations(numbers, first.count):
        firsts, seconds = [scene[i] for i in chosen], [scene[i] for i in numbers if i not in chosen]
        if not (all(map(first.fits, firsts)) and all(map(second.fits, seconds))):
            continue
        pairs = itertools.product(firsts, seconds)
        if not spec.relation or all(holds(spec.relation, a.centre, b.centre) for a, b in pairs):
            return True
    return False


class CaptionedPictures(NamedTuple):
    """N pictures and their captions; 2k and 2k + 1 are near misses of each other.

    captions: N texts.
    pixel_values: [N, 3, H, W], normalised.
    matches: [N, N], whether the picture of a row shows the caption of a column.
    patches: [N, 64, 4], see `patch_labels`.
    """

    captions: list[str]
    pixel_values: Tensor
    matches: Tensor
    patches: Tensor


def captioned_batch(pairs: int, rng: np.random.Generator) -> CaptionedPictures:
    """`pairs` captions and their near misses, each with a picture; some are in another style, some slightly spoiled."""
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
    matches = torch.tensor([[shows(scene, spec) for spec in specs] for scene in scenes])
    patches = torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes]))
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return CaptionedPictures(captions, (to_pixels(pictures)[:, 0] - mean) / deviation, matches, patches)


def _with_near_miss(rng: np.random.Generator) -> Sequence[Spec]:
    spec = sample_spec(rng)
    if len(spec.objects) == 1 and rng.random() < 0.7:  # one object is soon learned, two and their bindings are not
        spec = sample_spec(rng)
    return spec, near_miss(spec, rng)


def contrastive_loss(logits: Float[Tensor, "N N"], matches: Bool[Tensor, "N N"]) -> Float[Tensor, ""]:
    """The mean of both cross-entropies: each picture picks its own caption, each caption its own picture.

    logits: scaled cosines, picture by caption. matches: pairs that match; those off the diagonal are no negatives and
    are left out. Source: CLIP (2103.00020); leaving out other matches is ours.
    """
    target = torch.arange(len(logits), device=logits.device)
    other_matches = matches & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(other_matches, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def train_clip_base(
    model: Any,
    tokenizer: Any,
    steps: int,
    seed: int,
    *,
    log: Callable[[str], None],
    snapshot: Callable[[float], None] | None = None,
    pairs: int = PAIRS,
) -> None:
    """Contrastive loss on captioned scenes; heads that are dropped at the end name what each patch shows."""
    rng = np.random.default_rng([seed, 11])
    heads = PatchHeads(model.config.vision_config.hidden_size)
    weights = [*model.parameters(), *heads.parameters()]
    rate = cosine(1e-3, 200)
    model.train()
    loop = TrainingLoop("clip", weights, steps, rate=rate, weight_decay=0.02, log=log, snapshot=snapshot)
    for _ in loop:
        batch = captioned_batch(pairs, rng)
        vision = model.get_image_features(pixel_values=batch.pixel_values)
        text = model.get_text_features(**tokenizer(batch.captions, padding=True, return_tensors="pt"))
        cosines = F.normalize(vision.pooler_output, dim=-1) @ F.normalize(text.pooler_output, dim=-1).T
        logits = model.logit_scale.exp() * cosines
        loss = contrastive_loss(logits, batch.matches)
        patches = vision.last_hidden_state[:, 1:]
        row = torch.arange(len(logits))
        told_apart = (logits[row, row] > logits[row, row ^ 1])[~batch.matches[row, row ^ 1]].float().mean()
        loop.learn(
            loss + 0.2 * heads.loss(patches, batch.patches),
            loss=loss,
            near_misses=told_apart,
            patches=heads.accuracy(patches, batch.patches),
        )
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))  # as CLIP does
    model.eval()


def make_clip_base(
    folder: Path, steps: int = STEPS, seed: int = 0, log: Callable[[str], None] = print, pairs: int = PAIRS
) -> None:
    """Make the CLIP base and save it as a standard transformers folder; ten snapshots go beside it."""
    model, tokenizer = build_clip_base(seed)
    snapshot = snapshots_of(folder, partial(save_clip_base, model, tokenizer))
    train_clip_base(model, tokenizer, steps, seed, log=log, snapshot=snapshot, pairs=pairs)
    save_clip_base(model.to(torch.float16), tokenizer, folder)
