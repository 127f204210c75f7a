"""Reading one range of offsets straight into Arrow, past transaction markers and the holes of compaction."""

import time
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from numpy.typing import NDArray

from app.errors import BrokerUnavailable, MantaError
from app.events.columns import RECORDS
from app.events.connection import QuietLogger, consumer_config
from app.events.ranges import OffsetRange
from app.settings import KafkaSettings

_BATCH = 2_500
_SLAB_ROWS = 20_000
_SLAB_BYTES = 16_000_000
_STALL_S = 60.0
_SECOND = itemgetter(1)


def range_consumer(settings: KafkaSettings) -> Consumer:
    """A consumer for `read_range`: reports the log's end, buffers little beyond a range."""
    config = consumer_config(
        settings,
        enable__partition__eof=True,
        queued__min__messages=2_500,
        fetch__queue__backoff__ms=5,  # a full queue is looked at again soon: the default of 1 s leaves the CPU idle
        fetch__message__max__bytes=1_000_000,
    )
    return Consumer(config, logger=QuietLogger())


def read_range(consumer: Consumer, wanted: OffsetRange, *, stall_s: float = _STALL_S) -> Iterator[pa.Table]:
    """Tables of RECORDS with every message that a `read_committed` reader may see in the range.

    Args:
        consumer: from `range_consumer`; assigned here.
        wanted: the range; it ends at or below the log's end.
        stall_s: give up after so long without a message and without the log's end.

    Raises:
        BrokerUnavailable: nothing came for `stall_s`, or the broker reports an error.
        MantaError: the range is not in the log any more (the caller's plan says which offsets are missing).
    """
    if not len(wanted):
        return
    consumer.assign([TopicPartition(wanted.topic, wanted.partition, wanted.start)])
    try:
        slab = _Slab(wanted.partition)
        heard = time.monotonic()
        while True:
            messages = consumer.consume(_BATCH, 0.05)
            if messages:
                heard = time.monotonic()
            elif time.monotonic() - heard > stall_s:
                raise BrokerUnavailable(
                    f"topic {wanted.topic}, partition {wanted.partition}: nothing came for {stall_s:g} s, wanted "
                    f"offsets {wanted.start} to {wanted.end - 1}"
                )
            finished = slab.take(messages, wanted)
            if finished or slab.full:
                if slab.rows:
                    yield slab.table()
                slab = _Slab(wanted.partition)
            if finished:
                return
    finally:
        consumer.unassign()


class _Slab:
    """Columns under construction."""

    def __init__(self, partition: int) -> None:
        self.rows = 0
        self.bytes = 0
        self._partition = partition
        self._batches: list[pa.RecordBatch] = []

    @property
    def full(self) -> bool:
        return self.rows >= _SLAB_ROWS or self.bytes >= _SLAB_BYTES

    def take(self, messages: list[Message], wanted: OffsetRange) -> bool:
        """Adds what lies in the range; True: the range is finished."""
        finished = False
        if any(map(Message.error, messages)):
            finished = _end_reached(messages, wanted)
            messages = [message for message in messages if message.error() is None]
        if messages and messages[-1].offset() >= wanted.end - 1:
            finished = True
            messages = [message for message in messages if message.offset() < wanted.end]
        if messages:
            self._add(messages)
        return finished

    def table(self) -> pa.Table:
        return pa.Table.from_batches(self._batches, RECORDS)

    def _add(self, messages: list[Message]) -> None:
        count = len(messages)
        values = pa.array(list(map(Message.value, messages)), pa.binary())
        columns = [
            pa.array(np.full(count, self._partition, np.int32)),
            pa.array(_offsets(messages)),
            pa.array(np.fromiter(map(_SECOND, map(Message.timestamp, messages)), np.int64, count)),
            pa.array(list(map(Message.key, messages)), pa.binary()),
            values,
        ]
        self._batches.append(pa.RecordBatch.from_arrays(columns, schema=RECORDS))
        self.rows += len(messages)
        self.bytes += values.nbytes


def _offsets(messages: list[Message]) -> NDArray[np.int64]:
    """int64 (n,): their offsets, which ascend; mostly without a hole."""
    first, last, count = messages[0].offset(), messages[-1].offset(), len(messages)
    if last - first == count - 1:
        return np.arange(first, last + 1, dtype=np.int64)
    return np.fromiter(map(Message.offset, messages), np.int64, count)


def _end_reached(messages: list[Message], wanted: OffsetRange) -> bool:
    """Whether the log's end was reported at or behind the range's end (its last offsets are markers or holes).

    Raises:
        BrokerUnavailable, MantaError: any other report.
    """
    reached = False
    for message in messages:
        error: Any = message.error()
        if error is None:
            continue
        if error.code() == KafkaError._PARTITION_EOF:
            reached = reached or message.offset() >= wanted.end
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise MantaError(
                f"topic {wanted.topic}, partition {wanted.partition}: offsets {wanted.start} to {wanted.end - 1} are "
                f"not in the log any more: {error.str()}"
            )
        elif not error.retriable():
            raise BrokerUnavailable(f"topic {wanted.topic}, partition {wanted.partition}: {error.str()}")
    return reached
