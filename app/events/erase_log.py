"""Erasure from Kafka's log: deleted where the settings allow and everybody has read it, else until retention has.

A log knows no single messages to delete: what goes, goes with everything before it, of all users.
"""

import time
from collections.abc import Callable, Iterator, Mapping

from kafka import TopicPartition

from app.erasure.erased import TopicEnd
from app.erasure.places import PlaceReport, Subject, cleared
from app.events.limits import UNLIMITED, Limits, compacted_by, deleted_by, topic_limits
from app.events.message_times import MessageTimes
from app.events.ranges import OffsetRange, TopicBounds
from app.events.reader import range_consumer, read_range
from app.events.schema import EVENTS, IMPRESSIONS, USERS, format_time
from app.events.topics import administration, bounds
from app.settings import KafkaSettings, Settings

# Reader → topic → partition → next offset, of the topics that it reads.
Readers = Mapping[str, Mapping[str, Mapping[int, int]]]

_LEARNED = (EVENTS, IMPRESSIONS)
UNKNOWN = "unknown"


class LogPlace:
    """The topics that Manta learns from, on the broker.

    Args:
        settings: with the broker's address.
        readers: asks everybody how far they have read, on every node.
    """

    name = "kafka"

    def __init__(self, settings: Settings, readers: Callable[[], Readers]) -> None:
        self._settings, self._readers = settings, readers

    def clear(self, subject: Subject) -> list[PlaceReport]:
        """See `app.erasure.places.Place`. What lies there until retention has deleted it is reported, no error.

        Raises:
            BrokerUnavailable: the broker cannot be reached.
        """
        kafka = self._settings.kafka
        topics = [*_LEARNED, USERS]
        held = bounds(kafka, topics)
        with administration(kafka) as admin:
            limits = topic_limits(admin, [topic for topic in topics if held[topic].exists])
        found = [self._learned(subject, held[topic], limits.get(topic, Limits())) for topic in _LEARNED]
        return [*found, self._users(subject, held[USERS], limits.get(USERS, Limits()))]

    def _learned(self, subject: Subject, held: TopicBounds, limits: Limits) -> PlaceReport:
        place, kafka = f"kafka: {held.topic}", self._settings.kafka
        end = subject.ends.get(held.topic)
        if not held.exists or end is None or end.topic_id != held.topic_id:
            return cleared(place, "the topic was made after the erasure, or is gone")
        if not (left := _left(held, end)):
            return cleared(place, "the log begins behind it")
        until, why = _until(limits, _last_ms(kafka, held, end, subject))
        if not self._settings.erasure.delete_records:
            return PlaceReport(place, retention_until=until, detail=f"{why}; erasure.delete_records is off")
        behind = {name: self._behind(read, held.topic, left) for name, read in self._readers().items()}
        upto = {p: min(left[p], *(at.get(p, left[p]) for at in behind.values())) for p in left}
        delete_before(kafka, held, upto)
        if not _left(bounds(kafka, [held.topic])[held.topic], end):
            return cleared(place, f"deleted, no client can read it; the broker's files may hold it: {why} ({until})")
        waiting = ", ".join(sorted(name for name, at in behind.items() if at))
        return PlaceReport(
            place, retention_until=until, detail=f"{why}; not read by everybody yet ({waiting}): erase again once it is"
        )

    @staticmethod
    def _behind(read: Mapping[str, Mapping[int, int]], topic: str, left: Mapping[int, int]) -> dict[int, int]:
        """Partitions that one reader has not read up to the erasure, and where it is."""
        if topic not in read:
            return {}
        return {p: read[topic].get(p, 0) for p, upto in left.items() if read[topic].get(p, 0) < upto}

    def _users(self, subject: Subject, held: TopicBounds, limits: Limits) -> PlaceReport:
        """The user's columns and their withdrawal: no message of a compacted topic can be deleted by a client."""
        place, end = f"kafka: {USERS}", subject.ends.get(USERS)
        if not held.exists or end is None or end.topic_id != held.topic_id:
            return cleared(place, "the topic was made after the erasure, or is gone")
        if not any(key == subject.user_id.encode() for key in _keys(self._settings.kafka, held, end)):
            return cleared(place, "it holds no message of the user from before")
        if "compact" not in limits.policy:
            until, why = _until(limits, subject.requested_ms)
            return PlaceReport(place, retention_until=until, detail=why)
        by = compacted_by(limits, subject.requested_ms)
        why = "withdrawn; what stood there before, and then the withdrawal, go when the broker compacts the topic"
        if by is None:
            return PlaceReport(place, retention_until=UNKNOWN, detail=f"{why}: max.compaction.lag.ms sets no bound")
        return PlaceReport(place, retention_until=_text(by), detail=f"{why}, as long as messages come")


def delete_before(settings: KafkaSettings, held: TopicBounds, upto: Mapping[int, int]) -> None:
    """Deletes what lies before these offsets (partition → offset), of everybody.

    Raises:
        BrokerUnavailable: the broker cannot be reached, or does not allow it.
    """
    wanted = {TopicPartition(held.topic, p): at for p, at in upto.items() if at > held.first[p]}
    if wanted:
        with administration(settings) as admin:
            admin.delete_records(wanted)


def until_deleted(settings: KafkaSettings, topic: str, last_ms: int) -> tuple[str, str]:
    """Until when something of what arrived up to `last_ms` may be there (RFC 3339 or `unknown`), and why.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    with administration(settings) as admin:
        return _until(topic_limits(admin, [topic])[topic], last_ms)


def _left(held: TopicBounds, end: TopicEnd) -> dict[int, int]:
    """Partitions that still hold something from before the erasure, and where it ends there."""
    ends = {p: min(upto, held.end.get(p, 0)) for p, upto in end.next.items()}
    return {p: upto for p, upto in ends.items() if upto > held.first.get(p, 0)}


def _last_ms(settings: KafkaSettings, held: TopicBounds, end: TopicEnd, subject: Subject) -> int:
    """When the last message before the erasure arrived, by the log: clocks of producers may be ahead."""
    left = _left(held, end)
    asked = MessageTimes(settings)
    try:
        times = asked.at({(held.topic, p): upto - 1 for p, upto in left.items()})
    finally:
        asked.close()
    return max(subject.requested_ms, *times.values()) if times else subject.requested_ms


def _until(limits: Limits, last_ms: int) -> tuple[str, str]:
    """(RFC 3339 or `unknown`, why)."""
    by = deleted_by(limits, last_ms)
    if by is None:
        kept = f"retention.ms={limits.retention_ms}" if "delete" in limits.policy else f"cleanup.policy={limits.policy}"
        size = f", retention.bytes={limits.retention_bytes}" if limits.retention_bytes != UNLIMITED else ""
        return UNKNOWN, f"kept without a bound in time ({kept}{size})"
    return _text(by), f"retention.ms={limits.retention_ms} and segment.ms={limits.segment_ms} delete it by then"


def _keys(settings: KafkaSettings, held: TopicBounds, end: TopicEnd) -> Iterator[bytes | None]:
    consumer = range_consumer(settings)
    try:
        for partition, upto in _left(held, end).items():
            for rows in read_range(consumer, OffsetRange(held.topic, partition, held.first[partition], upto)):
                yield from rows["key"].to_pylist()
    finally:
        consumer.close()


def _text(milliseconds: int) -> str:
    most = int(time.time() * 1000) + 300 * 365 * 86_400_000  # a retention of centuries has no date
    return format_time(milliseconds // 1000 * 1_000_000) if milliseconds < most else UNKNOWN
