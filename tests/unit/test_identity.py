"""De-duplication: exact, first one wins, only within the horizon."""

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.events.identity import SeenEvents, identity_hashes

TEXT = st.text(alphabet="ab\0é", min_size=1, max_size=20)


def hashes(rows: list[tuple[str | None, str | None, str]]) -> np.ndarray:
    users, sessions, ids = ([row[place] for row in rows] for place in range(3))
    columns = [pa.chunked_array([pa.array(column, pa.string())]) for column in (users, sessions, ids)]
    return identity_hashes(*columns)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.none() | TEXT, TEXT, TEXT), min_size=1, max_size=30))
@example([(None, "a", "a"), (None, "a", "b\0")])
def test_equal_identities_and_only_they_have_equal_hashes(rows: list[tuple[str | None, str, str]]) -> None:
    names = [(user or session, event) for user, session, event in rows]
    found = [tuple(row) for row in hashes(list(rows)).tolist()]
    assert len(set(found)) == len(set(names))
    assert all(
        (a == b) == (c == d) for a, c in zip(names, found, strict=True) for b, d in zip(names, found, strict=True)
    )


def test_hashes_do_not_depend_on_the_place_in_the_column() -> None:
    column = pa.array([f"user-{number}" * (number % 5 + 1) for number in range(100)])
    whole = identity_hashes(pa.chunked_array([column]), pa.chunked_array([column]), pa.chunked_array([column]))
    part = pa.chunked_array([column.slice(40, 20)])
    assert (identity_hashes(part, part, part) == whole[40:60]).all()


def test_what_is_added_bit_by_bit_lies_in_few_runs_of_which_the_large_ones_stay() -> None:
    seen = SeenEvents(1000)
    column = pa.chunked_array([pa.array([f"e{number}" for number in range(5000)])])
    rows, times = identity_hashes(column, column, column), np.zeros(5000, np.int64)
    seen.add(rows[:4000], times[:4000])
    large = [share[0] for share in seen._runs]
    for number in range(4000, 5000):
        seen.add(rows[number : number + 1], times[:1])
    assert all(share[0] is run for share, run in zip(seen._runs, large, strict=True))
    assert max(map(len, seen._runs)) <= 12
    assert len(seen) == 5000
    assert seen.duplicates(rows, times).all()


def test_what_nothing_can_match_any_more_goes_once_it_is_worth_it() -> None:
    seen = SeenEvents(10)
    column = pa.chunked_array([pa.array([f"e{number}" for number in range(10_000)])])
    seen.add(identity_hashes(column, column, column), np.arange(10_000) // 100)
    for now, left in ((15, 10_000), (40, 7000), (45, 7000), (200, 0)):
        seen.forget_before(now)
        assert len(seen) == left


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 30)), max_size=12), max_size=4),
    st.integers(1, 20),
)
def test_as_one_would_count_by_hand(batches: list[list[tuple[str, int]]], horizon: int) -> None:
    seen = SeenEvents(horizon)
    kept: list[tuple[str, int]] = []
    for batch in batches:
        if not batch:
            continue
        rows = hashes([("u", None, name) for name, _ in batch])
        times = np.array([time for _, time in batch], np.int64)
        by_hand = []
        before = list(kept)
        for name, time in batch:
            double = any(other == name and abs(time - at) < horizon for other, at in kept)
            by_hand.append(double)
            if not double:
                kept.append((name, time))
        assert len(kept) >= len(before)
        doubled = seen.duplicates(rows, times)
        assert doubled.tolist() == by_hand
        seen.add(rows[~doubled], times[~doubled])
