"""What could not be read, and why: the topic `events.dlq`, written by ingest alone."""

import base64
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pyarrow as pa

from app.events.producer import EventProducer
from app.events.ranges import OffsetRange, TopicBounds
from app.events.reader import range_consumer, read_range
from app.events.schema import DLQ, SCHEMA_VERSION, format_time
from app.events.topics import bounds
from app.settings import KafkaSettings

# A dead letter must fit into a message itself; of anything longer the beginning is kept.
_MAX_RAW = 600_000
_DELIVERY_S = 60.0


def dead_letter_messages(rejected: pa.Table) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) pairs for `events.dlq`; the key names the source position, so that readers can tell repeats.

    Args:
        rejected: `columns.REJECTED`.
    """
    rows = (row for batch in rejected.to_batches(max_chunksize=1000) for row in batch.to_pylist())
    for row in rows:
        raw: bytes = row["raw"] or b""
        letter = {
            "schema_version": SCHEMA_VERSION,
            "topic": row["topic"],
            "partition": row["partition"],
            "offset": row["offset"],
            "reason": row["reason"],
            "detail": row["detail"],
            "time": format_time(row["record_time"] * 1000),
            "key": base64.b64encode(row["key"] or b"").decode(),
            "raw": base64.b64encode(raw[:_MAX_RAW]).decode(),
            "raw_bytes": len(raw),
        }
        yield f"{row['topic']}/{row['partition']}/{row['offset']}".encode(), orjson.dumps(letter)


def read_dead_letters(settings: KafkaSettings) -> Iterator[dict[str, Any]]:
    """Every dead letter once, in the order of the topic; `raw` and `key` are base64.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    seen: set[bytes] = set()
    for key, value in _messages(settings, bounds(settings, [DLQ])[DLQ], {}):
        if key not in seen and value:
            seen.add(key)
            yield orjson.loads(value)


def _messages(
    settings: KafkaSettings, held: TopicBounds, after: Mapping[int, int]
) -> Iterator[tuple[bytes, bytes | None]]:
    consumer = range_consumer(settings)
    try:
        for partition, end in sorted(held.end.items()):
            start = max(held.first[partition], min(after.get(partition, 0), end))
            for table in read_range(consumer, OffsetRange(DLQ, partition, start, end)):
                yield from zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)
    finally:
        consumer.close()


class DeadLetterBox:
    """Where ingest puts what it refuses: each source position once, though a killed ingest reads it again."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: EventProducer | None = None

    def put(self, rejected: pa.Table, topic_id: str, after: Mapping[int, int]) -> tuple[str, dict[int, int]]:
        """Sends the dead letters that are not in the topic yet and waits until they are acknowledged.

        Args:
            rejected: `columns.REJECTED`.
            topic_id: id of `events.dlq` when `after` was found.
            after: partition to the offset of `events.dlq` before which no letter can be of these messages.

        Returns:
            (topic id, such offsets for the next time).

        Raises:
            BrokerUnavailable: the broker cannot be reached or does not acknowledge.
        """
        held = bounds(self._settings, [DLQ])[DLQ]
        known = after if held.topic_id == topic_id else {}
        there = {key for key, _ in _messages(self._settings, held, known)}
        if self._producer is None:
            self._producer = EventProducer(self._settings, delivery_timeout_s=_DELIVERY_S, linger_ms=20)
        letters = (letter for letter in dead_letter_messages(rejected) if letter[0] not in there)
        self._producer.send_blocking(DLQ, letters)
        return held.topic_id, dict(held.end)

    def close(self) -> None:
        if self._producer is not None:
            self._producer.close()


def list_dead_letters(settings: KafkaSettings, limit: int = 100) -> dict[str, Any]:
    """`{"total", "by_reason", "messages": [{topic, partition, offset, reason, time, detail}]}`, the first `limit`.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    reasons: Counter[str] = Counter()
    messages: list[dict[str, Any]] = []
    for letter in read_dead_letters(settings):
        reasons[letter["reason"]] += 1
        if len(messages) < limit:
            names = ("topic", "partition", "offset", "reason", "time", "detail")
            messages.append({name: letter.get(name) for name in names})
    return {"total": reasons.total(), "by_reason": dict(reasons.most_common()), "messages": messages}


def show_dead_letter(settings: KafkaSettings, topic: str, partition: int, offset: int) -> dict[str, Any] | None:
    """The whole dead letter of one source position; None: there is none.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    for letter in read_dead_letters(settings):
        if (letter["topic"], letter["partition"], letter["offset"]) == (topic, partition, offset):
            return letter
    return None
