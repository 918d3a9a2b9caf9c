"""Memory and speed of importing, splitting, checking and opening a set of 200,000 rows, against one a tenth as long.

python benchmarks/data_streaming.py [rows]     about 5 minutes on 2 cores; the last line is JSON

The set is made: pairs in HPDv3's form over 1,000 small pictures. Each step runs in a process of its own, so that its
peak of resident memory is its own; growth is that peak less what the process held once its modules were loaded. If
memory is flat, ten times as many rows add next to nothing. Rows a second are by the clock, and by the processor's time:
the first depends on what else the machine does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

PICTURES = 1000


def make(folder: Path, rows: int) -> None:
    """The set: an array of records, written as it is made, and the pictures."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        shown = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(shown).save(folder / "images" / f"{number}.png")
    with (folder / "train.json").open("w") as file:
        for row in range(rows):
            first, second = rng.choice(PICTURES, 2, replace=False)
            record = {"prompt": f"picture number {row // 5} of many, in a prompt of common length, highly detailed"}
            record |= {"path1": f"images/{first}.png", "path2": f"images/{second}.png"}
            record |= {"choice_dist": [int(n) for n in rng.integers(1, 20, 2)], "confidence": 0.97, "model1": "m"}
            file.write(("[" if row == 0 else ",\n") + json.dumps(record))
        file.write("]")


def step(name: str, folder: Path) -> dict[str, float]:
    """One step in this process: seconds, those of the processor, and growth of its peak memory in MiB."""
    from rewarddance.data.check import check
    from rewarddance.data.importing import import_preferences
    from rewarddance.data.preferences import PreferenceSet
    from rewarddance.data.recipe import ImportRecipe
    from rewarddance.runtime.tracking import peak_memory_gib

    parts = [folder / f"all.{part}.jsonl" for part in ("train", "test")]
    recipe = {"files": (folder / "train.json",), "output": folder / "all.jsonl", "split": {"train": 0.9, "test": 0.1}}
    before, began, worked = peak_memory_gib(), time.perf_counter(), time.process_time()
    if name == "import":
        import_preferences(ImportRecipe(name="hpdv3", **recipe))
    elif name == "check":
        check(parts)
    else:
        for part in parts:
            PreferenceSet(part)
    growth = (peak_memory_gib() - before) * 1024
    return {"clock": time.perf_counter() - began, "processor": time.process_time() - worked, "growth_mib": growth}


def measured(rows: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "set", rows)
        found = {}
        for name in ("import", "check", "open"):
            arguments = [sys.executable, __file__, "--step", name, str(Path(folder) / "set")]
            done = subprocess.run(arguments, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    if sys.argv[1:2] == ["--step"]:
        print(json.dumps(step(sys.argv[2], Path(sys.argv[3]))))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    figures: dict[str, float] = {}
    for count in (rows // 10, rows):
        for name, found in measured(count).items():
            speeds = {way: round(count / found[way]) for way in ("clock", "processor")}
            growth = round(found["growth_mib"], 1)
            print(f"{name:<7} {count:>8} rows  {growth:>5} MiB  rows a second: {speeds}", flush=True)
            figures[f"{name}_{count}_growth_mib"] = growth
            figures |= {f"{name}_{count}_rows_per_second_{way}": speed for way, speed in speeds.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
