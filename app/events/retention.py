"""How long until a topic's retention deletes what a reader has not read: by age, and by the log's size."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from kafka.admin import KafkaAdminClient
from kafka.errors import KafkaError

from app.events.limits import UNLIMITED, Limits, topic_limits
from app.events.message_times import MessageTimes
from app.events.ranges import TopicBounds
from app.events.topics import administration, bounds
from app.settings import KafkaSettings

_HOUR_MS = 3_600_000
_APART_MS = 600_000  # that clocks may differ by

Place = tuple[str, int]  # topic, partition


@dataclass(frozen=True, slots=True)
class Reach:
    """When retention reaches one reader of one topic: in its most endangered partition.

    Attributes:
        reader: who reads.
        topic: what.
        partition: the one that is reached first.
        hours_by_time: until the oldest unread message is as old as retention allows, 0 where it has gone already;
            None: kept without end.
        hours_by_bytes: until so much has come at the log's average rate that it is pushed out; None: likewise.
        unread: offsets that the reader is behind, over all partitions.
    """

    reader: str
    topic: str
    partition: int
    hours_by_time: float | None
    hours_by_bytes: float | None
    unread: int

    @property
    def hours(self) -> float | None:
        """The smaller of the two."""
        return min((each for each in (self.hours_by_time, self.hours_by_bytes) if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class LogState:
    """What the estimate of one partition is made of; times in milliseconds, sizes in bytes."""

    first: int
    end: int
    bytes: int | None
    first_time: int | None  # of the oldest message that is there
    next_time: int | None  # of the oldest message that the reader has not read


def measure(
    settings: KafkaSettings, readers: Mapping[str, Mapping[str, Mapping[int, int]]], now_ms: int | None = None
) -> list[Reach]:
    """Asks the broker; one entry a reader and topic. Topics that are only compacted lose nothing unread: left out.

    Args:
        settings: of the broker.
        readers: name → topic → partition → next offset; partitions that are not named start at the log's start.
        now_ms: the time, milliseconds; None: the clock's.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    now = int(time.time() * 1000) if now_ms is None else now_ms
    topics = sorted({topic for read in readers.values() for topic in read})
    held = {topic: one for topic, one in bounds(settings, topics).items() if one.exists}
    with administration(settings) as admin:
        limits = topic_limits(admin, list(held))
        sizes = _sizes(admin, list(held))
    finite = [one for topic, one in held.items() if limits[topic].deletes]
    times, latest = MessageTimes(settings), now + _APART_MS
    found = []
    try:
        first_times = times.at(
            {(one.topic, part): one.first[part] for one in finite for part in one.first}, upto_ms=latest
        )
        for reader, read in readers.items():
            wanted = [one for one in finite if one.topic in read]
            asked = {(one.topic, p): _next(one, read[one.topic], p) for one in wanted for p in one.end}
            unread = {place: at for place, at in asked.items() if at < held[place[0]].end[place[1]]}
            next_times = times.at(unread, upto_ms=latest) if unread else {}
            for one in wanted:
                logs = {
                    part: LogState(
                        one.first[part],
                        end,
                        sizes.get((one.topic, part)),
                        first_times.get((one.topic, part)),
                        next_times.get((one.topic, part)),
                    )
                    for part, end in one.end.items()
                }
                nexts = {part: read[one.topic].get(part, asked[one.topic, part]) for part in one.end}
                found.append(nearest(reader, one.topic, limits[one.topic], logs, nexts, now))
    finally:
        times.close()
    return found


def nearest(
    reader: str, topic: str, limits: Limits, logs: Mapping[int, LogState], nexts: Mapping[int, int], now: int
) -> Reach:
    """The partition that is reached first, from what is known of each.

    A reader whose next offset lies below the log's start has been reached: 0 hours.
    """
    reached = {}
    for part, log in logs.items():
        by_time = _by_time(limits, log, now) if nexts[part] >= log.first else 0.0  # what comes next has gone already
        by_bytes = _by_bytes(limits, log, nexts[part], now)
        reached[part] = Reach(reader, topic, part, by_time, by_bytes, 0)
    first = min(reached.values(), key=lambda one: (one.hours is None, one.hours or 0.0))
    unread = sum(max(0, log.end - nexts[part]) for part, log in logs.items())
    return Reach(reader, topic, first.partition, first.hours_by_time, first.hours_by_bytes, unread)


def _by_time(limits: Limits, log: LogState, now: int) -> float | None:
    """A segment goes when its newest message is too old, so that this is the earliest; nothing unread: all of it."""
    if limits.retention_ms == UNLIMITED:
        return None
    oldest = now if log.next_time is None else min(log.next_time, now)
    return max(0.0, (oldest + limits.retention_ms - now) / _HOUR_MS)


def _by_bytes(limits: Limits, log: LogState, start: int, now: int) -> float | None:
    if limits.retention_bytes == UNLIMITED or log.bytes is None:
        return None
    unread = log.bytes * max(0, log.end - start) / max(1, log.end - log.first)
    room = limits.retention_bytes - unread
    if room <= 0:
        return 0.0
    if log.first_time is None or not log.bytes:
        return None  # an empty log grows at an unknown rate
    return room / log.bytes * max(1, now - log.first_time) / _HOUR_MS


def _next(held: TopicBounds, read: Mapping[int, int], partition: int) -> int:
    """The oldest message that is there for the reader: where it is, or the log's start where that lies behind it."""
    first = held.first[partition]
    return max(first, read.get(partition, first))


def _sizes(admin: KafkaAdminClient, topics: list[str]) -> dict[Place, int]:
    """Bytes of each partition's log, of its largest replica; nothing where the broker does not say."""
    sizes: dict[Place, int] = {}
    try:
        answers = admin.describe_log_dirs(topics) if topics else []
    except KafkaError:
        return {}
    for folder in (folder for answer in answers for folder in answer["log_dirs"]):
        for topic in folder["topics"]:
            for part in topic["partitions"]:
                place = (topic.get("name") or topic.get("topic"), part["partition_index"])
                sizes[place] = max(sizes.get(place, 0), part["partition_size"])
    return sizes
