"""Preferences on disk: one JSON object a line, media beside the file.

`{"prompt": ..., "media_a": "a.png", "media_b": "b.png", "share": 0.8, "source": "..."}`: `share` is the share of votes
that found b better than a; instead of it `label` may say "a", "b" or "tie". Media paths are relative to the file.
May be left out: `source`; `condition`, the picture that both were made from; `reason`, why the answer is as it is
where b is the candidate and a the reference; `reason_swapped`, where a is the candidate and b the reference.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewarddance.data.media import read_picture, write_picture
from rewarddance.errors import InputError
from rewarddance.types import Preference

_SHARES = {"a": 0.0, "tie": 0.5, "b": 1.0}


@dataclass(frozen=True)
class PreferenceRow:
    """One line of a preferences file, media not yet read."""

    prompt: str
    media_a: Path
    media_b: Path
    share: float
    source: str = ""
    condition: Path | None = None
    reason: str = ""
    reason_swapped: str = ""

    def load(self) -> Preference:
        """Read the pictures. Raises InputError naming the file that cannot be read."""
        return Preference(
            self.prompt,
            read_picture(self.media_a),
            read_picture(self.media_b),
            self.share,
            self.source,
            condition=None if self.condition is None else read_picture(self.condition),
            reason=self.reason,
            reason_swapped=self.reason_swapped,
        )


class PreferenceSet(Sequence[Preference]):
    """A preferences file as a sequence: lines are checked at once, pictures are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = tuple(read_rows(path))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Preference:  # type: ignore[override]
        return self.rows[index].load()


def read_rows(path: Path) -> Iterator[PreferenceRow]:
    """The rows of a preferences file. Raises InputError naming file, line and what is wrong with it."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(
            f"the preferences file {path} cannot be read: {error.strerror}.", "Give a JSONL file of preferences."
        ) from error
    n = 0
    with file:
        for n, line in enumerate(file, start=1):
            yield _parse(line, path, n)
    if n == 0:
        raise InputError(f"the preferences file {path} is empty.", "Give a file with one preference a line.")


def _parse(line: bytes, path: Path, number: int) -> PreferenceRow:
    where = f"line {number} of the preferences file {path}"
    try:
        row = json.loads(line)
        prompt, media = row["prompt"], [path.parent / row[key] for key in ("media_a", "media_b")]
        media += [path.parent / row["condition"]] if row.get("condition") else []
        share = float(row["share"]) if "share" in row else _SHARES[row["label"]]
        reasons = [row.get(key, "") for key in ("reason", "reason_swapped")]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is not JSON: {error}.", "Correct or remove the line.") from None
    except KeyError as error:
        raise InputError(
            f"{where} has no {error}, or a value it does not know.",
            "It needs prompt, media_a, media_b, and share (0 to 1) or label (a, b or tie).",
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} has a value of the wrong kind: {error}.", "Correct or remove the line.") from None
    if not isinstance(prompt, str) or not 0.0 <= share <= 1.0:
        raise InputError(f"{where} has prompt {prompt!r} and share {share}.", "Share lies in 0 to 1, prompt is text.")
    if not all(isinstance(reason, str) for reason in reasons):
        raise InputError(f"{where} has a reason that is no text.", "Correct or remove it.")
    for picture in media:
        if not picture.is_file():
            raise InputError(f"{where} names {picture}, which is not there.", "Restore the file or remove the line.")
    condition = media[2] if len(media) > 2 else None
    return PreferenceRow(prompt, media[0], media[1], share, str(row.get("source", "")), condition, *reasons)


def write_preferences(preferences: Iterable[Preference], path: Path) -> int:
    """Write a preferences file and its pictures (PNG, in `<stem>_media/`); returns the number of rows."""
    media = path.parent / f"{path.stem}_media"
    n = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for n, preference in enumerate(preferences, start=1):
            names = [f"{media.name}/{n - 1:06d}_{side}.png" for side in "ab"]
            write_picture(preference.first, path.parent / names[0])
            write_picture(preference.second, path.parent / names[1])
            row = {"prompt": preference.prompt, "media_a": names[0], "media_b": names[1], "share": preference.share}
            row["source"] = preference.source
            if preference.condition is not None:
                row["condition"] = f"{media.name}/{n - 1:06d}_condition.png"
                write_picture(preference.condition, path.parent / row["condition"])
            reasons = {"reason": preference.reason, "reason_swapped": preference.reason_swapped}
            file.write(json.dumps(row | {key: text for key, text in reasons.items() if text}) + "\n")
    return n
