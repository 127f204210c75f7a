"""Items and users as columns: what is taken at a glance is what the rules say, and versions fold as one by one."""

import json
from collections.abc import Sequence
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.events.columns import RECORDS
from app.events.entities import ENTITY_COLUMNS, decode_entities, latest_versions
from app.events.schema import ITEMS, USERS, EventRejected, read_columns

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64) + 1, 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.one_of(st.text(max_size=3), st.integers(0, 3), st.floats(0, 1), st.booleans(), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=1),
)
NAMES = st.sampled_from(["a", "", "é" * 40, "é" * 70, "item_id", "schema_version", "available"])
BODIES = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=4).map(lambda body: _dumped(body)),
    st.sampled_from([b"", b"null", b" null ", b"[]", b"7", b'{"a":', b'{"a":NaN}', b"\xff", b'{"a":1,"a":"b"}']),
)
KEYS = st.sampled_from([b"1", b"", None, b"\xff", b"x" * 128, b"x" * 129, "é".encode()])


def _dumped(body: dict[str, Any]) -> bytes:

    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def records(messages: Sequence[tuple[bytes | None, bytes | None]]) -> pa.Table:
    rows = [
        {"partition": 2, "offset": 5 + place, "record_time": 7, "key": key, "value": value}
        for place, (key, value) in enumerate(messages)
    ]
    return pa.Table.from_pylist(rows, RECORDS)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, BODIES), max_size=6))
@example(
    [(b"1", b'{"schema_version":1,"title":"x"}'), (b"1", b'{"schema_version":2}'), (b"1", b'{"schema_version":true}')]
)
@example([(b"1", b'{"item_id":"1","a":[1,2]}'), (b"1", b'{"item_id":"2"}'), (b"1", b'{"a":9223372036854775808}')])
def test_messages_are_what_the_rules_say_one_by_one(messages: list[tuple[bytes | None, bytes | None]]) -> None:
    accepted, rejected = [], []
    for place, (key, value) in enumerate(messages):
        try:
            name, columns = read_columns(key, value or b"", "item_id")
            accepted.append((name, None if columns is None else orjson.dumps(columns).decode(), 5 + place))
        except EventRejected as error:
            rejected.append((error.code, error.message[:1000], 5 + place))
    found = decode_entities(ITEMS, records(messages))
    assert [(row["item_id"], row["columns"], row["offset"]) for row in found.events.to_pylist()] == accepted
    assert [row["available"] for row in found.events.to_pylist()] == [text is not None for _, text, _ in accepted]
    assert [(row["reason"], row["detail"], row["offset"]) for row in found.rejected.to_pylist()] == rejected
    assert found.events.schema.equals(ENTITY_COLUMNS[ITEMS])


@pytest.mark.parametrize("topic", [ITEMS, USERS])
def test_many_versions_of_many_ids_fold_as_one_after_the_other(topic: str) -> None:
    bodies = [None, b'{"a":1}', b'{"a":2}', b"{}"]
    messages = [(str(n * 7 % 5).encode(), bodies[n * n % 4]) for n in range(40)]
    changes = decode_entities(topic, records(messages)).events
    at_once = latest_versions(topic, ENTITY_COLUMNS[topic].empty_table(), changes)
    stood = ENTITY_COLUMNS[topic].empty_table()
    for place in range(len(changes)):
        stood = latest_versions(topic, stood, changes.slice(place, 1))
    name = stood.schema.names[0]
    assert at_once.sort_by(name).to_pylist() == stood.sort_by(name).to_pylist()
    last = {key.decode(): body for key, body in messages if key is not None}
    assert {row[name]: row["available"] for row in stood.to_pylist()} == {
        key: body is not None for key, body in last.items()
    }
    assert all((row["columns"] is None) == (topic == USERS and not row["available"]) for row in stood.to_pylist())
