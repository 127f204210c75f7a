"""The columns and the edge judge alike, whatever the message."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.events import columns
from app.events.columns import EVENT_COLUMNS, RECORDS, Decoded, decode
from app.events.rows import judge_rows
from app.settings import EventSettings

RULES = EventSettings()
NOW_MS = 1_700_000_000_000


def records(values: Sequence[bytes | None], first: int = 0) -> pa.Table:
    rows = [
        {"partition": 3, "offset": first + place, "record_time": NOW_MS + place, "key": b"k", "value": value}
        for place, value in enumerate(values)
    ]
    return pa.Table.from_pylist(rows, RECORDS)


def one_by_one(table: pa.Table) -> Decoded:
    accepted, _, rejected = judge_rows("events", table, RULES)
    return Decoded(pa.Table.from_pylist(accepted, EVENT_COLUMNS), pa.Table.from_pylist(rejected, columns.REJECTED))


def event(**fields: Any) -> dict[str, Any]:
    return {"user_id": "u", "item_id": "i", "event_type": "click", **fields}


GOOD: list[dict[str, Any]] = [
    event(),
    event(event_id="e1", event_time="2023-01-02T03:04:05Z", value=4.5),
    event(event_time="2023-01-02T03:04:05.123456+02:00", position=3, surface="home", request_id="r"),
    event(event_time="2023-01-02T03:04:05.123456789Z"),
    event(event_time="2016-12-31T23:59:60Z"),
    event(event_time="0001-01-01T00:00:00Z", value=3),
    event(context={"device": "mobile", "deep": [1, {"a": None}]}, campaign="x"),
    event(note='quote " and \\ slash', value=None),
    event(user_id=None, session_id="s"),
    event(user_id="ü" * 64, item_id="日本"),
    {"user_id": "u", "session_id": "s", "event_type": "merge"},
    {"session_id": "s", "event_type": "search", "query": "a{b}\n"},
]
BAD: list[tuple[bytes | None, str]] = [
    (b"", "json"),
    (None, "json"),
    (b"not json", "json"),
    (b"{}", "missing"),
    (b"[]", "type"),
    (b'{"user_id": "u"', "json"),
    (b'{"user_id":"u","item_id":"i","event_type":"click","value":NaN}', "json"),
    (b'{"user_id":"\xff","item_id":"i","event_type":"click"}', "json"),
    (b'{"user_id":"u","item_id":"i","event_type":"click"}{"a":1}', "json"),
    (json.dumps(event(user_id=7)).encode(), "type"),
    (json.dumps(event(user_id="")).encode(), "range"),
    (json.dumps(event(user_id="x" * 129)).encode(), "range"),
    (json.dumps(event(event_type="Click")).encode(), "range"),
    (json.dumps(event(event_type="click\n")).encode(), "range"),
    (json.dumps(event(event_time="yesterday")).encode(), "range"),
    (json.dumps(event(event_time="2023-02-30T00:00:00Z")).encode(), "range"),
    (json.dumps(event(event_time="2023-02-03T00:00:00")).encode(), "range"),
    (json.dumps(event(event_time="2033-02-03T00:00:00Z")).encode(), "future"),
    (json.dumps(event(position=0)).encode(), "range"),
    (json.dumps(event(position=1.5)).encode(), "type"),
    (json.dumps(event(value="4")).encode(), "type"),
    (json.dumps(event(value=True)).encode(), "range"),
    (json.dumps(event(context=[1])).encode(), "type"),
    (json.dumps(event(schema_version=2)).encode(), "version"),
    (json.dumps({"user_id": "u", "event_type": "merge"}).encode(), "missing"),
    (json.dumps({"item_id": "i", "event_type": "click"}).encode(), "missing"),
    (json.dumps({"user_id": "u", "event_type": "click"}).encode(), "missing"),
]


def test_good_events_are_accepted_by_the_columns_as_by_the_edge() -> None:
    table = records([json.dumps(fields, ensure_ascii=False).encode() for fields in GOOD])
    decoded = decode("events", table, RULES)
    assert decoded.rejected.num_rows == 0
    assert decoded.events.equals(one_by_one(table).events)
    assert decoded.events["offset"].to_pylist() == list(range(len(GOOD)))
    assert decoded.events["event_id"][0].as_py() == "events/3/0"


@pytest.mark.parametrize(("value", "code"), BAD)
def test_a_bad_message_is_named_and_harms_no_other(value: bytes | None, code: str) -> None:
    good = json.dumps(GOOD[1]).encode()
    decoded = decode("events", records([good, value, good]), RULES)
    assert decoded.events["offset"].to_pylist() == [0, 2]
    assert decoded.rejected.select(["offset", "reason", "raw"]).to_pylist() == [
        {"offset": 1, "reason": code, "raw": value}
    ]


def test_the_fast_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("judged one by one")

    monkeypatch.setattr(columns, "judge_rows", refuse)
    table = records([json.dumps(GOOD[1]).encode()] * 10)
    assert decode("events", table, RULES).events.num_rows == 10


def test_a_flood_of_new_keys_makes_no_new_columns() -> None:
    values = [json.dumps(event(**{f"key{place}": place})).encode() for place in range(500)]
    decoded = decode("events", records(values), RULES)
    assert decoded.events["extra"].to_pylist()[7] == '{"key7":7}'


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.sampled_from(["u", "click", "merge", "2023-01-02T03:04:05Z", "2023-13-02T03:04:05Z"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = st.sampled_from([*(name for name in EVENT_COLUMNS.names[:13]), "schema_version", "other", 'qu"ote'])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(KEYS, SCALARS, max_size=5), min_size=1, max_size=5))
def test_whatever_comes_both_ways_agree(fields: list[dict[str, Any]]) -> None:
    table = records([json.dumps(event(**more)).encode() for more in fields])
    fast, slow = decode("events", table, RULES), one_by_one(table)
    assert fast.events.equals(slow.events)
    assert fast.rejected.equals(slow.rejected)
