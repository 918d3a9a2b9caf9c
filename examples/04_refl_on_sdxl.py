"""ReFL on Stable Diffusion XL: the judge's gradient through the decoder and one late step, into a LoRA.

The LoRA in runs/sdxl-refl/lora loads in plain diffusers: pipeline.load_lora_weights("runs/sdxl-refl/lora").

python examples/04_refl_on_sdxl.py JUDGE PROMPTS [GENERATOR] [KEY=VALUE]...
"""

import sys

import yaml

from rewarddance import align

judge, prompts = sys.argv[1:3]  # a trained reward's folder; a .txt file with a prompt a line
rest = sys.argv[3:]
generator = rest.pop(0) if rest and "=" not in rest[0] else "stabilityai/stable-diffusion-xl-base-1.0"
options = {
    "output": "runs/sdxl-refl",
    "dtype": "bfloat16",
    "guidance_scale": 5.0,
    "references": {"candidates": 8},
    "steps": 200,
    "prompts_per_step": 8,
    "group_size": 1,
    "generator_batch": 1,
    "decode_batch": 1,
    "checkpointing": ["generator", "decoder", "judge"],
}
options |= {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in rest)}
align(generator, judge, prompts, algorithm="refl", **options)
print(f"after {options['steps']} steps the LoRA is in {options['output']}/lora")
