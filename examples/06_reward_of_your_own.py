"""A reward of your own: any function (images, prompts, metadata) -> scores aligns a generator.

This one likes blue pictures. It is computed by torch and keeps its graph, so ReFL could follow its gradient too
(algorithm="refl"); DiffusionNFT only asks for the scores. A recipe names a function that returns it, such as
`judge: my_rewards.py:make_blueness`.

python examples/06_reward_of_your_own.py [OUTPUT] [STEPS]
"""

import sys

from rewarddance import align, load_generator
from rewarddance.generators.sampling import sample


def blueness(images, prompts, metadata):
    """Scores [B] of images [B, 3, H, W] in [0, 1]."""
    return 4 * (images[:, 2] - images[:, :2].mean(1)).mean((1, 2))


output = sys.argv[1] if len(sys.argv) > 1 else "runs/blue"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 20
generator = load_generator("shapeworld-generator", num_inference_steps=6)
prompts = ["a red circle", "a blue square", "a green cross left of a yellow triangle"]


def mean_blueness(generator):
    return blueness(sample(generator, prompts, range(len(prompts)))[:, 0], prompts, []).mean().item()


before = mean_blueness(generator)
training = {"steps": steps, "prompts_per_step": 3, "group_size": 8, "learning_rate": 4e-3}
aligned = align(generator, blueness, prompts, output=output, algorithm="nft", **training)
print(f"blueness {before:.2f} before, {mean_blueness(aligned):.2f} after {steps} steps; the LoRA is in {output}/lora")
