"""Whom a message that nobody could read is about: dead letters of the erased are found, whatever is wrong with them."""

import base64
from typing import Any

import orjson
import pyarrow as pa
import pytest

from app.erasure.erased import Boundary, Entry, Erased, Salt, TopicEnd
from app.erasure.places import Subject
from app.events.columns import REJECTED
from app.events.letter_owners import is_erased, is_of, of_others
from app.events.schema import EVENTS

ENDS = {EVENTS: TopicEnd("id", {0: 10})}
SUBJECT = Subject("e", "änn", ("s1",), 5_000, ENDS)
SALT = Salt(b"salt")
KEYS = frozenset({SALT.key("user", "änn"), SALT.key("session", "s1")})
ERASED = Erased(SALT, [Entry(KEYS, Boundary(5_000, ENDS))])

HIS = {
    "key alone": ("änn".encode(), b"\xff\xfe"),
    "a session as key": (b"s1", b""),
    "a field": (b"", orjson.dumps({"user_id": "änn", "item_id": 7})),
    "escaped": (b"", b'{"user_id": "\\u00e4nn", "item_id": 7}'),
    "torn": (b"", b'{"user_id": "\\u00e4nn", "item_id": '),
    "a session's": (b"x", orjson.dumps({"session_id": "s1"})),
}
OTHERS = {
    "nobody's": (b"", b"rubbish"),
    "another's": (b"bob", orjson.dumps({"user_id": "bob", "item_id": "änn"})),
    "of another user in the session": (b"bob", orjson.dumps({"user_id": "bob", "session_id": "s1"})),
    "longer": (b"", orjson.dumps({"user_id": "änne"})),
}


def letter(key: bytes, raw: bytes, offset: int = 9, time: str = "2020-01-01T00:00:00Z") -> dict[str, Any]:
    place = {"topic": EVENTS, "partition": 0, "offset": offset, "time": time}
    return place | {"key": base64.b64encode(key).decode(), "raw": base64.b64encode(raw).decode()}


@pytest.mark.parametrize("name", [*HIS, *OTHERS])
def test_whose_it_is(name: str) -> None:
    key, raw = (HIS | OTHERS)[name]
    assert is_of(letter(key, raw), SUBJECT) == is_erased(letter(key, raw), ERASED) == (name in HIS)
    assert not is_of(letter(key, raw, offset=10), SUBJECT), "it came after the erasure"
    assert not is_erased(letter(key, raw, offset=10), ERASED)
    arrived_before = letter(key, raw, offset=99, time="1970-01-01T00:00:04Z")  # of a topic that was made anew since
    assert is_of(arrived_before, SUBJECT) == (name in HIS)
    for topic_id, his in (("id", name in HIS), ("that of a topic made anew since", False)):
        found = letter(key, raw) | {"topic_id": topic_id}
        assert is_of(found, SUBJECT) == is_erased(found, ERASED) == his


def test_what_is_no_json_and_quotes_a_telling_id_is_his() -> None:
    long = Subject("e", "0d7c5e2f9a8b4c3d", (), 5_000, ENDS)
    assert is_of(letter(b"", b'{"who": "0d7c5e2f9a8b4c3d", '), long)
    assert not is_of(letter(b"", b'{"who": "0d7c5e2f9a8b4c3d0", '), long)
    assert not is_of(letter(b"", b'{"item_id": "s1", '), SUBJECT), "a short one may be anything"


def test_refused_messages_are_told_apart_before_they_become_letters() -> None:
    rows = [
        {"topic": EVENTS, "partition": 0, "offset": place % 9, "record_time": 9_000, "key": key, "raw": raw}
        for place, (key, raw) in enumerate([*HIS.values(), *OTHERS.values()])
    ]
    rejected = pa.Table.from_pylist(rows, REJECTED)
    left = of_others(rejected, ERASED.on(EVENTS, "id"))
    assert left["raw"].to_pylist() == [raw for _, raw in OTHERS.values()]
    assert of_others(rejected, Erased(SALT, ()).on(EVENTS, "id")) is rejected
