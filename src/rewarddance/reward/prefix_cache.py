"""Computing once what many questions share: which questions go together, and attention over a shared prefix.

Exact, not approximate: N candidates under one prompt, instruction and reference need the keys and values of all that
stands before the candidate once, and each candidate's own tokens attend to both parts. A judge whose weights do not
change may keep them for later questions, too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from rewarddance.reward.prefix_attention import prefix_attention

WORTH_SHARING = 0.05
"""Share of its tokens that a group must save, or it is read row by row."""


class Row(NamedTuple):
    """A sequence to read. signature: one number a token, equal where token (or picture and place in it) is equal.

    before, after: where its last picture's tokens begin and end. wanted: how many of its last states are asked for,
    which must be the row's own.
    """

    signature: tuple[int, ...]
    before: int
    after: int
    wanted: int = 1

    @property
    def shareable(self) -> tuple[int, ...]:
        """The tokens that may be another's too."""
        return self.signature[: len(self.signature) - self.wanted]


Sharing = Literal["most", "before", "nothing"]


class Group(NamedTuple):
    """Rows, by number, whose first `prefix` tokens are the same; 0 where nothing is shared."""

    members: tuple[int, ...]
    prefix: int


class Batch(NamedTuple):
    """Groups of equally many members, read in one forward."""

    groups: tuple[Group, ...]


def plan(rows: Sequence[Row], max_batch_tokens: int, sharing: Sharing = "most") -> list[Batch]:
    """Groups of rows with a common beginning, packed so that no batch has more than `max_batch_tokens` padded tokens.

    sharing: with "most", the beginning ends before the last picture (candidates under one reference) or after it
    (several questions about one candidate), whichever saves more. With "before", always before it, for a single row
    too: no gradient reaches what stands there. A row longer than the budget is a batch of its own.
    """
    grouping = {"most": _best_grouping, "before": _before_candidate, "nothing": _one_by_one}[sharing]
    groups: list[Group] = []
    for members, prefix in grouping(rows):
        row_tokens = max(len(rows[i].signature) for i in members) - prefix
        at_once = max(1, (max_batch_tokens - prefix) // row_tokens)
        chunks = [members[start : start + at_once] for start in range(0, len(members), at_once)]
        groups += [Group(tuple(chunk), prefix if len(chunk) > 1 or sharing == "before" else 0) for chunk in chunks]
    by_size: dict[tuple[int, bool], list[Group]] = defaultdict(list)
    for group in groups:
        by_size[len(group.members), group.prefix > 0].append(group)
    batches = []
    for (size, _), groups_of_size in sorted(by_size.items()):
        groups_of_size.sort(key=lambda group: (group.prefix, max(len(rows[i].signature) for i in group.members)))
        packed: list[Group] = []
        prefix_tokens = packed_row_tokens = 0
        for group in groups_of_size:
            row_tokens = max(len(rows[i].signature) for i in group.members) - group.prefix
            longest_prefix, longest_row = max(prefix_tokens, group.prefix), max(packed_row_tokens, row_tokens)
            if packed and (len(packed) + 1) * (longest_prefix + size * longest_row) > max_batch_tokens:
                batches.append(Batch(tuple(packed)))
                packed, longest_prefix, longest_row = [], group.prefix, row_tokens
            packed.append(group)
            prefix_tokens, packed_row_tokens = longest_prefix, longest_row
        batches.append(Batch(tuple(packed)))
    return batches


def shares_candidates(rows: Sequence[Row]) -> bool:
    """Whether what ends after the last picture saves more than what stands before it, as where one candidate is asked
    several questions."""
    alone = (len(members) * length - length for members, length in _before_candidate(rows))
    return _grouping(rows, "after")[0] > sum(alone)


def _best_grouping(rows: Sequence[Row]) -> list[tuple[list[int], int]]:
    """(members, length of their common beginning) of the grouping that saves most; rows that save too little alone."""
    return max((_grouping(rows, end) for end in ("before", "after")), key=lambda found: found[0])[1]


def _grouping(rows: Sequence[Row], end: Literal["before", "after"]) -> tuple[int, list[tuple[list[int], int]]]:
    """How many tokens are saved, and (members, length of their common beginning), which ends there at the latest."""
    keyed: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        keyed[row.shareable[: getattr(row, end)]].append(number)
    saved, grouping = 0, list[tuple[list[int], int]]()
    for members in keyed.values():
        length = common_length([rows[i].shareable for i in members])
        spared = (len(members) - 1) * length
        if spared >= WORTH_SHARING * sum(len(rows[i].signature) for i in members) and spared > 0:
            saved += spared
            grouping.append((members, length))
        else:
            grouping += [([i], 0) for i in members]
    return saved, grouping


def _before_candidate(rows: Sequence[Row]) -> list[tuple[list[int], int]]:
    """(members, length of what stands before their last picture)."""
    keyed: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        keyed[row.shareable[: row.before]].append(number)
    return [(members, len(beginning)) for beginning, members in keyed.items()]


def _one_by_one(rows: Sequence[Row]) -> list[tuple[list[int], int]]:
    return [([number], 0) for number in range(len(rows))]


def common_length(sequences: Sequence[tuple[int, ...]]) -> int:
    """How many first tokens all sequences share."""
    low, high = min(sequences), max(sequences)  # what the first and last in order share, all share
    limit = min(map(len, sequences))
    return next((i for i in range(limit) if low[i] != high[i]), limit)


class Prefix:
    """Keys and values of G prefixes, kept layer by layer while they are read, and attended to afterwards.

    lengths [G]: tokens of the prefixes, which are padded on the right to the longest; empty where nothing is shared.
    """

    def __init__(self, lengths: Sequence[int] = ()) -> None:
        self.lengths = tuple(lengths)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.complete = False

    def keep(self, layer: int, key: Float[Tensor, "G kv P D"], value: Float[Tensor, "G kv P D"]) -> None:
        """Keep a layer's keys and values, where something is shared."""
        if self.lengths:
            self.layers[layer] = (key, value)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Float[Tensor, "B L heads D"]:
        """Attention of rows to their group's prefix and, causally, to themselves; B = G * N, a group's rows together.

        query [B, heads, L, D]; key, value [B, kv_heads, L, D]; the prefix's [G, kv_heads, P, D] are never copied.
        """
        return prefix_attention(query, key, value, self.layers[layer], self.lengths, scaling).transpose(1, 2)


class KnownPrefix(NamedTuple):
    """Keys and values of one prefix by layer, each [kv, P, D], and the pictures it was read with."""

    layers: dict[int, tuple[Tensor, Tensor]]
    pictures: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        of_layers = sum(key.nbytes + value.nbytes for key, value in self.layers.values())
        return of_layers + sum(pixels.nbytes for pixels in self.pictures)


class PrefixKey(NamedTuple):
    """What a prefix is known by: its tokens and the tensors of its pictures, by identity."""

    ids: tuple[int, ...]
    pictures: tuple[int, ...]


class PrefixStore:
    """Prefixes that were read before, for later questions: the last used ones, up to `max_bytes`.

    Pictures are known by their tensors, which must not be changed in place. Used from many threads.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.hits, self.misses = max_bytes, 0, 0, 0
        self._kept: OrderedDict[PrefixKey, KnownPrefix] = OrderedDict()
        self._weights: tuple[int, ...] = ()
        self._lock = threading.RLock()

    def check_weights(self, versions: tuple[int, ...]) -> None:
        """Forget all where weights were changed in place. versions: how often each was."""
        with self._lock:
            if versions != self._weights:
                self.clear()
                self._weights = versions

    def find(self, key: PrefixKey) -> KnownPrefix | None:
        """What is kept of it, which is now the last used."""
        with self._lock:
            known = self._kept.get(key)
            if known is None:
                self.misses += 1
            else:
                self.hits += 1
                self._kept.move_to_end(key)
            return known

    def keep(self, key: PrefixKey, known: KnownPrefix) -> None:
        """Keep it, and let go of those that were not used for longest beyond the limit."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = known
                self.bytes += known.nbytes
            while self.bytes > self.max_bytes:
                self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Keep nothing of what was read so far."""
        with self._lock:
            self._kept.clear()
            self.bytes = 0


def split_prefix(prefix: Prefix, pictures: Sequence[tuple[Tensor, ...]]) -> list[KnownPrefix]:
    """Each of the G prefixes by itself, without its padding. pictures: of each."""
    return [
        KnownPrefix(
            {layer: (k[g, :, :length].clone(), v[g, :, :length].clone()) for layer, (k, v) in prefix.layers.items()},
            shown,
        )
        for g, (length, shown) in enumerate(zip(prefix.lengths, pictures, strict=True))
    ]


def joined_prefixes(known: Sequence[KnownPrefix], lengths: Sequence[int]) -> Prefix:
    """Prefixes side by side, padded to the longest."""
    prefix = Prefix(lengths)
    for layer in known[0].layers:
        key, value = (
            padded([one.layers[layer][part].transpose(0, 1) for one in known]).transpose(1, 2) for part in (0, 1)
        )
        prefix.keep(layer, key, value)
    return prefix


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Tensors [L_i, ...] padded with zeros on the right to [B, L, ...]."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
