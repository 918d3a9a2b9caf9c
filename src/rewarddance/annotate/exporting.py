"""Votes as files for others: preferences to train on, and the formats of Label Studio and Argilla."""

from __future__ import annotations

import json
import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rewarddance.annotate.cast import CastVote, read_votes, weighed
from rewarddance.annotate.recipe import ExportRecipe
from rewarddance.annotate.store import Store
from rewarddance.data.preferences import PreferenceRow, rows_into
from rewarddance.errors import InputError
from rewarddance.runtime.checkpoint import write_text_atomically

LABEL_CONFIG = """<View>
  <Header value="$prompt"/>
  <Pairwise name="preference" toName="image_a,image_b"/>
  <View style="display: flex"><Image name="image_a" value="$image_a"/><Image name="image_b" value="$image_b"/></View>
  <Choices name="tie" toName="image_a" choice="single"><Choice value="tie"/><Choice value="both bad"/></Choices>
</View>
"""
"""Label Studio's labelling interface for the tasks that are exported: its Pairwise tag has no tie."""
_WORDS = {"a": "left", "b": "right", "tie": "tie", "bad": "both bad"}
_NAMES = uuid.UUID("6f9d7d0a-6a1c-4a8e-9a5e-3a4f8f1f7c11")
"""Argilla's users are UUIDs; a person's is made of the name, the same each time."""
Rows = Callable[[Sequence[CastVote], Path], Iterator[dict[str, Any]]]


def export_votes(recipe: ExportRecipe) -> dict[str, Any]:
    """Write the votes of a store into a file; returns where it is, and how many votes and rows it has.

    Raises InputError where there are no votes, the output exists, or its name does not fit its format.
    """
    table = recipe.format in ("shares", "votes")
    suffixes = (".jsonl", ".parquet") if table else (".json",)
    if recipe.output.suffix.lower() not in suffixes:
        raise InputError(
            f"the output {recipe.output} does not fit the format {recipe.format}.",
            f"Let its name end in {' or '.join(suffixes)}.",
        )
    if recipe.output.exists():
        raise InputError(f"the output {recipe.output} exists.", "Choose another, or move it away.")
    store = Store(recipe.store)
    try:
        votes = [vote for vote in read_votes(store) if recipe.tests or vote.right is None]
        compare = store.handing_out.compare
    finally:
        store.close()
    if not votes:
        raise InputError(f"nobody has voted in {recipe.store}.", "Vote first: rewarddance annotate.")
    if compare:  # b is the new model, so that `rewarddance gsb` counts for it
        votes = [_with_a_and_b_swapped(vote) if vote.model_a == compare[0] else vote for vote in votes]
    recipe.output.parent.mkdir(parents=True, exist_ok=True)
    rows = list(_FORMATS[recipe.format](votes, recipe.output.parent))
    if table:
        unfinished = recipe.output.with_name(f".unfinished-{recipe.output.name}")
        with rows_into(unfinished) as write:
            for row in rows:
                write(row)
        unfinished.replace(recipe.output)
    else:
        write_text_atomically(recipe.output, json.dumps(rows, indent=1) + "\n")
    summary: dict[str, Any] = {"output": str(recipe.output), "votes": len(votes), "rows": len(rows)}
    if recipe.format == "label-studio":
        config = recipe.output.with_suffix(".xml")
        write_text_atomically(config, LABEL_CONFIG)
        summary["labelling_interface"] = str(config)
    return summary


def share_rows(votes: Sequence[CastVote], folder: Path) -> Iterator[dict[str, Any]]:
    """Each pair and criterion once, with its share of votes for b, each vote weighed."""
    shares = weighed(votes).share
    first = {(vote.pair, vote.criterion): vote for vote in reversed(votes)}
    for (pair, criterion), share in shares.items():
        yield _row(first[pair, criterion], round(share, 6)).written(folder)


def pair_rows(votes: Sequence[CastVote], folder: Path, weights: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Each pair once, whatever it was asked by: the mean of its criteria's shares for b by their weights.

    weights: of each criterion. Of a pair some of whose criteria have no vote yet the mean is over the others.
    """
    of_pair: dict[int, dict[str, float]] = defaultdict(dict)
    for (pair, criterion), share in weighed(votes).share.items():
        of_pair[pair][criterion] = share
    first = {vote.pair: vote for vote in reversed(votes)}
    for pair, shares in of_pair.items():
        total = sum(weights[criterion] for criterion in shares)
        share = sum(weights[criterion] * value for criterion, value in shares.items()) / total
        yield _row(first[pair]._replace(criterion=""), round(share, 6)).written(folder)


def vote_rows(votes: Sequence[CastVote], folder: Path) -> Iterator[dict[str, Any]]:
    """Each vote, with who cast it and when; "bad" and who made what stand beside it, and are not read by training."""
    for vote in votes:
        moment = datetime.fromtimestamp(vote.at, UTC).isoformat(timespec="seconds")
        models = {"model_a": vote.model_a, "model_b": vote.model_b} if vote.model_a or vote.model_b else {}
        row = _row(vote, vote.share, vote.person).written(folder)
        yield row | {"date": moment, "answer": vote.answer} | models


def label_studio_rows(votes: Sequence[CastVote], folder: Path) -> Iterator[dict[str, Any]]:
    """Tasks with annotations, a left and b right; media as addresses of Label Studio's local files."""
    for cast in _by_pair(votes):
        first = cast[0]
        media = {"image_a": first.a, "image_b": first.b} | ({"source_image": first.image} if first.image else {})
        data = {key: f"/data/local-files/?d={quote(_relative(path, folder))}" for key, path in media.items()}
        annotations = []
        for person, person_votes in _grouped(cast, lambda vote: vote.person):
            moment = datetime.fromtimestamp(person_votes[0].at, UTC).isoformat(timespec="seconds")
            results = [_label_studio_result(vote) for vote in person_votes]
            annotations.append({"completed_by": {"email": person}, "created_at": moment, "result": results})
        yield {"data": {"prompt": first.prompt} | data, "annotations": annotations}


def _label_studio_result(vote: CastVote) -> dict[str, Any]:
    word = _WORDS[vote.answer]
    if vote.answer in ("a", "b"):
        content: dict[str, Any] = {"type": "pairwise", "to_name": "image_a,image_b", "value": {"selected": word}}
    else:
        content = {"type": "choices", "to_name": "image_a", "value": {"choices": [word]}}
    name = vote.criterion or ("preference" if vote.answer in ("a", "b") else "tie")
    return {
        "id": uuid.uuid5(_NAMES, f"{vote.pair} {vote.person} {vote.criterion}").hex[:10],
        "from_name": name,
    } | content


def argilla_rows(votes: Sequence[CastVote], folder: Path) -> Iterator[dict[str, Any]]:
    """Records as `rg.Record.from_dict` reads them; who voted is in the metadata, by the ids in the responses."""
    for cast in _by_pair(votes):
        first = cast[0]
        media = {"image_a": first.a, "image_b": first.b} | ({"image": first.image} if first.image else {})
        fields = {"prompt": first.prompt} | {key: _relative(path, folder) for key, path in media.items()}
        responses: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
        for vote in cast:
            answer = {"tie": "tie", "bad": "both bad"}.get(vote.answer, vote.answer)
            user = str(uuid.uuid5(_NAMES, vote.person))
            responses[vote.criterion or "preference"].append({"value": answer, "user_id": user})
        people = {str(uuid.uuid5(_NAMES, vote.person)): vote.person for vote in cast}
        record = {"id": str(first.pair), "fields": fields, "metadata": {"annotators": json.dumps(people)}}
        yield record | {"suggestions": {}, "responses": dict(responses), "vectors": {}}


_FORMATS: dict[str, Rows] = {"shares": share_rows, "votes": vote_rows}
_FORMATS |= {"label-studio": label_studio_rows, "argilla": argilla_rows}


def _row(vote: CastVote, share: float, annotator: str = "") -> PreferenceRow:
    return PreferenceRow(
        vote.prompt,
        vote.a,
        vote.b,
        share,
        vote.source or "votes",
        vote.image,
        criterion=vote.criterion,
        annotator=annotator,
        fps_a=vote.fps[0],
        fps_b=vote.fps[1],
    )


def _with_a_and_b_swapped(vote: CastVote) -> CastVote:
    """The same vote with a and b changed over."""
    answer = {"a": "b", "b": "a"}.get(vote.answer, vote.answer)
    right = None if vote.right is None else 1 - vote.right
    return vote._replace(
        answer=answer,
        left=not vote.left,
        a=vote.b,
        b=vote.a,
        model_a=vote.model_b,
        model_b=vote.model_a,
        right=right,
        fps=vote.fps[::-1],
    )


def _by_pair(votes: Sequence[CastVote]) -> Iterator[list[CastVote]]:
    yield from (pair_votes for _, pair_votes in _grouped(votes, lambda vote: vote.pair))


def _grouped(votes: Sequence[CastVote], key: Callable[[CastVote], Any]) -> list[tuple[Any, list[CastVote]]]:
    groups: defaultdict[Any, list[CastVote]] = defaultdict(list)
    for vote in votes:
        groups[key(vote)].append(vote)
    return list(groups.items())


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
