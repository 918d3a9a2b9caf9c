"""Train a judge on pairs of your own, and ask it which of two pictures is better.

PAIRS has one JSON object a line, with pictures beside the file and the share of votes for b:
{"prompt": "a red circle", "media_a": "a.png", "media_b": "b.png", "share": 0.8}

python examples/02_train_a_judge.py PAIRS OUTPUT [BASE]
"""

import json
import sys
from pathlib import Path

from rewarddance import train_reward

pairs, output = sys.argv[1:3]
base = sys.argv[3] if len(sys.argv) > 3 else "shapeworld-judge"  # or OpenGVLab/InternVL3-1B-hf, with lora_rank=32

judge = train_reward(
    pairs, output=output, tests={"seen": pairs}, base=base, epochs=4, batch_size=8, learning_rate=3e-4, save_every=20
)
print(judge)
pair = json.loads(Path(pairs).read_text().splitlines()[0])
a, b = (Path(pairs).parent / pair[key] for key in ("media_a", "media_b"))
verdict = judge.compare(pair["prompt"], b, reference=a)
print(f"{pair['prompt']}: P(b is better than a) = {verdict.probability.item():.3f}, of the votes {pair['share']}")
