"""Explicit ranges of offsets to read, cut to bounded size; what is missing from the log is an error, never skipped."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from app.errors import GapError


@dataclass(frozen=True, slots=True)
class TopicBounds:
    """What a topic holds now.

    Attributes:
        topic_id: changes when a topic is deleted and made anew; "" where the broker has none (the embedded one).
        first: partition to the lowest offset that is still there.
        end: partition to the offset after the last one that a `read_committed` reader may see.
    """

    topic: str
    topic_id: str
    first: dict[int, int] = field(default_factory=dict)
    end: dict[int, int] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        return bool(self.end)


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets `start` to `end` - 1 of one partition; the log may hold fewer messages (markers, compaction)."""

    topic: str
    partition: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets `start` to `end` - 1 that can never be read, and why."""

    topic: str
    partition: int
    start: int
    end: int
    reason: str


def plan(
    held: TopicBounds, topic_id: str, stored: Mapping[int, int], *, accept_gap: bool = False, compacted: bool = False
) -> tuple[list[OffsetRange], list[Gap]]:
    """What is to be read of a topic, one range a partition (empty ones too), and the gaps that were accepted.

    Args:
        held: what the topic holds now.
        topic_id: the topic's id when `stored` was written; "" if the broker had none.
        stored: partition to the next offset; a partition that is not named starts at the log's start.
        accept_gap: go on behind a gap instead of stopping.
        compacted: a compacted topic: its log start says nothing about what is gone.

    Raises:
        GapError: the topic was made anew, retention has passed the next offset, or the log ends below it.
    """
    ranges: list[OffsetRange] = []
    gaps: list[Gap] = []
    wanted: list[int] = []
    anew = bool(topic_id and held.topic_id and topic_id != held.topic_id)
    for partition in sorted(held.end):
        first, end = held.first[partition], held.end[partition]
        start = stored.get(partition, first)
        gap = _gap(held, topic_id, partition, start) if partition in stored else None
        if gap is not None and compacted and not anew and start < first:
            gap, start = None, first
        if gap is not None:
            gaps.append(gap)
            wanted.append(start)
            start = first if anew or start < first else end
        ranges.append(OffsetRange(held.topic, partition, start, end))
    if gaps and not accept_gap:
        part = gaps[0].partition
        raise GapError(gaps[0], wanted[0], held.first[part], held.end[part], len(gaps) - 1)
    return ranges, gaps


def _gap(held: TopicBounds, topic_id: str, partition: int, start: int) -> Gap | None:
    first, end = held.first[partition], held.end[partition]
    if topic_id and held.topic_id and topic_id != held.topic_id:
        reason = f"the topic was made anew: its id was {topic_id} and is {held.topic_id}"
        return Gap(held.topic, partition, start, start, reason)
    if start < first:
        return Gap(held.topic, partition, start, first, "retention has deleted what was not read yet")
    if start > end:
        return Gap(held.topic, partition, end, start, "the log ends below what was read: the broker has lost messages")
    return None


def chunks(ranges: list[OffsetRange], *, chunk_rows: int, task_rows: int) -> Iterator[list[OffsetRange]]:
    """The ranges cut into pieces of at most `task_rows` offsets, gathered into chunks of at most `chunk_rows`.

    All partitions move on side by side; within a partition the order of the pieces is that of the offsets.
    """
    waiting = [cut for cut in ranges if len(cut)]
    chunk: list[OffsetRange] = []
    room = chunk_rows
    while waiting:
        share = max(1, min(task_rows, chunk_rows // len(waiting)))
        left: list[OffsetRange] = []
        for cut in waiting:
            size = min(share, room, len(cut))
            if size:
                chunk.append(OffsetRange(cut.topic, cut.partition, cut.start, cut.start + size))
            if size < len(cut):
                left.append(OffsetRange(cut.topic, cut.partition, cut.start + size, cut.end))
            room -= size
        waiting = left
        if not room:
            yield _joined(chunk, task_rows)
            chunk, room = [], chunk_rows
    if chunk:
        yield _joined(chunk, task_rows)


def _joined(chunk: list[OffsetRange], task_rows: int) -> list[OffsetRange]:
    """Pieces of one partition that follow on each other, put together up to `task_rows`."""
    joined: list[OffsetRange] = []
    for cut in sorted(chunk, key=lambda piece: (piece.topic, piece.partition, piece.start)):
        last = joined[-1] if joined else None
        follows = last is not None and (last.topic, last.partition, last.end) == (cut.topic, cut.partition, cut.start)
        if last is not None and follows and len(last) + len(cut) <= task_rows:
            joined[-1] = OffsetRange(cut.topic, cut.partition, last.start, cut.end)
        else:
            joined.append(cut)
    return joined


def tasks(chunk: list[OffsetRange], task_rows: int) -> list[list[OffsetRange]]:
    """The pieces of a chunk put together to read tasks of at most `task_rows` offsets, in their order.

    Small pieces of many partitions make one task: starting a worker costs more than reading them.
    """
    grouped: list[list[OffsetRange]] = []
    room = 0
    for cut in chunk:
        if not grouped or len(cut) > room:
            grouped.append([])
            room = task_rows
        grouped[-1].append(cut)
        room -= len(cut)
    return grouped
