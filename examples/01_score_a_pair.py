"""Ask a judge which of two pictures shows the prompt better: P("yes") and its margin, in both orders.

    python examples/01_score_a_pair.py [REWARD_FOLDER]

With no folder the bundled base is asked, which knows the world but has learned no preference yet.
"""

import sys

import numpy as np

from rewarddance import load_reward
from rewarddance.shapeworld.render import render, to_pixels
from rewarddance.shapeworld.scenes import parse_prompt, sample_scene
from rewarddance.types import Question

prompt = "a red circle left of a blue square"
rng = np.random.default_rng(0)
right = render(sample_scene(parse_prompt(prompt), rng))
wrong = render(sample_scene(parse_prompt("a green cross"), rng))
pixels = to_pixels([right, wrong])

judge = load_reward(sys.argv[1] if len(sys.argv) > 1 else "shapeworld-judge", instruction="t2i-brief")
verdict = judge([Question(prompt, candidate=pixels[0], reference=pixels[1]), Question(prompt, pixels[1], pixels[0])])
for name, probability, margin in zip(("right", "wrong"), verdict.probability, verdict.margin, strict=True):
    print(f"candidate {name}: P(yes) = {probability:.3f}, margin = {margin:+.3f}")
