"""How a small editor is made: a FLUX.1-Kontext pipeline (flow matching on latents) trained from scratch.

Like the other bases it is imperfect on purpose, in both of an edit's figures: a share of its instructions is wrong in
one thing, and a share of the edits it learns from changes more than was asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from rewarddance.shapeworld.edits.preferences import drawn_scene
from rewarddance.shapeworld.edits.scenes import source_scene
from rewarddance.shapeworld.edits.specs import KINDS, all_edits, edit_near_miss
from rewarddance.shapeworld.render import render, to_pixels
from rewarddance.shapeworld.scenes import pick
from rewarddance.shapeworld.training.generator import BASE, CAPTION_DROP, CAPTION_NOISE, save_generator_base
from rewarddance.shapeworld.training.loop import TrainingFile, TrainingLoop, cosine, half_layers
from rewarddance.shapeworld.training.patch_heads import PatchHeads, patch_labels
from rewarddance.shapeworld.training.tokenizer import train_tokenizer
from rewarddance.shapeworld.training.unet import clip_tokenizer
from rewarddance.shapeworld.training.video_generator import token_labels

STEPS, BATCH = 7_000, 48
"""Those of the bundled base, which was made in legs (docs/lab_log.md)."""
OVER_EDITED = 0.15
"""Share of the edits learned from that change more than was asked."""
TEXT_LENGTH = 24
"""Tokens that an instruction is padded to, here and by whoever samples from this base (`max_sequence_length`)."""
SAVE_EVERY = 200
"""Steps between two checkpoints that a killed training goes on from."""
_WIDTH, _QUARTERS = 128, 4


class EditBatch(NamedTuple):
    """N examples. sources, edits: pictures [N, 3, H, W] in [-1, 1]; labels: of the edits, [N, 64, 4], see
    `patch_labels`, in the order of tokens."""

    captions: list[str]
    sources: Tensor
    edits: Tensor
    labels: Tensor


def edit_corpus() -> list[str]:
    """Instructions with every word in every phrasing."""
    rng = np.random.default_rng(0)
    return [spec.paraphrase(rng) for specs in all_edits().values() for spec in specs for _ in range(4)]


def build_edit_pipeline(seed: int = 0, vae: Path = BASE) -> Any:
    """The pipeline with random weights but the VAE's, which is the bundled generator's: 16 tokens a picture."""
    torch.manual_seed(seed)
    corpus = edit_corpus()
    clip: Any = clip_tokenizer(corpus)
    tokenizer: Any = train_tokenizer(
        corpus, ["<pad>", "</s>"], eos="</s>", pad_token="<pad>", eos_token="</s>", padding_side="right"
    )
    ends = {"bos_token_id": clip.bos_token_id, "eos_token_id": clip.eos_token_id, "pad_token_id": clip.pad_token_id}
    text_encoder: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH, **ends,
        )
    )  # fmt: skip
    text_encoder_2 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer), d_model=64, d_ff=128, d_kv=16, num_layers=3, num_heads=4, dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip
    decoder: Any = AutoencoderKL.from_pretrained(vae, subfolder="vae", dtype=torch.float32)
    decoder.register_to_config(_name_or_path="", shift_factor=0.0)  # this pipeline subtracts it
    channels = 4 * decoder.config.latent_channels
    transformer = FluxTransformer2DModel(
        in_channels=channels, num_layers=4, num_single_layers=4, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=False, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return FluxKontextPipeline(scheduler, decoder, text_encoder, clip, text_encoder_2, tokenizer, transformer)


def edit_batch(n: int, rng: np.random.Generator) -> EditBatch:
    """`n` examples drawn anew, each kind of edit equally often."""
    captions, sources, edits, labels = [], [], [], []
    for _ in range(n):
        spec = pick(all_edits()[pick(KINDS, rng)], rng)
        source, edited = source_scene(spec, rng)
        if rng.random() < OVER_EDITED:
            edited = drawn_scene("over-edited", spec, source, edited, rng)
        captioned = edit_near_miss(spec, rng) if rng.random() < CAPTION_NOISE else spec
        captions.append("" if rng.random() < CAPTION_DROP else captioned.paraphrase(rng))
        sources.append(render(source))
        edits.append(render(edited))
        labels.append(token_labels(patch_labels(edited)[None]))
    before, after = (to_pixels(pictures)[:, 0] * 2 - 1 for pictures in (sources, edits))
    return EditBatch(captions, before, after, torch.from_numpy(np.stack(labels)).long())


def edit_loss(pipeline: Any, batch: EditBatch) -> Tensor:
    """Flow matching: x_t = (1 - sigma) x_0 + sigma eps beside the source's clean tokens; v = eps - x_0 is learned."""
    with torch.no_grad():
        source = pipeline._encode_vae_image(batch.sources, None)
        x_0 = pipeline._encode_vae_image(batch.edits, None)
    packed = [pipeline._pack_latents(latents, *latents.shape) for latents in (x_0, source)]
    clean, given = packed
    rows, columns = (side // 2 for side in x_0.shape[2:])
    places = pipeline._prepare_latent_image_ids(1, rows, columns, clean.device, clean.dtype)
    beside = places.clone()
    beside[:, 0] = 1
    text, pooled, text_places = pipeline.encode_prompt(batch.captions, None, max_sequence_length=TEXT_LENGTH)
    eps = torch.randn_like(clean)
    sigma = torch.sigmoid(torch.randn(len(clean), 1, 1) * 1.2 + 0.2)
    v = pipeline.transformer(
        hidden_states=torch.cat([(1 - sigma) * clean + sigma * eps, given], 1),
        timestep=sigma.flatten(),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=text_places,
        img_ids=torch.cat([places, beside]),
        return_dict=False,
    )[0]
    return F.mse_loss(v[:, : clean.shape[1]].float(), eps - clean)


def make_edit_base(
    folder: Path, *, steps: int = STEPS, batch: int = BATCH, seed: int = 0, log: Callable[[str], None] = print
) -> None:
    """Make an editor and save it as a plain diffusers folder; goes on after a kill, to the same weights.

    Each step's examples and noises have a seed of their own. Half way up, heads that are dropped at the end name what
    each patch of the edit will show, as in `generator.train_generator`. Raises InputError where the folder's unfinished
    training is another one.
    """
    pipeline = build_edit_pipeline(seed)
    pipeline.vae.eval().requires_grad_(False)
    heads, hidden = PatchHeads(_WIDTH // _QUARTERS), []
    blocks = pipeline.transformer.transformer_blocks
    hook = blocks[len(blocks) // 2].register_forward_hook(lambda module, inputs, outputs: hidden.append(outputs[1]))
    parts = pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2
    loop = TrainingLoop(
        "editor",
        [weight for part in parts for weight in part.parameters()],
        steps,
        rate=cosine(1.5e-3, 200),
        weight_decay=0.01,
        log=log,
        heads=heads.parameters(),
        averaged=True,
    )
    plan = {"steps": steps, "batch": batch, "seed": seed}
    file = TrainingFile(folder.with_name(f"{folder.name}-training.pt"), plan)
    if saved := file.saved():
        loop.load_state_dict(saved["loop"])
    begun = loop.done
    for step in loop:
        if loop.done > begun and loop.done % SAVE_EVERY == 0:
            file.save(loop=loop.state_dict())
        rng = np.random.default_rng([seed, 31, step])
        torch.manual_seed(int(rng.integers(2**31)))
        drawn = edit_batch(batch, rng)
        hidden.clear()
        with half_layers(), sdpa_kernel(SDPBackend.MATH):  # at this size the fused kernels are slower
            loss = edit_loss(pipeline, drawn)
        tokens = drawn.labels.shape[1] // _QUARTERS
        patches = hidden[0][:, :tokens].float().unflatten(-1, (_QUARTERS, -1)).flatten(1, 2)
        objective = loss + 0.3 * heads.loss(patches, drawn.labels)
        loop.learn(objective, loss=loss, patches=heads.accuracy(patches, drawn.labels))
    hook.remove()
    save_generator_base(pipeline, pipeline.transformer, folder)
    file.remove()
