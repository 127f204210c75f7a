"""No message stops the others: what no column, no calendar and no dead letter could hold is refused alone."""

from typing import Any

import orjson
import pyarrow as pa
import pytest

from app.events import columns, decode
from app.events.columns import RECORDS, Decoded
from app.events.dead_letters import dead_letter_messages, is_whole
from app.events.decode import TABLES, decode_topic
from app.events.producer import _MAX_MESSAGE_BYTES
from app.events.schema import EVENTS, IMPRESSIONS, ITEMS, USERS, parse_time
from app.settings import EventSettings

RULES = EventSettings()
NOW_MS = 1_700_000_000_000
SHOWN = {"item_id": "i", "position": 1}
GOOD: dict[str, dict[str, Any]] = {
    EVENTS: {"user_id": "u", "item_id": "i", "event_type": "click"},
    ITEMS: {"year": 1},
    USERS: {"age": 1},
    IMPRESSIONS: {"request_id": "r", "surface": "home", "time": "2023-01-01T00:00:00Z", "items": [SHOWN]},
}


def records(values: list[bytes], times: list[int] | None = None, key: bytes = b"k") -> pa.Table:
    count = len(values)
    return pa.table([[0] * count, range(count), times or [NOW_MS] * count, [key] * count, values], schema=RECORDS)


def offsets(found: Decoded) -> list[int]:
    """Of what was accepted."""
    return [int(offset) for offset in found.events["offset"].to_pylist()]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"items": [SHOWN, {"item_id": "i", "position": 2**31}]}, "range"),
        ({"schema_version": "7"}, "version"),
        ({"schema_version": "99999999999"}, "version"),
    ],
)
def test_an_impression_that_no_column_holds_harms_no_other(more: dict[str, Any], reason: str) -> None:
    good = orjson.dumps(GOOD[IMPRESSIONS])
    found = decode_topic(IMPRESSIONS, records([good, orjson.dumps(GOOD[IMPRESSIONS] | more), good]), RULES)
    assert offsets(found) == [0, 2]
    assert found.rejected["reason"].to_pylist() == [reason]


@pytest.mark.parametrize("topic", TABLES)
@pytest.mark.parametrize("odd", [NOW_MS * 1000, NOW_MS * 1_000_000, -(10**17)], ids=["micros", "nanos", "before"])
def test_an_arrival_that_no_calendar_has_is_refused(topic: str, odd: int) -> None:
    found = decode_topic(topic, records([orjson.dumps(GOOD[topic])] * 3, [NOW_MS, odd, NOW_MS]), RULES)
    assert offsets(found) == [0, 2]
    assert found.rejected["reason"].to_pylist() == ["range"]
    ((_, letter),) = dead_letter_messages(found.rejected)
    assert parse_time(orjson.loads(letter)["time"])
    assert str(odd) in orjson.loads(letter)["detail"]


def test_what_nobody_has_thought_of_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = columns.decode

    def strange(topic: str, some: pa.Table, rules: EventSettings) -> Decoded:
        if 5 in some["offset"].to_pylist():
            raise pa.ArrowInvalid("no such number")
        return real(topic, some, rules)

    monkeypatch.setattr(decode, "decode", strange)
    found = decode_topic(EVENTS, records([orjson.dumps(GOOD[EVENTS])] * 9), RULES)
    assert offsets(found) == [0, 1, 2, 3, 4, 6, 7, 8]
    (letter,) = found.rejected.to_pylist()
    assert (letter["offset"], letter["reason"], letter["detail"]) == (5, "type", "not storable: no such number")


@pytest.mark.parametrize(
    ("topic", "key", "value"),
    [
        (ITEMS, b"1", b'{"' + b"n" * 700_000 + b'":1}'),
        (EVENTS, b"k" * 500_000, b"x" * 500_000),
        (EVENTS, b"k" * 100_001, b""),
        (EVENTS, b"k", b'"' * 999_999),
    ],
    ids=["a name as long as the message", "a long key", "a key", "a long message"],
)
def test_a_dead_letter_fits_into_a_message_whatever_was_refused(topic: str, key: bytes, value: bytes) -> None:
    rejected = decode_topic(topic, records([value], key=key), RULES).rejected
    ((place, letter),) = dead_letter_messages(rejected)
    assert len(place) + len(letter) < _MAX_MESSAGE_BYTES
    assert not is_whole(orjson.loads(letter))
    ((_, whole),) = dead_letter_messages(decode_topic(EVENTS, records([b"rubbish"]), RULES).rejected)
    assert is_whole(orjson.loads(whole))
