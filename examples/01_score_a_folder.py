"""Score every picture of a folder, best first. The prompt of a.png is in a.txt beside it.

python examples/01_score_a_folder.py PICTURES [JUDGE]
"""

import sys

from rewarddance import score

pictures = sys.argv[1]
judge = sys.argv[2] if len(sys.argv) > 2 else "shapeworld-judge"  # or OpenGVLab/InternVL3-8B-hf, or your own folder

rows = score(judge, pictures, kind="pointwise")
for row in sorted(rows, key=lambda row: row["probability"], reverse=True):
    print(f"{row['probability']:.3f}  {row['candidate']}  {row['prompt']}")
