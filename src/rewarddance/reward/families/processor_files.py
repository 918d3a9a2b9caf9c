"""The files of a processor beside a checkpoint's weights, whichever version of transformers wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

FILES = ("preprocessor_config.json", "processor_config.json")
"""An image processor's config has a file of its own or, as transformers 5 writes it, a part of the processor's."""
VIDEO_FILE = "video_preprocessor_config.json"
"""Asked for by the processors of families that take videos; a judge is shown their frames as pictures."""
TEMPLATES = ("chat_template.jinja", "chat_template.json")
"""Where a chat template stands when it is not in the tokenizer's config; the second is of processors before 4.51."""


def has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def image_config(folder: Path) -> dict[str, Any]:
    """The image processor's config. Raises OSError where there is none, and ValueError where it is no JSON object."""
    paths = [path for path in (folder / name for name in FILES) if path.is_file()]
    if not paths:
        raise OSError(f"it has no {' and no '.join(FILES)}")
    for path in paths:
        content = read_object(path)
        if "image_processor" in content:
            return dict(content["image_processor"])
        if path.name == FILES[0] or len(paths) == 1:
            return content
    raise ValueError(f"{paths[0].name} says nothing of pictures")


def chat_template_file(folder: Path) -> str | None:
    """The chat template in a file of its own, or None."""
    for path in (folder / name for name in TEMPLATES):
        if path.is_file():
            return path.read_text(encoding="utf-8") if path.suffix == ".jinja" else read_object(path)["chat_template"]
    return None


def copy_processor(source: Path, folder: Path, settings: dict[str, Any] | None = None) -> None:
    """Copy the processor's files, which a tokenizer's save_pretrained leaves behind.

    settings: what the image processor's config says in the copy, so that others see the pixels that the judge sees.
    """
    for path in (source / name for name in (*FILES, VIDEO_FILE, TEMPLATES[1])):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    paths = [path for path in (folder / name for name in FILES) if path.is_file()]
    for path in paths if settings else ():
        content = read_object(path)
        image = content.get("image_processor", content if path.name == FILES[0] or len(paths) == 1 else None)
        if image is not None:
            image.update(settings)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deep") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return content
