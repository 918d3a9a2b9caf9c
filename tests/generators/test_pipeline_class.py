"""A folder that names one pipeline can be loaded as another of its family, with the same weights."""

from __future__ import annotations

import pytest
import torch
from tiny import generator_folder, video_generator_folder

from rewarddance.errors import InputError
from rewarddance.generators.families.wan import WanGenerator, WanImageToVideoGenerator
from rewarddance.generators.pipelines import load_generator
from rewarddance.generators.sampling import sample
from rewarddance.planning.counting import counting
from rewarddance.planning.meta_generator import meta_generator
from rewarddance.types import Prompt

SIZE = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 24}
FROM_A_PICTURE = {"pipeline": "WanImageToVideoPipeline"}


def test_the_weights_of_text_to_video_draw_from_a_first_picture_too():
    folder = str(video_generator_folder())
    plain = load_generator(folder, 2, **SIZE)
    begins = load_generator(folder, 2, **SIZE, **FROM_A_PICTURE)
    assert type(plain) is WanGenerator and type(begins) is WanImageToVideoGenerator
    ours, theirs = plain.network.state_dict(), begins.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    first = torch.rand(1, 3, 32, 32)
    video = sample(begins, [Prompt("a red circle moves left", image=first)], [0])
    assert video.shape == (1, 9, 3, 32, 32)
    again = begins.decode(begins.encode([Prompt("a", image=first)]).picture["latents"])[:, 0]
    torch.testing.assert_close(
        video[:, 0], again, atol=1e-4, rtol=0
    )  # it begins with what the VAE makes of the picture


def test_a_generator_without_weights_is_of_that_class_too():
    with counting():
        made = meta_generator(str(video_generator_folder()), 2, **SIZE, **FROM_A_PICTURE)
    assert isinstance(made, WanImageToVideoGenerator)


@pytest.mark.parametrize("wrong", ["FluxPipeline", "LTXImageToVideoPipeline", "NoSuchPipeline"])
def test_a_pipeline_of_another_family_is_refused_with_those_that_would_do(wrong):
    with pytest.raises(InputError, match=f"is a WanPipeline, which cannot be a {wrong}") as caught:
        load_generator(str(video_generator_folder()), 2, **SIZE, pipeline=wrong)
    assert "WanImageToVideoPipeline" in caught.value.remedy
    with pytest.raises(InputError, match="which cannot be a WanPipeline"):
        load_generator(str(generator_folder()), 2, pipeline="WanPipeline")
