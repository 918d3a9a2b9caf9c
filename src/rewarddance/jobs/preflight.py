"""What a run will read is looked at before hours of work: prompts by tokenizers, pictures by their headers.

All faults of a run are listed together, each with its row. A run begins when none is left, or with `skip_faulty`, which
leaves the rows out and lists them in `faulty.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rewarddance.data.faults import FaultyRow, FaultyRows, list_faulty, refuse_faulty
from rewarddance.data.media import MAX_FRAMES, inspect_media, media_size, read_rate
from rewarddance.data.preferences import PreferenceRow, PreferenceSet
from rewarddance.errors import InputError, NoGradient, RewardDanceError, shown
from rewarddance.evaluation.answers import Pairs
from rewarddance.protocols import needs_reference
from rewarddance.types import OtherPixels, Pixels, Prompt, Question

if TYPE_CHECKING:  # judges are trained and asked without diffusers, which takes seconds to load
    from rewarddance.generators.adapter import PipelineGenerator
    from rewarddance.generators.decoder import Decoder

FAULTY = "faulty.jsonl"


def blank(frames: int, height: int, width: int) -> Pixels:
    """Pixels of a size without any memory, where only their size matters."""
    return torch.zeros(1, 1, 1, 1).expand(frames, 3, height, width)


def checked_prompts(
    generator: PipelineGenerator,
    judges: Sequence[Any],
    prompts: Sequence[Prompt],
    faults: list[FaultyRow],
    *,
    source: Path | str,
    skip: bool,
) -> tuple[list[Prompt], list[FaultyRow]]:
    """The prompts that the generator draws and every judge can be asked about, and the faults of all others.

    faults: those of rows that are no prompts. source: names where the prompts are from. Raises FaultyRows naming all
    faulty ones, unless they shall be skipped.
    """
    faults, kept = list(faults), list[Prompt]()
    asked = [judge for judge in judges if hasattr(judge, "faults")]
    drawn = blank(generator.num_frames, generator.height, generator.width)
    for number, prompt in enumerate(prompts, start=1):
        try:
            generator.check_prompts([prompt])
            for judge in asked:
                question = Question(prompt, drawn, drawn if needs_reference(judge) else None)
                _raise_first(judge.faults([question]))
            kept.append(prompt)
        except RewardDanceError as error:
            where = f"{prompt.where or f'prompt {number}'} of {source} ({shown(prompt.text, 50)})"
            faults.append(FaultyRow(where, error.what, error.remedy))
    refuse_faulty(faults, skip, len(kept))
    return kept, faults


def check_gradient(generator: PipelineGenerator, judges: Sequence[Any], prompt: Prompt) -> None:
    """Ask each judge that cannot say whether it gives a gradient, such as a function, about one grey picture.

    Raises NoGradient where it gives none, which else would show after all references are made. Whatever else it says of
    such a picture is no fault.
    """
    grey = torch.full((generator.num_frames, 3, generator.height, generator.width), 0.5).requires_grad_()
    for judge in judges:
        if getattr(judge, "differentiable", True) is None:
            try:
                with torch.enable_grad():
                    judge([Question(prompt, grey)])
            except NoGradient:
                raise
            except RewardDanceError:
                continue


def check_pairs(
    sets: Iterable[PreferenceSet],
    judge: Any,
    faults: list[FaultyRow],
    *,
    skip: bool,
    folder: Path | None,
    in_full: Sequence[PreferenceSet] = (),
) -> None:
    """Look at all pairs of the sets as the judge would be asked about them; the faulty ones are taken out.

    faults: those of rows that are no pairs. folder: where they are listed. in_full: sets whose files are decoded to the
    end; of others only the headers are read. Raises FaultyRows naming all faulty ones, unless they shall be skipped,
    and where a set has no others.
    """
    faults, rate = list(faults), getattr(getattr(judge, "config", None), "fps", None)
    for pairs in sets:
        faulty: dict[int, FaultyRow] = {}
        sizes: dict[Path, OtherPixels | RewardDanceError] = {}
        decoded: set[Path] = set()
        for index in range(len(pairs)):
            try:
                row = pairs.row(index)
                questions = _questions(row, sizes, rate)
                for path in (row.media_a, row.media_b, row.image) if pairs in in_full else ():
                    if path is not None and path not in decoded:
                        inspect_media(path)
                        decoded.add(path)
                if hasattr(judge, "faults"):
                    _raise_first(judge.faults(questions))
            except RewardDanceError as error:
                faulty[index] = FaultyRow(pairs.where(index), error.what, error.remedy)
            if len(sizes) > 100_000:
                sizes.clear()
        refuse_faulty([*faults, *faulty.values()], skip, len(pairs) - len(faulty))
        if folder is not None:
            list_faulty([*faults, *faulty.values()], folder / FAULTY)
        faults += faulty.values()
        pairs.leave_out(faulty)


def faulty_votes(votes: PreferenceSet, generator: PipelineGenerator) -> list[FaultyRow]:
    """The votes of which a generator of pictures cannot learn, by their prompts and pictures; they are taken out, but
    for where no other would be left."""
    faulty: dict[int, FaultyRow] = {}
    sizes: dict[Path, OtherPixels | RewardDanceError] = {}
    for index in range(len(votes)):
        try:
            row = votes.row(index)
            question = _questions(row, sizes)[0]
            generator.check_prompts([question.prompt])
            for path in (row.media_a, row.media_b):
                if len(_sized(path, sizes)) > 1:
                    raise InputError(f"{path} is a video, and dpo learns from pictures.", "Take this vote out.")
        except RewardDanceError as error:
            faulty[index] = FaultyRow(votes.where(index), error.what, error.remedy)
        if len(sizes) > 100_000:
            sizes.clear()
    if len(faulty) == len(votes):
        raise FaultyRows([*faulty.values()])
    votes.leave_out(faulty)
    return [*faulty.values()]


def check_decoder(decoder: Decoder, sets: Iterable[Pairs]) -> None:
    """Raises InputError naming the first pair whose second picture the decoder cannot draw, by its size or length."""
    for pairs in sets:
        seen: set[tuple[int, int, int]] = set()
        for index in range(len(pairs)):
            if isinstance(pairs, PreferenceSet):
                where, size = pairs.where(index), media_size(pairs.row(index).media_b, MAX_FRAMES)
            else:
                frames, _, height, width = pairs[index].second.shape
                where, size = f"pair {index}", (frames, height, width)
            if size in seen:
                continue
            seen.add(size)
            try:
                decoder.check(*size)
            except InputError as error:
                raise InputError(f"{where}: {error.what}", error.remedy) from None


def _questions(
    row: PreferenceRow, sizes: dict[Path, OtherPixels | RewardDanceError], rate: float | None = None
) -> list[Question]:
    """A pair's question in one order, with blank pixels of its media's sizes.

    rate: frames a second that the judge knows, if it knows one: then videos' own rates are read where the row has none.
    Raises InputError naming a file.
    """
    first, second = _sized(row.media_a, sizes), _sized(row.media_b, sizes)
    image = None if row.image is None else _sized(row.image, sizes)
    prompt = Prompt(row.prompt, image=image, image_path=row.image)
    own = {
        path: read_rate(path) if rate and len(_sized(path, sizes)) > 1 else None for path in (row.media_a, row.media_b)
    }
    return [Question(prompt, second, first, fps=(row.fps_b or own[row.media_b], row.fps_a or own[row.media_a]))]


def _sized(path: Path, sizes: dict[Path, OtherPixels | RewardDanceError]) -> Pixels:
    if path not in sizes:
        try:
            sizes[path] = blank(*media_size(path, MAX_FRAMES))
        except RewardDanceError as error:
            sizes[path] = error
    pixels_or_fault = sizes[path]
    if isinstance(pixels_or_fault, RewardDanceError):
        raise pixels_or_fault
    return pixels_or_fault


def _raise_first(faults: Iterable[RewardDanceError | None]) -> None:
    for fault in faults:
        if fault is not None:
            raise fault
