"""Messages to batches: what ingest makes of them in columns, bad ones counted and never in the way."""

import json
from collections import Counter
from typing import Any

import orjson
import pyarrow as pa

from app.events.columns import RECORDS
from app.events.decode import decode_topic
from app.events.schema import EVENTS
from app.settings import EventSettings
from app.state import messages
from app.state.feed import Read


class Record:
    """What confluent hands over."""

    def __init__(
        self, topic: str, offset: int, value: bytes | None, key: bytes = b"k", arrival: int = 1_700_000_000_000
    ) -> None:
        self._place, self._value, self._key, self._arrival = (topic, offset), value, key, arrival

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return 1

    def offset(self) -> int:
        return self._place[1]

    def timestamp(self) -> tuple[int, int]:
        return 1, self._arrival

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes | None:
        return self._value


GOOD: list[dict[str, Any]] = [
    {"user_id": "u", "item_id": "é", "event_type": "rating", "event_time": "2005-01-31T12:00:00.5+01:00", "value": 4},
    {"session_id": "s", "item_id": "1", "event_type": "click", "event_id": "e"},
    {"user_id": "u", "session_id": "s", "event_type": "merge", "event_time": "2005-01-31T12:00:00Z"},
    {"user_id": "u", "event_type": "search", "context": {"q": "x"}},
]
BAD = [
    b"{", b"", b"\xff", b"[]", b'{"user_id":"u"}', b'{"user_id":"u","item_id":"i","event_type":"click","value":NaN}',
    orjson.dumps({"user_id": "u", "item_id": "i", "event_type": "click", "event_time": "2999-01-01T00:00:00Z"}),
]  # fmt: skip


def test_good_events_become_what_the_state_sees_and_bad_ones_are_counted() -> None:
    values = [part for pair in zip([orjson.dumps(event) for event in GOOD], BAD, strict=False) for part in pair] + BAD[
        4:
    ]
    read = Read([Record("events", offset, value) for offset, value in enumerate(values)], {("events", 1): 99})
    batch = messages.to_batch(read, EventSettings())
    assert dict(batch.offsets) == {("events", 1): 99}
    assert sum(batch.skipped.values()) == len(BAD)
    assert Counter(batch.skipped)["future"] == 1
    assert [event[:2] for event in batch.events] == [(1, 0), (1, 2), (1, 4), (1, 6)]
    rating, click, merge, search = batch.events
    assert (rating.time, rating.value, rating.item_id) == (1_107_169_200_500_000, 4.0, "é")
    assert (click.time, click.event_id, click.value != click.value) == (1_700_000_000_000_000, "e", True)
    assert (merge.user_id, merge.session_id, merge.entry) == ("u", "s", None)
    assert (search.event_id, search.entry) == ("events/1/6", None)


def test_events_are_what_ingest_makes_of_them_in_columns() -> None:
    plain = {"user_id": "u", "item_id": "i", "event_type": "click"}
    more: list[dict[str, Any]] = [
        plain | {"schema_version": 2},
        plain | {"value": 10**30, "position": 3},
        plain | {"position": 3.0},
        plain | {"value": True},
        plain | {"event_id": "x" * 129},
        plain | {"user_id": None, "session_id": "é" * 64, "campaign": [1]},
        plain | {"event_time": "2016-12-31T23:59:60Z", "context": {"a": {"b": [1.5]}}},
        plain | {"event_time": "2023-11-14T22:23:20.123456Z"},
        plain | {"event_time": "2023-11-14T22:23:21Z"},
    ]
    values = [*map(orjson.dumps, GOOD), *BAD, *map(json_of, more)]
    records = [Record(EVENTS, offset, value) for offset, value in enumerate(values)]
    batch = messages.to_batch(Read(records), EventSettings())
    rows = [(1, offset, 1_700_000_000_000, b"k", value) for offset, value in enumerate(values)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    decoded = decode_topic(EVENTS, pa.table(columns, schema=RECORDS), EventSettings())
    assert list(map(repr, batch.events)) == list(map(repr, messages.events_of(decoded.events)))
    assert batch.skipped == Counter(decoded.rejected["reason"].to_pylist())


def json_of(event: dict[str, Any]) -> bytes:
    """Also of integers that orjson cannot say."""
    return json.dumps(event).encode()


def test_an_arrival_that_no_calendar_has_stops_nothing() -> None:
    value, nanos = orjson.dumps(GOOD[1]), 1_700_000_000_000_000_000
    read = Read(
        [
            Record("events", 0, value, arrival=nanos),
            Record("events", 1, value),
            Record("items", 0, b"{}", arrival=nanos),
        ]
    )
    batch = messages.to_batch(read, EventSettings())
    assert [event.offset for event in batch.events] == [1]
    assert not batch.items
    assert batch.skipped == {"range": 2}


def test_items_and_users_put_withdraw_and_skip() -> None:
    read = Read(
        [
            Record("items", 0, b'{"schema_version":1,"year":1}', b"a"),
            Record("items", 1, None, b"b"),
            Record("items", 2, b"null", b"c"),
            Record("items", 3, b"[1]", b"d"),
            Record("users", 0, b'{"age":3}', b"u"),
            Record("users", 1, b"{}", b""),
        ]
    )
    batch = messages.to_batch(read, EventSettings())
    assert list(batch.items) == [("a", b'{"year":1}'), ("b", None), ("c", None)]
    assert list(batch.users) == [("u", b'{"age":3}')]
    assert batch.skipped == {"type": 1, "key": 1}
