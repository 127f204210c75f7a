"""After a broker has lost what it had acknowledged: the lake notes the gap, and gives `items` and `users` back."""

import logging
from collections.abc import Iterator
from typing import Any

import orjson
from pyiceberg.exceptions import CommitFailedException

from app.events.decode import TABLES
from app.events.entities import ID_FIELDS
from app.events.gathering import Record
from app.events.producer import EventProducer
from app.events.ranges import TopicBounds, plan
from app.events.schema import IMPORTED, columns_message
from app.events.topics import bounds, ensure_topics
from app.lake.commit import TopicOffsets, append, gap_record
from app.lake.snapshot import snapshot
from app.lake.tables import Lake
from app.settings import KafkaSettings

_TRIES = 5
_DELIVERY_S = 30.0

log = logging.getLogger(__name__)


def make_good(lake: Lake, settings: KafkaSettings) -> dict[str, Any]:
    """Compares the lake with the log, notes what is gone, and sends lost items and users again.

    Call it before anything new is produced: later, new messages may stand where the lost ones stood.

    Returns:
        `{"gaps": [...], "restored": {"items": n, "users": n}}`: gaps recorded now, ids sent again.

    Raises:
        BrokerUnavailable: the broker cannot be reached.
    """
    ensure_topics(settings)
    held = bounds(settings, list(TABLES))
    lost = {topic: _lost(lake, held[topic]) for topic in ID_FIELDS}
    gaps = [gap for topic in TABLES for gap in _record(lake, held[topic])]
    producer = EventProducer(settings, delivery_timeout_s=_DELIVERY_S)
    try:
        for topic, rows in lost.items():
            producer.send_blocking(topic, _messages(ID_FIELDS[topic], rows))
    finally:
        producer.close()
    return {"gaps": gaps, "restored": {topic: len(rows) for topic, rows in lost.items()}}


def _lost(lake: Lake, held: TopicBounds) -> list[dict[str, Any]]:
    """Latest versions whose offsets the log does not reach any more; what is still there may be newer: it stays."""
    if not lake.exists(held.topic):
        return []
    rows: list[dict[str, Any]] = snapshot(lake, held.topic).read().sort_by([("offset", "ascending")]).to_pylist()
    sent = (row for row in rows if row["topic"] != IMPORTED)
    return [row for row in sent if row["offset"] >= held.end.get(row["partition"], 0)]


def _messages(id_field: str, rows: list[dict[str, Any]]) -> Iterator[Record]:
    for row in rows:
        key = row[id_field].encode()
        if row["columns"] is not None:  # a withdrawn item keeps its columns
            yield key, columns_message(orjson.loads(row["columns"]))
        if not row["available"]:
            yield key, None


def _record(lake: Lake, held: TopicBounds) -> list[dict[str, Any]]:
    """Moves the lake's offsets back to the log's end where that is below them."""
    if not lake.exists(held.topic):
        return []
    for _ in range(_TRIES):
        now = snapshot(lake, held.topic)
        stood = now.progress.topics.get(held.topic, TopicOffsets("", {}))
        ranges, gaps = plan(held, stood.topic_id, stood.next, accept_gap=True, compacted=held.topic in ID_FIELDS)
        if not gaps:
            return []
        found = [gap_record(gap.topic, gap.partition, gap.start, gap.end, gap.reason) for gap in gaps]
        target = TopicOffsets(held.topic_id, {cut.partition: cut.start for cut in ranges})
        nothing = TABLES[held.topic].empty_table()
        try:
            append(now.source, nothing, now.progress.moved(held.topic, target, found), max_open_partitions=1)
        except CommitFailedException:
            log.info("%s: another commit was first; reading the offsets again", held.topic)
            continue
        return found
    return []
