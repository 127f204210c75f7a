"""Offsets against what a log holds, as the writers' feed compares them (with a broker: tests/faults)."""

from app.events.ranges import TopicBounds
from app.events.schema import EVENTS
from app.settings import KafkaSettings
from app.state.feed import StateFeed


def feed(offsets: dict[int, int], topic_id: str) -> StateFeed:
    nowhere = KafkaSettings(bootstrap_servers="127.0.0.1:1")
    return StateFeed(nowhere, {EVENTS: offsets}, {EVENTS: topic_id}, topics=(EVENTS,))


def test_a_topic_made_anew_with_fewer_partitions_begins_anew_where_they_are_added_later() -> None:
    found = feed({0: 10, 1: 20, 2: 0}, "old")
    found._compare_topic(TopicBounds(EVENTS, "new", {0: 0}, {0: 3}))
    assert found._moved.offsets == {(EVENTS, 0): 0, (EVENTS, 1): 0}
    assert found._moved.jumps == {"recreated": 30}
    found._moved.offsets.clear()
    found._compare_topic(TopicBounds(EVENTS, "new", {0: 0, 1: 0, 2: 0}, {0: 3, 1: 7, 2: 7}))
    assert not found._moved.offsets
    assert found._moved.jumps == {"recreated": 30}
    found.close()


def test_a_partition_that_is_not_named_for_a_while_keeps_its_offset() -> None:
    found = feed({0: 10, 1: 20}, "same")
    found._compare_topic(TopicBounds(EVENTS, "same", {0: 0}, {0: 30}))
    found._compare_topic(TopicBounds(EVENTS, "same", {0: 0, 1: 0}, {0: 30, 1: 30}))
    assert (found._moved.offsets, found._moved.jumps) == ({}, {})
    found.close()


def test_a_beginning_that_is_gone_is_a_gap_for_a_new_reader() -> None:
    found = feed({}, "same")
    found._compare_topic(TopicBounds(EVENTS, "same", {0: 0, 1: 7}, {0: 30, 1: 30}))
    assert found._next == {(EVENTS, 0): 0, (EVENTS, 1): 7}
    assert (found._moved.offsets, found._moved.jumps) == ({(EVENTS, 1): 7}, {"gap": 7})
    found.close()
