"""What is read next, in which pieces, and which holes stop it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import GapError
from app.events.ranges import OffsetRange, TopicBounds, chunks, plan, tasks


def held(first: int = 0, end: int = 100, topic_id: str = "a") -> TopicBounds:
    return TopicBounds("events", topic_id, {0: first}, {0: end})


def test_reading_goes_on_where_it_stood_and_new_partitions_start_at_their_beginning() -> None:
    two = TopicBounds("events", "a", {0: 5, 1: 7}, {0: 100, 1: 9})
    assert plan(two, "a", {0: 40}) == ([OffsetRange("events", 0, 40, 100), OffsetRange("events", 1, 7, 9)], [])


@pytest.mark.parametrize(
    ("now", "stored", "goes_on", "missing", "reason"),
    [
        (held(first=50), 40, 50, (40, 50), "retention"),
        (held(end=30), 40, 30, (30, 40), "lost messages"),
        (held(end=60, topic_id="b"), 40, 0, (40, 40), "made anew"),
        (held(end=30, topic_id="b"), 40, 0, (40, 40), "made anew"),
    ],
)
def test_a_gap_stops_unless_it_is_accepted(
    now: TopicBounds, stored: int, goes_on: int, missing: tuple[int, int], reason: str
) -> None:
    with pytest.raises(GapError, match=reason) as caught:
        plan(now, "a", {0: stored})
    assert (caught.value.topic, caught.value.partition, caught.value.wanted) == ("events", 0, stored)
    (cut,), (gap,) = plan(now, "a", {0: stored}, accept_gap=True)
    assert cut.start == goes_on
    assert (gap.start, gap.end) == missing


def test_a_broker_without_topic_ids_is_no_new_topic() -> None:
    assert plan(held(topic_id=""), "a", {0: 40})[1] == []


def test_a_compacted_log_that_starts_later_is_no_gap() -> None:
    assert plan(held(first=50), "a", {0: 40}, compacted=True) == ([OffsetRange("events", 0, 50, 100)], [])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 300)), min_size=1, max_size=6),
    st.integers(1, 90),
    st.integers(1, 40),
)
def test_chunks_cover_every_offset_once_in_order_and_within_bounds(
    spans: list[tuple[int, int]], chunk_rows: int, task_rows: int
) -> None:
    ranges = [OffsetRange("events", part, first, first + size) for part, (first, size) in enumerate(spans)]
    reached = {cut.partition: cut.start for cut in ranges}
    for chunk in chunks(ranges, chunk_rows=chunk_rows, task_rows=task_rows):
        assert 0 < sum(len(cut) for cut in chunk) <= chunk_rows
        for task in tasks(chunk, task_rows):
            assert 0 < sum(len(cut) for cut in task) <= task_rows
            for cut in task:
                assert reached[cut.partition] == cut.start
                reached[cut.partition] = cut.end
    assert reached == {cut.partition: cut.end for cut in ranges}
