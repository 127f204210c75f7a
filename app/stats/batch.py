"""What the live figures are folded from: accepted messages of `events` and `impressions`, and where they end."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from app.events.columns import EVENT_COLUMNS, RECORDS
from app.events.decode import decode_topic
from app.events.impressions import IMPRESSION_COLUMNS
from app.events.schema import EVENTS, IMPRESSIONS
from app.settings import EventSettings
from app.state.feed import Read

TOPICS = (EVENTS, IMPRESSIONS)
Place = tuple[str, int]  # topic, partition


@dataclass(frozen=True, slots=True)
class StatsBatch:
    """Messages in the order of their offsets within each partition.

    Attributes:
        events: EVENT_COLUMNS.
        impressions: IMPRESSION_COLUMNS.
        offsets: (topic, partition) → next offset once this batch is applied.
        partitions: every partition that is read, with messages or without.
        idle: those that are read to their end and silent: they hold nothing back.
        skipped: messages left out, by reason.
        jumps: offsets that were not there to be read, by kind.
    """

    events: pa.Table = field(default_factory=EVENT_COLUMNS.empty_table)
    impressions: pa.Table = field(default_factory=IMPRESSION_COLUMNS.empty_table)
    offsets: Mapping[Place, int] = field(default_factory=dict)
    partitions: Iterable[Place] = ()
    idle: Iterable[Place] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    jumps: Mapping[str, int] = field(default_factory=dict)


def to_batch(read: Read, settings: EventSettings, *, now_ms: int, partitions: Iterable[Place] = ()) -> StatsBatch:
    """What a poll brought, checked by the rules of ingest; `now_ms` stands in for a record without a timestamp."""
    skipped: dict[str, int] = {}
    tables = {}
    for topic in TOPICS:
        records = _records([message for message in read.messages if message.topic() == topic], now_ms)
        decoded = decode_topic(topic, records, settings)
        tables[topic] = decoded.events
        for reason in decoded.rejected["reason"].to_pylist():
            skipped[reason] = skipped.get(reason, 0) + 1
    return StatsBatch(
        tables[EVENTS],
        tables[IMPRESSIONS],
        read.offsets,
        partitions=tuple(partitions),
        skipped=skipped,
        jumps=read.jumps,
    )


def after(table: pa.Table, done: Mapping[int, int]) -> pa.Table:
    """The rows whose offset is not below `done` of their partition: the others have been applied already."""
    partitions, offsets = table["partition"].to_numpy(), table["offset"].to_numpy()
    fresh = np.ones(len(table), np.bool_)
    for partition, next_offset in done.items():
        fresh &= (partitions != partition) | (offsets >= next_offset)
    return table if fresh.all() else table.filter(pa.array(fresh))


def _records(messages: list[Message], now_ms: int) -> pa.Table:
    def arrival(message: Message) -> int:
        kind, moment = message.timestamp()
        return now_ms if kind == TIMESTAMP_NOT_AVAILABLE else int(moment)

    columns = [
        [message.partition() for message in messages],
        [message.offset() for message in messages],
        [arrival(message) for message in messages],
        [message.key() for message in messages],
        [message.value() for message in messages],
    ]
    return pa.table(
        [pa.array(column, kind.type) for column, kind in zip(columns, RECORDS, strict=True)], schema=RECORDS
    )
