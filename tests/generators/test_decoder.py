"""A generator's autoencoder by itself: it gives the pipeline's own pictures back, and a gradient."""

from __future__ import annotations

import pytest
import torch
from tiny import judge_folder, pictures
from tiny_pipelines import pipeline_folder, plain

from rewarddance.errors import InputError
from rewarddance.generators.decoder import load_decoder


def pixels_of(frames: int) -> torch.Tensor:
    return torch.rand(frames, 3, 32, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("family", "frames"), [("sd3", 1), ("sd3", 2), ("flux2-klein", 1), ("qwen-image", 1), ("wan", 5)]
)
def test_a_decoder_draws_what_its_pipelines_vae_does(family, frames):
    decoder, pixels = load_decoder(pipeline_folder(family)), pixels_of(frames)
    latent = decoder.encode(pixels)
    vae = plain(family).vae
    shown = 2 * pixels - 1 if decoder.stride is None else (2 * pixels - 1).transpose(0, 1)[None]
    with torch.no_grad():
        theirs = vae.decode(vae.encode(shown).latent_dist.mode()).sample
    theirs = theirs if decoder.stride is None else theirs[0].transpose(0, 1)
    assert torch.allclose(decoder.decode(latent), (theirs / 2 + 0.5).clamp(0, 1), atol=1e-5)
    (gradient,) = torch.autograd.grad(decoder.decode(latent.requires_grad_()).mean(), latent)
    assert gradient.shape == latent.shape and gradient.abs().sum() > 0


def test_a_decoder_is_found_by_a_generators_name_and_by_its_own_folder():
    pixels = pictures(1)[0]
    by_name = load_decoder("shapeworld-generator")
    own = load_decoder(pipeline_folder("sd3") / "vae")
    assert by_name.multiple == 4 and own.multiple == 2
    assert by_name.decode(by_name.encode(pixels)).shape == pixels.shape == own.decode(own.encode(pixels)).shape


@pytest.mark.parametrize(
    ("family", "size", "named"),
    [("sd3", (1, 32, 33), "32×33"), ("wan", (4, 32, 32), "4 frames"), ("wan", (5, 36, 32), "36×32")],
)
def test_a_size_that_a_decoder_does_not_draw_is_refused(family, size, named):
    decoder = load_decoder(pipeline_folder(family))
    frames, height, width = size
    with pytest.raises(InputError, match=named):
        decoder.encode(torch.zeros(frames, 3, height, width))


@pytest.mark.parametrize(
    ("name", "said"), [("ltx", "AutoencoderKLLTXVideo"), ("judge", "config.json|None"), ("x", "no checkpoint")]
)
def test_what_is_no_known_decoder_is_refused_by_name(name, said, tmp_path):
    place = {"ltx": pipeline_folder, "judge": lambda _: judge_folder(), "x": lambda _: tmp_path / "x"}[name](name)
    with pytest.raises(InputError, match=said):
        load_decoder(place)
