"""The script for the GPU, run here: the same parts on the pretend device at small sizes, so that no minute of a real
card is lost on a typing error. Its figures mean nothing and are thrown away.

python benchmarks/gpu/dry.py [PART ...]     says which parts failed, and ends with 1 if any did
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import all as script
from sizes import Sizes

PATIENCE = 10
"""How many times longer a part may take here."""


def small() -> Sizes:
    """Random checkpoints of the real classes, as the tests have them."""
    from tiny import family_folder
    from tiny_pipelines import pipeline_folder

    return Sizes(
        judges={"internvl3_8b": str(family_folder("internvl")), "qwen3_vl_8b": str(family_folder("qwen3_vl"))},
        judge=str(family_folder("qwen3_vl")),
        generator=str(pipeline_folder("flux-dev")),
        product=64,
        heads=(4, 2),
        width=16,
        prefix=20,
        own=10,
        rows=2,
        side=48,
        scored_side=40,
        candidates=4,
        differentiated=2,
        pairs=4,
        group=2,
        options={
            "num_inference_steps": 4,
            "guidance_scale": 3.5,
            "height": 32,
            "width": 32,
            "max_sequence_length": 16,
            "cut_prompts": True,
        },
    )


def main() -> int:
    from tests.on_device.ground import DEVICE, on_device

    on_device()
    with TemporaryDirectory() as folder:
        names = sys.argv[1:] or list(script.PARTS)
        for name, part in script.PARTS.items():  # a busy machine is no fault of a part's
            script.PARTS[name] = part._replace(seconds=PATIENCE * part.seconds)
        whole = script.run(Path(folder), DEVICE, small(), names, PATIENCE * script.LONGEST)
    failed = {name: part for name, part in whole["parts"].items() if "failed" in part}
    for name, part in failed.items():
        print(f"{name} failed: {part['failed']}", *part.get("where", []), sep="\n  ", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
