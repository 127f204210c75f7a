"""The pure fold and its record."""

import math
import random

import numpy as np
import pytest

from app.errors import StateUnavailable
from app.state.history import Entry, add, drop_expired, entries_of, extend, fold, is_view, read
from app.state.reader import EMPTY_HISTORY

NAN = float("nan")


def entry(time: int, item: str = "a", kind: str = "click", value: float = NAN, offset: int | None = None) -> Entry:
    return Entry(time * 1000, 0, time if offset is None else offset, item, kind, value)


def test_a_record_reads_back_as_it_was_folded() -> None:
    entries = [entry(2, "bé", "rating", 4.5), entry(1, "a\x00"), entry(3, "c" * 128, "purchase", 1e300)]
    record = fold(entries, 10)
    history = read(record)
    assert history.item_ids == ("a\x00", "bé", "c" * 128)
    assert history.event_types == ("click", "rating", "purchase")
    assert history.times.tolist() == [1, 2, 3]
    assert math.isnan(history.values[0])
    assert history.values[1:].tolist() == [4.5, float(np.finfo(np.float32).max)]
    assert [found[:5] for found in entries_of(record)] == sorted(found[:5] for found in entries)
    assert read(None) is EMPTY_HISTORY
    assert history.version > 0


def test_the_newest_stay_and_ties_go_by_partition_and_offset() -> None:
    ties = [Entry(5, 1, 0, "p1", "click", NAN), Entry(5, 0, 9, "p0", "click", NAN), Entry(4, 7, 7, "old", "click", NAN)]
    assert read(fold(ties, 2)).item_ids == ("p0", "p1")


def test_a_removal_takes_earlier_events_of_its_item_whenever_it_arrives() -> None:
    late = fold([entry(1, "x"), entry(2, "y"), entry(4, "x"), entry(3, "x", "remove")], 10)
    assert read(late).item_ids == ("y", "x")
    record = add(fold([entry(3, "x", "remove")], 10), [entry(1, "x"), entry(2, "y"), entry(4, "x")], 10)
    assert record == late
    assert read(record).times.tolist() == [2, 4]


@pytest.mark.parametrize("kinds", [("click",), ("click", "rating", "remove"), tuple(f"t{n}" for n in range(300))])
def test_adding_in_any_pieces_equals_folding_at_once(kinds: tuple[str, ...]) -> None:
    draw = random.Random(1)
    entries = [
        Entry(
            draw.randrange(40) if place % 3 else place,
            place % 2,
            place,
            str(draw.randrange(9)),
            draw.choice(kinds),
            1.0,
        )
        for place in range(400)
    ]
    for max_history in (1, 3, 50, 1000):
        record, rest = None, list(entries)
        while rest:
            size = draw.choice((1, 1, 2, 20))
            record, rest = add(record, rest[:size], max_history), rest[size:]
        assert record == fold(entries, max_history)


def test_newer_events_extend_a_record_without_folding_it_anew() -> None:
    record = fold([entry(time, str(time), "click") for time in range(5)], 5, view=True)
    extended = extend(record, [entry(9, "n"), entry(8, "m")], 5)
    assert extended == fold([*entries_of(record), entry(8, "m"), entry(9, "n")], 5, view=True)
    assert is_view(extended)
    assert extend(record, [entry(2, "late", offset=77)], 5) is None


def test_the_version_changes_with_every_event_and_not_with_their_order() -> None:
    entries = [entry(time, str(time)) for time in range(20)]
    versions = {read(fold(entries[:n], 100)).version for n in range(1, 21)}
    assert len(versions) == 20
    assert all(0 < version < 2**53 for version in versions)


@pytest.mark.parametrize("kinds", [("click",), ("click", "rating"), tuple(f"t{n}" for n in range(300))])
def test_what_has_expired_is_left_out_as_if_it_had_never_been(kinds: tuple[str, ...]) -> None:
    entries = [
        Entry(-5000 + place * 500, place % 3, place * 7, f"é{place % 9}", kinds[place % len(kinds)], 1.0)
        for place in range(60)
    ]
    record = fold(entries, 100, view=True)
    for since in range(-6, 26):
        left = [entry for entry in entries if entry.time >= since * 1000]
        wanted = read(fold(left, 100))
        dropped = drop_expired(record, since)
        assert dropped == (fold(left, 100, view=True) if left else None)
        for found in (read(record, since), read(dropped, since), read(record).since(since)):
            assert found.item_ids == wanted.item_ids
            assert found.event_types == wanted.event_types
            assert found.times.tolist() == wanted.times.tolist()
        assert read(record, since).version == read(dropped).version == wanted.version
    assert drop_expired(record, None) is record
    assert drop_expired(fold([], 5, view=True), 0) is None


def test_another_format_is_refused() -> None:
    with pytest.raises(StateUnavailable, match="found format 9, wanted 1"):
        read(b"\x09" + fold([entry(1)], 5)[1:])
