"""The recipe of a small editor, with a few steps in place of thousands."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from tiny import killed_after_save

from rewarddance.data.media import as_images
from rewarddance.errors import InputError
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.shapeworld.edits.preferences import edit_prompts
from rewarddance.shapeworld.training import edit_generator
from rewarddance.shapeworld.training.edit_generator import (
    TEXT_LENGTH,
    build_edit_pipeline,
    edit_batch,
    edit_corpus,
    edit_loss,
    make_edit_base,
)

OPTIONS = {"height": 32, "width": 32, "max_sequence_length": TEXT_LENGTH}
make = partial(make_edit_base, steps=3, batch=2, log=lambda line: None)


@pytest.fixture(scope="module")
def pipeline():
    return build_edit_pipeline()


def test_an_editor_is_made_and_killed_it_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    make(tmp_path / "whole")
    generator = load_generator(str(tmp_path / "whole"), 2, **OPTIONS)
    prompts = edit_prompts("held_out", 2, 0)
    ours = sample(generator, prompts, [0, 1])
    assert generator.kind == "FluxKontextPipeline" and ours.shape == (2, 1, 3, 32, 32)
    plain = FluxKontextPipeline.from_pretrained(tmp_path / "whole", dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    (source,), text = as_images(prompts[1].image), prompts[1].text
    noise = torch.Generator().manual_seed(1)
    asked = {**OPTIONS, "max_area": 32 * 32, "_auto_resize": False, "output_type": "pt", "num_inference_steps": 2}
    theirs = plain(source, text, generator=noise, **asked).images
    torch.testing.assert_close(ours[1], theirs, atol=1e-4, rtol=0)

    monkeypatch.setattr(edit_generator, "SAVE_EVERY", 1)
    with killed_after_save(2), pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed")
    with pytest.raises(InputError, match="another training"):
        make(tmp_path / "killed", seed=1)
    make(tmp_path / "killed")
    again = load_generator(str(tmp_path / "killed"), 2, **OPTIONS)
    for one, other in zip(generator.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not (tmp_path / "killed-training.pt").exists()


def test_every_word_of_every_instruction_is_one_token_and_all_fit(pipeline):
    corpus = edit_corpus()
    words = {word for text in corpus for word in text.split()}
    assert all(len(pipeline.tokenizer.tokenize(word)) == 1 for word in words)
    lengths = {len(tokenizer(text).input_ids) for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2)
               for text in corpus}  # fmt: skip
    assert max(lengths) <= TEXT_LENGTH


def test_the_loss_is_zero_for_a_network_that_knows_v(pipeline, monkeypatch):
    """v = (x_t - x_0) / sigma, of tokens beside which the source's stand clean."""
    batch = edit_batch(3, np.random.default_rng(0))
    with torch.no_grad():
        clean, given = (
            pipeline._pack_latents(latents, *latents.shape)
            for latents in (pipeline._encode_vae_image(pictures, None) for pictures in (batch.edits, batch.sources))
        )

    def knowing(hidden_states, timestep, img_ids, **inputs):
        assert torch.equal(hidden_states[:, 16:], given) and img_ids.shape == (32, 3)
        v = (hidden_states[:, :16] - clean) / timestep.view(-1, 1, 1)
        return (torch.cat([v, torch.full_like(given, 9.0)], 1),)

    held = SimpleNamespace(**{name: getattr(pipeline, name) for name in ("_encode_vae_image", "_pack_latents")})
    held._prepare_latent_image_ids, held.encode_prompt = pipeline._prepare_latent_image_ids, pipeline.encode_prompt
    held.transformer = knowing
    assert edit_loss(held, batch) < 1e-4


def test_a_batch_has_edits_of_every_kind_and_labels_of_what_they_show():
    batch = edit_batch(40, np.random.default_rng(1))
    assert batch.sources.shape == batch.edits.shape == (40, 3, 32, 32) and batch.labels.shape == (40, 64, 4)
    assert 0 < batch.captions.count("") < 12
    assert all((batch.edits - batch.sources).flatten(1).abs().amax(1) > 0.1)
    painted = (batch.edits > -0.8).any(1).float().mean((1, 2))
    known = (batch.labels[..., 0] > -1).float().mean(1)
    assert torch.corrcoef(torch.stack([painted, known]))[0, 1] > 0.8
