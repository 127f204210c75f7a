"""Erasure on a broker, whichever it is: what is told and deleted, and what stays for others."""

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from app.erasure.erased import Boundary, Entry, Erased, Salt, TopicEnd
from app.erasure.places import Place, PlaceReport, Subject
from app.events.blocks import read_here
from app.events.dead_letters import (
    dlq_messages,
    list_dead_letters,
    position_in,
    read_dead_letters,
    show_dead_letter,
)
from app.events.erase_letters import LettersPlace
from app.events.erase_log import LogPlace
from app.events.producer import EventProducer
from app.events.replay import Choice, replay_dead_letters
from app.events.schema import DLQ, EVENTS, IMPRESSIONS, USERS, parse_time
from app.events.topics import bounds
from app.lake.ingest import IngestJob
from app.lake.tables import open_lake
from app.settings import ErasureSettings, Settings

DAY_MS = 86_400_000
Reports = dict[str, PlaceReport]


def erase_on_broker(settings: Settings, home: Path) -> tuple[Reports, Reports]:
    """The reports without and with `erasure.delete_records`, after everything that holds of any broker was checked."""
    gone, other = "0d7c5e2f9a8b4c3d6e1f0a9b8c7d6e5f", "somebody-else"
    _send(settings, home, gone, other)
    asked = [EVENTS, IMPRESSIONS, USERS]
    held = bounds(settings.kafka, asked)
    ends = {topic: TopicEnd(held[topic].topic_id, dict(held[topic].end)) for topic in asked}
    subject = Subject("e-1", gone, (), int(time.time() * 1000), ends)
    salt = Salt(b"salt")
    erased = Erased(salt, [Entry(frozenset({salt.key("user", gone)}), Boundary(subject.requested_ms, ends))])

    before = list_dead_letters(settings.kafka)
    his = next(one for one in read_dead_letters(settings.kafka) if gone in base64.b64decode(one["key"]).decode())
    without = _reports(settings, subject, {})
    left = list_dead_letters(settings.kafka, erased=erased)
    assert left["total"] == before["total"] - 2, "it is left out of lists at once"
    position = position_in(his)
    assert show_dead_letter(settings.kafka, position, erased) is None
    report = replay_dead_letters(settings, Choice(frozenset({position})), erased=erased)
    assert report.refused == {"erased": 1}

    allowed = settings.model_copy(update={"erasure": ErasureSettings(delete_records=True)})
    late = {topic: {part: max(0, at - 1) for part, at in end.next.items()} for topic, end in ends.items()}
    held_up = _reports(allowed, subject, {"lake": late, "state": {EVENTS: ends[EVENTS].next}})
    assert "not read by everybody yet (lake)" in held_up["kafka: events"].detail
    now = bounds(settings.kafka, [EVENTS])[EVENTS]
    assert now.first == {part: max(0, at - 1) for part, at in now.end.items()}, "no further than the slowest reader"

    deleted = _reports(allowed, subject, {"lake": {topic: end.next for topic, end in ends.items()}})
    now = bounds(settings.kafka, [EVENTS])[EVENTS]
    assert now.first == now.end
    messages = [
        orjson.loads(value or b"") for _, value in dlq_messages(settings.kafka, bounds(settings.kafka, [DLQ])[DLQ])
    ]
    assert not any(gone.encode() in base64.b64decode(one.get("raw", "")) for one in messages)
    assert list_dead_letters(settings.kafka) == left, "those of others wait as they did"
    again = _reports(allowed, subject, {})
    assert (again["dead letters"].detail, again["kafka: events"].detail) == ("none was his", "the log begins behind it")
    return without, deleted


def later_by_days(report: PlaceReport) -> float:
    """How far ahead the date lies that a report names."""
    assert report.cleared is None
    assert report.retention_until is not None
    return (parse_time(report.retention_until) / 1000 - time.time() * 1000) / DAY_MS


def _reports(settings: Settings, subject: Subject, readers: Mapping[str, Any]) -> Reports:
    places: list[Place] = [LogPlace(settings, lambda: readers), LettersPlace(settings)]
    found = [report for place in places for report in place.clear(subject)]
    assert not any(subject.user_id in report.detail for report in found)
    return {report.place: report for report in found}


def _send(settings: Settings, home: Path, gone: str, other: str) -> None:
    """Events and bad messages of both, the user's columns withdrawn; all ingested."""
    producer = EventProducer(settings.kafka, delivery_timeout_s=30)
    for user in (other, gone):
        event = orjson.dumps({"user_id": user, "item_id": "i", "event_type": "click"})
        torn, wrong = event[:-5], orjson.dumps({"user_id": user, "item_id": 7, "event_type": "click"})
        producer.send_blocking(EVENTS, [(user.encode(), body) for body in (event, torn, wrong)])
        producer.send_blocking(USERS, [(user.encode(), b'{"age": 7}')])
    producer.send_blocking(USERS, [(gone.encode(), None)])
    producer.close()
    job = IngestJob(settings, open_lake(settings, home), read_here)
    try:
        job.take_all()
    finally:
        job.close()
