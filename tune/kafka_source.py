"""Ranges of Kafka offsets read by Ray tasks, Arrow from the start; blocks of bounded size come back as they are ready.

Plain tasks, not Ray Data: its two actors and its imports in every process took a third of an ingest's memory and start.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from app.errors import BrokerUnavailable, MantaError
from app.events.blocks import ReadBlock, ReadFailed, read_here
from app.events.columns import Decoded
from app.events.identity import Hashes
from app.events.ranges import OffsetRange, tasks
from app.heap import bound_heap, give_back, leave_pandas_out
from app.settings import Settings

_AHEAD = 2  # blocks of a task that wait to be taken; it pauses then

# Accepted rows and rejected ones as Arrow streams, identities. Read where it lies, in the object store.
_Sent = tuple[pa.Buffer, pa.Buffer, Hashes | None]


@dataclass(frozen=True, slots=True)
class _Running:
    """A read task, and the partitions of which it brings rows."""

    blocks: Any  # ray.ObjectRefGenerator
    partitions: frozenset[int] = field(default_factory=frozenset)


def stream(settings: Settings, chunk: Sequence[OffsetRange]) -> Iterator[ReadBlock]:
    """Reads a chunk of ranges of one topic on the Ray that is joined: of each partition in the order of the offsets.

    Each task reads `ingest.task_rows` messages at most; no more of them run at once than there are CPUs.

    Raises:
        ReadFailed: a read task has failed.
    """
    bound_heap()
    # Never again by itself: another run cuts its blocks elsewhere, and some rows would be missing or come twice
    read = ray.remote(
        name=f"ingest_{chunk[0].topic}",  # on the dashboard
        num_cpus=settings.ingest.cpus_per_task,
        max_retries=0,
        _generator_backpressure_num_objects=_AHEAD,
    )(send_blocks)
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(tasks(list(chunk), settings.ingest.task_rows))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                cuts = waiting.popleft()
                running.append(_Running(read.remote(settings, cuts), frozenset(cut.partition for cut in cuts)))
            task = _next_ready(running)
            try:
                reference = next(task.blocks)
            except StopIteration:
                running.remove(task)
                continue
            yield _received(ray.get(reference))
            del reference
    except RayError as error:
        cause = error.cause if isinstance(error, RayTaskError) else error
        known = isinstance(cause, MantaError)
        raise ReadFailed(
            cause if known else BrokerUnavailable(f"ingest: a read task failed: {cause or error}")
        ) from None
    finally:
        for task in running:
            ray.cancel(task.blocks, force=True)
        give_back()


def send_blocks(settings: Settings, cuts: Sequence[OffsetRange]) -> Iterator[_Sent]:
    """What a read task runs."""
    pa.set_cpu_count(1)
    bound_heap()
    leave_pandas_out()
    try:
        for block in read_here(settings, cuts):
            sent = _written(block.decoded.events), _written(block.decoded.rejected), block.hashes
            del block
            yield sent
            del sent
            give_back()
    except ReadFailed as error:
        raise error.cause from None
    finally:
        give_back()


def _next_ready(running: list[_Running]) -> _Running:
    """Waits for one that has a block, or has ended, and before which none is at work on its partitions."""
    first: list[_Running] = []
    taken: set[int] = set()
    for task in running:
        if not task.partitions & taken:
            first.append(task)
        taken |= task.partitions
    ready, _ = ray.wait([task.blocks for task in first], num_returns=1)
    return next(task for task in first if task.blocks is ready[0])


def _written(rows: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return sink.getvalue()


def _received(sent: _Sent) -> ReadBlock:
    """Copied out of the object store, whose room others need."""
    events, rejected, hashes = sent
    return ReadBlock(Decoded(_read(events), _read(rejected)), None if hashes is None else hashes.copy())


def _read(sent: pa.Buffer) -> pa.Table:
    held = pa.allocate_buffer(sent.size)
    np.frombuffer(held, np.uint8)[:] = np.frombuffer(sent, np.uint8)
    return pa.ipc.open_stream(held).read_all()
