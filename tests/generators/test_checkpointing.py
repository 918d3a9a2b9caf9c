"""In every family: network and decoder whose layers are computed again give the same gradient and keep less."""

from __future__ import annotations

import pytest
import torch
from tiny_pipelines import PROMPTS, SEEDS, fresh
from torch import Tensor, nn

from rewarddance.errors import InputError
from rewarddance.generators.adapter import PipelineGenerator
from rewarddance.generators.sampling import rollout

NAMES = ["sd15-ddim", "sdxl-euler", "sd3", "flux-dev", "flux2-klein", "qwen-image", "wan", "wan-2.2", "ltx", "z-image"]


def gradients(generator: PipelineGenerator, weights: list[nn.Parameter]) -> tuple[list[Tensor], int]:
    """Of pictures in latents and weights, and the bytes that were kept for them, the weights apart."""
    own = {one.untyped_storage().data_ptr() for one in [*generator.network.parameters(), *_vae(generator)]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    x_t = rollout(generator, PROMPTS, SEEDS, 1).x_t.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = generator.predict(x_t, 1, generator.encode(PROMPTS))
        pixels = generator.decode(generator.predict_x0(x_t, prediction, 1))
    size = sum(one.untyped_storage().nbytes() for place, one in kept.items() if place not in own)
    found = torch.autograd.grad(pixels.square().mean(), [x_t, *weights], allow_unused=True)
    return [one for one in found if one is not None], size


def _vae(generator: PipelineGenerator) -> list[Tensor]:
    return [*generator.pipeline.vae.parameters(), *generator.pipeline.vae.buffers()]


@pytest.mark.parametrize("family", NAMES)
def test_layers_computed_again_give_the_same_gradient_and_keep_less(family):
    generator = fresh(family)
    weights = generator.add_lora(rank=3, alpha=6)
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.2 * torch.randn_like(weight))
    plain, all_kept = gradients(generator, weights)
    scale = max(float(one.abs().max()) for one in plain)
    sizes = []
    for network, decoder in ((True, False), (False, True), (True, True)):
        with generator.checkpointed(network, decoder):
            found, size = gradients(generator, weights)
        sizes.append(size)
        for one, other in zip(plain, found, strict=True):
            assert (one - other).abs().max() <= 1e-6 * scale
    again, as_before = gradients(generator, weights)
    assert as_before == all_kept and all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert max(sizes) < all_kept and sizes[2] < min(sizes[:2]) and sizes[2] < 0.5 * all_kept


def test_a_network_without_the_switch_is_refused():
    generator = fresh("sd3")
    generator.network._supports_gradient_checkpointing = False
    with (
        pytest.raises(InputError, match=r"cannot be computed again.*Leave generator out of checkpointing"),
        generator.checkpointed(),
    ):
        pass
