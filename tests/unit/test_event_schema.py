"""Messages at the edge: what is accepted, what is made of it, and how the refusal reads."""

import uuid
from typing import Any

import orjson
import pytest

from app.events.schema import (
    EventRejected,
    Identity,
    columns_message,
    event_messages,
    format_time,
    parse_time,
    read_columns,
    validate_event,
    validate_item,
)
from app.settings import EventSettings

NOW_MS = 1_700_000_000_000


def accepted(raw: dict[str, Any]) -> Any:
    return validate_event(raw, NOW_MS, EventSettings())


def test_what_is_absent_is_made_and_what_is_unknown_is_kept() -> None:
    event = accepted({"user_id": "u", "item_id": "i", "event_type": "click", "campaign": "x", "value": None})
    ((key, value),) = event_messages(event, NOW_MS)
    wire = orjson.loads(value)
    assert key == b"u"
    assert wire["campaign"] == "x"
    assert "value" not in wire
    assert wire["event_time"] == "2023-11-14T22:13:20Z"
    assert wire["schema_version"] == 1
    assert uuid.UUID(wire["event_id"])


def test_a_merge_stands_under_both_keys_with_one_identity() -> None:
    event = accepted({"user_id": "u", "session_id": "s", "event_type": "merge"})
    (first, one), (second, two) = event_messages(event, NOW_MS)
    assert (first, second) == (b"u", b"s")
    assert one == two


def test_an_event_with_both_ids_belongs_to_the_user() -> None:
    event = accepted({"user_id": "u", "session_id": "s", "item_id": "i", "event_type": "click", "event_id": "e"})
    assert event.identity == Identity("u", "e")


@pytest.mark.parametrize(
    ("raw", "code", "message"),
    [
        ([], "type", "found a list, wanted an object"),
        ({"user_id": 3, "item_id": "i", "event_type": "click"}, "type", "user_id: found 3, wanted a valid string"),
        ({"item_id": "i", "event_type": "click"}, "missing", "missing: user_id or session_id"),
        (
            {"user_id": "u", "item_id": "i", "event_type": "click", "event_time": "2023-11-14T22:23:21Z"},
            "future",
            "event_time: found 2023-11-14T22:23:21Z, wanted at most 600 s after arrival",
        ),
        (
            {"user_id": "u", "item_id": "i", "event_type": "click", "event_time": "2023-02-30T22:23:21Z"},
            "range",
            "event_time: found '2023-02-30T22:23:21Z', wanted a day and a time of day that there are",
        ),
    ],
)
def test_a_refusal_says_what_was_found_and_what_was_wanted(raw: Any, code: str, message: str) -> None:
    with pytest.raises(EventRejected) as caught:
        accepted(raw)
    assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.parametrize("text", ["1969-12-31T23:59:59Z", "2023-11-14T22:13:20.000001Z", "0001-01-01T00:00:00Z"])
def test_times_go_round(text: str) -> None:
    assert format_time(parse_time(text)) == text


def test_item_columns() -> None:
    columns = {"title": "Heat", "genres": ["Crime"], "year": 1995, "on": True, "v": [1.0, 2], "none": None}
    name, checked = validate_item("1", columns | {"item_id": "1"})
    assert (name, checked) == ("1", columns)
    assert read_columns(b"1", columns_message(checked), "item_id") == ("1", columns)
    assert read_columns(b"1", b"", "item_id") == ("1", None)
    assert read_columns(b"1", b"null", "item_id") == ("1", None)


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        (None, b"{}", "key"),
        (b"\xff", b"{}", "key"),
        (b"1", b"{", "json"),
        (b"1", b"[]", "type"),
        (b"1", b'{"item_id":"2"}', "key"),
        (b"1", b'{"a":{"b":1}}', "type"),
        (b"1", b'{"a":[1,"b"]}', "type"),
        (b"1", b'{"a":1e301}', "range"),
        (b"1", b'{"schema_version":2}', "version"),
    ],
)
def test_a_bad_item_is_refused(key: bytes | None, value: bytes, code: str) -> None:
    with pytest.raises(EventRejected) as caught:
        read_columns(key, value, "item_id")
    assert caught.value.code == code


def test_what_is_read_of_an_item_may_be_put_again_and_only_delete_withdraws() -> None:
    assert validate_item("1", {"item_id": "1", "available": True, "title": "T"}) == ("1", {"title": "T"})
    for wrong in (False, "no", 1):
        with pytest.raises(EventRejected, match="DELETE withdraws") as refused:
            validate_item("1", {"available": wrong})
        assert refused.value.field == "available"
