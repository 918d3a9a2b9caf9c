"""Prompt files, in the forms in which benchmarks are published.

`.txt` has a prompt a line. `.jsonl` has an object with `prompt` a line, and any further keys (GenEval's records, ...).
`.json` is an array of objects or of texts, or an object of them by id. `.csv` and `.tsv` have their columns' names in
the first line. `.parquet` has columns. `image` is the path, from the file's folder, of the picture that the prompt
comes with (the first frame, in image to video); `negative_prompt` is known too, and other keys are carried along
unread.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa

from rewarddance.data.faults import FaultyRow, FaultyRows
from rewarddance.data.journal import json_value
from rewarddance.data.media import read_video
from rewarddance.data.tables import ParquetTable
from rewarddance.errors import InputError, first_line, shown
from rewarddance.runtime.checkpoint import read_run_json, write_text_atomically
from rewarddance.runtime.files import check_plain, first_twice, parse_json, read_text
from rewarddance.types import Pixels, Prompt

KINDS = ".txt, .jsonl, .json, .csv, .tsv or .parquet"
_NAMES = ("prompt", "prompts", "prompt_en", "caption", "text")
"""Keys that hold the prompt, case aside; the first of them that a record has."""


def read_prompts(path: Path, faults: list[FaultyRow] | None = None) -> list[Prompt]:
    """All prompts of a file with their pictures; prompts that name one file hold the very same tensor.

    faults: takes the rows that cannot be used, which are then left out. Raises InputError naming the file, and where no
    list is given all rows that hold no prompt or whose picture is missing or cannot be used.
    """
    found: list[FaultyRow] = []
    prompts: list[Prompt] = []
    images: dict[Path, Pixels] = {}
    for where, record in records(path):
        try:
            if isinstance(record, InputError):
                raise record
            prompts.append(replace(_prompt(record, path.parent, images), where=where))
        except InputError as error:
            found.append(FaultyRow(f"{where} of the prompt file {path}", error.what, error.remedy))
    if found and faults is None:
        raise FaultyRows(found)
    if faults is not None:
        faults += found
    if not prompts:
        if found:
            raise FaultyRows(found)
        raise InputError(f"the prompt file {path} is empty.", "Write one prompt a line.")
    return prompts


def _prompt(record: dict[str, Any], folder: Path, images: dict[Path, Pixels]) -> Prompt:
    """A record as a prompt with its picture. Raises InputError that says what is wrong with the record."""
    metadata = dict(record)
    names = {name.casefold(): name for name in reversed([name for name in metadata if isinstance(name, str)])}
    key = next((names[name] for name in _NAMES if name in names), None)
    if key is None:
        raise InputError(
            f"holds no prompt (it has the keys {', '.join(sorted(names)) or 'of none'}).",
            'Each record has a key "prompt", such as {"prompt": "a red circle"}.',
        )
    text, negative, image = metadata.pop(key), metadata.pop("negative_prompt", None), metadata.pop("image", None)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"holds no prompt ({shown(text)}).", 'Give a text, such as {"prompt": "a red circle"}.')
    if negative is not None and not isinstance(negative, str):
        raise InputError(f"has the negative_prompt {shown(negative)}, which holds no prompt.", "Give a text, or none.")
    try:
        json.dumps(metadata, default=json_value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"holds beside the prompt what no result can: {error}.", "Leave that value out.") from error
    prompt = Prompt(text.strip(), (negative or "").strip(), metadata)
    if image is None:
        return prompt
    file = _image_path(image, folder)
    if file not in images:
        images[file] = _read_image(file)
    return Prompt(prompt.text, prompt.negative, metadata, images[file], file)


def records(path: Path) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """Where each record of a prompt file stands and what it holds, or why it holds none.

    Raises InputError where the file cannot be read.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            for row in ParquetTable(check_plain(path)).rows():
                yield f"row {row.number}", row.content
            return
        text = read_text(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"the prompt file {path} cannot be read: {why}.", f"Give a {KINDS} file.") from error
    if suffix == ".txt":
        yield from ((f"line {n}", {"prompt": line}) for n, line in enumerate(text.split("\n"), 1) if line.strip())
    elif suffix in (".csv", ".tsv"):
        yield from _csv_records(text, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".json" and text.lstrip()[:1] in ("[", "{"):
        yield from _json_records(text, path)
    elif suffix in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] == "{":
        yield from _json_lines(text)
    else:
        raise InputError(f"the prompt file {path} is of no kind that is known.", f"Give a {KINDS} file.")


def _json_lines(text: str) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", _object(parse_json(line), texts=False)
            except ValueError as error:
                why = InputError(f"holds no prompt ({first_line(error)}).", _EXAMPLE)
                yield f"line {number}", why


def _json_records(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    try:
        content = parse_json(text)
    except ValueError as error:
        if len([line for line in text.split("\n") if line.strip()]) > 1 and text.lstrip()[0] == "{":
            yield from _json_lines(text)  # some name JSON Lines .json
            return
        raise InputError(f"the prompt file {path} is no JSON: {first_line(error)}.", f"Give a {KINDS} file.") from error
    if isinstance(content, dict) and len(content) == 1 and isinstance(only := next(iter(content.values())), list):
        content = only  # an object around the array
    elif isinstance(content, dict) and not any(name.casefold() in _NAMES for name in content):  # records by their ids
        content = [{"id": key, **value} if isinstance(value, dict) else value for key, value in content.items()]
    elif isinstance(content, dict):
        content = [content]
    for number, record in enumerate(content, start=1):
        yield f"record {number}", _object(record, texts=True)


def _object(record: Any, texts: bool) -> dict[str, Any] | InputError:
    if isinstance(record, str) and texts:
        return {"prompt": record}
    if isinstance(record, dict):
        return record
    return InputError(f"holds no prompt ({shown(record)}).", _EXAMPLE)


_EXAMPLE = 'Each line is a JSON object such as {"prompt": "a red circle"}.'


def _csv_records(text: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """Records by the names in the first line. Tab-separated files are seldom quoted: quotes stand for themselves."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" and not text.lstrip().startswith('"') else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True)
    names: list[str] = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            where = f"line {reader.line_num}"
            if not names:
                names = [name.strip() for name in values]
                if (name := first_twice(names)) is not None:
                    yield where, InputError(f"names the column {shown(name)} twice.", "Rename or remove one.")
                    return
            elif len(values) != len(names):
                what = f"has {len(values)} values for {len(names)} columns."
                yield where, InputError(what, "Put values that hold the separator into quotes.")
            else:
                yield where, {name: value for name, value in zip(names, values, strict=True) if value != ""}
    except csv.Error as error:
        yield f"line {reader.line_num}", InputError(f"cannot be read: {error}.", "Correct it.")


KEPT = "prompts.jsonl"
"""What a run keeps of its prompts, in its folder (`keep_prompts`)."""


def check_not_replaced(source: Path, output: Path) -> None:
    """Raises InputError where the prompts' file is the very one that a run in `output` writes its own list to."""
    if (output / KEPT).resolve() == source.resolve():
        raise InputError(
            f"the prompts {source} are where the run keeps its own list of them, which holds less.",
            "Choose another output, or give the file another name or place.",
        )


def keep_prompts(prompts: Sequence[Prompt], path: Path, binding: bool = True) -> None:
    """Write a run's prompts to a JSONL file, or make sure that the run being continued has these very ones.

    binding: something was made with those that are there; else others may take their place. Raises InputError naming
    the first that differs: places in the list say which noises a prompt has and when its turn comes, so a run that went
    on with others would be neither the one nor the other.
    """
    now = [_kept(prompt) for prompt in prompts]
    before = read_run_json(path, lines=True) if binding and path.exists() else now
    for number, (old, new) in enumerate(zip_longest(before, now), start=1):
        if old != new:
            before_text = "none" if old is None else repr(old.get("prompt"))
            changed = [key for key in ("metadata", "picture") if old and new and old.get(key) != new.get(key)]
            what = f"its {changed[0]} is another" if changed else "the prompts are others"
            raise InputError(
                f"{path.parent} holds a run whose prompt {number} was {before_text}, and now {what}.",
                "Choose another output, or give the prompts that the run began with.",
            )
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in now))


def metadata_text(prompt: Prompt) -> str:
    """A prompt's metadata as JSON; the same of equal ones. Raises InputError naming a prompt whose JSON cannot hold."""
    try:
        return json.dumps(prompt.metadata, sort_keys=True, default=json_value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the prompt {shown(prompt.text)} has metadata that JSON cannot hold: {error}.", "Leave that value out."
        ) from error


def _kept(prompt: Prompt) -> dict[str, Any]:
    """What is written down of a run's prompt; of its metadata and its picture a digest."""
    row: dict[str, Any] = {"prompt": prompt.text, "image": prompt.image_path and prompt.image_path.name}
    if prompt.negative:
        row["negative_prompt"] = prompt.negative
    if prompt.metadata:
        row["metadata"] = hashlib.blake2b(metadata_text(prompt).encode(), digest_size=8).hexdigest()
    if prompt.image is not None:
        values = prompt.image.detach().float().cpu().contiguous().numpy()
        row["picture"] = hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()
    return row


def _image_path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InputError(f"has the image {shown(value)}, which is no path.", "Give a picture's path, or none.")
    return folder / value


def _read_image(path: Path) -> Pixels:
    try:
        image = read_video(path, 2)
    except InputError as error:
        raise InputError(f"has an image that cannot be used: {error.what}", error.remedy) from error
    if len(image) > 1:
        raise InputError(f"has an image that cannot be used: {path} is a video.", "Give its first frame alone.")
    return image
