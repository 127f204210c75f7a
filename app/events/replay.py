"""`manta dlq replay`: dead letters go back to their topic once their cause is mended, each event once.

Sent is only what the rules of today accept. An event without an id keeps the identity of its original place
(`topic/partition/offset`; of a topic that was made anew since, with its id behind it: at that place stands another by
now), one without a time the time of its arrival there. Once acknowledged, a note in `events.dlq`
takes the letter off the list; killed in between, the next replay sends it again, and lake and state count it once.
"""

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from app.erasure.erased import NOBODY, Erased
from app.events.columns import RECORDS
from app.events.dead_letters import Position, is_whole, position_in, read_dead_letters, replay_note, topic_id_of
from app.events.decode import TABLES, decode_topic
from app.events.entities import ID_FIELDS
from app.events.letter_owners import is_erased
from app.events.producer import EventProducer
from app.events.ranges import OffsetRange
from app.events.reader import range_consumer, read_range
from app.events.schema import DLQ, EVENTS, format_time, parse_time
from app.events.topics import bounds, topic_ids
from app.faults import reach
from app.settings import Settings

Letter = dict[str, Any]
_BATCH = 1_000
_SHOWN = 20
_DELIVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters are meant; both empty: all that wait.

    Attributes:
        positions: these source positions.
        reasons: those with one of these reasons.
    """

    positions: frozenset[Position] = frozenset()
    reasons: frozenset[str] = frozenset()

    def takes(self, letter: Letter) -> bool:
        if self.positions and position_in(letter) not in self.positions:
            return False
        return not self.reasons or letter["reason"] in self.reasons


@dataclass
class ReplayReport:
    """What a replay did, or would do.

    Attributes:
        chosen: dead letters that were meant.
        replayed: sent back and acknowledged.
        already: of the chosen, sent back by an earlier replay: left alone.
        superseded: items and users of which a later version stands in the topic: left alone.
        cut: of which only the beginning was kept, so that they cannot be sent.
        refused: reason to letters that today's rules refuse still.
        first_refused: the first of them.
        unknown: positions asked for of which there is no dead letter.
        dry_run: nothing was sent.
        seconds: wall clock.
    """

    chosen: int = 0
    replayed: int = 0
    already: int = 0
    superseded: int = 0
    cut: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first_refused: list[dict[str, Any]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    dry_run: bool = False
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"refused": dict(self.refused), "seconds": round(self.seconds, 3)}

    def refuse(self, letter: Letter, reason: str, detail: str) -> None:
        self.refused[reason] += 1
        if len(self.first_refused) < _SHOWN:
            self.first_refused.append({**position_in(letter)._asdict(), "reason": reason, "detail": detail})


def replay_dead_letters(
    settings: Settings,
    choice: Choice,
    *,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
    erased: Erased = NOBODY,
) -> ReplayReport:
    """Sends dead letters back to their topics.

    Args:
        settings: with the broker's address; `settings.events` are today's rules.
        choice: which.
        dry_run: look and count, send nothing.
        progress: called with the number of letters looked at.
        erased: whose letters are refused, with the reason `erased`.

    Raises:
        BrokerUnavailable: the broker cannot be reached or does not acknowledge. What was sent is noted, or is counted
            once when it is sent again.
    """
    started = time.monotonic()
    report = ReplayReport(dry_run=dry_run)
    ids = topic_ids(settings.kafka, list(TABLES))
    versions = _Versions(settings, choice, ids)
    found: set[Position] = set()
    producer = EventProducer(settings.kafka, delivery_timeout_s=_DELIVERY_S, linger_ms=20)
    try:
        chosen = _chosen(settings, choice, report, found, erased)
        while letters := list(islice(chosen, _BATCH)):
            for topic in sorted({letter["topic"] for letter in letters}):
                ours = [letter for letter in letters if letter["topic"] == topic]
                fit = list(_fit(topic, ours, settings, versions, report, ids.get(topic, "")))
                if not dry_run:
                    _send(producer, topic, fit)
                report.replayed += len(fit)
            if progress is not None:
                progress(report.chosen)
    finally:
        producer.close()
    report.unknown = sorted(map(str, choice.positions - found))
    report.seconds = time.monotonic() - started
    return report


def _chosen(
    settings: Settings, choice: Choice, report: ReplayReport, found: set[Position], erased: Erased
) -> Iterator[Letter]:
    """The letters that are meant and wait."""
    for letter in read_dead_letters(settings.kafka):
        if not choice.takes(letter):
            continue
        report.chosen += 1
        if choice.positions:
            found.add(position_in(letter))
        if letter["replayed"] is not None:
            report.already += 1
        elif is_erased(letter, erased):
            report.refuse(letter, "erased", "it is about somebody who was erased since")
        else:
            yield letter


def _fit(
    topic: str, letters: list[Letter], settings: Settings, versions: "_Versions", report: ReplayReport, topic_id: str
) -> Iterator[tuple[Letter, bytes, bytes]]:
    """(letter, key, value) of the letters of one topic that can be sent; the others are counted."""
    whole = []
    for letter in letters:
        if topic not in TABLES:
            report.refuse(letter, "topic", f"found topic {topic}, wanted one of {', '.join(TABLES)}")
        elif not is_whole(letter):
            report.cut += 1
        elif versions.later(letter):
            report.superseded += 1
        else:
            whole.append(letter)
    if not whole:
        return
    messages = [restored(letter, topic_id) for letter in whole]
    decoded = decode_topic(topic, _records(messages), settings.events)
    for row in decoded.rejected.select(["offset", "reason", "detail"]).to_pylist():
        report.refuse(whole[row["offset"]], row["reason"], row["detail"])
    for place in decoded.events["offset"].to_pylist():
        yield whole[place], *messages[place]


def restored(letter: Letter, topic_id: str) -> tuple[bytes, bytes]:
    """(key, value) as it goes back: what its place and its arrival stood for is written into an event.

    Args:
        letter: whole.
        topic_id: of the topic that stands there now.
    """
    key, raw = base64.b64decode(letter["key"]), base64.b64decode(letter["raw"])
    if letter["topic"] != EVENTS:
        return key, raw
    try:
        event = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return key, raw
    if not isinstance(event, dict):
        return key, raw
    place = str(position_in(letter))
    kept = {"event_id": f"{place}@{topic_id_of(letter)}" if _is_earlier(letter, topic_id) else place}
    if parse_time(letter["time"]) <= time.time_ns() // 1000:  # else its clock was wrong: it arrives now
        kept["event_time"] = letter["time"]
    missing = {name: value for name, value in kept.items() if event.get(name) is None}
    owner = event.get("user_id") or event.get("session_id")
    if not key and isinstance(owner, str):
        key = owner.encode()
    return key, orjson.dumps(event | missing) if missing else raw


def _is_earlier(letter: Letter, topic_id: str) -> bool:
    """Whether it stood in a topic that was made anew since, as far as both ids are known."""
    stood = topic_id_of(letter)
    return bool(stood and topic_id) and stood != topic_id


def _records(messages: Iterable[tuple[bytes, bytes]]) -> pa.Table:
    """As if they arrived now; their offset is their place."""
    now = time.time_ns() // 1_000_000
    rows = [
        {"partition": 0, "offset": place, "record_time": now, "key": key, "value": value}
        for place, (key, value) in enumerate(messages)
    ]
    return pa.Table.from_pylist(rows, RECORDS)


def _send(producer: EventProducer, topic: str, fit: list[tuple[Letter, bytes, bytes]]) -> None:
    """Sends, waits for all, then notes that it was done."""
    producer.send_blocking(topic, ((key, value) for _, key, value in fit))
    reach("replay:sent")
    moment = format_time(time.time_ns() // 1_000_000 * 1000)
    producer.send_blocking(DLQ, (replay_note(letter, moment) for letter, _, _ in fit))


class _Versions:
    """Which items and users have a later version in their topic than a dead letter: it must not come back over it."""

    def __init__(self, settings: Settings, choice: Choice, ids: Mapping[str, str]) -> None:
        self._settings = settings
        self._ids = ids
        self._choice = choice
        # topic to id to partition to (offset, arrival in milliseconds) of its last readable message
        self._last: dict[str, Mapping[str, dict[int, tuple[int, int]]]] = {}

    def later(self, letter: Letter) -> bool:
        topic = letter["topic"]
        if topic not in ID_FIELDS:
            return False
        if topic not in self._last:
            self._last[topic] = self._look(topic)
        arrived = parse_time(letter["time"]) // 1000
        last = self._last[topic].get(_id(letter), {})
        earlier = _is_earlier(letter, self._ids.get(topic, ""))  # then its offset says nothing
        return any(
            offset > letter["offset"] if partition == letter["partition"] and not earlier else moment > arrived
            for partition, (offset, moment) in last.items()
        )

    def _look(self, topic: str) -> Mapping[str, dict[int, tuple[int, int]]]:
        asked = (one for one in read_dead_letters(self._settings.kafka) if one["topic"] == topic)
        last: dict[str, dict[int, tuple[int, int]]] = {_id(one): {} for one in asked if self._choice.takes(one)}
        held = bounds(self._settings.kafka, [topic])[topic]
        consumer = range_consumer(self._settings.kafka)
        names = (ID_FIELDS[topic], "partition", "offset", "record_time")
        try:
            for partition, end in held.end.items():
                for records in read_range(consumer, OffsetRange(topic, partition, held.first[partition], end)):
                    read = decode_topic(topic, records, self._settings.events).events
                    for name, part, offset, arrived in zip(*(read[n].to_pylist() for n in names), strict=True):
                        if name in last:
                            last[name][part] = (offset, int(arrived.timestamp() * 1000))
        finally:
            consumer.close()
        return last


def _id(letter: Letter) -> str:
    return base64.b64decode(letter["key"]).decode("utf-8", "replace")
