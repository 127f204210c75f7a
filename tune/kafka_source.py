"""Ranges of Kafka offsets as a Ray Data source: one read task a range, Arrow from the start."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import RayTaskError

from app.errors import BrokerUnavailable, MantaError
from app.events.blocks import ReadBlock, ReadFailed, block_hashes
from app.events.columns import REJECTED, Decoded
from app.events.decode import TABLES, decode_topic
from app.events.ranges import OffsetRange, tasks
from app.events.reader import range_consumer, read_range
from app.events.schema import EVENTS
from app.settings import Settings

HASHES = ("identity_1", "identity_2")
_BLOCK_BYTES = 32_000_000  # a block is sent on then; below Ray Data's own 128 MB, at which it would cut
_BYTES_PER_ROW = 300  # what an event takes as columns, for Ray Data's first guess


class KafkaRanges(Datasource):
    """Decoded messages of explicit offset ranges of one topic.

    Each block holds accepted rows (the topic's lake columns; for events also the identity's hashes) and rejected ones
    (`reason`, `detail` and `raw` set, of the others topic, partition, offset, record_time, key).
    """

    def __init__(self, settings: Settings, chunk: Sequence[OffsetRange]) -> None:
        super().__init__()
        self._settings = settings
        self._topic = chunk[0].topic
        self.tasks = tasks(list(chunk), settings.ingest.task_rows)

    def get_name(self) -> str:
        """The name on the dashboard."""
        return f"Kafka_{self._topic}"

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all blocks, roughly."""
        return sum(len(cut) for task in self.tasks for cut in task) * _BYTES_PER_ROW

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002 - Ray's signature
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """As many as the chunk was cut into, whatever the parallelism."""
        return [self._read_task(cuts) for cuts in self.tasks]

    def _read_task(self, cuts: list[OffsetRange]) -> ReadTask:
        settings = self._settings
        size = sum(len(cut) for cut in cuts) * _BYTES_PER_ROW
        metadata = BlockMetadata(num_rows=None, size_bytes=size, exec_stats=None, input_files=None)
        return ReadTask(lambda: read_blocks(settings, cuts), metadata)


def read_blocks(settings: Settings, cuts: Sequence[OffsetRange]) -> Iterable[pa.Table]:
    """One block a range, or several of bounded size (what a read task runs)."""
    pa.set_cpu_count(1)
    consumer = range_consumer(settings.kafka)
    try:
        for cut in cuts:
            tables: list[pa.Table] = []
            for records in read_range(consumer, cut):
                tables.append(_block(cut.topic, decode_topic(cut.topic, records, settings.events)))
                if sum(table.nbytes for table in tables) >= _BLOCK_BYTES:
                    yield pa.concat_tables(tables)
                    tables = []
                    pa.default_memory_pool().release_unused()
            if tables:
                yield pa.concat_tables(tables)
    finally:
        consumer.close()


def split_block(topic: str, block: pa.Table) -> ReadBlock:
    """Accepted rows with their identities, and rejected ones, copied out of the object store."""
    bad = block["reason"].is_valid()
    rejected = block.filter(bad)
    milliseconds = pc.divide(rejected["record_time"].cast(pa.int64()), 1000)
    rejected = rejected.set_column(rejected.schema.get_field_index("record_time"), "record_time", milliseconds)
    accepted = block.filter(pc.invert(bad))
    hashes = np.stack([accepted[name].to_numpy() for name in HASHES], axis=1) if topic == EVENTS else None
    decoded = Decoded(accepted.select(TABLES[topic].names).cast(TABLES[topic]), rejected.select(REJECTED.names))
    return ReadBlock(decoded, hashes)


def stream(settings: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
    """Reads a chunk of ranges of one topic as a Ray Data job and gives what came out, in the order of the ranges.

    Raises:
        ReadFailed: a read task has failed.
    """
    context = DataContext.get_current()
    kept: dict[str, Any] = {}
    quiet = {"enable_progress_bars": False, "print_on_execution_start": False}
    for name, value in quiet.items():
        kept[name] = getattr(context, name)
        setattr(context, name, value)
    order, context.execution_options.preserve_order = context.execution_options.preserve_order, True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        source = KafkaRanges(settings, chunk)
        dataset = ray.data.read_datasource(
            source,
            override_num_blocks=len(source.tasks),
            num_cpus=settings.ingest.cpus_per_task,
            # Each worker imports for seconds: no more of them than there are cores to run them
            concurrency=max(1, min(len(source.tasks), int(ray.cluster_resources().get("CPU", 1)))),
        )
        dataset.set_name(f"ingest_{chunk[0].topic}")
        for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            if len(block):
                yield split_block(chunk[0].topic, block)
    except RayTaskError as error:
        cause = error.cause
        known = isinstance(cause, MantaError)
        raise ReadFailed(
            cause if known else BrokerUnavailable(f"ingest: a read task failed: {cause or error}")
        ) from None
    finally:
        context.execution_options.preserve_order = order
        for name, value in kept.items():
            setattr(context, name, value)


def _only_rejected(topic: str) -> list[str]:
    """Columns that a rejected message has and an accepted one has not; the others they share."""
    return [name for name in REJECTED.names if name not in TABLES[topic].names]


def _block(topic: str, decoded: Decoded) -> pa.Table:
    accepted = decoded.events
    hashes = block_hashes(topic, accepted)
    if hashes is not None:
        for place, name in enumerate(HASHES):
            accepted = accepted.append_column(name, pa.array(np.ascontiguousarray(hashes[:, place]), pa.uint64()))
    for name in _only_rejected(topic):
        field = REJECTED.field(name)
        accepted = accepted.append_column(field, pa.nulls(len(accepted), field.type))
    if not len(decoded.rejected):
        return accepted
    micros = pc.multiply(decoded.rejected["record_time"], 1000)
    index = decoded.rejected.schema.get_field_index("record_time")
    moments = micros.cast(accepted.schema.field("record_time").type)
    rejected = decoded.rejected.set_column(index, "record_time", moments)
    return pa.concat_tables([accepted, _as(rejected, accepted.schema)])


def _as(rejected: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rejected rows in the schema of accepted ones."""
    columns = [
        rejected[field.name] if field.name in rejected.schema.names else pa.nulls(len(rejected), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
