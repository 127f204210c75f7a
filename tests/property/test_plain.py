"""What is taken for plainly right is taken by the one rule set too, and becomes the same message."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.events.plain import messages_of, plain_event
from app.events.schema import EVENT_FIELDS, EventRejected, any_time, event_messages, plain_time, validate_event
from app.settings import EventSettings

NOW_MS = 1_700_000_000_000
SETTINGS = EventSettings()

ids = st.sampled_from(["u", "é", "", "x" * 128, "x" * 129, "é" * 64, "é" * 65, "\ud800", 7, None, True, ["u"]])
anything: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, 2, -1, 4.5, 1.0, 1e308, 2**63, 2**70, 1_000_000, 1_000_001, "1", "", [], {}, {"a": [1]}]
)
moments = st.sampled_from(
    [
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:23:20.000001Z",
        "2023-11-14T22:23:21Z",
        "2005-01-31T12:00:00.5+01:00",
        "1969-12-31T23:59:60Z",
        "2023-02-30T00:00:00Z",
        "2023-11-14 22:13:20Z",
        "",
        5,
        None,
    ]
)
kinds = st.sampled_from(["click", "merge", "search", "a_b.c-1", "Click", "", "x" * 64, "x" * 65, "clické", 1, None])
raws = st.fixed_dictionaries(
    {"event_type": kinds},
    optional={
        **dict.fromkeys(("event_id", "user_id", "session_id", "item_id", "surface", "request_id"), ids),
        "event_time": moments,
        **dict.fromkeys(("value", "position", "schema_version", "context", "campaign"), anything),
    },
)


@given(st.one_of(raws, anything))
@example({"user_id": "u", "item_id": "i", "event_type": "click", "value": 4, "context": {"a": 1}, "more": None})
def test_what_is_plainly_right_is_right_and_means_the_same(raw: Any) -> None:
    plain = plain_event(raw, NOW_MS, SETTINGS)
    try:
        event = validate_event(raw, NOW_MS, SETTINGS)
    except EventRejected as error:
        assert plain is None
        with pytest.raises(EventRejected, match=re.escape(error.message)):
            messages_of(raw, NOW_MS, SETTINGS)
        return
    if plain is not None:
        known = {name: getattr(event, name) for name in EVENT_FIELDS if name != "schema_version"}
        assert {name: getattr(plain, name) for name in known} == known
    assert told(lambda: messages_of(raw, NOW_MS, SETTINGS)) == told(lambda: event_messages(event, NOW_MS))


def told(make: Callable[[], Sequence[tuple[bytes, bytes]]]) -> str | list[tuple[bytes, dict[str, Any]]]:
    """Keys and decoded messages, or the code of the refusal."""
    try:
        found = [(key, orjson.loads(value)) for key, value in make()]
    except EventRejected as error:
        return error.code
    for _, body in found:
        if re.fullmatch("[0-9a-f]{32}", body["event_id"]):  # was made
            body["event_id"] = "made"
    return found


def test_what_is_mostly_sent_is_plain() -> None:
    plain: list[dict[str, Any]] = [
        {"user_id": "u", "item_id": "i", "event_type": "click"},
        {"session_id": "s", "user_id": None, "item_id": "i", "event_type": "rating", "value": 4, "campaign": "x"},
        {"user_id": "u", "event_type": "search", "context": {"q": "é"}, "schema_version": 1},
        {"user_id": "u", "item_id": "i", "event_type": "click", "event_time": "2023-11-14T22:13:20.5Z", "position": 3},
    ]
    assert all(plain_event(raw, NOW_MS, SETTINGS) is not None for raw in plain)


digits = st.text("0123456789", max_size=9)
written = st.builds(
    "{:04d}-{}-{}{}{}:{}:{}{}{}".format,
    st.integers(0, 9999),
    *(st.sampled_from(["01", "02", "12", "13", "29", "31", "00", "W1", "1"]) for _ in range(2)),
    st.sampled_from(["T", "T", "T", "t", " ", "T24", ""]),
    *(st.sampled_from(["00", "23", "24", "59", "60", "0", "٠٠"]) for _ in range(3)),
    st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from([".", ",", ""]), digits)),
    st.sampled_from(["Z", "Z", "Z", "z", "+01:00", "-23:59", "+00", ""]),
)


@given(st.one_of(written, written.flatmap(lambda text: st.sampled_from([text[:-1], text[1:], text + "Z", text * 2]))))
@example("2026-01-31T120000.1Z")
@example("2026-01-31T12:00:00,5Z")
@example("0001-01-01T00:00:00Z")
@example("9999-12-31T23:59:59.5Z")
@example("2026-W05-6T00:00:00Z")
def test_a_time_that_is_read_quickly_is_the_same_time(text: str) -> None:
    if (plain := plain_time(text)) is not None:
        assert plain == any_time(text)
