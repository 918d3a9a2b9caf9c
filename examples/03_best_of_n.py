"""Make 8 pictures of a prompt and keep the one that wins the judge's tournament.

python examples/03_best_of_n.py [REWARD_FOLDER] [OUTPUT.png]
"""

import sys
from pathlib import Path

from rewarddance import load_reward
from rewarddance.data.media import write_picture
from rewarddance.generators.pipelines import load_generator
from rewarddance.search.best_of_n import best_of_n
from rewarddance.shapeworld.oracle import judge_pixels

prompt = "a green square above a purple circle"
judge = load_reward(sys.argv[1] if len(sys.argv) > 1 else "shapeworld-judge", instruction="t2i-brief")
generator = load_generator("shapeworld-generator", num_inference_steps=10)
found = best_of_n(generator, judge, [prompt], seeds=[list(range(8))])
scores = [score.alignment for score in judge_pixels(found.pictures[0], [prompt] * 8)]
winner = int(found.chosen[0])
print(f"oracle alignment of the 8: {' '.join(f'{score:.2f}' for score in scores)}")
print(f"the judge chose number {winner} with {found.wins[0, winner]:.0f} wins of 7: {scores[winner]:.2f}")
if len(sys.argv) > 2:
    write_picture(found.pictures[0, winner], Path(sys.argv[2]))
