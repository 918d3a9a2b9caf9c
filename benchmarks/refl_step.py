"""A step of ReFL: ours against one graph through generator, decoder and judge, in one process, on random models.

python benchmarks/refl_step.py          about 3 minutes on one core; the last line is JSON, figure name to number

Two samples, from the noise on, LoRA on the generator, the distance to the base included. One graph is what people
write: predict, decode, ask, `loss.backward()`, once with a judge whose weights nobody froze ("plain"), once with a
frozen one. Ours is `refl_step` as a recipe has it by default, and with all parts checkpointed, one picture at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, CogView4Transformer2DModel
from judges import PROMPT, build_judge, candidates, interleaved, naive, peak_rss
from torch import Tensor, nn

from rewarddance.alignment.references import References
from rewarddance.alignment.refl import refl_step
from rewarddance.alignment.refl_losses import hinge_loss
from rewarddance.alignment.refl_recipe import ReflRecipe
from rewarddance.alignment.safeguards import velocity_mse
from rewarddance.generators.adapter import GeneratorOptions, PipelineGenerator
from rewarddance.generators.families.cogview4 import CogView4Generator
from rewarddance.generators.sampling import rollout
from rewarddance.reward.generative import PairwiseReward
from rewarddance.shapeworld.training.generator import build_pipeline
from rewarddance.types import Prompt, Question

SIDE, STEPS = 192, 4
RECIPE = ReflRecipe(prompts_per_step=1, group_size=2, lora_rank=16, grad_step_range=(0.5, 0.75), judge_batch=2)
SPARING: dict[str, Any] = {"checkpointing": ("generator", "decoder", "judge"), "decode_batch": 1, "judge_batch": 1}


def build_generator() -> PipelineGenerator:
    """CogView4's class: 8 layers of 512, 144 tokens a picture, and a VAE of factor 8 with 32 to 128 channels."""
    pipeline = build_pipeline()
    torch.manual_seed(1)
    widths: Any = (32, 64, 128, 128)
    kinds: Any = {f"{way}_block_types": (f"{name}Block2D",) * 4 for way, name in DIRECTIONS.items()}
    vae = AutoencoderKL(**kinds, block_out_channels=widths, layers_per_block=2, latent_channels=16, sample_size=SIDE)
    with torch.no_grad():  # no value at the edge of [0, 1], where rounding decides whether it has a gradient
        vae.decoder.conv_out.weight.mul_(0.3)
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=8,
        attention_head_dim=64,
        num_attention_heads=8,
        text_embed_dim=64,
        time_embed_dim=256,
        condition_dim=64,
        pos_embed_max_size=64,
        sample_size=SIDE // 8,
        rope_axes_dim=(64, 64),
    )
    parts = {**pipeline.components, "vae": vae, "transformer": transformer}
    options = GeneratorOptions(num_inference_steps=STEPS, height=SIDE, width=SIDE)
    return CogView4Generator(type(pipeline)(**parts), options)


DIRECTIONS = {"down": "DownEncoder", "up": "UpDecoder"}


class Setting:
    """The models, the weights that train, and what a step of ours was seen to draw: noises, step and references."""

    def __init__(self, generator: PipelineGenerator, judge: PairwiseReward) -> None:
        self.generator, self.judge = generator, judge
        torch.manual_seed(2)
        self.weights: list[nn.Parameter] = generator.add_lora(RECIPE.lora_rank, RECIPE.lora_alpha)
        with torch.no_grad():
            for weight in self.weights:
                weight.add_(0.02 * torch.randn_like(weight))
        pictures = tuple(candidates(2))
        self.bank = [References(Prompt(PROMPT), pictures, (-1, -2), (1.0, 0.0), generator.init_noise([0, 1]))]
        self.asked: list[Question] = []
        self.seeds: list[int] = []
        init_noise = generator.init_noise
        generator.init_noise = lambda seeds: (self.seeds.extend(seeds), init_noise(seeds))[1]  # type: ignore[method-assign]
        self.stop = int(refl_step(generator, self._listening, self.bank, RECIPE, seed=0, step=0)["stop"])  # type: ignore[arg-type]
        generator.init_noise = init_noise  # type: ignore[method-assign]

    def _listening(self, questions: Sequence[Question]) -> Any:
        self.asked += questions
        return self.judge(questions)

    def one_graph(self) -> None:
        """The step as it is usually written."""
        generator, prompts = self.generator, [one.prompt for one in self.asked]
        x_t, condition = rollout(generator, prompts, self.seeds, self.stop).x_t, generator.encode(prompts)
        v = generator.predict(x_t, self.stop, condition)
        with generator.as_before_training(), torch.no_grad():
            v_base = generator.predict(x_t, self.stop, condition)
        pixels = generator.decode(generator.predict_x0(x_t, v, self.stop))
        questions = [Question(q.prompt, one, q.reference) for q, one in zip(self.asked, pixels, strict=True)]
        loss = hinge_loss(naive(self.judge, questions), RECIPE.cap) + RECIPE.velocity_mse * velocity_mse(v, v_base)
        loss.backward()

    def gradients(self, variant: str) -> list[Tensor]:
        """Of the LoRA, by one of VARIANTS."""
        for weight in self.weights:
            weight.grad = None
        self.judge.model.requires_grad_(variant == "plain")
        if variant in ("plain", "frozen"):
            self.one_graph()
        else:
            recipe = RECIPE.model_copy(update=SPARING if variant == "checkpointed" else {})
            refl_step(self.generator, self.judge, self.bank, recipe, seed=0, step=0)
        self.judge.model.zero_grad(set_to_none=True)
        return [weight.grad for weight in self.weights if weight.grad is not None]


VARIANTS = ("plain", "frozen", "ours", "checkpointed")


def away(found: Sequence[Tensor], from_plain: Sequence[Tensor]) -> float:
    """The largest difference of two gradients by the largest entry."""
    largest = max(float(one.abs().max()) for one in from_plain)
    return max(float((a - b).abs().max()) for a, b in zip(found, from_plain, strict=True)) / largest


def main() -> None:
    generator, judge = build_generator(), build_judge()
    sizes = [sum(w.numel() for w in part.parameters()) for part in (generator.network, judge.model)]
    print(f"{sizes[0] / 1e6:.0f}M and {sizes[1] / 1e6:.0f}M parameters, {torch.get_num_threads()} threads", flush=True)
    setting, found, peak = Setting(generator, judge), {}, {}
    for variant in VARIANTS:
        with peak_rss() as rose:
            found[variant] = [one.clone() for one in setting.gradients(variant)]
        (peak[variant],) = rose
        print(f"{variant}: {peak[variant]:.0f} MB", flush=True)
    best = interleaved({variant: (lambda v=variant: setting.gradients(v)) for variant in VARIANTS}, rounds=2)
    figures = {"max_rel_grad_diff": max(away(one, found["plain"]) for one in found.values())}
    for variant in VARIANTS:
        figures |= {f"{variant}_seconds": round(best[variant], 3), f"{variant}_peak_mb": round(peak[variant], 1)}
        print({key: value for key, value in figures.items() if key.startswith(variant)}, flush=True)
    for baseline, end in (("plain", ""), ("frozen", "_to_frozen")):
        for variant, name in (("ours", ""), ("checkpointed", "checkpointed_")):
            figures[f"{name}time_ratio{end}"] = round(best[baseline] / best[variant], 3)
            figures[f"{name}peak_memory_ratio{end}"] = round(peak[baseline] / peak[variant], 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
