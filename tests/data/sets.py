"""Small files in the forms that the public sets have when they are downloaded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from rewarddance.data.importing import import_preferences
from rewarddance.data.recipe import ImportRecipe


def png(level: int) -> bytes:
    """A picture of one grey, told apart by its level."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, 100)).save(file, "PNG")
    return file.getvalue()


def put(root: Path, *names: str) -> None:
    """Pictures under these names, the nth of the level n."""
    for level, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(level))


def animation(path: Path, frames: int = 4) -> Path:
    """A video that needs no PyAV, whatever its name: what a file holds decides."""
    first, *rest = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(frames)]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, "GIF", save_all=True, append_images=rest)
    return path


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "libx264",
    rate: int = 8,
    *,
    times: Sequence[int] = (),
    options: dict[str, str] | None = None,
) -> Path:
    """A video of frames [H, W, 3]. times: when each begins, in parts of a second that `rate` says."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array.astype(np.uint8), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def as_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False), encoding="utf-8")
    return path


def as_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path)
    return path


def imported(name: str, *files: Path, **more: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows that an import of these files writes, and those that it puts into quarantine."""
    output = more.pop("output", files[0].parent / "out" / "rows.jsonl")
    result = import_preferences(ImportRecipe(name=name, files=files, output=output, **more))
    rows = [row for path, count in result["rows"].items() if count for row in lines(Path(path))]
    broken = lines(Path(result["quarantine"])) if result["quarantined"] else []
    assert (len(rows), len(broken)) == (sum(result["rows"].values()), result["quarantined"])
    return rows, broken


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
