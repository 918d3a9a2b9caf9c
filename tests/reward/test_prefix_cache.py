"""What is read together: every row once, within the budget, and only what is truly equal is shared."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rewarddance.reward.prefix_cache import Row, common_length, plan

rows_of = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=2, max_size=9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 3)
    ).map(
        lambda drawn: Row(tuple(drawn[0]), min(drawn[1], drawn[2], len(drawn[0])), min(max(drawn[1:]), len(drawn[0])))
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(rows_of, st.integers(1, 60), st.sampled_from(["most", "before", "nothing"]))
def test_every_row_is_read_once_and_shares_only_what_is_equal(rows, budget, sharing):
    batches = plan(rows, budget, sharing)
    members = [i for batch in batches for group in batch.groups for i in group.members]
    assert sorted(members) == list(range(len(rows)))
    for batch in batches:
        assert len({(len(group.members), group.prefix > 0) for group in batch.groups}) == 1
        for group in batch.groups:
            beginnings = {rows[i].signature[: group.prefix] for i in group.members}
            assert len(beginnings) == 1
            assert all(len(rows[i].signature) - group.prefix >= rows[i].wanted for i in group.members)
            assert group.prefix == 0 or sharing != "nothing"
        size = len(batch.groups[0].members)
        prefix = max(group.prefix for group in batch.groups)
        own = max(len(rows[i].signature) - group.prefix for group in batch.groups for i in group.members)
        if size * len(batch.groups) > 1:
            assert len(batch.groups) * (prefix + size * own) <= max(budget, prefix + own)


def test_candidates_under_one_reference_share_what_stands_before_them():
    rows = [Row((1, 2, 3, -9, -8, 50 + k, 60, 70), 5, 6) for k in range(4)]
    (batch,) = plan(rows, 1000)
    assert [(sorted(g.members), g.prefix) for g in batch.groups] == [([0, 1, 2, 3], 5)]


def test_questions_about_one_candidate_share_it_too():
    rows = [Row((1, 2, -1 - c, -2 - c, 90, q), 2, 4) for c in (0, 10) for q in range(5)]
    (batch,) = plan(rows, 1000)
    assert [(sorted(g.members), g.prefix) for g in batch.groups] == [([0, 1, 2, 3, 4], 5), ([5, 6, 7, 8, 9], 5)]


def test_one_candidate_is_read_apart_from_what_no_gradient_reaches():
    row = Row((1, 2, 3, -9, -8, 50, 60, 70), 5, 6)
    assert plan([row], 1000)[0].groups[0].prefix == 0
    assert plan([row], 1000, "before")[0].groups[0].prefix == 5


def test_equal_rows_still_have_the_states_that_are_wanted_of_their_own():
    rows = [Row((1, 2, -9, 4, 5, 6, 7, 8), 2, 3, wanted=2)] * 3
    assert plan(rows, 1000)[0].groups[0].prefix == 6


def test_what_sequences_share_is_counted_from_the_first():
    assert common_length([(1, 2, 3), (1, 2, 4), (1, 2)]) == 2
    assert common_length([(1, 2, 3), (2, 2, 3)]) == 0
