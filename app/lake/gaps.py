"""Offsets that can never be read any more: between which times they arrived, and how the lake notes them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pyiceberg.expressions import And, EqualTo, GreaterThanOrEqual, LessThan

from app.errors import GapError
from app.events.entities import ID_FIELDS
from app.events.message_times import MessageTimes
from app.events.ranges import Gap, OffsetRange, TopicBounds, plan
from app.lake.commit import TopicOffsets, gap_record
from app.lake.scan import pieces
from app.lake.snapshot import Snapshot
from app.settings import KafkaSettings

_LOOK_BACK = 100_000  # offsets before a gap among which the last row is looked for

Times = tuple[int | None, int | None]  # milliseconds


def plan_from(
    now: Snapshot, held: TopicBounds, settings: KafkaSettings, *, accept_gap: bool
) -> tuple[list[OffsetRange], list[dict[str, Any]]]:
    """What is to be read from where a snapshot stands, and the accepted gaps as the snapshots keep them.

    Raises:
        GapError: as `ranges.plan`, with the times between which the missing messages arrived.
    """
    topic = held.topic
    stood = now.progress.topics.get(topic, TopicOffsets("", {}))
    try:
        ranges, gaps = plan(held, stood.topic_id, stood.next, accept_gap=accept_gap, compacted=topic in ID_FIELDS)
    except GapError as error:
        (times,) = arrivals(now, held, [error.gap], settings)
        raise error.between(*map(_text, times)) from None
    return ranges, [_record(gap, times) for gap, times in zip(gaps, arrivals(now, held, gaps, settings), strict=True)]


def arrivals(now: Snapshot, held: TopicBounds, gaps: Sequence[Gap], settings: KafkaSettings) -> list[Times]:
    """Of each gap: when the last message before it arrived, as the lake has it, and the first one behind it."""
    if not gaps:
        return []
    behind = {(gap.topic, gap.partition): max(gap.end, held.first[gap.partition]) for gap in gaps}
    there = {place: offset for place, offset in behind.items() if offset < held.end[place[1]]}
    asked = MessageTimes(settings)
    try:
        found = asked.at(there) if there else {}
    finally:
        asked.close()
    return [(_last_before(now, gap), found.get((gap.topic, gap.partition))) for gap in gaps]


def _last_before(now: Snapshot, gap: Gap) -> int | None:
    if now.id is None:
        return None
    near = And(
        EqualTo("partition", gap.partition),
        And(LessThan("offset", gap.start), GreaterThanOrEqual("offset", gap.start - _LOOK_BACK)),
    )
    scan = now.source.scan(row_filter=near, selected_fields=("offset", "record_time"), snapshot_id=now.id)
    newest: tuple[int, int] | None = None
    for piece in pieces(scan):
        for row in piece.to_pylist():
            one = (row["offset"], int(row["record_time"].timestamp() * 1000))
            newest = one if newest is None else max(newest, one)
    return newest[1] if newest else None


def _record(gap: Gap, times: Times) -> dict[str, Any]:
    return gap_record(gap.topic, gap.partition, gap.start, gap.end, gap.reason) | {
        "after": _text(times[0]),
        "before": _text(times[1]),
    }


def _text(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
