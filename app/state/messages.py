"""Messages as the consumer hands them over to a batch for the store: checked by the one rule set, bad ones counted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
from confluent_kafka import Message

from app.erasure.erased import NOBODY, Erased, ErasedOn
from app.events.plain import plain_event
from app.events.rows import check_arrival, parse_json
from app.events.schema import EVENTS, ITEMS, USERS, EventRejected, parse_time, read_columns, validate_event
from app.events.versions import VersionPlace
from app.settings import EventSettings
from app.state.arrivals import arrival_ms
from app.state.batch import Batch, StateEvent
from app.state.feed import Read

_NAN = float("nan")


def to_batch(
    read: Read, settings: EventSettings, erased: Erased = NOBODY, topic_ids: Mapping[str, str] | None = None
) -> Batch:
    """What a poll brought, as one batch.

    Args:
        read: the messages.
        settings: `settings.events`.
        erased: whose messages are left out.
        topic_ids: topic → its id, as offsets of erasures are told apart by; "": it has none.
    """
    skipped: Counter[str] = Counter()
    by_topic: dict[str, list[Message]] = {}
    for message in read.messages:
        by_topic.setdefault(message.topic(), []).append(message)
    found, ids = by_topic.pop(EVENTS, []), topic_ids or {}
    events = _events(found, settings, skipped)
    events = without_erased(events, erased.on(EVENTS, ids.get(EVENTS, "")))
    if USERS in by_topic:
        by_topic[USERS] = _about_others(by_topic[USERS], erased.on(USERS, ids.get(USERS, "")))
    places: list[VersionPlace] = []  # of the items
    columns = {
        topic: list(_columns(rest, topic, skipped, places if topic == ITEMS else None))
        for topic, rest in by_topic.items()
    }
    items, users = columns.pop(ITEMS, []), [pair for pairs in columns.values() for pair in pairs]
    return Batch(events, items, users, read.offsets, dict(skipped), read.jumps, places)


def without_erased(events: list[StateEvent], erased: ErasedOn) -> list[StateEvent]:
    """Events in the order of their offsets, without those from before an erasure of whom they are about."""
    firsts: dict[int, int] = {}
    for event in events:
        firsts.setdefault(event.partition, event.offset)
    if erased.passed(firsts):
        return events
    return [event for event in events if not _is_erased(event, erased)]


def _is_erased(event: StateEvent, erased: ErasedOn) -> bool:
    place = (event.partition, event.offset, event.record_time)
    if event.user_id:
        return erased.message("user", event.user_id, *place)
    return erased.message("session", event.session_id or "", *place)


def _about_others(messages: Sequence[Message], erased: ErasedOn) -> list[Message]:
    """Messages of `users` without those from before an erasure of the user."""
    return [
        message
        for message in messages
        if not erased.keyed(message.key(), message.partition(), message.offset(), arrival_ms(message))
    ]


def events_of(table: pa.Table) -> list[StateEvent]:
    """Accepted events (`app.events.columns.EVENT_COLUMNS`, or rows of the lake) as the state sees them."""
    columns: list[list[Any]] = [
        table["partition"].to_pylist(),
        table["offset"].to_pylist(),
        (table["record_time"].cast(pa.int64()).to_numpy() // 1000).tolist(),
        *(table[name].to_pylist() for name in ("event_id", "user_id", "session_id", "item_id", "event_type")),
        table["event_time"].cast(pa.int64()).to_pylist(),
        table["value"].fill_null(_NAN).to_pylist(),
    ]
    return [StateEvent(*row) for row in zip(*columns, strict=True)]


def _events(messages: Sequence[Message], settings: EventSettings, skipped: Counter[str]) -> list[StateEvent]:
    """The events that are accepted. What is plainly so is taken as it was parsed; for the rest a model is made."""
    events = []
    for message in messages:
        arrival = arrival_ms(message)
        try:
            check_arrival(arrival)
            raw = parse_json(message.value())
            event = plain_event(raw, arrival, settings) or validate_event(raw, arrival, settings)
        except EventRejected as error:
            skipped[error.code] += 1
            continue
        partition, offset, time, value = message.partition(), message.offset(), event.event_time, event.value
        events.append(
            StateEvent(
                partition,
                offset,
                arrival,
                event.event_id or f"{EVENTS}/{partition}/{offset}",
                event.user_id,
                event.session_id,
                event.item_id,
                event.event_type,
                arrival * 1000 if time is None else parse_time(time),
                _NAN if value is None else value,
            )
        )
    return events


def _columns(
    messages: Sequence[Message], topic: str, skipped: Counter[str], places: list[VersionPlace] | None
) -> Iterable[tuple[str, bytes | None]]:
    id_field = "item_id" if topic == ITEMS else "user_id"
    for message in messages:
        arrival = arrival_ms(message)
        try:
            check_arrival(arrival)
            name, columns = read_columns(message.key(), message.value() or b"", id_field)
        except EventRejected as error:
            skipped[error.code] += 1
            continue
        if places is not None:
            places.append(VersionPlace(message.partition(), arrival))
        yield name, None if columns is None else orjson.dumps(columns)
