"""Differentiate the reward with respect to the candidate's pixels: what ReFL sends into a generator.

python examples/02_gradient_of_the_reward.py [REWARD_FOLDER]
"""

import sys

import numpy as np

from rewarddance import load_reward
from rewarddance.shapeworld.render import render, to_pixels
from rewarddance.shapeworld.scenes import parse_prompt, sample_scene
from rewarddance.types import Question

prompt = "two small yellow triangles"
rng = np.random.default_rng(1)
reference, candidate = to_pixels([render(sample_scene(parse_prompt(text), rng)) for text in (prompt, "a blue circle")])
candidate.requires_grad_()

judge = load_reward(sys.argv[1] if len(sys.argv) > 1 else "shapeworld-judge", instruction="t2i-brief")
verdict = judge([Question(prompt, candidate, reference)])
verdict.margin.sum().backward()
gradient = candidate.grad
print(f"P(yes) = {verdict.probability.item():.3f}, |d margin / d pixels| = {gradient.norm():.4f}")
print(f"strongest at row, column {divmod(int(gradient.abs().sum((0, 1)).argmax()), gradient.shape[-1])}")
