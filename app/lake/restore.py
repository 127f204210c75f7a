"""After a broker has lost messages: noting in the lake what is gone, and bringing `items` and `users` back from it."""

from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa

from app.events.entities import ID_FIELDS
from app.events.producer import EventProducer, Record
from app.events.ranges import plan
from app.events.schema import columns_message
from app.events.topics import bounds, ensure_topics
from app.lake.commit import TopicOffsets, append, gap_record
from app.lake.snapshot import snapshot
from app.lake.tables import TABLES, Lake
from app.settings import KafkaSettings

_DELIVERY_S = 60.0


def restore(lake: Lake, settings: KafkaSettings) -> dict[str, Any]:
    """Compares the log of each topic with what the lake has read of it, before anything new is produced.

    Where the log ends below (an unclean broker; the embedded one saves every 2 s) or the topic was made anew, the gap
    is recorded in the lake and reading goes on from what is there; lost `items` or `users` are sent again.

    Args:
        lake: the lake.
        settings: `settings.kafka`, with the broker's address.

    Returns:
        `{"gaps": [{"topic", "partition", "from", "to", "reason", "accepted"}], "restored": {topic: ids sent}}`.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
        pyiceberg.exceptions.CommitFailedException: an ingest runs at the same time.
    """
    ensure_topics(settings)
    gaps: list[dict[str, Any]] = []
    for topic in TABLES:
        gaps += _note_gaps(lake, settings, topic)
    lost = sorted({gap["topic"] for gap in gaps} & set(ID_FIELDS))
    return {"gaps": gaps, "restored": send_entities(lake, settings, lost)}


def send_entities(lake: Lake, settings: KafkaSettings, topics: list[str]) -> dict[str, int]:
    """Sends every item or user of the lake to its topic again; what is withdrawn is withdrawn again.

    A message that is there already is written once more, which changes nothing: the topics hold versions.

    Returns:
        Topic to the number of ids sent.

    Raises:
        BrokerUnavailable: the broker cannot be reached or does not acknowledge.
    """
    sent: dict[str, int] = {}
    if not topics:
        return sent
    producer = EventProducer(settings, delivery_timeout_s=_DELIVERY_S, linger_ms=20)
    try:
        for topic in topics:
            rows = snapshot(lake, topic).read()
            producer.send_blocking(topic, _messages(topic, rows))
            sent[topic] = len(rows)
    finally:
        producer.close()
    return sent


def _note_gaps(lake: Lake, settings: KafkaSettings, topic: str) -> list[dict[str, Any]]:
    if not lake.exists(topic):
        return []
    now = snapshot(lake, topic)
    stood = now.progress.topics.get(topic)
    if stood is None:
        return []
    held = bounds(settings, [topic])[topic]
    ranges, gaps = plan(held, stood.topic_id, stood.next, accept_gap=True, compacted=topic in ID_FIELDS)
    if not gaps:
        return []
    noted = [gap_record(gap.topic, gap.partition, gap.start, gap.end, gap.reason) for gap in gaps]
    offsets = TopicOffsets(held.topic_id, {cut.partition: cut.start for cut in ranges})
    rows = TABLES[topic].empty_table()
    append(now.source, rows, now.progress.moved(topic, offsets, noted), max_open_partitions=1)
    return noted


def _messages(topic: str, rows: pa.Table) -> Iterator[Record]:
    for row in rows.select([ID_FIELDS[topic], "available", "columns"]).to_pylist():
        key = row[ID_FIELDS[topic]].encode()
        if row["columns"] is not None:
            yield key, columns_message(orjson.loads(row["columns"]))
        if not row["available"]:
            yield key, None
