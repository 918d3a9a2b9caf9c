"""Search at test time: make 8 pictures of each prompt, and keep the one that the judge ranks first.

python examples/05_best_of_n.py [JUDGE] [OUTPUT.png]
"""

import sys
from pathlib import Path

import torch

from rewarddance import load_generator, search
from rewarddance.data.media import write_picture
from rewarddance.shapeworld.oracle import judge_pixels

prompts = ["a green square above a purple circle", "two small yellow triangles"]
judge = sys.argv[1] if len(sys.argv) > 1 else "shapeworld-reward"
generator = load_generator("shapeworld-generator", num_inference_steps=10)

for found in search(generator, judge, prompts, method="best_of_n", budget="samples=8", seed=3):
    text, pictures = found.prompt.text, torch.stack([found.first.pixels, found.winner.pixels])
    first, winner = judge_pixels(pictures, [text, text])
    print(f"{text}: oracle {first.alignment:.2f} of the first sample, {winner.alignment:.2f} of the winner")
if len(sys.argv) > 2:
    write_picture(found.winner.pixels, Path(sys.argv[2]))
